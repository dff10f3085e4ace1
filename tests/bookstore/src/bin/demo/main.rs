//! The observer at work on a small real mesh: three workloads with Envoy sidecars and mutual TLS between them, which
//! speak HTTP/1.1, gRPC and raw TCP.
//!
//! Everything lives in network namespaces and cgroups that are removed at the end; what a crash leaves
//! behind, the next start removes. At the end, the observer's counts are compared with Envoy's access logs.

mod control_plane;
mod summary;
mod trace;

use std::{
    io::{self, IsTerminal as _},
    process::{Command, ExitCode},
    sync::atomic::{AtomicBool, Ordering},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use bookstore::{Bookstore, Talk};
use clap::Parser as _;
use harness::{
    console::{exit, say, stop_on_signal, timed},
    counts::Counts,
    observer::Observer,
    tools,
};
use rustix::process::{Pid, Signal, kill_process};

use crate::{control_plane::ControlPlane, trace::Trace};

/// Interval of the table without a terminal.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);
/// Limits the time until the last counts arrive.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Shows who calls whom in a small real mesh that is observed, by `observer top`. Its end removes all of it.
#[derive(clap::Parser)]
#[command(name = "cargo xtask demo")]
struct Options {
    /// End by itself after this long, and compare with Envoy; without it, run until q or Ctrl-C.
    #[arg(long = "for", value_parser = humantime::parse_duration)]
    time: Option<Duration>,
    /// Read trace contexts, send sampled requests as spans to a receiver of the demo's own, and show one through all
    /// workloads.
    #[arg(long)]
    traces: bool,
    /// Send spans to this receiver too, e.g. zipkin+http://HOST:9411.
    #[arg(long, value_name = "URL", requires = "traces")]
    emit: Option<String>,
}

fn main() -> ExitCode {
    exit(run(&Options::parse()))
}

fn run(options: &Options) -> Result<()> {
    let stop = stop_on_signal()?;
    let demo = timed("starting three workloads with their sidecars, and the observer", || Demo::start(options))?;
    demo.show_trace(options)?;
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
    trace: Option<Trace>,
    bookstore: Bookstore,
}

impl Demo {
    fn start(options: &Options) -> Result<Self> {
        let bookstore = Bookstore::open()?;
        let control_plane = ControlPlane::start()?;
        let trace = options.traces.then(|| Trace::open(&bookstore)).transpose()?;
        let mut arguments = vec!["--control-plane".to_owned(), control_plane.url()];
        let receivers = trace.iter().map(Trace::url).chain(options.emit.clone());
        arguments.extend(receivers.flat_map(|url| ["--emit".to_owned(), url]));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let observer = Observer::start(&bookstore.mesh, bookstore.sidecars.len(), &arguments)?;
        Ok(Self { talk: bookstore.talk()?, control_plane, observer, trace, bookstore })
    }

    /// Shows the trace of one request, if traces are read.
    fn show_trace(&self, options: &Options) -> Result<()> {
        let Some(trace) = &self.trace else { return Ok(()) };
        let own = trace.url();
        let receivers = options.emit.as_ref().map_or_else(|| own.clone(), |other| format!("{own} and {other}"));
        say(format!("a sampled request from shop through catalog to stock, as spans at {receivers}:"));
        println!("{}", trace.show()?);
        Ok(())
    }

    /// Shows the table until the time is up, the user quits it or a signal arrives.
    fn watch(&self, time: Option<Duration>, stop: &AtomicBool) -> Result<()> {
        let (mesh, url) = (&self.bookstore.mesh, format!("http://{}", self.observer.address()));
        let workloads: Vec<&str> =
            self.bookstore.sidecars.iter().map(|sidecar| sidecar.workload().name.as_str()).collect();
        say(format!(
            "mesh {}: {}, each with an Envoy sidecar, mutual TLS between them",
            mesh.name(),
            workloads.join(", ")
        ));
        say(format!("control plane: a real istiod's exposition at {}/metrics", self.control_plane.url()));
        say(format!("page: {url}/    metrics: {url}/metrics    the end, by q or Ctrl-C, removes everything"));
        let mut top = Command::new(tools::observer()?);
        top.args(["top", "--url", &url]);
        let end = time.map(|time| Instant::now() + time);
        let is_over = || stop.load(Ordering::Relaxed) || end.is_some_and(|end| Instant::now() >= end);
        if io::stdout().is_terminal() { live(top, is_over) } else { print_again_and_again(top.arg("--once"), is_over) }
    }

    /// Ends the traffic and waits until the observer's counts equal Envoy's; an error if they do not.
    fn compare(self) -> Result<()> {
        let Self { talk, control_plane, observer, trace, mut bookstore } = self;
        let messages = talk.end();
        drop(trace);
        let mut truth = Counts::default();
        bookstore.read_logs(&mut truth)?;
        truth.messages = bookstore::messages(&messages);
        let end = Instant::now() + SETTLE_TIMEOUT;
        let (observed, differences) = bookstore::compare(&observer, &truth, SETTLE_TIMEOUT)?;
        println!("{}", summary::summary(&truth, &observed));
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

/// Shows the table in the terminal.
fn live(mut top: Command, is_over: impl Fn() -> bool) -> Result<()> {
    let mut top = top.spawn()?;
    while !is_over() {
        if let Some(status) = top.try_wait()? {
            ensure!(status.success(), "`observer top` ended with {status}");
            return Ok(());
        }
        sleep(Duration::from_millis(50));
    }
    // It leaves the terminal as it was. It may have ended by itself.
    let _ = kill_process(Pid::from_child(&top), Signal::TERM);
    top.wait().map(drop).context("`observer top`")
}

fn print_again_and_again(top: &mut Command, is_over: impl Fn() -> bool) -> Result<()> {
    let mut next = Instant::now() + PLAIN_INTERVAL;
    while !is_over() {
        sleep(Duration::from_millis(50));
        if Instant::now() >= next {
            next += PLAIN_INTERVAL;
            let status = top.status().context("`observer top`")?;
            // A signal from the terminal reaches both.
            ensure!(status.success() || is_over(), "`observer top --once` ended with {status}");
            println!();
        }
    }
    Ok(())
}
