//! Control-plane processes: real Go servers stand in for them, and `/proc` and their own metrics are the reference.

use std::{
    collections::BTreeMap,
    fs,
    process::{Command, ExitCode},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use harness::{
    cases,
    exposition::Exposition,
    mesh::{Mesh, Workload},
    net::finish,
    observer::{Observer, free_port},
    server::Server,
    tools,
};

const CPU: &str = "process_cpu_seconds_total";
const STARTED: &str = "process_start_time_seconds";
const MOST_FILES: &str = "process_max_fds";
/// Values that may go up and down between two reads.
const MOVING: [&str; 4] =
    ["process_resident_memory_bytes", "process_virtual_memory_bytes", "process_open_fds", "process_threads"];
const ROUNDS: usize = 20;
/// Attempts with values that move; the test fails only if every attempt does.
const LOOKS: usize = 10;
/// The observer answers earlier scrapes with the same values.
const FRESH: Duration = Duration::from_millis(150);
/// Limits the time until the observer notices a new or ended process.
const DISCOVERY_TIMEOUT: Duration = Duration::from_secs(5);

struct Fixture {
    prometheus: Server,
    etcd: Option<Server>,
    observer: Observer,
    pod: Arc<Workload>,
    mesh: Mesh,
}

fn main() -> ExitCode {
    cases::run(
        fixture,
        cases![
            figures_lie_between_two_direct_reads,
            figures_agree_with_the_servers_own,
            identity_is_the_pods,
            ended_and_restarted,
            check_lists_them,
        ],
    )
}

fn fixture() -> Result<Fixture> {
    let mut mesh = Mesh::new()?;
    let pod = mesh.workload("store")?;
    let prometheus = Server::prometheus(&mesh, free_port()?)?;
    let etcd = Server::etcd(&mesh, &pod)?;
    let executables = executables(&prometheus, &etcd);
    let arguments: Vec<&str> = executables.iter().flat_map(|name| ["--control-plane-exe", name]).collect();
    let observer = Observer::start(&mesh, 0, &arguments)?;
    let fixture = Fixture { prometheus, etcd: Some(etcd), observer, pod, mesh };
    for server in fixture.servers()? {
        fixture.wait(server.executable(), true)?;
    }
    Ok(fixture)
}

/// Prometheus listens on one port, etcd on two.
fn executables(prometheus: &Server, etcd: &Server) -> [String; 2] {
    [prometheus.executable().to_owned(), format!("{}:{}", etcd.executable(), etcd.metrics_address().port())]
}

impl Fixture {
    fn etcd(&self) -> Result<&Server> {
        self.etcd.as_ref().context("etcd does not run")
    }

    fn servers(&self) -> Result<[&Server; 2]> {
        Ok([&self.prometheus, self.etcd()?])
    }

    /// Waits until the process's values appear, with its target known, or disappear; returns how long that took.
    fn wait(&self, app: &str, there: bool) -> Result<Duration> {
        let begun = Instant::now();
        loop {
            let metrics = self.observer.scrape()?;
            let mut values = metrics.samples(CPU).filter(|sample| sample.label("app") == app);
            let right = match values.next() {
                Some(sample) => there && sample.label("instance").contains(':'),
                None => !there,
            };
            if right {
                return Ok(begun.elapsed());
            }
            ensure!(begun.elapsed() < DISCOVERY_TIMEOUT, "{app} is not {}", if there { "there" } else { "gone" });
            sleep(Duration::from_millis(5));
        }
    }
}

fn figures_lie_between_two_direct_reads(fixture: &mut Fixture) -> Result<String> {
    let mut said = Vec::new();
    for server in fixture.servers()? {
        let done = AtomicBool::new(false);
        let (exact, worked) = thread::scope(|scope| {
            // The server works meanwhile, so that its values move.
            let work = || {
                while !done.load(Ordering::Relaxed) {
                    server.own_figures()?;
                }
                Ok::<_, anyhow::Error>(())
            };
            let worker = scope.spawn(work);
            let begun = direct(server.pid())?[CPU];
            let exact = (0..ROUNDS).map(|_| round(&fixture.observer, server)).sum::<Result<usize>>();
            let worked = direct(server.pid())?[CPU] - begun;
            done.store(true, Ordering::Relaxed);
            worker.join().expect("the worker does not panic")?;
            Ok::<_, anyhow::Error>((exact?, worked))
        })?;
        ensure!(worked > 0.1, "{} did not work: {worked} s", server.executable());
        said.push(format!(
            "{}: {worked:.2} s of work, {exact} of {} exact",
            server.executable(),
            ROUNDS * MOVING.len()
        ));
    }
    let metrics = fixture.observer.scrape()?;
    let of = |name: &str| metrics.sum(name, &[("collector", "procfs")]).with_context(|| format!("no {name}"));
    let cost = of("mesh_observer_collector_duration_seconds_total")? / of("mesh_observer_collector_runs_total")?;
    Ok(format!("{ROUNDS} rounds; {}; {:.0} µs to read both", said.join("; "), cost * 1e6))
}

/// Checks that each value is between two direct reads; returns the number of those that did not move.
fn round(observer: &Observer, server: &Server) -> Result<usize> {
    let mut missed = MOVING.to_vec();
    let mut exact = 0;
    for _ in 0..LOOKS {
        sleep(FRESH);
        let before = direct(server.pid())?;
        let ours = values(&observer.scrape()?, server.executable())?;
        let after = direct(server.pid())?;
        let is_between = |name: &str| {
            let (low, high) = (before[name].min(after[name]), before[name].max(after[name]));
            (low - 1e-6..=high + 1e-6).contains(&ours[name])
        };
        for name in [CPU, STARTED, MOST_FILES] {
            ensure!(is_between(name), "{name}: {} {} {}", before[name], ours[name], after[name]);
        }
        missed.retain(|name| {
            exact += usize::from(is_between(name) && before[name] == after[name]);
            !is_between(name)
        });
        if missed.is_empty() {
            return Ok(exact);
        }
    }
    bail!("{missed:?} of {} never between two direct reads", server.executable())
}

/// The Go client reads the same files, with third-party code.
fn figures_agree_with_the_servers_own(fixture: &mut Fixture) -> Result<String> {
    let mut said = Vec::new();
    for server in fixture.servers()? {
        sleep(FRESH);
        let before = server.own_figures()?;
        let ours = values(&fixture.observer.scrape()?, server.executable())?;
        let after = server.own_figures()?;
        let cpu = before.value(CPU)?..=after.value(CPU)?;
        ensure!(cpu.contains(&ours[CPU]), "{CPU}: {} not in {cpu:?}", ours[CPU]);
        for name in [STARTED, MOST_FILES] {
            let theirs = before.value(name)?;
            ensure!((theirs - ours[name]).abs() < 0.011, "{name}: {theirs} and {}", ours[name]);
        }
        let theirs = before.value("process_resident_memory_bytes")?;
        let ratio = ours["process_resident_memory_bytes"] / theirs;
        ensure!((0.8..1.25).contains(&ratio), "resident memory {ratio} of what it says itself");
        said.push(format!("{} CPU {:?} s", server.executable(), ours[CPU]));
    }
    Ok(said.join(", "))
}

fn identity_is_the_pods(fixture: &mut Fixture) -> Result<String> {
    let (etcd, pod) = (fixture.etcd()?, &fixture.pod);
    let metrics = fixture.observer.scrape()?;
    let labels = [
        ("app", etcd.executable()),
        ("instance", &format!("{}:{}", pod.ipv4, etcd.metrics_address().port())),
        ("pod", &pod.pod),
        ("namespace", &pod.namespace),
    ];
    ensure!(metrics.sum(CPU, &labels).is_some(), "no series with {labels:?}");
    ensure!(
        metrics.sum("mesh_observer_processes", &[("outcome", "exposed")]) == Some(2.0),
        "two processes are exposed"
    );
    Ok(format!("{labels:?}"))
}

fn ended_and_restarted(fixture: &mut Fixture) -> Result<String> {
    let etcd = fixture.etcd.take().context("etcd does not run")?;
    let app = etcd.executable().to_owned();
    let first = values(&fixture.observer.scrape()?, &app)?;
    etcd.kill()?;
    let gone = fixture.wait(&app, false)?;
    let etcd = Server::etcd(&fixture.mesh, &fixture.pod)?;
    let back = fixture.wait(&app, true)?;
    fixture.etcd = Some(etcd);
    let second = values(&fixture.observer.scrape()?, &app)?;
    ensure!(second[STARTED] > first[STARTED], "it started later: {} {}", first[STARTED], second[STARTED]);
    Ok(format!("gone after {gone:.0?}, back {back:.0?} after it answered"))
}

fn check_lists_them(fixture: &mut Fixture) -> Result<String> {
    let mut command = Command::new(tools::observer()?);
    command.args(["check", "--sidecar-exe", "no-sidecar"]);
    for name in executables(&fixture.prometheus, fixture.etcd()?) {
        command.args(["--control-plane-exe", &name]);
    }
    let report = finish(&mut command, "")?;
    let (prometheus, etcd) = (&fixture.prometheus, fixture.etcd()?);
    let at = prometheus.metrics_address();
    for expected in [
        "Control plane (2)".to_owned(),
        format!("-/-: {}, process {}", prometheus.executable(), prometheus.pid()),
        format!("metrics at {at}: listens on {} only", at.port()),
        format!("{}/{}: {}, process {}", fixture.pod.namespace, fixture.pod.pod, etcd.executable(), etcd.pid()),
        format!("metrics at {}: it listens on loopback only", etcd.metrics_address()),
        "It can be scraped only from inside its network namespace, which needs CAP_SYS_ADMIN (held).".to_owned(),
    ] {
        ensure!(report.contains(&expected), "no {expected:?} in:\n{report}");
    }
    Ok("both, one of them to be read only from inside".to_owned())
}

/// Returns the observer's values of one process.
fn values(metrics: &Exposition, app: &str) -> Result<BTreeMap<&'static str, f64>> {
    let names = MOVING.into_iter().chain([CPU, STARTED, MOST_FILES]);
    names
        .map(|name| {
            Ok((name, metrics.sum(name, &[("app", app)]).with_context(|| format!("{name} of {app} is missing"))?))
        })
        .collect()
}

/// Returns the same values from /proc, read by the test.
fn direct(pid: u32) -> Result<BTreeMap<&'static str, f64>> {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).with_context(|| format!("{pid} {file}"));
    let stat = read("stat")?;
    let fields: Vec<&str> = stat.rsplit_once(')').context("stat")?.1.split_ascii_whitespace().collect();
    // Numbered from 1 in proc_pid_stat(5); the first two are before the bracket.
    let field = |number: usize| fields[number - 3].parse::<f64>().context("a field of stat");
    // SAFETY: no pointers.
    let [ticks, metrics] = [libc::_SC_CLK_TCK, libc::_SC_PAGESIZE].map(|name| unsafe { libc::sysconf(name) } as f64);
    let booted = fs::read_to_string("/proc/stat")?;
    let booted = booted.lines().find_map(|line| line.strip_prefix("btime ")?.parse::<f64>().ok()).context("btime")?;
    let limits = read("limits")?;
    let most = limits.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next());
    let files = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    Ok(BTreeMap::from([
        (CPU, (field(14)? + field(15)?) / ticks),
        (STARTED, booted + field(22)? / ticks),
        (MOST_FILES, most.context("limits")?.parse()?),
        ("process_resident_memory_bytes", field(24)? * metrics),
        ("process_virtual_memory_bytes", field(23)?),
        ("process_threads", field(20)?),
        ("process_open_fds", files as f64),
    ]))
}
