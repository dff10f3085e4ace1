//! Random histories of pods, connections and requests: a named caller is never another.
//!
//! The status of every request is the number of the workload that sent it, so that the exposed labels show the truth.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use observer_common::{CallerId, CallerKind, InboundPeerKey, Leg, Protocol, Security, SeriesKey, histogram::BUCKETS};
use proptest::prelude::*;

use super::{Reason, pods::Pods};
use crate::{
    Inputs, Model, SelfMetrics, Snapshot,
    fixture::{at, key, reading, sidecar},
    identity::{Role, Sidecar, Workload},
    kubernetes::{Change, Cluster, PodQuery, Resource},
    labels::HTTP,
    reading::{CallerReading, CallersReading, InboundPeerReading, SeriesReading},
    workload_index::{StaticPeers, WorkloadEntry, WorkloadIndex},
};

/// Workloads, each with its service account: two share one, a third has the same in another namespace.
const WORKLOADS: [(&str, &str, &str); 5] = [
    ("web", "shop", "default"),
    ("batch", "shop", "default"),
    ("api", "shop", "api"),
    ("web", "other", "default"),
    ("edge", "mesh", "edge"),
];
/// Index of the workload that also passes on connections of others.
const RELAY: usize = 4;
const PORTS: [u16; 2] = [8080, 9090];
const TCP_PORT: u16 = 5432;

#[derive(Clone, Copy, Debug)]
enum Op {
    Start(usize),
    Learn(usize),
    End(usize),
    Renew(usize),
    Open { pod: usize, sidecar: u32, port: usize, is_plain: bool },
    Close(usize),
    Request { connection: usize, is_long: bool },
    Tcp { connection: usize, is_paired: bool },
    Forge { connection: usize },
    Round(u64),
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    let index = || 0usize..64;
    prop_oneof![
        3 => (0..WORKLOADS.len()).prop_map(Op::Start),
        4 => index().prop_map(Op::Learn),
        1 => index().prop_map(Op::End),
        1 => index().prop_map(Op::Renew),
        6 => (index(), 1u32..3, 0..PORTS.len(), prop::bool::weighted(0.2))
            .prop_map(|(pod, sidecar, port, is_plain)| Op::Open { pod, sidecar, port, is_plain }),
        3 => index().prop_map(Op::Close),
        12 => (index(), prop::bool::weighted(0.2)).prop_map(|(connection, is_long)| Op::Request { connection, is_long }),
        3 => (index(), any::<bool>()).prop_map(|(connection, is_paired)| Op::Tcp { connection, is_paired }),
        1 => index().prop_map(|connection| Op::Forge { connection }),
        6 => prop_oneof![Just(1), Just(10), Just(60)].prop_map(Op::Round),
        1 => Just(Op::Restart),
    ]
}

#[derive(Clone, Debug)]
struct TruePod {
    workload: usize,
    name: String,
    address: Ipv4Addr,
    certificate: usize,
    is_known: bool,
    is_running: bool,
    /// Known in the last round, and without new connections since then.
    is_settled: bool,
}

#[derive(Clone, Copy, Debug)]
struct Connection {
    pod: usize,
    sidecar: u32,
    port: u16,
    /// Certificate that was current when it was opened.
    certificate: Option<usize>,
    long_requests: usize,
}

/// From when on an address is given out again.
#[derive(Clone, Copy, Debug, Default)]
struct Reuse {
    rounds: u64,
    seconds: u64,
}

/// Longer than a series waits for whose an address is, and than its last requests are late.
const REUSE_SECONDS: u64 = 16;

struct World {
    model: Model,
    sidecars: Vec<Arc<Sidecar>>,
    pods: Vec<TruePod>,
    connections: Vec<Connection>,
    certificates: usize,
    /// Connections opened and closed, and when the last one was closed.
    peers: BTreeMap<InboundPeerKey, [u64; 3]>,
    callers: Vec<CallerReading>,
    series: BTreeMap<SeriesKey, u64>,
    /// Requests whose connection has ended and that are counted next, and whose connections those were.
    late: Vec<(InboundPeerKey, SeriesKey)>,
    /// Addresses that may be given out again, and from when on.
    free: Vec<(Ipv4Addr, Reuse)>,
    rounds: u64,
    next_address: u8,
    seconds: u64,
    static_peers: Arc<StaticPeers>,
    exposed: HashMap<Vec<String>, u64>,
    incomplete: Vec<u32>,
    freed: Vec<SeriesKey>,
    removed: Vec<InboundPeerKey>,
}

impl World {
    fn new() -> Self {
        let destination = |id: u32| {
            let workload = Workload {
                name: Some(format!("catalog-{id}")),
                namespace: Some("shop".to_owned()),
                service_account: Some("catalog".to_owned()),
                trust_domain: Some("cluster.local".to_owned()),
                ..Workload::default()
            };
            sidecar(id, Role::Sidecar, &format!("10.1.0.{id}"), Arc::new(workload))
        };
        Self {
            model: Model::new(at(0), Duration::from_hours(24)),
            sidecars: vec![destination(1), destination(2)],
            pods: Vec::new(),
            connections: Vec::new(),
            certificates: 0,
            peers: BTreeMap::new(),
            callers: Vec::new(),
            series: BTreeMap::new(),
            late: Vec::new(),
            free: Vec::new(),
            rounds: 0,
            next_address: 0,
            seconds: 0,
            static_peers: Arc::default(),
            exposed: HashMap::new(),
            incomplete: Vec::new(),
            freed: Vec::new(),
            removed: Vec::new(),
        }
    }

    /// Lets unknown addresses be asked of a cluster.
    fn with_cluster(mut self) -> Self {
        self.turn_cluster_on();
        self
    }

    fn turn_cluster_on(&mut self) {
        self.model.turn_cluster_on();
        for resource in Resource::WATCHED {
            self.model.cluster_mut().apply(Change::ListBegan(resource), at(0));
            self.model.cluster_mut().apply(Change::ListEnded(resource), at(0));
        }
    }

    fn apply(&mut self, op: Op) {
        let late = std::mem::take(&mut self.late);
        if let Op::Round(seconds) = op {
            // A request ends with its connection: if only one of the two was before the reading, both were close to it.
            late.iter().for_each(|(peer, _)| self.peers.get_mut(peer).unwrap()[2] = self.seconds + seconds);
            self.round(seconds);
        }
        late.into_iter().for_each(|(_, key)| self.count(key));
        match op {
            Op::Start(workload) => self.start(workload),
            Op::Learn(pod) => self.with_pod(pod, |world, pod| world.pods[pod].is_known = true),
            Op::End(pod) => self.with_pod(pod, Self::end),
            Op::Renew(pod) => self.with_pod(pod, |world, pod| {
                world.certificates += 1;
                world.pods[pod].certificate = world.certificates;
            }),
            Op::Open { pod, sidecar, port, is_plain } => {
                self.with_pod(pod, |world, pod| world.open(pod, sidecar, PORTS[port], is_plain));
            }
            Op::Close(connection) => self.with_connection(connection, Self::close),
            Op::Request { connection, is_long } => self.with_connection(connection, |world, connection| {
                if is_long {
                    world.connections[connection].long_requests += 1;
                } else {
                    let key = world.request(&world.connections[connection].clone());
                    world.count(key);
                }
            }),
            Op::Tcp { connection, is_paired } => self.with_connection(connection, |world, connection| {
                let Connection { pod, sidecar, .. } = world.connections[connection];
                world.open(pod, sidecar, TCP_PORT, false);
                let address = world.pods[pod].address.to_ipv6_mapped().octets();
                let caller = if is_paired { world.caller(CallerKind::ADDRESS, &address) } else { CallerId::NONE };
                let key = SeriesKey { caller, ..key(sidecar, Leg::DESTINATION, "127.0.0.1:5432", Protocol::TCP, 0) };
                world.count(SeriesKey { security: Security::MUTUAL_TLS, ..key });
            }),
            Op::Forge { connection } => self.with_connection(connection, |world, connection| {
                let connection = world.connections[connection];
                let caller = world.caller(
                    CallerKind::CERTIFICATE,
                    b"By=spiffe://x;Hash=00;URI=spiffe://cluster.local/ns/shop/sa/api",
                );
                let key = SeriesKey { caller, ..world.request(&connection) };
                world.count(key);
            }),
            Op::Restart => self.restart(),
            Op::Round(_) => {}
        }
    }

    /// Lets the next observer continue. It does not know whose addresses were.
    fn restart(&mut self) {
        let state = serde_json::to_string(&self.model.persist()).unwrap();
        let state = serde_json::from_str(&state).unwrap();
        let is_on = self.model.cluster().is_on();
        self.model = Model::restore(at(self.seconds), Duration::from_hours(24), state).unwrap();
        if is_on {
            self.turn_cluster_on();
        }
        self.pods.iter_mut().for_each(|pod| pod.is_settled = false);
        let (rounds, seconds) = (self.rounds, self.seconds);
        self.free
            .iter_mut()
            .for_each(|(_, from)| *from = Reuse { rounds: rounds + 3, seconds: seconds + REUSE_SECONDS });
    }

    fn with_pod(&mut self, index: usize, then: impl FnOnce(&mut Self, usize)) {
        let running: Vec<usize> = (0..self.pods.len()).filter(|&pod| self.pods[pod].is_running).collect();
        if let Some(&pod) = running.get(index % running.len().max(1)) {
            then(self, pod);
        }
    }

    fn with_connection(&mut self, index: usize, then: impl FnOnce(&mut Self, usize)) {
        if !self.connections.is_empty() {
            then(self, index % self.connections.len());
        }
    }

    fn start(&mut self, workload: usize) {
        let is_free = |from: &Reuse| from.rounds <= self.rounds && from.seconds <= self.seconds;
        let free = self.free.iter().position(|(_, from)| is_free(from));
        let address = free.map(|at| self.free.swap_remove(at).0).unwrap_or_else(|| {
            self.next_address += 1;
            Ipv4Addr::new(10, 0, 0, self.next_address)
        });
        self.certificates += 1;
        let name = format!("pod-{}", self.pods.len());
        let certificate = self.certificates;
        self.pods.push(TruePod {
            workload,
            name,
            address,
            certificate,
            is_known: false,
            is_running: true,
            is_settled: false,
        });
    }

    fn end(&mut self, pod: usize) {
        while let Some(connection) = self.connections.iter().position(|connection| connection.pod == pod) {
            self.close(connection);
        }
        self.pods[pod].is_running = false;
        let TruePod { address, is_settled, .. } = self.pods[pod];
        // No network gives out an address again within seconds; here it waits only if nobody can know whose it was.
        let later = Reuse { rounds: self.rounds + 3, seconds: self.seconds + REUSE_SECONDS };
        self.free.push((address, if is_settled { Reuse::default() } else { later }));
    }

    fn open(&mut self, pod: usize, sidecar: u32, port: u16, is_plain: bool) {
        let certificate = (!is_plain).then_some(self.pods[pod].certificate);
        let connection = Connection { pod, sidecar, port, certificate, long_requests: 0 };
        self.peers.entry(self.peer(&connection)).or_default()[0] += 1;
        self.pods[pod].is_settled = false;
        self.connections.push(connection);
    }

    fn close(&mut self, index: usize) {
        let connection = self.connections.swap_remove(index);
        let (peer, seconds) = (self.peer(&connection), self.seconds);
        let [_, closed, at] = self.peers.get_mut(&peer).unwrap();
        (*closed, *at) = (*closed + 1, seconds);
        let key = self.request(&connection);
        self.late.extend(std::iter::repeat_n((peer, key), connection.long_requests));
    }

    fn peer(&self, connection: &Connection) -> InboundPeerKey {
        InboundPeerKey {
            sidecar: connection.sidecar,
            port: connection.port,
            security: if connection.certificate.is_some() { Security::MUTUAL_TLS } else { Security::NONE },
            padding: 0,
            address: self.pods[connection.pod].address.to_ipv6_mapped().octets(),
        }
    }

    fn request(&mut self, connection: &Connection) -> SeriesKey {
        let workload = self.pods[connection.pod].workload;
        // What the relay passes on has somebody else's certificate: that of the workload which shares an account.
        let sender = if workload == RELAY { 1 } else { workload };
        let destination = format!("127.0.0.1:{}", connection.port);
        let mut key = key(connection.sidecar, Leg::DESTINATION, &destination, Protocol::HTTP, 200 + sender as u16);
        if let Some(certificate) = connection.certificate {
            let uri = principal(sender);
            let text =
                format!("By=spiffe://cluster.local/ns/shop/sa/catalog;Hash={certificate:x};Subject=\"\";URI={uri}");
            key.caller = self.caller(CallerKind::CERTIFICATE, text.as_bytes());
        } else if workload == RELAY {
            // In plaintext it sends its own requests only.
            key.status = 200 + RELAY as u16;
        }
        key
    }

    fn caller(&mut self, kind: CallerKind, text: &[u8]) -> CallerId {
        if let Some(known) = self.callers.iter().find(|caller| *caller.text == *text && caller.kind == kind) {
            return known.id;
        }
        let id = CallerId(self.callers.len() as u16 + 1);
        self.callers.push(CallerReading { id, kind, text: text.into() });
        id
    }

    fn count(&mut self, key: SeriesKey) {
        *self.series.entry(key).or_default() += 1;
    }

    fn round(&mut self, seconds: u64) -> Arc<Snapshot> {
        self.seconds += seconds;
        self.rounds += 1;
        self.pods.iter_mut().for_each(|pod| pod.is_settled = pod.is_known);
        let known = self.pods.iter().filter(|pod| pod.is_known && pod.is_running);
        let workloads = known.map(|pod| {
            let (name, namespace, account) = WORKLOADS[pod.workload];
            let labels = (pod.workload == RELAY).then(|| ("istio".to_owned(), "eastwestgateway".to_owned()));
            let workload = Workload {
                pod: Some(pod.name.clone()),
                name: Some(name.to_owned()),
                namespace: Some(namespace.to_owned()),
                service_account: Some(account.to_owned()),
                labels: labels.into_iter().collect(),
                ..Workload::default()
            };
            WorkloadEntry { addresses: vec![pod.address.into()], workload: Arc::new(workload) }
        });
        self.static_peers = Arc::new(StaticPeers { services: Vec::new(), workloads: workloads.collect() });
        let mut reading = reading(self.seconds, self.series.iter().map(|(key, count)| series(*key, *count)).collect());
        let peers = self.peers.iter().map(|(&key, &[opened, closed, at])| {
            let closed_for = Duration::from_secs(self.seconds - at);
            InboundPeerReading { key, opened, closed, closed_for }
        });
        reading.kernel.as_mut().unwrap().callers = CallersReading {
            callers: self.callers.clone(),
            peers: peers.collect(),
            removed: std::mem::take(&mut self.removed),
            freed: std::mem::take(&mut self.freed),
            incomplete: self.incomplete.clone(),
        };
        let snapshot = self.model.update(Inputs {
            reading: &reading,
            running: &self.sidecars,
            ended: &[],
            components: &[],
            peers: &self.static_peers,
            own: &SelfMetrics::default(),
            closes_interval: true,
        });
        self.check(&snapshot);
        snapshot
    }

    fn check(&mut self, snapshot: &Snapshot) {
        let mut exposed = HashMap::new();
        for series in &snapshot.http {
            let mut labels = BTreeMap::new();
            series.labels.each(&HTTP, |name, value| drop(labels.insert(name, value.to_owned())));
            let sender = labels["response_code"].parse::<usize>().unwrap() - 200;
            let (name, namespace, _) = WORKLOADS[sender];
            for (label, truth) in [
                ("source_workload", name.to_owned()),
                ("source_workload_namespace", namespace.to_owned()),
                ("source_principal", principal(sender)),
            ] {
                assert!(labels[label] == truth || labels[label] == "unknown", "{labels:?}");
            }
            assert!(exposed.insert(labels.into_values().collect(), series.totals.requests()).is_none());
        }
        for (labels, count) in &self.exposed {
            assert!(exposed.get(labels) >= Some(count), "decreased: {labels:?}");
        }
        self.exposed = exposed;
    }

    /// Ends with a round that waits for nothing, and compares the totals.
    fn finish(mut self) {
        let late = std::mem::take(&mut self.late);
        late.into_iter().for_each(|(_, key)| self.count(key));
        self.model.stop_waiting();
        let snapshot = self.round(1);
        let is_http = |key: &&SeriesKey| key.protocol == Protocol::HTTP;
        let sent: u64 = self.series.iter().filter(|(key, _)| is_http(key)).map(|(_, count)| count).sum();
        assert_eq!(snapshot.http.iter().map(|series| series.totals.requests()).sum::<u64>(), sent);
        let opened: u64 = self.series.iter().filter(|(key, _)| !is_http(key)).map(|(_, count)| count).sum();
        assert_eq!(snapshot.tcp.iter().map(|series| series.totals.opened).sum::<u64>(), opened);
    }
}

fn principal(workload: usize) -> String {
    let (_, namespace, account) = WORKLOADS[workload];
    format!("spiffe://cluster.local/ns/{namespace}/sa/{account}")
}

fn series(key: SeriesKey, count: u64) -> SeriesReading {
    let mut series = SeriesReading::empty(key);
    if key.protocol == Protocol::TCP {
        series.opened = count;
    } else {
        series.histograms.iter_mut().for_each(|histogram| histogram.buckets = [0; BUCKETS]);
        series.histograms.iter_mut().for_each(|histogram| histogram.buckets[0] = count);
    }
    series
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn a_named_caller_is_never_another_and_nothing_is_lost(ops in proptest::collection::vec(op(), 1..150)) {
        let mut world = World::new().with_cluster();
        ops.into_iter().for_each(|op| world.apply(op));
        world.finish();
    }
}

/// Sources of one round: workload, namespace, principal and policy by count.
fn sources(snapshot: &Snapshot) -> BTreeMap<[String; 4], u64> {
    let mut found = BTreeMap::new();
    let http = snapshot.http.iter().map(|series| (&series.labels, series.totals.requests()));
    let tcp = snapshot.tcp.iter().map(|series| (&series.labels, series.totals.opened));
    for (labels, count) in http.chain(tcp) {
        let mut values = BTreeMap::new();
        labels.each(&HTTP, |name, value| drop(values.insert(name, value.to_owned())));
        let wanted = ["source_workload", "source_workload_namespace", "source_principal", "connection_security_policy"];
        *found.entry(wanted.map(|name| values[name].clone())).or_default() += count;
    }
    found
}

fn expect(expected: &[(&str, &str, &str, &str, u64)]) -> BTreeMap<[String; 4], u64> {
    let row = |&(workload, namespace, account, policy, count): &(&str, &str, &str, &str, u64)| {
        let principal = match account {
            "unknown" => account.to_owned(),
            account => format!("spiffe://cluster.local/ns/{account}"),
        };
        ([workload.to_owned(), namespace.to_owned(), principal, policy.to_owned()], count)
    };
    expected.iter().map(row).collect()
}

fn unresolved(world: &World) -> Vec<(Reason, u64)> {
    world.model.callers_unresolved().into_iter().filter(|&(_, count)| count > 0).collect()
}

/// A world in which pods of these workloads run, each known.
fn world(workloads: &[usize]) -> World {
    let mut world = World::new();
    for (pod, &workload) in workloads.iter().enumerate() {
        world.start(workload);
        world.pods[pod].is_known = true;
    }
    world
}

impl World {
    fn connect(&mut self, pod: usize, is_plain: bool) -> usize {
        self.open(pod, 1, PORTS[0], is_plain);
        self.connections.len() - 1
    }

    fn send(&mut self, connection: usize) {
        let key = self.request(&self.connections[connection].clone());
        self.count(key);
    }
}

#[test]
fn a_certificate_names_the_only_workload_of_its_account() {
    let mut world = world(&[2, 2, 1]);
    for pod in [0, 1, 2] {
        let connection = world.connect(pod, false);
        world.send(connection);
    }
    let expected =
        [("api", "shop", "shop/sa/api", "mutual_tls", 2), ("batch", "shop", "shop/sa/default", "mutual_tls", 1)];
    assert_eq!(sources(&world.round(10)), expect(&expected));
    assert_eq!(unresolved(&world), []);
}

#[test]
fn pods_that_share_an_account_are_told_apart_once_one_of_them_was_alone() {
    let mut world = world(&[0, 1]);
    let (web, batch) = (world.connect(0, false), world.connect(1, false));
    world.send(web);
    world.send(batch);
    let shared = ("unknown", "shop", "shop/sa/default", "mutual_tls", 2);
    assert_eq!(sources(&world.round(10)), expect(&[shared]));
    assert_eq!(unresolved(&world), [(Reason::SharedServiceAccount, 2)]);
    world.close(web);
    // Its last requests may still be counted in the round of its end, and the one after.
    (0..2).for_each(|_| drop(world.round(10)));
    world.send(0);
    let batch = ("batch", "shop", "shop/sa/default", "mutual_tls", 1);
    assert_eq!(sources(&world.round(10)), expect(&[shared, batch]));
    // Its certificate is known from now on, and of the other's nothing but that it is not the same.
    let web = world.connect(0, false);
    world.send(web);
    world.send(0);
    let (batch, shared) =
        (("batch", "shop", "shop/sa/default", "mutual_tls", 2), (shared.0, shared.1, shared.2, shared.3, 3));
    assert_eq!(sources(&world.round(10)), expect(&[shared, batch]));
}

#[test]
fn a_header_of_somebody_else_names_nobody() {
    let mut world = world(&[2]);
    let connection = world.connect(0, true);
    world.apply(Op::Forge { connection });
    assert_eq!(sources(&world.round(10)), expect(&[("unknown", "unknown", "unknown", "unknown", 1)]));
    assert_eq!(unresolved(&world), [(Reason::NotOwnCertificate, 1)]);
}

#[test]
fn without_a_header_the_connected_peers_decide() {
    let mut world = world(&[2, 3]);
    let plain = world.connect(0, true);
    world.send(plain);
    let named = ("api", "shop", "unknown", "unknown", 1);
    assert_eq!(sources(&world.round(10)), expect(&[named]));
    // A second one with mutual TLS, before it is seen that the sidecar writes the header.
    let secure = world.connect(1, false);
    world.send(plain);
    let several = ("unknown", "unknown", "unknown", "unknown", 1);
    assert_eq!(sources(&world.round(10)), expect(&[named, several]));
    assert_eq!(unresolved(&world), [(Reason::SeveralPeers, 1)]);
    // And after.
    world.send(secure);
    world.round(10);
    world.send(plain);
    let found = sources(&world.round(10));
    let other = ("web", "other", "other/sa/default", "mutual_tls", 1);
    assert_eq!(found, expect(&[("api", "shop", "unknown", "unknown", 2), several, other]));
}

#[test]
fn an_unknown_peer_leaves_a_workload_unknown() {
    let mut world = world(&[2, 2]);
    world.pods[1].is_known = false;
    let known = world.connect(0, false);
    world.connect(1, false);
    world.send(known);
    let unknown = ("unknown", "shop", "shop/sa/api", "mutual_tls", 1);
    assert_eq!(sources(&world.round(10)), expect(&[unknown]));
    assert_eq!(unresolved(&world), [(Reason::UnknownPeer, 1)]);
    world.pods[1].is_known = true;
    world.send(known);
    assert_eq!(sources(&world.round(10)), expect(&[unknown, ("api", "shop", "shop/sa/api", "mutual_tls", 1)]));
}

#[test]
fn an_unknown_address_is_asked_of_the_cluster() {
    let (mut pods, mut cluster) = (Pods::default(), Cluster::default());
    let (known, unknown) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
    let workload = Arc::new(Workload { name: Some("web".to_owned()), ..Workload::default() });
    let workloads = vec![WorkloadEntry { addresses: vec![known], workload }];
    let peers = StaticPeers { workloads, ..StaticPeers::default() };
    pods.set_known(&[], &peers);
    let index = WorkloadIndex::new([].iter(), &peers, &mut cluster);
    pods.ask(&index, &mut cluster, [known, unknown].into_iter());
    assert_eq!(cluster.take_wanted(at(1)), [], "it is off");
    cluster.turn_on();
    pods.ask(&index, &mut cluster, [known, unknown].into_iter());
    assert_eq!(cluster.take_wanted(at(2)), [PodQuery::Address(unknown)]);
    assert!(pods.get(known).is_some() && pods.get(unknown).is_none());
}

#[test]
fn a_caller_is_awaited_until_the_answer_and_not_for_ever() {
    // The pod becomes known; the answer is that there is none; there is no answer for the longest time.
    for (is_known, is_answered, seconds, workload) in
        [(true, false, 1, "api"), (false, true, 1, "unknown"), (false, false, 10, "unknown")]
    {
        let mut world = world(&[2]).with_cluster();
        world.pods[0].is_known = false;
        let connection = world.connect(0, false);
        for _ in 0..3 {
            world.send(connection);
            assert_eq!(sources(&world.round(1)), expect(&[]));
        }
        world.pods[0].is_known = is_known;
        if is_answered {
            let query = PodQuery::Address(world.pods[0].address.into());
            world.model.cluster_mut().apply(Change::Pods(query, Vec::new()), at(world.seconds));
        }
        world.send(connection);
        assert_eq!(sources(&world.round(seconds)), expect(&[(workload, "shop", "shop/sa/api", "mutual_tls", 4)]));
        // One that has waited in vain waits no more.
        world.send(connection);
        assert_eq!(sources(&world.round(1)), expect(&[(workload, "shop", "shop/sa/api", "mutual_tls", 5)]));
    }
}

/// The pod of the first request is gone when it becomes known whose the last one's address is.
#[test]
fn all_who_were_connected_while_a_series_waited_are_candidates() {
    let mut world = world(&[0, 1]).with_cluster();
    world.pods[1].is_known = false;
    world.connect(1, false);
    let web = world.connect(0, false);
    world.send(web);
    assert_eq!(sources(&world.round(1)), expect(&[]));
    world.close(web);
    (0..7).for_each(|_| assert_eq!(sources(&world.round(1)), expect(&[])));
    world.pods[1].is_known = true;
    assert_eq!(sources(&world.round(1)), expect(&[("unknown", "shop", "shop/sa/default", "mutual_tls", 1)]));
    assert_eq!(unresolved(&world), [(Reason::SharedServiceAccount, 1)]);
}

#[test]
fn what_waits_is_in_the_state_of_the_next_observer() {
    let mut world = world(&[2]).with_cluster();
    let connection = world.connect(0, false);
    world.send(connection);
    world.round(10);
    world.start(2);
    let connection = world.connect(1, false);
    world.send(connection);
    assert_eq!(sources(&world.round(10)).values().sum::<u64>(), 1);
    world.restart();
    world.model.stop_waiting();
    assert_eq!(sources(&world.round(10)).values().sum::<u64>(), 2);
}

#[test]
fn what_an_observer_exposed_after_its_last_state_stays_under_its_labels() {
    let mut world = world(&[2]);
    let connection = world.connect(0, false);
    world.send(connection);
    let named = |requests| expect(&[("api", "shop", "shop/sa/api", "mutual_tls", requests)]);
    assert_eq!(sources(&world.round(10)), named(1));
    let state = serde_json::to_string(&world.model.persist()).unwrap();
    world.send(connection);
    assert_eq!(sources(&world.round(10)), named(2));
    // The next one knows nobody at first.
    let state = serde_json::from_str(&state).unwrap();
    world.model = Model::restore(at(world.seconds), Duration::from_hours(24), state).unwrap();
    world.pods[0].is_known = false;
    assert_eq!(sources(&world.round(10)), named(2));
    world.send(connection);
    let later = ("unknown", "shop", "shop/sa/api", "mutual_tls", 1);
    assert_eq!(sources(&world.round(10)), expect(&[("api", "shop", "shop/sa/api", "mutual_tls", 2), later]));
}

/// The kernel's map still has peers of earlier times, whose addresses may be nobody's by now.
#[test]
fn who_had_left_before_a_restart_is_no_candidate_after_it() {
    for (seconds, workload) in [(1, "unknown"), (60, "api")] {
        let mut world = world(&[2, 2]);
        let gone = world.connect(0, false);
        world.round(10);
        world.close(gone);
        world.pods[0].is_known = false;
        let stays = world.connect(1, false);
        world.round(1);
        world.round(seconds);
        world.restart();
        world.send(stays);
        assert_eq!(sources(&world.round(1)), expect(&[(workload, "shop", "shop/sa/api", "mutual_tls", 1)]));
    }
}

#[test]
fn a_tcp_connection_is_of_its_peer_and_its_identity_of_the_pods_account() {
    for (is_paired, workload) in [(true, "api"), (false, "unknown")] {
        let mut world = world(&[2, 3]);
        world.open(1, 1, TCP_PORT, false);
        let connection = world.connect(0, false);
        world.apply(Op::Tcp { connection, is_paired });
        let known = if is_paired { ("shop", "shop/sa/api") } else { ("unknown", "unknown") };
        let expected = [(workload, known.0, known.1, "mutual_tls", 1)];
        assert_eq!(sources(&world.round(10)), expect(&expected));
    }
}

#[test]
fn nothing_is_named_of_incomplete_connections_or_if_turned_off() {
    let mut world = world(&[2]);
    world.incomplete = vec![1];
    let connection = world.connect(0, false);
    world.send(connection);
    assert_eq!(sources(&world.round(10)), expect(&[("unknown", "shop", "shop/sa/api", "mutual_tls", 1)]));
    assert_eq!(unresolved(&world), [(Reason::Incomplete, 1)]);
    let mut world = self::world(&[2]);
    world.model.turn_callers_off();
    let connection = world.connect(0, false);
    world.send(connection);
    assert_eq!(sources(&world.round(10)), expect(&[("unknown", "unknown", "unknown", "unknown", 1)]));
    assert_eq!(unresolved(&world), []);
}

#[test]
fn what_was_freed_and_what_was_removed_count_from_zero() {
    let mut world = world(&[2]);
    let connection = world.connect(0, false);
    world.send(connection);
    world.round(10);
    world.close(connection);
    (0..3).for_each(|_| drop(world.round(10)));
    // It returns with as much as it had.
    let key = *world.series.keys().next().unwrap();
    let peer = *world.peers.keys().next().unwrap();
    (world.freed, world.removed) = (vec![key], vec![peer]);
    world.series.clear();
    world.peers.clear();
    let connection = world.connect(0, false);
    world.send(connection);
    assert_eq!(sources(&world.round(10)), expect(&[("api", "shop", "shop/sa/api", "mutual_tls", 2)]));
    assert_eq!(unresolved(&world), []);
}
