//! HTTP clients without redirects, with timeouts, and with a choice of trusted CAs.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use reqwest::{Certificate, Client, ClientBuilder};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

use super::pinned::{self, OwnCertificate};

/// User agent of all requests.
pub const USER_AGENT: &str = concat!("mesh-observer/", env!("CARGO_PKG_VERSION"));

/// Maximum size of the headers of an answer over HTTP/2.
const MAX_HEADERS: u32 = 64 << 10;

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
    /// A file of the client's own certificate or key cannot be read.
    #[error("client certificate {path} cannot be read: {reason}; it must be PEM that the observer's user may read")]
    IdentityUnreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: io::Error,
    },
    /// The client's own certificate or key cannot be used.
    #[error("client certificate {path} and its key cannot be used: {reason}; both must be PEM")]
    Identity {
        /// The file of the certificate.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The client cannot be set up.
    #[error("no HTTPS client: {}; name the authorities' certificates with a CA file if this host has none", causes(.0))]
    Tls(reqwest::Error),
    /// The client cannot be set up.
    #[error("no HTTPS client: {0}; the client certificate and its key must belong together")]
    Pinned(rustls::Error),
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

/// A client's certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, with those between it and the authority (PEM).
    pub certificate_file: PathBuf,
    /// The key (PEM).
    pub key_file: PathBuf,
}

/// Creates a client of a receiver. `tls` has the file of the trusted CA certificates and the client's own; without it, the
/// client is for `http` only.
///
/// # Errors
/// As those of [`plain`] and [`trusting`], or the client's own certificate cannot be used.
pub fn pushing(
    tls: Option<(Option<&Path>, Option<&Identity>)>,
    is_http2: bool,
    timeout: Duration,
) -> Result<Client, ClientError> {
    let builder = builder(timeout);
    let builder = if is_http2 {
        builder.http2_prior_knowledge().http2_max_header_list_size(MAX_HEADERS)
    } else {
        builder.http1_only()
    };
    let Some((ca_file, identity)) = tls else {
        return builder.tls_certs_only([]).build().map_err(ClientError::Plain);
    };
    let builder = match ca_file {
        None => builder,
        Some(path) => builder.tls_certs_only(authorities(path)?),
    };
    let builder = match identity {
        None => builder,
        Some(identity) => builder.identity(own_identity(identity)?),
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

/// Creates a client like that of [`direct`], of a server that has this certificate, with the client's own.
///
/// # Errors
/// The client's own certificate cannot be used.
pub fn pinned(
    server: CertificateDer<'static>,
    identity: Option<&Identity>,
    timeout: Duration,
) -> Result<Client, ClientError> {
    let own = identity.map(own_certificate).transpose()?;
    let config = pinned::client_config(server, own).map_err(ClientError::Pinned)?;
    let builder = builder(timeout).no_proxy().tls_backend_preconfigured(config);
    builder.build().map_err(ClientError::Tls)
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

fn own_identity(identity: &Identity) -> Result<reqwest::Identity, ClientError> {
    let (mut pem, certificate) = (read(&identity.key_file)?, read(&identity.certificate_file)?);
    pem.push(b'\n');
    pem.extend(certificate);
    reqwest::Identity::from_pem(&pem).map_err(|error| unusable(identity, causes(&error)))
}

fn own_certificate(identity: &Identity) -> Result<OwnCertificate, ClientError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(&identity.certificate_file)?).collect();
    let key = PrivateKeyDer::from_pem_slice(&read(&identity.key_file)?);
    chain.and_then(|chain| Ok((chain, key?))).map_err(|error| unusable(identity, error.to_string()))
}

fn read(path: &Path) -> Result<Vec<u8>, ClientError> {
    fs::read(path).map_err(|reason| ClientError::IdentityUnreadable { path: path.to_owned(), reason })
}

fn unusable(identity: &Identity, reason: String) -> ClientError {
    ClientError::Identity { path: identity.certificate_file.clone(), reason }
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
