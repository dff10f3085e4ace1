//! Exemplars: the last sampled request of each duration bucket of a series, by which a reader finds its trace.

use std::{
    fmt::Write as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// A sampled request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exemplar {
    /// Index of the exposed bucket of its duration.
    pub bucket: u32,
    /// Its trace.
    pub trace_id: u128,
    /// The span that its header names: the one of whoever sent it.
    pub span_id: u64,
    /// Its duration.
    pub microseconds: u64,
    /// Its end.
    pub at: SystemTime,
}

impl Exemplar {
    /// Returns the trace id as 32 hexadecimal digits.
    #[must_use]
    pub fn trace_text(&self) -> String {
        format!("{:032x}", self.trace_id)
    }

    /// Returns the span id as 16 hexadecimal digits.
    #[must_use]
    pub fn span_text(&self) -> String {
        format!("{:016x}", self.span_id)
    }

    /// Returns the duration in milliseconds, the unit of its histogram.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "exposed as a double by every format")]
    pub fn milliseconds(&self) -> f64 {
        self.microseconds as f64 / 1_000.0
    }

    /// Returns the time of its end since 1970.
    #[must_use]
    pub fn since_epoch(&self) -> Duration {
        self.at.duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    /// Appends it to a line of OpenMetrics (section "Exemplars" of the specification).
    pub(crate) fn write(&self, text: &mut String) {
        let (value, since) = (self.milliseconds(), self.since_epoch());
        let _ = write!(text, " # {{trace_id=\"{}\",span_id=\"{}\"}} {value} ", self.trace_text(), self.span_text());
        let _ = write!(text, "{}.{:03}", since.as_secs(), since.subsec_millis());
    }

    /// Returns whether both are the same request: its time is converted anew in each round.
    fn is_same(&self, other: &Self) -> bool {
        let request = |it: &Self| (it.bucket, it.trace_id, it.span_id, it.microseconds);
        request(self) == request(other)
    }
}

/// Exemplars of a histogram, at most one per bucket, ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exemplars(Vec<Exemplar>);

impl Exemplars {
    /// Returns the exemplar of a bucket.
    #[must_use]
    pub fn of_bucket(&self, bucket: usize) -> Option<&Exemplar> {
        self.0.iter().find(|exemplar| exemplar.bucket as usize == bucket)
    }

    /// Returns all of them.
    pub fn iter(&self) -> impl Iterator<Item = &Exemplar> {
        self.0.iter()
    }

    /// Returns the newer ones of both; `None` if these are those of `self`.
    #[must_use]
    pub fn with(&self, others: &[Exemplar]) -> Option<Self> {
        let is_new = |other: &&Exemplar| {
            self.of_bucket(other.bucket as usize).is_none_or(|own| !own.is_same(other) && own.at <= other.at)
        };
        let new: Vec<Exemplar> = others.iter().filter(is_new).copied().collect();
        if new.is_empty() {
            return None;
        }
        let mut all = self.0.clone();
        for other in new {
            match all.binary_search_by_key(&other.bucket, |own| own.bucket) {
                Ok(index) => all[index] = other,
                Err(index) => all.insert(index, other),
            }
        }
        Some(Self(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exemplar(bucket: u32, span_id: u64, seconds: u64) -> Exemplar {
        let at = UNIX_EPOCH + Duration::from_secs(seconds);
        Exemplar { bucket, trace_id: 7, span_id, microseconds: 1_500, at }
    }

    #[test]
    fn a_bucket_has_its_newest_exemplar_and_one_that_stays_keeps_its_time() {
        let first = Exemplars::default().with(&[exemplar(3, 1, 10), exemplar(1, 2, 10)]).unwrap();
        assert_eq!(first.iter().map(|own| own.bucket).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(first.with(&[exemplar(3, 1, 11)]), None, "the same request");
        assert_eq!(first.with(&[exemplar(3, 9, 9)]), None, "an older one");
        let second = first.with(&[exemplar(3, 9, 12)]).unwrap();
        assert_eq!((second.of_bucket(3), second.of_bucket(1)), (Some(&exemplar(3, 9, 12)), first.of_bucket(1)));
    }

    #[test]
    fn a_line_is_as_the_specification_has_it() {
        let mut text = String::new();
        exemplar(3, 0xab, 1_520_879_607).write(&mut text);
        let ids = "trace_id=\"00000000000000000000000000000007\",span_id=\"00000000000000ab\"";
        assert_eq!(text, format!(" # {{{ids}}} 1.5 1520879607.000"));
    }
}
