//! HTTP clients without redirects, with timeouts, and with a choice of trusted CAs.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use reqwest::{Certificate, Client, ClientBuilder};

/// User agent of all requests.
pub const USER_AGENT: &str = concat!("mesh-observer/", env!("CARGO_PKG_VERSION"));

/// Why a client cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The CA file cannot be read.
    #[error("CA file {path} cannot be read: {reason}; it must hold PEM certificates that the observer's user may read")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: io::Error,
    },
    /// The CA file has no certificate.
    #[error("CA file {0} holds no PEM certificate; it needs the authority's, between BEGIN and END CERTIFICATE")]
    Empty(PathBuf),
    /// The client cannot be set up.
    #[error("no HTTPS client: {}; name the authorities' certificates with a CA file if this host has none", causes(.0))]
    Tls(reqwest::Error),
    /// The client cannot be set up.
    #[error("no HTTP client: {}", causes(.0))]
    Plain(reqwest::Error),
}

/// Creates a client for `http` only, which loads no certificates and so saves their memory.
///
/// # Errors
/// The client cannot be set up.
pub fn plain(timeout: Duration) -> Result<Client, ClientError> {
    builder(timeout).tls_certs_only([]).build().map_err(ClientError::Plain)
}

/// Creates a client for `https` that trusts the CA certificates in `ca_file` (PEM), or else those of the system.
///
/// # Errors
/// There are no certificates, or the client cannot be set up.
pub fn trusting(ca_file: Option<&Path>, timeout: Duration) -> Result<Client, ClientError> {
    let builder = match ca_file {
        None => builder(timeout),
        Some(path) => builder(timeout).tls_certs_only(authorities(path)?),
    };
    builder.build().map_err(ClientError::Tls)
}

/// Creates a client that ignores proxies of the environment: for addresses of this node and its cluster.
///
/// # Errors
/// As those of [`plain`] and [`trusting`].
pub fn direct(https: bool, ca_file: Option<&Path>, timeout: Duration) -> Result<Client, ClientError> {
    // An idle connection keeps a buffer as large as the largest response; a new one every few seconds costs nothing.
    let builder = builder(timeout).no_proxy().pool_max_idle_per_host(0);
    // Leaves time for another route if nothing answers.
    let builder = builder.connect_timeout(timeout / 3);
    match (https, ca_file) {
        (false, _) => builder.tls_certs_only([]).build().map_err(ClientError::Plain),
        (true, None) => builder.build().map_err(ClientError::Tls),
        (true, Some(path)) => builder.tls_certs_only(authorities(path)?).build().map_err(ClientError::Tls),
    }
}

fn builder(timeout: Duration) -> ClientBuilder {
    // The first client installs it; an error means that it is installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().timeout(timeout).user_agent(USER_AGENT).redirect(reqwest::redirect::Policy::none())
}

fn authorities(path: &Path) -> Result<Vec<Certificate>, ClientError> {
    let pem = fs::read(path).map_err(|reason| ClientError::Unreadable { path: path.to_owned(), reason })?;
    let found = Certificate::from_pem_bundle(&pem).unwrap_or_default();
    if found.is_empty() { Err(ClientError::Empty(path.to_owned())) } else { Ok(found) }
}

/// Returns all causes of an error but the outermost, which repeats the URL with its secrets.
#[must_use]
pub fn causes(error: &reqwest::Error) -> String {
    let mut causes = Vec::new();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        causes.push(error.to_string());
        cause = error.source();
    }
    if causes.is_empty() { "unknown cause".to_owned() } else { causes.join(": ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_ca_file_is_named_with_what_it_needs() {
        let limit = Duration::from_secs(1);
        let missing = trusting(Some(Path::new("/nonexistent/ca.pem")), limit).unwrap_err().to_string();
        assert!(missing.contains("/nonexistent/ca.pem") && missing.contains("PEM"), "{missing}");
        let empty = tempfile::NamedTempFile::new().unwrap();
        let error = trusting(Some(empty.path()), limit).unwrap_err().to_string();
        assert!(error.contains("holds no PEM certificate"), "{error}");
    }

    #[test]
    fn a_client_of_each_kind_can_be_made() {
        plain(Duration::from_secs(1)).unwrap();
        let authority = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), authority.cert.pem()).unwrap();
        trusting(Some(file.path()), Duration::from_secs(1)).unwrap();
    }
}
