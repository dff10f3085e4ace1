//! Which workload and service a series belongs to, from the sidecars of this node and the configured peers.
//!
//! A principal belongs to a connection with mutual TLS, not to a pod. At the destination leg the peer's handshake shows
//! it. At the source leg the sidecar's connection to its peer is not visible, only the application's original
//! destination: Istio uses mutual TLS to service ports whose pods have a sidecar, and passes traffic to a pod's own
//! address or another port on in plaintext (`PassthroughCluster`).

mod cluster_routes;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use observer_common::{GRPC_NONE, Leg, SeriesKey};

use self::cluster_routes::{ClusterRoutes, enriched};
use crate::{
    identity::{Role, Sidecar, SidecarId, Workload},
    kubernetes::{Cluster, TLS_MODE, Unresolved},
    labels::{GatewayLabels, MeshLabels, Peer, Protocol, Reporter, Security, Service, UNKNOWN},
};

/// Trust domain of a mesh that sets none.
pub(crate) const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";
/// Cluster name of a mesh that sets none.
const DEFAULT_CLUSTER: &str = "Kubernetes";
/// Service name of an inbound port that no service of a known workload maps to.
const INBOUND_PASSTHROUGH: &str = "InboundPassthroughCluster";

/// A service of the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceEntry {
    /// Fully qualified name, `reviews.default.svc.cluster.local`.
    pub host: String,
    /// Short name, `reviews`.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Addresses that clients connect to.
    pub addresses: Vec<IpAddr>,
    /// Ports; none means every port.
    pub ports: Vec<ServicePort>,
    /// Name of the workload behind it, in the service's namespace.
    pub workload: Option<String>,
}

/// A port of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Port that clients connect to.
    pub port: u16,
    /// Port the workload listens on.
    pub target: u16,
}

/// A workload that is not on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadEntry {
    /// Addresses of its instances.
    pub addresses: Vec<IpAddr>,
    /// Its identity; with a service account it is known to be in the mesh.
    pub workload: Arc<Workload>,
}

/// Peers from the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StaticPeers {
    /// Services; the first match wins.
    pub services: Vec<ServiceEntry>,
    /// Workloads on other nodes.
    pub workloads: Vec<WorkloadEntry>,
}

/// Maps series to workloads and services; rebuilt when sidecars or peers change.
#[derive(Debug)]
pub struct WorkloadIndex {
    own: HashMap<SidecarId, LocalWorkload>,
    by_address: HashMap<IpAddr, RemoteWorkload>,
    services: Vec<KnownService>,
    by_service_address: HashMap<IpAddr, Vec<usize>>,
    unknown: UnknownPeer,
    routes: ClusterRoutes,
    pool: Pool,
}

#[derive(Debug)]
struct LocalWorkload {
    sidecar: Arc<Sidecar>,
    gateway: bool,
    peer: Arc<Peer>,
    authenticated: bool,
    /// Service of the destination leg when no service of this workload is known.
    canonical: Arc<Service>,
    /// The same when services are known and none has the port.
    unmatched: Arc<Service>,
    /// Services of this workload with their ports, in configured order, named as the destination leg names them.
    services: Vec<(Vec<ServicePort>, Arc<Service>)>,
}

/// Peer and service at the original destination of a source leg.
struct Outbound {
    peer: Option<Arc<Peer>>,
    service: Option<Arc<Service>>,
    /// Whether the sidecar has a cluster for that address and port, and reaches the peer by mutual TLS.
    is_authenticated: bool,
}

#[derive(Clone, Debug)]
struct RemoteWorkload {
    peer: Arc<Peer>,
    /// Known to be in the mesh: called through a service, it is reached by mutual TLS.
    authenticated: bool,
    /// Index of the first service that selects it.
    service: Option<usize>,
    /// Labels where there is none.
    no_service: Arc<Service>,
}

#[derive(Debug)]
struct KnownService {
    ports: Vec<ServicePort>,
    labels: Arc<Service>,
    /// The workload behind it.
    peer: Option<RemoteWorkload>,
}

#[derive(Debug)]
struct UnknownPeer {
    peer: Arc<Peer>,
    service: Arc<Service>,
}

impl WorkloadIndex {
    /// Builds the index from this node's sidecars, running ones before ended ones (addresses are reused), the
    /// configured peers, and the cluster as far as it completes the sidecars.
    #[must_use]
    pub fn new<'a>(
        sidecars: impl Iterator<Item = &'a Arc<Sidecar>>,
        peers: &StaticPeers,
        cluster: &mut Cluster,
    ) -> Self {
        let complete = |sidecar: &Arc<Sidecar>| match enriched(sidecar, cluster) {
            None => sidecar.clone(),
            Some(workload) => Arc::new(Sidecar { workload, ..Sidecar::clone(sidecar) }),
        };
        let sidecars: Vec<_> = sidecars.map(complete).collect();
        let sidecars = sidecars.iter();
        let mut pool = Pool::default();
        let unknown =
            UnknownPeer { peer: pool.peer(Peer::unknown()), service: pool.service(UNKNOWN, UNKNOWN, UNKNOWN) };

        let mut by_address = HashMap::new();
        let mut by_workload: HashMap<(&str, &str), RemoteWorkload> = HashMap::new();
        let known = sidecars
            .clone()
            .map(|sidecar| (&sidecar.addresses, &sidecar.workload))
            .chain(peers.workloads.iter().map(|entry| (&entry.addresses, &entry.workload)));
        for (addresses, workload) in known {
            let peer = RemoteWorkload::new(workload, addresses, peers, &mut pool);
            for address in addresses {
                by_address.entry(address.to_canonical()).or_insert_with(|| peer.clone());
            }
            if let (Some(name), Some(namespace)) = (&workload.name, &workload.namespace) {
                by_workload.entry((namespace, name)).or_insert(peer);
            }
        }

        let mut by_service_address: HashMap<_, Vec<_>> = HashMap::new();
        let mut services = Vec::with_capacity(peers.services.len());
        for (index, entry) in peers.services.iter().enumerate() {
            for address in &entry.addresses {
                by_service_address.entry(address.to_canonical()).or_default().push(index);
            }
            let labels = pool.service(&entry.host, &entry.name, &entry.namespace);
            let peer = entry.workload.as_ref().map(|name| {
                by_workload.get(&(entry.namespace.as_str(), name.as_str())).cloned().unwrap_or_else(|| {
                    let workload = Workload {
                        name: Some(name.clone()),
                        namespace: Some(entry.namespace.clone()),
                        ..Workload::default()
                    };
                    RemoteWorkload::new(&workload, &[], peers, &mut pool)
                })
            });
            services.push(KnownService { ports: entry.ports.clone(), labels, peer });
        }

        let routes = ClusterRoutes::new(sidecars.clone());
        let mut own = HashMap::new();
        for sidecar in sidecars {
            own.entry(sidecar.id).or_insert_with(|| LocalWorkload::new(sidecar, peers, &mut pool));
        }
        Self { own, by_address, services, by_service_address, unknown, routes, pool }
    }

    /// Returns the label set of a series of the `istio_` families: `unknown` for unknown sidecars and the overflow
    /// series.
    #[must_use]
    pub fn resolve(&mut self, cluster: &mut Cluster, key: &SeriesKey) -> MeshLabels {
        if key.leg == Leg::SOURCE {
            self.resolve_by_cluster(cluster, key);
        }
        let Some(own) = self.own.get(&key.sidecar) else { return Self::unattributed(key) };
        let mut labels = MeshLabels {
            source: own.peer.clone(),
            destination: self.unknown.peer.clone(),
            service: self.unknown.service.clone(),
            response_code: key.status,
            grpc_status: key.grpc_status,
            reporter: Reporter::Source,
            protocol: protocol(key),
            security: Security::Unknown,
            source_authenticated: false,
            destination_authenticated: false,
        };
        if labels.protocol == Protocol::Tcp {
            (labels.response_code, labels.grpc_status) = (0, GRPC_NONE);
        }
        if key.leg == Leg::DESTINATION {
            labels.reporter = Reporter::Destination;
            labels.source = self.unknown.peer.clone();
            labels.destination = own.peer.clone();
            labels.service = own.inbound(cluster, key.destination.port);
            labels.security = match key.security {
                observer_common::Security::MUTUAL_TLS => Security::MutualTls,
                observer_common::Security::NONE => Security::None,
                _ => Security::Unknown,
            };
            labels.destination_authenticated = labels.security == Security::MutualTls && own.authenticated;
        } else if !own.gateway {
            let Outbound { peer, service, is_authenticated } = self.outbound(key);
            if let Some(peer) = peer {
                labels.destination = peer;
                labels.destination_authenticated = is_authenticated;
                labels.source_authenticated = is_authenticated && own.authenticated;
            }
            if let Some(service) = service {
                labels.service = service;
            }
        }
        labels
    }

    /// Returns the labels of a gateway's encrypted connections.
    #[must_use]
    pub fn gateway(&self, key: &SeriesKey) -> GatewayLabels {
        let peer = self.own.get(&key.sidecar).map(|own| &own.peer);
        let text = |field: fn(&Peer) -> &Box<str>| peer.map_or_else(|| UNKNOWN.into(), |peer| field(peer).clone());
        GatewayLabels {
            workload: text(|peer| &peer.workload),
            namespace: text(|peer| &peer.namespace),
            cluster: text(|peer| &peer.cluster),
            port: key.destination.port,
        }
    }

    /// Returns whether this sidecar is known.
    #[must_use]
    pub fn contains(&self, sidecar: SidecarId) -> bool {
        self.own.contains_key(&sidecar)
    }

    fn unattributed(key: &SeriesKey) -> MeshLabels {
        let mut labels = MeshLabels::overflow();
        if key.sidecar != 0 {
            labels.reporter = match key.leg {
                Leg::SOURCE => Reporter::Source,
                Leg::DESTINATION => Reporter::Destination,
                _ => Reporter::Unknown,
            };
            labels.protocol = protocol(key);
            if labels.protocol != Protocol::Tcp {
                (labels.response_code, labels.grpc_status) = (key.status, key.grpc_status);
            }
        }
        labels
    }

    /// Returns whether the labels of a series await an answer of the Kubernetes API.
    pub fn is_pending(&mut self, cluster: &mut Cluster, key: &SeriesKey) -> bool {
        if !cluster.is_on() || !self.contains(key.sidecar) {
            return false;
        }
        if key.leg != Leg::SOURCE || self.own.get(&key.sidecar).is_some_and(|own| own.gateway) {
            return !cluster.is_synced();
        }
        let (address, port) = destination(key);
        let is_configured = self.configured(address, port).is_some();
        let resolved = self.routes.resolve(cluster, &mut self.pool, address, port);
        !is_configured && resolved.is_some_and(|resolved| resolved.unresolved == Some(Unresolved::Pending))
    }

    /// Returns the workload of one of the cluster's pods with what the API does not have.
    #[must_use]
    pub fn complete(&self, workload: &Workload) -> Workload {
        self.routes.complete(workload)
    }

    /// Returns how many destinations the cluster does not resolve, by reason.
    #[must_use]
    pub fn unresolved(&self) -> BTreeMap<Unresolved, u64> {
        self.routes.unresolved()
    }

    /// Resolves the destination of a source leg by the cluster, unless the configuration names it.
    fn resolve_by_cluster(&mut self, cluster: &mut Cluster, key: &SeriesKey) {
        let (address, port) = destination(key);
        let is_gateway = self.own.get(&key.sidecar).is_none_or(|own| own.gateway);
        if !is_gateway && self.configured(address, port).is_none() {
            self.routes.resolve(cluster, &mut self.pool, address, port);
        }
    }

    /// Returns the configured service that has an address and port.
    fn configured(&self, address: IpAddr, port: u16) -> Option<&KnownService> {
        let at_address = self.by_service_address.get(&address).map_or(&[][..], Vec::as_slice);
        let mut services = at_address.iter().map(|index| &self.services[*index]);
        services.find(|service| service.ports.is_empty() || service.ports.iter().any(|known| known.port == port))
    }

    /// Returns the peer and service at the original destination of a source leg: the configuration's, else the
    /// cluster's, else the service of the workload at that address.
    fn outbound(&self, key: &SeriesKey) -> Outbound {
        let (address, port) = destination(key);
        let direct = self.by_address.get(&address);
        if let Some(service) = self.configured(address, port) {
            let peer = direct.or(service.peer.as_ref());
            return Outbound {
                is_authenticated: peer.is_some_and(|peer| peer.authenticated),
                peer: peer.map(|peer| peer.peer.clone()),
                service: Some(service.labels.clone()),
            };
        }
        if let Some(resolved) = self.routes.get(address, port) {
            let direct = direct.filter(|_| resolved.is_passthrough).map(|direct| direct.peer.clone());
            return Outbound {
                peer: direct.or_else(|| resolved.peer.clone()),
                service: resolved.service.clone(),
                is_authenticated: resolved.is_authenticated,
            };
        }
        let service = direct.map(|peer| {
            peer.service.map_or_else(|| peer.no_service.clone(), |index| self.services[index].labels.clone())
        });
        Outbound { peer: direct.map(|peer| peer.peer.clone()), service, is_authenticated: false }
    }
}

/// Returns the original destination of a source leg.
fn destination(key: &SeriesKey) -> (IpAddr, u16) {
    (Ipv6Addr::from(key.destination.address).to_canonical(), key.destination.port)
}

impl LocalWorkload {
    fn new(sidecar: &Arc<Sidecar>, peers: &StaticPeers, pool: &mut Pool) -> Self {
        let workload = &sidecar.workload;
        let peer = pool.peer(Peer::local(workload));
        // Istio names the local pod's namespace here, not the service's.
        let services = peers
            .services
            .iter()
            .filter(|entry| selects(entry, workload, &sidecar.addresses))
            .map(|entry| (entry.ports.clone(), pool.service(&entry.host, &entry.name, &peer.namespace)))
            .collect();
        Self {
            sidecar: sidecar.clone(),
            gateway: sidecar.role == Role::Gateway,
            authenticated: workload.service_account.is_some(),
            canonical: pool.service(&peer.canonical_service, &peer.canonical_service, &peer.namespace),
            unmatched: pool.service(&peer.canonical_service, INBOUND_PASSTHROUGH, &peer.namespace),
            services,
            peer,
        }
    }

    fn inbound(&self, cluster: &Cluster, port: u16) -> Arc<Service> {
        let fits = |ports: &[ServicePort]| ports.is_empty() || ports.iter().any(|known| known.target == port);
        if let Some((_, service)) = self.services.iter().find(|(ports, _)| fits(ports)) {
            return service.clone();
        }
        match cluster.inbound(&self.sidecar, port) {
            Ok(service) => service,
            Err(has_others) if has_others || !self.services.is_empty() => self.unmatched.clone(),
            Err(_) => self.canonical.clone(),
        }
    }
}

impl RemoteWorkload {
    fn new(workload: &Workload, addresses: &[IpAddr], peers: &StaticPeers, pool: &mut Pool) -> Self {
        let peer = pool.peer(Peer::remote(workload));
        Self {
            authenticated: workload.service_account.is_some()
                && workload.namespace.is_some()
                && workload.labels.get(TLS_MODE).is_none_or(|mode| mode == "istio"),
            service: peers.services.iter().position(|entry| selects(entry, workload, addresses)),
            no_service: pool.service(UNKNOWN, UNKNOWN, &peer.namespace),
            peer,
        }
    }
}

impl Peer {
    /// Returns the labels of the observed pod: `app` and `version` verbatim, empty if absent.
    fn local(workload: &Workload) -> Self {
        let label = |name: &str| workload.labels.get(name).map_or("", String::as_str);
        Self {
            app: label("app").into(),
            version: label("version").into(),
            cluster: workload.cluster.as_deref().unwrap_or(DEFAULT_CLUSTER).into(),
            ..Self::remote(workload)
        }
    }

    /// Returns the labels of the other end, as far as known.
    pub(crate) fn remote(workload: &Workload) -> Self {
        let label = |names: &[&str]| first(&workload.labels, names);
        let text = |value: Option<&str>| Box::from(value.unwrap_or(UNKNOWN));
        // The injector writes the canonical labels by this rule; older ones did not write them.
        let canonical_service = label(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]);
        let canonical_revision =
            label(&["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]);
        Self {
            workload: text(workload.name.as_deref()),
            canonical_service: text(canonical_service.or(workload.name.as_deref())),
            canonical_revision: canonical_revision.unwrap_or("latest").into(),
            namespace: text(workload.namespace.as_deref()),
            principal: principal(workload).into(),
            app: text(label(&["app.kubernetes.io/name", "app"])),
            version: text(label(&["app.kubernetes.io/version", "version"])),
            cluster: text(workload.cluster.as_deref()),
        }
    }

    /// Returns the labels of an unknown end.
    pub(crate) fn unknown() -> Self {
        Self::remote(&Workload::default())
    }
}

/// Interns labels: two pods of one workload share them.
#[derive(Debug, Default)]
struct Pool {
    peers: HashSet<Arc<Peer>>,
    services: HashSet<Arc<Service>>,
}

impl Pool {
    fn peer(&mut self, peer: Peer) -> Arc<Peer> {
        if let Some(known) = self.peers.get(&peer) {
            return known.clone();
        }
        let peer = Arc::new(peer);
        self.peers.insert(peer.clone());
        peer
    }

    fn service(&mut self, host: &str, name: &str, namespace: &str) -> Arc<Service> {
        self.intern_service(Arc::new(Service { host: host.into(), name: name.into(), namespace: namespace.into() }))
    }

    fn intern_service(&mut self, service: Arc<Service>) -> Arc<Service> {
        if let Some(known) = self.services.get(&service) {
            return known.clone();
        }
        self.services.insert(service.clone());
        service
    }
}

/// Returns whether a service selects a workload: by name in its namespace, or by an address (headless services).
fn selects(service: &ServiceEntry, workload: &Workload, addresses: &[IpAddr]) -> bool {
    let named = service.workload.is_some()
        && service.workload == workload.name
        && workload.namespace.as_deref() == Some(&service.namespace);
    named
        || service.addresses.iter().any(|known| addresses.iter().any(|own| own.to_canonical() == known.to_canonical()))
}

fn principal(workload: &Workload) -> String {
    match (&workload.namespace, &workload.service_account) {
        (Some(namespace), Some(account)) => {
            let domain = workload.trust_domain.as_deref().unwrap_or(DEFAULT_TRUST_DOMAIN);
            format!("spiffe://{domain}/ns/{namespace}/sa/{account}")
        }
        _ => UNKNOWN.to_owned(),
    }
}

fn protocol(key: &SeriesKey) -> Protocol {
    match key.protocol {
        observer_common::Protocol::TCP => Protocol::Tcp,
        observer_common::Protocol::GRPC => Protocol::Grpc,
        observer_common::Protocol::UNKNOWN => Protocol::Unknown,
        _ => Protocol::Http,
    }
}

fn first<'a>(labels: &'a BTreeMap<String, String>, names: &[&str]) -> Option<&'a str> {
    names.iter().find_map(|name| labels.get(*name)).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fixture::{self, key},
        labels::HTTP,
    };
    use observer_common::STATUS_UNKNOWN;

    fn index() -> WorkloadIndex {
        WorkloadIndex::new(fixture::sidecars().iter(), &fixture::peers(), &mut Cluster::default())
    }

    fn labels_of(key: &SeriesKey) -> HashMap<&'static str, String> {
        let mut labels = HashMap::new();
        index().resolve(&mut Cluster::default(), key).each(&HTTP, |name, value| {
            labels.insert(name, value.to_owned());
        });
        labels
    }

    fn assert_labels(labels: &HashMap<&'static str, String>, expected: &[(&str, &str)]) {
        for (name, value) in expected {
            assert_eq!(labels[name], *value, "{name}");
        }
    }

    #[test]
    fn a_call_to_a_service_names_the_service_and_the_workload_behind_it() {
        let labels = labels_of(&key(1, Leg::SOURCE, "10.96.0.1:80", observer_common::Protocol::HTTP, 404));
        assert_labels(
            &labels,
            &[
                ("reporter", "source"),
                ("source_workload", "productpage-v1"),
                ("source_canonical_service", "productpage"),
                ("source_canonical_revision", "v1"),
                ("source_workload_namespace", "default"),
                ("source_principal", "spiffe://mesh.example/ns/default/sa/bookinfo-productpage-v1"),
                ("source_app", "productpage"),
                ("source_version", "v1"),
                ("source_cluster", "c1"),
                ("destination_workload", "reviews-v2"),
                ("destination_principal", "spiffe://mesh.example/ns/default/sa/bookinfo-reviews-v2"),
                ("destination_app", "reviews"),
                ("destination_version", "v2"),
                ("destination_service", "reviews.default.svc.cluster.local"),
                ("destination_service_name", "reviews"),
                ("destination_service_namespace", "default"),
                ("request_protocol", "http"),
                ("response_code", "404"),
                ("grpc_response_status", ""),
                ("response_flags", "-"),
                ("connection_security_policy", "unknown"),
            ],
        );
    }

    #[test]
    fn a_call_to_a_pod_finds_the_pod_and_its_service() {
        for address in ["10.0.0.3:9080", "10.0.9.9:1234"] {
            let labels = labels_of(&key(1, Leg::SOURCE, address, observer_common::Protocol::HTTP, 200));
            let name = if address.starts_with("10.0.0.3") { "reviews" } else { "ratings" };
            assert_eq!(labels["destination_service_name"], name);
            assert!(labels["destination_workload"].starts_with(name));
        }
    }

    #[test]
    fn principals_are_of_connections_with_mutual_tls() {
        let principals = |index: &mut WorkloadIndex, address: &str, protocol| {
            let labels = index.resolve(&mut Cluster::default(), &key(1, Leg::SOURCE, address, protocol, 200));
            let mut found = Vec::new();
            labels.each(&crate::labels::TCP, |name, value| {
                if name.ends_with("_principal") {
                    found.push(value != UNKNOWN);
                }
            });
            found
        };
        for protocol in
            [observer_common::Protocol::HTTP, observer_common::Protocol::GRPC, observer_common::Protocol::TCP]
        {
            for (address, is_secured) in [
                ("10.96.0.1:80", true),
                // A port that the service does not have.
                ("10.96.0.1:81", false),
                // A pod's own address, at the service's target port and another.
                ("10.0.0.3:9080", false),
                ("10.0.0.3:1", false),
                ("10.0.9.9:1234", false),
                ("203.0.113.1:443", false),
            ] {
                assert_eq!(principals(&mut index(), address, protocol), [is_secured; 2], "{address}");
            }
        }
        // A headless service's ports are at its pods' addresses.
        let mut peers = StaticPeers::clone(&fixture::peers());
        peers.services[0].addresses.push("10.0.0.3".parse().unwrap());
        let mut headless = WorkloadIndex::new(fixture::sidecars().iter(), &peers, &mut Cluster::default());
        assert_eq!(principals(&mut headless, "10.0.0.3:80", observer_common::Protocol::HTTP), [true; 2]);
        assert_eq!(principals(&mut headless, "10.0.0.3:9080", observer_common::Protocol::HTTP), [false; 2]);
        // A pod whose sidecar does not accept mutual TLS.
        let mut sidecars = fixture::sidecars();
        for sidecar in &mut sidecars {
            let workload = Arc::make_mut(&mut Arc::make_mut(sidecar).workload);
            workload.labels.insert(TLS_MODE.to_owned(), "disabled".to_owned());
        }
        let mut disabled = WorkloadIndex::new(sidecars.iter(), &fixture::peers(), &mut Cluster::default());
        assert_eq!(principals(&mut disabled, "10.96.0.1:80", observer_common::Protocol::HTTP), [false; 2]);
    }

    #[test]
    fn a_port_that_a_service_does_not_have_is_not_its() {
        let labels = labels_of(&key(1, Leg::SOURCE, "10.96.0.1:81", observer_common::Protocol::HTTP, 200));
        assert_labels(&labels, &[("destination_service", "unknown"), ("destination_workload", "unknown")]);
    }

    #[test]
    fn nobody_known_is_said_as_istio_says_it() {
        let labels =
            labels_of(&key(1, Leg::SOURCE, "203.0.113.1:443", observer_common::Protocol::HTTP, STATUS_UNKNOWN));
        let unknown = [
            "destination_workload",
            "destination_workload_namespace",
            "destination_principal",
            "source_principal",
            "destination_app",
            "destination_version",
            "destination_service",
            "destination_service_name",
            "destination_service_namespace",
            "destination_canonical_service",
            "destination_cluster",
            "response_code",
        ];
        unknown.into_iter().for_each(|name| assert_eq!(labels[name], "unknown", "{name}"));
        assert_eq!(labels["destination_canonical_revision"], "latest");
    }

    #[test]
    fn the_destination_leg_knows_itself_and_the_kind_of_security() {
        let mut inbound = key(2, Leg::DESTINATION, "127.0.0.1:9080", observer_common::Protocol::HTTP, 200);
        for (security, policy, principal) in [
            (
                observer_common::Security::MUTUAL_TLS,
                "mutual_tls",
                "spiffe://mesh.example/ns/default/sa/bookinfo-reviews-v2",
            ),
            (observer_common::Security::NONE, "none", "unknown"),
            (observer_common::Security::UNKNOWN, "unknown", "unknown"),
        ] {
            inbound.security = security;
            assert_labels(
                &labels_of(&inbound),
                &[
                    ("reporter", "destination"),
                    ("source_workload", "unknown"),
                    ("source_canonical_revision", "latest"),
                    ("source_app", "unknown"),
                    ("source_principal", "unknown"),
                    ("destination_workload", "reviews-v2"),
                    ("destination_principal", principal),
                    // The pod has no label `version`, which at the own side is what counts.
                    ("destination_version", ""),
                    ("destination_canonical_revision", "v2"),
                    ("destination_service", "reviews.default.svc.cluster.local"),
                    ("connection_security_policy", policy),
                ],
            );
        }
    }

    #[test]
    fn inbound_ports_without_a_service_are_named_as_istio_names_them() {
        let unmatched = labels_of(&key(2, Leg::DESTINATION, "127.0.0.1:7777", observer_common::Protocol::HTTP, 200));
        assert_labels(
            &unmatched,
            &[("destination_service", "reviews"), ("destination_service_name", "InboundPassthroughCluster")],
        );
        let none = labels_of(&key(1, Leg::DESTINATION, "127.0.0.1:7777", observer_common::Protocol::HTTP, 200));
        assert_labels(&none, &[("destination_service", "productpage"), ("destination_service_name", "productpage")]);
    }

    #[test]
    fn where_a_gateway_routes_to_is_unknown() {
        let labels = labels_of(&key(4, Leg::SOURCE, "10.0.0.4:8080", observer_common::Protocol::HTTP, 200));
        assert_labels(
            &labels,
            &[("source_workload", "gateway"), ("destination_workload", "unknown"), ("destination_service", "unknown")],
        );
    }

    #[test]
    fn ipv6_and_mapped_addresses_are_one_with_what_was_configured() {
        let mut peers = StaticPeers::clone(&fixture::peers());
        peers.services[0].addresses.push("2001:db8::7".parse().unwrap());
        peers.services[1].addresses.push("::ffff:10.96.0.77".parse().unwrap());
        let mut index = WorkloadIndex::new(fixture::sidecars().iter(), &peers, &mut Cluster::default());
        for (address, name) in [("2001:db8::7:80", "reviews"), ("10.96.0.77:80", "ratings")] {
            let key = key(1, Leg::SOURCE, address, observer_common::Protocol::HTTP, 200);
            let labels = index.resolve(&mut Cluster::default(), &key);
            assert_eq!(&*labels.service.name, name);
        }
    }
}
