//! Jars from Maven Central: what a peer's `pom.xml` names, each checked against the hash in its `jars.sha256`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::{install, remove};
use crate::exec::{cache, exec, output, root, timed};

/// The tool that fetches what `pom.xml` names.
const FETCH: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies";
const TOOLS: [(&str, &str); 2] = [("javac", "default-jdk-headless"), ("mvn", "maven")];

/// Finds or fetches the jars of `tests/peers/NAME`; returns their folder, which has nothing else when they are new.
pub(super) fn jars(name: &str, what: &str) -> Result<PathBuf> {
    install(&TOOLS)?;
    let source = root().join("tests/peers").join(name);
    let hashes = source.join("jars.sha256");
    let folder = cache().join(name);
    if right(&folder, &hashes) {
        return Ok(folder);
    }
    timed(&format!("fetching {what} into {}", folder.display()), || {
        // Unpacked beside the place and moved in at the end, so that half of them are never taken for all.
        let work = cache().join(format!("{name}.unpacked"));
        remove(&work)?;
        remove(&folder)?;
        exec(
            Command::new("mvn")
                .args(["-q", "-B", "-f"])
                .arg(source.join("pom.xml"))
                .arg(format!("-Dmaven.repo.local={}", work.join("repository").display()))
                .arg(FETCH)
                .arg(format!("-DoutputDirectory={}", work.join("jars").display())),
        )?;
        if !right(&work.join("jars"), &hashes) {
            bail!("{}: the fetched jars are not those of {}", work.display(), hashes.display());
        }
        fs::rename(work.join("jars"), &folder).with_context(|| format!("{}: cannot move there", folder.display()))?;
        remove(&work)
    })?;
    Ok(folder)
}

fn right(folder: &Path, hashes: &Path) -> bool {
    let check = || output(Command::new("sha256sum").args(["--check", "--quiet"]).arg(hashes).current_dir(folder));
    folder.is_dir() && check().is_ok()
}
