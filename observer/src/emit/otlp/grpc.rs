//! OTLP to a gRPC server: unary calls over HTTP/2.
//!
//! A call is one POST with a message behind five bytes, and its status is a trailer: the client that posts to all other
//! receivers does it, where tonic would bring a second one with a stack of its own. Source: gRPC's `PROTOCOL-HTTP2.md`,
//! and "OTLP/gRPC Throttling" for the statuses that are retried.

use std::time::Duration;

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use bytes::{BufMut as _, Bytes, BytesMut};
use http_body_util::BodyExt as _;
use observer_model::encode::otlp::answer::retry_delay;
use reqwest::{
    Response, Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, TE},
};

use super::accepted;
use crate::emit::{
    Accepted, Batch, Failure, Sending, Transport,
    http::{Access, Receiver, ReceiverError, readable},
    options::Compression,
    target::shown,
    transport::packed,
};

/// The method of a collector for spans.
pub const EXPORT_SPANS: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
/// The method of a collector for metrics.
pub const EXPORT_METRICS: &str = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";
/// Maximum size of an answer's message that is kept, and of one that is waited for, as its status is behind it.
const MAX_ANSWER: usize = 64 << 10;
const MAX_SKIPPED: usize = 4 << 20;
/// Size of what is before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;
const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const GRPC_STATUS: &str = "grpc-status";
const GRPC_MESSAGE: &str = "grpc-message";
const GRPC_DETAILS: &str = "grpc-status-details-bin";
/// Binary headers are in base64, with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A gRPC server that receives OTLP.
#[derive(Debug)]
pub struct OtlpGrpc {
    receiver: Receiver,
    compression: Compression,
}

impl OtlpGrpc {
    /// Creates a transport to the server at `url` that calls `method`.
    ///
    /// # Errors
    /// The client cannot be created, or the credentials cannot be read.
    pub fn new(
        mut url: Url,
        method: &str,
        access: Access,
        compression: Compression,
        timeout: Duration,
    ) -> Result<Self, ReceiverError> {
        url.set_path(method);
        Ok(Self { receiver: Receiver::new(url, access, true, timeout)?, compression })
    }

    async fn call(&self, batch: &Batch) -> Result<Accepted, Failure> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
        let is_packed = self.compression == Compression::Gzip;
        if is_packed {
            headers.insert(GRPC_ENCODING, HeaderValue::from_static("gzip"));
        }
        let message = packed(&batch.body, self.compression);
        let Ok(length) = u32::try_from(message.len()) else { return Err(Failure::TooLarge) };
        let mut body = BytesMut::with_capacity(PREFIX + message.len());
        body.put_u8(u8::from(is_packed));
        body.put_u32(length);
        body.put_slice(&message);
        let response = self.receiver.post(headers, body.freeze()).await?;
        // A server that speaks gRPC answers 200; the rest comes from what is between.
        let response = self.receiver.accepted(response, |_| String::new()).await?;
        let (message, status) = answer(response).await.map_err(|problem| Failure::Transient {
            kind: "connection",
            message: format!("no answer from {}: {problem}", shown(&self.receiver.url)),
        })?;
        classify(&status, &shown(&self.receiver.url)).map(|()| accepted(&message))
    }
}

impl Transport for OtlpGrpc {
    fn send<'a>(&'a mut self, batch: &'a Batch) -> Sending<'a> {
        Box::pin(self.call(batch))
    }
}

/// Returns message and status of an answer.
async fn answer(response: Response) -> Result<(Bytes, HeaderMap), String> {
    let response: hyper::Response<reqwest::Body> = response.into();
    let (head, mut body) = response.into_parts();
    // An answer without a message has its status among the headers.
    let mut status = head.headers;
    let mut message = BytesMut::new();
    let mut size = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| error.to_string())?;
        match frame.into_data() {
            Ok(data) => {
                size += data.len();
                if size > MAX_SKIPPED {
                    return Err("its message is larger than 4 MiB".to_owned());
                }
                message.extend(data.iter().take(MAX_ANSWER.saturating_sub(message.len())));
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    status.extend(trailers);
                }
            }
        }
    }
    let message = message.freeze();
    // No compression is accepted, so none is used.
    Ok((message.slice(PREFIX.min(message.len())..), status))
}

/// Classifies the status of an answer.
///
/// # Errors
/// The batch was not accepted.
pub fn classify(headers: &HeaderMap, from: &dyn std::fmt::Display) -> Result<(), Failure> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).unwrap_or_default();
    let code: Option<u32> = text(GRPC_STATUS).parse().ok();
    if code == Some(0) {
        return Ok(());
    }
    let reason = readable(text(GRPC_MESSAGE));
    let message = match code {
        Some(code) => format!("{from} answered gRPC status {code}: {reason}"),
        None => format!("{from} answered without a gRPC status"),
    };
    let details = headers.get(GRPC_DETAILS).and_then(|value| BASE64.decode(value).ok());
    let after = details.and_then(|details| retry_delay(&details));
    Err(match code {
        // CANCELLED, DEADLINE_EXCEEDED, ABORTED, OUT_OF_RANGE, UNAVAILABLE and DATA_LOSS may be throttled.
        Some(1 | 4 | 10 | 11 | 14 | 15) if after.is_some() => Failure::PushBack { after },
        // RESOURCE_EXHAUSTED is either a limit of the message's size or of the rate.
        Some(8) if after.is_none() && reason.contains("larger than max") => Failure::TooLarge,
        Some(8) => Failure::PushBack { after },
        Some(7 | 16) => Failure::Transient { kind: "unauthorised", message },
        // INVALID_ARGUMENT.
        Some(3) => Failure::Refused { kind: "refused", message },
        // NOT_FOUND, ALREADY_EXISTS, FAILED_PRECONDITION, UNIMPLEMENTED: another server may be meant.
        Some(5 | 6 | 9 | 12) => Failure::Transient { kind: "refused", message },
        _ => Failure::Transient { kind: "server", message },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(headers: &[(&'static str, &'static str)]) -> Result<(), Failure> {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)));
        classify(&headers.collect(), &"http://collector:4317/")
    }

    /// `RetryInfo` of 7.5 s in a status of code 14.
    const DETAILS: &str = "CA4aNgoodHlwZS5nb29nbGVhcGlzLmNvbS9nb29nbGUucnBjLlJldHJ5SW5mbxIKCggIBxCAyrXuAQ";

    #[test]
    fn only_what_is_about_the_batch_is_dropped_at_once() {
        for (code, expected) in [
            ("0", "taken"),
            ("3", "dropped"),
            ("7", "unauthorised"),
            ("16", "unauthorised"),
            ("5", "refused"),
            ("12", "refused"),
            ("8", "push_back"),
            ("2", "server"),
            ("13", "server"),
            ("14", "server"),
            ("99", "server"),
            ("", "server"),
            ("-1", "server"),
            ("4294967296", "server"),
        ] {
            let kind = match judged(&[(GRPC_STATUS, code)]) {
                Ok(()) => "taken",
                Err(Failure::TooLarge) => "halves",
                Err(Failure::PushBack { after: None }) => "push_back",
                Err(Failure::PushBack { .. }) => "pause",
                Err(Failure::Refused { .. }) => "dropped",
                Err(Failure::Transient { kind, .. }) => kind,
            };
            assert_eq!(kind, expected, "{code}");
        }
        let large = "grpc: received message larger than max (5242880 vs. 4194304)";
        assert_eq!(judged(&[(GRPC_STATUS, "8"), (GRPC_MESSAGE, large)]), Err(Failure::TooLarge));
        assert!(matches!(judged(&[]), Err(Failure::Transient { .. })));
    }

    #[test]
    fn a_demanded_pause_is_read() {
        let after = |code, details| match judged(&[(GRPC_STATUS, code), (GRPC_DETAILS, details)]) {
            Err(Failure::PushBack { after }) => after,
            _ => None,
        };
        let pause = Some(Duration::from_millis(7_500));
        assert_eq!([after("14", DETAILS), after("8", DETAILS)], [pause; 2]);
        assert_eq!([after("14", "!"), after("14", ""), after("13", DETAILS)], [None; 3]);
    }
}
