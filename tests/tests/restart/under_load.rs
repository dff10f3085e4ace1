//! Restarts under load, judged by Envoy's log.

use std::{
    env,
    path::PathBuf,
    process::{Command, Stdio},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{observer::counts, pair::Expected, tools};

use super::{
    Pinned,
    counters::Counters,
    load::{Load, http1, http2},
    other_build::other_build,
    request_both,
};

/// Variable with the number of restarts per case.
const RESTARTS: &str = "MESH_OBSERVER_RESTARTS";
const COUNT_TIMEOUT: Duration = Duration::from_secs(20);

pub(super) fn killed(pinned: &mut Pinned) -> Result<String> {
    restarted(pinned, 5, &[tools::observer()?], |pinned, number| {
        // Kills the observer, and then another while it starts, each a little later.
        drop(pinned.take_observer()?);
        pinned.kill_while_starting(number)
    })
}

pub(super) fn stopped(pinned: &mut Pinned) -> Result<String> {
    restarted(pinned, 2, &[tools::observer()?], |pinned, _| pinned.take_observer()?.stop())
}

pub(super) fn upgraded_and_downgraded(pinned: &mut Pinned) -> Result<String> {
    let builds = [other_build(pinned.pair.mesh.directory())?, tools::observer()?];
    restarted(pinned, 2, &builds, |pinned, _| pinned.take_observer()?.stop())
}

/// Ends the observer under load and starts the next of the builds, over and over: nothing may be missing, or counted
/// twice.
fn restarted(
    pinned: &mut Pinned,
    default: usize,
    builds: &[PathBuf],
    end: impl Fn(&mut Pinned, u32) -> Result<()>,
) -> Result<String> {
    let count = env::var(RESTARTS).ok().and_then(|number| number.parse().ok()).unwrap_or(default);
    pinned.observe()?;
    let (before, preexisting) = (pinned.pair.begin()?, pinned.preexisting()?);
    let mut load = Load::start(&pinned.pair, vec![http1(&pinned.pair), http2(&pinned.pair)])?;
    for (number, build) in (0..).zip(builds.iter().cycle().take(count)) {
        wait_for_requests(pinned)?;
        load.beat()?;
        let counted = Counters::read(pinned.observer()?)?;
        end(pinned, number)?;
        load.beat()?;
        pinned.observe_with(build, "")?;
        counted.go_on_in(&Counters::read(pinned.observer()?)?)?;
    }
    load.end()?;
    let (truth, _) = pinned.pair.truth_of_any()?;
    let said = pinned.pair.agree(&before, &truth)?;
    let preexisting = pinned.preexisting()? - preexisting;
    ensure!(preexisting == 0.0, "{preexisting} preexisting connections");
    Ok(format!("{count} restarts, difference 0: {said}"))
}

/// Maps of another size are another layout: counts of the old ones continue, and losses are reported.
pub(super) fn different_map_layout(pinned: &mut Pinned) -> Result<String> {
    pinned.observe()?;
    let (before, preexisting) = (pinned.pair.begin()?, pinned.preexisting()?);
    let load = Load::start(&pinned.pair, vec![http1(&pinned.pair)])?;
    for settings in ["max_series = 500", ""] {
        wait_for_requests(pinned)?;
        let counted = Counters::read(pinned.observer()?)?;
        pinned.take_observer()?.stop()?;
        pinned.observe_with(&tools::observer()?, settings)?;
        let said = pinned.observer()?.log();
        ensure!(said.contains("a different layout"), "it says nothing of the layout:\n{said}");
        counted.go_on_in(&Counters::read(pinned.observer()?)?)?;
    }
    load.end()?;
    let (truth, _) = pinned.pair.truth_of_any()?;
    let preexisting = pinned.preexisting()? - preexisting;
    let seen = pinned.observer()?.counts()?.since(&before);
    let (mut all, mut missing) = (0, 0);
    for leg in [pinned.pair.source(), pinned.pair.destination()] {
        let (truth, seen) = (truth.total(&leg), seen.total(&leg));
        missing += truth.checked_sub(seen).with_context(|| format!("{leg}: {seen} requests instead of {truth}"))?;
        all += truth;
    }
    // Each of these connections has at most one request that met old and new programs.
    ensure!(
        missing as f64 <= preexisting,
        "{missing} of {all} requests are missing, {preexisting} connections are said"
    );
    let exact = pinned.pair.check(Expected::both(2), request_both)?;
    Ok(format!("{missing} of {all} requests missing, {preexisting} preexisting connections; then exact: {exact}"))
}

/// Waits until the observer counts further requests of the load.
fn wait_for_requests(pinned: &Pinned) -> Result<()> {
    let (observer, leg) = (pinned.observer()?, pinned.pair.source());
    let seen = observer.counts()?.total(&leg);
    observer.wait(COUNT_TIMEOUT, |metrics| counts(metrics).is_ok_and(|counts| counts.total(&leg) > seen)).map(drop)
}

impl Pinned {
    /// Starts an observer and kills it as it takes over, at an instant that `number` chooses.
    fn kill_while_starting(&self, number: u32) -> Result<()> {
        let mut observer = Command::new(tools::observer()?)
            .args([
                "run",
                "--listen=127.0.0.1:0",
                "--pin",
                &self.directory(),
                "--sidecar-exe",
                &self.pair.mesh.executable(),
            ])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        // Any instant is suitable.
        sleep(Duration::from_millis(37) * (number % 64));
        observer.kill()?;
        observer.wait().map(drop).context("an observer that was killed")
    }
}
