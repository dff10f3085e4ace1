//! Prometheus text 0.0.4 and OpenMetrics 1.0, streamed.
//!
//! Neither `prometheus-client` (OpenMetrics only) nor `prometheus` (0.0.4 only) is used: both own the counters they
//! print, which here are counted in the kernel, and both build the whole response in memory, hundreds of megabytes for
//! 10,000 label sets of 25 labels.
//!
//! The formats differ in the family's name (OpenMetrics strips `_total`), in `# UNIT`, `_created` and `# EOF`, in the
//! escapes of help text, and in `le`: 0.0.4 has Envoy's text (`5`), OpenMetrics requires canonical floats (`5.0`).

use std::{
    fmt::{self, Write as _},
    sync::Arc,
    time::UNIX_EPOCH,
};

use bytes::Bytes;

use super::selection::Selection;
pub use crate::exposition::Format;
use crate::{Cursor, Family, Point, Snapshot, Value, exposition::MetricType, label_text};

/// Largest chunk of an exposition, in bytes.
pub const CHUNK: usize = 64 * 1024;

/// An exposition in chunks of at most [`CHUNK`] bytes, rendered on demand.
#[derive(Debug)]
pub struct Exposition {
    snapshot: Arc<Snapshot>,
    format: Format,
    selection: Selection,
    family: usize,
    cursor: Cursor,
    text: String,
    /// Labels of the current point.
    labels: String,
    ended: bool,
}

impl Exposition {
    /// Renders all families of `snapshot`.
    #[must_use]
    pub fn new(snapshot: Arc<Snapshot>, format: Format) -> Self {
        Self::of(snapshot, format, Selection::default())
    }

    /// Renders the selected families.
    #[must_use]
    pub fn of(snapshot: Arc<Snapshot>, format: Format, selection: Selection) -> Self {
        let (text, labels, cursor) = (String::new(), String::new(), Cursor::default());
        Self { snapshot, format, selection, family: 0, cursor, text, labels, ended: false }
    }

    /// Writes the next point, preceded by its family's header if it is the first one; `false` at the end.
    fn advance(&mut self) -> bool {
        let Some(family) = self.snapshot.family(self.family) else { return false };
        let is_first = self.cursor == Cursor::default();
        let is_selected = !is_first || self.selection.contains(family.name());
        let Some(point) = is_selected.then(|| family.next(&mut self.cursor)).flatten() else {
            (self.family, self.cursor) = (self.family + 1, Cursor::default());
            return true;
        };
        if is_first {
            write_header(&mut self.text, &family, self.format);
        }
        self.labels.clear();
        point.labels.write(&mut self.labels);
        write_point(&mut self.text, &self.labels, family.name(), &point, self.format);
        if self.format == Format::OpenMetrics && self.selection.includes_created() {
            write_created(&mut self.text, &self.labels, &family, &point);
        }
        true
    }
}

impl Iterator for Exposition {
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

/// Returns name and type in this format. OpenMetrics names a counter without `_total`; one that cannot be named so is
/// of unknown type there.
fn declared<'a>(family: &Family<'a>, format: Format) -> (&'a str, &'static str) {
    let (name, metric_type) = (family.name(), family.metric_type());
    match (format, metric_type) {
        (Format::OpenMetrics, MetricType::Counter) => {
            family.counter_name().map_or((name, MetricType::Unknown.name()), |short| (short, metric_type.name()))
        }
        (Format::Text, MetricType::Unknown) => (name, "untyped"),
        _ => (name, metric_type.name()),
    }
}

fn write_header(text: &mut String, family: &Family<'_>, format: Format) {
    let (name, metric_type) = declared(family, format);
    text.push_str("# HELP ");
    text.push_str(name);
    text.push(' ');
    label_text::push_help(text, family.help(), format == Format::OpenMetrics);
    text.push_str("\n# TYPE ");
    text.push_str(name);
    text.push(' ');
    text.push_str(metric_type);
    text.push('\n');
    let unit = family.unit();
    let is_named_after_unit = || name.strip_suffix(unit).is_some_and(|stem| stem.ends_with('_'));
    if format == Format::OpenMetrics && !unit.is_empty() && is_named_after_unit() {
        let _ = writeln!(text, "# UNIT {name} {unit}");
    }
}

fn write_point(text: &mut String, labels: &str, name: &str, point: &Point<'_>, format: Format) {
    match point.value {
        Value::Integer(value) => write_sample(text, name, "", labels, None, |text| write!(text, "{value}")),
        Value::Real(value) => write_sample(text, name, "", labels, None, |text| write_real(text, value)),
        Value::Sample { suffix, bound, value } => {
            let bound = bound.map(|bound| (bound, format));
            write_sample(text, name, suffix.text(), labels, bound, |text| write_real(text, value));
        }
        Value::Histogram(histogram) => {
            for (bucket, (bound, count)) in histogram.buckets().enumerate() {
                write_sample(text, name, "_bucket", labels, Some((bound, format)), |text| {
                    write!(text, "{count}")?;
                    // Only OpenMetrics has them.
                    if format == Format::OpenMetrics
                        && let Some(exemplar) = histogram.exemplar(bucket)
                    {
                        exemplar.write(text);
                    }
                    Ok(())
                });
            }
            write_sample(text, name, "_sum", labels, None, |text| write_real(text, histogram.sum()));
            write_sample(text, name, "_count", labels, None, |text| write!(text, "{}", histogram.count()));
        }
    }
}

/// Writes when a counter or histogram was 0, which only OpenMetrics has.
fn write_created(text: &mut String, labels: &str, family: &Family<'_>, point: &Point<'_>) {
    let Some(created) = point.created.filter(|_| family.metric_type() != MetricType::Gauge) else { return };
    let since = created.duration_since(UNIX_EPOCH).unwrap_or_default();
    write_sample(text, declared(family, Format::OpenMetrics).0, "_created", labels, None, |text| {
        write!(text, "{}.{:03}", since.as_secs(), since.subsec_millis())
    });
}

fn write_sample(
    text: &mut String,
    name: &str,
    suffix: &str,
    labels: &str,
    bound: Option<(&str, Format)>,
    value: impl FnOnce(&mut String) -> fmt::Result,
) {
    text.push_str(name);
    text.push_str(suffix);
    if !labels.is_empty() || bound.is_some() {
        text.push('{');
        text.push_str(labels);
        if let Some((bound, format)) = bound {
            text.push_str(if labels.is_empty() { "le=\"" } else { ",le=\"" });
            label_text::push_escaped(text, bound);
            let is_whole = !bound.is_empty() && bound.bytes().all(|byte| byte.is_ascii_digit());
            text.push_str(if is_whole && format == Format::OpenMetrics { ".0\"" } else { "\"" });
        }
        text.push('}');
    }
    text.push(' ');
    let _ = value(text);
    text.push('\n');
}

fn write_real(text: &mut String, value: f64) -> fmt::Result {
    match value {
        f64::INFINITY => text.write_str("+Inf"),
        f64::NEG_INFINITY => text.write_str("-Inf"),
        value => write!(text, "{value}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Inputs, Model, SelfMetrics, fixture,
        identity::{Role, Workload},
        workload_index::StaticPeers,
    };
    use observer_common::{Leg, Protocol};
    use proptest::prelude::*;
    use std::time::Duration;

    fn exposition(snapshot: &Arc<Snapshot>, format: Format) -> String {
        let pieces: Vec<Bytes> = Exposition::new(snapshot.clone(), format).collect();
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
            let rest = rest.collect::<String>();
            let value = rest.split(" # ").next().expect("a value").parse().unwrap();
            samples.push(Sample { name, labels, value });
        }
        samples
    }

    #[test]
    fn the_pages_are_the_golden_ones() {
        let [_, snapshot] = fixture::snapshots();
        fixture::assert_golden("metrics.prom", &exposition(&snapshot, Format::Text));
        fixture::assert_golden("metrics.openmetrics", &exposition(&snapshot, Format::OpenMetrics));
    }

    #[test]
    fn both_formats_say_the_same() {
        let [_, snapshot] = fixture::snapshots();
        let normal = |format| {
            let mut samples = parse(&exposition(&snapshot, format));
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
        let samples = parse(&exposition(&snapshot, Format::Text));
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
    fn exemplars_stand_behind_the_buckets_of_their_durations() {
        let [_, snapshot] = fixture::snapshots();
        assert!(!exposition(&snapshot, Format::Text).contains(" # {"));
        let open_metrics = exposition(&snapshot, Format::OpenMetrics);
        let lines: Vec<_> = open_metrics.lines().filter_map(|line| line.split_once(" # {")).collect();
        assert_eq!(lines.len(), 2);
        let (_, exemplars) = fixture::exemplars(2);
        for ((sample, own), exemplar) in lines.into_iter().zip(exemplars) {
            assert!(sample.starts_with("istio_request_duration_milliseconds_bucket{"), "{sample}");
            let bound: f64 =
                sample.split("le=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap().parse().unwrap();
            assert!(exemplar.milliseconds() <= bound, "{sample}");
            assert!(own.contains(&exemplar.trace_text()) && own.contains(&exemplar.span_text()), "{own}");
        }
    }

    #[test]
    fn times_of_creation_are_there_on_request() {
        let [_, snapshot] = fixture::snapshots();
        let exposition = |query: Option<(&str, &str)>| {
            let pieces = Exposition::of(
                snapshot.clone(),
                Format::OpenMetrics,
                Selection::of(query.into_iter().map(|(key, value)| (key.into(), value.into()))),
            );
            String::from_utf8(pieces.collect::<Vec<_>>().concat()).unwrap()
        };
        let (with, without) = (exposition(Some(("created", "true"))), exposition(None));
        assert!(with.contains("_created{") && !without.contains("_created"));
        let rest: String = with.split_inclusive('\n').filter(|line| !line.contains("_created")).collect();
        assert_eq!(without, rest);
        assert_eq!(exposition(Some(("created", "false"))), without);
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
                peers: &Arc::new(StaticPeers::default()),
                own: &SelfMetrics::default(),
                closes_interval: false,
            });
            let format = if openmetrics { Format::OpenMetrics } else { Format::Text };
            let samples = parse(&exposition(&snapshot, format));
            let istio: Vec<_> = samples.iter().filter(|own| own.name.starts_with("istio_")).collect();
            prop_assert!(!istio.is_empty());
            for sample in &istio {
                let label = |key: &str| sample.labels.iter().find(|own| own.0 == key).map(|own| own.1.as_str());
                prop_assert_eq!(label("source_app"), Some(app.as_str()));
                prop_assert_eq!(label("source_workload"), Some(name.as_str()));
            }
            let name = crate::catalogue::TCP_RECEIVED_BYTES.prometheus_name;
            let received = istio.iter().find(|sample| sample.name == name);
            #[expect(clippy::cast_precision_loss, reason = "as the parser reads it")]
            let expected = bytes as f64;
            prop_assert_eq!(received.map(|sample| sample.value), Some(expected));
        }
    }
}
