//! Families other than Istio's, as they are shown: labels by name, totals with their rates.

use serde::Serialize;
use serde_json::{Map, Value as Json};

use super::rates::Rates;
use crate::{
    Family, Labels, MESH_FAMILIES, Point, Snapshot, Value,
    catalogue::{self, Descriptor},
    exposition::MetricType,
    scraped::Suffix,
};

/// Maximum number of points that are shown of a family.
const MAX_POINTS: usize = 200;

/// A point, as shown.
#[derive(Debug, Serialize)]
pub(super) struct PointView {
    pub(super) labels: Map<String, Json>,
    pub(super) value: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) per_second: Option<f64>,
}

impl PointView {
    /// Returns the value of a label; nothing if it is absent.
    pub(super) fn label(&self, name: &str) -> &str {
        self.labels.get(name).and_then(Json::as_str).unwrap_or_default()
    }
}

/// Passes every counter of the catalogue to `each`: name, labels, value. Histograms count by their number of values.
pub(super) fn counters(snapshot: &Snapshot, mut each: impl FnMut(&str, &str, f64)) {
    let mut text = String::new();
    for family in snapshot.families().skip(MESH_FAMILIES).filter(|family| has_rates(*family)) {
        for point in family.points() {
            let Some(value) = counted(&point) else { continue };
            text.clear();
            point.labels.write(&mut text);
            each(family.name(), &text, value);
        }
    }
}

fn has_rates(family: Family<'_>) -> bool {
    family.metric_type() != MetricType::Gauge && catalogue::by_prometheus_name(family.name()).is_some()
}

/// Returns the number, or a histogram's number of values.
#[expect(clippy::cast_precision_loss, reason = "shown, and written as a double in JSON")]
fn counted(point: &Point<'_>) -> Option<f64> {
    match point.value {
        Value::Integer(value) => Some(value as f64),
        Value::Real(value) | Value::Sample { suffix: Suffix::None | Suffix::Count, value, .. } => Some(value),
        Value::Histogram(histogram) => Some(histogram.count() as f64),
        Value::Sample { .. } => None,
    }
}

/// Returns the points of a family, without buckets and sums.
pub(super) fn points(family: Family<'_>, rates: &Rates) -> Vec<PointView> {
    let has_rates = has_rates(family);
    let mut text = String::new();
    let views = family.points().filter_map(|point| {
        let value = counted(&point)?;
        text.clear();
        point.labels.write(&mut text);
        let per_second = if has_rates { rates.get(family.name(), &text) } else { None };
        Some(PointView { labels: labels(&point.labels), value, per_second })
    });
    views.take(MAX_POINTS).collect()
}

/// Returns the family of a snapshot.
pub(super) fn find<'a>(snapshot: &'a Snapshot, descriptor: &Descriptor) -> Option<Family<'a>> {
    snapshot.families().skip(MESH_FAMILIES).find(|family| family.name() == descriptor.prometheus_name)
}

/// Returns the points of a family of the snapshot; none if it has none.
pub(super) fn points_of(snapshot: &Snapshot, descriptor: &Descriptor, rates: &Rates) -> Vec<PointView> {
    find(snapshot, descriptor).map(|family| points(family, rates)).unwrap_or_default()
}

/// Returns the only point of a family.
pub(super) fn single(snapshot: &Snapshot, descriptor: &Descriptor, rates: &Rates) -> Option<PointView> {
    points_of(snapshot, descriptor, rates).into_iter().next()
}

fn labels(labels: &Labels<'_>) -> Map<String, Json> {
    let mut map = Map::new();
    labels.each(|name, value| drop(map.insert(name.to_owned(), value.into())));
    map
}
