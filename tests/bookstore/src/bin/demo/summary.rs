//! The counts of Envoy's log beside the observer's, line by line.

use harness::counts::{Connections, Counts, Leg};

/// Compares the counts of Envoy's log with the observer's; messages are the client's own.
pub(crate) fn summary(truth: &Counts, observed: &Counts) -> String {
    let mut text = format!("{:<24} {:<22} {:>16} {:>16}\n", "SIDECAR", "COUNT", "ENVOY", "OBSERVER");
    let mut line = |leg: &Leg, name: &str, truth: u64, observed: u64| {
        let mark = if truth == observed { "" } else { "  differs" };
        text += &format!("{:<24} {name:<22} {truth:>16} {observed:>16}{mark}\n", leg.to_string());
    };
    let keys = |counts: &Counts| counts.requests.keys().cloned().collect::<Vec<_>>();
    for key in merged(keys(truth), keys(observed)) {
        let [envoy, ours] = [truth, observed].map(|counts| counts.requests.get(&key).cloned().unwrap_or_default());
        let (leg, outcome) = &key;
        line(leg, &format!("requests, {outcome}"), envoy.count, ours.count);
        line(leg, "  request bytes", envoy.request_bytes, ours.request_bytes);
        line(leg, "  response bytes", envoy.response_bytes, ours.response_bytes);
    }
    for (leg, expected) in &truth.messages {
        let ours = observed.messages.get(leg).cloned().unwrap_or_default();
        line(leg, "messages, requests*", expected.requests, ours.requests);
        line(leg, "messages, responses*", expected.responses, ours.responses);
    }
    let legs = |counts: &Counts| counts.connections.keys().cloned().collect::<Vec<_>>();
    for leg in merged(legs(truth), legs(observed)) {
        let [envoy, ours] = [truth, observed].map(|counts| counts.connections.get(&leg).cloned().unwrap_or_default());
        type Value = fn(&Connections) -> u64;
        let values: [(&str, Value); 4] = [
            ("connections opened", |connections| connections.opened),
            ("connections closed", |connections| connections.closed),
            ("  bytes received", |connections| connections.received),
            ("  bytes sent", |connections| connections.sent),
        ];
        for (name, of) in values {
            line(&leg, name, of(&envoy), of(&ours));
        }
    }
    if !truth.messages.is_empty() {
        text += "* messages are compared with the client's own count\n";
    }
    text
}

fn merged<T: Ord>(one: Vec<T>, other: Vec<T>) -> Vec<T> {
    let mut all: Vec<T> = one.into_iter().chain(other).collect();
    all.sort();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_marks_what_differs() {
        let mut truth = Counts::default();
        truth.of(&Leg::source("a"), "200").count = 3;
        let text = summary(&truth, &Counts::default());
        assert!(text.lines().any(|line| line.contains("requests, 200") && line.ends_with("differs")), "{text}");
        assert!(!summary(&truth, &truth).contains("differs"));
    }
}
