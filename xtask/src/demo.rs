//! The observer at work on a small real mesh: three workloads with Envoy sidecars and mutual TLS between them, which speak
//! HTTP/1.1, gRPC and raw TCP.
//!
//! Everything lives in network namespaces and cgroups that go when this ends, however it ends: what a crash leaves
//! behind, the next start removes. At the end the observer's counts are compared with Envoy's own access logs.

mod calls;
mod control_plane;
mod table;
mod traffic;

use std::{
    env, fs,
    io::{self, IsTerminal as _, Write as _},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use harness::{
    mesh::{Mesh, Protocol},
    observer::Observer,
    referee::Referee,
    sidecar::{Options as SidecarOptions, Sidecar},
    tally::{Leg, Tally},
};
use signal_hook::{
    consts::{SIGHUP, TERM_SIGNALS},
    flag,
};

use crate::{
    build,
    exec::{cache, say, timed},
    setup,
};
use calls::Calls;
use control_plane::ControlPlane;
use table::{Flows, Scrape};
use traffic::Traffic;

/// Rates and percentiles are over this long, back from now.
const WINDOW: Duration = Duration::from_secs(10);
/// Without a terminal to redraw, the table comes this often.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);
/// Longest that the last figures may take to arrive.
const PATIENCE: Duration = Duration::from_secs(10);

/// What `cargo xtask demo` takes.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// End by itself after this long, and compare with Envoy; without it, run until Ctrl-C.
    #[arg(long = "for", value_parser = crate::exec::duration)]
    time: Option<Duration>,
}

/// Sets up, builds, runs.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::everything()?;
    let observer = build::build(&build::Options::default())?;
    use_tools(&observer);
    let stop = Arc::new(AtomicBool::new(false));
    for signal in TERM_SIGNALS.iter().chain(&[SIGHUP]) {
        flag::register(*signal, Arc::clone(&stop)).context("signal handler")?;
    }
    let demo = timed("starting three workloads with their sidecars, and the observer", Demo::start)?;
    demo.watch(options.time, &stop)?;
    if stop.load(Ordering::Relaxed) {
        // The signal went to Envoy and the observer too: there is nobody left to compare.
        drop(demo);
        say("stopped; namespaces, processes and cgroups are removed");
        return Ok(());
    }
    demo.compare()
}

/// Tells the harness which binaries are meant.
pub(crate) fn use_tools(observer: &Path) {
    // SAFETY: no other thread exists yet.
    unsafe {
        env::set_var("MESH_OBSERVER_BIN", observer);
        env::set_var("MESH_OBSERVER_CACHE", cache());
    }
}

/// The running demo; dropped in this order, the mesh last.
struct Demo {
    calls: Calls,
    traffic: Traffic,
    control_plane: ControlPlane,
    observer: Observer,
    referees: Vec<Referee>,
    sidecars: Vec<Sidecar>,
    mesh: Mesh,
}

impl Demo {
    fn start() -> Result<Self> {
        let removed = Mesh::sweep()?;
        if !removed.is_empty() {
            say(format!("removed what an earlier run left behind: {}", removed.join(", ")));
        }
        let mut mesh = Mesh::new()?;
        let (shop, catalog, stock) = (mesh.workload("shop")?, mesh.workload("catalog")?, mesh.workload("stock")?);
        let services = traffic::Services {
            catalog: mesh.service("catalog", 80, &catalog, 8080, Protocol::Http)?,
            stock: mesh.service("stock", 80, &stock, 8080, Protocol::Http)?,
            ledger: mesh.service("ledger", 9000, &stock, 9000, Protocol::Tcp)?,
        };
        let prices = mesh.service("prices", 50051, &stock, 50051, Protocol::Http2)?;
        let sidecars = [&shop, &catalog, &stock]
            .into_iter()
            .map(|workload| Sidecar::start(&mesh, workload, SidecarOptions::default()))
            .collect::<Result<Vec<_>>>()?;
        let referees = sidecars.iter().map(Referee::new).collect::<Result<Vec<_>>>()?;
        let control_plane = ControlPlane::start()?;
        let observer = Observer::start(&mesh, sidecars.len(), &["--control-plane", &control_plane.url()])?;
        adopt(&mesh, observer.pid())?;
        let traffic = Traffic::start(services, &shop, &catalog, &stock)?;
        let calls = Calls::start(&prices, &shop)?;
        Ok(Self { calls, traffic, control_plane, observer, referees, sidecars, mesh })
    }

    /// Shows the table until the time is up or a signal comes.
    fn watch(&self, time: Option<Duration>, stop: &AtomicBool) -> Result<()> {
        let terminal = io::stdout().is_terminal();
        let interval = if terminal { Duration::from_secs(1) } else { PLAIN_INTERVAL };
        let begun = Instant::now();
        let mut history = vec![(begun, Scrape::of(&self.observer.scrape()?))];
        let mut shown = begun;
        while !stop.load(Ordering::Relaxed) && time.is_none_or(|time| begun.elapsed() < time) {
            sleep(Duration::from_millis(100));
            if shown.elapsed() < interval || stop.load(Ordering::Relaxed) {
                continue;
            }
            shown = Instant::now();
            let scrape = match self.observer.scrape() {
                Ok(scrape) => scrape,
                // A signal from the terminal reaches the observer too, perhaps before it reaches us.
                Err(_) if signalled(stop) => break,
                Err(error) => return Err(error),
            };
            history.push((shown, Scrape::of(&scrape)));
            while history.len() > 2 && shown.duration_since(history[1].0) >= WINDOW {
                history.remove(0);
            }
            let ((then, before), (now, latest)) = (&history[0], &history[history.len() - 1]);
            self.show(&latest.since(before, now.duration_since(*then)), terminal)?;
        }
        Ok(())
    }

    fn show(&self, flows: &Flows, terminal: bool) -> Result<()> {
        let mut out = io::stdout().lock();
        if terminal {
            // Home, and what is below goes.
            write!(out, "\x1b[H\x1b[J")?;
        }
        let sidecars: Vec<&str> = self.sidecars.iter().map(|sidecar| sidecar.workload().name.as_str()).collect();
        writeln!(
            out,
            "mesh {}: {}, each with an Envoy sidecar, mutual TLS between them",
            self.mesh.name(),
            sidecars.join(", ")
        )?;
        writeln!(out, "control plane: a real istiod's page at {}/metrics", self.control_plane.url())?;
        writeln!(out, "metrics: http://{}/metrics    Ctrl-C ends and removes everything\n", self.observer.address())?;
        writeln!(out, "{flows}")?;
        Ok(out.flush()?)
    }

    /// Ends the traffic and waits for the observer to say what Envoy says; an error if it does not.
    fn compare(self) -> Result<()> {
        let Self { calls, traffic, control_plane, observer, mut referees, sidecars, mesh } = self;
        traffic.end();
        let mut truth = Tally::default();
        let messages = calls.end();
        truth.messages = [Leg::source("shop"), Leg::destination("stock")].map(|leg| (leg, messages.clone())).into();
        for referee in &mut referees {
            let lines = referee.settled(0, PATIENCE)?;
            referee.count(&lines, &mut truth);
        }
        let end = Instant::now() + PATIENCE;
        let (observed, differences) = loop {
            let observed = observer.tally()?;
            // Durations are measured at two places and never equal; the tests bound how far apart they are.
            let differences: Vec<String> =
                truth.differences(&observed).into_iter().filter(|line| !line.contains(" durations: ")).collect();
            if differences.is_empty() || Instant::now() > end {
                break (observed, differences);
            }
            sleep(Duration::from_millis(100));
        };
        println!("{}", table::summary(&truth, &observed));
        let (page, other) = control_plane.settled(&observer, end)?;
        println!("{}", control_plane.summary(&page));
        let stopped = observer.stop();
        drop((sidecars, mesh));
        if !differences.is_empty() {
            bail!("the observer's counts differ from Envoy's:\n  {}", differences.join("\n  "));
        }
        if !other.is_empty() {
            bail!("the control plane's figures differ from what was served:\n  {}", other.join("\n  "));
        }
        stopped?;
        say(
            "every count and every byte equals Envoy's, the control plane's figures what was served; namespaces, processes and cgroups are removed",
        );
        Ok(())
    }
}

fn signalled(stop: &AtomicBool) -> bool {
    sleep(Duration::from_millis(200));
    stop.load(Ordering::Relaxed)
}

/// Puts the observer into a cgroup of the mesh, so that what removes a crashed mesh ends it too.
fn adopt(mesh: &Mesh, pid: u32) -> Result<()> {
    let cgroup = mesh.cgroup().join("observer");
    fs::create_dir_all(&cgroup)
        .and_then(|()| fs::write(cgroup.join("cgroup.procs"), pid.to_string()))
        .with_context(|| format!("{}: cannot take the observer", cgroup.display()))
}
