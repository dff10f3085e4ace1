//! cargo-deny over `deny.toml`: licences, bans and sources of every dependency, and known vulnerabilities.

use std::{path::Path, process::Command};

use anyhow::Result;

use crate::{
    exec::{exec, output, root, say},
    setup,
};

/// Checks every dependency. An advisory database that cannot be fetched is reported, and is not an error.
pub(crate) fn check() -> Result<()> {
    let tool = setup::CARGO_DENY.install()?;
    exec(deny(&tool).args(["--locked", "check", "bans", "licenses", "sources"]))?;
    if output(deny(&tool).args(["fetch", "db"])).is_ok() {
        return exec(deny(&tool).args(["--locked", "check", "advisories"]));
    }
    say(
        "dependencies: known vulnerabilities were NOT checked: RustSec's advisory database cannot be fetched from here; \
         run `cargo deny check advisories` where github.com can be reached",
    );
    Ok(())
}

fn deny(tool: &Path) -> Command {
    let mut command = Command::new(tool);
    command.current_dir(root()).args(["--log-level", "error"]);
    command
}
