//! `observer snapshot`: observes for a while, and prints what was counted.

use std::{
    io::{self, Write},
    sync::Arc,
    time::SystemTime,
};

use anyhow::{Context, Result};
use serde_json::{Map, Value as Json, json};

use super::{
    args::{RunArgs, SnapshotArgs, SnapshotFormat},
    outcome::{Failure, block_on, configure, drop_privileges},
};
use crate::{
    app,
    emit::{
        Encoder,
        prometheus::{Format, Page},
        wavefront::Lines,
    },
    model::{
        Point, Snapshot, Value,
        control_plane::ScrapedLine,
        histogram::{LE, QUANTILES},
        page::Suffix,
    },
    system::host::node_name,
};

/// Observes and prints.
///
/// # Errors
/// The observer cannot start, or standard output cannot be written.
pub fn run(args: SnapshotArgs) -> Result<(), Failure> {
    let SnapshotArgs { length, format, wavefront_names, node } = args;
    let config = configure(&RunArgs { wavefront_names, node, ..RunArgs::default() })?;
    drop_privileges()?;
    // Invalid options of Wavefront are found before observing.
    let lines = Lines::new(config.wavefront(), &node_name());
    let lines = (format == SnapshotFormat::Wavefront).then_some(lines).transpose();
    let lines = lines.map_err(|error| Failure::wrong_usage(error.into()))?;
    block_on(async {
        let snapshot = app::snapshot(&config, length.0).await?;
        print(&mut io::stdout().lock(), snapshot, format, lines).context("standard output cannot be written")
    })
}

fn print(output: &mut impl Write, snapshot: Arc<Snapshot>, format: SnapshotFormat, lines: Option<Lines>) -> Result<()> {
    match format {
        SnapshotFormat::Prometheus => {
            Page::new(snapshot, Format::Text).try_for_each(|piece| output.write_all(&piece))?
        }
        SnapshotFormat::Wavefront => {
            let mut lines = lines;
            for batch in lines.iter_mut().flat_map(|lines| lines.encode(snapshot.clone())) {
                output.write_all(&batch.text)?;
            }
        }
        SnapshotFormat::Json => {
            serde_json::to_writer_pretty(&mut *output, &document(&snapshot))?;
            output.write_all(b"\n")?;
        }
    }
    Ok(output.flush()?)
}

/// Names as in Prometheus; times in seconds since 1970; buckets cumulative, as there.
fn document(snapshot: &Snapshot) -> Json {
    let families = snapshot.families().map(|points| {
        let family = points.family;
        json!({
            "name": family.prometheus_name,
            "documented_name": family.documented_name,
            "type": family.kind.word(),
            "unit": family.unit,
            "points": points.iter().map(|point| json_point(&point)).collect::<Vec<_>>(),
        })
    });
    let scraped = snapshot.control_plane.families().map(|family| {
        json!({
            "name": family.name(),
            "documented_name": family.documented_name(Suffix::None),
            "type": format!("{:?}", family.kind()).to_lowercase(),
            "unit": family.unit(),
            "points": family.lines().map(|line| json_line(&line)).collect::<Vec<_>>(),
        })
    });
    let families = families.chain(scraped);
    json!({
        "at": seconds(snapshot.at),
        "interval_seconds": snapshot.interval.map(|interval| interval.as_secs_f64()),
        "families": families.collect::<Vec<_>>(),
    })
}

fn json_point(point: &Point<'_>) -> Json {
    let mut labels = Map::new();
    point.labels.each(|name, value| {
        labels.insert(name.to_owned(), value.into());
    });
    let mut json = Map::from_iter([("labels".to_owned(), labels.into())]);
    match &point.value {
        Value::Integer(value) => json.insert("value".to_owned(), (*value).into()),
        Value::Real(value) => json.insert("value".to_owned(), (*value).into()),
        Value::Histogram(histogram) => {
            let buckets = LE.into_iter().zip(histogram.cumulative()).map(|(le, count)| (le.to_owned(), count.into()));
            json.insert("buckets".to_owned(), Map::from_iter(buckets).into());
            json.insert("sum".to_owned(), histogram.sum().into());
            let quantiles = QUANTILES.into_iter().zip(histogram.quantiles().into_iter().flatten());
            for ((name, _), value) in quantiles {
                json.insert(name.to_owned(), value.into());
            }
            json.insert("count".to_owned(), histogram.count().into())
        }
        Value::Lateness(lateness) => {
            let buckets = lateness.buckets().map(|(le, count)| (le.to_owned(), count.into()));
            json.insert("buckets".to_owned(), Map::from_iter(buckets).into());
            json.insert("sum".to_owned(), lateness.sum().into());
            json.insert("count".to_owned(), lateness.count().into())
        }
    };
    json.into()
}

/// Formats a sample as it was scraped: buckets, sums and counts are samples of their own, distinguished by the suffix.
fn json_line(line: &ScrapedLine<'_>) -> Json {
    let mut labels = Map::new();
    line.each(|name, value| {
        labels.insert(name.to_owned(), value.into());
    });
    if let Some(bound) = line.bound {
        labels.insert("le".to_owned(), bound.into());
    }
    json!({ "labels": labels, "suffix": line.suffix.text(), "value": line.value })
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        emit::wavefront::Options,
        model::{catalogue::REQUESTS, fixture},
    };

    fn printed(format: SnapshotFormat) -> String {
        let snapshot = fixture::snapshots()[1].clone();
        let mut output = Vec::new();
        let lines = Lines::new(Options::default(), "node").unwrap();
        print(&mut output, snapshot, format, Some(lines)).unwrap();
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn prints_every_format() {
        let head = format!("# TYPE {} counter\n", REQUESTS.prometheus_name);
        assert!(printed(SnapshotFormat::Prometheus).contains(&head));
        assert!(printed(SnapshotFormat::Wavefront).contains(REQUESTS.documented_name));
    }

    #[test]
    fn json_holds_what_prometheus_holds() {
        let document: Json = serde_json::from_str(&printed(SnapshotFormat::Json)).unwrap();
        let families = document["families"].as_array().unwrap();
        let requests = &families[0];
        assert_eq!(requests["type"], "counter");
        assert!(requests["points"][0]["value"].as_u64().unwrap() > 0);
        assert_eq!(requests["points"][0]["labels"].as_object().unwrap().len(), 25);
        let duration = &families[1]["points"][0];
        assert_eq!(duration["buckets"]["+Inf"], duration["count"]);
        assert!(duration["p99"].is_number());
    }
}
