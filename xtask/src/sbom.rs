//! The bill of materials of the release binary, as CycloneDX JSON beside it: cargo-cyclonedx's documents of the
//! observer and of the kernel object that it embeds, merged, and without the parts that differ from build to build or
//! from machine to machine.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::{
    exec::{host, output, root, say},
    setup,
    toolchain::KERNEL_TARGET,
};

/// Begins the name of the files that the tool leaves beside every manifest of the workspace.
const DOCUMENT: &str = "sbom.cdx";

/// Writes the document beside the binary.
pub(crate) fn write(binary: &Path) -> Result<()> {
    let documents = merged(document("observer", &host()?)?, document("observer-ebpf", KERNEL_TARGET)?)?;
    let path = binary.with_extension("cdx.json");
    let text = text(documents, root());
    fs::write(&path, text).with_context(|| format!("{}: cannot write", path.display()))?;
    say(format!("bill of materials: {}", path.display()));
    Ok(())
}

/// Runs the tool for a package, and removes the files of the others.
fn document(package: &str, target: &str) -> Result<Value> {
    let file = format!("{DOCUMENT}.json");
    let mut tool = Command::new(setup::CARGO_CYCLONEDX.install()?);
    tool.current_dir(root()).args(["cyclonedx", "--quiet", "--format", "json", "--spec-version", "1.5"]);
    output(tool.args(["--no-build-deps", "--target", target, "--override-filename", DOCUMENT]))?;
    let path = root().join(package).join(&file);
    let text = fs::read_to_string(&path).with_context(|| format!("{}: cannot read", path.display()))?;
    for written in crate::tidy::files()?.iter().filter(|path| path.ends_with(&file)) {
        fs::remove_file(written).with_context(|| format!("{}: cannot remove", written.display()))?;
    }
    serde_json::from_str(&text).with_context(|| format!("{}: not JSON", path.display()))
}

/// Adds to the observer's document the kernel object with its dependencies.
fn merged(mut observer: Value, mut kernel: Value) -> Result<Value> {
    observer.as_object_mut().context("a document is an object")?.remove("serialNumber");
    observer["metadata"].as_object_mut().context("a document has metadata")?.remove("timestamp");
    let object = kernel["metadata"]["component"].take();
    let (from, to) = (observer["metadata"]["component"]["bom-ref"].clone(), object["bom-ref"].clone());
    let mut add = |list: &str, key: &str, more: Vec<Value>| -> Result<()> {
        let known = observer[list].as_array_mut().with_context(|| format!("a document has {list}"))?;
        for item in more {
            if known.iter().all(|other| other[key] != item[key]) {
                known.push(item);
            }
        }
        Ok(())
    };
    let mut list = |name: &str| kernel[name].as_array_mut().map(std::mem::take).unwrap_or_default();
    let components = list("components").into_iter().chain([object]).collect();
    add("components", "bom-ref", components)?;
    add("dependencies", "ref", list("dependencies"))?;
    let edges = observer["dependencies"].as_array_mut().into_iter().flatten();
    for edge in edges.filter(|edge| edge["ref"] == from) {
        edge["dependsOn"].as_array_mut().context("a dependency has dependsOn")?.push(to.clone());
    }
    Ok(observer)
}

/// Returns the text of a document, without the place of the sources.
fn text(document: Value, root: &Path) -> String {
    format!("{document:#}\n").replace(&format!("file://{}/", root.display()), "file:///")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn example(name: &str, dependencies: &[&str]) -> Value {
        let reference = format!("path+file:///sources/{name}#0.1.0");
        json!({
            "bomFormat": "CycloneDX",
            "serialNumber": "urn:uuid:1",
            "metadata": { "timestamp": "now", "component": { "bom-ref": reference, "name": name } },
            "components": dependencies.iter().map(|name| json!({ "bom-ref": name, "name": name })).collect::<Vec<_>>(),
            "dependencies": [{ "ref": reference, "dependsOn": dependencies }],
        })
    }

    #[test]
    fn both_are_listed_once_and_nothing_differs_from_build_to_build() {
        let merged = merged(example("observer", &["a", "b"]), example("kernel", &["b", "c"])).expect("two documents");
        let names: Vec<_> = merged["components"].as_array().expect("a list").iter().map(|it| &it["name"]).collect();
        assert_eq!(names, ["a", "b", "c", "kernel"]);
        assert_eq!(merged["dependencies"][0]["dependsOn"], json!(["a", "b", "path+file:///sources/kernel#0.1.0"]));
        assert_eq!(merged["dependencies"][1]["dependsOn"], json!(["b", "c"]));
        let text = text(merged, Path::new("/sources"));
        assert!(!text.contains("serialNumber") && !text.contains("timestamp") && !text.contains("sources"), "{text}");
    }
}
