//! The command: reads the command line and the configuration, starts the log and the runtime, and turns what came of it
//! into an exit code: 0 stopped as asked, 1 could not run, 2 wrong usage.

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context, Error, Result};
use clap::Parser;
use observer::{
    app, check,
    cli::{CatalogueFormat, Cli, Command, RunArgs, SnapshotArgs},
    collect::kernel::folder::{Folder, Removed},
    config::Config,
    live,
    model::{catalogue, live::Live},
    privileges, snapshot, telemetry,
};

const COULD_NOT_RUN: u8 = 1;
const WRONG_USAGE: u8 = 2;

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(args) => prepared(&args, |config| observe(app::run(config))),
        Command::Check { pin, node } => prepared(&RunArgs { pin, node, ..RunArgs::default() }, checked),
        Command::Snapshot(SnapshotArgs { length, format, wavefront_names, node }) => {
            let args = RunArgs { wavefront_names, node, ..RunArgs::default() };
            prepared(&args, |config| observe(snapshot::print(config, length, format)))
        }
        Command::Detach { pin } => detach(&pin).map_err(Failure::could_not_run),
        Command::Catalogue { format, live: false, .. } => print(&printed(format, None)).map_err(Failure::could_not_run),
        Command::Catalogue { format, live: true, listen } => {
            block_on(async { print(&printed(format, Some(&live::ask(listen).await?))) })
        }
    };
    outcome.map_or_else(Failure::told, |()| ExitCode::SUCCESS)
}

/// What went wrong, unless that is on standard output already, and the exit code it ends with.
struct Failure {
    code: u8,
    error: Option<Error>,
}

impl Failure {
    fn could_not_run(error: Error) -> Self {
        Self { code: COULD_NOT_RUN, error: Some(error) }
    }

    fn wrong_usage(error: Error) -> Self {
        Self { code: WRONG_USAGE, error: Some(error) }
    }

    fn told(self) -> ExitCode {
        if let Some(error) = self.error {
            eprintln!("error: {error:#}");
        }
        self.code.into()
    }
}

fn prepared(args: &RunArgs, command: impl FnOnce(&Config) -> Result<(), Failure>) -> Result<(), Failure> {
    let config = Config::load(args).map_err(|error| Failure::wrong_usage(error.into()))?;
    telemetry::init(config.log).map_err(|error| Failure::wrong_usage(Error::msg(error)))?;
    command(&config)
}

fn checked(config: &Config) -> Result<(), Failure> {
    let report = check::run(config);
    print(&report.page).map_err(Failure::could_not_run)?;
    if report.works { Ok(()) } else { Err(Failure { code: COULD_NOT_RUN, error: None }) }
}

/// With no more privileges than that takes; there is one thread as yet.
fn observe(work: impl Future<Output = Result<()>>) -> Result<(), Failure> {
    privileges::give_up_others().context("privileges cannot be given up").map_err(Failure::could_not_run)?;
    block_on(work)
}

fn detach(folder: &Path) -> Result<()> {
    let removed = Folder::existing(folder)?.map(Folder::remove).transpose()?;
    let path = folder.display();
    print(&match removed {
        Some(Removed { links, maps }) => {
            format!("{path}: detached {links} programs from cgroups, removed {maps} maps\n")
        }
        None => format!("{path}: nothing is there\n"),
    })
}

fn block_on(work: impl Future<Output = Result<()>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("asynchronous runtime").and_then(|runtime| runtime.block_on(work)).map_err(Failure::could_not_run)
}

/// A reader that has read enough, as `head`, is no error.
fn print(text: &str) -> Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("standard output"),
        _ => Ok(()),
    }
}

fn printed(format: CatalogueFormat, live: Option<&Live>) -> String {
    match format {
        CatalogueFormat::Table => catalogue::table(live),
        CatalogueFormat::Json => catalogue::json(live),
        CatalogueFormat::Tsv => catalogue::tsv(live),
    }
}
