//! What is known against the dependencies, where RustSec's database is at hand: offline, without another tool.
//!
//! `cargo deny fetch` and `cargo audit` keep the database below cargo's home, and a clone of it may lie anywhere. Its form:
//! <https://github.com/rustsec/advisory-db>, one file an advisory, which begins with TOML.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use semver::{Version, VersionReq};
use serde::Deserialize;

use super::Finding;
use crate::{
    exec::say,
    lock::{self, Locked},
};

/// Names the database in place of the places where tools keep it.
const VARIABLE: &str = "RUSTSEC_DATABASE";

/// The part of an advisory that is read here.
#[derive(Deserialize)]
struct Advisory {
    advisory: Head,
    versions: Versions,
}

#[derive(Deserialize)]
struct Head {
    id: String,
    package: String,
    withdrawn: Option<String>,
    informational: Option<String>,
}

/// Versions without the fault.
#[derive(Deserialize)]
struct Versions {
    #[serde(default)]
    patched: Vec<VersionReq>,
    #[serde(default)]
    unaffected: Vec<VersionReq>,
}

/// Every advisory against a version in Cargo.lock.
pub(super) fn check() -> Result<Vec<Finding>> {
    let Some(database) = database()? else {
        say(format!(
            "tidy: known vulnerabilities were NOT looked for: RustSec's database is not on this machine; `cargo deny fetch` \
             brings it, or {VARIABLE} names a clone of github.com/rustsec/advisory-db"
        ));
        return Ok(Vec::new());
    };
    let (findings, read) = against(&lock::read()?, &database)?;
    say(format!("tidy: {read} advisories on the dependencies' names in {}", database.display()));
    Ok(findings)
}

/// Where the database is, if it is anywhere.
fn database() -> Result<Option<PathBuf>> {
    if let Some(named) = env::var_os(VARIABLE).map(PathBuf::from) {
        ensure!(named.join("crates").is_dir(), "{VARIABLE}: {} has no folder `crates`", named.display());
        return Ok(Some(named));
    }
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let Some(home) = home else { return Ok(None) };
    let several = fs::read_dir(home.join("advisory-dbs")).into_iter().flatten().flatten().map(|entry| entry.path());
    Ok(several.chain([home.join("advisory-db")]).find(|place| place.join("crates").is_dir()))
}

/// Findings, and how many advisories were read for them.
fn against(packages: &[Locked], database: &Path) -> Result<(Vec<Finding>, usize)> {
    let (mut findings, mut read) = (Vec::new(), 0);
    // What is of this repository may have the name of another crate.
    let foreign = || packages.iter().filter(|package| package.source.is_some());
    for name in foreign().map(|package| &package.name).collect::<BTreeSet<_>>() {
        let Ok(files) = fs::read_dir(database.join("crates").join(name)) else { continue };
        for file in files {
            let file = file?.path();
            if file.extension().is_none_or(|extension| extension != "md") {
                continue;
            }
            let text = fs::read_to_string(&file).with_context(|| format!("{}: cannot read", file.display()))?;
            let advisory = parse(&text).with_context(|| file.display().to_string())?;
            ensure!(advisory.advisory.package == **name, "{}: it is on {}", file.display(), advisory.advisory.package);
            read += 1;
            let versions = foreign().filter(|package| package.name == *name).map(|package| &package.version);
            findings.extend(versions.filter_map(|version| judge(&advisory, version)));
        }
    }
    Ok((findings, read))
}

/// The TOML between the first fences.
fn parse(text: &str) -> Result<Advisory> {
    let head =
        text.strip_prefix("```toml\n").and_then(|text| text.split_once("\n```")).context("no TOML at its begin")?;
    Ok(toml::from_str(head.0)?)
}

fn judge(advisory: &Advisory, version: &Version) -> Option<Finding> {
    let Advisory { advisory: Head { id, package, withdrawn, informational }, versions } = advisory;
    let is_fine =
        withdrawn.is_some() || versions.patched.iter().chain(&versions.unaffected).any(|fine| fine.matches(version));
    let kind = informational.as_deref().unwrap_or("vulnerable");
    (!is_fine).then(|| Finding {
        file: format!("{package} {version}"),
        line: 0,
        what: format!("is {kind}: {id}, https://rustsec.org/advisories/{id}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADVISORY: &str = "```toml\n[advisory]\nid = \"RUSTSEC-2026-9999\"\npackage = \"a\"\n\n[versions]\n\
        patched = [\">= 1.2.3\", \">= 1.1.9, < 1.2.0\"]\nunaffected = [\"< 1.0.5\"]\n```\n\n# Title\n";

    fn found(text: &str, version: &str) -> Option<String> {
        judge(&parse(text).expect("an advisory"), &version.parse().expect("a version")).map(|it| it.to_string())
    }

    #[test]
    fn versions_with_the_fault_are_found_and_others_are_not() {
        for fine in ["1.0.4", "1.1.9", "1.2.3", "2.0.0"] {
            assert_eq!(found(ADVISORY, fine), None, "{fine}");
        }
        for bad in ["1.0.5", "1.1.8", "1.2.0", "1.2.2"] {
            assert!(found(ADVISORY, bad).is_some_and(|it| it.contains("is vulnerable: RUSTSEC-2026-9999")), "{bad}");
        }
        let told = ADVISORY.replace("package", "informational = \"unmaintained\"\npackage");
        assert!(found(&told, "1.0.5").is_some_and(|it| it.contains("is unmaintained")));
        let withdrawn = ADVISORY.replace("package", "withdrawn = \"2026-01-01\"\npackage");
        assert_eq!(found(&withdrawn, "1.0.5"), None);
        assert!(parse("# no TOML").is_err());
    }

    #[test]
    fn only_crates_from_outside_are_looked_up() {
        let database = tempfile::tempdir().expect("a directory");
        let folder = database.path().join("crates/a");
        fs::create_dir_all(&folder).expect("a directory");
        fs::write(folder.join("RUSTSEC-2026-9999.md"), ADVISORY).expect("a file");
        let locked = |version: &str, source: Option<&str>| Locked {
            name: "a".to_owned(),
            version: version.parse().expect("a version"),
            source: source.map(str::to_owned),
            checksum: None,
        };
        let packages = [locked("1.1.0", Some("registry")), locked("1.3.0", Some("registry")), locked("1.1.1", None)];
        let (findings, read) = against(&packages, database.path()).expect("a database");
        assert_eq!((findings.len(), read), (1, 1));
        assert!(findings[0].to_string().starts_with("a 1.1.0:0: "), "{}", findings[0]);
    }
}
