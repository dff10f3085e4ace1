//! The demo's mesh for a long time, with faults: in the end every count and byte must be Envoy's, and the observer's
//! memory what it was after the first minute.
//!
//! The faults are chosen at random by a seed, so that a run can be repeated.

mod faults;

use std::{
    fmt,
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use bookstore::{Bookstore, Talk};
use clap::Parser as _;
use harness::{
    bpffs::Bpffs,
    console::{exit, say, stop_on_signal, timed},
    counts::{Counts, Messages},
    observer::Observer,
    resource_usage::ResourceUsage,
};

use crate::faults::Faults;

/// Interval of progress lines.
const PROGRESS: Duration = Duration::from_secs(10);
/// Between two faults.
const PAUSE: Duration = Duration::from_secs(2);
/// Limits the time until the last counts arrive.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(20);
/// The observer is killed in the first half only. For this long after that, or for a quarter of a shorter run, memory
/// may grow: connections, label sets and buffers appear.
const WARMING: Duration = Duration::from_secs(60);
/// Allowed growth of the observer's own memory after that.
const OWN_GROWTH: u64 = 2 << 20;
/// Allowed growth of the maps: a series stays once it was counted, and rare answers come late.
const MAP_GROWTH: u64 = 64 << 10;

/// Runs the demo's mesh for a long time with faults: every count must be Envoy's in the end, and memory flat.
#[derive(clap::Parser)]
#[command(name = "cargo xtask soak")]
struct Options {
    /// Duration, e.g. 10m.
    #[arg(long = "for", value_parser = humantime::parse_duration, default_value = "10m")]
    time: Duration,
    /// Seed of the choice of faults.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    exit(run(&Options::parse()))
}

fn run(options: &Options) -> Result<()> {
    let stop = stop_on_signal()?;
    let mut soak = timed("starting three workloads with their sidecars, and the observer", Soak::start)?;
    let outcome = soak.go_on(options, &stop);
    if stop.load(Ordering::Relaxed) {
        bail!("stopped before the end: nothing can be said");
    }
    outcome?;
    soak.judge()
}

/// The running mesh and the expected counts; dropped in this order, the mesh last.
struct Soak {
    talk: Option<Talk>,
    observer: Observer,
    bpffs: Bpffs,
    truth: Counts,
    messages: Messages,
    faults: Faults,
    started: ResourceUsage,
    warm: Option<ResourceUsage>,
    bookstore: Bookstore,
}

impl Soak {
    fn start() -> Result<Self> {
        let bookstore = Bookstore::open()?;
        let bpffs = Bpffs::mount(bookstore.mesh.directory())?;
        let observer = faults::observe(&bookstore, &bpffs)?;
        let started = ResourceUsage::of(observer.pid())?;
        Ok(Self {
            talk: Some(bookstore.talk()?),
            observer,
            bpffs,
            truth: Counts::default(),
            messages: Messages::default(),
            faults: Faults::default(),
            started,
            warm: None,
            bookstore,
        })
    }

    fn go_on(&mut self, options: &Options, stop: &AtomicBool) -> Result<()> {
        say(format!("{:?} of traffic and faults, seed {}", options.time, options.seed));
        let (begun, half) = (Instant::now(), options.time / 2);
        let warm = half + WARMING.min(half / 2);
        let mut reported = begun;
        let mut dice = faults::Dice::new(options.seed);
        while begun.elapsed() < options.time && !stop.load(Ordering::Relaxed) {
            sleep(PAUSE);
            // Kills end at half time, as memory is compared within one process.
            self.fault(&mut dice, begun.elapsed() < half)?;
            if self.warm.is_none() && begun.elapsed() >= warm {
                self.warm = Some(ResourceUsage::of(self.observer.pid())?);
            }
            if reported.elapsed() >= PROGRESS {
                reported = Instant::now();
                self.report(begun.elapsed())?;
            }
        }
        Ok(())
    }

    /// Injects one fault and undoes it.
    fn fault(&mut self, dice: &mut faults::Dice, may_kill: bool) -> Result<()> {
        match dice.throw(if may_kill { 10 } else { 8 }) {
            0 => {
                self.quiet()?;
                self.faults.restart_sidecar(&mut self.bookstore, &mut self.observer, dice)?;
                self.talk = Some(self.bookstore.talk()?);
                Ok(())
            }
            1 | 2 => self.faults.lose_packets(&self.bookstore, dice),
            3 => self.faults.reset_connections(&self.bookstore),
            4 => self.faults.reset_by_server(&self.bookstore),
            8 | 9 => self.faults.kill_observer(&self.bookstore, &self.bpffs, &mut self.observer),
            _ => self.faults.scrape(&self.observer),
        }
    }

    /// Waits until every exchange has ended, and reads the logs, which an ended Envoy cannot write any more.
    fn quiet(&mut self) -> Result<()> {
        if let Some(talk) = self.talk.take() {
            let more = talk.end();
            self.messages.requests += more.requests;
            self.messages.responses += more.responses;
        }
        self.bookstore.read_logs(&mut self.truth)
    }

    fn report(&self, elapsed: Duration) -> Result<()> {
        let seen = self.observer.counts()?;
        let held = ResourceUsage::of(self.observer.pid())?;
        println!("{:>9}  {}  {}  {held}", format!("{elapsed:.1?}"), Totals::of(&seen), self.faults);
        Ok(())
    }

    /// Returns the observer's resource usage once ended sidecars are released, or after a timeout.
    fn let_go(&self) -> Result<ResourceUsage> {
        let end = Instant::now() + SETTLE_TIMEOUT;
        loop {
            let held = ResourceUsage::of(self.observer.pid())?;
            if held.links == self.started.links || Instant::now() > end {
                return Ok(held);
            }
            sleep(Duration::from_millis(100));
        }
    }

    /// Ends the traffic and compares; an error if anything differs or memory grew.
    fn judge(mut self) -> Result<()> {
        self.quiet()?;
        self.truth.messages = bookstore::messages(&self.messages);
        let (observed, differences) = bookstore::compare(&self.observer, &self.truth, SETTLE_TIMEOUT)?;
        let health = self.observer.health()?;
        let held = self.let_go()?;
        println!("\n{:<10}{:>24}{:>24}{:>12}", "", "Envoy", "observer", "Δ");
        let (truth, seen) = (Totals::of(&self.truth), Totals::of(&observed));
        for (what, truth, seen) in truth.rows(&seen) {
            println!("{what:<10}{truth:>24}{seen:>24}{:>12}", i128::from(seen) - i128::from(truth));
        }
        println!("\nfaults: {}\nthe observer's own metrics: {health}", self.faults);
        let warm = self.warm.unwrap_or(held);
        println!("memory after warming up: {warm}\nmemory in the end:       {held}");
        ensure!(
            differences.is_empty(),
            "the observer's counts differ from Envoy's:\n      {differences}\n  its log:\n{}",
            self.observer.log()
        );
        ensure!(truth.requests > 0 && truth.connections > 0, "there was no traffic");
        let (own, maps) = (warm.anonymous_bytes + OWN_GROWTH, warm.map_bytes + MAP_GROWTH);
        ensure!(
            held.anonymous_bytes <= own && held.map_bytes <= maps,
            "memory grew by more than {} kB of its own and {} kB of maps",
            OWN_GROWTH / 1024,
            MAP_GROWTH / 1024
        );
        let (links, maps) = (self.started.links, self.started.maps);
        ensure!((held.links, held.maps) == (links, maps), "{links} links and {maps} maps there were at first");
        self.observer.stop()?;
        say("every count and every byte equals Envoy's, memory is flat; namespaces, processes and cgroups are removed");
        Ok(())
    }
}

/// Sums of all counts.
struct Totals {
    requests: u64,
    request_bytes: u64,
    response_bytes: u64,
    messages: u64,
    connections: u64,
    tcp_bytes: u64,
}

impl Totals {
    fn of(counts: &Counts) -> Self {
        let requests = || counts.requests.values();
        let connections = || counts.connections.values();
        Self {
            requests: requests().map(|it| it.count).sum(),
            request_bytes: requests().map(|it| it.request_bytes).sum(),
            response_bytes: requests().map(|it| it.response_bytes).sum(),
            messages: counts.messages.values().map(|it| it.requests + it.responses).sum(),
            connections: connections().map(|it| it.opened).sum(),
            tcp_bytes: connections().map(|it| it.received + it.sent).sum(),
        }
    }

    fn rows(&self, seen: &Self) -> [(&'static str, u64, u64); 6] {
        [
            ("requests", self.requests, seen.requests),
            ("bytes in", self.request_bytes, seen.request_bytes),
            ("bytes out", self.response_bytes, seen.response_bytes),
            ("messages", self.messages, seen.messages),
            ("TCP", self.connections, seen.connections),
            ("TCP bytes", self.tcp_bytes, seen.tcp_bytes),
        ]
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} requests, {} TCP connections;", self.requests, self.connections)
    }
}
