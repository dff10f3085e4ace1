//! The node's name.

use std::{env, fs};

/// Returns the node's name: `NODE_NAME`, which Kubernetes sets, or the host's.
#[must_use]
pub fn node_name() -> String {
    let names = [env::var("NODE_NAME").ok(), host_name()];
    names.into_iter().flatten().find(|name| !name.is_empty()).unwrap_or_else(|| "unknown".to_owned())
}

/// Returns the host's name, if it can be read.
#[must_use]
pub fn host_name() -> Option<String> {
    Some(fs::read_to_string("/proc/sys/kernel/hostname").ok()?.trim().to_owned())
}
