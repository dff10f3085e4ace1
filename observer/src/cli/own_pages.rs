//! Reads the pages of an observer that runs on this node, also where its web configuration has TLS and users.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Error, Result, ensure};
use clap::Args;
use reqwest::{Client, Response, StatusCode, header::HeaderMap};

use crate::{
    emit::credentials::Credentials,
    serve::web_config,
    system::http_client::{self, Identity, causes},
};

/// How this command proves itself to an observer that demands it.
#[derive(Clone, Debug, Default, Args)]
pub struct ReaderArgs {
    /// File with USER:PASSWORD, for an observer whose web configuration has users
    #[arg(long, value_name = "FILE", env = "OBSERVER_WEB_BASIC_AUTH_FILE")]
    pub web_basic_auth_file: Option<PathBuf>,
    /// File with a client certificate (PEM), for an observer whose web configuration demands one
    #[arg(long, value_name = "FILE", env = "OBSERVER_WEB_CERT_FILE", requires = "web_key_file")]
    pub web_cert_file: Option<PathBuf>,
    /// File with the key of that certificate (PEM)
    #[arg(long, value_name = "FILE", env = "OBSERVER_WEB_KEY_FILE", requires = "web_cert_file")]
    pub web_key_file: Option<PathBuf>,
}

impl ReaderArgs {
    fn identity(&self) -> Option<Identity> {
        let (certificate_file, key_file) = self.web_cert_file.clone().zip(self.web_key_file.clone())?;
        Some(Identity { certificate_file, key_file })
    }
}

/// The pages of one observer.
#[derive(Debug)]
pub struct OwnPages {
    client: Client,
    address: SocketAddr,
    is_tls: bool,
    credentials: HeaderMap,
}

impl OwnPages {
    /// Prepares to read the observer at an address. If its web configuration has TLS, only the certificate in it is accepted.
    ///
    /// # Errors
    /// The web configuration, or a file of the credentials, cannot be used.
    pub fn new(address: SocketAddr, web_config: Option<&Path>, reader: &ReaderArgs, timeout: Duration) -> Result<Self> {
        let certificate = web_config.map(web_config::certificate).transpose()?.flatten();
        let is_tls = certificate.is_some();
        let client = match certificate {
            Some(certificate) => http_client::pinned(certificate, reader.identity().as_ref(), timeout)?,
            None => http_client::direct(false, None, timeout)?,
        };
        let credentials = Credentials { basic: reader.web_basic_auth_file.clone(), ..Credentials::default() }.read()?;
        Ok(Self { client, address, is_tls, credentials })
    }

    /// Returns the page at a path, which must be there.
    ///
    /// # Errors
    /// There is no observer, or it refuses.
    pub async fn get(&self, path: &str) -> Result<Response> {
        let response = self.ask(path).await.map_err(|error| self.unanswered(&error))?;
        let (address, status) = (self.address, response.status());
        ensure!(
            status != StatusCode::UNAUTHORIZED,
            "{address} answers {status}: its web configuration has users; name the file of one with --web-basic-auth-file"
        );
        ensure!(status == StatusCode::OK, "{address} answers {status}: is it an observer? See its log and /readyz");
        Ok(response)
    }

    /// Whether an observer answers: by its index page, or because it wants a password for it.
    ///
    /// # Errors
    /// The handshake failed, so that it is not known.
    pub async fn is_observer(&self) -> Result<bool> {
        let response = match self.ask("/").await {
            Err(error) if self.is_tls => return Err(self.unanswered(&error)),
            response => response?,
        };
        let demand = response.headers().get(reqwest::header::WWW_AUTHENTICATE);
        if demand.is_some_and(|demand| demand.as_bytes().starts_with(b"Basic realm=\"mesh observer\"")) {
            return Ok(true);
        }
        Ok(beginning(response).await.contains("<title>mesh observer</title>"))
    }

    /// Returns the error of an answer that ends early.
    pub fn unanswered(&self, error: &reqwest::Error) -> Error {
        let (address, causes) = (self.address, causes(error));
        Error::msg(if self.is_tls {
            format!(
                "no observer answers at {address} with the TLS of its web configuration ({causes}); if it demands a client \
                 certificate, name one with --web-cert-file and --web-key-file"
            )
        } else if error.is_connect() {
            format!(
                "no observer answers at {address} ({causes}); start one with `observer run`, or name its address with --listen"
            )
        } else {
            format!(
                "the server at {address} is not an observer ({causes}); name the address of one with --listen, or the file of \
                 its TLS with --web-config-file"
            )
        })
    }

    async fn ask(&self, path: &str) -> reqwest::Result<Response> {
        let scheme = if self.is_tls { "https" } else { "http" };
        let url = format!("{scheme}://{}{path}", self.address);
        self.client.get(url).headers(self.credentials.clone()).send().await
    }
}

/// Returns the first bytes of a page, whoever wrote it.
async fn beginning(mut response: Response) -> String {
    const ENOUGH: usize = 4096;
    let mut page = Vec::new();
    while page.len() < ENOUGH
        && let Ok(Some(piece)) = response.chunk().await
    {
        page.extend_from_slice(&piece);
    }
    String::from_utf8_lossy(&page).into_owned()
}
