//! The exposition parser against the reference parsers of both formats: on recordings of real control planes, and on
//! expositions that the reference implementation writes of random values. Every sample must be equal.

use std::{
    collections::BTreeMap,
    env, fs,
    path::PathBuf,
    process::{self, Command},
};

use anyhow::{Context, Result, ensure};
use harness::tools;
use observer_model::exposition::{Event, Format, Labels, MetricType, Parser, Part, Sample};
use serde_json::{Value, json};

const MADE_UP: u32 = 200;

#[test]
fn real_pages_read_as_the_reference_reads_them() -> Result<()> {
    let mut pages = Vec::new();
    for version in fs::read_dir(tools::repository().join("tests/fixtures/istiod"))? {
        let version = version?.path();
        for metrics in version.is_dir().then(|| fs::read_dir(&version)).transpose()?.into_iter().flatten() {
            pages.push(metrics?.path());
        }
    }
    ensure!(pages.len() > 80, "only {} pages", pages.len());
    compare(Format::Text, &pages)
}

#[test]
fn made_up_pages_read_as_the_reference_reads_them() -> Result<()> {
    let directory = env::temp_dir().join(format!("mesh-exposition-{}", process::id()));
    fs::create_dir_all(&directory)?;
    let pages: Vec<PathBuf> = (0..MADE_UP).map(|number| directory.join(number.to_string())).collect();
    for format in [Format::Text, Format::OpenMetrics] {
        reference("make", format, &pages)?;
        compare(format, &pages)?;
    }
    Ok(fs::remove_dir_all(directory)?)
}

fn compare(format: Format, pages: &[PathBuf]) -> Result<()> {
    let said = reference("parse", format, pages)?;
    ensure!(said.lines().count() == pages.len(), "the reference read {} pages", said.lines().count());
    for (metrics, theirs) in pages.iter().zip(said.lines()) {
        let theirs: Vec<Value> = serde_json::from_str(theirs)?;
        let ours = read(format, &fs::read(metrics)?).with_context(|| metrics.display().to_string())?;
        for (ours, theirs) in ours.iter().zip(&theirs) {
            ensure!(ours == theirs, "{}:\n{ours}\nreference:\n{theirs}", metrics.display());
        }
        ensure!(
            ours.len() == theirs.len(),
            "{}: {} samples, reference: {}",
            metrics.display(),
            ours.len(),
            theirs.len()
        );
    }
    Ok(())
}

fn read(format: Format, metrics: &[u8]) -> Result<Vec<Value>> {
    let (mut samples, mut problems) = (Vec::new(), Vec::new());
    let mut each = |event: Event<'_>| match event {
        Event::Sample(sample) => samples.push(said(format, &sample)),
        Event::Problem(problem) => problems.push(problem),
        _ => {}
    };
    let mut parser = Parser::new(format);
    metrics.chunks(1000).for_each(|piece| parser.feed(piece, &mut each));
    parser.finish(&mut each);
    ensure!(problems.is_empty(), "{problems:?}");
    Ok(samples)
}

/// Returns a sample in the reference's form.
fn said(format: Format, sample: &Sample<'_>) -> Value {
    let mut name = sample.name.to_owned();
    // The reference adds the suffix of OpenMetrics to counters of the text format.
    if format == Format::Text
        && sample.metric_type == MetricType::Counter
        && sample.part == Part::Value
        && !name.ends_with("_total")
    {
        name.push_str("_total");
    }
    let exemplar = sample.exemplar.map(|own| {
        json!({ "labels": labels(own.labels), "value": number(own.value), "timestamp": own.timestamp.map(number) })
    });
    json!({
        "name": name,
        "labels": labels(sample.labels),
        "value": number(sample.value),
        "timestamp": sample.timestamp.map(number),
        "exemplar": exemplar,
    })
}

fn labels(labels: Labels<'_>) -> BTreeMap<String, String> {
    labels.iter().map(|(name, value)| (name.plain().into_owned(), value.plain().into_owned())).collect()
}

/// Formats a number as Python does.
fn number(value: f64) -> String {
    let text = format!("{value:?}");
    let Some((digits, exponent)) = text.split_once('e') else { return text.replace("NaN", "nan") };
    let (sign, exponent) = exponent.strip_prefix('-').map_or(("+", exponent), |exponent| ("-", exponent));
    format!("{digits}e{sign}{exponent:0>2}")
}

fn reference(task: &str, format: Format, pages: &[PathBuf]) -> Result<String> {
    let script = tools::repository().join("tests/fixtures/reference_parser.py");
    let mut command = Command::new(tools::require("python3")?);
    command.arg(script).args([task, word(format)]).args(pages);
    command.env("PYTHONPATH", tools::cache().join("prometheus-client"));
    let output = command.output().context("python3")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{task}: {said} (is `cargo xtask setup` done?)");
    String::from_utf8(output.stdout).context("the reference writes UTF-8")
}

const fn word(format: Format) -> &'static str {
    match format {
        Format::Text => "text",
        Format::OpenMetrics => "openmetrics",
    }
}
