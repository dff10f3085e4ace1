//! What commands have in common: loading the configuration, printing, and exit codes.

use std::{
    env,
    io::{self, Write},
    process::ExitCode,
};

use anyhow::{Context, Error, Result};

use super::{args::RunArgs, command::command};
use crate::{
    config::Config,
    system::{capabilities, environment, logging},
};

const COULD_NOT_RUN: u8 = 1;
const WRONG_USAGE: u8 = 2;

/// A failed command: the exit code, and the error unless it was printed already.
pub struct Failure {
    code: u8,
    error: Option<Error>,
}

impl Failure {
    /// The command could not run.
    pub fn could_not_run(error: Error) -> Self {
        Self { code: COULD_NOT_RUN, error: Some(error) }
    }

    /// An option or the configuration file is invalid.
    pub fn wrong_usage(error: Error) -> Self {
        Self { code: WRONG_USAGE, error: Some(error) }
    }

    /// The command could not run; the reason was printed.
    #[must_use]
    pub fn printed() -> Self {
        Self { code: COULD_NOT_RUN, error: None }
    }

    /// Prints the error and returns the exit code.
    #[must_use]
    pub fn report(self) -> ExitCode {
        if let Some(error) = self.error {
            eprintln!("error: {error:#}");
        }
        self.code.into()
    }
}

/// Loads the configuration and starts logging.
///
/// # Errors
/// An option, the configuration file or `RUST_LOG` is invalid.
pub fn configure(args: &RunArgs) -> Result<Config, Failure> {
    let config = Config::load(args).map_err(|error| Failure::wrong_usage(error.into()))?;
    logging::init(config.log).map_err(|error| Failure::wrong_usage(Error::msg(error)))?;
    let variables = env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
    for name in environment::unknown(&command(), variables) {
        tracing::warn!(
            "environment variable {name} has no effect: there is no such option (see `observer run --help`)"
        );
    }
    Ok(config)
}

/// Drops all capabilities that observing does not need; called while there is one thread.
///
/// # Errors
/// The kernel refuses.
pub fn drop_privileges() -> Result<(), Failure> {
    capabilities::drop_unneeded().context("capabilities cannot be dropped").map_err(Failure::could_not_run)
}

/// Runs a future to its end.
///
/// # Errors
/// The runtime cannot start, or the future failed.
pub fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("asynchronous runtime").map_err(Failure::could_not_run)?;
    let outcome = runtime.block_on(work);
    // Blocking calls (an unread pipe, a hung disk, a name server) are not awaited.
    runtime.shutdown_background();
    outcome.map_err(Failure::could_not_run)
}

/// Prints on standard output. A reader that closes the pipe early, e.g. `head`, is not an error.
///
/// # Errors
/// Standard output cannot be written.
pub fn print(bytes: &[u8]) -> Result<(), Failure> {
    match io::stdout().lock().write_all(bytes) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::could_not_run(Error::new(error).context("standard output")))
        }
        _ => Ok(()),
    }
}
