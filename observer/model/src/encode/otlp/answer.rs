//! Reads what a receiver answers: hostile, so that anything may be missing or malformed.

use std::time::Duration;

use crate::encode::wire::{Field, Fields};

/// Name of the message that demands a pause [google.rpc `error_details.proto`].
const RETRY_INFO: &[u8] = b"google.rpc.RetryInfo";

/// Returns how many data points an `ExportMetricsServiceResponse` says were refused, and why; `None` if none were, and it
/// has no message.
#[must_use]
pub fn partial_success(response: &[u8]) -> Option<(u64, String)> {
    let (mut refused, mut message) = (0, String::new());
    for partial in messages(response, 1) {
        for (field, value, _) in Fields::new(partial) {
            match (field, value) {
                // Negative numbers mean nothing.
                (1, Field::Varint(points)) => refused = i64::try_from(points).map_or(0, |_| points),
                (2, Field::Bytes(text)) => message = String::from_utf8_lossy(text).into_owned(),
                _ => {}
            }
        }
    }
    (refused > 0 || !message.is_empty()).then_some((refused, message))
}

/// Returns the delay that a `google.rpc.Status` demands.
#[must_use]
pub fn retry_delay(status: &[u8]) -> Option<Duration> {
    messages(status, 3).find_map(|detail| {
        let is_retry_info = messages(detail, 1).any(|name| name.ends_with(RETRY_INFO));
        let info = messages(detail, 2).next().filter(|_| is_retry_info)?;
        let (mut seconds, mut nanoseconds) = (0, 0);
        for (field, value, _) in Fields::new(messages(info, 1).next()?) {
            match (field, value) {
                (1, Field::Varint(value)) => seconds = i64::try_from(value).map_or(0, |_| value),
                (2, Field::Varint(value)) => nanoseconds = value.min(999_999_999) as u32,
                _ => {}
            }
        }
        Some(Duration::new(seconds, nanoseconds))
    })
}

/// Returns the message of a `google.rpc.Status`, as the body of an error over HTTP.
#[must_use]
pub fn status_message(status: &[u8]) -> Option<String> {
    let fields = Fields::new(status);
    let text = messages(status, 2).next().and_then(|text| std::str::from_utf8(text).ok());
    text.filter(|_| fields.clone().count() > 0).map(str::to_owned)
}

fn messages(message: &[u8], field: u32) -> impl Iterator<Item = &[u8]> {
    Fields::new(message).filter_map(move |(own, value, _)| match value {
        Field::Bytes(bytes) if own == field => Some(bytes),
        _ => None,
    })
}
