//! The kernel matrix: Debian's kernels in emulated machines, in which the observer must count the traffic to the byte,
//! or refuse to start with the reason. Independent of KVM and of the host's kernel.

mod boot;
mod image;
mod kernels;

use std::{
    fs,
    path::Path,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};

use self::{
    boot::Machine,
    kernels::{Files, KERNELS},
};
use crate::{
    build,
    exec::{say, target, timed},
    program, setup,
};

/// Concurrent machines; each keeps about one processor busy.
const AT_ONCE: usize = 2;

/// The kernel that is also booted with Envoy.
const WITH_ENVOY: &str = "6.12";

/// Tasks of a machine's first process.
const OBSERVE: &str = "observe";
const ENVOY: &str = "envoy";
const REFUSE: &str = "refuse";

/// Options of `cargo xtask vm`.
#[derive(clap::Args, Default)]
pub(crate) struct Options {
    /// Only machines whose name contains one of these, e.g. `6.1` or `confidentiality`.
    names: Vec<String>,
    /// List the machines and exit.
    #[arg(long)]
    list: bool,
}

/// A kernel and its options.
struct Entry {
    kernel: usize,
    name: String,
    options: &'static str,
    /// Task of its first process.
    task: &'static str,
    /// Whether every run of the tests boots it.
    in_tests: bool,
}

/// Builds the observer and boots the machines.
pub(crate) fn run(options: &Options) -> Result<()> {
    if options.list {
        for entry in matrix() {
            println!("{}", entry.name);
        }
        return Ok(());
    }
    let observer = build::observer()?;
    let names = &options.names;
    boot(&observer, |entry| names.is_empty() || names.iter().any(|name| entry.name.contains(name.as_str())))
}

/// Boots the machines of every run of the tests, with an observer that is built.
pub(crate) fn test(observer: &Path) -> Result<()> {
    boot(observer, |entry| entry.in_tests)
}

fn boot(observer: &Path, is_chosen: impl Fn(&Entry) -> bool) -> Result<()> {
    setup::for_machines()?;
    let chosen: Vec<Entry> = matrix().into_iter().filter(is_chosen).collect();
    ensure!(!chosen.is_empty(), "no machine has such a name: `cargo xtask vm --list` names them");
    let kernels: Vec<(&str, Files)> =
        KERNELS.iter().map(|kernel| Ok((kernel.name, kernel.files()?))).collect::<Result<_>>()?;
    let guest = program::VM_GUEST.build()?;
    let directory = target().join("vm");
    fs::create_dir_all(&directory)?;
    let image = directory.join("image.cpio");
    timed("packing what the machines start with", || image::write(&image, &guest, observer, None, &kernels))?;
    // A separate image: it is so large that unpacking it would slow down the other machines.
    let with_envoy = directory.join("envoy.cpio");
    if chosen.iter().any(|entry| entry.task == ENVOY) {
        let envoy = setup::envoy()?;
        timed("packing Envoy too", || image::write(&with_envoy, &guest, observer, Some(&envoy), &kernels))?;
    }
    let results = at_once(chosen, |entry| {
        let kernel = &KERNELS[entry.kernel];
        Machine {
            kernel: &kernels[entry.kernel].1.image,
            image: if entry.task == ENVOY { &with_envoy } else { &image },
            options: entry.options,
            task: format!("{} {}", entry.task, kernel.name),
            console: directory.join(format!("{}.log", entry.name.replace(' ', "-"))),
        }
        .run()
    });
    report(&results)
}

fn matrix() -> Vec<Entry> {
    let mut entries = Vec::new();
    for (number, kernel) in KERNELS.iter().enumerate() {
        let mut add = |what: &str, options, task, in_tests| {
            entries.push(Entry { kernel: number, name: format!("{} {what}", kernel.name), options, task, in_tests });
        };
        if !kernel.works {
            add("refusal", "", REFUSE, true);
            continue;
        }
        add("none", "", OBSERVE, true);
        add("integrity", "lockdown=integrity", OBSERVE, !kernel.is_slow);
        add("confidentiality", "lockdown=confidentiality", OBSERVE, !kernel.is_slow);
        if kernel.preempts {
            add("preempt=full", "preempt=full", OBSERVE, !kernel.is_slow);
        }
        if kernel.name == WITH_ENVOY {
            add("envoy", "lockdown=integrity", ENVOY, false);
        }
    }
    entries
}

/// Result of one machine.
struct Outcome {
    name: String,
    took: Duration,
    result: Result<String>,
}

/// Runs them, a few at a time, and reports each result as soon as it is known.
fn at_once(entries: Vec<Entry>, run: impl Fn(&Entry) -> Result<String> + Sync) -> Vec<Outcome> {
    let waiting = Mutex::new(entries.into_iter());
    let outcomes = Mutex::new(Vec::new());
    let next = || waiting.lock().expect("nobody panics with it").next();
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(entry) = next() {
                    let start = Instant::now();
                    let result = run(&entry);
                    let outcome = Outcome { name: entry.name, took: start.elapsed(), result };
                    say(outcome.to_string());
                    outcomes.lock().expect("nobody panics with it").push(outcome);
                }
            });
        }
    });
    outcomes.into_inner().expect("every thread has ended")
}

fn report(outcomes: &[Outcome]) -> Result<()> {
    say("kernel matrix");
    for outcome in outcomes {
        say(outcome.to_string().lines().next().unwrap_or_default());
    }
    match outcomes.iter().filter(|outcome| outcome.result.is_err()).count() {
        0 => Ok(()),
        failed => bail!("{failed} of {} machines failed", outcomes.len()),
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:<24} {:>12}  ", self.name, format!("{:.1?}", self.took))?;
        match &self.result {
            Ok(said) => write!(f, "passed  {said}"),
            Err(error) => write!(f, "FAILED: {error:#}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_machine_fails_the_matrix_and_the_others_still_run() {
        let outcomes =
            at_once(matrix(), |entry| if entry.name == "6.1 none" { bail!("no") } else { Ok(String::new()) });
        assert_eq!(outcomes.len(), matrix().len());
        let error = report(&outcomes).expect_err("one failed");
        assert_eq!(error.to_string(), format!("1 of {} machines failed", outcomes.len()));
    }
}
