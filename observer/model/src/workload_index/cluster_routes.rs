//! Labels of destinations that the cluster knows, each resolved once per index.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use super::Pool;
use crate::{
    identity::{Sidecar, Workload},
    kubernetes::{Cluster, Outbound, TLS_MODE, Unresolved},
    labels::{Peer, Service, UNKNOWN},
};

/// Service name of traffic that no listener of the sidecar fits, as Istio names it where such traffic is allowed.
const PASSTHROUGH: &str = "PassthroughCluster";

/// Destinations resolved so far.
#[derive(Debug, Default)]
pub(super) struct ClusterRoutes {
    resolved: HashMap<(IpAddr, u16), Destination>,
    /// Cluster and trust domain of this node's sidecars, which the API does not have.
    cluster: Option<String>,
    trust_domain: Option<String>,
}

/// Labels of a destination.
#[derive(Clone, Debug)]
pub(super) struct Destination {
    /// The workload as far as all that are behind it agree; `None` if it is not known.
    pub(super) peer: Option<Arc<Peer>>,
    /// It is reached by mutual TLS.
    pub(super) is_authenticated: bool,
    /// Its Service; `None` if it is not known.
    pub(super) service: Option<Arc<Service>>,
    /// Whether it is passed through to an address.
    pub(super) is_passthrough: bool,
    /// Why the workload is not known.
    pub(super) unresolved: Option<Unresolved>,
}

impl ClusterRoutes {
    pub(super) fn new<'a>(sidecars: impl Iterator<Item = &'a Arc<Sidecar>> + Clone) -> Self {
        let of = |field: fn(&Workload) -> &Option<String>| {
            sidecars.clone().find_map(|sidecar| field(&sidecar.workload).clone())
        };
        Self {
            resolved: HashMap::new(),
            cluster: of(|workload| &workload.cluster),
            trust_domain: of(|workload| &workload.trust_domain),
        }
    }

    /// Returns the labels of a destination; `None` if the cluster is turned off.
    pub(super) fn resolve(
        &mut self,
        cluster: &mut Cluster,
        pool: &mut Pool,
        address: IpAddr,
        port: u16,
    ) -> Option<&Destination> {
        if !cluster.is_on() {
            return None;
        }
        if !self.resolved.contains_key(&(address, port)) {
            let destination = self.destination(cluster.outbound(address, port), pool);
            self.resolved.insert((address, port), destination);
        }
        self.resolved.get(&(address, port))
    }

    /// Returns the labels of a destination that was resolved.
    pub(super) fn get(&self, address: IpAddr, port: u16) -> Option<&Destination> {
        self.resolved.get(&(address, port))
    }

    /// Returns how many destinations are not resolved, by reason.
    pub(super) fn unresolved(&self) -> BTreeMap<Unresolved, u64> {
        let mut counts = BTreeMap::new();
        for reason in self.resolved.values().filter_map(|destination| destination.unresolved) {
            *counts.entry(reason).or_default() += 1;
        }
        counts
    }

    /// Returns the workload of a pod with what the API does not have.
    pub(super) fn complete(&self, workload: &Workload) -> Workload {
        Workload {
            cluster: Some(self.cluster.clone().unwrap_or_else(|| super::DEFAULT_CLUSTER.to_owned())),
            trust_domain: self.trust_domain.clone(),
            ..workload.clone()
        }
    }

    fn destination(&self, outbound: Outbound, pool: &mut Pool) -> Destination {
        let unknown =
            Destination { peer: None, is_authenticated: false, service: None, is_passthrough: false, unresolved: None };
        match outbound {
            Outbound::Service { labels, is_routed, workloads } => {
                let service = Some(pool.intern_service(labels));
                match workloads {
                    Err(reason) => Destination { service, unresolved: Some(reason), ..unknown },
                    Ok(workloads) => {
                        let (peer, all_secured) = self.agreed(&workloads);
                        let is_authenticated = is_routed && all_secured && *peer.principal != *UNKNOWN;
                        let is_one = *peer.workload != *UNKNOWN;
                        let unresolved = (!is_one).then_some(Unresolved::SeveralWorkloads);
                        Destination { peer: Some(pool.peer(peer)), is_authenticated, service, unresolved, ..unknown }
                    }
                }
            }
            Outbound::Passthrough(workload) => {
                let (peer, unresolved) = match workload {
                    Ok(workload) => (Some(Peer::remote(&self.complete(&workload))), None),
                    Err(reason) => (None, Some(reason)),
                };
                let namespace = peer.as_ref().map_or(UNKNOWN, |peer| &peer.namespace);
                let service = Some(pool.service(UNKNOWN, PASSTHROUGH, namespace));
                let peer = peer.map(|peer| pool.peer(peer));
                Destination { peer, service, is_passthrough: true, unresolved, ..unknown }
            }
            Outbound::ByHost => Destination { unresolved: Some(Unresolved::ByHost), ..unknown },
            Outbound::Pending => Destination { unresolved: Some(Unresolved::Pending), ..unknown },
        }
    }

    /// Returns the labels that workloads have in common, and whether all of them accept mutual TLS.
    fn agreed(&self, workloads: &[Arc<Workload>]) -> (Peer, bool) {
        let is_secured = |workload: &Arc<Workload>| workload.labels.get(TLS_MODE).is_some_and(|mode| mode == "istio");
        let mut peers = workloads.iter().map(|workload| Peer::remote(&self.complete(workload)));
        let mut agreed = peers.next().unwrap_or_else(Peer::unknown);
        for peer in peers {
            agreed.keep_common(&peer);
        }
        (agreed, workloads.iter().all(is_secured))
    }
}

/// Returns a sidecar's workload with what its environment lacks and the API has.
pub(super) fn enriched(sidecar: &Sidecar, cluster: &mut Cluster) -> Option<Arc<Workload>> {
    let own = &sidecar.workload;
    let is_complete = own.name.is_some() && own.service_account.is_some() && !own.labels.is_empty();
    let (Some(namespace), Some(pod), false) = (&own.namespace, &own.pod, is_complete) else { return None };
    let known = cluster.is_on().then(|| cluster.workload_of(namespace, pod)).flatten()?;
    let mut workload = Workload::clone(own);
    workload.name = workload.name.or_else(|| known.name.clone());
    workload.service_account = workload.service_account.or_else(|| known.service_account.clone());
    workload.node = workload.node.or_else(|| known.node.clone());
    if workload.labels.is_empty() {
        workload.labels.clone_from(&known.labels);
    }
    Some(Arc::new(workload))
}
