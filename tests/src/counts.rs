//! Counts of requests, messages and connections, in which access log and observer are compared.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::RangeInclusive,
};

use crate::{
    difference::{Difference, Differences},
    schedule::Times,
};

/// Envoy's own work for a request between its timestamp and the packet: reading further bytes, encryption,
/// a handshake, writing. In milliseconds, on average of a case; more if its threads ran for longer.
const WORK_MS: f64 = 0.7;
/// Difference of the clocks, and truncation of both to microseconds. In milliseconds per request.
const CLOCKS_MS: f64 = 0.05;

/// Reporter and workload: one side of a connection with its application.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Leg {
    /// `source` or `destination`.
    pub reporter: String,
    /// Workload of the reporting sidecar.
    pub workload: String,
}

/// Protocol and status of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Outcome {
    /// Response code, `0` if there was none.
    pub code: String,
    /// gRPC, by the request's content type.
    pub grpc: bool,
    /// gRPC status, empty if there was none.
    pub grpc_status: String,
}

/// Totals of the HTTP requests of one leg and outcome.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Requests {
    /// Number of requests.
    pub count: u64,
    /// Wire bytes of the requests.
    pub request_bytes: u64,
    /// Of them, the most that the sidecar may have sent after the last byte of the response; 0 if unknown.
    pub late_bytes: u64,
    /// Wire bytes of the responses.
    pub response_bytes: u64,
    /// Of the requests, those that ended without the last byte of an answer; set in expected counts only.
    pub given_up: u64,
    /// Sum of the durations in milliseconds; `None` where the counting side's own are known to be off.
    pub duration_ms: Option<f64>,
}

/// Totals of the gRPC messages of one leg.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Messages {
    /// Client to server.
    pub requests: u64,
    /// Server to client.
    pub responses: u64,
}

/// Totals of the TCP connections of one leg.
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

/// Reasons for which Envoy's timestamps may be late.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Late {
    /// Times of its threads.
    pub times: Times,
    /// Most requests that were under way at a time.
    pub under_way: u64,
}

/// Requests by leg and outcome, messages and connections by leg.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts {
    /// HTTP and gRPC, by leg and outcome.
    pub requests: BTreeMap<(Leg, Outcome), Requests>,
    /// gRPC messages, by leg.
    pub messages: BTreeMap<Leg, Messages>,
    /// TCP, by leg.
    pub connections: BTreeMap<Leg, Connections>,
    /// Counted requests whose status could not be read; 0 is expected.
    pub unknown: u64,
    /// Reasons for late timestamps by leg; set in expected counts only.
    pub late: BTreeMap<Leg, Late>,
}

impl Leg {
    /// Returns the leg at the client's sidecar.
    pub fn source(workload: &str) -> Self {
        Self { reporter: "source".to_owned(), workload: workload.to_owned() }
    }

    /// Returns the leg at the server's sidecar.
    pub fn destination(workload: &str) -> Self {
        Self { reporter: "destination".to_owned(), workload: workload.to_owned() }
    }
}

impl Outcome {
    /// Returns the outcome of a gRPC call.
    pub fn grpc(code: &str, status: &str) -> Self {
        Self { code: code.to_owned(), grpc: true, grpc_status: status.to_owned() }
    }
}

/// An outcome that is not a gRPC call, by its response code.
impl From<&str> for Outcome {
    fn from(code: &str) -> Self {
        Self { code: code.to_owned(), ..Self::default() }
    }
}

impl Counts {
    /// Returns the requests of one leg and outcome.
    pub fn of(&mut self, leg: &Leg, outcome: impl Into<Outcome>) -> &mut Requests {
        self.requests.entry((leg.clone(), outcome.into())).or_default()
    }

    /// Takes the requests of one leg and outcome out.
    pub fn take(&mut self, leg: &Leg, outcome: impl Into<Outcome>) -> Requests {
        self.requests.remove(&(leg.clone(), outcome.into())).unwrap_or_default()
    }

    /// Returns the number of requests of one leg and outcome.
    pub fn count(&self, leg: &Leg, outcome: impl Into<Outcome>) -> u64 {
        self.requests.get(&(leg.clone(), outcome.into())).map_or(0, |requests| requests.count)
    }

    /// Returns the requests of one leg, whatever their outcome, without their durations.
    pub fn all(&self, leg: &Leg) -> Requests {
        self.requests.iter().filter(|((of, _), _)| of == leg).fold(Requests::default(), |sum, (_, requests)| Requests {
            count: sum.count + requests.count,
            request_bytes: sum.request_bytes + requests.request_bytes,
            late_bytes: sum.late_bytes + requests.late_bytes,
            given_up: 0,
            response_bytes: sum.response_bytes + requests.response_bytes,
            duration_ms: None,
        })
    }

    /// Returns the number of all requests of one leg.
    pub fn total(&self, leg: &Leg) -> u64 {
        self.all(leg).count
    }

    /// Returns the increase since `before`, without entries that did not change.
    ///
    /// # Panics
    ///
    /// If anything went back, or is no longer there: no counter may.
    pub fn since(&self, before: &Self) -> Self {
        let mut difference =
            Self { unknown: grown(&"unknown status", self.unknown, before.unknown), ..Self::default() };
        for (key, then, now) in both(&before.requests, &self.requests) {
            if now == then {
                continue;
            }
            let what = format!("{} {}", key.0, key.1);
            let moved = Requests {
                count: grown(&what, now.count, then.count),
                request_bytes: grown(&what, now.request_bytes, then.request_bytes),
                late_bytes: now.late_bytes,
                given_up: now.given_up,
                response_bytes: grown(&what, now.response_bytes, then.response_bytes),
                duration_ms: now.duration_ms.map(|sum| {
                    let before = then.duration_ms.unwrap_or(0.0);
                    assert!(sum >= before, "{what}: the sum of durations went back from {before} ms to {sum} ms");
                    sum - before
                }),
            };
            difference.requests.insert(key.clone(), moved);
        }
        for (leg, then, now) in both(&before.messages, &self.messages) {
            if now != then {
                let moved = Messages {
                    requests: grown(leg, now.requests, then.requests),
                    responses: grown(leg, now.responses, then.responses),
                };
                difference.messages.insert(leg.clone(), moved);
            }
        }
        for (leg, then, now) in both(&before.connections, &self.connections) {
            if now != then {
                let moved = Connections {
                    opened: grown(leg, now.opened, then.opened),
                    closed: grown(leg, now.closed, then.closed),
                    received: grown(leg, now.received, then.received),
                    sent: grown(leg, now.sent, then.sent),
                };
                difference.connections.insert(leg.clone(), moved);
            }
        }
        difference
    }

    /// Returns every difference of `observed` from `self`, the expected counts: codes, statuses, bytes and messages
    /// must be equal, and sums of durations as close as [`Counts::tolerance`] says.
    pub fn differences(&self, observed: &Self) -> Differences {
        let mut found = Vec::new();
        let mut compare = |what: String, truth: u64, observed: u64| {
            if truth != observed {
                found.push(Difference::Count { what, truth, observed });
            }
        };
        compare("requests of unknown status".to_owned(), self.unknown, observed.unknown);
        for (leg, truth, seen) in both(&self.connections, &observed.connections) {
            compare(format!("{leg} tcp opened"), truth.opened, seen.opened);
            compare(format!("{leg} tcp closed"), truth.closed, seen.closed);
            compare(format!("{leg} tcp received"), truth.received, seen.received);
            compare(format!("{leg} tcp sent"), truth.sent, seen.sent);
        }
        for (leg, truth, seen) in both(&self.messages, &observed.messages) {
            compare(format!("{leg} request messages"), truth.requests, seen.requests);
            compare(format!("{leg} response messages"), truth.responses, seen.responses);
        }
        let mut durations = Vec::new();
        for ((leg, outcome), truth, seen) in both(&self.requests, &observed.requests) {
            compare(format!("{leg} {outcome} requests"), truth.count, seen.count);
            let late = truth.request_bytes.saturating_sub(seen.request_bytes);
            let in_time = if late <= truth.late_bytes { truth.request_bytes - late } else { truth.request_bytes };
            compare(format!("{leg} {outcome} request bytes"), in_time, seen.request_bytes);
            compare(format!("{leg} {outcome} response bytes"), truth.response_bytes, seen.response_bytes);
            if let (Some(truth_ms), Some(seen_ms)) = (truth.duration_ms, seen.duration_ms) {
                let tolerance = self.tolerance(leg, &truth);
                if !tolerance.contains(&(seen_ms - truth_ms)) {
                    durations.push(Difference::Durations {
                        what: format!("{leg} {outcome}"),
                        requests: truth.count,
                        truth_ms,
                        observed_ms: seen_ms,
                        tolerance,
                    });
                }
            }
        }
        found.extend(durations);
        Differences(found)
    }

    /// Returns by how much a sum of `count` durations may exceed the access log's, in milliseconds.
    ///
    /// Envoy takes the time when it runs, the observer when the packet passes. A request comes before Envoy reads it,
    /// and Envoy has finished with an answer before it writes it: the observer's durations are longer at the source,
    /// and shorter at the destination, never the other way round. Between the two times its threads run, or wait for a
    /// processor, for all the requests that are under way: that bounds the difference, on a slow machine too.
    /// Of a request that was given up it may be either that sees the end first.
    fn tolerance(&self, leg: &Leg, truth: &Requests) -> RangeInclusive<f64> {
        let Late { times: Times { ran, waited }, under_way } = self.late.get(leg).copied().unwrap_or_default();
        let [ran, waited] = [ran, waited].map(|time| time.as_secs_f64() * 1000.0);
        let late = as_f64(under_way.max(1)) * (ran.max(WORK_MS * as_f64(truth.count)) + waited);
        let early = if truth.given_up > 0 { late } else { CLOCKS_MS * as_f64(truth.count) };
        if leg.reporter == "source" { -early..=late } else { -late..=early }
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

/// One short line.
impl fmt::Display for Counts {
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

/// Returns every key of one or the other, with the value of each.
fn both<'a, K: Ord, V: Clone + Default>(
    one: &'a BTreeMap<K, V>,
    other: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, V, V)> {
    let keys: BTreeSet<&K> = one.keys().chain(other.keys()).collect();
    let of = |map: &BTreeMap<K, V>, key: &K| map.get(key).cloned().unwrap_or_default();
    keys.into_iter().map(move |key| (key, of(one, key), of(other, key)))
}

fn grown(what: &dyn fmt::Display, now: u64, then: u64) -> u64 {
    now.checked_sub(then).unwrap_or_else(|| panic!("{what}: a counter went back from {then} to {now}"))
}

/// Counts of a test are far below 2^53.
#[expect(clippy::cast_precision_loss, reason = "see above")]
fn as_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_status_that_could_not_be_read_is_a_difference() {
        let (before, after) = (Counts { unknown: 2, ..Counts::default() }, Counts { unknown: 3, ..Counts::default() });
        let differences = Counts::default().differences(&after.since(&before));
        assert_eq!(differences.to_string(), "requests of unknown status: 1 instead of 0");
        assert!(Counts::default().differences(&after.since(&after)).is_empty());
    }

    /// Returns counts with one of everything.
    fn some() -> Counts {
        let leg = Leg::source("a");
        let requests =
            Requests { count: 5, request_bytes: 10, response_bytes: 20, duration_ms: Some(1.5), ..Requests::default() };
        let connections = Connections { opened: 3, closed: 2, received: 7, sent: 9 };
        Counts {
            requests: [((leg.clone(), "200".into()), requests)].into(),
            messages: [(leg.clone(), Messages { requests: 4, responses: 6 })].into(),
            connections: [(leg, connections)].into(),
            unknown: 1,
            late: BTreeMap::new(),
        }
    }

    /// Returns copies, each with one field reduced or removed.
    fn less() -> Vec<Counts> {
        let changes: [fn(&mut Counts); 13] = [
            |counts| counts.unknown -= 1,
            |counts| counts.requests.clear(),
            |counts| counts.requests.values_mut().for_each(|requests| requests.count -= 1),
            |counts| counts.requests.values_mut().for_each(|requests| requests.request_bytes -= 1),
            |counts| counts.requests.values_mut().for_each(|requests| requests.response_bytes -= 1),
            |counts| counts.messages.clear(),
            |counts| counts.messages.values_mut().for_each(|messages| messages.requests -= 1),
            |counts| counts.messages.values_mut().for_each(|messages| messages.responses -= 1),
            |counts| counts.connections.clear(),
            |counts| counts.connections.values_mut().for_each(|connections| connections.opened -= 1),
            |counts| counts.connections.values_mut().for_each(|connections| connections.closed -= 1),
            |counts| counts.connections.values_mut().for_each(|connections| connections.received -= 1),
            |counts| counts.connections.values_mut().for_each(|connections| connections.sent -= 1),
        ];
        let changed = changes.map(|change| {
            let mut counts = some();
            change(&mut counts);
            counts
        });
        changed.into()
    }

    #[test]
    fn a_counter_that_goes_back_is_a_failure() {
        assert_eq!(some().since(&some()), Counts::default());
        for less in less() {
            let went_back = std::panic::catch_unwind(|| less.since(&some()));
            assert!(went_back.is_err(), "{less:?}");
        }
    }

    #[test]
    fn whatever_only_one_has_is_a_difference() {
        assert!(some().differences(&some()).is_empty());
        for less in less() {
            assert!(!some().differences(&less).is_empty(), "{less:?} of {:?}", some());
            assert!(!less.differences(&some()).is_empty(), "{:?} of {less:?}", some());
        }
    }

    /// Returns whether a leg's durations are taken that are so many milliseconds a request more than the log's.
    fn are_taken(leg: &Leg, late: Late, given_up: u64, more: f64) -> bool {
        let of = |sum| {
            let requests = Requests { count: 100, given_up, duration_ms: Some(sum), ..Requests::default() };
            Counts { requests: [((leg.clone(), "200".into()), requests)].into(), ..Counts::default() }
        };
        let truth = Counts { late: [(leg.clone(), late)].into(), ..of(200.0) };
        let differences = truth.differences(&of(200.0 + more * 100.0));
        assert!(differences.is_empty() || differences.only_durations());
        differences.is_empty()
    }

    #[test]
    fn a_millisecond_too_many_or_too_few_is_a_difference() {
        let at_once = Late { times: Times::default(), under_way: 1 };
        for (leg, sign) in [(Leg::source("a"), 1.0), (Leg::destination("a"), -1.0)] {
            for (more, taken) in [(1.0, false), (0.5, true), (0.0, true), (-0.1, false), (-1.0, false)] {
                assert_eq!(are_taken(&leg, at_once, 0, sign * more), taken, "{leg} {more}");
            }
            assert!(are_taken(&leg, at_once, 1, -0.5 * sign) && !are_taken(&leg, at_once, 1, -sign));
        }
    }

    #[test]
    fn envoy_may_be_as_late_as_its_threads_waited_and_ran_and_never_early() {
        let (leg, waited) = (Leg::source("a"), Duration::from_millis(100));
        for (under_way, ran, most) in [(0, 0, 1.7), (1, 0, 1.7), (1, 70, 1.7), (1, 200, 3.0), (2, 0, 3.4)] {
            let late = Late { times: Times { ran: Duration::from_millis(ran), waited }, under_way };
            assert!(are_taken(&leg, late, 0, most - 0.01) && !are_taken(&leg, late, 0, most + 0.01), "{under_way}");
            assert!(!are_taken(&leg, late, 0, -0.1));
        }
        let however_late = Late { times: Times { waited: Duration::MAX, ..Times::default() }, under_way: 1 };
        assert!(are_taken(&leg, however_late, 0, 1e6) && !are_taken(&leg, however_late, 0, -0.1));
    }
}
