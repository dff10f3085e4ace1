//! Every test in one command, cheap ones first; each step says its name, its time and its result.

mod named;

use std::{
    env,
    num::NonZero,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::{
    build,
    exec::{cargo, exec, say, seconds, target},
    fuzz, setup, soak, tidy, vm,
};

/// How long each fuzz target runs in the complete run.
const FUZZ: Duration = Duration::from_secs(7);

/// How long the soak lasts in the complete run.
const SOAK: Duration = Duration::from_secs(75);

/// What `cargo xtask test` takes.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only what needs neither root nor the kernel object: formatting, rules, clippy, host tests.
    #[arg(long)]
    quick: bool,
    /// Only tests whose name contains this, and no checks of form.
    filter: Option<String>,
}

/// Packages whose tests need neither root nor the kernel object.
const HOST: [&str; 5] = ["observer-common", "observer-proto", "observer-model", "observer", "xtask"];

/// Package of the privileged and end-to-end tests.
const END_TO_END: &str = "harness";

/// Runs the steps; fails if one did, after all that could run have run.
pub(crate) fn run(options: &Options) -> Result<()> {
    match &options.filter {
        Some(filter) => by_name(filter, options.quick),
        None => everything(options.quick),
    }
}

fn everything(quick: bool) -> Result<()> {
    let mut report = Report::default();
    if !quick {
        report.step("set-up", setup::everything);
        report.stop_on_failure()?;
    }
    report.step("formatting", || exec(cargo().args(["fmt", "--all", "--check"])));
    report.step("rules", tidy::run);
    report.step("clippy", || {
        let what = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
        exec(cargo().args(what))
    });
    report.step("host tests", || {
        let packages = HOST.iter().flat_map(|package| ["-p", package]);
        exec(cargo().args(["test", "--locked", "--no-fail-fast"]).args(packages))
    });
    if !quick {
        report.step("fuzzing", || fuzz::all(FUZZ));
        report.step("build", || build::build(&build::Options::default()).map(drop));
        report.stop_on_failure_of("build")?;
        report.step("reproducing the kernel object", build::reproduce);
        report.step("privileged and end-to-end tests", || {
            let mut command = cargo();
            command.args(["test", "--locked", "-p", END_TO_END, "--no-fail-fast", "--"]);
            with_observer(&mut command);
            exec(&mut command)
        });
        report.step("soak", || soak::run(&soak::Options { time: SOAK, seed: 1 }));
        report.step("kernel matrix", || vm::test(&target().join("release/observer")));
    }
    report.finish()
}

/// Runs the tests whose names contain `filter`; an error if there is none, since nothing would be shown.
fn by_name(filter: &str, quick: bool) -> Result<()> {
    let mut report = Report::default();
    if !quick {
        report.step("set-up", setup::everything);
        report.stop_on_failure()?;
    }
    let host = named::programs(&HOST, filter)?;
    let end_to_end = if quick { Vec::new() } else { named::programs(&[END_TO_END], filter)? };
    named::ensure_some(&[&host, &end_to_end], filter)?;
    if !host.is_empty() {
        report.step("host tests", || named::run(&host, filter, |_| {}));
    }
    if !end_to_end.is_empty() {
        report.step("build", || build::build(&build::Options::default()).map(drop));
        report.stop_on_failure_of("build")?;
        report.step("privileged and end-to-end tests", || named::run(&end_to_end, filter, with_observer));
    }
    report.finish()
}

/// Adds to a command of the end-to-end tests what they need: the observer, the tools, and no more threads than processors.
fn with_observer(command: &mut Command) {
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    command.arg(format!("--test-threads={threads}")).env("MESH_OBSERVER_BIN", target().join("release/observer"));
    if env::var_os("MESH_OBSERVER_CACHE").is_none() {
        command.env("MESH_OBSERVER_CACHE", crate::exec::cache());
    }
}

/// What ran, how long, and how it ended.
#[derive(Default)]
struct Report(Vec<Step>);

struct Step {
    name: &'static str,
    took: Duration,
    error: Option<anyhow::Error>,
}

impl Report {
    fn step(&mut self, name: &'static str, work: impl FnOnce() -> Result<()>) {
        say(format!("── {name}"));
        let start = Instant::now();
        let error = work().err();
        let step = Step { name, took: start.elapsed(), error };
        say(step.to_string());
        self.0.push(step);
    }

    /// Without these steps none that follow can say anything.
    fn stop_on_failure(&self) -> Result<()> {
        if self.failed() == 0 { Ok(()) } else { self.finish() }
    }

    fn stop_on_failure_of(&self, name: &str) -> Result<()> {
        let failed = self.0.iter().any(|step| step.name == name && step.error.is_some());
        if failed { self.finish() } else { Ok(()) }
    }

    fn finish(&self) -> Result<()> {
        say("── summary");
        for step in &self.0 {
            say(step.to_string());
        }
        let total = self.0.iter().map(|step| step.took).sum();
        match self.failed() {
            0 => {
                say(format!("all {} steps passed in {}", self.0.len(), seconds(total)));
                Ok(())
            }
            failed => bail!("{failed} of {} steps failed, after {}", self.0.len(), seconds(total)),
        }
    }

    fn failed(&self) -> usize {
        self.0.iter().filter(|step| step.error.is_some()).count()
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:<32} {:>12}  ", self.name, seconds(self.took))?;
        match &self.error {
            None => f.write_str("passed"),
            Some(error) => write!(f, "FAILED: {error:#}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failed_step_fails_the_run_and_the_others_still_run() {
        let mut report = Report::default();
        report.step("a", || bail!("broken"));
        report.step("b", || Ok(()));
        assert!(report.stop_on_failure_of("b").is_ok());
        assert!(report.stop_on_failure_of("a").is_err());
        let error = report.finish().expect_err("a failed");
        assert!(error.to_string().starts_with("1 of 2 steps failed"), "{error}");
        assert!(report.0[0].to_string().ends_with("FAILED: broken"), "{}", report.0[0]);
    }
}
