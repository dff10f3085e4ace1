//! Capture modes of sidecars, labels, and the negative control of the comparison itself.

use std::{net::SocketAddr, process::ExitCode};

use anyhow::{Context, Result, ensure};
use harness::{
    apps::{
        http,
        raw::{Connection, DATA_WITH_THE_ACK},
        tcp,
    },
    cases,
    counts::Leg,
    exposition::Exposition,
    istio_labels::{HTTP_ONLY, LABELS},
    mesh::Family,
    net::finish,
    observer::{self, get},
    pair::{Expected, Pair},
    redirect::{Exclusions, Interception},
    sidecar::{Inbound, Options},
};

const BOTH: [Family; 2] = [Family::V4, Family::V6];

fn main() -> ExitCode {
    cases::run(
        || Ok(()),
        cases![
            localhost_inbound,
            tproxy,
            one_worker,
            excluded_ports,
            host_outside_the_mesh,
            connection_security_policy,
            own_side_of_every_label,
            a_wrong_observer_is_caught,
        ],
    )
}

/// The sidecar calls the application at 127.0.0.1, from an ordinary address.
fn localhost_inbound(_: &mut ()) -> Result<String> {
    let options = Options { inbound: Inbound::Localhost, ..Options::default() };
    let mut pair = Pair::with(Options::default(), options)?;
    pair.http_and_tcp()
}

/// The application sees the client's own address, and the sidecar's inbound sockets have the original ones.
fn tproxy(_: &mut ()) -> Result<String> {
    let options = Options { interception: Interception::Tproxy, ..Options::default() };
    let mut pair = Pair::with(Options::default(), options)?;
    let summary = pair.http_and_tcp()?;
    policy_with_the_handshake(&mut pair)?;
    Ok(summary)
}

fn one_worker(_: &mut ()) -> Result<String> {
    let options = Options { concurrency: 1, ..Options::default() };
    let mut pair = Pair::with(options.clone(), options)?;
    pair.http_and_tcp()
}

fn excluded_ports(_: &mut ()) -> Result<String> {
    let exclusions = Exclusions { inbound: vec![8081], outbound: vec![8081] };
    let options = Options { exclusions, ..Options::default() };
    let mut pair = Pair::with(options.clone(), options)?;
    let status = http::serve(&pair.server, 15020)?;
    let summary = pair.check(Expected::both(0), |pair| {
        for (family, port) in BOTH.iter().flat_map(|family| [8081, 15020].map(|port| (family, port))) {
            let from = if port == 15020 { &pair.outside } else { &pair.client };
            let address = SocketAddr::new(pair.server.ip(*family), port);
            ensure!(pair.curl_from(from, &[&format!("http://{address}/")])? == "200");
        }
        Ok(())
    });
    drop(status);
    summary
}

/// A port of HTTP services: Envoy forwards requests to an unknown address.
fn host_outside_the_mesh(_: &mut ()) -> Result<String> {
    let options = Options { passthrough_http_ports: vec![8080], ..Options::default() };
    let mut pair = Pair::with(options, Options::default())?;
    let echo = tcp::echo(&pair.outside, 7000)?;
    let summary = pair.check(Expected { source: 6, destination: 0 }, |pair| {
        for family in BOTH {
            let address = SocketAddr::new(pair.outside.ip(family), 8080);
            ensure!(pair.curl(&[&format!("http://{address}/{{bytes/7,status/403}}")])? == "200\n403");
            let mut connection = Connection::open(&pair.client, SocketAddr::new(pair.outside.ip(family), 7000))?;
            connection.send([6; 100])?;
            connection.receive(100)?;
            connection.finish_sending()?;
            connection.drain()?;
        }
        Ok(())
    });
    drop(echo);
    summary
}

/// Read from the inbound leg, also where one port is called by both policies at a time.
fn connection_security_policy(_: &mut ()) -> Result<String> {
    let mut pair = Pair::new()?;
    let mut wanted = [0.0; 3];
    let mut step = |pair: &Pair, policy: usize| -> Result<()> {
        wanted[policy] += 2.0;
        let found = policies(pair)?;
        ensure!(found == wanted, "none, mutual_tls, unknown: {found:?} instead of {wanted:?}");
        Ok(())
    };
    pair.check(Expected { source: 0, destination: 2 }, from_outside)?;
    step(&pair, 0)?;
    pair.check(Expected::both(2), from_the_mesh)?;
    step(&pair, 1)?;
    // The client's sidecar keeps its connections for the next request: both ways are open now.
    pair.check(Expected { source: 0, destination: 2 }, from_outside)?;
    step(&pair, 0)?;
    let exposition = pair.observer()?.scrape()?;
    let labels = [("reporter", "source"), ("connection_security_policy", "unknown")];
    let [unknown, all] = [&labels[..], &labels[..1]].map(|labels| exposition.sum("istio_requests_total", labels));
    ensure!(unknown == all, "the source's policy is always unknown");
    policy_with_the_handshake(&mut pair)?;
    Ok("none, mutual_tls, and none beside open connections with mutual_tls".to_owned())
}

/// Returns the requests at the server by policy: none, mutual TLS, unknown.
fn policies(pair: &Pair) -> Result<[f64; 3]> {
    let Some(observer) = &pair.observer else { return Ok([0.0; 3]) };
    let exposition = observer.scrape()?;
    Ok(["none", "mutual_tls", "unknown"].map(|policy| {
        let labels = [("reporter", "destination"), ("connection_security_policy", policy)];
        exposition.sum("istio_requests_total", &labels).unwrap_or(0.0)
    }))
}

/// The bytes that reveal the policy arrive with the handshake, at a port not called before: from the mesh as the packet
/// that ends the handshake is lost, from outside since the client lets it wait.
fn policy_with_the_handshake(pair: &mut Pair) -> Result<()> {
    let web = http::serve(&pair.server, pair.raw.target_port)?;
    let before = policies(pair)?;
    let lose = |pair: &Pair, action: &str| -> Result<()> {
        for command in ["iptables-legacy", "ip6tables-legacy"] {
            let second = "-m connbytes --connbytes 0:2 --connbytes-dir original --connbytes-mode packets";
            let rule = format!("{action} INPUT ! -i lo -p tcp --tcp-flags ALL ACK {second} -j DROP");
            finish(pair.server.command(command)?.args(rule.split(' ')), "")?;
        }
        Ok(())
    };
    pair.check(Expected::both(2), |pair| {
        lose(pair, "-A")?;
        let codes = BOTH.map(|family| pair.curl(&[&pair.raw.url(family, "/bytes/8")]));
        lose(pair, "-D")?;
        for code in codes {
            ensure!(code? == "200");
        }
        Ok(())
    })?;
    pair.check(Expected { source: 0, destination: 2 }, |pair| {
        for family in BOTH {
            let address = SocketAddr::new(pair.server.ip(family), pair.raw.target_port);
            let mut connection = Connection::open_with(&pair.outside, address, &[DATA_WITH_THE_ACK], None)?;
            connection.send("GET /bytes/8 HTTP/1.1\r\nhost: raw\r\n\r\n")?;
            ensure!(connection.receive_response()?.status == 200);
        }
        Ok(())
    })?;
    drop(web);
    let after = policies(pair)?;
    let came = [0, 1, 2].map(|policy| after[policy] - before[policy]);
    ensure!(came == [2.0, 2.0, 0.0], "none, mutual_tls, unknown: {came:?}");
    Ok(())
}

fn from_outside(pair: &Pair) -> Result<()> {
    for family in BOTH {
        let address = SocketAddr::new(pair.server.ip(family), pair.web.target_port);
        ensure!(pair.curl_from(&pair.outside, &[&format!("http://{address}/bytes/8")])? == "200");
    }
    Ok(())
}

fn from_the_mesh(pair: &Pair) -> Result<()> {
    for family in BOTH {
        ensure!(pair.curl(&[&pair.url(family, "/bytes/8")])? == "200");
    }
    Ok(())
}

fn own_side_of_every_label(_: &mut ()) -> Result<String> {
    let mut pair = Pair::new()?;
    let echo = tcp::echo(&pair.server, pair.tcp.target_port)?;
    pair.check(Expected::both(2), |pair| {
        pair.curl(&[&pair.url(Family::V4, "/bytes/10")])?;
        let mut connection = Connection::open(&pair.client, pair.tcp.address(Family::V4))?;
        connection.send("x")?;
        connection.receive(1).map(|_| ()).context("echo")
    })?;
    drop(echo);
    let observer = pair.observer()?;
    let exposition = observer.scrape()?;
    let mut said = Vec::new();
    let all: Vec<&str> = ["reporter"].into_iter().chain(LABELS).collect();
    let of_tcp = all.iter().copied().filter(|label| !HTTP_ONLY.contains(label)).collect();
    for (family, labels) in [("istio_requests_total", all), ("istio_tcp_connections_opened_total", of_tcp)] {
        for reporter in ["source", "destination"] {
            let workload = if reporter == "source" { &pair.client } else { &pair.server };
            let mut samples = exposition.samples(family).filter(|sample| sample.label("reporter") == reporter);
            let sample = samples.next().with_context(|| format!("{family} of {reporter}"))?;
            let names: Vec<&str> = sample.labels.iter().map(|(name, _)| name.as_str()).collect();
            ensure!(names == labels, "{names:?}");
            let own = |label: &str| sample.label(&format!("{reporter}_{label}")).to_owned();
            for (label, value) in [
                ("workload", workload.name.clone()),
                ("canonical_service", workload.name.clone()),
                ("canonical_revision", "v1".to_owned()),
                ("workload_namespace", workload.namespace.clone()),
                ("app", workload.name.clone()),
                ("version", "v1".to_owned()),
                ("cluster", "Kubernetes".to_owned()),
                ("principal", workload.spiffe()),
            ] {
                ensure!(own(label) == value, "{reporter}_{label}={:?} instead of {value:?}", own(label));
            }
            let policy = if reporter == "source" { "unknown" } else { "mutual_tls" };
            ensure!(sample.label("connection_security_policy") == policy, "{sample:?}");
            ensure!(
                sample.label("request_protocol") == if family.contains("tcp") { "tcp" } else { "http" },
                "{sample:?}"
            );
            if reporter == "source" {
                let service = if family.contains("tcp") { &pair.tcp } else { &pair.web };
                ensure!(sample.label("destination_service") == service.host(), "{sample:?}");
                ensure!(sample.label("destination_service_name") == service.name, "{sample:?}");
            }
            said.push(format!("{reporter} {}", sample.label("destination_service")));
        }
    }
    Ok(said.join(", "))
}

/// A wrong value, as a faulty observer would count.
type Lie<'a> = &'a dyn Fn(f64) -> f64;

/// The comparison is itself tested: `/metrics` with one request dropped, one leg doubled, one byte or code off.
fn a_wrong_observer_is_caught(_: &mut ()) -> Result<String> {
    let mut pair = Pair::new()?;
    let before = pair.begin()?;
    pair.curl(&[&pair.url(Family::V4, "/delay/5?number=[1-50]")])?;
    let (truth, _) = pair.truth(&Expected::both(50))?;
    pair.agree(&before, &truth)?;
    let observer = pair.observer()?;
    let (_, text) = get(observer.address(), "/metrics")?;
    let [source, destination] = [pair.source(), pair.destination()];
    let log = |leg: &Leg| truth.requests[&(leg.clone(), "200".into())].duration_ms.unwrap_or_default();
    let lies: [(&str, &str, Lie<'_>); 7] = [
        ("one request dropped", "istio_requests_total{reporter=\"source\"", &|value| value - 1.0),
        ("one leg doubled", "istio_requests_total{reporter=\"destination\"", &|value| value * 2.0),
        ("one byte too many", "istio_response_bytes_sum{reporter=\"source\"", &|value| value + 1.0),
        ("one byte too few", "istio_request_bytes_sum{reporter=\"destination\"", &|value| value - 1.0),
        ("each a millisecond too quick", "istio_request_duration_milliseconds_sum{reporter=\"source\"", &|_| {
            log(&source) - 50.0
        }),
        ("each a millisecond too slow", "istio_request_duration_milliseconds_sum{reporter=\"destination\"", &|_| {
            log(&destination) + 50.0
        }),
        ("a second too slow", "istio_request_duration_milliseconds_sum{reporter=\"source\"", &|value| value + 1000.0),
    ];
    for (name, beginning, lie) in lies {
        let seen = observer::counts(&Exposition::parse(&falsify(&text, beginning, lie)?)?)?;
        let differences = truth.differences(&seen.since(&before));
        ensure!(differences.len() == 1, "{name} is not caught alone: {differences}");
    }
    let recoded = text.replace("response_code=\"200\"", "response_code=\"201\"");
    let seen = observer::counts(&Exposition::parse(&recoded)?)?;
    ensure!(!truth.differences(&seen.since(&before)).is_empty(), "another code is not caught");
    ensure!(seen.count(&Leg::source("client"), "201") == 50, "{seen}");
    Ok("eight lies, eight caught".to_owned())
}

/// The text with the value of the one sample that begins so replaced.
fn falsify(text: &str, beginning: &str, lie: Lie<'_>) -> Result<String> {
    let mut changed = 0;
    let lines: Vec<String> = text
        .lines()
        .map(|line| match line.rsplit_once(' ') {
            Some((series, value)) if line.starts_with(beginning) => {
                changed += 1;
                format!("{series} {}\n", lie(value.parse().unwrap_or(0.0)))
            }
            _ => format!("{line}\n"),
        })
        .collect();
    ensure!(changed == 1, "{changed} samples begin with {beginning}");
    Ok(lines.concat())
}
