//! What the release binary is made of, as CycloneDX 1.6 JSON beside it: every crate that is compiled into it or into the kernel
//! object that it carries, with version, licence, origin and the checksum that Cargo.lock pins.
//!
//! It says nothing that changes from build to build, so equal sources have equal documents.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    build::KERNEL_TARGET,
    exec::{cargo, host, output, say},
    lock::{self, Locked},
};

const PRODUCT: &str = "observer";

/// Writes the document beside the binary.
pub(crate) fn write(binary: &Path) -> Result<()> {
    let document = document(graphs()?, lock::read()?)?;
    let path = binary.with_extension("cdx.json");
    let text = format!("{document:#}\n");
    fs::write(&path, text).with_context(|| format!("{}: cannot write", path.display()))?;
    say(format!("bill of materials: {}", path.display()));
    Ok(())
}

/// The observer, and the object that it carries.
fn graphs() -> Result<Vec<(&'static str, Metadata)>> {
    let packages = [(PRODUCT, host()?), ("observer-ebpf", KERNEL_TARGET.to_owned())];
    packages.into_iter().map(|(package, target)| Ok((package, metadata(&target)?))).collect()
}

fn metadata(target: &str) -> Result<Metadata> {
    let arguments = ["metadata", "--format-version=1", "--locked", "--filter-platform", target];
    serde_json::from_str(&output(cargo().args(arguments))?).context("cargo metadata")
}

/// The part of `cargo metadata` that is read here.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    repository: Option<String>,
    /// None for the crates of this repository.
    source: Option<String>,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Deserialize)]
struct Kind {
    /// None for what is compiled in; else `dev` or `build`.
    kind: Option<String>,
}

/// One document of what each of these packages takes, the first being what it is about.
fn document(graphs: Vec<(&str, Metadata)>, locked: Vec<Locked>) -> Result<Value> {
    let checksums: BTreeMap<(String, String), String> =
        locked.into_iter().filter_map(|it| Some(((it.name, it.version.to_string()), it.checksum?))).collect();
    let mut subject = None;
    let mut components: BTreeMap<String, Value> = BTreeMap::new();
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, Metadata { packages, resolve }) in &graphs {
        let by_id: BTreeMap<&str, &Package> = packages.iter().map(|package| (package.id.as_str(), package)).collect();
        let nodes: BTreeMap<&str, &Node> = resolve.nodes.iter().map(|node| (node.id.as_str(), node)).collect();
        let of = |id: &str| by_id.get(id).copied().with_context(|| format!("cargo metadata has no package {id}"));
        let root = packages.iter().find(|package| package.source.is_none() && package.name == *name);
        let root = root.with_context(|| format!("cargo metadata has no package {name}"))?;
        subject.get_or_insert_with(|| reference(root));
        let (mut left, mut seen) = (vec![root.id.as_str()], BTreeSet::new());
        while let Some(id) = left.pop() {
            if !seen.insert(id) {
                continue;
            }
            let package = of(id)?;
            components.insert(reference(package), component(package, &checksums));
            let own = edges.entry(reference(package)).or_default();
            for dependency in nodes.get(id).into_iter().flat_map(|node| &node.deps) {
                let package = of(&dependency.pkg)?;
                if dependency.dep_kinds.iter().any(|kind| kind.kind.is_none()) && !package.is_macro() {
                    own.insert(reference(package));
                    left.push(&dependency.pkg);
                }
            }
        }
    }
    let subject = subject.and_then(|subject| components.remove(&subject)).context("nothing was asked for")?;
    let edges: Vec<Value> = edges.into_iter().map(|(from, to)| json!({ "ref": from, "dependsOn": to })).collect();
    Ok(json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": { "component": subject },
        "components": components.into_values().collect::<Vec<_>>(),
        "dependencies": edges,
    }))
}

impl Package {
    /// Whether it is run by the compiler and is in nothing that it makes.
    fn is_macro(&self) -> bool {
        self.targets.iter().any(|target| target.kind.iter().any(|kind| kind == "proc-macro"))
    }
}

/// The package's URL, which is its name in the document too. A version's `+` has a meaning of its own there.
fn reference(package: &Package) -> String {
    format!("pkg:cargo/{}@{}", package.name, package.version.replace('+', "%2B"))
}

fn component(package: &Package, checksums: &BTreeMap<(String, String), String>) -> Value {
    let Package { name, version, license, repository, source, .. } = package;
    let kind = if source.is_none() && name == PRODUCT { "application" } else { "library" };
    let reference = reference(package);
    let mut component =
        json!({ "type": kind, "bom-ref": reference, "name": name, "version": version, "purl": reference });
    if let Some(license) = license {
        // As crates wrote it before there were expressions.
        component["licenses"] = json!([{ "expression": license.replace('/', " OR ") }]);
    }
    if let Some(repository) = repository {
        component["externalReferences"] = json!([{ "type": "vcs", "url": repository }]);
    }
    if let Some(checksum) = checksums.get(&(name.clone(), version.clone())) {
        component["hashes"] = json!([{ "alg": "SHA-256", "content": checksum }]);
    }
    component
}

#[cfg(test)]
mod tests {
    use spdx::Expression;

    use super::*;

    /// This repository's own, as the build makes it.
    fn own() -> Value {
        document(graphs().expect("cargo metadata"), lock::read().expect("Cargo.lock")).expect("both fit")
    }

    fn text<'a>(of: &'a Value, field: &str) -> &'a str {
        of[field].as_str().filter(|text| !text.is_empty()).unwrap_or_else(|| panic!("no {field} in {of}"))
    }

    /// Required by the specification, and what makes a component of use: CycloneDX 1.6, bom-1.6.schema.json.
    fn check_component(component: &Value) {
        assert!(["application", "library"].contains(&text(component, "type")));
        let (name, version) = (text(component, "name"), text(component, "version"));
        assert_eq!(text(component, "purl"), format!("pkg:cargo/{name}@{}", version.replace('+', "%2B")));
        assert_eq!(component["purl"], component["bom-ref"]);
        let licences = component["licenses"].as_array().expect("an array");
        assert_eq!(licences.len(), 1, "an expression stands alone: {component}");
        Expression::parse(text(&licences[0], "expression")).expect("SPDX");
        for hash in component["hashes"].as_array().into_iter().flatten() {
            assert_eq!(text(hash, "alg"), "SHA-256");
            let content = text(hash, "content");
            assert!(content.len() == 64 && content.bytes().all(|byte| byte.is_ascii_hexdigit()), "{component}");
        }
        for reference in component["externalReferences"].as_array().into_iter().flatten() {
            assert!(text(reference, "type") == "vcs" && text(reference, "url").starts_with("https://"), "{component}");
        }
    }

    #[test]
    fn has_what_the_specification_asks_for() {
        let document = own();
        assert_eq!((text(&document, "bomFormat"), text(&document, "specVersion")), ("CycloneDX", "1.6"));
        assert_eq!(document["version"], 1);
        let subject = &document["metadata"]["component"];
        assert_eq!((text(subject, "type"), text(subject, "name")), ("application", PRODUCT));
        let components = document["components"].as_array().expect("an array");
        components.iter().chain([subject]).for_each(check_component);
        let references: BTreeSet<&str> = components.iter().chain([subject]).map(|it| text(it, "bom-ref")).collect();
        assert_eq!(references.len(), components.len() + 1, "a name is there twice");
        let mut reached = BTreeSet::new();
        for edges in document["dependencies"].as_array().expect("an array") {
            assert!(references.contains(text(edges, "ref")), "{edges}");
            reached.extend(edges["dependsOn"].as_array().expect("an array").iter().filter_map(Value::as_str));
        }
        assert!(reached.iter().all(|reference| references.contains(reference)));
    }

    #[test]
    fn lists_what_is_compiled_in_and_nothing_else() {
        let document = own();
        let names: BTreeSet<&str> =
            document["components"].as_array().expect("an array").iter().map(|it| text(it, "name")).collect();
        for compiled_in in ["aya", "aya-ebpf", "observer-common", "observer-proto", "observer-ebpf", "rustls", "tokio"]
        {
            assert!(names.contains(compiled_in), "no {compiled_in}");
        }
        for left_out in ["proptest", "harness", "syn", "windows-sys", "libfuzzer-sys", "tempfile"] {
            assert!(!names.contains(left_out), "{left_out}");
        }
        let pinned = |it: &&Value| it["hashes"].is_array();
        let from_here = document["components"].as_array().expect("an array").iter().filter(|it| !pinned(it)).count();
        assert_eq!(from_here, 4, "all but our own crates have the checksum of their archive");
    }

    #[test]
    fn is_the_same_every_time() {
        assert_eq!(own().to_string(), own().to_string());
    }
}
