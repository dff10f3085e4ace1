//! The test in a cluster that runs.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use harness::{
    console::{say, timed},
    wait::wait_until,
};

use crate::{
    access_log::{Line, Position},
    dashboards::Dashboards,
    disturbance,
    expectation::{self, Bytes, Labels},
    facts::Facts,
    judge::{Table, bytes_rise, is_same, rise},
    observer::{self, Counted},
    traffic::{NAMED, SITUATIONS, Situation},
};

/// Limits the time until the observer's counts are the logs'.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(20);
/// Longer than Envoy's interval of writing its log, the kubelet's of reading it and the observer's rounds.
const QUIET: Duration = Duration::from_millis(1500);
/// Limits the time from a pod's start to series with its name.
const NAMED_TIMEOUT: Duration = Duration::from_secs(15);

/// How often everything is called for Istio's dashboards: rates are of what comes after the first scrape.
const REPETITIONS: usize = 3;

/// Labels without which a graph has no edge.
const BOTH_ENDS: [&str; 4] =
    ["source_workload", "source_workload_namespace", "destination_workload", "destination_service_name"];

/// Runs every situation and disturbance, and prints the table.
pub(crate) fn run() -> Result<()> {
    let mut test = Test::new()?;
    let result = test.everything();
    // Also of a test that did not come to its end.
    say(test.table.to_string());
    say(format!("a new pod's series named both ends {:.1?} after its rollout began", result?));
    test.table.check()
}

struct Test {
    facts: Facts,
    position: Position,
    before: Counted,
    table: Table,
}

impl Test {
    fn new() -> Result<Self> {
        let mut facts = Facts::default();
        facts.refresh()?;
        let mut position = Position::default();
        position.advance(&facts)?;
        Ok(Self { facts, position, before: observer::counted()?, table: Table::default() })
    }

    /// Runs every situation and disturbance; returns how long a new pod's series lack names.
    fn everything(&mut self) -> Result<Duration> {
        // First, while everything that was ever counted can have names.
        let dashboards = Dashboards::start()?;
        self.situation("for the dashboards", |facts| {
            (0..REPETITIONS).flat_map(|_| &NAMED).try_for_each(|situation| situation.run(facts))
        })?;
        say(dashboards.check()?);
        drop(dashboards);
        for situation in &SITUATIONS {
            self.situation(situation.name, |facts| situation.run(facts))?;
        }
        let load = &SITUATIONS[1];
        self.situation("observers replaced", |facts| disturbance::upgrade_under_load(load, facts))?;
        self.situation("sidecar killed", |facts| {
            disturbance::kill_sidecar(facts, "bank", "ledger")?;
            load.run(facts)
        })?;
        // The kubelet removes the log of the pod that ends, so nothing is sent to it in between.
        self.situation("rollout", |facts| {
            disturbance::roll_out("bank", "ledger")?;
            load.run(facts)
        })?;
        self.time_until_named(load)
    }

    /// Runs `work` and adds what was counted meanwhile to the table.
    fn situation(&mut self, name: &str, work: impl FnOnce(&Facts) -> Result<()>) -> Result<()> {
        timed(name, || work(&self.facts))?;
        let (expected, bytes) = self.expected()?;
        let wanted = expected.len() as f64;
        // The table says so if they never are equal.
        let _ = wait_until("the counts are the logs'", SETTLE_TIMEOUT, || {
            let now = observer::counted()?;
            let counted: f64 = rise(&self.before.series, &now.series)?.values().sum();
            ensure!(is_same(counted, wanted), "{counted} of {wanted}");
            let counted = bytes_rise(&self.before.bytes, &now.bytes);
            ensure!(counted == bytes, "{counted:?} bytes of {bytes:?}");
            Ok(())
        });
        let after = observer::counted()?;
        self.table.add(name, &expected, &rise(&self.before.series, &after.series)?);
        self.table.add_bytes(name, &bytes, &bytes_rise(&self.before.bytes, &after.bytes));
        self.before = after;
        Ok(())
    }

    /// Returns what the sidecars logged since the last call, once they log no more: of each request or connection, and the
    /// bytes of all connections.
    fn expected(&mut self) -> Result<(Vec<(&'static str, Labels)>, Bytes)> {
        let (mut lines, mut quiet) = (Vec::<Line>::new(), 0);
        // A pod that ends may log its last lines a flush later than all others.
        while quiet < 2 {
            sleep(QUIET);
            self.facts.refresh()?;
            let more = self.position.advance(&self.facts)?;
            quiet = if more.is_empty() { quiet + 1 } else { 0 };
            lines.extend(more);
        }
        ensure!(!lines.is_empty(), "no sidecar logged anything");
        let labels = lines.iter().filter_map(|line| expectation::of(line, &self.facts)).collect();
        Ok((labels, expectation::bytes(&lines)))
    }

    /// Gives a server a new pod and returns the time from then until a series that it counts in names both ends.
    fn time_until_named(&mut self, load: &Situation) -> Result<Duration> {
        let start = Instant::now();
        disturbance::roll_out("bank", "ledger")?;
        let before = observer::counted()?.series;
        load.run(&self.facts)?;
        wait_until("a new pod's series have its name", NAMED_TIMEOUT, || {
            let rise = rise(&before, &observer::counted()?.series)?;
            let is_named = |labels: &Labels| BOTH_ENDS.iter().all(|label| labels.contains_key(label));
            ensure!(rise.keys().any(|(by, labels)| by == "destination" && is_named(labels)), "no series names both");
            Ok(())
        })?;
        Ok(start.elapsed())
    }
}
