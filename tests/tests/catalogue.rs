//! Data plane, control planes of each release, and processes at once. Each documented row has data, or the true
//! reason for which it has none.

use std::{
    collections::BTreeMap,
    process::{Command, ExitCode},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use harness::{
    apps::{raw::Connection, tcp},
    cases, catalogue,
    counts::Counts,
    envoy::METRICS,
    mesh::{Family, Workload},
    observer::Observer,
    pair::Pair,
    replay::{Capture, Replay},
    sidecar::Options,
    tools,
};

const SCRAPE_TIMEOUT: Duration = Duration::from_secs(30);
const RELEASES: [&str; 4] = ["1.12.9", "1.18.7", "1.25.3", "1.32-dev"];
/// Istio's metrics of a sidecar besides Envoy's own; those on connections are counted by the observer.
const PROXYS_PAGE: &str = "# TYPE istio_build gauge\nistio_build{component=\"proxy\",tag=\"1.25.3\"} 1\n\
                           # TYPE istio_requests_total counter\nistio_requests_total{reporter=\"source\"} 77\n";
const BUILD: &str = "istio_build";
const UP: &str = "mesh_observer_control_plane_up";
const PROXY: (&str, &str) = ("app", "istio-proxy");

/// One row, by column.
type Row = BTreeMap<String, String>;

fn main() -> ExitCode {
    cases::run(
        fixture,
        cases![
            every_row_of_every_release_has_data_or_the_true_reason,
            proxies_are_scraped_when_configured,
            nobody_to_ask_is_said,
        ],
    )
}

fn fixture() -> Result<Pair> {
    let metrics = Options { metrics_page: Some(PROXYS_PAGE.to_owned()), ..Options::default() };
    let pair = Pair::unobserved(Options::default(), metrics)?;
    pair.mesh.join()?;
    Ok(pair)
}

fn every_row_of_every_release_has_data_or_the_true_reason(pair: &mut Pair) -> Result<String> {
    let _echo = tcp::echo(&pair.server, pair.tcp.target_port)?;
    let captures = Capture::all()?;
    let mut said = Vec::new();
    for release in RELEASES {
        let of_release = captures.iter().filter(|capture| capture.version() == release);
        let planes = of_release.map(Replay::start).collect::<Result<Vec<_>>>()?;
        let urls: Vec<String> = planes.iter().map(Replay::url).collect();
        let pages = urls.iter().flat_map(|url| ["--control-plane", url]);
        let arguments: Vec<&str> = ["--scrape-interval", "1s"].into_iter().chain(pages).collect();
        let observer = Observer::start(&pair.mesh, 2, &arguments)?;
        let control_plane = of_control_plane(release)?;
        wait_for_all(&observer, &control_plane, |row| Some(of_idle_data_plane(row)))?;
        traffic(pair)?;
        wait_for_all(&observer, &control_plane, |_| None)?;
        let metrics = observer.scrape()?;
        for workload in [&pair.client, &pair.server] {
            let own = metrics.sum("process_cpu_seconds_total", &[("pod", &workload.pod)]);
            ensure!(own.is_some(), "no process of {}", workload.pod);
        }
        ensure!(metrics.sum(UP, &[PROXY]).is_none(), "a proxy's page is read and nobody asked for it");
        observer.stop()?;
        said.push(format!("{release}: {} without data", control_plane.len()));
    }
    Ok(said.join(", "))
}

/// Returns the rows of the control plane without data in this release, by their names in Prometheus, with the expected
/// reason.
fn of_control_plane(release: &str) -> Result<BTreeMap<String, &'static str>> {
    let never = catalogue::coverage()?
        .into_iter()
        .filter(|(_, states)| states.iter().all(|(capture, state)| !capture.starts_with(release) || state == "absent"));
    let reasons = never.filter_map(|(family, _)| {
        let reason = match family.as_str() {
            // Up to its last release, absent means 0.
            "pilot_xds_push_context_errors" if release < "1.26" => return None,
            "pilot_xds_push_context_errors" => "Istio reports it up to 1.25, and here is 1.32",
            "pilot_conflict_outbound_listener_http_over_current_tcp"
            | "pilot_conflict_outbound_listener_tcp_over_current_http" => "Istio reports it up to 1.18, and here is ",
            _ => "no supported release of Istio reports it",
        };
        Some((family, reason))
    });
    Ok(reasons.collect())
}

fn of_idle_data_plane(row: &Row) -> &'static str {
    if row["documented_name"].contains(".tcp.") {
        "no TCP connection has been seen yet"
    } else {
        "no HTTP request has ended yet"
    }
}

/// Waits until each of the documented rows has its expected state. `kernel` is the reason for the data plane's.
fn wait_for_all(
    observer: &Observer,
    control_plane: &BTreeMap<String, &str>,
    kernel: impl Fn(&Row) -> Option<&'static str>,
) -> Result<()> {
    let end = Instant::now() + SCRAPE_TIMEOUT;
    let address = observer.address().to_string();
    loop {
        let rows = catalogue::rows(&["--live", "--listen", &address])?;
        let reason = |row: &Row| match row["from"].as_str() {
            "kernel" => kernel(row),
            "istiod" => control_plane.get(&row["prometheus_name"]).copied(),
            _ => None,
        };
        let wrong = |row: &&Row| match reason(row) {
            None => row["live"] != "data",
            Some(reason) => row["live"].strip_prefix("no data: ").is_none_or(|said| !said.starts_with(reason)),
        };
        let documented = documented(&rows)?;
        match documented.into_iter().find(wrong) {
            None => return Ok(()),
            Some(row) if Instant::now() > end => bail!("{row:?}, expected {:?}:\n{}", reason(row), observer.log()),
            Some(_) => sleep(Duration::from_millis(100)),
        }
    }
}

/// Returns the rows of the product's documentation: each is there, once.
fn documented(rows: &[Row]) -> Result<Vec<&Row>> {
    let names: Vec<&str> = include_str!("../fixtures/documented_names.txt").lines().collect();
    ensure!(names.len() == 46, "{} documented names", names.len());
    let of = |name: &&str| {
        let mut found = rows.iter().filter(|row| row["documented_name"] == **name);
        let row = found.next().with_context(|| format!("no row {name}"))?;
        ensure!(found.next().is_none(), "{name} twice");
        Ok(row)
    };
    names.iter().map(of).collect()
}

fn traffic(pair: &Pair) -> Result<()> {
    let codes = pair.curl(&[&pair.url(Family::V4, "/bytes/5")])?;
    ensure!(codes == "200", "{codes}");
    let mut connection = Connection::open(&pair.client, pair.tcp.address(Family::V4))?;
    connection.send("hello")?;
    connection.receive(5)?;
    Ok(())
}

fn proxies_are_scraped_when_configured(pair: &mut Pair) -> Result<String> {
    let observer = Observer::start(&pair.mesh, 2, &["--scrape-interval", "1s", "--scrape-proxies"])?;
    let instance = |workload: &Workload| format!("{}:{METRICS}", workload.ipv4);
    let (client, server) = (instance(&pair.client), instance(&pair.server));
    let metrics = observer.wait(SCRAPE_TIMEOUT, |metrics| metrics.sum(UP, &[PROXY]) == Some(2.0))?;
    // Its own build, with component and instance.
    let labels = [
        ("component", "proxy"),
        ("tag", "1.25.3"),
        ("instance", &server),
        PROXY,
        ("pod", &pair.server.pod),
        ("namespace", &pair.server.namespace),
    ];
    let builds: Vec<_> = metrics.samples(BUILD).collect();
    ensure!(builds.len() == 1 && metrics.sum(BUILD, &labels) == Some(1.0), "{builds:?}");
    // A real Envoy's own exposition.
    for (ours, own) in [
        ("envoy_server_concurrency", "server.concurrency"),
        ("envoy_cluster_manager_active_clusters", "cluster_manager.active_clusters"),
        ("envoy_listener_manager_total_listeners_active", "listener_manager.total_listeners_active"),
    ] {
        let truth = pair.sidecars[0].stat(own)? as f64;
        let found = metrics.sum(ours, &[("instance", &client)]);
        ensure!(truth > 0.0 && found == Some(truth), "{ours}: {found:?} instead of {truth}");
    }
    // Neither the requests in an exposition count, nor the scrape itself.
    ensure!(
        metrics.sum("mesh_observer_control_plane_families_conflicting", &[]).is_some_and(|families| families >= 1.0)
    );
    let counts = observer.counts()?;
    ensure!(counts == Counts::default(), "counted without any traffic: {counts}");
    observer.stop()?;
    Ok(format!(
        "{} samples of a real Envoy",
        metrics.sum("mesh_observer_control_plane_samples", &[("instance", &client)]).unwrap_or(0.0)
    ))
}

fn nobody_to_ask_is_said(_: &mut Pair) -> Result<String> {
    let output = Command::new(tools::observer()?).args(["catalogue", "--live", "--listen", "127.0.0.1:1"]).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1) && said.contains("no observer answers at 127.0.0.1:1"), "{said}");
    Ok(said.trim().to_owned())
}
