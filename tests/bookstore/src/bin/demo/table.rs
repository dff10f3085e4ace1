//! The table of callers and services, from two scrapes of `/metrics`.

use std::{collections::BTreeMap, fmt, time::Duration};

use harness::{
    counts::{Connections, Counts, Leg},
    exposition::{Exposition, Sample},
};

/// Caller, service, and kind of traffic.
type Edge = (String, String, &'static str);

/// One scrape, as reported by the clients' sidecars.
#[derive(Clone, Default)]
pub(crate) struct Scrape {
    http: BTreeMap<Edge, Http>,
    tcp: BTreeMap<Edge, Tcp>,
}

#[derive(Clone, Default)]
struct Http {
    requests: f64,
    errors: f64,
    /// Upper bounds in milliseconds and cumulative counts.
    durations: Vec<(f64, f64)>,
}

#[derive(Clone, Default)]
struct Tcp {
    opened: f64,
    closed: f64,
    bytes: f64,
}

impl Scrape {
    /// Reads the table's values from a scrape.
    pub(crate) fn of(exposition: &Exposition) -> Self {
        let mut scrape = Self::default();
        for sample in at_source(exposition, "istio_requests_total") {
            let http = scrape.http.entry(edge(sample)).or_default();
            http.requests += sample.value;
            if is_error(sample) {
                http.errors += sample.value;
            }
        }
        for sample in at_source(exposition, "istio_request_duration_milliseconds_bucket") {
            let bound = sample.label("le").parse().unwrap_or(f64::INFINITY);
            let durations = &mut scrape.http.entry(edge(sample)).or_default().durations;
            match durations.iter_mut().find(|(known, _)| *known == bound) {
                Some((_, count)) => *count += sample.value,
                None => durations.push((bound, sample.value)),
            }
        }
        for http in scrape.http.values_mut() {
            http.durations.sort_by(|a, b| a.0.total_cmp(&b.0));
        }
        type Field = fn(&mut Tcp) -> &mut f64;
        let families: [(&str, Field); 4] = [
            ("istio_tcp_connections_opened_total", |tcp| &mut tcp.opened),
            ("istio_tcp_connections_closed_total", |tcp| &mut tcp.closed),
            ("istio_tcp_received_bytes_total", |tcp| &mut tcp.bytes),
            ("istio_tcp_sent_bytes_total", |tcp| &mut tcp.bytes),
        ];
        for (family, field) in families {
            for sample in at_source(exposition, family) {
                *field(scrape.tcp.entry(edge(sample)).or_default()) += sample.value;
            }
        }
        scrape
    }

    /// Returns the difference to an earlier scrape.
    pub(crate) fn since(&self, before: &Self, elapsed: Duration) -> Flows {
        let seconds = elapsed.as_secs_f64().max(0.001);
        let http = self.http.iter().map(|(edge, now)| {
            let then = before.http.get(edge).cloned().unwrap_or_default();
            let requests = now.requests - then.requests;
            let durations: Vec<(f64, f64)> = now
                .durations
                .iter()
                .map(|(bound, count)| {
                    let earlier = then.durations.iter().find(|(known, _)| known == bound).map_or(0.0, |found| found.1);
                    (*bound, count - earlier)
                })
                .collect();
            Row {
                edge: edge.clone(),
                rate: requests / seconds,
                errors: (requests > 0.0).then(|| (now.errors - then.errors) / requests),
                percentiles: Some([0.50, 0.95, 0.99].map(|quantile| percentile(&durations, quantile))),
                bytes: None,
                open: None,
            }
        });
        let tcp = self.tcp.iter().map(|(edge, now)| {
            let then = before.tcp.get(edge).cloned().unwrap_or_default();
            Row {
                edge: edge.clone(),
                rate: (now.opened - then.opened) / seconds,
                errors: None,
                percentiles: None,
                bytes: Some((now.bytes - then.bytes) / seconds),
                open: Some(now.opened - now.closed),
            }
        });
        Flows { rows: http.chain(tcp).collect(), elapsed }
    }
}

fn at_source<'a>(exposition: &'a Exposition, family: &'a str) -> impl Iterator<Item = &'a Sample> {
    exposition.samples(family).filter(|sample| sample.label("reporter") == "source")
}

fn edge(sample: &Sample) -> Edge {
    let known = |label: &str| Some(sample.label(label)).filter(|value| !["", "unknown"].contains(value));
    let to = known("destination_service_name").or_else(|| known("destination_workload")).unwrap_or("unknown");
    let kind = match sample.label("request_protocol") {
        "grpc" => "gRPC",
        "tcp" => "TCP",
        _ => "HTTP",
    };
    (known("source_workload").unwrap_or("unknown").to_owned(), to.to_owned(), kind)
}

/// Returns the caller got no answer, or one that says the server failed; of gRPC, any status but OK.
fn is_error(sample: &Sample) -> bool {
    let (code, status) = (sample.label("response_code"), sample.label("grpc_response_status"));
    code == "0" || code.starts_with('5') || !["", "0"].contains(&status)
}

/// Interpolates linearly inside the buckets, as Prometheus does for Istio's dashboards, in milliseconds.
fn percentile(cumulative: &[(f64, f64)], quantile: f64) -> Option<f64> {
    let total = cumulative.last().map(|(_, count)| *count).filter(|total| *total > 0.0)?;
    let rank = quantile * total;
    let at = cumulative.iter().position(|(_, count)| *count >= rank)?;
    let (lower, below) = if at == 0 { (0.0, 0.0) } else { cumulative[at - 1] };
    let (upper, count) = cumulative[at];
    if upper.is_infinite() {
        return Some(lower);
    }
    Some(if count > below { lower + (upper - lower) * (rank - below) / (count - below) } else { upper })
}

/// Rates of callers and services over an interval.
pub(crate) struct Flows {
    rows: Vec<Row>,
    elapsed: Duration,
}

struct Row {
    edge: Edge,
    /// Requests or connections per second.
    rate: f64,
    /// Of the requests, 0 to 1; none without requests.
    errors: Option<f64>,
    /// 50th, 95th, 99th in milliseconds.
    percentiles: Option<[Option<f64>; 3]>,
    /// Bytes per second, both directions.
    bytes: Option<f64>,
    /// Connections open now.
    open: Option<f64>,
}

impl fmt::Display for Flows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |value: Option<f64>, unit: &str| value.map_or("-".to_owned(), |value| format!("{value:.1}{unit}"));
        let columns = ["RATE", "ERRORS", "p50", "p95", "p99", "OPEN", "BYTES"];
        write!(f, "{:<12} {:<12} {:<6}", "FROM", "TO", "KIND")?;
        columns.iter().try_for_each(|column| write!(f, "{column:>12}"))?;
        writeln!(f)?;
        for row in &self.rows {
            let (from, to, kind) = &row.edge;
            let [p50, p95, p99] = row.percentiles.unwrap_or_default().map(|value| number(value, " ms"));
            let errors = number(row.errors.map(|share| share * 100.0), " %");
            let open = row.open.map_or("-".to_owned(), |open| format!("{open:.0}"));
            let bytes = number(row.bytes.map(|bytes| bytes / 1000.0), " kB/s");
            let rate = number(Some(row.rate), " /s");
            write!(f, "{from:<12} {to:<12} {kind:<6}")?;
            [rate, errors, p50, p95, p99, open, bytes].iter().try_for_each(|cell| write!(f, "{cell:>12}"))?;
            writeln!(f)?;
        }
        let seconds = self.elapsed.as_secs_f64();
        writeln!(
            f,
            "\nover {seconds:.0} s; seen by the callers' sidecars; HTTP and gRPC: requests, TCP: connections\n\
             errors: 5xx, no answer, or a gRPC status that is not OK"
        )
    }
}

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
    fn percentiles_lie_inside_their_bucket() {
        let buckets = [(1.0, 50.0), (5.0, 90.0), (10.0, 100.0), (f64::INFINITY, 100.0)];
        assert_eq!(percentile(&buckets, 0.50), Some(1.0));
        assert_eq!(percentile(&buckets, 0.95), Some(7.5));
        assert_eq!(percentile(&[(1.0, 0.0), (f64::INFINITY, 0.0)], 0.5), None);
        assert_eq!(percentile(&[(1.0, 0.0), (f64::INFINITY, 4.0)], 0.5), Some(1.0));
    }

    #[test]
    fn two_scrapes_make_rates_and_shares() {
        let scrape = |good: u32, bad: u32| {
            let text = format!(
                "# TYPE istio_requests_total counter\n\
                 istio_requests_total{{reporter=\"source\",source_workload=\"a\",destination_service_name=\"b\",response_code=\"200\"}} {good}\n\
                 istio_requests_total{{reporter=\"source\",source_workload=\"a\",destination_service_name=\"b\",response_code=\"503\"}} {bad}\n\
                 istio_requests_total{{reporter=\"destination\",source_workload=\"a\",response_code=\"200\"}} 99\n"
            );
            Scrape::of(&Exposition::parse(&text).unwrap())
        };
        let flows = scrape(100, 20).since(&scrape(20, 0), Duration::from_secs(10));
        assert_eq!(flows.rows.len(), 1);
        assert_eq!((flows.rows[0].rate, flows.rows[0].errors), (10.0, Some(0.2)));
        assert!(flows.to_string().contains("a            b            HTTP       10.0 /s"), "{flows}");
    }

    #[test]
    fn a_grpc_status_that_is_not_ok_is_an_error() {
        let text = |ok: u32, refused: u32| {
            let labels = "reporter=\"source\",request_protocol=\"grpc\",response_code=\"200\"";
            format!(
                "# TYPE istio_requests_total counter\n\
                 istio_requests_total{{{labels},grpc_response_status=\"0\"}} {ok}\n\
                 istio_requests_total{{{labels},grpc_response_status=\"14\"}} {refused}\n"
            )
        };
        let scrape = |ok, refused| Scrape::of(&Exposition::parse(&text(ok, refused)).unwrap());
        let flows = scrape(31, 11).since(&scrape(1, 1), Duration::from_secs(10));
        assert_eq!((flows.rows[0].rate, flows.rows[0].errors), (4.0, Some(0.25)));
        assert!(flows.to_string().contains(" gRPC "), "{flows}");
    }

    #[test]
    fn the_summary_marks_what_differs() {
        let mut truth = Counts::default();
        truth.of(&Leg::source("a"), "200").count = 3;
        let text = summary(&truth, &Counts::default());
        assert!(text.lines().any(|line| line.contains("requests, 200") && line.ends_with("differs")), "{text}");
        assert!(!summary(&truth, &truth).contains("differs"));
    }
}
