//! Posts lines to a Wavefront proxy or to the service.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use reqwest::{Client, StatusCode, Url, header};

use crate::{
    emit::{
        Accepted, Batch, Failure, Form, Sending, Transport,
        answer::classify,
        http::unreachable,
        target::shown,
        token::{TokenError, TokenFile},
        transport::gzip,
    },
    system::http_client::{self, ClientError},
};

/// A proxy or the service.
#[derive(Debug)]
pub struct HttpSink {
    client: Client,
    url: Url,
    /// Required by the service.
    token: Option<TokenFile>,
}

/// Why the sink cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The client cannot be created.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The token cannot be read.
    #[error(transparent)]
    Token(#[from] TokenError),
}

impl HttpSink {
    /// Creates a sink for a proxy at `url`, without TLS.
    ///
    /// # Errors
    /// The HTTP client cannot be created.
    pub fn proxy(url: Url, timeout: Duration) -> Result<Self, SinkError> {
        Ok(Self { client: http_client::plain(timeout)?, url, token: None })
    }

    /// Creates a sink for the service at `url` over TLS, trusting the CA certificates in `ca_file` or else the
    /// system's.
    ///
    /// # Errors
    /// The HTTP client cannot be created, or the token cannot be read.
    pub fn service(url: Url, token: TokenFile, ca_file: Option<&Path>, timeout: Duration) -> Result<Self, SinkError> {
        token.read()?;
        Ok(Self { client: http_client::trusting(ca_file, timeout)?, url, token: Some(token) })
    }

    async fn post(&self, batch: &Batch) -> Result<Accepted, Failure> {
        let mut request = match &self.token {
            None => self.client.post(self.url.clone()),
            Some(token) => {
                let mut url = self.url.clone();
                url.query_pairs_mut().append_pair("f", format(batch.form));
                // A new token may be half-written: retry.
                let token = token
                    .read_now()
                    .await
                    .map_err(|error| Failure::Transient { kind: "token", message: error.to_string() })?;
                self.client.post(url).bearer_auth(token)
            }
        };
        request = request
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_ENCODING, "gzip")
            .body(gzip(&batch.body));
        let response = request.send().await.map_err(|error| unreachable(&self.url, &error))?;
        let classified = classify(response.status(), response.headers(), SystemTime::now(), &shown(&self.url));
        match classified {
            // Points were accepted with the same token: distributions are disabled for the account.
            Err(Failure::Transient { kind, message })
                if batch.form == Form::Distributions && response.status() == StatusCode::FORBIDDEN =>
            {
                Err(Failure::Refused { kind, message })
            }
            classified => classified.map(|()| Accepted::default()),
        }
    }
}

impl Transport for HttpSink {
    fn send<'a>(&'a mut self, batch: &'a Batch) -> Sending<'a> {
        Box::pin(self.post(batch))
    }
}

/// Returns the service's name of a form.
fn format(form: Form) -> &'static str {
    match form {
        Form::Distributions => "histogram",
        Form::WavefrontSpans => "trace",
        _ => "wavefront",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{ServerConfig, ServerConnection, StreamOwned, pki_types::PrivateKeyDer};
    use std::{
        fs,
        io::{BufRead, BufReader, Read, Write},
        net::TcpListener,
        sync::{Arc, mpsc},
        thread,
    };

    const LIMIT: Duration = Duration::from_secs(5);

    /// A service with a certificate of its own; hands on the head of each request and answers `answer`.
    fn service(answer: &'static str) -> (Url, tempfile::NamedTempFile, mpsc::Receiver<String>) {
        let identity = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let ca = tempfile::NamedTempFile::new().unwrap();
        fs::write(ca.path(), identity.cert.pem()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::try_from(identity.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![identity.cert.der().clone()], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://localhost:{}/report", listener.local_addr().unwrap().port()).parse().unwrap();
        let (heads, received) = mpsc::channel();
        thread::spawn(move || {
            let config = Arc::new(config);
            for stream in listener.incoming() {
                let connection = ServerConnection::new(config.clone()).unwrap();
                let mut stream = BufReader::new(StreamOwned::new(connection, stream.unwrap()));
                let mut head = String::new();
                // A client that does not trust us ends in the middle of the handshake.
                while stream.read_line(&mut head).is_ok_and(|read| read > 2) {}
                let Some((_, length)) = head.split_once("content-length: ") else { continue };
                let length = length.lines().next().unwrap().parse().unwrap();
                stream.read_exact(&mut vec![0; length]).unwrap();
                let answer = format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                stream.get_mut().write_all(answer.as_bytes()).unwrap();
                let _ = stream.get_mut().flush();
                let _ = heads.send(head);
            }
        });
        (url, ca, received)
    }

    fn token() -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "secret-1\n").unwrap();
        file
    }

    fn batch() -> Batch {
        Batch { body: "line\n".into(), points: 1, form: Form::Points }
    }

    #[tokio::test]
    async fn the_service_gets_the_token_of_the_moment_over_tls() {
        let (url, ca, received) = service("202 Accepted");
        let file = token();
        let token = TokenFile::new(file.path().to_owned(), "wavefront-token-file");
        let mut sink = HttpSink::service(url, token, Some(ca.path()), LIMIT).unwrap();
        assert!(!format!("{sink:?}").contains("secret"));
        sink.send(&batch()).await.unwrap();
        let head = received.recv().unwrap();
        assert!(head.starts_with("POST /report?f=wavefront HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("authorization: Bearer secret-1\r\n"), "{head}");
        fs::write(file.path(), "secret-2\n").unwrap();
        sink.send(&Batch { form: Form::Distributions, ..batch() }).await.unwrap();
        let head = received.recv().unwrap();
        assert!(head.starts_with("POST /report?f=histogram HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("authorization: Bearer secret-2\r\n"), "{head}");
        fs::remove_file(file.path()).unwrap();
        let Err(Failure::Transient { kind, message }) = sink.send(&batch()).await else { panic!("sent") };
        assert!(kind == "token" && message.contains(file.path().to_str().unwrap()), "{message}");
    }

    #[tokio::test]
    async fn a_refused_token_is_said_not_shown_and_tried_again() {
        let (url, ca, _received) = service("401 Unauthorized");
        let file = token();
        let mut sink = HttpSink::service(
            url,
            TokenFile::new(file.path().to_owned(), "wavefront-token-file"),
            Some(ca.path()),
            LIMIT,
        )
        .unwrap();
        let Err(Failure::Transient { kind, message }) = sink.send(&batch()).await else { panic!("sent") };
        assert!(kind == "unauthorised" && message.contains("401") && !message.contains("secret"), "{message}");
    }

    #[tokio::test]
    async fn a_stranger_gets_nothing() {
        let (url, _ca, received) = service("202 Accepted");
        let (_, other, _) = service("202 Accepted");
        let file = token();
        let mut sink = HttpSink::service(
            url,
            TokenFile::new(file.path().to_owned(), "wavefront-token-file"),
            Some(other.path()),
            LIMIT,
        )
        .unwrap();
        let Err(Failure::Transient { kind, message }) = sink.send(&batch()).await else { panic!("sent") };
        assert!(kind == "connect" && message.contains("certificate"), "{kind} {message}");
        assert!(received.try_recv().is_err());
    }

    #[test]
    fn without_a_token_nothing_begins() {
        let url = "https://localhost/report".parse().unwrap();
        let error =
            HttpSink::service(url, TokenFile::new("/nonexistent/t".into(), "wavefront-token-file"), None, LIMIT)
                .unwrap_err();
        assert!(error.to_string().contains("/nonexistent/t"), "{error}");
    }
}
