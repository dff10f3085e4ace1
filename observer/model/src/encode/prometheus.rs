//! Snapshot -> Prometheus text 0.0.4 and OpenMetrics 1.0, streamed.
//!
//! Libraries weighed: `prometheus-client` writes OpenMetrics only, `prometheus` writes 0.0.4 only; both want to own the
//! counters they print, while these figures are counted in the kernel, and both build the whole page in memory, which
//! for 10,000 label sets of 25 labels is hundreds of megabytes. So neither is used, and the two formats share this code.
//!
//! The formats differ in the family's name (OpenMetrics strips `_total`), in `# UNIT`, `_created` and `# EOF`, in what is
//! escaped in help texts, and in the text of `le`: 0.0.4 has Envoy's (`5`), OpenMetrics demands canonical floats (`5.0`).

use std::{
    fmt::Write as _,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use super::selection::Selection;
use crate::{
    Labels, Point, Snapshot, Value,
    catalogue::{Family, Kind},
    control_plane::{ScrapedFamily, ScrapedLine},
    exposition,
    histogram::LE,
    page::escape as escape_label,
};
use bytes::Bytes;

/// Largest piece of a page, in bytes.
pub const CHUNK: usize = 64 * 1024;

/// An exposition format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text 0.0.4.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// The `Content-Type` of a page.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// A page in pieces of at most [`CHUNK`] bytes, written as they are asked for.
#[derive(Debug)]
pub struct Page {
    snapshot: Arc<Snapshot>,
    format: Format,
    selection: Selection,
    family: usize,
    point: usize,
    scraped: Place,
    text: String,
    labels: String,
    ended: bool,
}

/// The next line of the control plane's families: index of the family, of the target in it, of the line of that.
#[derive(Debug, Default)]
struct Place {
    family: usize,
    part: usize,
    line: usize,
}

impl Page {
    /// A page of `snapshot`.
    #[must_use]
    pub fn new(snapshot: Arc<Snapshot>, format: Format) -> Self {
        Self::of(snapshot, format, Selection::default())
    }

    /// The page of some of its families.
    #[must_use]
    pub fn of(snapshot: Arc<Snapshot>, format: Format, selection: Selection) -> Self {
        let (text, labels, scraped) = (String::new(), String::new(), Place::default());
        Self { snapshot, format, selection, family: 0, point: 0, scraped, text, labels, ended: false }
    }

    /// Writes the next point, with its family's head before the first one; `false` at the end.
    fn advance(&mut self) -> bool {
        let Some(points) = self.snapshot.family(self.family) else { return self.advance_scraped() };
        let wanted = self.selection.takes(points.family.prometheus_name);
        let Some(point) = points.get(self.point).filter(|_| wanted) else {
            // What other instances say of the same belongs to the same family.
            let scraped = self.snapshot.control_plane.families();
            let same = scraped.filter(|scraped| wanted && scraped.name() == points.family.prometheus_name).take(1);
            for line in same.flat_map(ScrapedFamily::lines) {
                scraped_line(&mut self.text, points.family.prometheus_name, &line, self.format);
            }
            (self.family, self.point) = (self.family + 1, 0);
            return true;
        };
        if self.point == 0 {
            head(&mut self.text, points.family, self.format);
        }
        self.labels.clear();
        write_labels(&mut self.labels, point.labels);
        write_point(&mut self.text, points.family, &point, &self.labels, self.format);
        if self.format == Format::OpenMetrics && self.selection.takes_created() {
            write_created(&mut self.text, points.family, &point, &self.labels);
        }
        self.point += 1;
        true
    }
}

impl Page {
    /// Writes the next line that was scraped.
    fn advance_scraped(&mut self) -> bool {
        let Some(family) = self.snapshot.control_plane.family(self.scraped.family) else { return false };
        let Place { part, line, .. } = self.scraped;
        if part == 0 && line == 0 {
            let mut own = self.snapshot.families().filter(|own| own.get(0).is_some());
            if !self.selection.takes(family.name()) || own.any(|own| own.family.prometheus_name == family.name()) {
                self.scraped.family += 1;
                return true;
            }
            // Go has a gauge `x` beside a counter `x_total`, which OpenMetrics would call `x` as well.
            let mut names = self.snapshot.control_plane.families().map(|other| other.name());
            let short = family.name().strip_suffix("_total").filter(|short| names.all(|name| name != *short));
            scraped_head(&mut self.text, &family, short, self.format);
        }
        self.scraped = match family.line(part, line) {
            Some(found) => {
                scraped_line(&mut self.text, family.name(), &found, self.format);
                Place { line: line + 1, ..self.scraped }
            }
            None if part + 1 < family.parts() => Place { part: part + 1, line: 0, ..self.scraped },
            None => Place { family: self.scraped.family + 1, part: 0, line: 0 },
        };
        true
    }
}

impl Iterator for Page {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        while self.text.len() < CHUNK && !self.ended {
            if !self.advance() {
                self.ended = true;
                if self.format == Format::OpenMetrics {
                    self.text.push_str("# EOF\n");
                }
            }
        }
        if self.text.is_empty() {
            return None;
        }
        let rest = self.text.split_off(self.text.floor_char_boundary(CHUNK));
        Some(std::mem::replace(&mut self.text, rest).into())
    }
}

fn head(text: &mut String, family: &Family, format: Format) {
    write_head(text, family_name(family, format), family.help, family.kind.word(), family.unit, format);
}

/// OpenMetrics calls a counter by its name without `_total`; one that cannot be called so is a figure of unknown type there.
fn scraped_head(text: &mut String, family: &ScrapedFamily<'_>, short: Option<&str>, format: Format) {
    use exposition::Kind::{Counter, Gauge, Histogram, Summary};
    let (name, open_metrics) = (family.name(), format == Format::OpenMetrics);
    let (name, word) = match family.kind() {
        Counter if !open_metrics => (name, "counter"),
        Counter => short.map_or((name, "unknown"), |short| (short, "counter")),
        Gauge => (name, "gauge"),
        Histogram => (name, "histogram"),
        Summary => (name, "summary"),
        _ if open_metrics => (name, "unknown"),
        _ => (name, "untyped"),
    };
    write_head(text, name, family.help(), word, family.unit(), format);
}

fn write_head(text: &mut String, name: &str, help: &str, word: &str, unit: &str, format: Format) {
    text.push_str("# HELP ");
    text.push_str(name);
    text.push(' ');
    escape(text, help, format == Format::OpenMetrics);
    text.push_str("\n# TYPE ");
    text.push_str(name);
    text.push(' ');
    text.push_str(word);
    text.push('\n');
    let named_after_unit = || name.strip_suffix(unit).is_some_and(|stem| stem.ends_with('_'));
    if format == Format::OpenMetrics && !unit.is_empty() && named_after_unit() {
        let _ = writeln!(text, "# UNIT {name} {unit}");
    }
}

/// A line as it was read, with the labels of its target in front.
fn scraped_line(text: &mut String, name: &str, line: &ScrapedLine<'_>, format: Format) {
    text.push_str(name);
    text.push_str(line.suffix.text());
    text.push('{');
    text.push_str(line.target_labels);
    if !line.labels.is_empty() {
        text.push(',');
        text.push_str(line.labels);
    }
    if let Some(bound) = line.bound {
        text.push_str(",le=\"");
        escape_label(bound, text);
        let whole = !bound.is_empty() && bound.bytes().all(|byte| byte.is_ascii_digit());
        text.push_str(if whole && format == Format::OpenMetrics { ".0\"" } else { "\"" });
    }
    text.push_str("} ");
    let _ = match line.value {
        f64::INFINITY => writeln!(text, "+Inf"),
        f64::NEG_INFINITY => writeln!(text, "-Inf"),
        value => writeln!(text, "{value}"),
    };
}

fn family_name(family: &Family, format: Format) -> &'static str {
    match format {
        Format::OpenMetrics if family.kind == Kind::Counter => {
            family.prometheus_name.strip_suffix("_total").unwrap_or(family.prometheus_name)
        }
        _ => family.prometheus_name,
    }
}

fn write_labels(text: &mut String, labels: Labels<'_>) {
    labels.each(|name, value| {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(name);
        text.push_str("=\"");
        escape(text, value, true);
        text.push('"');
    });
}

/// Escapes backslash and line feed, and the quote where `quotes` says so; both formats agree on these.
fn escape(text: &mut String, value: &str, quotes: bool) {
    if !value.contains(['\\', '\n', '"']) {
        text.push_str(value);
        return;
    }
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '"' if quotes => text.push_str("\\\""),
            _ => text.push(character),
        }
    }
}

fn write_point(text: &mut String, family: &Family, point: &Point<'_>, labels: &str, format: Format) {
    let name = family.prometheus_name;
    match &point.value {
        Value::Integer(value) => sample(text, name, "", labels, None, value),
        Value::Real(value) => sample(text, name, "", labels, None, value),
        Value::Histogram(histogram) => {
            let cumulative = histogram.cumulative();
            for (le, count) in LE.into_iter().zip(cumulative) {
                // OpenMetrics demands the canonical form of these very numbers.
                let point_zero = format == Format::OpenMetrics && !le.contains(['.', '+']);
                sample(text, name, "_bucket", labels, Some((le, if point_zero { ".0" } else { "" })), &count);
            }
            sample(text, name, "_sum", labels, None, &histogram.sum());
            sample(text, name, "_count", labels, None, &histogram.count());
        }
        Value::Lateness(lateness) => {
            for (le, count) in lateness.buckets() {
                sample(text, name, "_bucket", labels, Some((le, "")), &count);
            }
            sample(text, name, "_sum", labels, None, &lateness.sum());
            sample(text, name, "_count", labels, None, &lateness.count());
        }
    }
}

/// When a counter or histogram was 0, in the one format that has it.
fn write_created(text: &mut String, family: &Family, point: &Point<'_>, labels: &str) {
    if family.kind != Kind::Gauge {
        let name = family_name(family, Format::OpenMetrics);
        sample(text, name, "_created", labels, None, &seconds(point.created));
    }
}

fn sample(
    text: &mut String,
    name: &str,
    suffix: &str,
    labels: &str,
    le: Option<(&str, &str)>,
    value: &dyn std::fmt::Display,
) {
    text.push_str(name);
    text.push_str(suffix);
    if !labels.is_empty() || le.is_some() {
        text.push('{');
        text.push_str(labels);
        if let Some((bound, ending)) = le {
            if !labels.is_empty() {
                text.push(',');
            }
            text.push_str("le=\"");
            text.push_str(bound);
            text.push_str(ending);
            text.push('"');
        }
        text.push('}');
    }
    let _ = writeln!(text, " {value}");
}

/// Seconds since 1970, to the millisecond.
fn seconds(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}.{:03}", since.as_secs(), since.subsec_millis())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Inputs, Model, Own, fixture,
        identity::{Role, Workload},
        labels::Peers,
    };
    use observer_common::{Leg, Protocol};
    use proptest::prelude::*;
    use std::time::Duration;

    fn page(snapshot: &Arc<Snapshot>, format: Format) -> String {
        let pieces: Vec<Bytes> = Page::new(snapshot.clone(), format).collect();
        assert!(pieces.iter().all(|piece| !piece.is_empty() && piece.len() <= CHUNK));
        String::from_utf8(pieces.concat()).unwrap()
    }

    #[derive(Debug, PartialEq)]
    struct Sample {
        name: String,
        labels: Vec<(String, String)>,
        value: f64,
    }

    /// A parser of its own, by the grammar of both formats: one character at a time, nothing forgiven.
    fn parse(text: &str) -> Vec<Sample> {
        assert!(text.ends_with('\n'));
        let mut samples = Vec::new();
        for line in text.split_terminator('\n').filter(|line| !line.starts_with('#')) {
            let mut rest = line.chars().peekable();
            let mut name = String::new();
            while let Some(letter) = rest.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
                name.push(letter);
            }
            let mut labels = Vec::new();
            if rest.next_if_eq(&'{').is_some() {
                loop {
                    let mut key = String::new();
                    while let Some(letter) = rest.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
                        key.push(letter);
                    }
                    assert!(!key.is_empty(), "{line}");
                    assert_eq!((rest.next(), rest.next()), (Some('='), Some('"')), "{line}");
                    let mut value = String::new();
                    loop {
                        match rest.next().expect("an unterminated value") {
                            '"' => break,
                            '\\' => value.push(match rest.next() {
                                Some('n') => '\n',
                                Some(escaped @ ('"' | '\\')) => escaped,
                                other => panic!("escape of {other:?} in {line}"),
                            }),
                            plain => value.push(plain),
                        }
                    }
                    labels.push((key, value));
                    match rest.next() {
                        Some(',') => {}
                        Some('}') => break,
                        other => panic!("{other:?} after a value in {line}"),
                    }
                }
            }
            assert_eq!(rest.next(), Some(' '), "{line}");
            samples.push(Sample { name, labels, value: rest.collect::<String>().parse().unwrap() });
        }
        samples
    }

    #[test]
    fn the_pages_are_the_golden_ones() {
        let [_, snapshot] = fixture::snapshots();
        fixture::assert_golden("metrics.prom", &page(&snapshot, Format::Text));
        fixture::assert_golden("metrics.openmetrics", &page(&snapshot, Format::OpenMetrics));
    }

    #[test]
    fn both_formats_say_the_same() {
        let [_, snapshot] = fixture::snapshots();
        let normal = |format| {
            let mut samples = parse(&page(&snapshot, format));
            samples.retain(|sample| !sample.name.ends_with("_created"));
            for (_, value) in samples.iter_mut().flat_map(|own| &mut own.labels).filter(|(key, _)| key == "le") {
                *value = value.trim_end_matches(".0").to_owned();
            }
            samples
        };
        assert_eq!(normal(Format::Text), normal(Format::OpenMetrics));
    }

    #[test]
    fn a_histogram_is_cumulative_and_ends_in_its_count() {
        let [_, snapshot] = fixture::snapshots();
        let samples = parse(&page(&snapshot, Format::Text));
        let mut last = 0.0;
        let (mut seen, mut bounds) = (0, f64::NEG_INFINITY);
        for sample in &samples {
            if sample.name.ends_with("_bucket") {
                let le = sample.labels.last().unwrap().1.parse().unwrap();
                // Where the bounds do not rise another histogram begins.
                assert!(le <= bounds || sample.value >= last);
                bounds = le;
                last = sample.value;
            } else if sample.name.ends_with("_count") {
                assert_eq!(sample.value, last);
                seen += 1;
            }
        }
        assert_eq!(seen, 3 * snapshot.http.len() + 1, "and the observer's own");
    }

    #[test]
    fn times_of_creation_are_left_out_on_request() {
        let [_, snapshot] = fixture::snapshots();
        let page = |query: Option<(&str, &str)>| {
            let pieces = Page::of(
                snapshot.clone(),
                Format::OpenMetrics,
                Selection::of(query.into_iter().map(|(key, value)| (key.into(), value.into()))),
            );
            String::from_utf8(pieces.collect::<Vec<_>>().concat()).unwrap()
        };
        let (with, without) = (page(None), page(Some(("created", "false"))));
        assert!(with.contains("_created{") && !without.contains("_created"));
        let rest: String = with.split_inclusive('\n').filter(|line| !line.contains("_created")).collect();
        assert_eq!(without, rest);
        assert_eq!(page(Some(("created", "true"))), with);
    }

    proptest! {
        #[test]
        fn whatever_a_label_holds_comes_back(app in any::<String>(), name in "\\PC*|[\"\\\\\n]*", bytes in any::<u64>(), openmetrics: bool) {
            let workload = Workload {
                name: Some(name.clone()),
                labels: [("app".to_owned(), app.clone())].into(),
                ..Workload::default()
            };
            let sidecars = [fixture::sidecar(1, Role::Sidecar, "10.0.0.1", Arc::new(workload))];
            let series = vec![
                fixture::tcp(fixture::key(1, Leg::SOURCE, "10.0.0.9:1", Protocol::TCP, 0), 1, 0, bytes, 0),
                fixture::http(fixture::key(1, Leg::SOURCE, "10.0.0.9:1", Protocol::HTTP, 200), &[1]),
            ];
            let snapshot = Model::new(fixture::at(0), Duration::ZERO).update(Inputs {
                reading: &fixture::reading(1, series),
                running: &sidecars,
                ended: &[],
                components: &[],
                peers: &Arc::new(Peers::default()),
                own: &Own::default(),
                closes_interval: false,
            });
            let format = if openmetrics { Format::OpenMetrics } else { Format::Text };
            let samples = parse(&page(&snapshot, format));
            let istio: Vec<_> = samples.iter().filter(|own| own.name.starts_with("istio_")).collect();
            prop_assert!(!istio.is_empty());
            for sample in &istio {
                let label = |key: &str| sample.labels.iter().find(|own| own.0 == key).map(|own| own.1.as_str());
                prop_assert_eq!(label("source_app"), Some(app.as_str()));
                prop_assert_eq!(label("source_workload"), Some(name.as_str()));
            }
            let received = istio.iter().find(|sample| sample.name == crate::catalogue::TCP_RECEIVED_BYTES.prometheus_name);
            #[expect(clippy::cast_precision_loss, reason = "as the parser reads it")]
            let expected = bytes as f64;
            prop_assert_eq!(received.map(|sample| sample.value), Some(expected));
        }
    }
}
