//! Services, endpoints and pods of a cluster resolve as Istio resolves them.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use observer_common::{CallerId, CallerKind, InboundPeerKey, Leg, Protocol, Security, SeriesKey};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    Change, Cluster, ObjectName, Pod, PodQuery, PortKey, PortProtocol, Rejection, Resource, Unresolved, Watched,
    object::{self, ListPage, WatchEvent},
};
use crate::{
    Inputs, Model, SelfMetrics, Snapshot,
    fixture::{at, http, key, reading, sidecar},
    identity::{Role, Sidecar, Workload},
    labels::HTTP,
    reading::{CallerReading, CallersReading, InboundPeerReading, SeriesReading},
    workload_index::StaticPeers,
};

const DOMAIN: &str = "cluster.local";

fn now() -> SystemTime {
    at(0)
}

fn decode<T: object::Object>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

fn service(name: &str, address: &str, ports: &Value) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"clusterIP": address, "clusterIPs": [address], "ports": ports},
        "status": {"loadBalancer": {}},
    })
}

/// A slice of a Service with ready pods `(name, address)`.
fn slice(service: &str, port: (&str, u16), pods: &[(&str, &str)]) -> Value {
    let endpoints: Vec<Value> = pods.iter().map(|(pod, address)| endpoint(pod, address)).collect();
    json!({
        "metadata": {
            "name": format!("{service}-abcde"), "namespace": "shop",
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4",
        "ports": [{"name": port.0, "port": port.1, "protocol": "TCP"}],
        "endpoints": endpoints,
    })
}

fn uid(pod: &str) -> String {
    let number = pod.bytes().fold(1_u64, |sum, byte| sum.wrapping_mul(31) + u64::from(byte));
    format!("00000000-0000-0000-0001-{:012x}", number & 0xffff_ffff_ffff)
}

fn endpoint(pod: &str, address: &str) -> Value {
    json!({
        "addresses": [address], "conditions": {"ready": true}, "nodeName": "n1",
        "targetRef": {"kind": "Pod", "namespace": "shop", "name": pod, "uid": uid(pod)},
    })
}

/// A pod of a Deployment: `NAME-HASH-RANDOM`.
fn pod(name: &str, address: &str, labels: &[(&str, &str)]) -> Value {
    let (set, _) = name.rsplit_once('-').unwrap();
    let (workload, hash) = set.rsplit_once('-').unwrap();
    let mut all = json!({"pod-template-hash": hash, "security.istio.io/tlsMode": "istio", "app": workload});
    for (label, value) in labels {
        all[label] = (*value).into();
    }
    json!({
        "metadata": {
            "name": name, "namespace": "shop", "uid": uid(name), "generateName": format!("{set}-"), "labels": all,
            "ownerReferences": [{"kind": "ReplicaSet", "name": set, "controller": true}],
        },
        "spec": {"serviceAccountName": workload, "nodeName": "n1"},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "hostIP": "10.1.0.1"},
    })
}

/// A model of a node with one sidecar, `client`, and the pods that the API would answer with.
struct Testbed {
    model: Model,
    running: Vec<Arc<Sidecar>>,
    seconds: u64,
    pods: Vec<Value>,
    asked: Vec<PodQuery>,
}

impl Testbed {
    fn new() -> Self {
        let workload = Workload {
            pod: Some("client-1-2bcdf".to_owned()),
            namespace: Some("shop".to_owned()),
            name: Some("client".to_owned()),
            cluster: Some("c1".to_owned()),
            service_account: Some("client".to_owned()),
            trust_domain: Some("mesh.example".to_owned()),
            labels: [("app".to_owned(), "client".to_owned())].into(),
            node: None,
        };
        let mut model = Model::new(at(0), Duration::from_mins(15));
        model.turn_cluster_on();
        let running = vec![sidecar(1, Role::Sidecar, "10.0.0.1", Arc::new(workload))];
        Self { model, running, seconds: 0, pods: Vec::new(), asked: Vec::new() }
    }

    fn synced(objects: &[Value]) -> Self {
        let mut testbed = Self::new();
        testbed.list(objects);
        testbed
    }

    /// Lists all resources anew: the objects tell by their fields what they are.
    fn list(&mut self, objects: &[Value]) {
        let cluster = self.model.cluster_mut();
        for resource in Resource::WATCHED {
            cluster.apply(Change::ListBegan(resource), now());
        }
        objects.iter().for_each(|object| cluster.apply(change(object), now()));
        for resource in Resource::WATCHED {
            cluster.apply(Change::ListEnded(resource), now());
        }
    }

    fn apply(&mut self, object: &Value) {
        self.model.cluster_mut().apply(change(object), now());
    }

    /// Answers what is wanted, as the API would.
    fn answer(&mut self) {
        let time = at(self.seconds);
        for query in self.model.cluster_mut().take_wanted(time) {
            let all = self.pods.iter().map(|pod| Pod::new(&decode(pod)).unwrap());
            let found = all.filter(|pod| match &query {
                PodQuery::Name(name) => pod.name() == name,
                PodQuery::Address(address) => pod.addresses.contains(address),
            });
            let found = found.collect();
            self.asked.push(query.clone());
            self.model.cluster_mut().apply(Change::Pods(query, found), time);
        }
    }

    fn round(&mut self, series: Vec<SeriesReading>) -> Arc<Snapshot> {
        self.round_with(series, CallersReading::default())
    }

    fn round_with(&mut self, series: Vec<SeriesReading>, callers: CallersReading) -> Arc<Snapshot> {
        self.seconds += 1;
        let mut reading = reading(self.seconds, series);
        reading.kernel.as_mut().unwrap().callers = callers;
        self.model.update(Inputs {
            reading: &reading,
            running: &self.running,
            ended: &[],
            components: &[],
            peers: &Arc::new(StaticPeers::default()),
            own: &SelfMetrics::default(),
            closes_interval: false,
        })
    }

    /// Returns the labels of one call once all that is wanted was answered.
    fn labels(&mut self, key: SeriesKey) -> Labels {
        for _ in 0..4 {
            self.round(vec![http(key, &[1])]);
            self.answer();
        }
        let snapshot = self.round(vec![http(key, &[1])]);
        assert_eq!(snapshot.http.len(), 1, "one series alone");
        Labels::of(&snapshot, 0)
    }

    fn call(&mut self, destination: &str) -> Labels {
        self.labels(key(1, Leg::SOURCE, destination, Protocol::HTTP, 200))
    }

    fn unresolved(&self) -> Vec<(Unresolved, u64)> {
        self.model.unresolved().into_iter().collect()
    }
}

/// Some labels of a series, under the names without `destination_`.
#[derive(Debug, PartialEq)]
struct Labels(std::collections::BTreeMap<String, String>);

impl Labels {
    fn of(snapshot: &Snapshot, series: usize) -> Self {
        let mut labels = std::collections::BTreeMap::new();
        snapshot.http[series].labels.each(&HTTP, |name, value| {
            labels.insert(name.trim_start_matches("destination_").to_owned(), value.to_owned());
        });
        Self(labels)
    }

    fn assert(&self, expected: &[(&str, &str)]) {
        for (name, value) in expected {
            assert_eq!(self.0[*name], *value, "{name}");
        }
    }
}

fn change(object: &Value) -> Change {
    if object.get("addressType").is_some() {
        Change::applied(&decode::<object::EndpointSlice>(object), DOMAIN)
    } else if object["spec"].get("hosts").is_some() {
        Change::applied(&decode::<object::ServiceEntry>(object), DOMAIN)
    } else {
        Change::applied(&decode::<object::Service>(object), DOMAIN)
    }
}

fn shop() -> Vec<Value> {
    vec![
        service("web", "10.96.0.1", &json!([{"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080}])),
        slice("web", ("http", 8080), &[("web-7d-2bcdf", "10.0.1.1"), ("web-7d-4ghjk", "10.0.1.2")]),
    ]
}

#[test]
fn a_call_to_a_service_names_the_service_and_the_workload_behind_it() {
    let mut testbed = Testbed::synced(&shop());
    testbed.pods = vec![pod("web-7d-2bcdf", "10.0.1.1", &[("version", "v1")]), pod("web-7d-4ghjk", "10.0.1.2", &[])];
    testbed.call("10.96.0.1:80").assert(&[
        ("service", "web.shop.svc.cluster.local"),
        ("service_name", "web"),
        ("service_namespace", "shop"),
        ("workload", "web"),
        ("workload_namespace", "shop"),
        ("principal", "spiffe://mesh.example/ns/shop/sa/web"),
        ("app", "web"),
        ("version", "v1"),
        ("canonical_service", "web"),
        ("canonical_revision", "v1"),
        ("cluster", "c1"),
        ("source_principal", "spiffe://mesh.example/ns/shop/sa/client"),
    ]);
    assert_eq!(testbed.asked.len(), 1, "one pod of a template suffices: {:?}", testbed.asked);
    assert_eq!(testbed.unresolved(), []);
}

#[test]
fn a_series_waits_for_its_name_and_counts_everything_then() {
    let mut testbed = Testbed::new();
    let call = key(1, Leg::SOURCE, "10.96.0.1:80", Protocol::HTTP, 200);
    assert!(testbed.round(vec![http(call, &[1])]).http.is_empty(), "nothing is known before the lists");
    testbed.list(&shop());
    testbed.pods = vec![pod("web-7d-2bcdf", "10.0.1.1", &[])];
    assert!(testbed.round(vec![http(call, &[1, 1])]).http.is_empty(), "the pod is being asked for");
    testbed.answer();
    let snapshot = testbed.round(vec![http(call, &[1, 1, 1])]);
    assert_eq!((snapshot.http.len(), snapshot.http[0].totals.requests()), (1, 3));
    Labels::of(&snapshot, 0).assert(&[("workload", "web")]);
}

#[test]
fn a_series_does_not_wait_for_ever_and_is_named_later_from_then_on() {
    let mut testbed = Testbed::synced(&shop());
    testbed.pods = vec![pod("web-7d-2bcdf", "10.0.1.1", &[])];
    let call = key(1, Leg::SOURCE, "10.96.0.1:80", Protocol::HTTP, 200);
    for _ in 0..10 {
        assert!(testbed.round(vec![http(call, &[1])]).http.is_empty());
    }
    let snapshot = testbed.round(vec![http(call, &[1])]);
    Labels::of(&snapshot, 0).assert(&[("service_name", "web"), ("workload", "unknown")]);
    assert_eq!(testbed.unresolved(), [(Unresolved::Pending, 1)]);
    testbed.answer();
    let snapshot = testbed.round(vec![http(call, &[1, 1])]);
    assert_eq!(counts(&snapshot), [("unknown".to_owned(), 1), ("web".to_owned(), 1)]);
}

/// What the observer before had exposed is more than its state says: it must not fall while names are awaited, nor move to
/// names that have changed meanwhile.
#[test]
fn what_an_earlier_observer_exposed_stands_at_once_under_its_names() {
    let call = key(1, Leg::SOURCE, "10.96.0.1:80", Protocol::HTTP, 200);
    let mut testbed = Testbed::synced(&shop());
    testbed.pods = vec![pod("web-7d-2bcdf", "10.0.1.1", &[])];
    testbed.labels(call);
    let state = serde_json::to_string(&testbed.model.persist()).unwrap();
    let restart = |testbed: &mut Testbed| {
        let started = at(testbed.seconds);
        testbed.model =
            Model::restore(started, Duration::from_mins(15), serde_json::from_str(&state).unwrap()).unwrap();
        testbed.model.turn_cluster_on();
    };
    let web = |count| ("web".to_owned(), count);
    let five = || vec![http(call, &[1; 5])];

    restart(&mut testbed);
    assert_eq!(counts(&testbed.round(five())), [web(5)], "the lists are awaited");
    assert_eq!(counts(&testbed.round(vec![http(call, &[1; 6])])), [web(5)], "what is new waits");

    restart(&mut testbed);
    testbed.list(&shop());
    assert_eq!(counts(&testbed.round(five())), [web(5)], "the pod is being asked for");

    restart(&mut testbed);
    testbed.list(&shop()[..1]);
    assert_eq!(counts(&testbed.round(five())), [web(5)], "it was exposed as web's, which has no pods any more");
    let snapshot = testbed.round(vec![http(call, &[1; 6])]);
    assert_eq!(counts(&snapshot), [("unknown".to_owned(), 1), web(5)]);
}

/// What is known of an address is forgotten when an endpoint with it is listed, as after every start: then the pod is
/// asked for by its name.
#[test]
fn a_caller_that_is_asked_for_anew_is_awaited() {
    let text =
        "By=spiffe://mesh.example/ns/shop/sa/client;Hash=1;Subject=\"\";URI=spiffe://mesh.example/ns/shop/sa/web";
    let (kind, caller) = (CallerKind::CERTIFICATE, CallerId(1));
    let (port, security, address) = (8080, Security::MUTUAL_TLS, Ipv4Addr::new(10, 0, 1, 1).to_ipv6_mapped().octets());
    let peer = InboundPeerKey { sidecar: 1, port, security, padding: 0, address };
    let callers = || CallersReading {
        callers: vec![CallerReading { id: caller, kind, text: text.as_bytes().into() }],
        peers: vec![InboundPeerReading { key: peer, opened: 1, closed: 0, closed_for: Duration::ZERO }],
        ..CallersReading::default()
    };
    let call = SeriesKey { caller, ..key(1, Leg::DESTINATION, "127.0.0.1:8080", Protocol::HTTP, 200) };
    let mut testbed = Testbed::new();
    testbed.pods = vec![pod("web-7d-2bcdf", "10.0.1.1", &[])];
    testbed.round_with(Vec::new(), callers());
    testbed.answer();
    testbed.list(&shop());
    assert!(testbed.round_with(vec![http(call, &[1, 1])], callers()).http.is_empty(), "the pod is asked for by name");
    testbed.answer();
    let snapshot = testbed.round_with(vec![http(call, &[1, 1, 1])], callers());
    assert_eq!((snapshot.http.len(), snapshot.http[0].totals.requests()), (1, 3));
    Labels::of(&snapshot, 0).assert(&[("source_workload", "web")]);
    assert_eq!(testbed.asked.len(), 2, "{:?}", testbed.asked);
}

#[test]
fn a_last_round_waits_for_nothing() {
    let mut testbed = Testbed::synced(&shop());
    let call = key(1, Leg::SOURCE, "10.96.0.1:80", Protocol::HTTP, 200);
    assert!(testbed.round(vec![http(call, &[1])]).http.is_empty());
    testbed.model.stop_waiting();
    assert_eq!(testbed.round(vec![http(call, &[1])]).http.len(), 1);
}

#[test]
fn of_several_workloads_only_what_they_have_in_common_is_said() {
    let mut objects = shop();
    objects[1] = slice("web", ("http", 8080), &[("web-7d-2bcdf", "10.0.1.1"), ("canary-8f-2bcdf", "10.0.1.2")]);
    let mut testbed = Testbed::synced(&objects);
    let canary = pod("canary-8f-2bcdf", "10.0.1.2", &[("app", "web"), ("version", "v2")]);
    testbed.pods = vec![pod("web-7d-2bcdf", "10.0.1.1", &[("version", "v1")]), canary];
    testbed.call("10.96.0.1:80").assert(&[
        ("workload", "unknown"),
        ("workload_namespace", "shop"),
        ("canonical_service", "web"),
        ("canonical_revision", "unknown"),
        ("app", "web"),
        ("version", "unknown"),
        ("principal", "unknown"),
        ("service_name", "web"),
    ]);
    assert_eq!(testbed.unresolved(), [(Unresolved::SeveralWorkloads, 1)]);
    // The canary is gone: the series continues under the one that is left, and counts nothing twice.
    testbed.apply(&slice("web", ("http", 8080), &[("web-7d-2bcdf", "10.0.1.1")]));
    let call = key(1, Leg::SOURCE, "10.96.0.1:80", Protocol::HTTP, 200);
    let snapshot = testbed.round(vec![http(call, &[1, 1])]);
    let total: u64 = snapshot.http.iter().map(|series| series.totals.requests()).sum();
    assert_eq!((snapshot.http.len(), total), (2, 2));
}

#[test]
fn pods_of_a_stateful_set_are_asked_for_one_by_one() {
    let mut objects = shop();
    objects[1] = slice("web", ("http", 8080), &[("db-0", "10.0.1.1"), ("db-1", "10.0.1.2")]);
    let mut testbed = Testbed::synced(&objects);
    testbed.pods = [("db-0", "10.0.1.1", "v1"), ("db-1", "10.0.1.2", "v2")]
        .map(|(name, address, version)| {
            let mut made = pod("db-x-2bcdf", address, &[("version", version)]);
            made["metadata"]["name"] = name.into();
            made["metadata"]["uid"] = uid(name).into();
            made["metadata"]["generateName"] = "db-".into();
            made["metadata"]["ownerReferences"] = json!([{"kind": "StatefulSet", "name": "db", "controller": true}]);
            made
        })
        .into();
    testbed.call("10.96.0.1:80").assert(&[("workload", "db"), ("version", "unknown")]);
    assert_eq!(testbed.asked.len(), 2);
}

#[test]
fn addresses_of_a_service_of_all_kinds_are_its() {
    let ports = json!([{"name": "http", "port": 80, "nodePort": 30080}]);
    let mut web = service("web", "10.96.0.1", &ports);
    web["spec"]["clusterIPs"] = json!(["10.96.0.1", "fd00::1"]);
    web["spec"]["externalIPs"] = json!(["192.0.2.1"]);
    web["status"]["loadBalancer"]["ingress"] = json!([{"ip": "192.0.2.2"}, {"hostname": "elb.example"}]);
    let mut objects = shop();
    objects[0] = web;
    let spiffe = "spiffe://mesh.example/ns/shop/sa/web";
    for (destination, principal) in [
        ("10.96.0.1:80", spiffe),
        ("fd00::1:80", spiffe),
        // Sidecars have no cluster for these.
        ("192.0.2.1:80", "unknown"),
        ("192.0.2.2:80", "unknown"),
    ] {
        let mut testbed = Testbed::synced(&objects);
        testbed.pods = vec![pod("web-7d-2bcdf", "10.0.1.1", &[])];
        let labels = testbed.call(destination);
        labels.assert(&[("service", "web.shop.svc.cluster.local"), ("workload", "web"), ("principal", principal)]);
    }
    // A node's address is known from a pod on it.
    let mut testbed = Testbed::synced(&objects);
    testbed.pods = vec![pod("web-7d-2bcdf", "10.0.1.1", &[])];
    testbed.call("10.96.0.1:80");
    let node_port = key(1, Leg::SOURCE, "10.1.0.1:30080", Protocol::HTTP, 200);
    let snapshot = testbed.round(vec![http(node_port, &[1])]);
    Labels::of(&snapshot, 1).assert(&[("service_name", "web"), ("workload", "web"), ("principal", "unknown")]);
}

#[test]
fn a_headless_service_is_at_its_pods_addresses_and_its_own_port() {
    let db = service("db", "None", &json!([{"name": "tcp", "port": 5432}]));
    let objects = [db, slice("db", ("tcp", 5432), &[("db-7d-2bcdf", "10.0.2.1"), ("other-7d-2bcdf", "10.0.2.2")])];
    let mut testbed = Testbed::synced(&objects);
    testbed.pods = vec![pod("db-7d-2bcdf", "10.0.2.1", &[]), pod("other-7d-2bcdf", "10.0.2.2", &[])];
    testbed.call("10.0.2.1:5432").assert(&[
        ("service", "db.shop.svc.cluster.local"),
        // That pod alone is behind that address.
        ("workload", "db"),
        ("principal", "spiffe://mesh.example/ns/shop/sa/db"),
    ]);
}

#[test]
fn a_pods_own_address_is_passed_through() {
    let mut testbed = Testbed::synced(&shop());
    testbed.pods = vec![pod("web-7d-2bcdf", "10.0.1.1", &[])];
    testbed.call("10.0.1.1:8080").assert(&[
        ("service", "unknown"),
        ("service_name", "PassthroughCluster"),
        ("service_namespace", "shop"),
        ("workload", "web"),
        ("principal", "unknown"),
    ]);
}

#[test]
fn what_is_outside_is_passed_through_and_not_asked_for() {
    let mut testbed = Testbed::synced(&shop());
    testbed.call("203.0.113.1:443").assert(&[
        ("service", "unknown"),
        ("service_name", "PassthroughCluster"),
        ("service_namespace", "unknown"),
        ("workload", "unknown"),
    ]);
    assert_eq!(testbed.asked, []);
    assert_eq!(testbed.unresolved(), [(Unresolved::Outside, 1)]);
}

#[test]
fn service_entries_are_at_their_addresses_and_the_allocated_ones() {
    let entry = |name: &str, addresses: &Value, status: &Value, protocol: &str| {
        json!({
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"hosts": [format!("{name}.example")], "addresses": addresses,
                     "ports": [{"number": 443, "name": "p", "protocol": protocol}]},
            "status": {"addresses": status},
        })
    };
    let allocated = json!([{"value": "240.240.0.1", "host": "b.example"}, {"value": "240.240.0.9", "host": "x"}]);
    let objects = [
        entry("a", &json!(["192.0.2.0/24", "nonsense"]), &json!([]), "TCP"),
        entry("b", &json!([]), &allocated, "TLS"),
        json!({"metadata": {"name": "c", "namespace": "shop"},
               "spec": {"hosts": ["c.example"], "ports": [{"number": 9000, "protocol": "TCP"}]}}),
        json!({"metadata": {"name": "d", "namespace": "shop"},
               "spec": {"hosts": ["d.example"], "ports": [{"number": 80, "protocol": "HTTP"}]}, "status": null}),
    ];
    for (destination, host) in [
        ("192.0.2.77:443", "a.example"),
        ("240.240.0.1:443", "b.example"),
        // The only TCP host of that port that has no address.
        ("198.51.100.1:9000", "c.example"),
        // By Host header.
        ("198.51.100.1:80", "unknown"),
    ] {
        let mut testbed = Testbed::synced(&objects);
        let namespace = if host == "unknown" { host } else { "shop" };
        testbed.call(destination).assert(&[
            ("service", host),
            ("service_name", host),
            ("service_namespace", namespace),
        ]);
    }
}

#[test]
fn a_port_of_the_own_pod_is_the_oldest_services() {
    let mut younger = service("alias", "10.96.0.3", &json!([{"name": "http", "port": 81}]));
    younger["metadata"]["creationTimestamp"] = "2026-02-01T00:00:00Z".into();
    let own = [("client-1-2bcdf", "10.0.0.1")];
    let objects = [
        younger,
        service("client", "10.96.0.2", &json!([{"name": "http", "port": 80}])),
        slice("client", ("http", 9080), &own),
        slice("alias", ("http", 9080), &own),
    ];
    let inbound = |port: u16| key(1, Leg::DESTINATION, &format!("127.0.0.1:{port}"), Protocol::HTTP, 200);
    let mut testbed = Testbed::synced(&objects);
    testbed.labels(inbound(9080)).assert(&[
        ("service", "client.shop.svc.cluster.local"),
        ("service_name", "client"),
        ("service_namespace", "shop"),
        ("workload", "client"),
    ]);
    let mut testbed = Testbed::synced(&objects);
    testbed.labels(inbound(7777)).assert(&[("service", "client"), ("service_name", "InboundPassthroughCluster")]);
    let mut testbed = Testbed::synced(&[]);
    testbed.labels(inbound(9080)).assert(&[("service", "client"), ("service_name", "client")]);
}

#[test]
fn what_a_new_list_does_not_name_is_gone() {
    let mut testbed = Testbed::synced(&shop());
    testbed.list(&[]);
    testbed.call("10.96.0.1:80").assert(&[("service_name", "PassthroughCluster")]);
    assert_eq!(testbed.model.cluster().sizes().map(|(_, size)| size)[..4], [0; 4]);
}

#[test]
fn a_reused_address_is_not_the_former_pods() {
    let mut testbed = Testbed::synced(&shop());
    testbed.pods = vec![pod("web-7d-2bcdf", "10.0.1.1", &[]), pod("other-7d-2bcdf", "10.0.1.1", &[])];
    testbed.call("10.0.1.1:8080").assert(&[("workload", "web")]);
    testbed.apply(&slice("web", ("http", 8080), &[("other-7d-2bcdf", "10.0.1.1")]));
    let call = key(1, Leg::SOURCE, "10.0.1.1:8080", Protocol::HTTP, 200);
    // What came before the answer is not counted for the former.
    let snapshot = testbed.round(vec![http(call, &[1, 1])]);
    assert_eq!(snapshot.http[0].totals.requests(), 1);
    testbed.answer();
    let snapshot = testbed.round(vec![http(call, &[1, 1, 1])]);
    assert_eq!(counts(&snapshot), [("other".to_owned(), 2), ("web".to_owned(), 1)]);
    // If the answer does not come in time, nobody is named.
    testbed.apply(&slice("web", ("http", 8080), &[("third-7d-2bcdf", "10.0.1.1")]));
    for _ in 0..11 {
        testbed.round(vec![http(call, &[1, 1, 1, 1])]);
    }
    let snapshot = testbed.round(vec![http(call, &[1, 1, 1, 1, 1])]);
    let expected = [("other", 2), ("unknown", 2), ("web", 1)].map(|(name, count)| (name.to_owned(), count));
    assert_eq!(counts(&snapshot), expected);
}

/// Returns the workloads and the requests of all series.
fn counts(snapshot: &Snapshot) -> Vec<(String, u64)> {
    let of = |at: usize| (Labels::of(snapshot, at).0["workload"].clone(), snapshot.http[at].totals.requests());
    let mut counts: Vec<_> = (0..snapshot.http.len()).map(of).collect();
    counts.sort();
    counts
}

#[test]
fn pods_that_share_an_address_count_as_one_only_if_they_are_alike() {
    let in_host_network = |name: &str| {
        let mut made = pod(name, "10.1.0.1", &[]);
        made["metadata"]["uid"] = uid(name).into();
        made
    };
    for (pods, workload) in [
        (vec!["web-7d-2bcdf"], "web"),
        (vec!["web-7d-2bcdf", "web-7d-4ghjk"], "web"),
        (vec!["web-7d-2bcdf", "other-7d-4ghjk"], "unknown"),
    ] {
        let mut testbed = Testbed::synced(&[]);
        testbed.pods = pods.into_iter().map(in_host_network).collect();
        testbed.call("10.1.0.1:9100").assert(&[("workload", workload)]);
    }
}

#[test]
fn a_pod_that_has_ended_has_no_address() {
    let mut testbed = Testbed::synced(&[]);
    let mut ended = pod("job-7d-2bcdf", "10.0.1.1", &[]);
    ended["status"]["phase"] = "Succeeded".into();
    testbed.pods = vec![ended];
    testbed.call("10.0.1.1:80").assert(&[("workload", "unknown")]);
}

#[test]
fn unused_pods_are_dropped() {
    let mut testbed = Testbed::synced(&shop());
    testbed.pods = vec![pod("web-7d-2bcdf", "10.0.1.1", &[])];
    testbed.call("10.96.0.1:80");
    let kept = |testbed: &Testbed| testbed.model.cluster().sizes()[4].1;
    let call = key(1, Leg::SOURCE, "10.96.0.1:80", Protocol::HTTP, 200);
    testbed.seconds += 600;
    testbed.round(vec![http(call, &[1])]);
    assert_eq!(kept(&testbed), 1, "it is used");
    for _ in 0..3 {
        testbed.seconds += 600;
        testbed.round(vec![]);
    }
    assert_eq!(kept(&testbed), 0);
}

#[test]
fn protocols_are_declared_as_istio_listens() {
    let ports = json!([
        {"name": "http-web", "port": 80}, {"name": "tcp-web", "port": 81}, {"name": "any", "port": 82},
        {"name": "dns", "port": 53, "protocol": "UDP"},
    ]);
    let own = [("client-1-2bcdf", "10.0.0.1")];
    let objects = [
        service("web", "10.96.0.1", &ports),
        slice("web", ("tcp-web", 9081), &own),
        service("db", "None", &json!([{"name": "tcp", "port": 80}])),
        slice("db", ("tcp", 80), &[("db-0", "10.0.2.1")]),
    ];
    let mut testbed = Testbed::new();
    let none = testbed.model.cluster_mut().port_protocols(testbed.running.iter());
    assert!(none.ports.is_empty(), "before all is known, nothing is passed through");
    testbed.list(&objects);
    testbed.round(vec![]);
    let declared = testbed.model.cluster_mut().port_protocols(testbed.running.iter()).ports;
    let key = |sidecar, address: Option<&str>, port| PortKey {
        sidecar,
        address: address.map(|address| address.parse().unwrap()),
        port,
    };
    let expected = [
        (key(0, None, 0), PortProtocol::Tcp),
        (key(0, None, 80), PortProtocol::Sniffed),
        (key(0, Some("10.0.2.1"), 80), PortProtocol::Tcp),
        (key(0, Some("10.96.0.1"), 80), PortProtocol::Http),
        (key(0, Some("10.96.0.1"), 81), PortProtocol::Tcp),
        (key(0, Some("10.96.0.1"), 82), PortProtocol::Sniffed),
        (key(1, None, 9081), PortProtocol::Tcp),
    ];
    assert_eq!(declared.into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn hostile_objects_are_refused_and_counted() {
    let many: Vec<Value> = (0..1_001).map(|at| endpoint("x", &format!("10.3.{}.{}", at / 250, at % 250))).collect();
    let mut large = slice("web", ("http", 1), &[]);
    large["endpoints"] = many.into();
    let mut no_name = service("", "10.96.0.9", &json!([]));
    let mut testbed = Testbed::synced(&shop());
    testbed.apply(&large);
    testbed.apply(&no_name);
    no_name["metadata"]["name"] = "x".repeat(254).into();
    testbed.apply(&no_name);
    let rejected: Vec<_> = testbed.model.cluster().rejected().collect();
    assert_eq!(rejected, [("services", "name", 2), ("endpointslices", "too_large", 1)]);
    testbed.call("10.96.0.1:80").assert(&[("service_name", "web"), ("workload", "unknown")]);
    assert_eq!(testbed.unresolved(), [(Unresolved::NoEndpoints, 1)], "its former state is not kept either");
}

#[test]
fn empty_lists_are_null_as_go_writes_them() {
    let text = br#"{"metadata": {"resourceVersion": "7", "continue": "next"}, "items": [
        {"metadata": {"name": "a", "namespace": "b", "labels": null}, "addressType": "IPv4", "ports": null, "endpoints": null},
        {"metadata": {"name": 5}},
        {"metadata": {"name": "c", "namespace": "b", "labels": {"kubernetes.io/service-name": "s"}},
         "addressType": "IPv4", "ports": [{"name": null, "port": null, "protocol": null}],
         "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": null}, "targetRef": null}]}]}"#;
    let page = ListPage::decode(text).unwrap();
    assert_eq!((&*page.metadata.resource_version, &*page.metadata.next), ("7", "next"));
    let objects: Vec<_> = page.objects::<object::EndpointSlice>().collect();
    assert!(objects[0].is_ok() && objects[1].is_err(), "one malformed object does not hide the others");
    assert!(objects[2].as_ref().unwrap().fact(DOMAIN).unwrap().is_some());
    assert!(ListPage::decode(br#"{"items": null}"#).unwrap().objects::<object::Service>().next().is_none());
}

#[test]
fn lines_of_a_watch_are_decoded() {
    let line = |text: &str| WatchEvent::<object::Service>::decode(text.as_bytes());
    let object = r#"{"metadata": {"name": "a", "namespace": "b", "resourceVersion": "9"}}"#;
    assert!(matches!(line(&format!(r#"{{"type":"ADDED","object":{object}}}"#)), Ok(WatchEvent::Applied(_))));
    assert!(matches!(line(&format!(r#"{{"type":"DELETED","object":{object}}}"#)), Ok(WatchEvent::Deleted(_))));
    let bookmark = line(&format!(r#"{{"type":"BOOKMARK","object":{object}}}"#));
    assert!(matches!(bookmark, Ok(WatchEvent::Bookmark(version)) if version == "9"));
    let gone = line(r#"{"type":"ERROR","object":{"kind":"Status","code":410}}"#);
    assert!(matches!(gone, Ok(WatchEvent::Error(410))));
    assert!(line(r#"{"type":"ADDED","obj"#).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever order adds, changes, removes and lists come in, the indices are those of the objects that are left.
    #[test]
    fn indices_follow_the_objects(steps in prop::collection::vec((0..6_u8, 0..4_u8, prop::collection::vec(0..8_u8, 0..4)), 0..40)) {
        let mut cluster = Cluster::default();
        let mut left = std::collections::BTreeMap::new();
        for (kind, name, addresses) in steps {
            let name = format!("s{name}");
            let object_name = ObjectName::new("shop", &format!("{name}-abcde")).unwrap();
            if kind == 0 {
                left.remove(&name);
                cluster.apply(Change::Applied(Resource::EndpointSlices, object_name, None), now());
            } else if kind == 1 {
                cluster.apply(Change::ListBegan(Resource::EndpointSlices), now());
                left.clear();
                cluster.apply(Change::ListEnded(Resource::EndpointSlices), now());
            } else {
                let pods: Vec<_> = addresses.iter().map(|at| ("p", format!("10.0.0.{at}"))).collect();
                let pods: Vec<_> = pods.iter().map(|(pod, address)| (*pod, address.as_str())).collect();
                cluster.apply(change(&slice(&name, ("http", 1), &pods)), now());
                left.insert(name, addresses);
            }
        }
        let expected: std::collections::BTreeSet<IpAddr> =
            left.values().flatten().map(|at| format!("10.0.0.{at}").parse().unwrap()).collect();
        let found: std::collections::BTreeSet<IpAddr> = cluster.slices_by_address.keys().copied().collect();
        prop_assert_eq!(found, expected);
        prop_assert_eq!(cluster.slices_by_service.len(), left.len());
        prop_assert_eq!(cluster.sizes()[2].1, left.values().map(Vec::len).sum::<usize>() as u64);
    }

    /// No text that claims to be an object makes decoding or keeping it panic.
    #[test]
    fn any_text_is_refused_or_kept(text in "[\\x00-\\x7f]{0,64}", port in any::<u16>(), address in ".{0,40}") {
        let _ = WatchEvent::<object::Pod>::decode(text.as_bytes());
        let _ = ListPage::decode(text.as_bytes());
        let mut made = service(&text, &address, &json!([{"name": text, "port": port, "appProtocol": address}]));
        made["spec"]["clusterIPs"] = json!([address, text]);
        let _ = Change::applied(&decode::<object::Service>(&made), DOMAIN);
        let mut entry = json!({"metadata": {"name": "e", "namespace": "n"}, "spec": {"hosts": [text], "addresses": [address]}});
        entry["status"] = json!({"addresses": [{"value": text, "host": text}]});
        let _ = Change::applied(&decode::<object::ServiceEntry>(&entry), DOMAIN);
        let made = pod("web-7d-2bcdf", &address, &[("app", &text)]);
        prop_assert!(Pod::new(&decode(&made)).is_ok_and(|pod| pod.addresses.len() <= 1) || text.len() > 253);
    }
}

#[test]
fn rejections_have_distinct_reasons() {
    let all = [Rejection::Name, Rejection::TooLarge, Rejection::TooMany, Rejection::Malformed];
    let reasons: std::collections::BTreeSet<_> = all.iter().map(|rejection| rejection.reason()).collect();
    assert_eq!(reasons.len(), all.len());
}
