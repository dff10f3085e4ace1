//! The command `observer`. Exit codes: 0 stopped as asked, 1 could not run, 2 wrong usage.

use std::process::ExitCode;

use clap::FromArgMatches as _;
use observer::{
    cli::{
        args::{Cli, Command},
        await_daemon_set, catalogue, check,
        command::command,
        detach, documents,
        outcome::Failure,
        run, snapshot, top,
    },
    system::environment,
};

fn main() -> ExitCode {
    // SAFETY: there is no other thread yet.
    unsafe { environment::remove_empty() };
    let Cli { command } = Cli::from_arg_matches(&command().get_matches()).unwrap_or_else(|error| error.exit());
    let outcome = match command {
        Command::Run(args) => run::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Catalogue(args) => catalogue::run(&args),
        Command::Detach(args) => detach::run(&args),
        Command::AwaitDaemonSet(args) => await_daemon_set::run(&args),
        Command::Snapshot(args) => snapshot::run(args),
        Command::Top(args) => top::run(args),
        Command::Completions { shell } => documents::completions(shell),
        Command::Man => documents::man(),
    };
    outcome.map_or_else(Failure::report, |()| ExitCode::SUCCESS)
}
