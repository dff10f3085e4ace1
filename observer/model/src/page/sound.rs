//! Leaves out what would make a strict reader refuse all of `/metrics`, where these lines stand among others: histograms
//! without an infinite bound, sums that are no numbers, counters below 0.
//!
//! The rules are those of OpenMetrics 1.0, sections "Histogram", "Summary" and "Counter". Text 0.0.4 has fewer of them; what
//! breaks them is of no use there either.

use std::collections::HashMap;

use super::{Line, Page, PageFamily, Suffix};
use crate::exposition::Kind;

const COUNTER: &str = "counter_value";
const HISTOGRAM: &str = "histogram";
const SUMMARY: &str = "summary";

/// Keeps what every reader takes, each histogram and summary with its lines together, and counts the rest by reason.
pub(super) fn keep(page: &mut Page) {
    for mut family in std::mem::take(&mut page.families) {
        let before = family.lines.len();
        let reason = match family.kind {
            Kind::Counter => {
                family.lines.retain(|line| line.value >= 0.0);
                COUNTER
            }
            Kind::Histogram => {
                family.lines = groups(&family, |line| line.set, |line| order(page, line))
                    .filter(|lines| is_histogram(page, lines))
                    .flatten()
                    .collect();
                HISTOGRAM
            }
            Kind::Summary => {
                let set = |line: &Line| without_quantile(page.set(line.set).unwrap_or_default());
                family.lines =
                    groups(&family, set, |_| 0.0).filter(|lines| is_summary(page, lines)).flatten().collect();
                SUMMARY
            }
            _ => "",
        };
        let left_out = before - family.lines.len();
        if left_out > 0 {
            *page.skipped.entry(reason).or_default() += left_out as u64;
        }
        if !family.lines.is_empty() {
            page.families.push(family);
        }
    }
}

/// Lines of one key, in the order of their keys' first appearance; those of one key in the order that `order` says.
fn groups<K: Eq + std::hash::Hash>(
    family: &PageFamily,
    key: impl Fn(&Line) -> K,
    order: impl Fn(&Line) -> f64,
) -> impl Iterator<Item = Vec<Line>> {
    let mut groups: Vec<Vec<Line>> = Vec::new();
    let mut known: HashMap<K, usize> = HashMap::new();
    for line in &family.lines {
        let index = *known.entry(key(line)).or_insert_with(|| {
            groups.push(Vec::new());
            groups.len() - 1
        });
        if let Some(group) = groups.get_mut(index) {
            group.push(*line);
        }
    }
    groups.into_iter().map(move |mut group| {
        group.sort_by(|one, other| order(one).total_cmp(&order(other)));
        group
    })
}

/// Buckets by their bounds, and the others behind them: no number comes last.
fn order(page: &Page, line: &Line) -> f64 {
    if line.suffix == Suffix::Bucket { bound(page, line).unwrap_or(f64::NEG_INFINITY) } else { f64::NAN }
}

fn bound(page: &Page, line: &Line) -> Option<f64> {
    page.bounds.get(usize::from(line.bound))?.parse().ok()
}

/// Whether these are the lines of one histogram, its buckets in order.
fn is_histogram(page: &Page, lines: &[Line]) -> bool {
    let of = |suffix| lines.iter().filter(move |line| line.suffix == suffix);
    let bounds: Option<Vec<f64>> = of(Suffix::Bucket).map(|line| bound(page, line)).collect();
    let counts: Vec<f64> = of(Suffix::Bucket).map(|line| line.value).collect();
    let (Some(bounds), Some(&all)) = (bounds, counts.last()) else { return false };
    let [sum, count] = [Suffix::Sum, Suffix::Count].map(|suffix| of(suffix).map(|line| line.value).next());
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

/// Whether these are the lines of one summary.
fn is_summary(page: &Page, lines: &[Line]) -> bool {
    lines.iter().all(|line| match line.suffix {
        Suffix::Count => is_count(line.value),
        Suffix::Sum => line.value >= 0.0,
        _ => {
            let quantile = page.set(line.set).and_then(quantile).and_then(|quantile| quantile.parse::<f64>().ok());
            // Of no values there is no quantile.
            quantile.is_some_and(|quantile| (0.0..=1.0).contains(&quantile))
                && (line.value >= 0.0 || line.value.is_nan())
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

/// What is before its name, and behind its first quote. In values quotes are escaped, so that none looks like it.
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
        super::tests::{page, said},
        *,
    };
    use crate::exposition::Format;

    fn left_out(text: &str) -> (usize, Vec<(&'static str, u64)>) {
        let page = page(Format::Text, text);
        (said(&page).len(), page.skipped.into_iter().collect())
    }

    #[test]
    fn an_unsound_histogram_is_left_out_alone() {
        let histogram = |lines: &[&str]| {
            let lines: String = lines.iter().map(|line| format!("h{line}\n")).collect();
            left_out(&format!(
                "# TYPE h histogram\nh_bucket{{a=\"1\",le=\"+Inf\"}} 1\nh_sum{{a=\"1\"}} 1\nh_count{{a=\"1\"}} 1\n{lines}"
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
        let page = page(
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
        assert_eq!(said(&page), expected);
    }

    #[test]
    fn summaries_and_counters_are_what_they_say() {
        let summary = "# TYPE s summary\ns{quantile=\"0.5\"} 1\ns{quantile=\"1\",a=\"2\"} NaN\ns_sum 1\ns_count 1\ns_sum{a=\"2\"} 1\n";
        assert_eq!(left_out(summary), (5, vec![]));
        for (unsound, number) in [
            ("s{quantile=\"2\"} 1", 4),
            ("s{quantile=\"x\"} 1", 4),
            ("s{quantile=\"0.9\"} -1", 4),
            ("s{b=\"1\"} 1", 1),
            ("s_sum{b=\"1\"} NaN", 1),
            ("s_count{b=\"1\"} 1.5", 1),
        ] {
            let (lines, reasons) = left_out(&format!("{summary}{unsound}\n"));
            assert_eq!((lines, reasons), (6 - number, vec![("summary", number as u64)]), "{unsound}");
        }
        let counter =
            left_out("# TYPE c counter\nc{a=\"1\"} NaN\nc{a=\"2\"} -1\nc{a=\"3\"} 1\n# TYPE g gauge\ng NaN\n");
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
