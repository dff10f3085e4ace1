//! Tasks of the project: `cargo xtask TASK`. This file lists the tasks; each has a file of its own.

mod build;
mod deny;
mod exec;
mod failures;
mod fuzz;
mod program;
mod sbom;
mod setup;
mod test;
mod tidy;
mod toolchain;
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
    /// Show who calls whom in a small real mesh that is observed. Ctrl-C removes all of it.
    #[command(disable_help_flag = true)]
    Demo(program::Arguments),
    /// Install what the other tasks need and this machine lacks.
    Setup,
    /// Build target/release/observer with the kernel object embedded.
    Build(build::Options),
    /// Build, then write the container image as an OCI archive.
    #[command(disable_help_flag = true)]
    Image(program::Arguments),
    /// Build the kernel object again from sources elsewhere, and compare it with that of `build` byte by byte.
    Reproduce,
    /// Build, then `observer run` with the arguments that follow.
    #[command(disable_help_flag = true)]
    Run(program::Arguments),
    /// Run every test: formatting, rules, clippy, host tests, fuzzing, privileged and end-to-end tests.
    Test(test::Options),
    /// Fuzz the parsers.
    Fuzz(fuzz::Options),
    /// Run the demo's mesh for a long time with faults: every count must be Envoy's in the end, and memory flat.
    #[command(disable_help_flag = true)]
    Soak(program::Arguments),
    /// Measure what observing costs, against targets; samples in target/bench.
    #[command(disable_help_flag = true)]
    Bench(program::Arguments),
    /// Test the observer in a Kubernetes cluster with Istio that is started on this machine; logs in target/cluster.
    #[command(disable_help_flag = true)]
    Cluster(program::Arguments),
    /// Boot Debian's kernels in emulated machines and run the observer on each; consoles in target/vm.
    Vm(vm::Options),
    /// Check the rules that the compiler does not know: where names stand, guarantees and their tests, dependencies.
    Tidy,
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Demo(arguments) => program::DEMO.become_it(&arguments),
        Task::Setup => setup::everything(),
        Task::Build(options) => build::build(&options).map(drop),
        Task::Image(arguments) => program::IMAGE.become_it(&arguments),
        Task::Reproduce => build::reproduce(),
        Task::Run(arguments) => build::run(&arguments.arguments),
        Task::Test(options) => test::run(&options),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Soak(arguments) => program::SOAK.become_it(&arguments),
        Task::Bench(arguments) => program::BENCH.become_it(&arguments),
        Task::Cluster(arguments) => program::CLUSTER.become_it(&arguments),
        Task::Vm(options) => vm::run(&options),
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
