//! Finds sidecars, gateways and control-plane processes on this node, with their identity, through procfs.

pub mod addresses;
pub mod bootstrap;
pub mod cgroup;
pub mod component;
pub mod error;
pub mod events;
pub mod foreign_file;
pub mod kubelet;
pub mod kubernetes;
pub mod pod_labels;
pub mod proc_files;
pub mod process;
pub mod registry;
pub mod scan;
pub mod watch;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use observer_model::identity::lossy;
pub use observer_model::identity::{Component, InsideOnly, ProcessId, Role, Sidecar, SidecarId, Workload, container};

use self::component::ComponentRule;

/// Options of discovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveryConfig {
    /// The proc file system, usually `/proc`.
    pub proc_root: PathBuf,
    /// The cgroup v2 file system; found in mountinfo if absent.
    pub cgroup_root: Option<PathBuf>,
    /// Executable names that make a process a candidate.
    pub executables: Vec<String>,
    /// Executables of the control plane, and others whose /metrics endpoints are scraped.
    pub components: Vec<ComponentRule>,
    /// cgroup v2 directories to observe even if no sidecar is recognised in them.
    pub cgroups: Vec<PathBuf>,
    /// Identities from the configuration file, for sidecars without an injector's environment.
    pub rules: Vec<SidecarRule>,
}

/// A `[[sidecar]]` of the configuration file: a sidecar without the injector's environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SidecarRule {
    /// Matches the process by its cgroup, as in `/proc/PID/cgroup`.
    pub cgroup: Option<PathBuf>,
    /// Matches the process by the path of its executable.
    pub executable: Option<PathBuf>,
    /// Its role; classified by evidence if absent.
    pub role: Option<Role>,
    /// Its addresses; those of its environment if empty.
    pub addresses: Vec<IpAddr>,
    /// Its identity; each absent value is taken from its environment.
    pub workload: Workload,
}

/// A change on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new sidecar. It has the id of an earlier one of the same pod, if any.
    Found(Arc<Sidecar>),
    /// A known sidecar whose cgroup, coresident processes or role have changed.
    Updated(Arc<Sidecar>),
    /// It ended, in its last known state. Another process with the same id may run (an overlapping restart).
    Gone(Arc<Sidecar>),
    /// A new control-plane process.
    ComponentFound(Arc<Component>),
    /// A known one of which more is known, e.g. its /metrics endpoint.
    ComponentUpdated(Arc<Component>),
    /// It ended, in its last known state.
    ComponentGone(Arc<Component>),
}

impl Change {
    /// Returns the process.
    #[must_use]
    pub fn process(&self) -> ProcessId {
        match self {
            Self::Found(sidecar) | Self::Updated(sidecar) | Self::Gone(sidecar) => sidecar.process,
            Self::ComponentFound(component) | Self::ComponentUpdated(component) | Self::ComponentGone(component) => {
                component.process
            }
        }
    }
}

/// A finding about this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// A sidecar or gateway that is observed.
    Observed(Arc<Sidecar>),
    /// A control-plane process.
    Component(Arc<Component>),
    /// A candidate that is not observed.
    Refused {
        /// The process.
        process: ProcessId,
        /// Name of its executable.
        executable: String,
        /// Why not, and what would change it.
        reason: String,
    },
    /// A warning.
    Warning(String),
}

/// Returns the sidecar of each cgroup, by cgroup id, that owns accepted sockets on which no process was seen: the one
/// that started first. That is a guess if there are several; see [`Finding::Warning`].
pub fn cgroup_defaults<'a>(sidecars: impl IntoIterator<Item = &'a Arc<Sidecar>>) -> BTreeMap<u64, &'a Arc<Sidecar>> {
    let mut defaults = BTreeMap::new();
    for sidecar in sidecars {
        let first = defaults.entry(sidecar.cgroup_id).or_insert(sidecar);
        let started = |sidecar: &Sidecar| (sidecar.process.start_time, sidecar.process.pid);
        if started(sidecar) < started(first) {
            *first = sidecar;
        }
    }
    defaults
}

/// Whether `name`, an executable's file name or a command name truncated by the kernel to 15 bytes, is `wanted` or its
/// wrapper [nixpkgs `make-wrapper.sh`: `.NAME-wrapped`].
fn is_named(wanted: &str, name: &str, cut: bool) -> bool {
    const COMMAND_LENGTH: usize = 15;
    let wrapped = name.strip_prefix('.').and_then(|name| name.strip_suffix("-wrapped"));
    name == wanted
        || wrapped == Some(wanted)
        || cut && name.len() == COMMAND_LENGTH && wanted.as_bytes().starts_with(name.as_bytes())
}

/// Returns `path` as text without control characters.
pub(crate) fn printable(path: &Path) -> String {
    path.to_string_lossy().chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
