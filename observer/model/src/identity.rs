//! Identity of the processes that are observed: sidecars, gateways and the control plane's components.

pub mod container;

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize, Serializer};

use self::container::Container;

/// Name of the container that Istio's injector and its gateways run Envoy in.
pub const PROXY: &str = "istio-proxy";

/// A process by pid and start time, so that a reused pid is another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessId {
    /// Process id in the observer's own pid namespace.
    pub pid: u32,
    /// Start time in clock ticks since boot (`/proc/PID/stat`, field 22).
    pub start_time: u64,
}

impl ProcessId {
    /// Stands for the processes of a cgroup that is observed because the user named it: pid 0, told apart by the cgroup.
    #[must_use]
    pub const fn of_cgroup(cgroup_id: u64) -> Self {
        Self { pid: 0, start_time: cgroup_id }
    }

    /// Whether it is a process, not a cgroup.
    #[must_use]
    pub const fn is_process(self) -> bool {
        self.pid != 0
    }
}

/// Number under which a sidecar's figures are counted in the kernel; never 0, never reused while the observer runs.
/// A container restarted in the same pod keeps its number.
pub type SidecarId = u32;

/// What an Envoy process is to the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Role {
    /// A sidecar behind REDIRECT rules.
    Sidecar,
    /// A sidecar behind TPROXY rules.
    TproxySidecar,
    /// A gateway: Envoy without redirection.
    Gateway,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Sidecar => "sidecar",
            Self::TproxySidecar => "sidecar (TPROXY)",
            Self::Gateway => "gateway",
        })
    }
}

/// A sidecar or gateway found on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sidecar {
    /// Number it is counted under.
    pub id: SidecarId,
    /// The Envoy process, or [`ProcessId::of_cgroup`] for a cgroup that is observed because the user named it.
    pub process: ProcessId,
    /// Sidecar or gateway.
    pub role: Role,
    /// Why it was taken for that, for `observer check` ("its bootstrap's node id says router", "listens on 15001 and 15006").
    pub evidence: String,
    /// cgroup v2 directory, absolute, as mounted here.
    #[serde(serialize_with = "lossy")]
    pub cgroup: PathBuf,
    /// Kernel's id of that cgroup (the directory's inode).
    pub cgroup_id: u64,
    /// Inode of its network namespace.
    pub netns_inode: u64,
    /// The pod's addresses (`INSTANCE_IP`, `INSTANCE_IPS`).
    pub addresses: Vec<IpAddr>,
    /// Other processes in the same cgroup that are no sidecar (pilot-agent).
    pub companions: Vec<ProcessId>,
    /// Whether one of them is not pilot-agent: an application, maybe, that accepts connections of its own there.
    #[serde(default)]
    pub is_cgroup_shared: bool,
    /// Own side of every label.
    pub workload: Arc<Workload>,
}

impl Sidecar {
    /// Its process and those beside it, by number.
    pub fn pids(&self) -> impl Iterator<Item = u32> {
        [self.process]
            .into_iter()
            .filter(|process| process.is_process())
            .chain(self.companions.iter().copied())
            .map(|it| it.pid)
    }
}

/// The identity of one workload instance, from the injector's environment or the configuration file.
/// An absent value is `None`; what is printed for it is the label code's decision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// Pod name.
    pub pod: Option<String>,
    /// Namespace.
    pub namespace: Option<String>,
    /// Workload name (`ISTIO_META_WORKLOAD_NAME`).
    pub name: Option<String>,
    /// Cluster (`ISTIO_META_CLUSTER_ID`).
    pub cluster: Option<String>,
    /// Service account.
    pub service_account: Option<String>,
    /// Trust domain of its identity.
    pub trust_domain: Option<String>,
    /// Pod labels (`ISTIO_METAJSON_LABELS`).
    pub labels: BTreeMap<String, String>,
    /// Node name.
    pub node: Option<String>,
}

/// Serializes a path as text: one that is not UTF-8 must not keep the rest from being remembered.
///
/// # Errors
/// The serializer's.
pub fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.to_string_lossy())
}

/// A process of the control plane, or another whose metrics page is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Component {
    /// Which process.
    pub process: ProcessId,
    /// `istiod`, `galley`, …
    pub app: String,
    /// cgroup v2 directory, absolute, as mounted here; `None` if it cannot be seen from here.
    pub cgroup: Option<PathBuf>,
    /// The container it is in, as far as its cgroup tells.
    pub container: Container,
    /// Pod, namespace and the like, as far as its environment tells.
    pub workload: Arc<Workload>,
    /// Where its metrics page is, or why that is not known.
    pub page: Result<MetricsEndpoint, String>,
}

impl Component {
    /// Why its page is not known.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.page.as_ref().err().map(|reason| format!("its metrics page is not known: {reason}"))
    }
}

/// Where a metrics page is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricsEndpoint {
    /// Names the instance: an address that only it has, wherever it has one.
    pub instance: SocketAddr,
    /// Where to connect to, from here or from inside its network namespace.
    pub address: SocketAddr,
    /// Set if that works only from inside its network namespace.
    pub inside_only: Option<InsideOnly>,
    /// Where to connect to from inside its network namespace; `None` if the observer is in the same one.
    pub inside: Option<SocketAddr>,
    /// How it was found, for `observer check`.
    pub evidence: String,
    /// Whether its port is only taken for it because there is no other yet.
    pub is_guess: bool,
}

/// Why a page can be read only from inside its process's network namespace, which is not the observer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum InsideOnly {
    /// It listens on loopback.
    Loopback,
    /// It refuses everybody else (`METRICS_LOCALHOST_ACCESS_ONLY`).
    Refusing,
    /// The namespace has no other address.
    NoAddress,
}

impl InsideOnly {
    /// The reason, for people.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Loopback => "it listens on loopback only",
            Self::Refusing => "METRICS_LOCALHOST_ACCESS_ONLY makes it refuse all but local callers",
            Self::NoAddress => "no address of its network namespace is known but loopback",
        }
    }
}
