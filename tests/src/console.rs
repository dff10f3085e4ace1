//! Progress lines, durations and signals of the programs that run on the harness: demo, soak, benchmarks.

use std::{
    env,
    io::{IsTerminal as _, stderr},
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
    time::Instant,
};

use anyhow::{Context as _, Result};
use signal_hook::{
    consts::{SIGHUP, TERM_SIGNALS},
    flag,
};

use crate::tools::repository;

/// Writes a progress line to standard error.
pub fn say(message: impl AsRef<str>) {
    let (bold, plain) = if stderr().is_terminal() { ("\x1b[1;36m", "\x1b[0m") } else { ("", "") };
    eprintln!("{bold}mesh{plain} {}", message.as_ref());
}

/// Runs `work` with a line before it, and one with its result and duration after it.
pub fn timed<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    say(format!("{what} …"));
    let start = Instant::now();
    let result = work();
    let outcome = if result.is_ok() { "done" } else { "FAILED" };
    say(format!("{what}: {outcome} in {:.1?}", start.elapsed()));
    result
}

/// Returns a flag that becomes true on SIGHUP, SIGINT, SIGTERM or SIGQUIT.
pub fn stop_on_signal() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in TERM_SIGNALS.iter().chain(&[SIGHUP]) {
        flag::register(*signal, Arc::clone(&stop)).context("signal handler")?;
    }
    Ok(stop)
}

/// Returns Cargo's target directory: `CARGO_TARGET_DIR`, or `target` in the repository.
pub fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| repository().join("target"), |directory| repository().join(directory))
}

/// Turns a program's result into its exit code, and reports an error.
pub fn exit(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
