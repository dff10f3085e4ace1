//! The observer at work on a small real mesh: three workloads with Envoy sidecars and mutual TLS between them, which speak
//! HTTP/1.1, gRPC and raw TCP.
//!
//! Everything lives in network namespaces and cgroups that go when this ends, however it ends: what a crash leaves
//! behind, the next start removes. At the end the observer's counts are compared with Envoy's own access logs.

mod calls;
mod control_plane;
pub(crate) mod shops;
mod table;
mod traffic;

use std::{
    env,
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
use harness::{observer::Observer, tally::Tally};
use signal_hook::{
    consts::{SIGHUP, TERM_SIGNALS},
    flag,
};

use crate::{
    build,
    exec::{cache, say, timed},
    setup,
};
use control_plane::ControlPlane;
use shops::{Shops, Talk};
use table::{Flows, Scrape};

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
    let stop = stop_on_signal()?;
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

/// Becomes true when somebody wants this to end.
pub(crate) fn stop_on_signal() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in TERM_SIGNALS.iter().chain(&[SIGHUP]) {
        flag::register(*signal, Arc::clone(&stop)).context("signal handler")?;
    }
    Ok(stop)
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
    talk: Talk,
    control_plane: ControlPlane,
    observer: Observer,
    shops: Shops,
}

impl Demo {
    fn start() -> Result<Self> {
        let shops = Shops::open()?;
        let control_plane = ControlPlane::start()?;
        let observer = Observer::start(&shops.mesh, shops.sidecars.len(), &["--control-plane", &control_plane.url()])?;
        Ok(Self { talk: shops.talk()?, control_plane, observer, shops })
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
        let sidecars: Vec<&str> = self.shops.sidecars.iter().map(|sidecar| sidecar.workload().name.as_str()).collect();
        writeln!(
            out,
            "mesh {}: {}, each with an Envoy sidecar, mutual TLS between them",
            self.shops.mesh.name(),
            sidecars.join(", ")
        )?;
        writeln!(out, "control plane: a real istiod's page at {}/metrics", self.control_plane.url())?;
        writeln!(out, "metrics: http://{}/metrics    Ctrl-C ends and removes everything\n", self.observer.address())?;
        writeln!(out, "{flows}")?;
        Ok(out.flush()?)
    }

    /// Ends the traffic and waits for the observer to say what Envoy says; an error if it does not.
    fn compare(self) -> Result<()> {
        let Self { talk, control_plane, observer, mut shops } = self;
        let messages = talk.end();
        let mut truth = Tally { messages: shops::messages(&messages), ..Tally::default() };
        shops.read_logs(&mut truth)?;
        let end = Instant::now() + PATIENCE;
        let (observed, differences) = shops::compare(&observer, &truth, PATIENCE)?;
        println!("{}", table::summary(&truth, &observed));
        let (page, other) = control_plane.settled(&observer, end)?;
        println!("{}", control_plane.summary(&page));
        let stopped = observer.stop();
        drop(shops);
        if !differences.is_empty() {
            bail!("the observer's counts differ from Envoy's:\n      {differences}");
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
