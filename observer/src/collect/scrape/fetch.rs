//! Checks and parses a response as it arrives, within size limits.

use std::{
    error::Error,
    io::{self, Write},
    sync::Arc,
    time::Duration,
};

use flate2::write::MultiGzDecoder;
use reqwest::{Response, StatusCode, header};

use observer_model::{
    exposition::{Format, Parser, Reason},
    scraped::{ExpositionBuilder, LimitExceeded, MAX_SAMPLES, ScrapedExposition},
};

use crate::system::http_client::causes;

/// Maximum size, decompressed.
const BODY_BYTES: usize = 32 * 1024 * 1024;
/// Bytes parsed before yielding to other tasks; compressed data may expand a thousandfold.
const TURN: usize = 64 * 1024;
const COMPRESSED_TURN: usize = 1024;
/// Prefers OpenMetrics to text; without UTF-8 names.
pub(super) const ACCEPT: &str =
    "application/openmetrics-text;version=1.0.0;q=0.9,text/plain;version=0.0.4;q=0.6,*/*;q=0.1";

/// Why a scrape failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScrapeError {
    /// Nothing answers.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// The certificate is not trusted, or there is none.
    #[error("no trusted TLS connection: {0}; name its authority's certificate with control_plane_ca")]
    Tls(String),
    /// No complete response in time.
    #[error("no whole answer within {0:?}")]
    Timeout(Duration),
    /// 403.
    #[error(
        "the answer is 403 Forbidden: METRICS_LOCALHOST_ACCESS_ONLY is probably set there, which lets only the pod itself read \
         its metrics"
    )]
    Forbidden,
    /// The network namespace cannot be entered.
    #[error("{0}")]
    NotPermitted(String),
    /// The process of the network namespace has ended.
    #[error("{0}")]
    Gone(String),
    /// A redirection, which is not followed as it could lead anywhere.
    #[error("the answer is a redirection ({0}), which is not followed; give the address it leads to")]
    Redirect(u16),
    /// Any other status.
    #[error("the answer has status {0}")]
    Status(u16),
    /// Not a metrics format.
    #[error("the answer is {0:?}, which is not a metrics format; the path is /metrics in most places")]
    ContentType(String),
    /// An encoding that was not requested.
    #[error("the answer is compressed as {0:?}, which was not asked for")]
    Encoding(String),
    /// The connection broke.
    #[error("the answer broke off: {0}")]
    Broken(String),
    /// Invalid gzip data.
    #[error("the answer's gzip is broken: {0}")]
    Gzip(String),
    /// More than [`BODY_BYTES`].
    #[error("the exposition is larger than {} MiB", BODY_BYTES / 1024 / 1024)]
    TooLarge,
    /// More samples than are kept.
    #[error("the exposition has more than {} samples", MAX_SAMPLES)]
    TooManySamples,
    /// The response is truncated.
    #[error("the exposition does not end as it should: it was cut")]
    Cut,
    /// No line could be parsed.
    #[error("the answer holds no metrics: none of its lines is a sample")]
    NoMetrics,
}

impl ScrapeError {
    /// Returns the label value it is counted under.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connect",
            Self::Tls(_) => "tls",
            Self::Timeout(_) => "timeout",
            Self::Forbidden => "forbidden",
            Self::NotPermitted(_) => "not_permitted",
            Self::Gone(_) => "gone",
            Self::Redirect(_) => "redirect",
            Self::Status(_) => "status",
            Self::ContentType(_) => "content_type",
            Self::Encoding(_) => "encoding",
            Self::Broken(_) => "broken",
            Self::Gzip(_) => "gzip",
            Self::TooLarge => "too_large",
            Self::TooManySamples => "too_many_samples",
            Self::Cut => "cut",
            Self::NoMetrics => "no_metrics",
        }
    }
}

/// Parses the body of a response. `reserved` are the labels of the target itself; `limit` is the client's timeout.
///
/// # Errors
/// The response cannot be parsed completely.
pub(super) async fn read(
    mut response: Response,
    reserved: &'static [&'static str],
    limit: Duration,
) -> Result<Arc<ScrapedExposition>, ScrapeError> {
    let format = check_headers(&response)?;
    let mut body = Body::new(format, compressed(&response)?, reserved);
    while let Some(piece) = response.chunk().await.map_err(|error| failed(&error, limit))? {
        for step in piece.chunks(body.step()) {
            body.take(step)?;
            tokio::task::yield_now().await;
        }
    }
    body.finish().map(Arc::new)
}

/// Classifies a failed request or response.
pub(super) fn failed(error: &reqwest::Error, limit: Duration) -> ScrapeError {
    if error.is_connect() && is_tls(error) {
        ScrapeError::Tls(causes(error))
    } else if error.is_connect() {
        ScrapeError::Connect(causes(error))
    } else if error.is_timeout() {
        ScrapeError::Timeout(limit)
    } else {
        ScrapeError::Broken(causes(error))
    }
}

/// rustls errors are nested in I/O errors, and those in others.
fn is_tls(error: &(dyn Error + 'static)) -> bool {
    let inside = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    error.is::<rustls::Error>() || inside.is_some_and(|inside| is_tls(inside)) || error.source().is_some_and(is_tls)
}

/// Checks the status, then the content type.
fn check_headers(response: &Response) -> Result<Format, ScrapeError> {
    match response.status() {
        StatusCode::OK => {}
        StatusCode::FORBIDDEN => return Err(ScrapeError::Forbidden),
        status if status.is_redirection() => return Err(ScrapeError::Redirect(status.as_u16())),
        status => return Err(ScrapeError::Status(status.as_u16())),
    }
    // The default is the oldest format.
    let Some(content_type) = response.headers().get(header::CONTENT_TYPE) else { return Ok(Format::Text) };
    let content_type = String::from_utf8_lossy(content_type.as_bytes());
    match content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
        "text/plain" => Ok(Format::Text),
        "application/openmetrics-text" => Ok(Format::OpenMetrics),
        _ => Err(ScrapeError::ContentType(content_type.chars().take(100).collect())),
    }
}

fn compressed(response: &Response) -> Result<bool, ScrapeError> {
    let Some(encoding) = response.headers().get(header::CONTENT_ENCODING) else { return Ok(false) };
    match encoding.to_str().unwrap_or_default().to_ascii_lowercase().as_str() {
        "gzip" | "x-gzip" => Ok(true),
        "" | "identity" => Ok(false),
        other => Err(ScrapeError::Encoding(other.chars().take(100).collect())),
    }
}

/// The body of a response as it arrives.
pub struct Body(Coding);

enum Coding {
    Plain(Box<Reader>),
    Gzip(Box<MultiGzDecoder<Reader>>),
}

impl Body {
    /// Creates a parser for this format, compressed by gzip or not. `reserved` are the labels of the target itself.
    #[must_use]
    pub fn new(format: Format, compressed: bool, reserved: &'static [&'static str]) -> Self {
        let reader =
            Reader { parser: Parser::new(format), builder: ExpositionBuilder::new(reserved), bytes: 0, refused: None };
        Self(if compressed {
            Coding::Gzip(Box::new(MultiGzDecoder::new(reader)))
        } else {
            Coding::Plain(Box::new(reader))
        })
    }

    const fn step(&self) -> usize {
        match self.0 {
            Coding::Plain(_) => TURN,
            Coding::Gzip(_) => COMPRESSED_TURN,
        }
    }

    /// Parses a piece.
    ///
    /// # Errors
    /// The limits are exceeded, or the gzip data is invalid.
    pub fn take(&mut self, piece: &[u8]) -> Result<(), ScrapeError> {
        match &mut self.0 {
            Coding::Plain(reader) => reader.take(piece),
            Coding::Gzip(decoder) => decoder.write_all(piece).map_err(|error| refused(decoder.get_mut(), &error)),
        }
    }

    /// Returns the parsed metrics.
    ///
    /// # Errors
    /// The response is truncated or has no metrics.
    pub fn finish(self) -> Result<ScrapedExposition, ScrapeError> {
        match self.0 {
            Coding::Plain(reader) => reader.finish(),
            Coding::Gzip(mut decoder) => match decoder.try_finish() {
                Ok(()) => decoder.finish().map_err(|error| ScrapeError::Gzip(error.to_string()))?.finish(),
                Err(error) => Err(refused(decoder.get_mut(), &error)),
            },
        }
    }
}

/// Returns the reader's error, or else the decoder's.
fn refused(reader: &mut Reader, error: &io::Error) -> ScrapeError {
    reader.refused.take().unwrap_or_else(|| ScrapeError::Gzip(error.to_string()))
}

/// Parses decompressed data.
struct Reader {
    parser: Parser,
    builder: ExpositionBuilder,
    bytes: usize,
    refused: Option<ScrapeError>,
}

impl Reader {
    fn take(&mut self, piece: &[u8]) -> Result<(), ScrapeError> {
        self.bytes += piece.len();
        if self.bytes > BODY_BYTES {
            return Err(ScrapeError::TooLarge);
        }
        let mut outcome = Ok(());
        self.parser.feed(piece, &mut |event| {
            if outcome.is_ok() {
                outcome = self.builder.record(&event);
            }
        });
        outcome.map_err(|LimitExceeded| ScrapeError::TooManySamples)
    }

    fn finish(mut self) -> Result<ScrapedExposition, ScrapeError> {
        let mut outcome = Ok(());
        self.parser.finish(&mut |event| {
            if outcome.is_ok() {
                outcome = self.builder.record(&event);
            }
        });
        let exposition = self.builder.finish();
        if exposition.samples == 0 {
            return Err(ScrapeError::NoMetrics);
        }
        // A truncated response would look like one with fewer metrics.
        if [Reason::Unended, Reason::NoEnd].iter().any(|reason| exposition.skipped.contains_key(reason.as_str())) {
            return Err(ScrapeError::Cut);
        }
        Ok(exposition)
    }
}

impl Write for Reader {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        match self.take(piece) {
            Ok(()) => Ok(piece.len()),
            Err(error) => {
                self.refused = Some(error);
                Err(io::Error::other("refused"))
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
