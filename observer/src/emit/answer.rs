//! Classifies HTTP responses to a batch, whatever the receiver. Pure.
//!
//! Only errors of the batch itself drop it at once. A token may be renewed, a route repaired, a server restarted: all
//! other errors are retried within the emitter's limits. Sources: wavefront-proxy
//! `data/AbstractDataSubmissionTask.java`; OTLP 1.x and remote write 2.0, which retry fewer.

use std::{
    fmt::Display,
    time::{Duration, SystemTime},
};

use reqwest::{
    StatusCode,
    header::{HeaderMap, HeaderValue, RETRY_AFTER},
};

use super::Failure;

/// Classifies the response to a batch. `now` is for dates in it, `from` names the receiver in messages.
///
/// # Errors
/// The batch was not accepted.
pub fn classify(status: StatusCode, headers: &HeaderMap, now: SystemTime, from: &dyn Display) -> Result<(), Failure> {
    let message = || format!("{from} answered {status}");
    let after = headers.get(RETRY_AFTER).and_then(|value| retry_after(value, now));
    match status.as_u16() {
        200..=299 => Ok(()),
        413 => Err(Failure::TooLarge),
        406 | 429 => Err(Failure::PushBack { after }),
        503 if after.is_some() => Err(Failure::PushBack { after }),
        407 | 408 | 500..=599 => Err(Failure::Transient { kind: "server", message: message() }),
        401 | 403 => Err(Failure::Transient { kind: "unauthorised", message: message() }),
        400 | 415 | 422 => Err(Failure::Refused { kind: "refused", message: message() }),
        _ => Err(Failure::Transient { kind: "refused", message: message() }),
    }
}

/// Returns the delay of a `Retry-After` header: seconds, or until a date [RFC 9110, section 10.2.3].
fn retry_after(value: &HeaderValue, now: SystemTime) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(status: u16, headers: &[(&'static str, &'static str)]) -> Result<(), Failure> {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)));
        let status = StatusCode::from_u16(status).unwrap();
        classify(status, &headers.collect(), now(), &"http://proxy:2878/")
    }

    /// Sunday, 6 November 1994, 08:49:07 UTC.
    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_747)
    }

    #[test]
    fn only_what_is_about_the_batch_is_dropped_at_once() {
        let kind = |status| match judged(status, &[]) {
            Ok(()) => "taken",
            Err(Failure::TooLarge) => "halves",
            Err(Failure::PushBack { .. }) => "push_back",
            Err(Failure::Refused { .. }) => "dropped",
            Err(Failure::Transient { kind, .. }) => kind,
        };
        let table = [
            ("taken", vec![200, 202, 204]),
            ("halves", vec![413]),
            ("push_back", vec![406, 429]),
            ("dropped", vec![400, 415, 422]),
            ("unauthorised", vec![401, 403]),
            ("server", vec![407, 408, 500, 502, 503, 504, 599]),
            ("refused", vec![100, 301, 302, 307, 308, 402, 404, 405, 409, 410, 418, 421, 431, 451, 600, 999]),
        ];
        for (expected, statuses) in table {
            statuses.into_iter().for_each(|status| assert_eq!(kind(status), expected, "{status}"));
        }
    }

    #[test]
    fn a_pause_is_read_in_every_form_and_never_panics() {
        let longest = Some(Duration::from_secs(u64::MAX));
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        for (text, expected) in [
            ("0", seconds(0)),
            (" 120 ", seconds(120)),
            ("18446744073709551615", longest),
            ("99999999999999999999999999", longest),
            ("Sun, 06 Nov 1994 08:49:37 GMT", seconds(30)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", seconds(30)),
            ("Sun Nov  6 08:49:37 1994", seconds(30)),
            ("Sun, 06 Nov 1994 08:49:00 GMT", seconds(0)),
            ("Fri, 31 Dec 9999 23:59:59 GMT", seconds(253_402_300_799 - 784_111_747)),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
            ("Sun, 99 Nov 1994 08:49:37 GMT", None),
        ] {
            for status in [406, 429] {
                let failure = judged(status, &[("retry-after", text)]).unwrap_err();
                assert_eq!(failure, Failure::PushBack { after: expected }, "{text:?}");
            }
        }
        let failure = judged(503, &[("retry-after", "7")]).unwrap_err();
        assert_eq!(failure, Failure::PushBack { after: seconds(7) });
    }
}
