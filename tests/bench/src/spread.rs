//! Median and quartiles of a few samples.

use std::fmt;

use serde::Serialize;

/// Samples in the order they were taken, with median and quartiles.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) lower_quartile: f64,
    pub(crate) upper_quartile: f64,
    pub(crate) samples: Vec<f64>,
}

impl Spread {
    /// Summarises at least one sample.
    pub(crate) fn of(samples: impl Into<Vec<f64>>) -> Self {
        let samples = samples.into();
        let mut sorted = samples.clone();
        sorted.sort_by(f64::total_cmp);
        let [lower_quartile, median, upper_quartile] = [0.25, 0.5, 0.75].map(|share| quantile(&sorted, share));
        Self { median, lower_quartile, upper_quartile, samples }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { median, lower_quartile, upper_quartile, samples } = self;
        write!(f, "{median:.3} ({lower_quartile:.3} to {upper_quartile:.3}, n={})", samples.len())
    }
}

/// Interpolates linearly between the two nearest ranks; NaN without samples.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank")]
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let rank = share * last as f64;
    let below = (rank.floor() as usize).min(last);
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * rank.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_quartiles_of_few_and_of_none() {
        let spread = Spread::of([4.0, 1.0, 3.0, 2.0]);
        assert_eq!((spread.lower_quartile, spread.median, spread.upper_quartile), (1.75, 2.5, 3.25));
        assert_eq!(spread.to_string(), "2.500 (1.750 to 3.250, n=4)");
        assert_eq!(Spread::of([7.0]).upper_quartile, 7.0);
        assert!(Spread::of([]).median.is_nan());
    }
}
