//! Licences and origins of every dependency against `deny.toml`, and those that are banned, offline and without another tool.

use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, Result};
use serde::Deserialize;
use spdx::{Expression, LicenseReq, Licensee, ParseMode};

use super::Finding;
use crate::exec::{cargo, output, root};

/// The part of `deny.toml` that is checked here.
#[derive(Deserialize)]
struct Deny {
    licenses: Licenses,
    bans: Bans,
    sources: Sources,
}

#[derive(Deserialize)]
struct Bans {
    #[serde(default)]
    deny: Vec<Ban>,
}

#[derive(Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
    reason: String,
}

#[derive(Deserialize)]
struct Licenses {
    allow: Vec<String>,
    #[serde(default)]
    exceptions: Vec<Exception>,
}

#[derive(Deserialize)]
struct Exception {
    #[serde(rename = "crate")]
    name: String,
    allow: Vec<String>,
}

#[derive(Deserialize)]
struct Sources {
    #[serde(rename = "allow-registry")]
    registries: Vec<String>,
}

/// The part of `cargo metadata` that is checked here.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    /// None for the crates of this repository.
    source: Option<String>,
    #[serde(default)]
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// Versions that are accepted.
    req: String,
    /// Where it lies in this repository, if it does.
    path: Option<String>,
}

/// Reads both and compares them.
pub(super) fn check() -> Result<Vec<Finding>> {
    let file = root().join("deny.toml");
    let text = fs::read_to_string(&file).with_context(|| format!("{}: cannot read", file.display()))?;
    let metadata = output(cargo().args(["metadata", "--format-version=1", "--all-features", "--locked"]))?;
    compare(&text, &metadata)
}

fn compare(deny: &str, metadata: &str) -> Result<Vec<Finding>> {
    let deny: Deny = toml::from_str(deny).context("deny.toml")?;
    let metadata: Metadata = serde_json::from_str(metadata).context("cargo metadata")?;
    let allowed = licensees(&deny.licenses.allow)?;
    let mut exceptions = BTreeMap::new();
    for exception in &deny.licenses.exceptions {
        exceptions.insert(exception.name.as_str(), licensees(&exception.allow)?);
    }
    let registries: Vec<String> = deny.sources.registries.iter().map(|url| format!("registry+{url}")).collect();
    let mut findings = Vec::new();
    for package in &metadata.packages {
        let exception = exceptions.get(package.name.as_str()).map_or(&[][..], Vec::as_slice);
        let accepts = |wanted: &LicenseReq| allowed.iter().chain(exception).any(|known| known.satisfies(wanted));
        let mut found =
            |what| findings.push(Finding { file: format!("{} {}", package.name, package.version), line: 0, what });
        match package.license.as_deref().map(|text| (text, Expression::parse_mode(text, ParseMode::LAX))) {
            None => found("states no licence".to_owned()),
            Some((text, Err(error))) => found(format!("licence `{text}` cannot be read: {}", error.reason)),
            Some((text, Ok(licence))) if !licence.evaluate(accepts) => {
                found(format!("licence `{text}` is not allowed by deny.toml"));
            }
            Some(_) => {}
        }
        if let Some(ban) = deny.bans.deny.iter().find(|ban| ban.name == package.name) {
            found(format!("is banned by deny.toml: {}", ban.reason));
        }
        for open in
            package.dependencies.iter().filter(|it| package.source.is_none() && it.path.is_none() && it.req == "*")
        {
            found(format!("takes any version of {}: pin one", open.name));
        }
        if let Some(source) = package.source.as_ref().filter(|source| !registries.contains(source)) {
            found(format!("comes from {source}, which deny.toml does not allow"));
        }
    }
    Ok(findings)
}

fn licensees(names: &[String]) -> Result<Vec<Licensee>> {
    names.iter().map(|name| Licensee::parse(name).with_context(|| format!("deny.toml: licence `{name}`"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DENY: &str = r#"
        [licenses]
        allow = ["MIT", "Apache-2.0"]
        exceptions = [{ crate = "kernel", allow = ["GPL-2.0-only"] }]
        [bans]
        deny = [{ crate = "shunned", reason = "for a reason" }]
        [sources]
        allow-registry = ["https://registry.example/index"]
    "#;

    fn check_one(name: &str, license: &str, source: &str) -> Vec<String> {
        let metadata =
            format!(r#"{{"packages":[{{"name":"{name}","version":"1.0.0","license":{license},"source":{source}}}]}}"#);
        compare(DENY, &metadata).expect("both parse").into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn a_choice_is_fine_if_one_branch_is_allowed() {
        assert!(check_one("a", r#""MIT/Apache-2.0""#, "null").is_empty());
        assert!(check_one("a", r#""MIT OR GPL-3.0-only""#, "null").is_empty());
        assert!(check_one("kernel", r#""Apache-2.0 AND GPL-2.0-only""#, "null").is_empty());
    }

    #[test]
    fn what_is_banned_or_open_is_found() {
        assert_eq!(check_one("shunned", r#""MIT""#, "null"), ["is banned by deny.toml: for a reason"]);
        let open = r#"null,"dependencies":[{"name":"b","req":"*","path":null},{"name":"own","req":"*","path":"own"}]"#;
        assert_eq!(check_one("a", r#""MIT""#, open), ["takes any version of b: pin one"]);
        let others = r#""registry+https://registry.example/index","dependencies":[{"name":"b","req":"*","path":null}]"#;
        assert!(check_one("a", r#""MIT""#, others).is_empty());
    }

    #[test]
    fn what_is_not_allowed_is_found() {
        assert_eq!(check_one("a", r#""MIT AND GPL-2.0-only""#, "null").len(), 1);
        assert_eq!(check_one("a", "null", "null"), ["states no licence"]);
        assert_eq!(check_one("a", r#""MIT""#, r#""git+https://example.org/a""#).len(), 1);
        assert!(check_one("a", r#""MIT""#, r#""registry+https://registry.example/index""#).is_empty());
    }
}
