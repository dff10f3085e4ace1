//! Who called, at the destination leg.
//!
//! The kernel's series are told apart by caller: what the sidecar wrote about the client's certificate, or the address
//! of a TCP connection's peer. The certificate has the client's service account, not its pod. The pod is one of that
//! account that was connected at the time ([`connections`]), and narrowed down by every further request of that
//! certificate ([`bindings`]). Labels on which all pods that remain agree are certain; the others stay unknown.

mod bindings;
mod certificate;
mod connections;
mod pods;
mod reason;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::SystemTime,
};

use observer_common::{CallerId, CallerKind, Protocol, Security, SeriesKey};

use self::{
    bindings::Bindings,
    connections::{Candidate, Connections},
    pods::{Pod, Pods},
};
pub use self::{
    certificate::{Certificate, SpiffeId},
    reason::Reason,
};
use crate::{
    identity::{Sidecar, SidecarId},
    kubernetes::Cluster,
    labels::{Peer, UNKNOWN},
    reading::{CallerReading, CallersReading},
    workload_index::{StaticPeers, WorkloadIndex},
};

/// Maximum number of callers that are remembered after the kernel has forgotten their text: sockets still hold their ids.
const MAX_FORMER: usize = 4_096;

/// What is known of callers.
#[derive(Debug)]
pub(crate) struct Callers {
    is_on: bool,
    pods: Pods,
    own: HashMap<SidecarId, Option<Identity>>,
    known: HashMap<CallerId, Caller>,
    connections: Connections,
    bindings: Bindings,
    incomplete: HashSet<SidecarId>,
    /// Sidecars that were seen to write the header.
    writers: HashSet<SidecarId>,
    /// Sources by what they depend on, in this reading.
    resolved: HashMap<Question, Source>,
    unresolved: BTreeMap<Reason, u64>,
    now: SystemTime,
}

/// A sidecar's own identity.
#[derive(Debug)]
struct Identity {
    namespace: String,
    account: String,
    trust_domain: Option<String>,
}

#[derive(Debug)]
enum Caller {
    Certificate(Certificate),
    Address(IpAddr),
    Unreadable,
}

/// What a source depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Question {
    sidecar: SidecarId,
    caller: CallerId,
    port: u16,
    security: Security,
    is_tcp: bool,
    rounds: u64,
}

/// The source of the requests of one series that were counted since the last round.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) labels: Arc<Peer>,
    /// Whether its principal is known.
    pub(crate) is_authenticated: bool,
    /// Whether the sidecar verified a certificate for every one of these requests.
    pub(crate) has_certificate: bool,
    pub(crate) unresolved: Option<Reason>,
    /// Whether only answers of the API are missing.
    pub(crate) is_pending: bool,
}

/// The pods that can have sent something, and why there may be others.
#[derive(Default)]
struct Candidates {
    pods: Vec<Arc<Pod>>,
    obstacle: Option<Reason>,
    /// Whether nothing is missing but whose addresses some are, which the API is asked.
    is_pending: bool,
}

impl Callers {
    pub(crate) fn new(now: SystemTime) -> Self {
        Self {
            is_on: true,
            pods: Pods::default(),
            own: HashMap::new(),
            known: HashMap::new(),
            connections: Connections::default(),
            bindings: Bindings::default(),
            incomplete: HashSet::new(),
            writers: HashSet::new(),
            resolved: HashMap::new(),
            unresolved: Reason::ALL.iter().map(|&reason| (reason, 0)).collect(),
            now,
        }
    }

    /// Leaves every source unknown.
    pub(crate) fn turn_off(&mut self) {
        self.is_on = false;
    }

    /// Takes over changed sidecars and peers.
    pub(crate) fn set_pods(&mut self, running: &[Arc<Sidecar>], ended: &[Arc<Sidecar>], peers: &StaticPeers) {
        self.pods.set_known(running, peers);
        self.own = ended.iter().chain(running).map(|sidecar| (sidecar.id, Identity::of(sidecar))).collect();
        self.writers.retain(|sidecar| self.own.contains_key(sidecar));
    }

    /// Begins a round.
    pub(crate) fn begin(&mut self, now: SystemTime, previous: SystemTime) {
        self.now = now;
        self.resolved.clear();
        self.connections.begin(now, previous);
        self.bindings.prune(now);
    }

    /// Ingests what was read after the series that are passed next.
    pub(crate) fn ingest(&mut self, reading: &CallersReading, index: &WorkloadIndex, cluster: &mut Cluster) {
        let CallersReading { callers, peers, removed, incomplete, freed: _ } = reading;
        if !callers.is_empty() {
            self.ingest_callers(callers);
        }
        self.incomplete = incomplete.iter().copied().collect();
        self.resolved.clear();
        let addresses = peers.iter().map(|peer| Ipv6Addr::from(peer.key.address).to_canonical());
        let callers = self.known.values().filter_map(|caller| match caller {
            Caller::Address(address) => Some(*address),
            _ => None,
        });
        self.pods.ask(index, cluster, addresses.chain(callers));
        self.connections.ingest(peers, removed, &self.pods);
    }

    fn ingest_callers(&mut self, callers: &[CallerReading]) {
        let present: HashSet<CallerId> = callers.iter().map(|caller| caller.id).collect();
        let mut former: Vec<CallerId> = self.known.keys().filter(|id| !present.contains(id)).copied().collect();
        if former.len() > MAX_FORMER {
            former.sort_unstable();
            former[..former.len() - MAX_FORMER].iter().for_each(|id| drop(self.known.remove(id)));
        }
        for caller in callers {
            self.known.entry(caller.id).or_insert_with(|| Caller::new(caller));
        }
    }

    /// Ends a round in which the kernel was read.
    pub(crate) fn end(&mut self) {
        self.connections.end();
    }

    /// Returns the source of what a series of the destination leg counted in the last `rounds` rounds, this one included.
    pub(crate) fn source(&mut self, key: &SeriesKey, rounds: u64) -> Source {
        let question = Question {
            sidecar: key.sidecar,
            caller: key.caller,
            port: key.destination.port,
            security: key.security,
            is_tcp: key.protocol == Protocol::TCP,
            rounds,
        };
        if let Some(source) = self.resolved.get(&question) {
            return source.clone();
        }
        let source = self.resolve(&question);
        self.resolved.insert(question, source.clone());
        source
    }

    /// Whether callers are resolved at all.
    pub(crate) fn is_on(&self) -> bool {
        self.is_on
    }

    /// Counts requests, or TCP connections, whose caller's workload is unknown.
    pub(crate) fn count_unresolved(&mut self, reason: Reason, events: u64) {
        *self.unresolved.entry(reason).or_default() += events;
    }

    /// Returns how many requests and TCP connections have an unknown caller, by reason.
    pub(crate) fn unresolved(&self) -> impl Iterator<Item = (Reason, u64)> {
        self.unresolved.iter().filter(|_| self.is_on).map(|(&reason, &count)| (reason, count))
    }

    fn resolve(&mut self, question: &Question) -> Source {
        match self.known.get(&question.caller) {
            Some(Caller::Certificate(certificate)) if !question.is_tcp => {
                let certificate = certificate.clone();
                self.resolve_certificate(question, &certificate)
            }
            Some(Caller::Address(address)) => {
                let address = *address;
                self.resolve_address(question, address)
            }
            None if matches!(question.caller, CallerId::NONE | CallerId::MISSED) => self.resolve_without(question),
            _ => {
                // The kernel saw a header that it could not keep, or its text is forgotten.
                let has_certificate = !question.is_tcp && question.caller == CallerId::UNREADABLE;
                Source { has_certificate, ..Source::unknown(Reason::Unreadable) }
            }
        }
    }

    fn resolve_certificate(&mut self, question: &Question, certificate: &Certificate) -> Source {
        let own = self.own.get(&question.sidecar).and_then(Option::as_ref);
        if !own.is_none_or(|own| certificate.by.iter().any(|by| own.is(by))) {
            return Source::unknown(Reason::NotOwnCertificate);
        }
        self.writers.insert(question.sidecar);
        let id = SpiffeId::parse(&certificate.uri);
        let Candidates { pods, obstacle, is_pending } = self.candidates(question, |candidate| {
            let is_plain = candidate.security == Security::NONE;
            match candidate.pod {
                None => (!is_plain).then_some(Err(Reason::UnknownPeer)),
                Some(pod) if pod.is_relay => (!is_plain).then_some(Err(Reason::EastWestGateway)),
                Some(pod) => match id.map_or(Some(true), |id| pod.can_be(id)) {
                    Some(can_be) => can_be.then_some(Ok(pod)),
                    None => (!is_plain).then_some(Err(Reason::UnknownAccount)),
                },
            }
        });
        let (remaining, reason) = match obstacle {
            Some(reason) => (self.bindings.get(&certificate.hash).unwrap_or_default().to_vec(), reason),
            None => {
                let remaining = self.bindings.narrow(&certificate.hash, pods, self.now);
                let reason = if remaining.is_empty() { Reason::NoCandidate } else { Reason::SharedServiceAccount };
                (remaining, reason)
            }
        };
        let mut labels = agreed(&remaining);
        if let Some(id) = id {
            labels.namespace = id.namespace.into();
        }
        labels.principal = if certificate.uri.is_empty() { UNKNOWN.into() } else { certificate.uri.clone() };
        let is_authenticated = !certificate.uri.is_empty();
        Source { is_authenticated, has_certificate: true, ..Source::new(labels, reason, is_pending) }
    }

    /// Resolves a TCP connection whose peer's address is known.
    fn resolve_address(&self, question: &Question, address: IpAddr) -> Source {
        let mut candidates = Candidates::default();
        let mut tracked = self.connections.at_address(question.sidecar, address, question.rounds).peekable();
        let is_tracked = tracked.peek().is_some();
        tracked.for_each(|candidate| candidates.add(&candidate, by_address(&candidate)));
        if !is_tracked {
            match self.pods.get(address) {
                Some(pod) => candidates.pods.push(pod.clone()),
                None => candidates.miss(Reason::UnknownPeer, self.pods.is_pending(address)),
            }
        }
        self.by_peers(question, candidates)
    }

    /// Resolves what has no caller: a request without the header, or a TCP connection whose peer is one of several.
    fn resolve_without(&self, question: &Question) -> Source {
        // Where the sidecar writes the header, a request without it came from a client without a certificate.
        let is_plain = !question.is_tcp
            && question.security != Security::MUTUAL_TLS
            && self.writers.contains(&question.sidecar)
            && question.caller == CallerId::NONE;
        let candidates = self.candidates(question, |candidate| {
            let is_of_port = candidate.port == question.port || candidate.port == 0;
            let is_possible = is_of_port && !(is_plain && candidate.security == Security::MUTUAL_TLS);
            if is_possible { by_address(candidate) } else { None }
        });
        self.by_peers(question, candidates)
    }

    /// Returns the source if one of these pods sent it; the identity of mutual TLS is derived from their service account.
    fn by_peers(&self, question: &Question, candidates: Candidates) -> Source {
        let Candidates { pods, obstacle, is_pending } = candidates;
        if let Some(reason) = obstacle {
            return Source { is_pending, ..Source::unknown(reason) };
        }
        let mut labels = agreed(&pods);
        let domain =
            self.own.get(&question.sidecar).and_then(Option::as_ref).and_then(|own| own.trust_domain.as_deref());
        let mut principals = pods.iter().map(|pod| pod.principal(domain));
        let first = principals.next().flatten().filter(|_| question.security == Security::MUTUAL_TLS);
        let principal = first.filter(|first| principals.all(|other| other.as_ref() == Some(first)));
        let is_authenticated = principal.is_some();
        labels.principal = principal.map_or_else(|| UNKNOWN.into(), Into::into);
        let reason = if pods.is_empty() { Reason::NoCandidate } else { Reason::SeveralPeers };
        Source { is_authenticated, ..Source::new(labels, reason, is_pending) }
    }

    /// Collects the candidates that `select` accepts; its error is why there may be others.
    fn candidates<'a>(
        &'a self,
        question: &Question,
        select: impl Fn(&Candidate<'a>) -> Option<Result<&'a Arc<Pod>, Reason>>,
    ) -> Candidates {
        let mut candidates = Candidates::default();
        for candidate in self.connections.candidates(question.sidecar, question.rounds) {
            candidates.add(&candidate, select(&candidate));
        }
        if self.incomplete.contains(&question.sidecar) {
            candidates.obstacle = Some(Reason::Incomplete);
            candidates.is_pending = false;
        }
        candidates
    }
}

impl Candidates {
    fn add(&mut self, candidate: &Candidate<'_>, selected: Option<Result<&Arc<Pod>, Reason>>) {
        match selected {
            Some(Ok(pod)) if self.pods.iter().all(|known| known.id != pod.id) => self.pods.push(pod.clone()),
            Some(Err(reason)) => self.miss(reason, reason == Reason::UnknownPeer && candidate.is_pending),
            _ => {}
        }
    }

    /// Records why there may be others, and whether that is pending.
    fn miss(&mut self, reason: Reason, is_pending: bool) {
        self.is_pending = is_pending && (self.obstacle.is_none() || self.is_pending);
        self.obstacle = self.obstacle.max(Some(reason));
    }
}

/// Selects a candidate that needs no certificate.
fn by_address<'a>(candidate: &Candidate<'a>) -> Option<Result<&'a Arc<Pod>, Reason>> {
    Some(match candidate.pod {
        None => Err(Reason::UnknownPeer),
        Some(pod) if pod.is_relay && candidate.security != Security::NONE => Err(Reason::EastWestGateway),
        Some(pod) => Ok(pod),
    })
}

/// Returns the labels on which all of these pods agree.
fn agreed(pods: &[Arc<Pod>]) -> Peer {
    let Some((first, others)) = pods.split_first() else { return Peer::unknown() };
    let mut labels = first.labels.clone();
    others.iter().for_each(|pod| labels.keep_common(&pod.labels));
    labels
}

impl Source {
    /// Returns a source with these labels; `reason` is why its workload is unknown, if it is.
    fn new(labels: Peer, reason: Reason, is_pending: bool) -> Self {
        let unresolved = (*labels.workload == *UNKNOWN).then_some(reason);
        let is_pending = is_pending && unresolved.is_some();
        Self { labels: Arc::new(labels), is_authenticated: false, has_certificate: false, unresolved, is_pending }
    }

    fn unknown(reason: Reason) -> Self {
        Self::new(Peer::unknown(), reason, false)
    }
}

impl Identity {
    fn of(sidecar: &Sidecar) -> Option<Self> {
        let workload = &sidecar.workload;
        Some(Self {
            namespace: workload.namespace.clone()?,
            account: workload.service_account.clone()?,
            trust_domain: workload.trust_domain.clone(),
        })
    }

    fn is(&self, uri: &str) -> bool {
        SpiffeId::parse(uri).is_some_and(|id| {
            let is_domain = self.trust_domain.as_deref().is_none_or(|own| own == id.trust_domain);
            is_domain && self.namespace == id.namespace && self.account == id.account
        })
    }
}

impl Caller {
    fn new(reading: &CallerReading) -> Self {
        match reading.kind {
            CallerKind::CERTIFICATE => Certificate::parse(&reading.text).map(Self::Certificate),
            CallerKind::ADDRESS => {
                <[u8; 16]>::try_from(&*reading.text).ok().map(|it| Self::Address(Ipv6Addr::from(it).to_canonical()))
            }
            _ => None,
        }
        .unwrap_or(Self::Unreadable)
    }
}
