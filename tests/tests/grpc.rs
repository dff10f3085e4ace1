//! gRPC on sidecars, case by case: the observer against Envoy's access log, and both against the clients' reports.

use std::{collections::BTreeMap, process::ExitCode, thread::sleep, time::Duration};

use anyhow::{Context, Result, ensure};
use harness::{
    apps::grpc::Implementation::{self, Go, Java, Python},
    cases,
    counts::{Counts, Messages},
    mesh::Family,
    pair::{Expected, Pair, however_late, with_late_window_updates},
};

/// Each as the server of both others, and so each as a client of both, once over each family. Sidecars are between any
/// two: an end connects to those, whatever is behind them.
const MATCHES: [(Implementation, [(Implementation, Family); 2]); 3] = [
    (Go, [(Python, Family::V4), (Java, Family::V6)]),
    (Python, [(Java, Family::V4), (Go, Family::V6)]),
    (Java, [(Go, Family::V4), (Python, Family::V6)]),
];

fn main() -> ExitCode {
    cases::run(
        Pair::new,
        cases![
            unary,
            concurrent_calls,
            client_streaming,
            server_streaming,
            bidirectional_streaming,
            every_status,
            method_that_is_not_there,
            service_that_is_not_there,
            deadline_before_the_answer,
            deadline_inside_a_stream,
            cancelled_before_the_answer,
            cancelled_inside_a_stream,
            messages_of_5_mib,
            ten_thousand_metadata_values,
            compressed,
            keep_alive_pings,
            connections_of_limited_age,
        ],
    )
}

fn unary(pair: &mut Pair) -> Result<String> {
    calls(pair, "unary 20 100", None, Ends::Served)
}

fn concurrent_calls(pair: &mut Pair) -> Result<String> {
    calls(pair, "concurrent 150 1000", None, Ends::Served)
}

fn client_streaming(pair: &mut Pair) -> Result<String> {
    calls(pair, "collect 100 3000", None, Ends::Served)
}

fn server_streaming(pair: &mut Pair) -> Result<String> {
    calls(pair, "pour 100 3000", None, Ends::Served)
}

fn bidirectional_streaming(pair: &mut Pair) -> Result<String> {
    calls(pair, "talk 100 300", None, Ends::Served)
}

fn every_status(pair: &mut Pair) -> Result<String> {
    calls(pair, "statuses", None, Ends::Served)
}

fn method_that_is_not_there(pair: &mut Pair) -> Result<String> {
    calls(pair, "unknown", None, Ends::Served)
}

/// The proxy at the server answers for it.
fn service_that_is_not_there(pair: &mut Pair) -> Result<String> {
    let mut summary = Vec::new();
    for client in [Go, Python, Java] {
        let before = pair.begin()?;
        let reported = client.call(&pair.client, pair.http2.address(Family::V4), "unary 1")?;
        ensure!(reported.statuses.get("14") == Some(&1), "{reported:?}");
        let (truth, _) = pair.truth(&Expected::both(1))?;
        summary.push(pair.agree(&before, &truth)?);
    }
    Ok(summary.join("; "))
}

fn deadline_before_the_answer(pair: &mut Pair) -> Result<String> {
    calls(pair, "deadline 2", None, Ends::TooLate)
}

fn deadline_inside_a_stream(pair: &mut Pair) -> Result<String> {
    calls(pair, "deadline-stream", None, Ends::TooLate)
}

fn cancelled_before_the_answer(pair: &mut Pair) -> Result<String> {
    calls(pair, "cancel 2", None, Ends::GivenUp)
}

fn cancelled_inside_a_stream(pair: &mut Pair) -> Result<String> {
    calls(pair, "cancel-stream 5", None, Ends::GivenUp)
}

fn messages_of_5_mib(pair: &mut Pair) -> Result<String> {
    calls(pair, "unary 3 5242880", None, Ends::ServedMuch)
}

/// Three per call: the dynamic tables of both directions are overwritten many times.
fn ten_thousand_metadata_values(pair: &mut Pair) -> Result<String> {
    calls(pair, "churn 3334", None, Ends::Served)
}

fn compressed(pair: &mut Pair) -> Result<String> {
    calls(pair, "gzip 5 100000", None, Ends::Served)
}

fn keep_alive_pings(pair: &mut Pair) -> Result<String> {
    calls(pair, "pings 2", None, Ends::Served)
}

/// The server sends GOAWAY about once per second, and calls continue on the next connection.
fn connections_of_limited_age(pair: &mut Pair) -> Result<String> {
    calls(pair, "paced 30", Some(Duration::from_secs(1)), Ends::Served)
}

/// How a scenario's calls end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    /// With the server's status.
    Served,
    /// The same, after so much data that the window was updated meanwhile.
    ServedMuch,
    /// By the client, before there was one.
    GivenUp,
    /// The same, at the deadline. grpcio's server ends a call at that moment too, and the two ends cross in transit.
    TooLate,
}

/// Runs a scenario with every match.
fn calls(pair: &mut Pair, scenario: &str, age: Option<Duration>, ends: Ends) -> Result<String> {
    let mut summary = Vec::new();
    for (server, clients) in MATCHES {
        if ends == Ends::TooLate && server == Python {
            continue;
        }
        let _server = server.serve(&pair.server, pair.http2.target_port, age)?;
        for (client, family) in clients {
            let said = call(pair, client, family, scenario, ends)
                .with_context(|| format!("{client:?} to {server:?} over {family:?}"))?;
            summary.push(format!("{client:?} to {server:?}: {said}"));
        }
    }
    Ok(summary.join("; "))
}

fn call(pair: &mut Pair, client: Implementation, family: Family, scenario: &str, ends: Ends) -> Result<String> {
    let before = pair.begin()?;
    let reported = client.call(&pair.client, pair.http2.address(family), scenario)?;
    if matches!(ends, Ends::GivenUp | Ends::TooLate) {
        // The late answers meet closed streams.
        sleep(Duration::from_secs(1));
    }
    let (mut truth, _) = pair.truth(&Expected::both(reported.calls))?;
    let logged = statuses(pair, &truth);
    match ends {
        Ends::Served | Ends::ServedMuch => {
            ensure!(logged == reported.statuses, "the client has {reported:?}, the log {truth}")
        }
        Ends::GivenUp | Ends::TooLate => ensure!(logged.is_empty(), "the log has a status: {truth}"),
    }
    if ends == Ends::ServedMuch {
        with_late_window_updates(&mut truth);
    }
    if client == Java {
        // A starting JVM keeps the processors from Envoy, for longer than its threads are measured to wait.
        however_late(&mut truth);
    }
    let messages = Messages { requests: reported.sent, responses: reported.received };
    truth.messages = [pair.source(), pair.destination()].map(|leg| (leg, messages.clone())).into();
    pair.agree(&before, &truth)?;
    Ok(format!("{} calls, {}/{} messages", reported.calls, reported.sent, reported.received))
}

/// Returns the number of calls by status, as the client's sidecar logged them.
fn statuses(pair: &Pair, truth: &Counts) -> BTreeMap<String, u64> {
    let source = pair.source();
    let mut statuses = BTreeMap::new();
    for ((leg, outcome), requests) in &truth.requests {
        if *leg == source && !outcome.grpc_status.is_empty() {
            *statuses.entry(outcome.grpc_status.clone()).or_default() += requests.count;
        }
    }
    statuses
}
