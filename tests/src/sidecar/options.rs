//! How a sidecar or gateway is set up.

use std::{path::PathBuf, sync::Arc, time::Duration};

use crate::{
    mesh::Workload,
    redirect::{Exclusions, Interception, Ports},
};

/// Role of an Envoy in the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Beside an application, behind redirection.
    #[default]
    Sidecar,
    /// Standalone, with listeners at 8080 (plaintext) and 8443 (TLS).
    Gateway,
    /// Like a gateway, but with the role of a waypoint.
    Waypoint,
}

/// Address at which a sidecar connects to its application.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Inbound {
    /// The original destination, from 127.0.0.6 (Istio's default).
    #[default]
    Passthrough,
    /// 127.0.0.1.
    Localhost,
}

/// Source of Envoy's node id, which begins with its role.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodeId {
    /// Its bootstrap configuration, as with today's pilot-agent.
    #[default]
    Bootstrap,
    /// `--service-node`, as in earlier releases.
    CommandLine,
    /// None.
    Nowhere,
}

/// How a sidecar is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// Sidecar or gateway.
    pub kind: Kind,
    /// Source of its node id.
    pub node_id: NodeId,
    /// Role of the pilot-agent beside it, if there is one.
    pub agent: Option<&'static str>,
    /// Ports that connections are redirected to.
    pub ports: Ports,
    /// Listeners at loopback addresses that the application connects to itself (a `Sidecar` resource's egress with
    /// `bind` and `port`): port, and name of the service.
    pub own_listeners: Vec<(u16, String)>,
    /// How inbound traffic reaches it.
    pub interception: Interception,
    /// Address at which it connects to the application.
    pub inbound: Inbound,
    /// Ports that bypass it.
    pub exclusions: Exclusions,
    /// Envoy's worker threads.
    pub concurrency: u32,
    /// How long it waits for the first bytes on an undeclared port.
    pub sniffing_timeout: Duration,
    /// Ports on which HTTP to hosts outside the mesh is parsed (Istio: ports that any HTTP service uses).
    pub passthrough_http_ports: Vec<u16>,
    /// Executable name instead of the mesh's own.
    pub executable: Option<String>,
    /// Started by the dynamic loader, which is then the process's executable.
    pub loader: Option<PathBuf>,
    /// The pod in its environment, instead of its own.
    pub claimed: Option<Arc<Workload>>,
    /// cgroup v2 directory instead of its own container's.
    pub cgroup: Option<PathBuf>,
    /// Exposition instead of Envoy's own, at most 4 KiB.
    pub metrics_page: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            kind: Kind::Sidecar,
            node_id: NodeId::Bootstrap,
            agent: None,
            ports: Ports::default(),
            own_listeners: Vec::new(),
            interception: Interception::Redirect,
            inbound: Inbound::Passthrough,
            exclusions: Exclusions::default(),
            concurrency: 2,
            sniffing_timeout: Duration::from_secs(1),
            passthrough_http_ports: Vec::new(),
            executable: None,
            loader: None,
            claimed: None,
            cgroup: None,
            metrics_page: None,
        }
    }
}

impl Options {
    /// Configures a gateway: no redirection, its own listeners.
    pub fn gateway() -> Self {
        Self { kind: Kind::Gateway, interception: Interception::None, ..Self::default() }
    }
}

/// Returns the node id that pilot-agent builds [istio `pkg/model/proxy.go`].
pub(crate) fn node_id(workload: &Workload, options: &Options) -> String {
    let role = match options.kind {
        Kind::Sidecar => "sidecar",
        Kind::Gateway => "router",
        Kind::Waypoint => "waypoint",
    };
    let Workload { namespace, pod, ipv4, .. } = workload;
    format!("{role}~{ipv4}~{pod}.{namespace}~{namespace}.svc.cluster.local")
}
