//! The image's bill of materials: the observer's (CycloneDX 1.5), with the files that the image adds to it.

use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::{
    archive::sha256,
    contents::{Files, Library},
};

/// Adds the files, and for libraries the Debian package that they are from, by which scanners find advisories.
pub(crate) fn with_files(sbom: &[u8], libraries: &[Library], files: &Files) -> Result<Vec<u8>> {
    let mut sbom: Value = serde_json::from_slice(sbom)?;
    let components = sbom["components"].as_array_mut().context("it has no components")?;
    for (place, file) in files {
        let library = libraries.iter().find(|library| library.place == *place);
        let mut component = json!({
            "type": if library.is_some() { "library" } else { "file" },
            "bom-ref": format!("image:/{place}"),
            "name": format!("/{place}"),
            "hashes": [{ "alg": "SHA-256", "content": sha256(&file.bytes) }],
        });
        if let Some(package) = library.and_then(package) {
            component["version"] = json!(package.version);
            component["purl"] = json!(package.purl());
        }
        components.push(component);
    }
    Ok(format!("{sbom:#}\n").into_bytes())
}

/// A package of Debian or of a distribution derived from it.
struct Package {
    distribution: String,
    name: String,
    version: String,
    architecture: String,
}

impl Package {
    /// Returns its package URL (<https://github.com/package-url/purl-spec>).
    fn purl(&self) -> String {
        let Self { distribution, name, version, architecture } = self;
        let version = version.replace('+', "%2B").replace(':', "%3A");
        format!("pkg:deb/{distribution}/{name}@{version}?arch={architecture}")
    }
}

/// Returns the package that a library is from; `None` where there is no dpkg, or for a file of no package.
fn package(library: &Library) -> Option<Package> {
    let owner = |path: &std::path::Path| dpkg_query(&["--search".as_ref(), path.as_os_str()]);
    // With merged directories, a package has its files under one of two paths.
    let owners = owner(&library.source).or_else(|| owner(&library.source.canonicalize().ok()?))?;
    let name = owners.lines().find(|line| !line.starts_with("diversion "))?.rsplit_once(": ")?.0.to_owned();
    let format = "--showformat=${Package} ${Version} ${Architecture}";
    let described = dpkg_query(&["--show".as_ref(), format.as_ref(), name.as_ref()])?;
    let [name, version, architecture] = described.split(' ').collect::<Vec<_>>().try_into().ok()?;
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let distribution = release.lines().find_map(|line| line.strip_prefix("ID=")).unwrap_or("debian").to_owned();
    let [name, version, architecture] = [name, version, architecture].map(str::to_owned);
    Some(Package { distribution, name, version, architecture })
}

fn dpkg_query(arguments: &[&std::ffi::OsStr]) -> Option<String> {
    let output = Command::new("dpkg-query").args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8(output.stdout).ok())?
}
