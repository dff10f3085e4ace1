//! Reads the API of an observer.

use std::{fmt, net::SocketAddr, path::Path, str::FromStr, time::Duration};

use observer_top::{Document, History};
use reqwest::{Client, StatusCode, Url};

use crate::system::http_client::{self, ClientError, causes};

/// Timeout of one reading.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum size of a document: more than twice what 2,000 edges take.
const MAX_BYTES: usize = 16 << 20;

/// Address of an observer. It may contain credentials, which are never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct ObserverUrl(Url);

impl ObserverUrl {
    /// Returns the address of an observer that listens there, over plain HTTP.
    pub(super) fn of(address: SocketAddr) -> Self {
        #[expect(clippy::expect_used, reason = "it has been written from an address")]
        Self(Url::parse(&format!("http://{address}")).expect("an address is a host and a port"))
    }

    fn resource(&self, path: &str) -> Url {
        let mut url = self.0.clone();
        url.set_path(&format!("{}/{path}", url.path().trim_end_matches('/')));
        url
    }
}

impl FromStr for ObserverUrl {
    type Err = String;

    /// The error does not repeat the text, which may contain a password.
    fn from_str(text: &str) -> Result<Self, String> {
        let example = "expected e.g. http://127.0.0.1:9469";
        let text = if text.contains("://") { text } else { &format!("http://{text}") };
        let mut url = Url::parse(text).map_err(|error| format!("not the URL of an observer: {error}; {example}"))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
            return Err(format!("not the URL of an observer: it is neither http nor https; {example}"));
        }
        url.set_query(None);
        url.set_fragment(None);
        Ok(Self(url))
    }
}

impl fmt::Display for ObserverUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut url = self.0.clone();
        // Fails only without a host.
        let _ = url.set_username("").and_then(|()| url.set_password(None));
        f.write_str(url.as_str().trim_end_matches('/'))
    }
}

impl fmt::Debug for ObserverUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why nothing could be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    /// No connection.
    #[error("no observer answers at {url} ({cause})")]
    NoAnswer { url: ObserverUrl, cause: String },
    /// The answer did not come, or not to its end.
    #[error("{url} does not answer as an observer does: {cause}")]
    Broken { url: ObserverUrl, cause: String },
    /// Users are needed.
    #[error(
        "the observer at {0} wants a user and a password: name them in --url http://USER:PASSWORD@HOST:PORT or, so that no \
         other user sees them, in the environment variable OBSERVER_URL"
    )]
    Unauthorized(ObserverUrl),
    /// The name is not known to the observer.
    #[error("the observer at {0} is not read under this name: use its address, or give it --web-host NAME")]
    WrongHost(ObserverUrl),
    /// Another status.
    #[error(
        "{url} answers {status}: it is not an observer, or one from before `observer top`; name another with --url"
    )]
    Refused { url: ObserverUrl, status: StatusCode },
    /// Not a document.
    #[error("{url} does not answer with an observer's document ({cause}); name another with --url")]
    NotDocument { url: ObserverUrl, cause: String },
}

/// The API of one observer.
pub(super) struct Api {
    pub(super) url: ObserverUrl,
    client: Client,
}

impl Api {
    pub(super) fn new(url: ObserverUrl, ca_file: Option<&Path>) -> Result<Self, ClientError> {
        let client = http_client::direct(url.0.scheme() == "https", ca_file, TIMEOUT)?;
        Ok(Self { url, client })
    }

    pub(super) async fn document(&self) -> Result<Document, ReadError> {
        self.read("api/v1/state", Document::parse).await
    }

    pub(super) async fn history(&self) -> Result<History, ReadError> {
        self.read("api/v1/history", History::parse).await
    }

    async fn read<T>(&self, path: &str, parse: fn(&[u8]) -> Result<T, serde_json::Error>) -> Result<T, ReadError> {
        let url = || self.url.clone();
        let broken = |error: reqwest::Error| ReadError::Broken { url: url(), cause: causes(&error) };
        let sent = self.client.get(self.url.resource(path)).send().await;
        let mut response = sent.map_err(|error| match error.is_connect() {
            // The innermost cause; the others are the client's parts.
            true => ReadError::NoAnswer {
                url: url(),
                cause: causes(&error).rsplit(": ").next().unwrap_or_default().to_owned(),
            },
            false => broken(error),
        })?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED => return Err(ReadError::Unauthorized(url())),
            StatusCode::MISDIRECTED_REQUEST => return Err(ReadError::WrongHost(url())),
            status => return Err(ReadError::Refused { url: url(), status }),
        }
        let not_document = |cause: String| ReadError::NotDocument { url: url(), cause };
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(broken)? {
            if body.len() + chunk.len() > MAX_BYTES {
                return Err(not_document(format!("it has more than {MAX_BYTES} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        parse(&body).map_err(|error| not_document(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    #[test]
    fn an_address_is_shown_without_its_password() {
        for (text, shown) in [
            ("node:9469", "http://node:9469"),
            ("https://me:secret@node/observer/?a#b", "https://node/observer"),
            ("[::1]:9469", "http://[::1]:9469"),
        ] {
            let url: ObserverUrl = text.parse().unwrap();
            assert_eq!((url.to_string(), format!("{url:?}")), (shown.to_owned(), shown.to_owned()));
        }
        let resource = "http://node/observer/".parse::<ObserverUrl>().unwrap().resource("api/v1/state");
        assert_eq!(resource.as_str(), "http://node/observer/api/v1/state");
        for text in ["", "ftp://me:secret@node", "http://me:secret@", "http://me:secret@node:port"] {
            let error = text.parse::<ObserverUrl>().unwrap_err();
            assert!(error.contains("http://127.0.0.1:9469") && !error.contains("secret"), "{error}");
        }
    }

    /// Reads from a server that gives this answer; returns the request's head with the outcome.
    async fn read(status: u16, body: &str) -> (String, Result<Document, ReadError>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://me:secret@{}/", listener.local_addr().unwrap()).parse().unwrap();
        let api = Api::new(url, None).unwrap();
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = vec![0; 4096];
            let length = stream.read(&mut head).await.unwrap();
            let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            // The client may have enough.
            let _ = stream.write_all(answer.as_bytes()).await;
            String::from_utf8_lossy(&head[..length]).to_lowercase()
        };
        tokio::join!(serve, api.document())
    }

    #[tokio::test]
    async fn a_document_is_read_with_the_password_of_the_address() {
        let (head, document) = read(200, r#"{"version":"1","node":"n","at":1,"edges":[]}"#).await;
        document.unwrap();
        assert!(head.starts_with("get /api/v1/state http/1.1\r\n"), "{head}");
        // Of me:secret.
        assert!(head.contains("authorization: basic bwu6c2vjcmv0\r\n"), "{head}");
    }

    #[tokio::test]
    async fn what_is_not_an_observer_is_named_with_the_remedy() {
        for (status, body, expected) in [
            (401, "", "OBSERVER_URL"),
            (421, "", "--web-host NAME"),
            (404, "", "404 Not Found: it is not an observer"),
            (200, "<html>", "not answer with an observer's document"),
            (200, &" ".repeat(MAX_BYTES + 1), "it has more than"),
        ] {
            let error = read(status, body).await.1.unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("http://127.0.0.1:"), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[tokio::test]
    async fn an_address_where_nothing_listens_is_told_from_a_broken_answer() {
        let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let error = Api::new(ObserverUrl::of(address), None).unwrap().document().await.unwrap_err();
        assert!(matches!(error, ReadError::NoAnswer { .. }), "{error}");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let api = Api::new(ObserverUrl::of(listener.local_addr().unwrap()), None).unwrap();
        let (accepted, outcome) = tokio::join!(async { drop(listener.accept().await.unwrap()) }, api.document());
        let () = accepted;
        assert!(matches!(outcome, Err(ReadError::Broken { .. })), "{outcome:?}");
    }
}
