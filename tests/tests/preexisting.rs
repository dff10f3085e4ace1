//! Connections that were open before the observer started: later exchanges on them are counted, or labelled `unknown`.

use std::{net::SocketAddr, process::ExitCode, thread::sleep, time::Duration};

use anyhow::{Context, Result, ensure};
use harness::{
    apps::{http, raw::Connection, tcp},
    cases,
    counts::{Counts, Leg},
    envoy::{GATEWAY_PLAIN, GATEWAY_TLS},
    envoy_access_log::EnvoyAccessLog,
    mesh::{Family, Mesh, Protocol},
    net::finish,
    observer::Observer,
    pair::{Expected, Pair, SETTLE_TIMEOUT, without_durations},
    redirect::Interception,
    sidecar::{Inbound, Options, Sidecar},
};

const BOTH: [Family; 2] = [Family::V4, Family::V6];
/// Of each connection, once it is observed.
const REQUESTS: usize = 10;

fn main() -> ExitCode {
    cases::run(
        || Ok(()),
        cases![
            http1_behind_redirection,
            http1_on_loopback,
            http1_behind_tproxy,
            http1_at_a_gateway,
            tls_at_a_gateway_is_said_to_be_unseen,
            tcp_with_one_exchange,
            tcp_with_one_direction,
            policy_behind_redirection,
            policy_behind_tproxy,
        ],
    )
}

/// Configures one worker, so that its connections are reused.
fn one_worker() -> Options {
    Options { concurrency: 1, ..Options::default() }
}

fn http1_behind_redirection(_: &mut ()) -> Result<String> {
    http1(one_worker())
}

fn http1_on_loopback(_: &mut ()) -> Result<String> {
    http1(Options { inbound: Inbound::Localhost, ..one_worker() })
}

fn http1_behind_tproxy(_: &mut ()) -> Result<String> {
    http1(Options { interception: Interception::Tproxy, ..one_worker() })
}

fn http1(server: Options) -> Result<String> {
    let mut pair = Pair::unobserved(one_worker(), server)?;
    let mut connections = BOTH.map(|family| Connection::open(&pair.client, pair.web.address(family)));
    let ask = |connection: &mut Result<Connection>| -> Result<()> {
        let connection = connection.as_mut().map_err(|error| anyhow::anyhow!("{error:#}"))?;
        connection.send("GET /bytes/10 HTTP/1.1\r\nhost: web\r\n\r\n")?;
        ensure!(connection.receive_response()?.status == 200);
        Ok(())
    };
    connections.iter_mut().try_for_each(ask)?;
    pair.observe(2)?;
    pair.begin()?;
    let before = pair.begin()?;
    for _ in 0..REQUESTS {
        connections.iter_mut().try_for_each(ask)?;
    }
    let (truth, _) = pair.truth(&Expected::both(2 * REQUESTS))?;
    pair.agree(&before, &truth)
}

fn http1_at_a_gateway(_: &mut ()) -> Result<String> {
    let mut mesh = Mesh::new()?;
    let (gateway, server, visitor) = (mesh.workload("gateway")?, mesh.workload("server")?, mesh.workload("visitor")?);
    mesh.service("web", 80, &server, 8080, Protocol::Http)?;
    let _application = http::serve(&server, 8080)?;
    let sidecar = Sidecar::start(&mesh, &gateway, Options::gateway())?;
    let _server = Sidecar::start(&mesh, &server, one_worker())?;
    let mut access_log = EnvoyAccessLog::new(&sidecar)?;
    let mut connections = Vec::new();
    for family in BOTH {
        connections.push(Connection::open(&visitor, SocketAddr::new(gateway.ip(family), GATEWAY_PLAIN))?);
    }
    let ask = |connection: &mut Connection| -> Result<()> {
        connection.send("GET /bytes/10 HTTP/1.1\r\nhost: web\r\n\r\n")?;
        ensure!(connection.receive_response()?.status == 200);
        Ok(())
    };
    connections.iter_mut().try_for_each(ask)?;
    let observer = Observer::start(&mesh, 2, &[])?;
    access_log.settled(2, SETTLE_TIMEOUT)?;
    for _ in 0..REQUESTS {
        connections.iter_mut().try_for_each(ask)?;
    }
    let mut truth = Counts::default();
    let lines = access_log.settled(2 * REQUESTS, SETTLE_TIMEOUT)?;
    access_log.count(&lines, &mut truth);
    without_durations(&mut truth);
    sleep(Duration::from_millis(300));
    let mut seen = observer.counts()?;
    seen.requests.retain(|(leg, _), _| *leg == Leg::source(&gateway.name));
    let differences = truth.differences(&seen);
    ensure!(differences.is_empty(), "{differences:?}; its own metrics: {}", observer.health()?);
    let connections = seen.connections.get(&Leg::source(&gateway.name));
    ensure!(connections.is_none(), "the gateway's own connections are counted: {seen}");
    Ok(seen.to_string())
}

/// Its bytes are not TCP traffic of the mesh.
fn tls_at_a_gateway_is_said_to_be_unseen(_: &mut ()) -> Result<String> {
    let mut mesh = Mesh::new()?;
    let (gateway, server, visitor) = (mesh.workload("gateway")?, mesh.workload("server")?, mesh.workload("visitor")?);
    mesh.service("web", 80, &server, 8080, Protocol::Http)?;
    let _application = http::serve(&server, 8080)?;
    let _sidecars =
        [Sidecar::start(&mesh, &gateway, Options::gateway())?, Sidecar::start(&mesh, &server, Options::default())?];
    let mut command = visitor.command("curl")?;
    command.args([
        "-sSk",
        "-m",
        "60",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        "-H",
        "host: web",
        "--limit-rate",
        "2K",
    ]);
    let listener = SocketAddr::new(gateway.ip(Family::V4), GATEWAY_TLS);
    command.arg(format!("https://{listener}/bytes/200[1-6]"));
    let asking = std::thread::spawn(move || finish(&mut command, ""));
    sleep(Duration::from_millis(700));
    let observer = Observer::start(&mesh, 2, &[])?;
    let codes = asking.join().expect("it does not panic")?;
    ensure!(codes == "200".repeat(6), "{codes}");
    sleep(Duration::from_millis(300));
    let seen = observer.counts()?;
    ensure!(!seen.to_string().contains("source"), "counted at the gateway: {seen}");
    let encrypted = observer.own("mesh_observer_connections_total", &[("outcome", "gateway_encrypted")])?;
    ensure!(encrypted >= 1.0, "not said to be encrypted: {}", observer.health()?);
    Ok(format!("{encrypted} encrypted, {seen}"))
}

fn tcp_with_one_exchange(_: &mut ()) -> Result<String> {
    const LENGTH: usize = 7_000;
    tcp(LENGTH as u64, LENGTH as u64, |connection| {
        connection.send([5; LENGTH])?;
        connection.receive(LENGTH)?;
        Ok(())
    })
}

/// The server only listens.
fn tcp_with_one_direction(_: &mut ()) -> Result<String> {
    tcp(600, 0, |connection| {
        for _ in 0..3 {
            connection.send([b'z'; 200])?;
            sleep(Duration::from_millis(20));
        }
        Ok(())
    })
}

fn tcp(received: u64, sent: u64, exchange: impl Fn(&mut Connection) -> Result<()>) -> Result<String> {
    let mut pair = Pair::unobserved(Options::default(), Options::default())?;
    let port = pair.tcp.target_port;
    let server = if sent == 0 { tcp::sink(&pair.server, port)? } else { tcp::echo(&pair.server, port)? };
    let mut connections = Vec::new();
    for family in BOTH {
        let mut connection = Connection::open(&pair.client, pair.tcp.address(family))?;
        connection.send("before")?;
        if sent != 0 {
            connection.receive(6)?;
        }
        connections.push(connection);
    }
    sleep(Duration::from_millis(300));
    pair.observe(2)?;
    let before = pair.begin()?;
    for connection in &mut connections {
        exchange(connection)?;
        connection.finish_sending()?;
        connection.drain()?;
    }
    drop((connections, server));
    pair.truth(&Expected::both(2))?;
    let Some(observer) = &pair.observer else { return Ok(String::new()) };
    sleep(Duration::from_millis(500));
    let seen = observer.counts()?.since(&before);
    for leg in [pair.source(), pair.destination()] {
        let found = seen.connections.get(&leg).cloned().with_context(|| format!("nothing of {leg:?}: {seen}"))?;
        ensure!((found.received, found.sent) == (2 * received, 2 * sent), "{seen}; {}", observer.health()?);
        ensure!((found.opened, found.closed) == (0, 0), "opened before the observer was there: {seen}");
    }
    Ok(seen.to_string())
}

fn policy_behind_redirection(_: &mut ()) -> Result<String> {
    policy(one_worker())
}

fn policy_behind_tproxy(_: &mut ()) -> Result<String> {
    policy(Options { interception: Interception::Tproxy, ..one_worker() })
}

/// A peer's connection with mutual TLS is older than the observer, a plaintext client comes later: the policy of the
/// peer's requests is known by the header that its sidecar adds.
fn policy(server: Options) -> Result<String> {
    let mut pair = Pair::unobserved(one_worker(), server)?;
    let mut peer = Connection::open(&pair.client, pair.web.address(Family::V4))?;
    let ask = |connection: &mut Connection| -> Result<()> {
        connection.send("GET /bytes/10 HTTP/1.1\r\nhost: web\r\n\r\n")?;
        ensure!(connection.receive_response()?.status == 200);
        Ok(())
    };
    ask(&mut peer)?;
    pair.observe(2)?;
    pair.begin()?;
    let address = SocketAddr::new(pair.server.ip(Family::V4), pair.web.target_port);
    let mut plain = Connection::open(&pair.outside, address)?;
    ask(&mut plain)?;
    for _ in 0..REQUESTS {
        ask(&mut peer)?;
    }
    pair.truth(&Expected { source: REQUESTS, destination: REQUESTS + 1 })?;
    sleep(Duration::from_millis(300));
    let Some(observer) = &pair.observer else { return Ok(String::new()) };
    let exposition = observer.scrape()?;
    let [none, mutual_tls, unknown] = ["none", "mutual_tls", "unknown"].map(|policy| {
        let labels = [("reporter", "destination"), ("connection_security_policy", policy)];
        exposition.sum("istio_requests_total", &labels).unwrap_or(0.0)
    });
    ensure!(
        (none, mutual_tls, unknown) == (1.0, REQUESTS as f64, 0.0),
        "{none} none, {mutual_tls} mTLS, {unknown} unknown"
    );
    Ok(format!("{none} none, {mutual_tls} with mutual TLS"))
}
