//! The pods that a peer's address can belong to.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use super::certificate::SpiffeId;
use crate::{
    identity::{Sidecar, Workload},
    kubernetes::{Cluster, TLS_MODE, Unresolved},
    labels::Peer,
    workload_index::{DEFAULT_TRUST_DOMAIN, StaticPeers, WorkloadIndex},
};

/// One pod.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) id: PodId,
    /// Its labels as the other end of a connection.
    pub(super) labels: Peer,
    account: Option<Account>,
    /// Whether it speaks Istio's mutual TLS, as far as its labels say.
    has_mutual_tls: bool,
    /// Whether it passes on connections of other pods, whose certificates it does not have.
    pub(super) is_relay: bool,
}

/// What distinguishes pods: the name, or the address where that is not known.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum PodId {
    Name { namespace: Box<str>, pod: Box<str> },
    Address(IpAddr),
}

#[derive(Debug)]
struct Account {
    namespace: Box<str>,
    name: Box<str>,
    /// `None` if the pod's environment is not known.
    trust_domain: Option<Box<str>>,
}

impl Pod {
    fn new(workload: &Workload, address: IpAddr) -> Self {
        let account = workload.namespace.as_deref().zip(workload.service_account.as_deref());
        let name = workload.namespace.as_deref().zip(workload.pod.as_deref());
        Self {
            id: name.map_or(PodId::Address(address), |(namespace, pod)| PodId::Name {
                namespace: namespace.into(),
                pod: pod.into(),
            }),
            labels: Peer::remote(workload),
            account: account.map(|(namespace, name)| Account {
                namespace: namespace.into(),
                name: name.into(),
                trust_domain: workload.trust_domain.as_deref().map(Into::into),
            }),
            has_mutual_tls: workload.labels.get(TLS_MODE).is_none_or(|mode| mode == "istio"),
            is_relay: is_relay(workload),
        }
    }

    /// Returns whether its certificates can be of this identity; `None` if its service account is not known.
    pub(super) fn can_be(&self, id: SpiffeId<'_>) -> Option<bool> {
        let account = self.account.as_ref()?;
        let is_domain = account.trust_domain.as_deref().is_none_or(|own| own == id.trust_domain);
        Some(is_domain && *account.namespace == *id.namespace && *account.name == *id.account)
    }

    /// Returns the identity of its certificates if it speaks mutual TLS, in the given trust domain unless it has its own.
    pub(super) fn principal(&self, trust_domain: Option<&str>) -> Option<String> {
        let Account { namespace, name, trust_domain: own } = self.account.as_ref().filter(|_| self.has_mutual_tls)?;
        let domain = own.as_deref().or(trust_domain).unwrap_or(DEFAULT_TRUST_DOMAIN);
        Some(format!("spiffe://{domain}/ns/{namespace}/sa/{name}"))
    }
}

/// Returns whether this is an east-west gateway: it passes on TLS connections of other clusters' pods unopened.
/// Source: istio `samples/multicluster/gen-eastwest-gateway.sh`, `pilot/pkg/model/gateway_class.go`.
fn is_relay(workload: &Workload) -> bool {
    let label = |name: &str| workload.labels.get(name).map(String::as_str);
    label("istio") == Some("eastwestgateway")
        || label("gateway.istio.io/managed") == Some("istio.io-eastwest-controller")
}

/// Pods by address: those of this node and of the configuration, then those of the cluster.
#[derive(Debug, Default)]
pub(super) struct Pods {
    known: HashMap<IpAddr, Arc<Pod>>,
    of_cluster: HashMap<IpAddr, (Arc<Workload>, Arc<Pod>)>,
    /// Addresses of which the API is asked whose they are.
    pending: HashSet<IpAddr>,
}

impl Pods {
    /// Takes over the pods of running sidecars, then those of the peers. The address of an ended one may be another pod's.
    pub(super) fn set_known(&mut self, running: &[Arc<Sidecar>], peers: &StaticPeers) {
        self.known.clear();
        let sidecars = running.iter().map(|sidecar| (&sidecar.addresses, &sidecar.workload));
        for (addresses, workload) in
            sidecars.chain(peers.workloads.iter().map(|entry| (&entry.addresses, &entry.workload)))
        {
            for address in addresses.iter().map(IpAddr::to_canonical) {
                self.known.entry(address).or_insert_with(|| Arc::new(Pod::new(workload, address)));
            }
        }
    }

    /// Looks up who has these addresses now.
    pub(super) fn ask(
        &mut self,
        index: &WorkloadIndex,
        cluster: &mut Cluster,
        addresses: impl Iterator<Item = IpAddr>,
    ) {
        let mut before = std::mem::take(&mut self.of_cluster);
        self.pending.clear();
        if !cluster.is_on() {
            return;
        }
        for address in addresses {
            if self.known.contains_key(&address) || self.of_cluster.contains_key(&address) {
                continue;
            }
            let workload = match cluster.workload_at(address) {
                Ok(workload) => workload,
                Err(Unresolved::Pending) => {
                    self.pending.insert(address);
                    continue;
                }
                Err(_) => continue,
            };
            let pod = match before.remove(&address) {
                Some((old, pod)) if Arc::ptr_eq(&old, &workload) => pod,
                _ => Arc::new(Pod::new(&index.complete(&workload), address)),
            };
            self.of_cluster.insert(address, (workload, pod));
        }
    }

    /// Returns whether it will become known whose this address is.
    pub(super) fn is_pending(&self, address: IpAddr) -> bool {
        self.pending.contains(&address)
    }

    /// Returns the pod that has this address now.
    pub(super) fn get(&self, address: IpAddr) -> Option<&Arc<Pod>> {
        self.known.get(&address).or_else(|| self.of_cluster.get(&address).map(|(_, pod)| pod))
    }
}
