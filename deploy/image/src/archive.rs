//! The archive: an OCI image layout in a tar file (<https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md>).

use std::io::Write as _;

use anyhow::Result;
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType};

use crate::layer::header;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// The kernel object is also under the GPL; the libraries are glibc's and GCC's.
const LICENSES: &str =
    "Apache-2.0 AND GPL-2.0-only AND LGPL-2.1-or-later AND (GPL-3.0-or-later WITH GCC-exception-3.1)";

/// What the image says about itself.
pub(crate) struct Description<'a> {
    /// Name with tag.
    pub(crate) name: &'a str,
    /// Version of the observer.
    pub(crate) version: &'a str,
    /// Architecture as Go spells it.
    pub(crate) architecture: &'a str,
    /// Date and time (RFC 3339).
    pub(crate) created: String,
    /// Commit, if known.
    pub(crate) revision: Option<String>,
}

impl Description<'_> {
    /// Returns the labels (<https://github.com/opencontainers/image-spec/blob/v1.1.1/annotations.md>).
    fn labels(&self) -> Value {
        let mut labels = json!({
            "org.opencontainers.image.created": self.created,
            "org.opencontainers.image.description": "Istio's metrics from a node's sockets, without touching the mesh",
            "org.opencontainers.image.licenses": LICENSES,
            "org.opencontainers.image.title": "mesh-observer",
            "org.opencontainers.image.version": self.version,
        });
        if let Some(revision) = &self.revision {
            labels["org.opencontainers.image.revision"] = json!(revision);
        }
        labels
    }
}

/// Returns the archive of an image with this layer.
pub(crate) fn write(layer: &[u8], description: &Description, modified: u64) -> Result<Vec<u8>> {
    let mut archive = Builder::new(Vec::new());
    let mut add = |path: &str, bytes: &[u8]| {
        let mut header = header(EntryType::Regular, 0o644, u64::try_from(bytes.len())?, modified);
        archive.append_data(&mut header, path, bytes).map_err(anyhow::Error::from)
    };
    let mut blob = |media_type: &str, bytes: &[u8]| -> Result<Value> {
        let digest = sha256(bytes);
        add(&format!("blobs/sha256/{digest}"), bytes)?;
        Ok(json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len() }))
    };
    let layer_descriptor = blob(LAYER, &compressed(layer)?)?;
    let config = config(&sha256(layer), description);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": blob(CONFIG, &serde_json::to_vec(&config)?)?,
        "layers": [layer_descriptor],
        "annotations": description.labels(),
    });
    let mut descriptor = blob(MANIFEST, &serde_json::to_vec(&manifest)?)?;
    descriptor["platform"] = json!({ "architecture": description.architecture, "os": "linux" });
    // containerd reads the first, others the second.
    descriptor["annotations"] = json!({
        "io.containerd.image.name": description.name,
        "org.opencontainers.image.ref.name": description.name,
    });
    add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let index = json!({ "schemaVersion": 2, "manifests": [descriptor] });
    add("index.json", &serde_json::to_vec(&index)?)?;
    Ok(archive.into_inner()?)
}

/// Returns how a container of the image is started.
fn config(diff_id: &str, description: &Description) -> Value {
    json!({
        "created": description.created,
        "architecture": description.architecture,
        "os": "linux",
        "config": {
            // Container runtimes give capabilities to root only.
            "User": "0:0",
            "ExposedPorts": { "9469/tcp": {} },
            "Entrypoint": ["/observer"],
            "Cmd": ["run"],
            "WorkingDir": "/",
            "Labels": description.labels(),
        },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{diff_id}")] },
        "history": [{ "created": description.created, "created_by": "cargo xtask image" }],
    })
}

fn compressed(bytes: &[u8]) -> Result<Vec<u8>> {
    // Neither a time nor a name is in its header.
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::default());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

/// Returns the digest in hexadecimal digits.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
