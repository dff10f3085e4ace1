//! Errors of discovery, each with its remedy.

use std::{io, path::PathBuf};

/// Why discovery cannot work at all, or a cgroup cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// No cgroup v2 in this mount namespace.
    #[error(
        "no cgroup v2 file system is mounted ({mountinfo} has no line of type cgroup2): mount one with \
         `mount -t cgroup2 none /sys/fs/cgroup/unified`, or boot with systemd.unified_cgroup_hierarchy=1; in a \
         container, mount the host's /sys/fs/cgroup into it"
    )]
    NoHierarchy {
        /// Where it was looked for.
        mountinfo: String,
    },
    /// A path that is not a cgroup v2 directory.
    #[error("{path} is not a cgroup v2 directory: {reason}")]
    NoCgroup {
        /// The path.
        path: PathBuf,
        /// Why not, and the remedy.
        reason: String,
    },
    /// A cgroup that exists but cannot be reached from the observer's cgroup namespace.
    #[error(
        "cgroup {path} lies outside of what {mount_point} shows: run the observer in the host's cgroup namespace, or \
         mount the host's /sys/fs/cgroup into its container and name it by --cgroup-root"
    )]
    OutOfSight {
        /// Path as in `/proc/PID/cgroup`.
        path: String,
        /// The cgroup v2 mount in use.
        mount_point: PathBuf,
    },
    /// The proc file system cannot be read.
    #[error("{path} cannot be read: {reason}; the observer needs the host's proc file system (--proc-root)")]
    Proc {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        reason: io::Error,
    },
}
