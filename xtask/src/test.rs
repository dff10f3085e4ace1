//! Runs the tests, cheap steps first; each step reports its name, duration and result.

use std::{
    fmt,
    num::NonZero,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Error, Result, anyhow, ensure};
use clap::ValueEnum;

use crate::{
    build,
    exec::{cache, cargo, exec, output, say, target},
    failures, fuzz, program, setup, tidy, vm,
};

/// Duration of each fuzz target.
const FUZZ: Duration = Duration::from_secs(7);
/// Duration of the soak.
const SOAK: &str = "75s";

/// Packages whose tests need neither root nor the kernel object; the pattern leaves out the object's own.
const HOST: [&str; 7] = ["observer-[cmpt]*", "observer", "xtask", "bench", "bookstore", "cluster", "image"];
/// Package of the privileged and end-to-end tests.
const END_TO_END: [&str; 1] = ["harness"];

/// Options of `cargo xtask test`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run only the steps that need neither root nor the kernel object.
    #[arg(long, conflicts_with = "only")]
    quick: bool,
    /// Run only these steps, separated by commas, and the set-up that they need.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Step>,
    /// Run only tests whose name contains this, in the steps `host` and `end-to-end`.
    filter: Option<String>,
}

/// A step, in the order in which they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Step {
    /// rustfmt.
    Formatting,
    /// Rules of `cargo xtask tidy`, dependencies.
    Rules,
    /// Lints.
    Clippy,
    /// Tests without privileges.
    Host,
    /// Every fuzz target for a few seconds.
    Fuzzing,
    /// Kernel object and observer, and whether the former is reproducible.
    Build,
    /// Tests on the mesh.
    EndToEnd,
    /// The demo's mesh with faults.
    Soak,
    /// Debian's kernels in emulated machines.
    Kernels,
}

const QUICK: [Step; 4] = [Step::Formatting, Step::Rules, Step::Clippy, Step::Host];

/// Runs the steps; fails if one does, after all others that can run.
pub(crate) fn run(options: &Options) -> Result<()> {
    let filter = options.filter.as_deref();
    let mut steps = match (options.quick, filter) {
        _ if !options.only.is_empty() => options.only.clone(),
        (true, None) => QUICK.to_vec(),
        (false, None) => Step::value_variants().to_vec(),
        (true, Some(_)) => vec![Step::Host],
        (false, Some(_)) => vec![Step::Host, Step::EndToEnd],
    };
    if let Some(filter) = filter {
        steps.retain(|step| *step != Step::Host || has_test(&HOST, filter));
        steps.retain(|step| *step != Step::EndToEnd || has_test(&END_TO_END, filter));
        ensure!(!steps.is_empty(), "there is no test whose name contains `{filter}`");
    }
    let mut report = Report::default();
    if steps.iter().any(|step| !QUICK.contains(step)) {
        report.step("set-up", setup::everything)?;
    }
    let needs_observer = |step: &Step| [Step::EndToEnd, Step::Soak, Step::Kernels].contains(step);
    for step in Step::value_variants() {
        let is_chosen = steps.contains(step);
        if *step == Step::Build && (is_chosen || steps.iter().any(needs_observer)) {
            // Nothing that follows can run without it.
            report.step("release build", || build::build(&build::Options::default()).map(drop))?;
        }
        if is_chosen {
            let _ = report.step(&step.name(), || step.run(filter));
        }
    }
    report.finish()
}

impl Step {
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    fn run(self, filter: Option<&str>) -> Result<()> {
        let observer = target().join("release/observer");
        match self {
            Self::Formatting => exec(cargo().args(["fmt", "--all", "--check"])),
            Self::Rules => tidy::run(),
            Self::Clippy => {
                let clippy = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
                exec(cargo().args(clippy))
            }
            Self::Host => exec(tests(&HOST).arg("--").args(filter)),
            Self::Fuzzing => fuzz::all(FUZZ),
            Self::Build => build::reproduce(),
            Self::EndToEnd => end_to_end(filter),
            Self::Soak => {
                let mut command = program::SOAK.command()?;
                exec(command.args(["--for", SOAK]).env("MESH_OBSERVER_BIN", observer))
            }
            Self::Kernels => vm::test(&observer),
        }
    }
}

/// Runs the tests on the mesh; the error has the failed ones with their messages.
fn end_to_end(filter: Option<&str>) -> Result<()> {
    exec(program::CLUSTER.command()?.arg("build-apiserver"))?;
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let mut command = tests(&END_TO_END);
    command.arg("--").args(filter).arg(format!("--test-threads={threads}"));
    command.env("MESH_OBSERVER_BIN", target().join("release/observer")).env("MESH_OBSERVER_CACHE", cache());
    let failed = failures::of(&mut command)?;
    ensure!(failed.is_empty(), "{} tests failed:\n{}", failed.len(), failures::text(&failed));
    Ok(())
}

fn tests(packages: &[&str]) -> Command {
    let mut command = cargo();
    command.args(["test", "--locked", "--no-fail-fast"]).args(packages.iter().flat_map(|package| ["-p", package]));
    command
}

/// Returns whether these packages have a test whose name contains `filter`; true if they do not build, which the tests
/// then report.
fn has_test(packages: &[&str], filter: &str) -> bool {
    let listed = output(tests(packages).args(["--", filter, "--list"]));
    listed.map_or(true, |listed| listed.lines().any(|line| line.ends_with(": test")))
}

/// Steps that have run.
#[derive(Default)]
struct Report(Vec<Outcome>);

struct Outcome {
    step: String,
    took: Duration,
    error: Option<Error>,
}

impl Report {
    /// Runs a step; an error, which is the report so far, if it fails.
    fn step(&mut self, step: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        say(format!("── {step}"));
        let start = Instant::now();
        let error = work().err();
        let outcome = Outcome { step: step.to_owned(), took: start.elapsed(), error };
        say(outcome.to_string());
        let failed = outcome.error.is_some();
        self.0.push(outcome);
        if failed { Err(self.failure()) } else { Ok(()) }
    }

    fn finish(&self) -> Result<()> {
        say("── summary");
        for outcome in &self.0 {
            say(outcome.to_string());
        }
        if self.0.iter().any(|outcome| outcome.error.is_some()) {
            return Err(self.failure());
        }
        let total: Duration = self.0.iter().map(|outcome| outcome.took).sum();
        say(format!("all {} steps passed in {total:.1?}", self.0.len()));
        Ok(())
    }

    fn failure(&self) -> Error {
        let failed: Vec<&str> =
            self.0.iter().filter(|outcome| outcome.error.is_some()).map(|outcome| outcome.step.as_str()).collect();
        anyhow!("{} of {} steps failed: {}", failed.len(), self.0.len(), failed.join(", "))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<14} {:>12}  ", self.step, format!("{:.1?}", self.took))?;
        match &self.error {
            None => f.write_str("passed"),
            Some(error) => write!(f, "FAILED: {error:#}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn one_failed_step_fails_the_run() {
        let mut report = Report::default();
        assert!(report.step("a", || bail!("broken")).is_err());
        assert!(report.step("b", || Ok(())).is_ok());
        let error = report.finish().expect_err("a failed");
        assert_eq!(error.to_string(), "1 of 2 steps failed: a");
        assert!(report.0[0].to_string().ends_with("FAILED: broken"), "{}", report.0[0]);
    }
}
