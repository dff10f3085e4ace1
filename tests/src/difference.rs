//! In what an observer differs from the truth.

use std::{error, fmt, ops::RangeInclusive};

/// One thing that is not as it is in truth.
#[derive(Clone, Debug, PartialEq)]
pub enum Difference {
    /// A count, a number of bytes.
    Count {
        /// Of what.
        what: String,
        /// In truth.
        truth: u64,
        /// As observed.
        observed: u64,
    },
    /// A sum of durations.
    Durations {
        /// Of what.
        what: String,
        /// Of so many requests.
        requests: u64,
        /// In truth, in milliseconds.
        truth_ms: f64,
        /// As observed, in milliseconds.
        observed_ms: f64,
        /// What may be added to the truth, in milliseconds.
        tolerance: RangeInclusive<f64>,
    },
}

/// All of them, as an error: [`Differences::only_durations`] can be asked of one that comes from far below.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Differences(pub(crate) Vec<Difference>);

impl Differences {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of them.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is one, and none but in durations.
    pub fn only_durations(&self) -> bool {
        !self.is_empty() && self.without_durations().is_empty()
    }

    /// All but those in durations.
    #[must_use]
    pub fn without_durations(&self) -> Self {
        let counts = self.0.iter().filter(|difference| !matches!(difference, Difference::Durations { .. }));
        Self(counts.cloned().collect())
    }

    /// An error if there is any.
    pub fn none(self) -> Result<(), Self> {
        if self.is_empty() { Ok(()) } else { Err(self) }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count { what, truth, observed } => write!(formatter, "{what}: {observed} instead of {truth}"),
            Self::Durations { what, requests, truth_ms, observed_ms, tolerance } => write!(
                formatter,
                "{what} durations: {observed_ms:.3} ms in all instead of {truth_ms:.3} ms {:+.3} to {:+.3} ms ({requests} requests)",
                tolerance.start(),
                tolerance.end()
            ),
        }
    }
}

/// One a line.
impl fmt::Display for Differences {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(Difference::to_string).collect();
        formatter.write_str(&lines.join("\n      "))
    }
}

impl error::Error for Differences {}
