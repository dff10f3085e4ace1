//! The control plane: its instances, and what they expose of the catalogue's families.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value as Json};

use super::{
    families::{self, PointView},
    rates::Rates,
};
use crate::{
    Family, Snapshot, Value,
    catalogue::{self, Descriptor, Origin},
    scraped::Suffix,
};

/// Percentiles that are shown of the control plane's histograms.
const QUANTILES: [(&str, f64); 3] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)];

/// The control plane, as shown.
#[derive(Debug, Serialize)]
pub(super) struct ControlPlane {
    instances: Vec<Instance>,
    families: Vec<FamilyView>,
}

#[derive(Debug, Serialize)]
struct Instance {
    #[serde(flatten)]
    labels: Map<String, Json>,
    up: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    scrape_seconds: Option<f64>,
}

#[derive(Debug, Serialize)]
struct FamilyView {
    name: &'static str,
    help: &'static str,
    unit: &'static str,
    #[serde(rename = "type")]
    kind: &'static str,
    points: Vec<PointView>,
    /// Upper bounds of the buckets that hold these percentiles since each instance began, over all instances.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    at_most: BTreeMap<&'static str, f64>,
}

pub(super) fn control_plane(snapshot: &Snapshot, rates: &Rates) -> ControlPlane {
    let seconds = families::points_of(snapshot, &catalogue::CONTROL_PLANE_SCRAPE_SECONDS, rates);
    let instances = families::points_of(snapshot, &catalogue::CONTROL_PLANE_UP, rates).into_iter().map(|up| {
        let scrape = seconds.iter().find(|own| own.labels == up.labels);
        Instance { up: up.value > 0.0, scrape_seconds: scrape.map(|own| own.value), labels: up.labels }
    });
    let shown = snapshot.families().filter_map(|family| {
        let descriptor = catalogue::by_prometheus_name(family.name())?;
        (descriptor.origin == Origin::Istiod).then(|| view(family, descriptor, rates))
    });
    ControlPlane { instances: instances.collect(), families: shown.filter(|own| !own.points.is_empty()).collect() }
}

fn view(family: Family<'_>, descriptor: &'static Descriptor, rates: &Rates) -> FamilyView {
    FamilyView {
        name: descriptor.prometheus_name,
        help: descriptor.help,
        unit: descriptor.unit,
        kind: descriptor.metric_type.name(),
        points: families::points(family, rates),
        at_most: quantile_bounds(family),
    }
}

/// Returns the bucket bounds at or below which the percentiles lie; none beyond the last finite bound.
fn quantile_bounds(family: Family<'_>) -> BTreeMap<&'static str, f64> {
    let mut buckets: Vec<(f64, f64)> = Vec::new();
    for point in family.points() {
        let Value::Sample { suffix: Suffix::Bucket, bound: Some(bound), value } = point.value else { continue };
        let Ok(bound) = bound.parse::<f64>() else { continue };
        match buckets.iter_mut().find(|(own, _)| own.total_cmp(&bound).is_eq()) {
            Some((_, count)) => *count += value,
            None => buckets.push((bound, value)),
        }
    }
    buckets.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let all = buckets.last().map_or(0.0, |(_, count)| *count);
    let bound = |quantile: f64| buckets.iter().find(|(_, count)| *count >= quantile * all).map(|(bound, _)| *bound);
    let known = QUANTILES.into_iter().filter_map(|(name, quantile)| Some((name, bound(quantile)?)));
    known.filter(|(_, bound)| all > 0.0 && bound.is_finite()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn percentiles_of_a_histogram_lie_at_or_below_a_bucket_of_all_instances() {
        let page = |low: u64, high: u64| {
            format!(
                "# TYPE pilot_proxy_convergence_time histogram\n\
                 pilot_proxy_convergence_time_bucket{{le=\"0.1\"}} {low}\n\
                 pilot_proxy_convergence_time_bucket{{le=\"0.5\"}} {high}\n\
                 pilot_proxy_convergence_time_bucket{{le=\"+Inf\"}} {high}\n\
                 pilot_proxy_convergence_time_sum 1\npilot_proxy_convergence_time_count {high}\n"
            )
        };
        let snapshot = fixture::snapshot_of(vec![
            fixture::scraped("10.0.0.8:15014", &page(60, 60)),
            fixture::scraped("10.0.0.9:15014", &page(20, 40)),
        ]);
        let family = families::find(&snapshot, &catalogue::PILOT_PROXY_CONVERGENCE_TIME).unwrap();
        let expected = [("p50", 0.1), ("p90", 0.5), ("p99", 0.5)];
        assert_eq!(quantile_bounds(family), expected.into_iter().collect());
    }
}
