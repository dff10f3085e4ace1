//! Programs on the test mesh that are packages of their own below `tests/`: demo, soak, benchmarks, first process of a
//! machine.

use std::{os::unix::process::CommandExt as _, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};

use crate::{
    build,
    exec::{cache, cargo, exec, target},
    setup,
};

pub(crate) const DEMO: Program = Program { package: "bookstore", name: "demo" };
pub(crate) const SOAK: Program = Program { package: "bookstore", name: "soak" };
pub(crate) const BENCH: Program = Program { package: "bench", name: "bench" };
pub(crate) const VM_GUEST: Program = Program { package: "vm-guest", name: "vm-guest" };

/// A binary of a package of this workspace.
pub(crate) struct Program {
    package: &'static str,
    name: &'static str,
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
        let asks_for_help = arguments.iter().any(|argument| ["-h", "--help"].contains(&argument.as_str()));
        if !asks_for_help {
            setup::everything()?;
        }
        let observer = if asks_for_help { PathBuf::new() } else { build::observer()? };
        let mut command = self.command()?;
        let error = command.args(arguments).env("MESH_OBSERVER_BIN", observer).exec();
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
