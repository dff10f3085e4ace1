//! Istio's labels: who talks to whom, from the observer's knowledge of this node and the configured peers.
//!
//! Names, order and the values for what is not known follow Istio's own statistics filter. Where Istio would say
//! `unknown` although the observer knows, the observer says what it knows. Three things sockets cannot show are never
//! guessed: `response_flags` is always `-`, the client at the destination leg is unknown, and so is what a gateway
//! routes to.
//!
//! A principal belongs to a connection with mutual TLS, not to a pod. At the destination the peer's handshake tells. At the
//! source the sidecar's own connection to its peer is not seen; what is known is where the application wanted to go: Istio
//! uses mutual TLS to ports of services whose pods have a sidecar, and passes on in plaintext what goes to a pod's own address or
//! to another port (`PassthroughCluster`).

pub mod remembered;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::{Hash, Hasher},
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use observer_common::{GRPC_NONE, GRPC_UNKNOWN, Leg, STATUS_UNKNOWN, SeriesKey};

use serde::{Deserialize, Serialize};

use crate::identity::{Role, Sidecar, SidecarId, Workload};

/// Labels of the HTTP families, in Istio's order.
pub const HTTP: [&str; 25] = [
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_service",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_service_name",
    "destination_service_namespace",
    "destination_cluster",
    "request_protocol",
    "response_code",
    "grpc_response_status",
    "response_flags",
    "connection_security_policy",
];

/// Labels of the TCP families, in Istio's order.
pub const TCP: [&str; 23] = [
    HTTP[0], HTTP[1], HTTP[2], HTTP[3], HTTP[4], HTTP[5], HTTP[6], HTTP[7], HTTP[8], HTTP[9], HTTP[10], HTTP[11],
    HTTP[12], HTTP[13], HTTP[14], HTTP[15], HTTP[16], HTTP[17], HTTP[18], HTTP[19], HTTP[20], HTTP[23], HTTP[24],
];

/// Labels of a process's figures, and of what its own metrics page says.
pub const PROCESS: [&str; 4] = ["app", "instance", "pod", "namespace"];

/// Index of `response_code`.
const RESPONSE_CODE: usize = 21;
/// Index of `grpc_response_status`.
const GRPC_STATUS: usize = 22;
/// Labels that TCP families lack.
const HTTP_ONLY: [usize; 2] = [RESPONSE_CODE, GRPC_STATUS];
/// Index, for a [`Projection`], of `app`: the `app` label of the reporting pod.
pub const REPORTING_APP: usize = HTTP.len();

const UNKNOWN: &str = "unknown";
/// Trust domain of a mesh that sets none.
const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";
/// Cluster name of a mesh that sets none.
const DEFAULT_CLUSTER: &str = "Kubernetes";
/// The label by which a pod says that its sidecar takes Istio's mutual TLS; the injector writes it.
const TLS_MODE: &str = "security.istio.io/tlsMode";
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

/// Peers known from the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    /// Services, the first that fits counts.
    pub services: Vec<ServiceEntry>,
    /// Workloads elsewhere.
    pub workloads: Vec<WorkloadEntry>,
}

/// One end of a conversation, as its labels say it.
#[derive(Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Party {
    workload: Box<str>,
    canonical_service: Box<str>,
    canonical_revision: Box<str>,
    namespace: Box<str>,
    principal: Box<str>,
    app: Box<str>,
    version: Box<str>,
    cluster: Box<str>,
}

/// The destination's service, as its labels say it.
#[derive(Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Service {
    host: Box<str>,
    name: Box<str>,
    namespace: Box<str>,
}

/// Who reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reporter {
    /// The client's proxy.
    Source,
    /// The server's proxy.
    Destination,
    /// Not known: the overflow series.
    Unknown,
}

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// HTTP, not gRPC.
    Http,
    /// gRPC.
    Grpc,
    /// Anything else over TCP.
    Tcp,
    /// Not known: the overflow series.
    Unknown,
}

/// How the connection was secured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Security {
    /// Not known, and always at the source.
    Unknown,
    /// Without Istio's mutual TLS.
    None,
    /// With it.
    MutualTls,
}

/// One label set of the `istio_` families. Its strings are shared: some 50 bytes of its own each.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MeshLabels {
    source: Arc<Party>,
    destination: Arc<Party>,
    service: Arc<Service>,
    /// [`STATUS_UNKNOWN`] where it could not be read.
    response_code: u16,
    /// [`GRPC_NONE`] where there is none, [`GRPC_UNKNOWN`] where it could not be read.
    grpc_status: u64,
    reporter: Reporter,
    protocol: Protocol,
    security: Security,
    source_authenticated: bool,
    destination_authenticated: bool,
}

impl MeshLabels {
    /// Calls `each` with every label of an HTTP family, in Istio's order.
    pub fn http(&self, mut each: impl FnMut(&'static str, &str)) {
        (0..HTTP.len()).for_each(|index| self.with(index, |value| each(HTTP[index], value)));
    }

    /// Calls `each` with every label of a TCP family, in Istio's order.
    pub fn tcp(&self, mut each: impl FnMut(&'static str, &str)) {
        let indices = (0..HTTP.len()).filter(|index| !HTTP_ONLY.contains(index));
        indices.for_each(|index| self.with(index, |value| each(HTTP[index], value)));
    }

    /// Is it a series of gRPC?
    #[must_use]
    pub fn is_grpc(&self) -> bool {
        self.protocol == Protocol::Grpc
    }

    /// The labels of the overflow series: what it counts is known, whom it counts is not.
    #[must_use]
    pub fn overflow() -> Self {
        let nobody = Arc::new(Party {
            workload: UNKNOWN.into(),
            canonical_service: UNKNOWN.into(),
            canonical_revision: UNKNOWN.into(),
            namespace: UNKNOWN.into(),
            principal: UNKNOWN.into(),
            app: UNKNOWN.into(),
            version: UNKNOWN.into(),
            cluster: UNKNOWN.into(),
        });
        Self {
            source: nobody.clone(),
            destination: nobody,
            service: Arc::new(Service { host: UNKNOWN.into(), name: UNKNOWN.into(), namespace: UNKNOWN.into() }),
            response_code: STATUS_UNKNOWN,
            grpc_status: GRPC_NONE,
            reporter: Reporter::Unknown,
            protocol: Protocol::Unknown,
            security: Security::Unknown,
            source_authenticated: false,
            destination_authenticated: false,
        }
    }

    /// Shows `each` the value of the label at `index` of [`HTTP`].
    fn with<R>(&self, index: usize, each: impl FnOnce(&str) -> R) -> R {
        match index {
            RESPONSE_CODE if self.response_code != STATUS_UNKNOWN => {
                each(Digits::new(self.response_code.into()).text())
            }
            GRPC_STATUS if self.grpc_status < GRPC_UNKNOWN => each(Digits::new(self.grpc_status).text()),
            _ => each(self.text(index)),
        }
    }

    fn text(&self, index: usize) -> &str {
        let (source, destination) = (&*self.source, &*self.destination);
        match index {
            0 => match self.reporter {
                Reporter::Source => "source",
                Reporter::Destination => "destination",
                Reporter::Unknown => UNKNOWN,
            },
            1 => &source.workload,
            2 => &source.canonical_service,
            3 => &source.canonical_revision,
            4 => &source.namespace,
            5 if self.source_authenticated => &source.principal,
            6 => &source.app,
            7 => &source.version,
            8 => &source.cluster,
            9 => &destination.workload,
            10 => &destination.namespace,
            11 if self.destination_authenticated => &destination.principal,
            12 => &destination.app,
            13 => &destination.version,
            14 => &self.service.host,
            15 => &destination.canonical_service,
            16 => &destination.canonical_revision,
            17 => &self.service.name,
            18 => &self.service.namespace,
            19 => &destination.cluster,
            20 => match self.protocol {
                Protocol::Http => "http",
                Protocol::Grpc => "grpc",
                Protocol::Tcp => "tcp",
                Protocol::Unknown => UNKNOWN,
            },
            GRPC_STATUS if self.grpc_status == GRPC_NONE => "",
            23 => "-",
            24 => match self.security {
                Security::Unknown => UNKNOWN,
                Security::None => "none",
                Security::MutualTls => "mutual_tls",
            },
            REPORTING_APP if self.reporter == Reporter::Source => &source.app,
            REPORTING_APP if self.reporter == Reporter::Destination => &destination.app,
            _ => UNKNOWN,
        }
    }
}

/// A label set of which only some labels count: equal to every other that agrees in those.
#[derive(Clone, Debug)]
pub struct Projection {
    labels: Arc<MeshLabels>,
    kept: Arc<[usize]>,
}

/// The name of a label by its index, as a [`Projection`] takes them.
#[must_use]
pub fn projected_name(index: usize) -> &'static str {
    if index == REPORTING_APP { "app" } else { HTTP[index] }
}

impl Projection {
    /// `labels` reduced to `kept`: indices into [`HTTP`], or [`REPORTING_APP`].
    #[must_use]
    pub fn new(labels: Arc<MeshLabels>, kept: Arc<[usize]>) -> Self {
        Self { labels, kept }
    }

    /// Calls `each` with every label that counts, in the order of `kept`.
    pub fn each(&self, mut each: impl FnMut(&'static str, &str)) {
        for index in self.kept.iter() {
            self.labels.with(*index, |value| each(projected_name(*index), value));
        }
    }
}

impl PartialEq for Projection {
    fn eq(&self, other: &Self) -> bool {
        self.kept == other.kept
            && self
                .kept
                .iter()
                .all(|index| self.labels.with(*index, |own| other.labels.with(*index, |other| own == other)))
    }
}

impl Eq for Projection {}

impl Hash for Projection {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.kept.iter().for_each(|index| self.labels.with(*index, |value| value.hash(state)));
    }
}

/// A number in decimal without an allocation.
struct Digits {
    bytes: [u8; 20],
    start: usize,
}

impl Digits {
    fn new(mut number: u64) -> Self {
        let mut digits = Self { bytes: [b'0'; 20], start: 20 };
        loop {
            digits.start -= 1;
            digits.bytes[digits.start] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                return digits;
            }
        }
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.bytes[self.start..]).expect("decimal digits are ASCII")
    }
}

/// A gateway's identity, for what it handles without our seeing inside.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GatewayLabels {
    /// Workload name.
    pub workload: Box<str>,
    /// Namespace.
    pub namespace: Box<str>,
    /// Cluster.
    pub cluster: Box<str>,
    /// Port of the gateway's door.
    pub port: u16,
}

/// Who is who: built anew when the sidecars or the peers change, then asked for every series.
#[derive(Debug)]
pub struct Directory {
    own: HashMap<SidecarId, Own>,
    by_address: HashMap<IpAddr, Peer>,
    services: Vec<KnownService>,
    by_service_address: HashMap<IpAddr, Vec<usize>>,
    nobody: Nobody,
}

#[derive(Debug)]
struct Own {
    gateway: bool,
    party: Arc<Party>,
    authenticated: bool,
    /// What the destination leg says when no service of this workload is known.
    canonical: Arc<Service>,
    /// What it says when services are known and none has the port.
    unmatched: Arc<Service>,
    /// Services of this workload as this side names them, in the order they were given, with their ports.
    services: Vec<(Vec<ServicePort>, Arc<Service>)>,
}

/// Who answers at a source leg's original destination.
struct Outbound<'a> {
    peer: Option<&'a Peer>,
    service: Option<Arc<Service>>,
    /// Whether a service has that address and port, so that the sidecar has a cluster for it.
    is_by_service: bool,
}

#[derive(Clone, Debug)]
struct Peer {
    party: Arc<Party>,
    /// Known to be in the mesh: the leg to it is mutual TLS where it is called by a service's name.
    authenticated: bool,
    /// The first service that selects it, by index, else what is said without one.
    service: Option<usize>,
    no_service: Arc<Service>,
}

#[derive(Debug)]
struct KnownService {
    ports: Vec<ServicePort>,
    labels: Arc<Service>,
    /// The workload behind it.
    peer: Option<Peer>,
}

#[derive(Debug)]
struct Nobody {
    party: Arc<Party>,
    service: Arc<Service>,
}

impl Directory {
    /// Learns from the sidecars of this node, running ones before ended ones (addresses are reused), and the peers.
    #[must_use]
    pub fn new<'a>(sidecars: impl Iterator<Item = &'a Arc<Sidecar>> + Clone, peers: &Peers) -> Self {
        let mut pool = Pool::default();
        let nobody = Nobody { party: pool.party(Party::absent()), service: pool.service(UNKNOWN, UNKNOWN, UNKNOWN) };

        let mut by_address = HashMap::new();
        let mut by_workload: HashMap<(&str, &str), Peer> = HashMap::new();
        let known = sidecars
            .clone()
            .map(|sidecar| (&sidecar.addresses, &sidecar.workload))
            .chain(peers.workloads.iter().map(|entry| (&entry.addresses, &entry.workload)));
        for (addresses, workload) in known {
            let peer = Peer::new(workload, addresses, peers, &mut pool);
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
                    Peer::new(&workload, &[], peers, &mut pool)
                })
            });
            services.push(KnownService { ports: entry.ports.clone(), labels, peer });
        }

        let mut own = HashMap::new();
        for sidecar in sidecars {
            own.entry(sidecar.id).or_insert_with(|| Own::new(sidecar, peers, &mut pool));
        }
        Self { own, by_address, services, by_service_address, nobody }
    }

    /// The label set that a series of one of the `istio_` families belongs to.
    /// A sidecar that is not known, and the overflow series, yield labels that say `unknown`.
    #[must_use]
    pub fn resolve(&self, key: &SeriesKey) -> MeshLabels {
        let Some(own) = self.own.get(&key.sidecar) else { return Self::unattributed(key) };
        let mut labels = MeshLabels {
            source: own.party.clone(),
            destination: self.nobody.party.clone(),
            service: self.nobody.service.clone(),
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
            labels.source = self.nobody.party.clone();
            labels.destination = own.party.clone();
            labels.service = own.inbound(key.destination.port);
            labels.security = match key.security {
                observer_common::Security::MUTUAL_TLS => Security::MutualTls,
                observer_common::Security::NONE => Security::None,
                _ => Security::Unknown,
            };
            labels.destination_authenticated = labels.security == Security::MutualTls && own.authenticated;
        } else if !own.gateway {
            let Outbound { peer, service, is_by_service } = self.outbound(key);
            if let Some(peer) = peer {
                labels.destination = peer.party.clone();
                labels.destination_authenticated = peer.authenticated && is_by_service;
                labels.source_authenticated = labels.destination_authenticated && own.authenticated;
            }
            if let Some(service) = service {
                labels.service = service;
            }
        }
        labels
    }

    /// Who a gateway is, for a series of encrypted connections.
    #[must_use]
    pub fn gateway(&self, key: &SeriesKey) -> GatewayLabels {
        let party = self.own.get(&key.sidecar).map(|own| &own.party);
        let text = |field: fn(&Party) -> &Box<str>| party.map_or_else(|| UNKNOWN.into(), |party| field(party).clone());
        GatewayLabels {
            workload: text(|party| &party.workload),
            namespace: text(|party| &party.namespace),
            cluster: text(|party| &party.cluster),
            port: key.destination.port,
        }
    }

    /// Whether the sidecar that a series counts under is known.
    #[must_use]
    pub fn knows(&self, sidecar: SidecarId) -> bool {
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

    /// Who answers at a source leg's original destination, and as which service.
    fn outbound(&self, key: &SeriesKey) -> Outbound<'_> {
        let address = Ipv6Addr::from(key.destination.address).to_canonical();
        let port = key.destination.port;
        let at_address = self.by_service_address.get(&address).map_or(&[][..], Vec::as_slice);
        let direct = self.by_address.get(&address);
        let service = at_address
            .iter()
            .map(|index| &self.services[*index])
            .find(|service| service.ports.is_empty() || service.ports.iter().any(|known| known.port == port));
        if let Some(service) = service {
            let peer = direct.or(service.peer.as_ref());
            return Outbound { peer, service: Some(service.labels.clone()), is_by_service: true };
        }
        let service = direct.map(|peer| {
            peer.service.map_or_else(|| peer.no_service.clone(), |index| self.services[index].labels.clone())
        });
        Outbound { peer: direct, service, is_by_service: false }
    }
}

impl Own {
    fn new(sidecar: &Sidecar, peers: &Peers, pool: &mut Pool) -> Self {
        let workload = &sidecar.workload;
        let party = pool.party(Party::local(workload));
        // Istio names the local pod's namespace here, not the service's.
        let services = peers
            .services
            .iter()
            .filter(|entry| selects(entry, workload, &sidecar.addresses))
            .map(|entry| (entry.ports.clone(), pool.service(&entry.host, &entry.name, &party.namespace)))
            .collect();
        Self {
            gateway: sidecar.role == Role::Gateway,
            authenticated: workload.service_account.is_some(),
            canonical: pool.service(&party.canonical_service, &party.canonical_service, &party.namespace),
            unmatched: pool.service(&party.canonical_service, INBOUND_PASSTHROUGH, &party.namespace),
            services,
            party,
        }
    }

    fn inbound(&self, port: u16) -> Arc<Service> {
        let fits = |ports: &[ServicePort]| ports.is_empty() || ports.iter().any(|known| known.target == port);
        match self.services.iter().find(|(ports, _)| fits(ports)) {
            Some((_, service)) => service.clone(),
            None if self.services.is_empty() => self.canonical.clone(),
            None => self.unmatched.clone(),
        }
    }
}

impl Peer {
    fn new(workload: &Workload, addresses: &[IpAddr], peers: &Peers, pool: &mut Pool) -> Self {
        let party = pool.party(Party::peer(workload));
        Self {
            authenticated: workload.service_account.is_some()
                && workload.namespace.is_some()
                && workload.labels.get(TLS_MODE).is_none_or(|mode| mode == "istio"),
            service: peers.services.iter().position(|entry| selects(entry, workload, addresses)),
            no_service: pool.service(UNKNOWN, UNKNOWN, &party.namespace),
            party,
        }
    }
}

impl Party {
    /// The observed pod itself: `app` and `version` as they are, empty if absent.
    fn local(workload: &Workload) -> Self {
        let label = |name: &str| workload.labels.get(name).map_or("", String::as_str);
        Self {
            app: label("app").into(),
            version: label("version").into(),
            cluster: workload.cluster.as_deref().unwrap_or(DEFAULT_CLUSTER).into(),
            ..Self::peer(workload)
        }
    }

    /// The other end, as far as it is known.
    fn peer(workload: &Workload) -> Self {
        let label = |names: &[&str]| first(&workload.labels, names);
        let text = |value: Option<&str>| Box::from(value.unwrap_or(UNKNOWN));
        // The injector writes the canonical labels by this rule; before it did, they are derived by the same.
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

    /// The other end when nothing is known of it.
    fn absent() -> Self {
        Self::peer(&Workload::default())
    }
}

/// Shares equal strings: two pods of one workload are one party.
#[derive(Default)]
struct Pool {
    parties: HashSet<Arc<Party>>,
    services: HashSet<Arc<Service>>,
}

impl Pool {
    fn party(&mut self, party: Party) -> Arc<Party> {
        if let Some(known) = self.parties.get(&party) {
            return known.clone();
        }
        let party = Arc::new(party);
        self.parties.insert(party.clone());
        party
    }

    fn service(&mut self, host: &str, name: &str, namespace: &str) -> Arc<Service> {
        let service = Service { host: host.into(), name: name.into(), namespace: namespace.into() };
        if let Some(known) = self.services.get(&service) {
            return known.clone();
        }
        let service = Arc::new(service);
        self.services.insert(service.clone());
        service
    }
}

/// Whether a service stands for a workload: by name in its namespace, or by one of its addresses (headless services).
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
    use crate::fixture::{self, key};

    fn directory() -> Directory {
        Directory::new(fixture::sidecars().iter(), &fixture::peers())
    }

    fn labels_of(key: &SeriesKey) -> HashMap<&'static str, String> {
        let mut labels = HashMap::new();
        directory().resolve(key).http(|name, value| {
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
    fn http_and_tcp_labels_come_in_istios_order() {
        let labels = directory().resolve(&key(1, Leg::SOURCE, "10.96.0.1:80", observer_common::Protocol::HTTP, 200));
        let mut names = Vec::new();
        labels.http(|name, _| names.push(name));
        assert_eq!(names, HTTP);
        names.clear();
        labels.tcp(|name, _| names.push(name));
        assert_eq!(names, TCP);
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
        let principals = |directory: &Directory, address: &str, protocol| {
            let labels = directory.resolve(&key(1, Leg::SOURCE, address, protocol, 200));
            let mut found = Vec::new();
            labels.tcp(|name, value| {
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
                assert_eq!(principals(&directory(), address, protocol), [is_secured; 2], "{address}");
            }
        }
        // A headless service's ports are at its pods' addresses.
        let mut peers = Peers::clone(&fixture::peers());
        peers.services[0].addresses.push("10.0.0.3".parse().unwrap());
        let headless = Directory::new(fixture::sidecars().iter(), &peers);
        assert_eq!(principals(&headless, "10.0.0.3:80", observer_common::Protocol::HTTP), [true; 2]);
        assert_eq!(principals(&headless, "10.0.0.3:9080", observer_common::Protocol::HTTP), [false; 2]);
        // A pod whose sidecar says that it takes no mutual TLS.
        let mut sidecars = fixture::sidecars();
        for sidecar in &mut sidecars {
            let workload = Arc::make_mut(&mut Arc::make_mut(sidecar).workload);
            workload.labels.insert(TLS_MODE.to_owned(), "disabled".to_owned());
        }
        let disabled = Directory::new(sidecars.iter(), &fixture::peers());
        assert_eq!(principals(&disabled, "10.96.0.1:80", observer_common::Protocol::HTTP), [false; 2]);
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
        let mut peers = Peers::clone(&fixture::peers());
        peers.services[0].addresses.push("2001:db8::7".parse().unwrap());
        peers.services[1].addresses.push("::ffff:10.96.0.77".parse().unwrap());
        let directory = Directory::new(fixture::sidecars().iter(), &peers);
        for (address, name) in [("2001:db8::7:80", "reviews"), ("10.96.0.77:80", "ratings")] {
            let labels = directory.resolve(&key(1, Leg::SOURCE, address, observer_common::Protocol::HTTP, 200));
            assert_eq!(&*labels.service.name, name);
        }
    }

    #[test]
    fn a_projection_is_equal_where_it_looks() {
        let (two, other) = (
            Arc::new(directory().resolve(&key(1, Leg::SOURCE, "10.96.0.1:80", observer_common::Protocol::HTTP, 200))),
            Arc::new(directory().resolve(&key(1, Leg::SOURCE, "10.96.0.1:80", observer_common::Protocol::HTTP, 500))),
        );
        let projection = |labels: &Arc<MeshLabels>, kept: [usize; 3]| Projection::new(labels.clone(), kept.into());
        assert!(projection(&two, [0, 1, 20]) == projection(&other, [0, 1, 20]));
        assert!(projection(&two, [0, 1, 21]) != projection(&other, [0, 1, 21]));
    }

    #[test]
    fn numbers_are_printed_as_they_are() {
        for number in [0, 7, 10, 200, 999, 65_534, u32::MAX.into(), u64::MAX] {
            assert_eq!(Digits::new(number).text(), number.to_string());
        }
    }
}
