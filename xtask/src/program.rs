//! Programs that are packages of their own: demo, soak, benchmarks, first process of a machine, maker of the image.

use std::{os::unix::process::CommandExt as _, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};

use crate::{
    build,
    exec::{cache, cargo, exec, target},
    setup,
};

pub(crate) const DEMO: Program = Program { package: "bookstore", name: "demo", set_up: setup::everything };
pub(crate) const SOAK: Program = Program { package: "bookstore", name: "soak", set_up: setup::everything };
pub(crate) const BENCH: Program = Program { package: "bench", name: "bench", set_up: setup::everything };
pub(crate) const IMAGE: Program = Program { package: "image", name: "image", set_up: || Ok(()) };
pub(crate) const CLUSTER: Program = Program { package: "cluster", name: "cluster", set_up: setup::for_cluster };
pub(crate) const VM_GUEST: Program = Program { package: "vm-guest", name: "vm-guest", set_up: setup::for_machines };

/// Arguments with which a program needs nothing but itself.
const LIGHT: [&str; 5] = ["-h", "--help", "down", "enter", "kubectl"];

/// A binary of a package of this workspace.
pub(crate) struct Program {
    package: &'static str,
    name: &'static str,
    /// Installs what it needs beside the observer.
    set_up: fn() -> Result<()>,
}

/// Arguments that a program receives unchanged.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) arguments: Vec<String>,
}

impl Program {
    /// Installs what it needs, builds it and the observer, and replaces this process with it, so that it receives
    /// signals itself.
    pub(crate) fn become_it(&self, arguments: &Arguments) -> Result<()> {
        let arguments = &arguments.arguments;
        let mut command = self.command()?;
        if !arguments.iter().any(|argument| LIGHT.contains(&argument.as_str())) {
            (self.set_up)()?;
            command.env("MESH_OBSERVER_BIN", build::observer()?);
        }
        let error = command.args(arguments).exec();
        Err(error).with_context(|| format!("cannot start {}", command.get_program().display()))
    }

    /// Builds it; returns the command that starts it with the tools that `setup` installs.
    pub(crate) fn command(&self) -> Result<Command> {
        let mut command = Command::new(self.build()?);
        command.env("MESH_OBSERVER_CACHE", cache());
        Ok(command)
    }

    /// Builds it; returns its path.
    pub(crate) fn build(&self) -> Result<PathBuf> {
        exec(cargo().args(["build", "--quiet", "--locked", "--package", self.package, "--bin", self.name]))?;
        Ok(target().join("debug").join(self.name))
    }
}
