//! Who is on this node: sidecars, gateways and the control plane's processes with their identity, found through procfs.

pub mod addresses;
pub mod bootstrap;
pub mod cgroup;
pub mod component;
pub mod error;
pub mod events;
pub mod foreign_file;
pub mod kubelet;
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

/// Where and what to look for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveryConfig {
    /// The proc file system, usually `/proc`.
    pub proc_root: PathBuf,
    /// The cgroup v2 file system; found in mountinfo if absent.
    pub cgroup_root: Option<PathBuf>,
    /// Executable names that make a process a candidate.
    pub executables: Vec<String>,
    /// Executables of the control plane, and others whose metrics pages are read.
    pub components: Vec<ComponentRule>,
    /// cgroup v2 directories to observe even if no sidecar is recognised in them.
    pub cgroups: Vec<PathBuf>,
    /// Identities that the configuration file gives where no injector does.
    pub rules: Vec<SidecarRule>,
}

/// What the configuration file says of a sidecar without the injector's environment (`[[sidecar]]`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SidecarRule {
    /// Matches the process by its cgroup, as in `/proc/PID/cgroup`.
    pub cgroup: Option<PathBuf>,
    /// Matches the process by the path of its executable.
    pub executable: Option<PathBuf>,
    /// What it is; decided by evidence if absent.
    pub role: Option<Role>,
    /// Its addresses; those of its environment if empty.
    pub addresses: Vec<IpAddr>,
    /// Its identity; each absent value is taken from its environment.
    pub workload: Workload,
}

/// What changed on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A sidecar that was not there before. Its id is an earlier one's if that was of the same pod.
    Found(Arc<Sidecar>),
    /// A known process whose cgroup, companions or role are others now.
    Updated(Arc<Sidecar>),
    /// It ended, as last known. Another process with the same id may live on (a restart that overlapped).
    Gone(Arc<Sidecar>),
    /// A control-plane process that was not there before.
    ComponentFound(Arc<Component>),
    /// A known one of which more is known now, as where its metrics page is.
    ComponentUpdated(Arc<Component>),
    /// It ended, as last known.
    ComponentGone(Arc<Component>),
}

impl Change {
    /// The process that it is about.
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

/// One line of what discovery has to say of this node.
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
    /// Something the user should know.
    Warning(String),
}

/// The sidecar of each cgroup (by cgroup id) that accepted sockets belong to when no process was seen on them. In a cgroup
/// with several it is the one that started first, which is a guess: [`Finding::Warning`] says so.
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

/// Whether `name`, an executable's file name or a command name that the kernel cut at 15 bytes, is `wanted`, or what a wrapper
/// script has in its place [nixpkgs `make-wrapper.sh`: `.NAME-wrapped`].
fn is_named(wanted: &str, name: &str, cut: bool) -> bool {
    const COMMAND_LENGTH: usize = 15;
    let wrapped = name.strip_prefix('.').and_then(|name| name.strip_suffix("-wrapped"));
    name == wanted
        || wrapped == Some(wanted)
        || cut && name.len() == COMMAND_LENGTH && wanted.as_bytes().starts_with(name.as_bytes())
}

/// `path` as a line of text that no file name can break.
pub(crate) fn printable(path: &Path) -> String {
    path.to_string_lossy().chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
