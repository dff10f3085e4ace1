//! Cargo.lock: which version of each package is taken.

use std::fs;

use anyhow::{Context as _, Result};
use semver::Version;
use serde::Deserialize;

use crate::exec::root;

/// The part of the file that is read here.
#[derive(Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

/// One package's version.
#[derive(Deserialize)]
pub(crate) struct Locked {
    pub(crate) name: String,
    pub(crate) version: Version,
    /// None for what is of this repository.
    pub(crate) source: Option<String>,
    pub(crate) checksum: Option<String>,
}

/// Every package that this repository takes.
pub(crate) fn read() -> Result<Vec<Locked>> {
    let text = fs::read_to_string(root().join("Cargo.lock")).context("Cargo.lock: cannot read")?;
    let lock: Lock = toml::from_str(&text).context("Cargo.lock")?;
    Ok(lock.package)
}
