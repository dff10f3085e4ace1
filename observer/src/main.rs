//! The command: reads the command line and the configuration, starts the log and the runtime, and turns what came of it
//! into an exit code: 0 stopped as asked, 1 could not run, 2 wrong usage.

use std::{
    env,
    io::{self, Write},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Error, Result};
use clap::{CommandFactory, Parser};
use observer::{
    app::{self, Emitters},
    check,
    cli::{CatalogueFormat, Cli, Command, RunArgs, SnapshotArgs, SnapshotFormat},
    collect::kernel::folder::{Folder, Removed},
    config::Config,
    emit::selection::matches_pattern,
    environment, live,
    model::{catalogue, live_catalogue::LiveCatalogue},
    privileges, snapshot, telemetry,
};

const COULD_NOT_RUN: u8 = 1;
const WRONG_USAGE: u8 = 2;

fn main() -> ExitCode {
    // SAFETY: there is no other thread yet.
    unsafe { environment::drop_empty() };
    let outcome = match Cli::parse().command {
        Command::Run(args) => prepared(&args, |config| run(config, &args)),
        Command::Check(args) => prepared(&args, checked),
        Command::Snapshot(SnapshotArgs { length, format, wavefront_names, node }) => {
            let args = RunArgs { wavefront_names, node, ..RunArgs::default() };
            prepared(&args, |config| print_snapshot(config, length, format))
        }
        Command::Detach { pin } => detach(&pin).map_err(Failure::could_not_run),
        Command::Catalogue { patterns, format, live: false, .. } => {
            print(&printed(&patterns, format, None)).map_err(Failure::could_not_run)
        }
        Command::Catalogue { patterns, format, live: true, listen } => {
            block_on(async { print(&printed(&patterns, format, Some(&live::ask(listen).await?))) })
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
    let variables = env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
    for name in environment::unknown(&Cli::command(), variables) {
        tracing::warn!("{name} is set and means nothing: no option is called so (`observer run --help` lists them)");
    }
    command(&config)
}

fn checked(config: &Config) -> Result<(), Failure> {
    let report = check::run(config);
    print(&report.page).map_err(Failure::could_not_run)?;
    if report.works { Ok(()) } else { Err(Failure { code: COULD_NOT_RUN, error: None }) }
}

fn run(config: &Config, args: &RunArgs) -> Result<(), Failure> {
    give_up_privileges()?;
    let emitters = Emitters::prepare(config).map_err(Failure::wrong_usage)?;
    block_on(app::run(config, args, emitters))
}

fn print_snapshot(config: &Config, length: Duration, format: SnapshotFormat) -> Result<(), Failure> {
    give_up_privileges()?;
    let writer = snapshot::Writer::new(format, &config.wavefront).map_err(Failure::wrong_usage)?;
    block_on(snapshot::print(config, length, writer))
}

/// Keeps no more privileges than observing takes; there is one thread as yet.
fn give_up_privileges() -> Result<(), Failure> {
    privileges::give_up_others().context("privileges cannot be given up").map_err(Failure::could_not_run)
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
    let runtime = runtime.context("asynchronous runtime").map_err(Failure::could_not_run)?;
    let outcome = runtime.block_on(work);
    // What still blocks (a pipe that nobody reads, a hung disk, a name server) is not waited for.
    runtime.shutdown_background();
    outcome.map_err(Failure::could_not_run)
}

/// A reader that has read enough, as `head`, is no error.
fn print(text: &str) -> Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("standard output"),
        _ => Ok(()),
    }
}

fn printed(patterns: &[String], format: CatalogueFormat, live: Option<&LiveCatalogue>) -> String {
    let status = |family: &catalogue::Descriptor| live.map(|live| live.status(family)).unwrap_or_default();
    let live: Option<catalogue::Live<'_>> = live.map(|_| &status as _);
    let wanted = |name: &str| patterns.is_empty() || patterns.iter().any(|pattern| matches_pattern(pattern, name));
    let families = catalogue::printed(live, wanted);
    match format {
        CatalogueFormat::Table => catalogue::table(&families, live),
        CatalogueFormat::Json => catalogue::json(&families, live),
        CatalogueFormat::Tsv => catalogue::tsv(&families, live),
    }
}
