//! What was counted, by whoever counted it: the form in which referee and observer are compared.

use std::{collections::BTreeMap, fmt};

/// What a busy machine adds now and then to a single duration, on one side or the other: Envoy takes its time when it is
/// scheduled, the kernel when the packet comes. A case of a few requests says no more than this; percentiles of many are
/// held to the bar elsewhere.
const SLACK_MS: f64 = 10.0;

/// Requests are told apart by this.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Leg {
    /// `source` or `destination`.
    pub reporter: String,
    /// Workload of the reporting sidecar.
    pub workload: String,
}

/// What kind a request was, and how it ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Outcome {
    /// Response code, `0` if there was none.
    pub code: String,
    /// gRPC, by the request's content type.
    pub grpc: bool,
    /// gRPC status, empty if there was none.
    pub grpc_status: String,
}

/// What HTTP requests of one leg and outcome add up to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Requests {
    /// Number of requests.
    pub count: u64,
    /// Wire bytes of the requests.
    pub request_bytes: u64,
    /// Of them, at most so many that the sidecar sent after the last byte of the response had come; 0 where nothing is said.
    pub late_bytes: u64,
    /// Wire bytes of the responses.
    pub response_bytes: u64,
    /// Sum of the durations in milliseconds; `None` where the counting side's own are known to be off.
    pub duration_ms: Option<f64>,
}

/// What the gRPC messages of one leg add up to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Messages {
    /// Client to server.
    pub requests: u64,
    /// Server to client.
    pub responses: u64,
}

/// What TCP connections of one leg add up to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    /// Opened.
    pub opened: u64,
    /// Closed.
    pub closed: u64,
    /// Payload bytes client to server.
    pub received: u64,
    /// Payload bytes server to client.
    pub sent: u64,
}

/// Requests by leg and outcome, messages and connections by leg.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    /// HTTP and gRPC, by leg and outcome.
    pub requests: BTreeMap<(Leg, Outcome), Requests>,
    /// gRPC messages, by leg. Envoy's log does not have them: a truth says only those that a case knows of.
    pub messages: BTreeMap<Leg, Messages>,
    /// TCP, by leg.
    pub connections: BTreeMap<Leg, Connections>,
    /// Requests counted whose status could not be read: none, in truth.
    pub unknown: u64,
}

impl Leg {
    /// The client's side.
    pub fn source(workload: &str) -> Self {
        Self { reporter: "source".to_owned(), workload: workload.to_owned() }
    }

    /// The server's side.
    pub fn destination(workload: &str) -> Self {
        Self { reporter: "destination".to_owned(), workload: workload.to_owned() }
    }
}

impl Outcome {
    /// Of a gRPC call.
    pub fn grpc(code: &str, status: &str) -> Self {
        Self { code: code.to_owned(), grpc: true, grpc_status: status.to_owned() }
    }
}

/// Of a request that is no gRPC call, by its response code.
impl From<&str> for Outcome {
    fn from(code: &str) -> Self {
        Self { code: code.to_owned(), ..Self::default() }
    }
}

impl Tally {
    /// Requests of one leg and outcome.
    pub fn of(&mut self, leg: &Leg, outcome: impl Into<Outcome>) -> &mut Requests {
        self.requests.entry((leg.clone(), outcome.into())).or_default()
    }

    /// Takes the requests of one leg and outcome out.
    pub fn take(&mut self, leg: &Leg, outcome: impl Into<Outcome>) -> Requests {
        self.requests.remove(&(leg.clone(), outcome.into())).unwrap_or_default()
    }

    /// Number of requests of one leg and outcome.
    pub fn count(&self, leg: &Leg, outcome: impl Into<Outcome>) -> u64 {
        self.requests.get(&(leg.clone(), outcome.into())).map_or(0, |requests| requests.count)
    }

    /// The requests of one leg, whatever their outcome, without their durations.
    pub fn all(&self, leg: &Leg) -> Requests {
        self.requests.iter().filter(|((of, _), _)| of == leg).fold(Requests::default(), |sum, (_, requests)| Requests {
            count: sum.count + requests.count,
            request_bytes: sum.request_bytes + requests.request_bytes,
            late_bytes: sum.late_bytes + requests.late_bytes,
            response_bytes: sum.response_bytes + requests.response_bytes,
            duration_ms: None,
        })
    }

    /// Number of all requests of one leg.
    pub fn total(&self, leg: &Leg) -> u64 {
        self.all(leg).count
    }

    /// What came to it since `before`; what did not move is left out.
    pub fn since(&self, before: &Self) -> Self {
        let mut difference = Self { unknown: self.unknown.saturating_sub(before.unknown), ..Self::default() };
        for (key, now) in &self.requests {
            let then = before.requests.get(key).cloned().unwrap_or_default();
            let moved = Requests {
                count: now.count.saturating_sub(then.count),
                request_bytes: now.request_bytes.saturating_sub(then.request_bytes),
                late_bytes: now.late_bytes,
                response_bytes: now.response_bytes.saturating_sub(then.response_bytes),
                duration_ms: now.duration_ms.map(|sum| sum - then.duration_ms.unwrap_or(0.0)),
            };
            if *now != then {
                difference.requests.insert(key.clone(), moved);
            }
        }
        for (leg, now) in &self.messages {
            let then = before.messages.get(leg).cloned().unwrap_or_default();
            if *now != then {
                difference.messages.insert(
                    leg.clone(),
                    Messages {
                        requests: now.requests.saturating_sub(then.requests),
                        responses: now.responses.saturating_sub(then.responses),
                    },
                );
            }
        }
        for (key, now) in &self.connections {
            let then = before.connections.get(key).cloned().unwrap_or_default();
            if *now != then {
                difference.connections.insert(
                    key.clone(),
                    Connections {
                        opened: now.opened.saturating_sub(then.opened),
                        closed: now.closed.saturating_sub(then.closed),
                        received: now.received.saturating_sub(then.received),
                        sent: now.sent.saturating_sub(then.sent),
                    },
                );
            }
        }
        difference
    }

    /// Every way in which `observed` differs from `self`, the truth: counts, codes, statuses, bytes and the messages that are
    /// known must be equal, and sums of durations within 5 % or [`SLACK_MS`] a request.
    pub fn differences(&self, observed: &Self) -> Vec<String> {
        let mut found = Vec::new();
        let mut compare = |what: String, truth: u64, observed: u64| {
            if truth != observed {
                found.push(format!("{what}: {observed} instead of {truth}"));
            }
        };
        compare("requests of unknown status".to_owned(), self.unknown, observed.unknown);
        let legs = |tally: &Self| tally.connections.keys().cloned().collect::<Vec<_>>();
        for leg in union(legs(self), legs(observed)) {
            let [truth, seen] = [self, observed].map(|tally| tally.connections.get(&leg).cloned().unwrap_or_default());
            compare(format!("{leg} tcp opened"), truth.opened, seen.opened);
            compare(format!("{leg} tcp closed"), truth.closed, seen.closed);
            compare(format!("{leg} tcp received"), truth.received, seen.received);
            compare(format!("{leg} tcp sent"), truth.sent, seen.sent);
        }
        for (leg, truth) in &self.messages {
            let seen = observed.messages.get(leg).cloned().unwrap_or_default();
            compare(format!("{leg} request messages"), truth.requests, seen.requests);
            compare(format!("{leg} response messages"), truth.responses, seen.responses);
        }
        let keys = |tally: &Self| tally.requests.keys().cloned().collect::<Vec<_>>();
        let mut durations = Vec::new();
        for key in union(keys(self), keys(observed)) {
            let [truth, seen] = [self, observed].map(|tally| tally.requests.get(&key).cloned().unwrap_or_default());
            let (leg, outcome) = key;
            compare(format!("{leg} {outcome} requests"), truth.count, seen.count);
            let late = truth.request_bytes.saturating_sub(seen.request_bytes);
            let in_time = if late <= truth.late_bytes { truth.request_bytes - late } else { truth.request_bytes };
            compare(format!("{leg} {outcome} request bytes"), in_time, seen.request_bytes);
            compare(format!("{leg} {outcome} response bytes"), truth.response_bytes, seen.response_bytes);
            if let (Some(truth_ms), Some(seen_ms)) = (truth.duration_ms, seen.duration_ms)
                && (truth_ms - seen_ms).abs() > f64::max(truth_ms * 0.05, SLACK_MS * as_f64(truth.count))
            {
                durations.push(format!(
                    "{leg} {outcome} durations: {seen_ms:.3} ms in all instead of {truth_ms:.3} ms ({} requests)",
                    truth.count
                ));
            }
        }
        found.extend(durations);
        found
    }
}

impl fmt::Display for Leg {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}({})", self.reporter, self.workload)
    }
}

/// The response code; for gRPC the status behind it, `-` if there was none.
impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { code, grpc, grpc_status } = self;
        match (grpc, grpc_status.as_str()) {
            (false, _) => formatter.write_str(code),
            (true, "") => write!(formatter, "{code}/grpc -"),
            (true, status) => write!(formatter, "{code}/grpc {status}"),
        }
    }
}

/// One short line: what was counted.
impl fmt::Display for Tally {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let requests = self.requests.iter().map(|((leg, outcome), requests)| {
            let Requests { count, request_bytes, response_bytes, .. } = requests;
            format!("{leg} {outcome}: {count} ({request_bytes}/{response_bytes} B)")
        });
        let connections = self.connections.iter().map(|(leg, connections)| {
            let Connections { opened, closed, received, sent } = connections;
            format!("{leg} tcp: {opened}/{closed} ({received}/{sent} B)")
        });
        let messages = self
            .messages
            .iter()
            .map(|(leg, Messages { requests, responses })| format!("{leg} messages: {requests}/{responses}"));
        formatter.write_str(&requests.chain(messages).chain(connections).collect::<Vec<_>>().join(", "))
    }
}

fn union<T: Ord>(one: Vec<T>, other: Vec<T>) -> Vec<T> {
    let mut all: Vec<T> = one.into_iter().chain(other).collect();
    all.sort();
    all.dedup();
    all
}

/// Counts of a test are far below 2^53.
#[expect(clippy::cast_precision_loss, reason = "see above")]
fn as_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::Tally;

    #[test]
    fn a_status_that_could_not_be_read_is_a_difference() {
        let (before, after) = (Tally { unknown: 2, ..Tally::default() }, Tally { unknown: 3, ..Tally::default() });
        let differences = Tally::default().differences(&after.since(&before));
        assert_eq!(differences, ["requests of unknown status: 1 instead of 0"]);
        assert!(Tally::default().differences(&after.since(&after)).is_empty());
    }
}
