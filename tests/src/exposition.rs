//! A small strict parser of Prometheus text 0.0.4.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

/// The samples of one scrape.
#[derive(Clone, Debug, Default)]
pub struct Exposition {
    types: BTreeMap<String, String>,
    samples: Vec<Sample>,
}

type Labels = Vec<(String, String)>;

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Sample name, `_bucket`, `_sum` or `_count` included.
    pub name: String,
    /// Labels in the order they came.
    pub labels: Labels,
    /// Value.
    pub value: f64,
}

impl Exposition {
    /// Parses an exposition. Refuses a sample without a type before it, a duplicate series, a duplicate label, a
    /// histogram whose buckets fall or lack `+Inf`.
    pub fn parse(text: &str) -> Result<Self> {
        ensure!(text.is_empty() || text.ends_with('\n'), "the last line does not end");
        let mut exposition = Self::default();
        let mut seen = BTreeMap::new();
        for (number, line) in text.lines().enumerate() {
            let place = || format!("line {}: {line}", number + 1);
            if let Some(comment) = line.strip_prefix("# TYPE ") {
                let (name, kind) = comment.split_once(' ').with_context(place)?;
                ensure!(
                    matches!(kind, "counter" | "gauge" | "histogram" | "summary" | "untyped"),
                    "unknown type, {}",
                    place()
                );
                let before = exposition.types.insert(name.to_owned(), kind.to_owned());
                ensure!(before.is_none(), "the family has two types, {}", place());
            } else if !line.starts_with('#') {
                let sample = Sample::parse(line).with_context(place)?;
                ensure!(exposition.kind(&sample.name).is_some(), "no type before the sample, {}", place());
                let mut labels = sample.labels.clone();
                labels.sort();
                ensure!(
                    seen.insert((sample.name.clone(), labels), ()).is_none(),
                    "the series comes twice, {}",
                    place()
                );
                exposition.samples.push(sample);
            }
        }
        exposition.check_histograms()?;
        Ok(exposition)
    }

    /// Returns all samples, in the order they came.
    pub fn all(&self) -> &[Sample] {
        &self.samples
    }

    /// Returns the samples of exactly this name.
    pub fn samples<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| sample.name == name)
    }

    /// Returns the sum of the samples of this name with all these labels; `None` without such a sample.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut found = self
            .samples(name)
            .filter(|sample| labels.iter().all(|(label, value)| sample.label(label) == *value))
            .map(|sample| sample.value)
            .peekable();
        found.peek()?;
        Some(found.sum())
    }

    /// Returns the type of the family that a sample name belongs to.
    pub fn kind(&self, sample: &str) -> Option<&str> {
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .filter_map(|suffix| sample.strip_suffix(suffix))
            .find(|family| self.types.get(*family).is_some_and(|kind| matches!(kind.as_str(), "histogram" | "summary")))
            .unwrap_or(sample);
        self.types.get(family).map(String::as_str)
    }

    fn check_histograms(&self) -> Result<()> {
        // Family and labels without `le`, and the last bound and value seen of it.
        let mut last = BTreeMap::<(&str, Labels), (f64, f64)>::new();
        for sample in &self.samples {
            let Some(family) = sample.name.strip_suffix("_bucket") else { continue };
            let le = sample.label("le");
            let bound = if le == "+Inf" { f64::INFINITY } else { le.parse().with_context(|| format!("le={le:?}"))? };
            let labels = sample.labels.iter().filter(|(name, _)| name != "le").cloned().collect();
            let before = last.insert((family, labels), (bound, sample.value));
            if let Some((before_bound, before_value)) = before {
                ensure!(before_bound < bound && before_value <= sample.value, "buckets fall: {sample:?}");
            }
        }
        let mut counts = BTreeMap::<(&str, Labels), f64>::new();
        for sample in &self.samples {
            if let Some(family) = sample.name.strip_suffix("_count") {
                *counts.entry((family, sample.labels.clone())).or_default() += sample.value;
            }
        }
        for (key, (bound, value)) in last {
            let (family, labels) = &key;
            ensure!(bound.is_infinite(), "{family}{labels:?} has no +Inf bucket");
            let count = counts.get(&key);
            ensure!(count == Some(&value), "{family}{labels:?}: count {count:?}, +Inf bucket {value}");
        }
        Ok(())
    }
}

impl Sample {
    /// Returns every sample of a page in either format, whatever its family.
    pub fn all(page: &str) -> Result<Vec<Self>> {
        let lines = page.lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| Self::parse(line).with_context(|| line.to_owned())).collect()
    }

    /// Returns the value of a label, empty if it is absent (which means the same in Prometheus).
    pub fn label(&self, name: &str) -> &str {
        self.labels.iter().find(|(found, _)| found == name).map_or("", |(_, value)| value)
    }

    fn parse(line: &str) -> Result<Self> {
        let end = line.find(['{', ' ']).context("no value")?;
        let (name, mut rest) = line.split_at(end);
        ensure!(is_name(name, ":"), "{name:?} is no metric name");
        let mut labels = Labels::new();
        if let Some(inside) = rest.strip_prefix('{') {
            rest = inside;
            while !rest.starts_with('}') {
                let (label, after) = rest.split_once("=\"").context("label without a value")?;
                ensure!(is_name(label, ""), "{label:?} is no label name");
                ensure!(labels.iter().all(|(before, _)| before != label), "label {label} comes twice");
                let (value, after) = unquote(after)?;
                labels.push((label.to_owned(), value));
                rest = after.strip_prefix(',').unwrap_or(after);
            }
            rest = &rest[1..];
        }
        let value = rest.strip_prefix(' ').context("no space before the value")?;
        let value = match value {
            "+Inf" => f64::INFINITY,
            "-Inf" => f64::NEG_INFINITY,
            "NaN" => f64::NAN,
            number => number.parse().with_context(|| format!("value {number:?}"))?,
        };
        Ok(Self { name: name.to_owned(), labels, value })
    }
}

fn is_name(name: &str, more: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || more.contains(c))
}

/// Returns a quoted value up to its closing quote, and what follows that.
fn unquote(text: &str) -> Result<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => match characters.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, escaped @ ('\\' | '"'))) => value.push(escaped),
                other => bail!("unknown escape {other:?}"),
            },
            plain => value.push(plain),
        }
    }
    bail!("the quoted value does not end")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_labels_and_escapes() {
        let text = "# HELP a b\n# TYPE a counter\na{x=\"1\\\"\\\\\\n,}\",y=\"\"} 3\na 4\n";
        let exposition = Exposition::parse(text).unwrap();
        assert_eq!(exposition.sum("a", &[("x", "1\"\\\n,}")]), Some(3.0));
        assert_eq!(exposition.sum("a", &[]), Some(7.0));
        assert_eq!(exposition.sum("b", &[]), None);
    }

    #[test]
    fn refuses_what_is_not_allowed() {
        for text in [
            "a 1\n",
            "# TYPE a counter\na 1\na 1\n",
            "# TYPE a counter\na{x=\"1\",x=\"2\"} 1\n",
            "# TYPE a counter\na 1",
            "# TYPE a counter\na{x=\"\\q\"} 1\n",
            "# TYPE a histogram\na_bucket{le=\"1\"} 2\na_bucket{le=\"+Inf\"} 1\na_sum 1\na_count 1\n",
            "# TYPE a histogram\na_bucket{le=\"1\"} 2\na_sum 1\na_count 2\n",
        ] {
            assert!(Exposition::parse(text).is_err(), "{text}");
        }
    }
}
