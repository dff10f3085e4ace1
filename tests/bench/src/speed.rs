//! Runs the programs in `src/bin`, built for release, each in its own process.

use std::{env, process::Command};

use anyhow::{Result, ensure};
use harness::{console::target, net::finish, tools::repository};

/// Builds `program` and runs it on a recording of the repository.
pub(crate) fn measure(program: &str, page: &str, arguments: [&str; 2]) -> Result<String> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let build = ["build", "--release", "--locked", "--package", "bench", "--bin", program];
    let status = Command::new(cargo).args(build).current_dir(repository()).status()?;
    ensure!(status.success(), "{program} does not build");
    let mut run = Command::new(target().join("release").join(program));
    finish(run.arg(repository().join(page)).args(arguments), "")
}
