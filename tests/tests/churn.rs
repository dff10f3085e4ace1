//! Sidecars that start and end by the hundreds: nothing of them leaks, and no count is lost or attributed to another.
//!
//! The sidecars are stand-ins, which make real connections to real applications and report the bytes sent and received.

use std::{
    env, fs,
    process::{Command, ExitCode},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::{self},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{
    apps::{http, raw::Server, tcp},
    cases,
    counts::Counts,
    mesh::{Mesh, Workload},
    observer::{Observer, counts},
    resource_usage::ResourceUsage,
    stand_in::{Stand, StandIn, played},
    tools,
    wait::wait_until,
};

/// Variable with the number of sidecars, for a longer run.
const COUNT: &str = "MESH_OBSERVER_CHURN";
/// Number of sidecars without the variable.
const FEW: usize = 200;
/// As many at a time.
const BATCH: usize = 20;
/// Far fewer than all of them need in turn, and enough for those of one batch.
const MAX_SERIES: usize = 100;
/// Limits the time until the observer notices a change.
const DISCOVERY_TIMEOUT: Duration = Duration::from_secs(30);
/// Allowed growth of the observer's own memory, besides that of exposed label sets.
const GROWTH: u64 = 2 << 20;
/// Allowed memory per exposed label set: Istio's totals stay exposed for 15 minutes.
const LABEL_SET: u64 = 8 << 10;

const WEB: u16 = 8080;
const ECHO: u16 = 9000;
const SLOW: u16 = 9001;

fn main() -> ExitCode {
    if let Some(code) = played() {
        return code;
    }
    cases::run(
        || Ok(()),
        cases![
            sidecars_come_and_go_under_load,
            a_process_id_is_another_sidecars_at_once,
            a_hundred_at_once_with_few_files_allowed,
        ],
    )
}

fn sidecars_come_and_go_under_load(_: &mut ()) -> Result<String> {
    let count = match env::var(COUNT) {
        Ok(text) => text.parse().with_context(|| format!("{COUNT}={text}: a number is expected"))?,
        Err(_) => FEW,
    };
    let fixture = Fixture::new()?;
    let mut observer = fixture.observe(&mut Command::new(tools::observer()?))?;
    let mut steady = fixture.stand.start("steady", "steady", &fixture.pod)?;
    observer.wait_attached(1)?;
    let mut truth = Counts::default();
    steady.ask(WEB, 1, &mut truth)?;
    steady.echo(ECHO, 1, &mut truth)?;
    fixture.settled(&observer, 2, &truth)?;
    let before = ResourceUsage::of(observer.pid())?;

    let all = Mutex::new(truth);
    let ended = Mutex::new(false);
    thread::scope(|scope| {
        let load = scope.spawn(|| {
            while !*ended.lock().unwrap_or_else(PoisonError::into_inner) {
                let mut own = Counts::default();
                steady.ask(WEB, 20, &mut own)?;
                steady.echo(ECHO, 5_000, &mut own)?;
                add(&mut all.lock().unwrap_or_else(PoisonError::into_inner), &own);
            }
            Ok(())
        });
        let outcome = (0..count / BATCH).try_for_each(|batch| {
            let own = fixture.batch(&mut observer, batch).with_context(|| format!("batch {batch}"))?;
            add(&mut all.lock().unwrap_or_else(PoisonError::into_inner), &own);
            Ok(())
        });
        *ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        let load: Result<()> = load.join().expect("the load does not panic");
        outcome.and(load.context("the load"))
    })?;
    let truth = all.into_inner().unwrap_or_else(PoisonError::into_inner);
    fixture.settled(&observer, 2, &truth)?;
    let sets = truth.requests.len() + truth.connections.len();
    let after = let_go(&observer, &before, sets as u64 * LABEL_SET + GROWTH)?;
    let log = observer.log();
    ensure!(!log.contains("ERROR") && !log.contains("panicked"), "{log}");
    observer.stop()?;
    Ok(format!("{count} sidecars, {sets} label sets; before: {before}; after: {after}"))
}

/// The kernel reuses a process id as soon as the counter wraps; here that is immediate.
fn a_process_id_is_another_sidecars_at_once(_: &mut ()) -> Result<String> {
    let fixture = Fixture::new()?;
    let mut observer = fixture.observe(&mut Command::new(tools::observer()?))?;
    let mut truth = Counts::default();
    let mut reused = 0;
    let mut former: Option<u32> = None;
    for number in 0.. {
        ensure!(number < 100, "no process got its predecessor's number in a hundred starts");
        if let Some(pid) = former {
            fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).context("ns_last_pid")?;
        }
        let name = format!("reuse-{number}");
        let mut sidecar = fixture.stand.start(&name, &name, &fixture.pod)?;
        // Waits for the new one's start to be noticed, not for the former's end.
        let observed = format!("sidecar=\"default/{name}-7c9f8-x0\"");
        let is_observed = |log: String| log.lines().any(|line| line.contains("observing ") && line.contains(&observed));
        observer.wait_own(DISCOVERY_TIMEOUT, |_| is_observed(observer.log()))?;
        sidecar.ask(WEB, 3, &mut truth)?;
        sidecar.echo(ECHO, 100, &mut truth)?;
        reused += usize::from(former == Some(sidecar.pid()));
        former = Some(sidecar.pid());
        sidecar.kill()?;
        if reused == 5 {
            break;
        }
    }
    observer.wait_attached(0)?;
    fixture.settled(&observer, usize::MAX, &truth)?;
    observer.stop()?;
    Ok(format!("{reused} sidecars with the number of the one before"))
}

fn a_hundred_at_once_with_few_files_allowed(_: &mut ()) -> Result<String> {
    const AT_ONCE: usize = 100;
    let fixture = Fixture::new()?;
    let mut limited = Command::new(tools::require("prlimit")?);
    let mut observer = fixture.observe(limited.arg("--nofile=256:4096").arg(tools::observer()?))?;
    let before = ResourceUsage::of(observer.pid())?;
    let start = |number| fixture.stand.start(&format!("crowd-{number}"), &format!("crowd-{number}"), &fixture.pod);
    let mut sidecars: Vec<StandIn> = (0..AT_ONCE).map(start).collect::<Result<_>>()?;
    observer.wait_attached(AT_ONCE)?;
    let during = ResourceUsage::of(observer.pid())?;
    ensure!(during.links == before.links + AT_ONCE * 6, "{during}");
    let mut truth = Counts::default();
    sidecars.iter_mut().try_for_each(|sidecar| sidecar.echo(ECHO, 500, &mut truth))?;
    sidecars.iter_mut().try_for_each(StandIn::remove_container)?;
    observer.wait_attached(0)?;
    fixture.settled(&observer, 0, &truth)?;
    let after = let_go(&observer, &before, AT_ONCE as u64 * LABEL_SET + GROWTH)?;
    observer.stop()?;
    Ok(format!("{AT_ONCE} sidecars; before: {before}; during: {during}; after: {after}"))
}

/// Applications, and the source of sidecars.
struct Fixture {
    gate: Gate,
    _servers: [Server; 3],
    stand: Stand,
    pod: Arc<Workload>,
    mesh: Mesh,
}

impl Fixture {
    fn new() -> Result<Self> {
        let mut mesh = Mesh::new()?;
        let pod = mesh.workload("pod")?;
        let gate = Gate::default();
        let inner = gate.clone();
        let slow = Server::start(&pod, SLOW, move |connection| {
            inner.wait();
            connection.as_mut().expect("given by the server").drain().map(drop)
        })?;
        let servers = [http::serve(&pod, WEB)?, tcp::echo(&pod, ECHO)?, slow];
        Ok(Self { gate, _servers: servers, stand: Stand::new(&mesh)?, pod, mesh })
    }

    fn observe(&self, command: &mut Command) -> Result<Observer> {
        let configuration = format!("max_series = {MAX_SERIES}\ntcp_ports = [{ECHO}, {SLOW}]\n");
        let arguments = ["--sidecar-exe", self.stand.name(), "--interval", "200ms"];
        Observer::launch(command, self.mesh.directory(), &configuration, 0, &arguments)
    }

    /// Sidecars that start together, make traffic, and end together in several ways; their expected counts.
    fn batch(&self, observer: &mut Observer, batch: usize) -> Result<Counts> {
        let mut truth = Counts::default();
        let mut sidecars = (0..BATCH)
            .map(|place| {
                // The first is a container restarted in a pod of the batch before.
                let number = if place == 0 { batch.saturating_sub(1) * BATCH + 1 } else { batch * BATCH + place };
                self.stand.start(&format!("churn-{number}"), &format!("place-{place}"), &self.pod)
            })
            .collect::<Result<Vec<_>>>()?;
        observer.wait_attached(BATCH + 1)?;
        for (place, sidecar) in sidecars.iter_mut().enumerate() {
            match place % 2 {
                0 => sidecar.ask(WEB, 3, &mut truth)?,
                _ => sidecar.echo(ECHO, 1_000 + place as u64, &mut truth)?,
            }
            if place % 5 == 4 {
                sidecar.fill(SLOW, &mut truth)?;
            }
        }
        for (place, sidecar) in sidecars.iter_mut().enumerate() {
            match place % 3 {
                0 => sidecar.leave()?,
                1 => sidecar.kill()?,
                _ => {}
            }
            sidecar.remove_container()?;
        }
        observer.wait_attached(1)?;
        // The cgroups are gone; their sockets still have bytes to send.
        self.gate.open();
        drop(sidecars);
        observer.wait_own(DISCOVERY_TIMEOUT, |metrics| metrics.sum("mesh_observer_series_in_use", &[]) == Some(2.0))?;
        Ok(truth)
    }

    /// Waits until the observer's counts are as expected, at most this many series are in use, and no loss is reported.
    fn settled(&self, observer: &Observer, in_use: usize, truth: &Counts) -> Result<()> {
        #[expect(clippy::cast_precision_loss, reason = "a small number")]
        observer.wait_own(DISCOVERY_TIMEOUT, |metrics| {
            metrics.sum("mesh_observer_series_in_use", &[]).is_some_and(|found| found <= in_use as f64)
        })?;
        wait_until("the observer counts like Envoy's access log", DISCOVERY_TIMEOUT, || {
            truth
                .differences(&counts(&observer.scrape()?)?)
                .none()
                .with_context(|| observer.health().unwrap_or_default())
        })?;
        let health = observer.health()?;
        ensure!(
            !health.contains("uncounted") && !health.contains("desync") && !health.contains("unattributed"),
            "{health}"
        );
        Ok(())
    }
}

/// Holds applications up until it is opened, for those that wait then.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<u64>, Condvar)>);

impl Gate {
    fn wait(&self) {
        let (opened, changed) = &*self.0;
        let now = opened.lock().unwrap_or_else(PoisonError::into_inner);
        let then = *now;
        drop(changed.wait_while(now, |opened| *opened == then));
    }

    fn open(&self) {
        let (opened, changed) = &*self.0;
        *opened.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        changed.notify_all();
    }
}

/// Waits until the observer's resource usage is as before, except for `growth` bytes of its own memory.
fn let_go(observer: &Observer, before: &ResourceUsage, growth: u64) -> Result<ResourceUsage> {
    wait_until("the observer holds no more than before", DISCOVERY_TIMEOUT, || {
        let now = ResourceUsage::of(observer.pid())?;
        let ResourceUsage { anonymous_bytes, files, links, maps, map_bytes } = now;
        ensure!(
            anonymous_bytes <= before.anonymous_bytes + growth
                && files <= before.files
                && (links, maps) == (before.links, before.maps)
                && map_bytes <= before.map_bytes,
            "before: {before}; now: {now}; {growth} bytes more are allowed"
        );
        Ok(now)
    })
}

/// Adds counts to earlier counts.
fn add(all: &mut Counts, more: &Counts) {
    for ((leg, outcome), requests) in &more.requests {
        let sum = all.of(leg, outcome.clone());
        sum.count += requests.count;
        sum.request_bytes += requests.request_bytes;
        sum.response_bytes += requests.response_bytes;
    }
    for (leg, connections) in &more.connections {
        let sum = all.connections.entry(leg.clone()).or_default();
        sum.opened += connections.opened;
        sum.closed += connections.closed;
        sum.received += connections.received;
        sum.sent += connections.sent;
    }
}
