//! LimitWarnings that the kernel programs have run into: each is warnings once, with the remedy. The counters go on telling how often.

use observer_common::health::{Counter, Group};

use crate::model::catalogue;

/// What was warnings.
#[derive(Debug, Default)]
pub struct LimitWarnings(Vec<Counter>);

impl LimitWarnings {
    /// Returns warnings for limits that were reached since the last call.
    pub fn newly_reached(&mut self, health: &[(Counter, u64)]) -> Vec<String> {
        let reached = health.iter().filter(|(counter, value)| *value > 0 && !self.0.contains(counter));
        let new: Vec<_> = reached.filter_map(|&(counter, _)| Some((counter, remedy(counter)?))).collect();
        self.0.extend(new.iter().map(|(counter, _)| counter));
        new.into_iter().map(|(counter, text)| format!("{text} ({})", exposed(counter))).collect()
    }
}

/// Returns the series of the counter.
fn exposed(counter: Counter) -> String {
    let family = if counter.group() == Group::Requests { &catalogue::PARSED_REQUESTS } else { &catalogue::UNCOUNTED };
    let label = family.labels.first().unwrap_or(&"reason");
    format!("{}{{{label}=\"{}\"}}", family.prometheus_name, counter.label())
}

/// Returns the meaning and the remedy of a counter that counts the effects of a limit.
fn remedy(counter: Counter) -> Option<&'static str> {
    Some(match counter {
        Counter::LossStorage => {
            "the kernel had no room for the state of some connections, and they are not counted: raise the sysctl \
             net.core.optmem_max (131072 is enough), in the pod's network namespace where it has one of its own, or the \
             observer's memory limit"
        }
        Counter::LossSeries => {
            "max_series series are in use: what comes with further labels is counted together, without labels; raise max_series \
             in the configuration file"
        }
        Counter::LossPages => {
            "the cells for percentiles are used up: counts and buckets stay exact, percentiles lack some values; raise max_series \
             in the configuration file, which they grow with"
        }
        Counter::LossTables => {
            "the kernel had no room for a large header table: some statuses are unknown; raise the sysctl net.core.optmem_max \
             (131072 is enough)"
        }
        Counter::LossInbound => {
            "the table of inbound ports is full: connection_security_policy of some requests is unknown; the node has more than \
             8192 pairs of sidecar and port"
        }
        Counter::CallersFull => {
            "the table of callers is full: the callers of some requests are unknown; the sidecars of the node have more than 4096 \
             callers that were active in the last quarter of an hour"
        }
        Counter::LossPeers => {
            "the table of inbound peers is full: the workloads of some callers are unknown; the node has more than 16384 pairs of \
             inbound port and peer"
        }
        Counter::TracesFull => {
            "the table of sampled requests is full, or the kernel had no room for a connection's trace contexts: some sampled \
             requests are no exemplars; sample fewer, or raise the sysctl net.core.optmem_max (131072 is enough)"
        }
        Counter::SpansFull => {
            "more sampled requests have ended than the observer takes from the kernel, and the rest are no spans: sample fewer"
        }
        Counter::RequestNoRoom => {
            "more calls are open than there is room for, and the rest are not counted: raise max_open_calls in the configuration \
             file"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_logged_once_with_its_remedy_and_its_metric() {
        let mut limits = LimitWarnings::default();
        assert!(limits.newly_reached(&[(Counter::LossSeries, 0), (Counter::RequestOk, 7)]).is_empty());
        let warnings = limits.newly_reached(&[(Counter::LossSeries, 1), (Counter::RequestOk, 8)]);
        assert!(
            warnings.len() == 1 && warnings[0].contains("raise max_series") && warnings[0].contains("series_full"),
            "{warnings:?}"
        );
        assert!(limits.newly_reached(&[(Counter::LossSeries, 5)]).is_empty());
    }

    #[test]
    fn every_warning_is_documented() {
        for (counter, text) in Counter::ALL.iter().filter_map(|&counter| Some((counter, remedy(counter)?))) {
            let page = include_str!("../../../docs/troubleshooting.md");
            let line = page.lines().find(|line| line.starts_with(&format!("| `{}` | ", counter.label())));
            assert!(line.is_some(), "{counter:?} has no line: {text}");
            assert!(exposed(counter).ends_with(&format!("=\"{}\"}}", counter.label())));
        }
    }
}
