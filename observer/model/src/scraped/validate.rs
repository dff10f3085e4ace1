//! Removes samples that would make a strict parser refuse the whole `/metrics` response: histograms without an infinite
//! bound, sums that are not numbers, negative counters.
//!
//! The rules are those of OpenMetrics 1.0, sections "Histogram", "Summary" and "Counter". Text 0.0.4 has fewer rules,
//! but samples that break these are useless there too.

use std::collections::HashMap;

use super::{ScrapedExposition, ScrapedFamily, StoredSample, Suffix};
use crate::exposition::MetricType;

const COUNTER: &str = "counter_value";
const HISTOGRAM: &str = "histogram";
const SUMMARY: &str = "summary";

/// Removes invalid samples and counts them by reason; the samples of each histogram and summary become adjacent.
pub(super) fn remove_invalid(exposition: &mut ScrapedExposition) {
    for mut family in std::mem::take(&mut exposition.families) {
        let before = family.samples.len();
        let reason = match family.metric_type {
            MetricType::Counter => {
                family.samples.retain(|sample| sample.value >= 0.0);
                COUNTER
            }
            MetricType::Histogram => {
                family.samples = groups(&family, |sample| sample.set, |sample| order(exposition, sample))
                    .filter(|samples| is_histogram(exposition, samples))
                    .flatten()
                    .collect();
                HISTOGRAM
            }
            MetricType::Summary => {
                let set = |sample: &StoredSample| without_quantile(exposition.set(sample.set).unwrap_or_default());
                family.samples =
                    groups(&family, set, |_| 0.0).filter(|samples| is_summary(exposition, samples)).flatten().collect();
                SUMMARY
            }
            _ => "",
        };
        let conflicting = before - family.samples.len();
        if conflicting > 0 {
            *exposition.skipped.entry(reason).or_default() += conflicting as u64;
        }
        if !family.samples.is_empty() {
            exposition.families.push(family);
        }
    }
}

/// Groups samples by key, in the order of the keys' first appearance, and sorts each group by `order`.
fn groups<K: Eq + std::hash::Hash>(
    family: &ScrapedFamily,
    key: impl Fn(&StoredSample) -> K,
    order: impl Fn(&StoredSample) -> f64,
) -> impl Iterator<Item = Vec<StoredSample>> {
    let mut groups: Vec<Vec<StoredSample>> = Vec::new();
    let mut known: HashMap<K, usize> = HashMap::new();
    for sample in &family.samples {
        let index = *known.entry(key(sample)).or_insert_with(|| {
            groups.push(Vec::new());
            groups.len() - 1
        });
        if let Some(group) = groups.get_mut(index) {
            group.push(*sample);
        }
    }
    groups.into_iter().map(move |mut group| {
        group.sort_by(|one, other| order(one).total_cmp(&order(other)));
        group
    })
}

/// Buckets by their bounds, and the others behind them: no number comes last.
fn order(exposition: &ScrapedExposition, sample: &StoredSample) -> f64 {
    if sample.suffix == Suffix::Bucket { bound(exposition, sample).unwrap_or(f64::NEG_INFINITY) } else { f64::NAN }
}

fn bound(exposition: &ScrapedExposition, sample: &StoredSample) -> Option<f64> {
    exposition.bounds.get(usize::from(sample.bound))?.parse().ok()
}

/// Whether these are the samples of one histogram, its buckets in order.
fn is_histogram(exposition: &ScrapedExposition, samples: &[StoredSample]) -> bool {
    let of = |suffix| samples.iter().filter(move |sample| sample.suffix == suffix);
    let bounds: Option<Vec<f64>> = of(Suffix::Bucket).map(|sample| bound(exposition, sample)).collect();
    let counts: Vec<f64> = of(Suffix::Bucket).map(|sample| sample.value).collect();
    let (Some(bounds), Some(&all)) = (bounds, counts.last()) else { return false };
    let [sum, count] = [Suffix::Sum, Suffix::Count].map(|suffix| of(suffix).map(|sample| sample.value).next());
    let is_whole = match (sum, count) {
        (None, None) => true,
        (Some(sum), Some(count)) => sum >= 0.0 && count == all && bounds.iter().all(|bound| *bound >= 0.0),
        _ => false,
    };
    is_whole
        && bounds.last() == Some(&f64::INFINITY)
        && bounds.is_sorted_by(|one, other| one < other)
        && counts.is_sorted_by(|one, other| one <= other)
        && counts.iter().all(|count| is_count(*count))
}

/// Whether these are the samples of one summary.
fn is_summary(exposition: &ScrapedExposition, samples: &[StoredSample]) -> bool {
    samples.iter().all(|sample| match sample.suffix {
        Suffix::Count => is_count(sample.value),
        Suffix::Sum => sample.value >= 0.0,
        _ => {
            let quantile =
                exposition.set(sample.set).and_then(quantile).and_then(|quantile| quantile.parse::<f64>().ok());
            // Without values a quantile is NaN.
            quantile.is_some_and(|quantile| (0.0..=1.0).contains(&quantile))
                && (sample.value >= 0.0 || sample.value.is_nan())
        }
    })
}

fn is_count(value: f64) -> bool {
    value >= 0.0 && value.fract() == 0.0
}

const QUANTILE: &str = "quantile=\"";

/// The value of that label, as it is written between quotes.
fn quantile(labels: &str) -> Option<&str> {
    let (_, rest) = split_at_quantile(labels)?;
    rest.split('"').next()
}

/// The labels without it, however they are separated then.
fn without_quantile(labels: &str) -> (&str, &str) {
    let Some((before, rest)) = split_at_quantile(labels) else { return (labels, "") };
    let behind = rest.split_once('"').map_or("", |(_, behind)| behind);
    (before.trim_end_matches(','), behind.trim_start_matches(','))
}

/// Splits before the label's name and behind its opening quote. Values have their quotes escaped, so none can match.
fn split_at_quantile(labels: &str) -> Option<(&str, &str)> {
    if let Some(rest) = labels.strip_prefix(QUANTILE) {
        return Some(("", rest));
    }
    labels.match_indices(QUANTILE).find_map(|(at, _)| {
        let before = labels.get(..at)?.strip_suffix(',')?;
        Some((before, labels.get(at + QUANTILE.len()..)?))
    })
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{exposition, said},
        *,
    };
    use crate::exposition::Format;

    fn conflicting(text: &str) -> (usize, Vec<(&'static str, u64)>) {
        let exposition = exposition(Format::Text, text);
        (said(&exposition).len(), exposition.skipped.into_iter().collect())
    }

    #[test]
    fn an_unsound_histogram_is_left_out_alone() {
        let histogram = |samples: &[&str]| {
            let samples: String = samples.iter().map(|sample| format!("h{sample}\n")).collect();
            conflicting(&format!(
                "# TYPE h histogram\nh_bucket{{a=\"1\",le=\"+Inf\"}} 1\nh_sum{{a=\"1\"}} 1\nh_count{{a=\"1\"}} 1\n{samples}"
            ))
        };
        for unsound in [
            &["_bucket{le=\"1\"} 1", "_sum 1", "_count 1"] as &[&str],
            &["_bucket{le=\"+Inf\"} 1", "_sum NaN", "_count 1"],
            &["_bucket{le=\"+Inf\"} 1", "_sum -1", "_count 1"],
            &["_bucket{le=\"+Inf\"} NaN", "_sum 1", "_count 1"],
            &["_bucket{le=\"+Inf\"} 1.5", "_sum 1", "_count 1.5"],
            &["_bucket{le=\"+Inf\"} 1", "_sum 1", "_count 2"],
            &["_bucket{le=\"+Inf\"} 1", "_sum 1"],
            &["_bucket{le=\"+Inf\"} 1", "_count 1"],
            &["_bucket{le=\"1\"} 2", "_bucket{le=\"+Inf\"} 1", "_sum 1", "_count 1"],
            &["_bucket{le=\"1\"} 1", "_bucket{le=\"1.0\"} 1", "_bucket{le=\"+Inf\"} 1", "_sum 1", "_count 1"],
            &["_bucket{le=\"-1\"} 0", "_bucket{le=\"+Inf\"} 1", "_sum 1", "_count 1"],
            &["_bucket{le=\"x\"} 0", "_bucket{le=\"+Inf\"} 1", "_sum 1", "_count 1"],
            &["_sum 1", "_count 1"],
        ] {
            assert_eq!(histogram(unsound), (3, vec![("histogram", unsound.len() as u64)]), "{unsound:?}");
        }
        for sound in [
            &["_bucket{le=\"+Inf\"} 1"] as &[&str],
            &["_sum 1", "_count 1", "_bucket{le=\"+Inf\"} 1", "_bucket{le=\"1\"} 1"],
            &["_bucket{le=\"-1\"} 0", "_bucket{le=\"Inf\"} 1"],
        ] {
            assert_eq!(histogram(sound), (3 + sound.len(), vec![]), "{sound:?}");
        }
    }

    #[test]
    fn lines_of_one_histogram_come_together_in_order() {
        let exposition = exposition(
            Format::Text,
            concat!(
                "# TYPE h histogram\nh_sum{a=\"1\"} 3\nh_sum{a=\"2\"} 3\nh_bucket{a=\"1\",le=\"Inf\"} 2\n",
                "h_bucket{a=\"1\",le=\"1\"} 1\nh_bucket{a=\"2\",le=\"+Inf\"} 2\nh_count{a=\"2\"} 2\nh_count{a=\"1\"} 2\n",
            ),
        );
        let expected = [
            "Histogram h_bucket a=\"1\" le 1 1",
            "Histogram h_bucket a=\"1\" le +Inf 2",
            "Histogram h_sum a=\"1\" 3",
            "Histogram h_count a=\"1\" 2",
            "Histogram h_bucket a=\"2\" le +Inf 2",
            "Histogram h_sum a=\"2\" 3",
            "Histogram h_count a=\"2\" 2",
        ];
        assert_eq!(said(&exposition), expected);
    }

    #[test]
    fn summaries_and_counters_are_what_they_say() {
        let summary = "# TYPE s summary\ns{quantile=\"0.5\"} 1\ns{quantile=\"1\",a=\"2\"} NaN\ns_sum 1\ns_count 1\ns_sum{a=\"2\"} 1\n";
        assert_eq!(conflicting(summary), (5, vec![]));
        for (unsound, number) in [
            ("s{quantile=\"2\"} 1", 4),
            ("s{quantile=\"x\"} 1", 4),
            ("s{quantile=\"0.9\"} -1", 4),
            ("s{b=\"1\"} 1", 1),
            ("s_sum{b=\"1\"} NaN", 1),
            ("s_count{b=\"1\"} 1.5", 1),
        ] {
            let (samples, reasons) = conflicting(&format!("{summary}{unsound}\n"));
            assert_eq!((samples, reasons), (6 - number, vec![("summary", number as u64)]), "{unsound}");
        }
        let counter =
            conflicting("# TYPE c counter\nc{a=\"1\"} NaN\nc{a=\"2\"} -1\nc{a=\"3\"} 1\n# TYPE g gauge\ng NaN\n");
        assert_eq!(counter, (2, vec![("counter_value", 2)]));
    }

    #[test]
    fn quantiles_are_found_in_any_place() {
        for (labels, quantile_of, without) in [
            ("quantile=\"0.5\"", Some("0.5"), ("", "")),
            ("a=\"1\",quantile=\"0.5\",b=\"2\"", Some("0.5"), ("a=\"1\"", "b=\"2\"")),
            ("a=\",quantile=\\\"0.5\\\"\",b=\"2\"", None, ("a=\",quantile=\\\"0.5\\\"\",b=\"2\"", "")),
            ("my_quantile=\"0.5\"", None, ("my_quantile=\"0.5\"", "")),
        ] {
            assert_eq!((quantile(labels), without_quantile(labels)), (quantile_of, without), "{labels}");
        }
    }
}
