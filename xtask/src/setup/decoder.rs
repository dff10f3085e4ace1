//! Wavefront's own decoders, which judge the lines that the observer sends: their jars from Maven Central.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use super::install;
use crate::exec::{cache, exec, output, root, timed};

/// The tool that fetches what `pom.xml` names.
const FETCH: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies";
const TOOLS: [(&str, &str); 2] = [("javac", "default-jdk-headless"), ("mvn", "maven")];

/// Finds or fetches the jars, each checked against its hash.
pub(super) fn wavefront_decoder() -> Result<()> {
    install(&TOOLS)?;
    let source = root().join("tests/peers/wavefront-decoder");
    let hashes = source.join("jars.sha256");
    let folder = cache().join("wavefront-decoder");
    if right(&folder, &hashes) {
        return Ok(());
    }
    timed(&format!("fetching Wavefront's decoders into {} (7 MB)", folder.display()), || {
        // Unpacked beside the place and moved in at the end, so that half of them are never taken for all.
        let work = cache().join("wavefront-decoder.unpacked");
        for old in [&work, &folder] {
            if old.exists() {
                fs::remove_dir_all(old).with_context(|| format!("{}: cannot remove", old.display()))?;
            }
        }
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
        fs::rename(work.join("jars"), &folder)?;
        fs::remove_dir_all(work)?;
        Ok(())
    })
}

fn right(folder: &Path, hashes: &Path) -> bool {
    let check = || output(Command::new("sha256sum").args(["--check", "--quiet"]).arg(hashes).current_dir(folder));
    folder.is_dir() && check().is_ok()
}
