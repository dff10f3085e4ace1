//! A Kubernetes cluster of two nodes on this machine, with Istio and with the observer as a user installs it: real
//! programs throughout, built from Go modules or from Debian.
//!
//! Traffic of every kind runs through it; every count and label of the observer is compared with the sidecars' access
//! logs and the API's objects. Nothing is left at the end, nor after a failure or a signal.

mod access_log;
mod build;
mod certificates;
mod control_plane;
mod dashboards;
mod disturbance;
mod expectation;
mod facts;
mod image;
mod istio;
mod judge;
mod kubectl;
mod lifetime;
mod node;
mod observer;
mod test;
mod traffic;
mod workloads;

use std::{path::Path, process::ExitCode};

use clap::{Parser, Subcommand};
use harness::console::{exit, say};

use crate::node::Node;

/// Tests the observer in a Kubernetes cluster with Istio, on this machine.
#[derive(Parser)]
#[command(name = "cargo xtask cluster")]
struct Cli {
    #[command(subcommand)]
    action: Option<Action>,
    /// Let the cluster run after the test, or after its failure.
    #[arg(long)]
    keep: bool,
}

#[derive(Subcommand)]
enum Action {
    /// Start the cluster, with the observer and the workloads, and let it run.
    Up,
    /// Test in the cluster that runs.
    Test,
    /// End the cluster.
    Down,
    /// Run kubectl in the cluster that runs.
    #[command(disable_help_flag = true)]
    Kubectl(Words),
    /// Run a command in a node: `enter 1 ctr --namespace k8s.io containers list`.
    Enter {
        /// Number of the node.
        node: u8,
        /// The command.
        #[command(flatten)]
        command: Words,
    },
    /// Build every program that is missing.
    Build,
    /// Build only the API server, which the tests of the observer's Kubernetes client need.
    BuildApiserver,
    /// Become the first process of a node.
    #[command(hide = true)]
    BecomeNode {
        /// Number of the node.
        node: u8,
    },
}

#[derive(clap::Args)]
struct Words {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    words: Vec<String>,
}

fn main() -> ExitCode {
    let name = std::env::args_os().next().unwrap_or_default();
    if Path::new(&name).file_name().is_some_and(|name| name == "runc") {
        return exit(node::become_runc());
    }
    let cli = Cli::parse();
    exit(match cli.action {
        None => lifetime::whole_test(cli.keep),
        Some(Action::Up) => lifetime::up(),
        Some(Action::Test) => test::run(),
        Some(Action::Down) => lifetime::down(),
        Some(Action::Kubectl(Words { words })) => kubectl::become_it(&words),
        Some(Action::Enter { node, command }) => node::enter(Node(node), &command.words),
        Some(Action::Build) => build::all(),
        Some(Action::BuildApiserver) => build::APISERVER.build().map(|path| say(path.display().to_string())),
        Some(Action::BecomeNode { node }) => node::become_node(Node(node)),
    })
}
