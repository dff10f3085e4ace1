//! What deserves attention: what a snapshot shows, beside what the node itself reports.

use serde::Serialize;

use super::{families, rates::Rates};
use crate::{Snapshot, catalogue};

/// Share of the series map in use from which on it is reported.
const NEARLY_FULL: f64 = 0.9;

/// Weight of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Something is not observed, or will not be.
    Error,
    /// Something is observed incompletely.
    Warning,
    /// Good to know.
    Note,
}

/// One finding: what, and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Weight.
    pub level: Level,
    /// One sentence, with its remedy.
    pub text: String,
}

impl Finding {
    /// Returns a finding.
    #[must_use]
    pub fn new(level: Level, text: impl Into<String>) -> Self {
        Self { level, text: text.into() }
    }
}

/// Returns what a snapshot shows, the weightiest first.
pub(super) fn of_snapshot(snapshot: &Snapshot, rates: &Rates) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut found = |level, text: String| findings.push(Finding { level, text });
    let single = |descriptor| families::single(snapshot, descriptor, rates);
    let value = |descriptor| single(descriptor).map_or(0.0, |point| point.value);
    let sidecars = families::points_of(snapshot, &catalogue::SIDECARS, rates);
    if sidecars.iter().all(|role| role.value == 0.0) {
        found(
            Level::Error,
            "no sidecar or gateway is observed on this node; `observer check` lists what was found".to_owned(),
        );
    }
    let unattached = value(&catalogue::UNATTACHED);
    if unattached > 0.0 {
        found(
            Level::Error,
            format!("the eBPF programs cannot be attached to {unattached} sidecars; the log has the reason"),
        );
    }
    for up in families::points_of(snapshot, &catalogue::CONTROL_PLANE_UP, rates).iter().filter(|up| up.value == 0.0) {
        let (app, instance) = (up.label("app"), up.label("instance"));
        let text = format!("{app} at {instance} cannot be scraped; the log has the reason");
        found(Level::Error, text);
    }
    let (in_use, capacity) = (value(&catalogue::SERIES_IN_USE), value(&catalogue::SERIES_CAPACITY));
    if value(&catalogue::SERIES_OVERFLOWED) > 0.0 {
        let text = format!("all {capacity} series were in use: what came later has no labels; raise max_series");
        found(Level::Error, text);
    } else if capacity > 0.0 && in_use > NEARLY_FULL * capacity {
        found(Level::Warning, format!("{in_use} of {capacity} series are in use; raise max_series"));
    }
    for watch in families::points_of(snapshot, &catalogue::KUBERNETES_WATCHES, rates) {
        if watch.value == 0.0 {
            let resource = watch.label("resource");
            let text = format!("changes of {resource} are not known: no watch at the Kubernetes API is open");
            found(Level::Warning, text);
        }
    }
    let moving = |descriptor| {
        let points = families::points_of(snapshot, descriptor, rates);
        points.iter().filter_map(|point| point.per_second).sum::<f64>()
    };
    let dropped = moving(&catalogue::EMITTER_DROPPED) + moving(&catalogue::EMITTER_PUSHES_DROPPED);
    if dropped > 0.0 {
        found(Level::Error, "an emitter drops points; the log has the receiver's answer".to_owned());
    }
    if moving(&catalogue::UNCOUNTED) > 0.0 {
        found(
            Level::Warning,
            "the eBPF programs could not count everything in the last minute; see what is not seen".to_owned(),
        );
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn what_a_snapshot_shows_is_found() {
        let mut down = fixture::scraped("10.0.0.9:15014", "");
        down.exposition = None;
        let snapshot = fixture::snapshot_of(vec![down]);
        let findings = of_snapshot(&snapshot, &Rates::default());
        let texts: Vec<_> = findings.iter().map(|finding| finding.text.as_str()).collect();
        assert!(texts.iter().any(|text| text.starts_with("istiod at 10.0.0.9:15014 cannot be scraped")), "{texts:?}");
        assert!(texts.iter().any(|text| text.starts_with("all 16384 series were in use")), "{texts:?}");
        assert!(!texts.iter().any(|text| text.contains("no sidecar")), "{texts:?}");
    }
}
