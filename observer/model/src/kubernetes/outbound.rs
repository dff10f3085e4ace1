//! Where a connection leads: Service, and workloads behind it.

use std::{cmp::Reverse, net::IpAddr, sync::Arc};

use super::{
    cluster::Cluster,
    facts::{ObjectName, Service, Slice},
    pods::Lookup,
    protocol::PortProtocol,
    routes::Target,
};
use crate::{
    identity::{Sidecar, Workload},
    labels::Service as ServiceLabels,
};

/// Maximum pods of one Service that are asked for one by one.
const MAX_ASKED: usize = 64;

/// Why the workload behind a destination is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unresolved {
    /// The API's answer is awaited.
    Pending,
    /// The Service has no ready endpoint at that port.
    NoEndpoints,
    /// Several workloads are behind the Service.
    SeveralWorkloads,
    /// More pods than are asked for are behind the Service.
    TooManyPods,
    /// An endpoint is not a pod, or there is no such pod.
    NoPod,
    /// A Host header or server name decides, which is not visible.
    ByHost,
    /// It is outside of the cluster.
    Outside,
}

impl Unresolved {
    /// All reasons.
    pub const ALL: [Self; 7] = [
        Self::Pending,
        Self::NoEndpoints,
        Self::SeveralWorkloads,
        Self::TooManyPods,
        Self::NoPod,
        Self::ByHost,
        Self::Outside,
    ];

    /// Returns the label value.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::NoEndpoints => "no_endpoints",
            Self::SeveralWorkloads => "several_workloads",
            Self::TooManyPods => "too_many_pods",
            Self::NoPod => "no_pod",
            Self::ByHost => "by_host",
            Self::Outside => "outside",
        }
    }
}

/// Where a connection leads.
#[derive(Debug)]
pub(crate) enum Outbound {
    /// To a Service.
    Service {
        /// Its labels.
        labels: Arc<ServiceLabels>,
        /// Whether sidecars have a cluster for that address and port, so that mutual TLS is used.
        is_routed: bool,
        /// The workloads behind it.
        workloads: Result<Vec<Arc<Workload>>, Unresolved>,
    },
    /// It is passed through.
    Passthrough(Result<Arc<Workload>, Unresolved>),
    /// A Host header decides.
    ByHost,
    /// Not everything is known yet.
    Pending,
}

impl Cluster {
    /// Returns where a connection to an original destination leads.
    pub(crate) fn outbound(&mut self, address: IpAddr, port: u16) -> Outbound {
        if !self.is_synced() {
            return Outbound::Pending;
        }
        match self.routes.at(address, port).cloned() {
            Some(Target::Service(service)) => return self.service_outbound(&service, port, None, true),
            Some(Target::Entry(labels, _)) => {
                return Outbound::Service { labels, is_routed: false, workloads: Err(Unresolved::Outside) };
            }
            None => {}
        }
        if let Some(service) = self.headless(address, port) {
            return self.service_outbound(&service, port, Some(address), true);
        }
        if let Some(service) = self.routes.external(address, port).cloned() {
            return self.service_outbound(&service, port, None, false);
        }
        if let Some(service) = self.routes.node_port(port).cloned()
            && self.pods.is_node(address)
        {
            let target = service.ports.iter().find(|known| known.node_port == port).map_or(port, |known| known.port);
            return self.service_outbound(&service, target, None, false);
        }
        let at_address = self.workload_at(address);
        if let Some(wildcard) = self.routes.wildcard(port)
            && !matches!(at_address, Ok(_) | Err(Unresolved::Pending))
        {
            if let [labels] = &wildcard.tcp[..] {
                let labels = labels.clone();
                return Outbound::Service { labels, is_routed: false, workloads: Err(Unresolved::Outside) };
            }
            if wildcard.is_by_host || !wildcard.tcp.is_empty() {
                return Outbound::ByHost;
            }
        }
        Outbound::Passthrough(at_address)
    }

    /// Returns the workload of the pod at an address.
    pub(crate) fn workload_at(&mut self, address: IpAddr) -> Result<Arc<Workload>, Unresolved> {
        let slices = self.slices_by_address.get(&address).map_or(&[][..], Vec::as_slice);
        let pod = slices.iter().find_map(|slice| {
            let endpoint = slice.endpoints.iter().find(|endpoint| endpoint.address == address)?;
            Some((ObjectName::new(&slice.service.namespace, endpoint.pod.as_deref()?)?, endpoint.uid))
        });
        let lookup = match pod {
            Some((name, uid)) => match self.pods.named(&name, uid) {
                // Others share the node's address.
                (_, true) => self.pods.at(address),
                (lookup, false) => lookup,
            },
            None if is_private(address) => self.pods.at(address),
            None => return Err(Unresolved::Outside),
        };
        match lookup {
            Lookup::Known(workload) => Ok(workload),
            Lookup::Pending => Err(Unresolved::Pending),
            Lookup::Absent => {
                Err(if pod_exists(slices_of(self, address)) { Unresolved::NoPod } else { Unresolved::Outside })
            }
            Lookup::Ambiguous => Err(Unresolved::SeveralWorkloads),
        }
    }

    /// Returns the identity of the pod of a name.
    pub(crate) fn workload_of(&mut self, namespace: &str, pod: &str) -> Option<Arc<Workload>> {
        let name = ObjectName::new(namespace, pod)?;
        match self.pods.named(&name, super::PodUid::default()).0 {
            Lookup::Known(workload) => Some(workload),
            _ => None,
        }
    }

    /// Returns the Service that a sidecar's own port belongs to, `Err(true)` if its pod has others, `Err(false)` if none.
    pub(crate) fn inbound(&self, sidecar: &Sidecar, port: u16) -> Result<Arc<ServiceLabels>, bool> {
        let mut has_any = false;
        let mut found: Vec<&Arc<Service>> = Vec::new();
        for (service, slice) in self.own_slices(sidecar) {
            has_any = true;
            if slice.ports.iter().any(|known| known.port == port) {
                found.push(service);
            }
        }
        // Istio lists a proxy's services by age, then by host.
        let oldest = found.into_iter().max_by_key(|service| Reverse((&service.created, &service.labels.host)));
        oldest.map(|service| service.labels.clone()).ok_or(has_any)
    }

    /// Returns the ports of a sidecar's pod that Services declare, the oldest Service's first.
    pub(super) fn inbound_protocols(&self, sidecar: &Sidecar) -> Vec<(u16, PortProtocol)> {
        let mut slices: Vec<_> = self.own_slices(sidecar).collect();
        slices.sort_by_key(|(service, _)| (&service.created, &service.labels.host));
        let ports = slices.into_iter().flat_map(|(service, slice)| {
            slice.ports.iter().filter_map(move |port| {
                let declared = service.ports.iter().find(|known| known.name == port.name)?;
                Some((port.port, declared.protocol))
            })
        });
        ports.filter(|(port, _)| *port != 0).collect()
    }

    /// Returns the slices that a sidecar's pod is in, with their Services.
    fn own_slices<'a>(&'a self, sidecar: &'a Sidecar) -> impl Iterator<Item = (&'a Arc<Service>, &'a Arc<Slice>)> {
        let pod = sidecar.workload.pod.as_deref();
        sidecar.addresses.iter().flat_map(move |address| {
            let address = address.to_canonical();
            let is_own = move |slice: &&Arc<Slice>| {
                let mut endpoints = slice.endpoints.iter().filter(|endpoint| endpoint.address == address);
                endpoints.any(|endpoint| pod.is_none() || endpoint.pod.is_none() || endpoint.pod.as_deref() == pod)
            };
            let slices = self.slices_by_address.get(&address).into_iter().flatten().filter(is_own);
            slices.filter_map(|slice| Some((self.service(&slice.service)?, slice)))
        })
    }

    /// Returns the oldest headless Service that has an endpoint at the address, and the port.
    fn headless(&self, address: IpAddr, port: u16) -> Option<Arc<Service>> {
        let slices = self.slices_by_address.get(&address)?.iter();
        let services = slices.filter_map(|slice| self.service(&slice.service));
        let fitting = services.filter(|service| service.is_headless && service.port(port).is_some());
        fitting.min_by_key(|service| (&service.created, &service.labels.host)).cloned()
    }

    fn service_outbound(&mut self, service: &Arc<Service>, port: u16, at: Option<IpAddr>, is_routed: bool) -> Outbound {
        let workloads = self.workloads(service, port, at);
        Outbound::Service { labels: service.labels.clone(), is_routed, workloads }
    }

    /// Returns the workloads behind a Service's port, or the one at an address of its endpoints.
    fn workloads(
        &mut self,
        service: &Service,
        port: u16,
        at: Option<IpAddr>,
    ) -> Result<Vec<Arc<Workload>>, Unresolved> {
        let Some(port) = service.port(port) else { return Err(Unresolved::NoEndpoints) };
        let name = ObjectName { namespace: service.labels.namespace.clone(), name: service.labels.name.clone() };
        let slices = self.slices_by_service.get(&name).cloned().unwrap_or_default();
        let mut found: Vec<Arc<Workload>> = Vec::new();
        let (mut unknown, mut asked, mut is_empty) = (None, 0, true);
        for slice in slices.iter().filter(|slice| slice.ports.iter().any(|known| known.name == port.name)) {
            for endpoint in slice.endpoints.iter().filter(|it| at.map_or(it.is_ready, |at| it.address == at)) {
                is_empty = false;
                let Some(pod) = endpoint.pod.as_deref().and_then(|pod| ObjectName::new(&name.namespace, pod)) else {
                    return Err(Unresolved::NoPod);
                };
                if asked >= MAX_ASKED {
                    return Err(Unresolved::TooManyPods);
                }
                match self.pods.named(&pod, endpoint.uid).0 {
                    Lookup::Known(workload) => {
                        if !found.iter().any(|other| Arc::ptr_eq(other, &workload)) {
                            asked += usize::from(super::owner::template_of(&pod.name).is_none());
                            found.push(workload);
                        }
                    }
                    Lookup::Pending => {
                        asked += 1;
                        unknown = Some(Unresolved::Pending);
                    }
                    // It has just ended: the slice will say so.
                    Lookup::Absent | Lookup::Ambiguous => unknown = unknown.or(Some(Unresolved::NoPod)),
                }
            }
        }
        match unknown {
            Some(reason) => Err(reason),
            None if is_empty => Err(Unresolved::NoEndpoints),
            None => Ok(found),
        }
    }
}

fn slices_of(cluster: &Cluster, address: IpAddr) -> &[Arc<Slice>] {
    cluster.slices_by_address.get(&address).map_or(&[], Vec::as_slice)
}

fn pod_exists(slices: &[Arc<Slice>]) -> bool {
    !slices.is_empty()
}

/// Returns whether an address can be a pod's: the API is not asked for others.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [first, second, ..] = address.octets();
            // 100.64.0.0/10 is shared address space [RFC 6598], which some clusters use.
            address.is_private() || (first == 100 && second & 0xc0 == 64)
        }
        IpAddr::V6(address) => address.is_unique_local(),
    }
}
