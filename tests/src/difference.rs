//! Differences between observed and expected counts.

use std::{error, fmt, ops::RangeInclusive};

/// One value that is not as expected.
#[derive(Clone, Debug, PartialEq)]
pub enum Difference {
    /// A count, a number of bytes.
    Count {
        /// Name of the value.
        what: String,
        /// Expected.
        truth: u64,
        /// Observed.
        observed: u64,
    },
    /// A sum of durations.
    Durations {
        /// Name of the value.
        what: String,
        /// Number of requests.
        requests: u64,
        /// Expected, in milliseconds.
        truth_ms: f64,
        /// Observed, in milliseconds.
        observed_ms: f64,
        /// Allowed difference in milliseconds.
        tolerance: RangeInclusive<f64>,
    },
}

/// All differences, as an error that can be downcast to ask [`Differences::only_durations`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Differences(pub(crate) Vec<Difference>);

impl Differences {
    /// Returns whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns their number.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there are differences, and only in durations.
    pub fn only_durations(&self) -> bool {
        !self.is_empty() && self.without_durations().is_empty()
    }

    /// Returns the differences that are not in durations.
    #[must_use]
    pub fn without_durations(&self) -> Self {
        let counts = self.0.iter().filter(|difference| !matches!(difference, Difference::Durations { .. }));
        Self(counts.cloned().collect())
    }

    /// Returns an error if there is any.
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

/// One per line.
impl fmt::Display for Differences {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(Difference::to_string).collect();
        formatter.write_str(&lines.join("\n      "))
    }
}

impl error::Error for Differences {}
