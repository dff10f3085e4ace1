//! Delivery to Prometheus remote write: 2.0 to receivers that have it, 1.0 to the others.
//!
//! Batches are requests of 2.0. A receiver of 1.0 refuses them (415, or 400 if it does not look at the type), or accepts
//! them without a word about what it has written: the same batch then goes out as 1.0, and so do later ones, until the
//! connection fails, as another version may be behind it then.

use std::time::Duration;

use observer_model::encode::remote_write::{Version1, version_1};
use reqwest::{
    Response, StatusCode, Url,
    header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
};
use snap::raw::Encoder as Snappy;

use super::{
    Accepted, Batch, Failure, Sending, Transport,
    http::{Access, Receiver, ReceiverError, body, readable},
};

const VERSION: HeaderName = HeaderName::from_static("x-prometheus-remote-write-version");
/// How many samples and native histograms a receiver of 2.0 has written.
const WRITTEN: [&str; 2] =
    ["x-prometheus-remote-write-samples-written", "x-prometheus-remote-write-histograms-written"];

/// Why points of an accepted batch are lost.
const NO_NATIVE_HISTOGRAMS: &str =
    "it takes remote write 1.0 only, which has no native histograms; set --remote-write-histograms classic";

/// A receiver of remote write.
#[derive(Debug)]
pub struct RemoteWrite {
    receiver: Receiver,
    version: Version,
}

/// What the receiver is known to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Unknown,
    One,
    Two,
}

impl RemoteWrite {
    /// Creates a transport to `url`.
    ///
    /// # Errors
    /// The client cannot be created, or the credentials cannot be read.
    pub fn new(url: Url, access: Access, timeout: Duration) -> Result<Self, ReceiverError> {
        Ok(Self { receiver: Receiver::new(url, access, false, timeout)?, version: Version::Unknown })
    }

    async fn write(&mut self, batch: &Batch) -> Result<Accepted, Failure> {
        let written = self.write_any(batch).await;
        if let Err(Failure::Transient { kind: "connect" | "connection", .. }) = written {
            self.version = Version::Unknown;
        }
        written
    }

    async fn write_any(&mut self, batch: &Batch) -> Result<Accepted, Failure> {
        if self.version != Version::One {
            let response = self.post(&batch.body, Version::Two).await?;
            let written = written(response.headers());
            let status = response.status();
            if written.is_some() {
                self.version = Version::Two;
            }
            let is_other_version = match status {
                StatusCode::UNSUPPORTED_MEDIA_TYPE => true,
                StatusCode::BAD_REQUEST => self.version == Version::Unknown,
                status => status.is_success() && written.is_none(),
            };
            if !is_other_version {
                return self.accepted(response, batch.points, written).await;
            }
        }
        let Some(Version1 { body, left_out }) = version_1(&batch.body) else {
            let message = "the batch is damaged and cannot be sent as remote write 1.0".to_owned();
            return Err(Failure::Refused { kind: "unreadable", message });
        };
        let response = self.post(&body, Version::One).await?;
        if response.status().is_success() {
            self.version = Version::One;
        }
        let Accepted { refused, reason } = self.accepted(response, batch.points, None).await?;
        let reason = if left_out > 0 { NO_NATIVE_HISTOGRAMS.to_owned() } else { reason };
        Ok(Accepted { refused: refused + left_out, reason })
    }

    async fn post(&self, body: &[u8], version: Version) -> Result<Response, Failure> {
        let (number, content) = match version {
            Version::Two => ("2.0.0", "application/x-protobuf;proto=io.prometheus.write.v2.Request"),
            Version::One | Version::Unknown => ("0.1.0", "application/x-protobuf"),
        };
        let mut headers = HeaderMap::new();
        headers.insert(VERSION, HeaderValue::from_static(number));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content));
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("snappy"));
        let packed = Snappy::new().compress_vec(body).map_err(|_| Failure::TooLarge)?;
        self.receiver.post(headers, packed.into()).await
    }

    /// Classifies an answer; a receiver of 2.0 says what it has written also where it refuses a part.
    async fn accepted(&self, response: Response, samples: u64, written: Option<u64>) -> Result<Accepted, Failure> {
        let is_partial = response.status() == StatusCode::BAD_REQUEST && written.is_some_and(|written| written > 0);
        let refused = samples.saturating_sub(written.unwrap_or(samples));
        if is_partial {
            let reason = readable(&reason(&body(response).await));
            return Ok(Accepted { refused, reason });
        }
        let response = self.receiver.accepted(response, reason).await?;
        // What is accepted is written in whole; a receiver that counts less than it was sent has not.
        let reason = if refused > 0 { format!("{} without them", response.status()) } else { String::new() };
        Ok(Accepted { refused, reason })
    }
}

impl Transport for RemoteWrite {
    fn send<'a>(&'a mut self, batch: &'a Batch) -> Sending<'a> {
        Box::pin(self.write(batch))
    }
}

/// Returns how many points the receiver says it has written; `None` if it does not say so, as one of 1.0.
fn written(headers: &HeaderMap) -> Option<u64> {
    let number = |name: &&str| headers.get(*name)?.to_str().ok()?.trim().parse::<u64>().ok();
    WRITTEN.iter().filter_map(number).reduce(u64::saturating_add)
}

fn reason(body: &[u8]) -> String {
    String::from_utf8_lossy(body).into_owned()
}
