//! Compares the observer's counts with what the logs and the API give, label by label.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use anyhow::{Result, ensure};
use harness::istio_labels::LABELS;

use crate::{
    expectation::{self, Bytes, Labels},
    observer::Series,
};

/// How a label is, over all requests of a situation as one reporter counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// As the logs and the API say.
    Exact,
    /// Partly or wholly `unknown`, as the documentation says.
    Documented,
    /// Partly or wholly `unknown`, where it can be known.
    Unknown,
    Wrong,
}

/// The table: a row for each situation and reporter.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
    details: Vec<String>,
    failures: usize,
    counted: f64,
    expected: f64,
    /// Of TCP connections, by the logs.
    bytes: f64,
}

struct Row {
    name: String,
    reporter: String,
    counted: f64,
    expected: f64,
    verdicts: Vec<Verdict>,
}

impl Table {
    /// Adds the rows of a situation: what was expected of each request or connection, and by how much series rose.
    pub(crate) fn add(&mut self, situation: &str, expected: &[(&'static str, Labels)], counted: &Series) {
        let reporters: BTreeSet<&str> = expected
            .iter()
            .map(|(reporter, _)| *reporter)
            .chain(counted.keys().map(|(reporter, _)| reporter.as_str()))
            .collect();
        for reporter in reporters {
            let expected: Vec<(&Labels, f64)> =
                expected.iter().filter(|(by, _)| *by == reporter).map(|(_, labels)| (labels, 1.0)).collect();
            let counted: Vec<(&Labels, f64)> = counted
                .iter()
                .filter(|((by, _), _)| by == reporter)
                .map(|((_, labels), value)| (labels, *value))
                .collect();
            self.add_row(situation, reporter, &expected, &counted);
        }
    }

    fn add_row(&mut self, situation: &str, reporter: &str, expected: &[(&Labels, f64)], counted: &[(&Labels, f64)]) {
        let total = |all: &[(&Labels, f64)]| all.iter().map(|(_, value)| value).sum::<f64>();
        let mut verdicts = Vec::new();
        for label in LABELS {
            let (right, found) = (values(expected, label), values(counted, label));
            let reason = expectation::reason(situation, reporter, label);
            let verdict = verdict(label, &right, &found, reason.is_some());
            if verdict != Verdict::Exact {
                let why = reason.unwrap_or("should be exact");
                self.details.push(format!("{situation}, {reporter}: {label}: {found:?}, by the logs {right:?}: {why}"));
            }
            verdicts.push(verdict);
        }
        let row = Row {
            name: situation.to_owned(),
            reporter: reporter.to_owned(),
            counted: total(counted),
            expected: total(expected),
            verdicts,
        };
        let is_failure = |verdict: &&Verdict| matches!(verdict, Verdict::Unknown | Verdict::Wrong);
        self.failures += row.verdicts.iter().filter(is_failure).count();
        self.counted += row.counted;
        self.expected += row.expected;
        self.failures += usize::from(!is_same(row.counted, row.expected));
        self.rows.push(row);
    }

    /// Adds the bytes of the connections of a situation, as far as there are any.
    pub(crate) fn add_bytes(&mut self, situation: &str, expected: &Bytes, counted: &Bytes) {
        for (reporter, expected) in expected {
            let counted = counted.get(reporter).copied().unwrap_or_default();
            let is_equal = counted.iter().zip(expected).all(|(counted, expected)| is_same(*counted, *expected));
            let [received, sent] = expected;
            self.bytes += received + sent;
            if !is_equal {
                self.failures += 1;
                self.details.push(format!(
                    "{situation}, {reporter}: {counted:?} bytes received and sent, by the logs {expected:?}"
                ));
            }
        }
    }

    /// Fails unless every count is equal and every label is as it must be.
    pub(crate) fn check(&self) -> Result<()> {
        ensure!(self.failures == 0, "{} cells of the table above are not as they must be", self.failures);
        Ok(())
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "= exact   ? unknown as documented   ! unknown, should be exact   X WRONG")?;
        for (number, label) in LABELS.iter().enumerate() {
            let bars: String = (0..number).map(|_| "│").collect();
            writeln!(f, "{:<46}{bars}┌ {label}", "")?;
        }
        for row in &self.rows {
            let cells: String = row.verdicts.iter().map(|verdict| verdict.symbol()).collect();
            let count = format!("{}/{}", row.counted, row.expected);
            let wrong = if is_same(row.counted, row.expected) { "" } else { "  COUNT" };
            writeln!(f, "{:<20} {:<11} {count:>12} {cells}{wrong}", row.name, row.reporter)?;
        }
        let mut text = String::new();
        for detail in &self.details {
            writeln!(text, "  {detail}")?;
        }
        write!(f, "{text}counted {} of {}; ", self.counted, self.expected)?;
        write!(f, "TCP connections had {} bytes; {} failures", self.bytes, self.failures)
    }
}

impl Verdict {
    fn symbol(self) -> char {
        match self {
            Self::Exact => '=',
            Self::Documented => '?',
            Self::Unknown => '!',
            Self::Wrong => 'X',
        }
    }
}

/// Returns by how much series rose: an error if one fell.
pub(crate) fn rise(before: &Series, after: &Series) -> Result<Series> {
    for (series, value) in before {
        let now = after.get(series).copied().unwrap_or_default();
        ensure!(now >= *value, "a counter fell from {value} to {now}: {series:?}");
    }
    let rise = |(series, value): (&(String, Labels), &f64)| {
        let more = value - before.get(series).copied().unwrap_or_default();
        (more > 0.0).then(|| (series.clone(), more))
    };
    Ok(after.iter().filter_map(rise).collect())
}

/// Returns by how much bytes rose.
pub(crate) fn bytes_rise(before: &Bytes, after: &Bytes) -> Bytes {
    let rise = |(&reporter, after): (&&'static str, &[f64; 2])| {
        let before = before.get(reporter).copied().unwrap_or_default();
        (reporter, [after[0] - before[0], after[1] - before[1]])
    };
    after.iter().map(rise).collect()
}

/// Judges how often each value came: what lacks may only have become `unknown`.
fn verdict(label: &str, right: &BTreeMap<&str, f64>, found: &BTreeMap<&str, f64>, may_be_unknown: bool) -> Verdict {
    let is_more = |(value, count): (&&str, &f64)| *count > right.get(value).copied().unwrap_or_default() + 0.5;
    let mut more = found.iter().filter(|entry| is_more(*entry)).map(|(value, _)| *value).peekable();
    if more.peek().is_none() {
        return Verdict::Exact;
    }
    match more.all(|value| value == expectation::unknown(label)) {
        true if may_be_unknown => Verdict::Documented,
        true => Verdict::Unknown,
        false => Verdict::Wrong,
    }
}

fn values<'a>(all: &[(&'a Labels, f64)], label: &str) -> BTreeMap<&'a str, f64> {
    let mut values = BTreeMap::new();
    for (labels, count) in all {
        *values.entry(labels.get(label).map_or(expectation::unknown(label), String::as_str)).or_default() += count;
    }
    values
}

pub(crate) fn is_same(one: f64, other: f64) -> bool {
    (one - other).abs() < 0.5
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&'static str, &str)]) -> Labels {
        pairs.iter().map(|(name, value)| (*name, (*value).to_owned())).collect()
    }

    #[test]
    fn unknown_is_told_from_wrong() {
        let right = BTreeMap::from([("a", 2.0), ("b", 1.0)]);
        assert_eq!(verdict("source_app", &right, &right, false), Verdict::Exact);
        assert_eq!(
            verdict("source_app", &right, &BTreeMap::from([("a", 2.0), ("unknown", 1.0)]), false),
            Verdict::Unknown
        );
        assert_eq!(
            verdict("source_app", &right, &BTreeMap::from([("a", 2.0), ("unknown", 1.0)]), true),
            Verdict::Documented
        );
        assert_eq!(verdict("source_app", &right, &BTreeMap::from([("a", 3.0)]), true), Verdict::Wrong);
        assert_eq!(
            verdict("source_app", &BTreeMap::from([("unknown", 3.0)]), &BTreeMap::from([("a", 3.0)]), true),
            Verdict::Wrong
        );
    }

    #[test]
    fn a_missing_request_fails_the_table() {
        let expected = [("source", labels(&[("source_app", "a")])), ("source", labels(&[("source_app", "a")]))];
        let mut table = Table::default();
        let series = |count| Series::from([(("source".to_owned(), labels(&[("source_app", "a")])), count)]);
        table.add("any", &expected, &series(2.0));
        table.check().expect("both are counted");
        table.add("any", &expected, &series(1.0));
        table.check().expect_err("one lacks");
        assert!(table.to_string().contains("COUNT"), "{table}");
    }

    #[test]
    fn a_missing_byte_fails_the_table() {
        let bytes = |received| Bytes::from([("source", [received, 7.0])]);
        let mut table = Table::default();
        table.add_bytes("any", &bytes(5.0), &bytes_rise(&bytes(1.0), &Bytes::from([("source", [6.0, 14.0])])));
        table.check().expect("all are counted");
        table.add_bytes("any", &bytes(5.0), &bytes(4.0));
        table.check().expect_err("one lacks");
    }

    #[test]
    fn a_counter_that_falls_is_an_error() {
        let series = |count| Series::from([(("source".to_owned(), labels(&[])), count)]);
        assert_eq!(rise(&series(1.0), &series(3.0)).expect("it rose"), series(2.0));
        rise(&series(3.0), &series(1.0)).expect_err("it fell");
        rise(&series(3.0), &Series::new()).expect_err("it vanished");
    }
}
