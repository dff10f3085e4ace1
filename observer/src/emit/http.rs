//! What HTTP transports have in common: where and as whom they send, and the bounded reading of answers.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use reqwest::{
    Client, Response, Url,
    header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue},
};

use super::{
    Failure,
    answer::classify,
    credentials::{CredentialError, Credentials},
    options::Compression,
    target::shown,
    transport::packed,
};
use crate::system::http_client::{self, ClientError, Identity, causes};

/// Maximum size of an answer that is read; the rest is not.
const MAX_ANSWER: usize = 64 << 10;
/// Maximum number of characters of an answer in a log line.
const MAX_REASON: usize = 200;

/// TLS and credentials of a receiver.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Headers of every request, from files.
    pub credentials: Credentials,
    /// CA certificates that are trusted; the system's if absent.
    pub ca_file: Option<PathBuf>,
    /// Certificate and key of this client.
    pub identity: Option<Identity>,
}

/// A receiver of one kind of requests.
#[derive(Debug)]
pub(super) struct Receiver {
    client: Client,
    pub(super) url: Url,
    credentials: Credentials,
}

/// Why a receiver cannot be sent to.
#[derive(Debug, thiserror::Error)]
pub enum ReceiverError {
    /// The client cannot be created.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The credentials cannot be read.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
}

impl Receiver {
    /// Creates the client of a receiver. `is_http2` is for those that speak nothing else, such as gRPC servers.
    ///
    /// # Errors
    /// The client cannot be created, or the credentials cannot be read.
    pub(super) fn new(url: Url, access: Access, is_http2: bool, timeout: Duration) -> Result<Self, ReceiverError> {
        let Access { credentials, ca_file, identity } = access;
        credentials.read()?;
        let tls = (url.scheme() == "https").then_some((ca_file.as_deref(), identity.as_ref()));
        Ok(Self { client: http_client::pushing(tls, is_http2, timeout)?, url, credentials })
    }

    /// Posts a body with these headers; returns the answer, whatever its status.
    pub(super) async fn post(&self, mut headers: HeaderMap, body: bytes::Bytes) -> Result<Response, Failure> {
        // A file may be half-written: retry.
        let own = self.credentials.read_now().await;
        headers.extend(own.map_err(|error| Failure::Transient { kind: "token", message: error.to_string() })?);
        let request = self.client.post(self.url.clone()).headers(headers).body(body);
        request.send().await.map_err(|error| unreachable(&self.url, &error))
    }

    /// Posts a body of this type, compressed or not; returns the answer, whatever its status.
    pub(super) async fn post_as(
        &self,
        content_type: &'static str,
        body: &bytes::Bytes,
        compression: Compression,
    ) -> Result<Response, Failure> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        if compression == Compression::Gzip {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        self.post(headers, packed(body, compression)).await
    }

    /// Classifies an answer by its status; what a refusing receiver says is part of the message.
    pub(super) async fn accepted(
        &self,
        response: Response,
        read_reason: fn(&[u8]) -> String,
    ) -> Result<Response, Failure> {
        let from = shown(&self.url);
        match classify(response.status(), response.headers(), SystemTime::now(), &from) {
            Ok(()) => Ok(response),
            Err(Failure::Refused { kind, message }) => {
                let reason = readable(&read_reason(&body(response).await));
                let separator = if reason.is_empty() { "" } else { ": " };
                Err(Failure::Refused { kind, message: format!("{message}{separator}{reason}") })
            }
            Err(failure) => Err(failure),
        }
    }
}

/// Classifies an error of a request that got no answer.
pub(super) fn unreachable(url: &Url, error: &reqwest::Error) -> Failure {
    let kind = if error.is_timeout() {
        "timeout"
    } else if error.is_connect() {
        "connect"
    } else {
        "connection"
    };
    Failure::Transient { kind, message: format!("no answer from {}: {}", shown(url), causes(error)) }
}

/// Returns the first [`MAX_ANSWER`] bytes of an answer; the client's timeout covers them. A body that breaks off was not
/// needed: the status has decided.
pub(super) async fn body(mut response: Response) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        let room = MAX_ANSWER.saturating_sub(body.len());
        body.extend(chunk.iter().take(room));
        if chunk.len() >= room {
            break;
        }
    }
    body
}

/// Returns a text of others as one short line without control characters.
pub(super) fn readable(text: &str) -> String {
    let line = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_REASON);
    line.collect::<String>().trim().to_owned()
}
