//! What is kept of the API's objects: bounded, and only what names traffic.

use std::{net::IpAddr, sync::Arc};

use super::{object, protocol::PortProtocol};
use crate::{identity::Workload, labels::Service as ServiceLabels};

/// Maximum addresses of a Service or a host of a `ServiceEntry`.
const MAX_ADDRESSES: usize = 64;
/// Maximum ports of an object.
const MAX_PORTS: usize = 256;
/// Maximum endpoints of a slice; the API server allows 1,000.
const MAX_ENDPOINTS: usize = 1_000;
/// Maximum hosts of a `ServiceEntry`, as its schema allows.
const MAX_HOSTS: usize = 256;
/// Maximum length of a name or a label's value: a DNS name.
const MAX_TEXT: usize = 253;
/// Pod labels that name a workload; the others are dropped.
const KEPT_LABELS: [&str; 7] = [
    "app",
    "version",
    "app.kubernetes.io/name",
    "app.kubernetes.io/version",
    "service.istio.io/canonical-name",
    "service.istio.io/canonical-revision",
    super::TLS_MODE,
];

/// Namespace and name of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    /// Namespace.
    pub namespace: Box<str>,
    /// Name.
    pub name: Box<str>,
}

/// Unique id of a pod: the number that its UUID writes, or 0 if it is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodUid([u8; 16]);

/// Why an object is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rejection {
    /// It has no name, or one that is too long.
    Name,
    /// It has more addresses, ports, endpoints or hosts than are kept.
    TooLarge,
    /// As many of its kind are kept as there may be.
    TooMany,
    /// It is not what the API's schema says.
    Malformed,
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Service {
    pub(super) labels: Arc<ServiceLabels>,
    /// When it was created, in RFC 3339, which sorts as text.
    pub(super) created: Box<str>,
    pub(super) is_headless: bool,
    pub(super) ports: Box<[ServicePort]>,
    /// Addresses that sidecars have a listener or a route for.
    pub(super) addresses: Box<[IpAddr]>,
    /// External and load-balancer addresses: sidecars pass such traffic through.
    pub(super) external: Box<[IpAddr]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServicePort {
    pub(super) name: Box<str>,
    pub(super) port: u16,
    /// 0 if it has none.
    pub(super) node_port: u16,
    pub(super) protocol: PortProtocol,
}

/// Some of a Service's endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slice {
    pub(super) service: ObjectName,
    pub(super) ports: Box<[SlicePort]>,
    pub(super) endpoints: Box<[Endpoint]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SlicePort {
    /// Name of the Service's port.
    pub(super) name: Box<str>,
    /// Port that the pods listen on; 0 for any.
    pub(super) port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) address: IpAddr,
    /// Name of its pod, if it is one, in the Service's namespace.
    pub(super) pod: Option<Box<str>>,
    pub(super) uid: PodUid,
    pub(super) is_ready: bool,
}

/// A `ServiceEntry`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// When it was created, in RFC 3339.
    pub(super) created: Box<str>,
    pub(super) hosts: Box<[EntryHost]>,
    pub(super) ports: Box<[EntryPort]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EntryHost {
    pub(super) labels: Arc<ServiceLabels>,
    pub(super) addresses: Box<[Prefix]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EntryPort {
    pub(super) port: u16,
    pub(super) protocol: PortProtocol,
    /// Selected by the TLS handshake's server name, not by address.
    pub(super) is_tls: bool,
}

/// An address with a prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Prefix {
    address: IpAddr,
    length: u8,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub(super) name: ObjectName,
    pub(super) uid: PodUid,
    pub(super) addresses: Box<[IpAddr]>,
    pub(super) host_addresses: Box<[IpAddr]>,
    /// It has ended, so that its addresses may be another's.
    pub(super) has_ended: bool,
    /// What its `ReplicaSet` calls its pods, without their random ends: all of them are alike.
    pub(super) template: Option<Box<str>>,
    /// Its identity, without cluster and trust domain.
    pub workload: Arc<Workload>,
}

impl ObjectName {
    /// Returns the name of an object.
    ///
    /// # Errors
    /// It has none, or it is too long.
    pub fn of(metadata: &object::Metadata) -> Result<Self, Rejection> {
        Self::new(&metadata.namespace, &metadata.name).ok_or(Rejection::Name)
    }

    /// Returns a name; `None` if a part is empty or too long.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Option<Self> {
        let is_valid = |text: &str| !text.is_empty() && text.len() <= MAX_TEXT;
        (is_valid(namespace) && is_valid(name)).then(|| Self { namespace: namespace.into(), name: name.into() })
    }
}

impl PodUid {
    /// Parses a UUID.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let digits: String = text.chars().filter(|c| *c != '-').take(33).collect();
        let is_uuid = digits.len() == 32 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        Self(if is_uuid { u128::from_str_radix(&digits, 16).unwrap_or_default().to_be_bytes() } else { [0; 16] })
    }

    /// Returns whether two ids can be the same pod's: an unknown one can be any.
    #[must_use]
    pub fn fits(self, other: Self) -> bool {
        self == other || self == Self::default() || other == Self::default()
    }
}

impl Service {
    /// Returns what is kept of a Service; `None` for a name of another host (`ExternalName`).
    pub(super) fn new(object: &object::Service, domain: &str) -> Result<Option<Self>, Rejection> {
        let object::Service { metadata, spec, status } = object;
        let ObjectName { namespace, name } = ObjectName::of(metadata)?;
        if spec.kind == "ExternalName" {
            return Ok(None);
        }
        let is_headless = spec.cluster_ip == "None";
        let cluster = if spec.cluster_ips.is_empty() {
            std::slice::from_ref(&spec.cluster_ip)
        } else {
            spec.cluster_ips.as_slice()
        };
        let ingress = status.load_balancer.ingress.iter().map(|ingress| &ingress.ip);
        let addresses = addresses(cluster.iter())?;
        let external = self::addresses(spec.external_ips.iter().chain(ingress))?;
        bounded(spec.ports.len(), MAX_PORTS)?;
        let ports = spec.ports.iter().filter(|port| is_tcp(&port.protocol)).map(|port| ServicePort {
            name: port.name.as_str().into(),
            port: port.port,
            node_port: port.node_port,
            protocol: PortProtocol::declared(port.port, &port.name, port.app_protocol.as_deref()),
        });
        Ok(Some(Self {
            labels: Arc::new(ServiceLabels {
                host: format!("{name}.{namespace}.svc.{domain}").into(),
                name,
                namespace,
            }),
            created: text(&metadata.creation_timestamp)?,
            is_headless,
            ports: ports.collect(),
            addresses,
            external,
        }))
    }
}

impl Slice {
    /// Returns what is kept of a slice; `None` if it is of no Service, or has names for addresses.
    pub(super) fn new(object: &object::EndpointSlice) -> Result<Option<Self>, Rejection> {
        let name = ObjectName::of(&object.metadata)?;
        let Some(service) = object.metadata.labels.get("kubernetes.io/service-name") else { return Ok(None) };
        let service = ObjectName::new(&name.namespace, service).ok_or(Rejection::Name)?;
        if !matches!(object.address_type.as_str(), "IPv4" | "IPv6") {
            return Ok(None);
        }
        bounded(object.ports.len(), MAX_PORTS)?;
        bounded(object.endpoints.len(), MAX_ENDPOINTS)?;
        let ports = object
            .ports
            .iter()
            .filter(|port| is_tcp(&port.protocol))
            .map(|port| SlicePort { name: port.name.as_str().into(), port: port.port.unwrap_or(0) });
        let mut endpoints = Vec::with_capacity(object.endpoints.len());
        for endpoint in &object.endpoints {
            // The others are interchangeable with the first, and kube-proxy uses that alone.
            let Some(address) = endpoint.addresses.first().and_then(|text| parse(text)) else { continue };
            let target = endpoint.target_ref.as_ref().filter(|target| target.kind == "Pod");
            let target = target.filter(|target| target.namespace.is_empty() || *target.namespace == *name.namespace);
            endpoints.push(Endpoint {
                address,
                pod: target.map(|target| text(&target.name)).transpose()?.filter(|name| !name.is_empty()),
                uid: target.map(|target| PodUid::parse(&target.uid)).unwrap_or_default(),
                is_ready: endpoint.conditions.ready.unwrap_or(true),
            });
        }
        Ok(Some(Self { service, ports: ports.collect(), endpoints: endpoints.into() }))
    }
}

impl Entry {
    /// Returns what is kept of a `ServiceEntry`.
    pub(super) fn new(object: &object::ServiceEntry) -> Result<Self, Rejection> {
        let ObjectName { namespace, .. } = ObjectName::of(&object.metadata)?;
        let object::EntrySpec { hosts, addresses, ports } = &object.spec;
        bounded(hosts.len(), MAX_HOSTS)?;
        bounded(addresses.len(), MAX_ADDRESSES)?;
        bounded(ports.len(), MAX_PORTS)?;
        bounded(object.status.addresses.len(), MAX_HOSTS * 2)?;
        let mut kept = Vec::with_capacity(hosts.len());
        for host in hosts {
            let name: Box<str> = text(host)?;
            let allocated = object.status.addresses.iter().filter(|address| address.host == *host);
            // Istio allocates addresses to hosts whose entry has none.
            let own: Vec<Prefix> = if addresses.is_empty() {
                allocated.filter_map(|address| Prefix::parse(&address.value)).collect()
            } else {
                addresses.iter().filter_map(|text| Prefix::parse(text)).collect()
            };
            let labels = ServiceLabels { host: name.clone(), name, namespace: namespace.clone() };
            kept.push(EntryHost { labels: Arc::new(labels), addresses: own.into() });
        }
        let ports = ports.iter().filter_map(|port| {
            let number = u16::try_from(port.number).ok().filter(|number| *number != 0)?;
            let word = if port.protocol.is_empty() { &port.name } else { &port.protocol };
            let is_tls = ["tls", "https"].iter().any(|known| word.eq_ignore_ascii_case(known));
            Some(EntryPort { port: number, protocol: PortProtocol::declared(number, word, None), is_tls })
        });
        let created = text(&object.metadata.creation_timestamp)?;
        Ok(Self { created, hosts: kept.into(), ports: ports.collect() })
    }
}

impl Prefix {
    fn parse(text: &str) -> Option<Self> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length.parse::<u8>().ok()?)),
            None => (text, None),
        };
        let address = parse(address)?;
        let whole = if address.is_ipv4() { 32 } else { 128 };
        let length = length.unwrap_or(whole);
        (length <= whole).then_some(Self { address, length })
    }

    /// Returns the address if the prefix is one alone.
    pub(super) fn single(self) -> Option<IpAddr> {
        let whole = if self.address.is_ipv4() { 32 } else { 128 };
        (self.length == whole).then_some(self.address)
    }

    pub(super) fn contains(self, address: IpAddr) -> bool {
        let bits = |address: IpAddr| match address {
            IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, 32),
            IpAddr::V6(address) => (address.to_bits(), 128),
        };
        let ((own, width), (other, other_width)) = (bits(self.address), bits(address));
        let differing = own ^ other;
        width == other_width && (self.length == 0 || differing >> (128 - u32::from(self.length)) == 0)
    }
}

impl Pod {
    /// Returns what is kept of a pod.
    ///
    /// # Errors
    /// It has no name, or more addresses than are kept.
    pub fn new(object: &object::Pod) -> Result<Self, Rejection> {
        let object::Pod { metadata, spec, status } = object;
        let name = ObjectName::of(metadata)?;
        let ips = |one: &'_ str, all: &'_ [object::Address]| -> Result<Box<[IpAddr]>, Rejection> {
            let all: Vec<_> = all.iter().map(|address| address.ip.as_str()).chain([one]).collect();
            addresses(all.iter())
        };
        let mut labels = std::collections::BTreeMap::new();
        for key in KEPT_LABELS {
            if let Some(value) = metadata.labels.get(key).filter(|value| !value.is_empty()) {
                labels.insert(key.to_owned(), String::from(text(value)?));
            }
        }
        let some = |text: &str| (!text.is_empty() && text.len() <= MAX_TEXT).then(|| text.to_owned());
        let workload = Workload {
            pod: Some(name.name.to_string()),
            namespace: Some(name.namespace.to_string()),
            name: some(super::owner::workload_name(metadata)),
            service_account: some(&spec.service_account_name),
            labels,
            node: some(&spec.node_name),
            ..Workload::default()
        };
        Ok(Self {
            uid: PodUid::parse(&metadata.uid),
            addresses: ips(&status.pod_ip, &status.pod_ips)?,
            host_addresses: ips(&status.host_ip, &status.host_ips)?,
            has_ended: matches!(status.phase.as_str(), "Succeeded" | "Failed"),
            template: super::owner::template(metadata).map(Into::into),
            workload: Arc::new(workload),
            name,
        })
    }

    /// Returns its name.
    #[must_use]
    pub fn name(&self) -> &ObjectName {
        &self.name
    }

    /// Returns whether it is in its node's network, where an address is shared by several pods.
    #[must_use]
    pub fn is_in_host_network(&self) -> bool {
        self.addresses.iter().any(|address| self.host_addresses.contains(address))
    }
}

fn is_tcp(protocol: &str) -> bool {
    matches!(protocol, "TCP" | "")
}

fn bounded(length: usize, limit: usize) -> Result<(), Rejection> {
    if length > limit { Err(Rejection::TooLarge) } else { Ok(()) }
}

fn text(text: &str) -> Result<Box<str>, Rejection> {
    bounded(text.len(), MAX_TEXT)?;
    Ok(text.into())
}

/// Parses an address, IPv4 where it is mapped to IPv6.
fn parse(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>().ok().map(|address| address.to_canonical()).filter(|address| !address.is_unspecified())
}

/// Parses addresses; empty ones and `None` are skipped, as is whatever is none.
fn addresses(texts: impl Iterator<Item = impl AsRef<str>>) -> Result<Box<[IpAddr]>, Rejection> {
    let mut parsed = Vec::new();
    for address in texts.filter_map(|text| parse(text.as_ref())) {
        if !parsed.contains(&address) {
            bounded(parsed.len() + 1, MAX_ADDRESSES)?;
            parsed.push(address);
        }
    }
    Ok(parsed.into())
}
