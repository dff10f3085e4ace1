//! JSON document of a snapshot, for `observer snapshot --format json`.

use serde_json::{Map, Value as Json, json};

use crate::{Family, Point, Snapshot, Value, histogram::QUANTILES, snapshot::unix_seconds};

/// Returns the document. Names are those of Prometheus, times are seconds since 1970, buckets are cumulative.
#[must_use]
pub fn document(snapshot: &Snapshot) -> Json {
    json!({
        "at": unix_seconds(snapshot.at),
        "interval_seconds": snapshot.interval.map(|interval| interval.as_secs_f64()),
        "families": snapshot.families().map(family).collect::<Vec<_>>(),
    })
}

fn family(family: Family<'_>) -> Json {
    json!({
        "name": family.name(),
        "documented_name": family.documented_name(),
        "type": family.metric_type().name(),
        "unit": family.unit(),
        "points": family.points().map(point).collect::<Vec<_>>(),
    })
}

fn point(point: Point<'_>) -> Json {
    let mut labels = Map::new();
    point.labels.each(|name, value| {
        labels.insert(name.to_owned(), value.into());
    });
    let mut json = Map::new();
    let mut insert = |name: &str, value: Json| drop(json.insert(name.to_owned(), value));
    match point.value {
        Value::Integer(value) => insert("value", value.into()),
        Value::Real(value) => insert("value", value.into()),
        Value::Sample { suffix, bound, value } => {
            if let Some(bound) = bound {
                labels.insert("le".to_owned(), bound.into());
            }
            insert("suffix", suffix.text().into());
            insert("value", value.into());
        }
        Value::Histogram(histogram) => {
            let buckets = histogram.buckets().map(|(bound, count)| (bound.to_owned(), count.into()));
            insert("buckets", Map::from_iter(buckets).into());
            insert("sum", histogram.sum().into());
            insert("count", histogram.count().into());
            for ((name, _), value) in QUANTILES.into_iter().zip(histogram.quantiles().into_iter().flatten()) {
                insert(name, value.into());
            }
        }
    }
    insert("labels", labels.into());
    json.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn a_document_has_what_prometheus_has() {
        let document = document(&fixture::snapshots()[1]);
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
