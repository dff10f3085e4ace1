//! The observer at work on a small real mesh: three workloads with Envoy sidecars and mutual TLS between them, which
//! speak HTTP/1.1, gRPC and raw TCP.
//!
//! Everything lives in network namespaces and cgroups that are removed at the end; what a crash leaves
//! behind, the next start removes. At the end, the observer's counts are compared with Envoy's access logs.

mod control_plane;
mod table;

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use bookstore::{Bookstore, Talk};
use clap::Parser as _;
use harness::{
    console::{exit, say, stop_on_signal, timed},
    counts::Counts,
    observer::Observer,
};

use crate::{
    control_plane::ControlPlane,
    table::{Flows, Scrape},
};

/// Interval of rates and percentiles.
const WINDOW: Duration = Duration::from_secs(10);
/// Interval of the table without a terminal to redraw.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);
/// Limits the time until the last counts arrive.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Shows who calls whom in a small real mesh that is observed. Ctrl-C removes all of it.
#[derive(clap::Parser)]
#[command(name = "cargo xtask demo")]
struct Options {
    /// End by itself after this long, and compare with Envoy; without it, run until Ctrl-C.
    #[arg(long = "for", value_parser = humantime::parse_duration)]
    time: Option<Duration>,
}

fn main() -> ExitCode {
    exit(run(&Options::parse()))
}

fn run(options: &Options) -> Result<()> {
    let stop = stop_on_signal()?;
    let demo = timed("starting three workloads with their sidecars, and the observer", Demo::start)?;
    demo.watch(options.time, &stop)?;
    if stop.load(Ordering::Relaxed) {
        // The signal went to Envoy and the observer too: nothing is left to compare.
        drop(demo);
        say("stopped; namespaces, processes and cgroups are removed");
        return Ok(());
    }
    demo.compare()
}

/// The running demo; dropped in this order, the mesh last.
struct Demo {
    talk: Talk,
    control_plane: ControlPlane,
    observer: Observer,
    bookstore: Bookstore,
}

impl Demo {
    fn start() -> Result<Self> {
        let bookstore = Bookstore::open()?;
        let control_plane = ControlPlane::start()?;
        let observer =
            Observer::start(&bookstore.mesh, bookstore.sidecars.len(), &["--control-plane", &control_plane.url()])?;
        Ok(Self { talk: bookstore.talk()?, control_plane, observer, bookstore })
    }

    /// Shows the table until the time is up or a signal arrives.
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
                // A signal from the terminal reaches the observer too, perhaps before this process.
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
            // Cursor home, clear below.
            write!(out, "\x1b[H\x1b[J")?;
        }
        let sidecars: Vec<&str> =
            self.bookstore.sidecars.iter().map(|sidecar| sidecar.workload().name.as_str()).collect();
        writeln!(
            out,
            "mesh {}: {}, each with an Envoy sidecar, mutual TLS between them",
            self.bookstore.mesh.name(),
            sidecars.join(", ")
        )?;
        writeln!(out, "control plane: a real istiod's exposition at {}/metrics", self.control_plane.url())?;
        writeln!(out, "metrics: http://{}/metrics    Ctrl-C ends and removes everything\n", self.observer.address())?;
        writeln!(out, "{flows}")?;
        Ok(out.flush()?)
    }

    /// Ends the traffic and waits until the observer's counts equal Envoy's; an error if they do not.
    fn compare(self) -> Result<()> {
        let Self { talk, control_plane, observer, mut bookstore } = self;
        let messages = talk.end();
        let mut truth = Counts::default();
        bookstore.read_logs(&mut truth)?;
        truth.messages = bookstore::messages(&messages);
        let end = Instant::now() + SETTLE_TIMEOUT;
        let (observed, differences) = bookstore::compare(&observer, &truth, SETTLE_TIMEOUT)?;
        println!("{}", table::summary(&truth, &observed));
        let (page, other) = control_plane.settled(&observer, end)?;
        println!("{}", control_plane.summary(&page));
        let stopped = observer.stop();
        drop(bookstore);
        if !differences.is_empty() {
            bail!("the observer's counts differ from Envoy's:\n      {differences}");
        }
        if !other.is_empty() {
            bail!("the control plane's samples differ from what was served:\n  {}", other.join("\n  "));
        }
        stopped?;
        say(
            "every count and every byte equals Envoy's, the control plane's samples what was served; namespaces, processes and cgroups are removed",
        );
        Ok(())
    }
}

fn signalled(stop: &AtomicBool) -> bool {
    sleep(Duration::from_millis(200));
    stop.load(Ordering::Relaxed)
}
