//! Tasks of the project: `cargo xtask <task>`. This file names the tasks; each has a file of its own.

mod bench;
mod build;
mod demo;
mod exec;
mod fuzz;
mod lock;
mod sbom;
mod setup;
mod soak;
mod test;
mod tidy;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Tasks of the project. `demo` shows the observer at work, `test` proves it.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// A small real mesh, observed: who calls whom, live. Ctrl-C removes all of it.
    Demo(demo::Options),
    /// Install what the other tasks need and this machine lacks.
    Setup,
    /// Build target/release/observer with the kernel object embedded.
    Build(build::Options),
    /// Build the kernel object once more from sources elsewhere, and compare it with that of `build` byte by byte.
    Reproduce,
    /// Build, then `observer run` with the arguments that follow.
    Run {
        /// Passed on to `observer run`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Every test: formatting, rules, clippy, host tests, fuzzing, privileged and end-to-end tests.
    Test(test::Options),
    /// Fuzz the parsers.
    Fuzz(fuzz::Options),
    /// The demo's mesh for a long time with faults: every count must be Envoy's in the end, and memory flat.
    Soak(soak::Options),
    /// What observing costs, beside the bars it must meet; files in target/bench.
    Bench(bench::Options),
    /// A process that looks like a sidecar, for `bench`.
    #[command(hide = true)]
    StandIn(bench::StandInOptions),
    /// The kernel matrix: the observer on Debian's kernels, in emulated machines; consoles in target/vm.
    Vm(vm::Options),
    /// First process of a machine of `vm`.
    #[command(hide = true)]
    VmGuest(vm::GuestOptions),
    /// A process that looks like a proxy, for `vm`.
    #[command(hide = true)]
    VmStandIn(vm::StandInOptions),
    /// Check the rules the compiler does not know: purity, names, documentation, licences.
    Tidy,
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Demo(options) => demo::run(&options),
        Task::Setup => setup::everything(),
        Task::Build(options) => build::build(&options).map(drop),
        Task::Reproduce => build::reproduce(),
        Task::Run { arguments } => build::run(&arguments),
        Task::Test(options) => test::run(&options),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Soak(options) => soak::run(&options),
        Task::Bench(options) => bench::run(&options),
        Task::StandIn(options) => bench::stand_in(&options),
        Task::Vm(options) => vm::run(&options),
        Task::VmGuest(options) => vm::guest(&options),
        Task::VmStandIn(options) => vm::stand_in(&options),
        Task::Tidy => tidy::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            exec::say(format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
