//! Where a sidecar's listeners and routes lead, as far as Services and `ServiceEntry`s decide it.
//!
//! Istio makes a listener for the address and port of each TCP port, and one for the port alone (`0.0.0.0_PORT`) where a
//! port is HTTP: there the Host header decides, and whatever no route fits is passed through as HTTP. What no listener
//! fits is passed through as TCP, unread.
//!
//! Source: istio `pilot/pkg/networking/core/listener.go`.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use super::{
    cluster::Cluster,
    facts::{Entry, EntryPort, Prefix, Service, ServicePort},
    protocol::PortProtocol,
};
use crate::{identity::Sidecar, labels::Service as ServiceLabels};

/// Maximum ports whose protocol is declared to the kernel.
const MAX_PORT_PROTOCOLS: usize = 60_000;

/// Which connections a port's protocol is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortKey {
    /// A sidecar, for connections to its application; 0 for those that any sidecar's application opens.
    pub sidecar: u32,
    /// Original destination; `None` for every address.
    pub address: Option<IpAddr>,
    /// Port; 0 for every port.
    pub port: u16,
}

/// Protocols of ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortProtocols {
    /// The protocols; the most specific key decides.
    pub ports: BTreeMap<PortKey, PortProtocol>,
    /// Number of ports left out, as there are too many.
    pub left_out: u64,
}

/// What an address belongs to.
#[derive(Clone, Debug)]
pub(super) enum Target {
    Service(Arc<Service>),
    Entry(Arc<ServiceLabels>, Arc<Entry>),
}

/// The listeners for a port of every address.
#[derive(Clone, Debug, Default)]
pub(super) struct Wildcard {
    /// There is an HTTP listener.
    pub(super) is_http: bool,
    /// Hosts without an address have that port, so that the Host header or server name decides.
    pub(super) is_by_host: bool,
    /// TCP hosts without an address.
    pub(super) tcp: Vec<Arc<ServiceLabels>>,
}

#[derive(Debug, Default)]
pub(super) struct Routes {
    by_address: HashMap<IpAddr, Vec<Target>>,
    prefixes: Vec<(Prefix, Target)>,
    external: HashMap<IpAddr, Vec<Arc<Service>>>,
    node_ports: HashMap<u16, Arc<Service>>,
    wildcards: BTreeMap<u16, Wildcard>,
}

impl Target {
    /// Returns the protocol of a port, if it has that.
    fn protocol(&self, port: u16) -> Option<PortProtocol> {
        match self {
            Self::Service(service) => service.port(port).map(|port| port.protocol),
            Self::Entry(_, entry) => entry.port(port).map(|port| port.protocol),
        }
    }
}

impl Service {
    pub(super) fn port(&self, port: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|known| known.port == port)
    }
}

impl Entry {
    fn port(&self, port: u16) -> Option<&EntryPort> {
        self.ports.iter().find(|known| known.port == port)
    }
}

impl Routes {
    /// The oldest objects come first, as in Istio.
    pub(super) fn new<'a>(
        services: impl Iterator<Item = &'a Arc<Service>>,
        entries: impl Iterator<Item = &'a Arc<Entry>>,
    ) -> Self {
        let mut routes = Self::default();
        let mut services: Vec<_> = services.collect();
        services.sort_by_key(|service| (&service.created, &service.labels.host));
        services.into_iter().for_each(|service| routes.add_service(service));
        let mut entries: Vec<_> = entries.collect();
        entries.sort_by_key(|entry| (&entry.created, entry.hosts.first().map(|host| &host.labels.host)));
        entries.into_iter().for_each(|entry| routes.add_entry(entry));
        routes
    }

    fn add_service(&mut self, service: &Arc<Service>) {
        for address in &service.addresses {
            self.by_address.entry(*address).or_default().push(Target::Service(service.clone()));
        }
        for address in &service.external {
            self.external.entry(*address).or_default().push(service.clone());
        }
        for port in &service.ports {
            if port.node_port != 0 {
                self.node_ports.entry(port.node_port).or_insert_with(|| service.clone());
            }
            self.wildcards.entry(port.port).or_default().is_http |= port.protocol == PortProtocol::Http;
        }
    }

    fn add_entry(&mut self, entry: &Arc<Entry>) {
        for host in &entry.hosts {
            let target = Target::Entry(host.labels.clone(), entry.clone());
            for prefix in &host.addresses {
                match prefix.single() {
                    Some(address) => self.by_address.entry(address).or_default().push(target.clone()),
                    None => self.prefixes.push((*prefix, target.clone())),
                }
            }
            for port in &entry.ports {
                let wildcard = self.wildcards.entry(port.port).or_default();
                wildcard.is_http |= port.protocol == PortProtocol::Http;
                if host.addresses.is_empty() {
                    if port.protocol == PortProtocol::Tcp && !port.is_tls {
                        wildcard.tcp.push(host.labels.clone());
                    } else {
                        wildcard.is_by_host = true;
                    }
                }
            }
        }
    }

    /// Returns the first that has the address and the port.
    pub(super) fn at(&self, address: IpAddr, port: u16) -> Option<&Target> {
        let exact = self.by_address.get(&address).into_iter().flatten();
        let within = self.prefixes.iter().filter(|(prefix, _)| prefix.contains(address)).map(|(_, target)| target);
        exact.chain(within).find(|target| target.protocol(port).is_some())
    }

    /// Returns the Service that an external or load-balancer address and port lead to.
    pub(super) fn external(&self, address: IpAddr, port: u16) -> Option<&Arc<Service>> {
        self.external.get(&address)?.iter().find(|service| service.port(port).is_some())
    }

    /// Returns the Service that a port of every node leads to.
    pub(super) fn node_port(&self, port: u16) -> Option<&Arc<Service>> {
        self.node_ports.get(&port)
    }

    pub(super) fn wildcard(&self, port: u16) -> Option<&Wildcard> {
        self.wildcards.get(&port)
    }
}

impl Cluster {
    /// Returns the protocols of ports, for calls and for the ports of these sidecars; nothing before all is known.
    #[must_use]
    pub fn port_protocols<'a>(&mut self, sidecars: impl Iterator<Item = &'a Arc<Sidecar>>) -> PortProtocols {
        let mut protocols = PortProtocols::default();
        if !self.is_synced() {
            return protocols;
        }
        self.refresh_routes();
        // Without a listener, traffic is passed through unread.
        protocols.declare(PortKey::default(), PortProtocol::Tcp);
        for (port, wildcard) in &self.routes.wildcards {
            if wildcard.is_http {
                protocols.declare(PortKey { port: *port, ..PortKey::default() }, PortProtocol::Sniffed);
            }
        }
        for sidecar in sidecars {
            for (port, protocol) in self.inbound_protocols(sidecar) {
                protocols.declare(PortKey { sidecar: sidecar.id, address: None, port }, protocol);
            }
        }
        for (address, targets) in &self.routes.by_address {
            for target in targets {
                let ports: Box<dyn Iterator<Item = u16>> = match target {
                    Target::Service(service) => Box::new(service.ports.iter().map(|port| port.port)),
                    Target::Entry(_, entry) => Box::new(entry.ports.iter().map(|port| port.port)),
                };
                for port in ports {
                    let Some(protocol) = target.protocol(port) else { continue };
                    protocols.declare(PortKey { sidecar: 0, address: Some(*address), port }, protocol);
                }
            }
        }
        for (name, service) in self.services().filter(|(_, service)| service.is_headless) {
            for port in &service.ports {
                let is_http_elsewhere = self.routes.wildcard(port.port).is_some_and(|wildcard| wildcard.is_http);
                let is_default = match port.protocol {
                    PortProtocol::Http => true,
                    PortProtocol::Tcp => !is_http_elsewhere,
                    PortProtocol::Sniffed => is_http_elsewhere,
                };
                if is_default {
                    continue;
                }
                for endpoint in self.slices_by_service.get(name).into_iter().flatten().flat_map(|it| &it.endpoints) {
                    let key = PortKey { sidecar: 0, address: Some(endpoint.address), port: port.port };
                    protocols.declare(key, port.protocol);
                }
            }
        }
        protocols
    }
}

impl PortProtocols {
    /// Declares a protocol, unless something else, which is older, has declared it.
    fn declare(&mut self, key: PortKey, protocol: PortProtocol) {
        if self.ports.len() >= MAX_PORT_PROTOCOLS {
            self.left_out += u64::from(!self.ports.contains_key(&key));
        } else {
            self.ports.entry(key).or_insert(protocol);
        }
    }
}
