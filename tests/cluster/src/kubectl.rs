//! kubectl, run on the first node, since only the nodes' network has the API server.

use std::{os::unix::process::CommandExt as _, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result};
use harness::{net::finish, wait::wait_until};
use serde_json::Value;

use crate::{
    build, certificates,
    node::{NODES, Node, directory},
};

/// Runs kubectl as the cluster's administrator and returns its output.
pub(crate) fn run(arguments: &[&str]) -> Result<String> {
    with_input(arguments, "")
}

/// Runs it with text on its standard input.
pub(crate) fn with_input(arguments: &[&str], input: &str) -> Result<String> {
    finish(command()?.args(arguments), input)
}

/// Applies objects.
pub(crate) fn apply(objects: &[Value]) -> Result<()> {
    let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects});
    with_input(&["apply", "--server-side", "--force-conflicts", "-f", "-"], &list.to_string()).map(drop)
}

/// Returns all objects of a kind, of every namespace.
pub(crate) fn get(kind: &str) -> Result<Vec<Value>> {
    let text = run(&["get", kind, "--all-namespaces", "--output=json"])?;
    let mut list: Value = serde_json::from_str(&text).context("kubectl's output")?;
    Ok(serde_json::from_value(list["items"].take())?)
}

/// Waits until a workload's pods are those of its newest template, and ready.
pub(crate) fn rolled_out(namespace: &str, workload: &str, patience: Duration) -> Result<()> {
    wait_until(&format!("{workload} in {namespace}"), patience, || {
        run(&["-n", namespace, "rollout", "status", workload, "--timeout=5s"])
    })
    .map(drop)
}

/// Replaces this process with kubectl.
pub(crate) fn become_it(arguments: &[String]) -> Result<()> {
    Err(command()?.args(arguments).exec()).context("kubectl cannot be started")
}

/// Returns the administrator's configuration file.
pub(crate) fn configuration() -> PathBuf {
    certificates::directory(&directory()).join("admin.kubeconfig")
}

fn command() -> Result<Command> {
    let mut command = Node(NODES[0]).command(build::KUBE.path())?;
    command.arg("kubectl").arg(format!("--kubeconfig={}", configuration().display()));
    Ok(command)
}
