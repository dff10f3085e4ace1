//! Identity of observed processes: sidecars, gateways and control-plane components.

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

/// A process by pid and start time, which distinguishes reused pids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessId {
    /// Process id in the observer's own pid namespace.
    pub pid: u32,
    /// Start time in clock ticks since boot (`/proc/PID/stat`, field 22).
    pub start_time: u64,
}

impl ProcessId {
    /// Returns the id of a configured cgroup's processes: pid 0, distinguished by the cgroup.
    #[must_use]
    pub const fn of_cgroup(cgroup_id: u64) -> Self {
        Self { pid: 0, start_time: cgroup_id }
    }

    /// Returns whether this is a process, not a cgroup.
    #[must_use]
    pub const fn is_process(self) -> bool {
        self.pid != 0
    }
}

/// Number of a sidecar in the kernel maps; never 0, never reused while the observer runs. A container that is restarted
/// in its pod keeps it.
pub type SidecarId = u32;

/// Role of an Envoy process.
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
    /// Number in the kernel maps.
    pub id: SidecarId,
    /// The Envoy process, or [`ProcessId::of_cgroup`] for a configured cgroup.
    pub process: ProcessId,
    /// Sidecar or gateway.
    pub role: Role,
    /// Why it was classified so, for `observer check`, e.g. "listens on 15001 and 15006".
    pub evidence: String,
    /// cgroup v2 directory, absolute, as mounted here.
    #[serde(serialize_with = "lossy")]
    pub cgroup: PathBuf,
    /// Kernel id of that cgroup (the directory's inode).
    pub cgroup_id: u64,
    /// Inode of its network namespace.
    pub netns_inode: u64,
    /// The pod's addresses (`INSTANCE_IP`, `INSTANCE_IPS`).
    pub addresses: Vec<IpAddr>,
    /// Other processes in the same cgroup, e.g. pilot-agent.
    #[serde(rename = "companions")]
    pub coresidents: Vec<ProcessId>,
    /// Whether one of them is not pilot-agent: possibly an application with connections of its own.
    #[serde(default)]
    pub is_cgroup_shared: bool,
    /// Workload of its pod.
    pub workload: Arc<Workload>,
}

impl Sidecar {
    /// Returns the pids of its process and of the coresidents.
    pub fn pids(&self) -> impl Iterator<Item = u32> {
        [self.process]
            .into_iter()
            .filter(|process| process.is_process())
            .chain(self.coresidents.iter().copied())
            .map(|it| it.pid)
    }
}

/// Identity of one workload instance, from the injector's environment or the configuration file.
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

/// Serializes a path lossily: one that is not UTF-8 must not prevent persisting the rest.
///
/// # Errors
/// The serializer's.
pub fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.to_string_lossy())
}

/// A process of the control plane, or another that is scraped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Component {
    /// The process.
    pub process: ProcessId,
    /// `istiod`, `galley`, …
    pub app: String,
    /// cgroup v2 directory, absolute, as mounted here; `None` if it is not visible here.
    pub cgroup: Option<PathBuf>,
    /// Its container, as far as its cgroup shows.
    pub container: Container,
    /// Pod, namespace and the like, as far as its environment shows.
    pub workload: Arc<Workload>,
    /// Its `/metrics` endpoint, or why that is not known.
    pub endpoint: Result<MetricsEndpoint, String>,
}

impl Component {
    /// Returns why its endpoint is not known.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.endpoint.as_ref().err().map(|reason| format!("its metrics endpoint is unknown: {reason}"))
    }
}

/// A `/metrics` endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricsEndpoint {
    /// Address of the instance, unique if it has such an address.
    pub instance: SocketAddr,
    /// Address to connect to, from here or from inside its network namespace.
    pub address: SocketAddr,
    /// Why it is reachable only from inside its network namespace, if so.
    pub inside_only: Option<InsideOnly>,
    /// Address inside its network namespace; `None` if the observer is in the same one.
    pub inside: Option<SocketAddr>,
    /// How it was found, for `observer check`.
    pub evidence: String,
    /// Whether the port was chosen only because it is the only one so far.
    pub is_guess: bool,
}

/// Why an endpoint is reachable only from inside its process's network namespace, which is not the observer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum InsideOnly {
    /// It listens on loopback.
    Loopback,
    /// It refuses all others (`METRICS_LOCALHOST_ACCESS_ONLY`).
    Refusing,
    /// The namespace has no other address.
    NoAddress,
}

impl InsideOnly {
    /// Returns the reason as a message.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Loopback => "it listens on loopback only",
            Self::Refusing => "METRICS_LOCALHOST_ACCESS_ONLY makes it refuse all but local callers",
            Self::NoAddress => "no address of its network namespace is known but loopback",
        }
    }
}

/// A scraped instance: the labels of all its points.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instance {
    /// `address:port`, unique per instance.
    pub instance: String,
    /// `istiod`, …
    pub app: String,
    /// Pod, if known.
    pub pod: Option<String>,
    /// Namespace, if known.
    pub namespace: Option<String>,
    /// The scraping node, for a configured instance that other nodes scrape too: their series would collide otherwise.
    pub node: Option<String>,
}

impl Instance {
    /// Names of all labels, in exposition order.
    pub const LABELS: [&str; 5] = ["instance", "app", "pod", "namespace", "scraper_node"];

    /// Returns the names of the labels set on its points: a discovered instance has no `scraper_node`.
    #[must_use]
    pub fn labels(&self) -> &'static [&'static str] {
        if self.node.is_some() { &Self::LABELS } else { Self::LABELS.split_at(4).0 }
    }
}
