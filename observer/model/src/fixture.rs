//! A small mesh for the tests of the model and of the outputs: productpage calls reviews and ratings through a
//! gateway's node, with one label value that every format must escape.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use observer_common::{
    Endpoint, GRPC_NONE, Leg, Protocol, Security, SeriesKey,
    health::Counter,
    histogram::{self, SUB_BUCKETS},
};

use crate::{
    EmitterStats, EndpointStats, Inputs, KubernetesStats, Model, SelfMetrics, Snapshot, catalogue,
    delay::DelayHistogram,
    exemplar::Exemplar,
    exposition::{Format, MetricType},
    identity::{Component, Instance, MetricsEndpoint, ProcessId, Role, Sidecar, Workload, container::Container},
    reading::{
        CallersReading, CgroupReading, HistogramReading, KernelReading, Outcome, ProcessReading, ProgramReading,
        Reading, ScrapeReading, SeriesReading,
    },
    scraped::ScrapedExposition,
    workload_index::{ServiceEntry, ServicePort, StaticPeers, WorkloadEntry},
};

/// A label value that every format must escape.
pub const HOSTILE: &str = "a\"b\\c\nd é \\";

const COUNTERS: [Counter; 8] = [
    Counter::ConnectionHttp1,
    Counter::RequestOk,
    Counter::RequestDesync,
    Counter::DesyncGap,
    Counter::LossSeries,
    Counter::AuditConnections,
    Counter::AuditEmpty,
    Counter::AuditUnseen,
];

/// Returns a workload of the name, in namespace `default` of mesh `mesh.example`.
pub fn workload(name: &str, labels: &[(&str, &str)]) -> Arc<Workload> {
    Arc::new(Workload {
        pod: Some(format!("{name}-0")),
        namespace: Some("default".to_owned()),
        name: Some(name.to_owned()),
        cluster: Some("c1".to_owned()),
        service_account: Some(format!("bookinfo-{name}")),
        trust_domain: Some("mesh.example".to_owned()),
        labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<BTreeMap<_, _>>(),
        node: Some("node-1".to_owned()),
    })
}

/// Returns a sidecar or gateway with process number `id`.
pub fn sidecar(id: u32, role: Role, address: &str, workload: Arc<Workload>) -> Arc<Sidecar> {
    Arc::new(Sidecar {
        id,
        process: ProcessId { pid: id, start_time: 1 },
        role,
        evidence: String::new(),
        cgroup: "/sys/fs/cgroup/pod".into(),
        cgroup_id: u64::from(id),
        netns_inode: u64::from(id),
        addresses: vec![address.parse().unwrap()],
        coresidents: Vec::new(),
        is_cgroup_shared: false,
        workload,
    })
}

/// Returns a control-plane process that listens on 15014.
pub fn istiod(pid: u32) -> Arc<Component> {
    let address = "10.0.0.9:15014".parse().unwrap();
    let workload = Workload {
        pod: Some("istiod-0".to_owned()),
        namespace: Some("istio-system".to_owned()),
        ..Workload::default()
    };
    Arc::new(Component {
        process: ProcessId { pid, start_time: 1 },
        app: "istiod".to_owned(),
        cgroup: None,
        container: Container::default(),
        workload: Arc::new(workload),
        endpoint: Ok(MetricsEndpoint {
            instance: address,
            address,
            inside_only: None,
            inside: Some("127.0.0.1:15014".parse().unwrap()),
            evidence: "listens on 15014".to_owned(),
            is_guess: false,
        }),
    })
}

/// Returns the sidecars and the gateway of the mesh.
pub fn sidecars() -> Vec<Arc<Sidecar>> {
    let labels = [("app", "productpage"), ("version", "v1"), ("service.istio.io/canonical-name", "productpage")];
    let reviews = [("app", "reviews"), ("app.kubernetes.io/version", "v2")];
    vec![
        sidecar(1, Role::Sidecar, "10.0.0.1", workload("productpage-v1", &labels)),
        sidecar(2, Role::Sidecar, "10.0.0.2", workload("reviews-v2", &reviews)),
        sidecar(3, Role::Sidecar, "10.0.0.3", workload("reviews-v2", &reviews)),
        sidecar(4, Role::Gateway, "10.0.0.4", workload("gateway", &[])),
        sidecar(5, Role::Sidecar, "10.0.0.5", workload("odd", &[("app", HOSTILE), ("version", "v=1,2")])),
    ]
}

/// Returns the peers that are configured.
pub fn peers() -> Arc<StaticPeers> {
    let service = |name: &str, address: &str, ports: &[(u16, u16)], workload: &str| ServiceEntry {
        host: format!("{name}.default.svc.cluster.local"),
        name: name.to_owned(),
        namespace: "default".to_owned(),
        addresses: vec![address.parse().unwrap()],
        ports: ports.iter().map(|(port, target)| ServicePort { port: *port, target: *target }).collect(),
        workload: Some(workload.to_owned()),
    };
    Arc::new(StaticPeers {
        services: vec![
            service("reviews", "10.96.0.1", &[(80, 9080)], "reviews-v2"),
            service("ratings", "10.96.0.2", &[], "ratings-v1"),
        ],
        workloads: vec![WorkloadEntry {
            addresses: vec!["10.0.9.9".parse().unwrap()],
            workload: workload("ratings-v1", &[("app", "ratings")]),
        }],
    })
}

/// Returns the key of a series; `destination` is `ADDRESS:PORT`.
pub fn key(sidecar: u32, leg: Leg, destination: &str, protocol: Protocol, status: u16) -> SeriesKey {
    let (address, port) = destination.rsplit_once(':').unwrap();
    let address = match address.parse().unwrap() {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    SeriesKey {
        sidecar,
        destination: Endpoint { address: address.octets(), port: port.parse().unwrap(), padding: 0 },
        status,
        grpc_status: GRPC_NONE,
        leg,
        protocol,
        ..SeriesKey::default()
    }
}

/// A series of requests that took `milliseconds` each, of 400 and 1,250 bytes.
pub fn http(key: SeriesKey, milliseconds: &[u64]) -> SeriesReading {
    let histogram = |values: &mut dyn Iterator<Item = (u64, u64)>| {
        let mut reading = HistogramReading::default();
        let mut cells = BTreeMap::new();
        for (exposed, exact) in values {
            reading.buckets[histogram::bucket(exposed) as usize] += 1;
            reading.sum += exact;
            let (block, cell) = histogram::sub_bucket(exact);
            *cells.entry((block * SUB_BUCKETS as u32 + cell) as u16).or_insert(0) += 1;
        }
        reading.cells = cells.into_iter().collect();
        reading
    };
    let histograms = [
        histogram(&mut milliseconds.iter().map(|value| (*value, value * 1_000 + 250))),
        histogram(&mut milliseconds.iter().map(|_| (400, 400))),
        histogram(&mut milliseconds.iter().map(|_| (1_250, 1_250))),
    ];
    SeriesReading { key, histograms, opened: 0, closed: 0, received: 0, sent: 0, messages: [0; 2] }
}

/// Returns a series of TCP connections.
pub fn tcp(key: SeriesKey, opened: u64, closed: u64, received: u64, sent: u64) -> SeriesReading {
    SeriesReading { key, histograms: Default::default(), opened, closed, received, sent, messages: [0; 2] }
}

/// Returns a time so many seconds after the first round could begin.
pub fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
}

/// The account of the process that [`sidecar`] gives a sidecar; without what may be hidden if `throttled_ms` is 0.
pub fn process(pid: u32, throttled_ms: u64) -> ProcessReading {
    let hidden = throttled_ms == 0;
    let seen = |value: u64| (!hidden).then_some(value);
    ProcessReading {
        process: ProcessId { pid, start_time: 1 },
        cpu: Duration::from_millis(12_340),
        resident_bytes: 52_000_000,
        virtual_bytes: 2_200_000_000,
        threads: 9,
        started: (!hidden).then(|| at(0) - Duration::from_millis(4_250)),
        open_files: seen(61),
        max_open_files: seen(1_048_576),
        cgroup: CgroupReading {
            memory_bytes: seen(60_000_000),
            max_memory_bytes: seen(1_073_741_824),
            periods: seen(100),
            throttled_periods: seen(7),
            throttled: seen(throttled_ms).map(Duration::from_millis),
        },
    }
}

/// Returns the reading of a round with these series.
pub fn reading(seconds: u64, series: Vec<SeriesReading>) -> Reading {
    let program = |name, runs| ProgramReading { name, links: 5, runs, run_time: Duration::from_micros(runs) };
    Reading {
        at: at(seconds),
        steady: Duration::from_secs(seconds),
        kernel: Some(KernelReading {
            series,
            health: COUNTERS.into_iter().zip(1..).collect(),
            programs: vec![program("mesh_ingress", 1_000), program("mesh_egress", 0)],
            series_capacity: 16_384,
            callers: CallersReading::default(),
            duration: Duration::from_millis(3),
            exemplars: Vec::new(),
        }),
        processes: vec![process(1, 250 * seconds), process(4, 0), process(9, 1)],
        scrapes: Vec::new(),
        outcomes: vec![
            Outcome { collector: "kernel", duration: Duration::from_millis(3), error: None },
            Outcome { collector: "procfs", duration: Duration::from_millis(1), error: Some("gone".to_owned()) },
        ],
    }
}

/// Series of every kind; `round` 1 and up, each with more than the one before.
pub fn every_kind(round: u64) -> Vec<SeriesReading> {
    let times = |values: &[u64]| -> Vec<u64> { (0..round).flat_map(|_| values.iter().copied()).collect() };
    let mutual = |mut key: SeriesKey| {
        key.security = Security::MUTUAL_TLS;
        key
    };
    let mut grpc = key(1, Leg::SOURCE, "10.0.9.9:9000", Protocol::GRPC, 200);
    grpc.grpc_status = 14;
    vec![
        http(key(1, Leg::SOURCE, "10.96.0.1:80", Protocol::HTTP, 200), &times(&[0, 3, 3, 70])),
        SeriesReading { messages: [round, 3 * round], ..http(grpc, &times(&[2])) },
        http(mutual(key(2, Leg::DESTINATION, "127.0.0.1:9080", Protocol::HTTP, 200)), &times(&[1, 1])),
        http(mutual(key(3, Leg::DESTINATION, "127.0.0.1:9080", Protocol::HTTP, 200)), &times(&[2])),
        http(key(5, Leg::SOURCE, "203.0.113.9:8080", Protocol::HTTP, 0), &times(&[4_000_000])),
        tcp(
            key(1, Leg::SOURCE, "10.96.0.2:3306", Protocol::TCP, 0),
            round,
            round - 1,
            1_000 * round,
            5_000_000_000 * round,
        ),
        tcp(key(4, Leg::SOURCE, "10.0.0.4:8443", Protocol::ENCRYPTED, 0), round, 0, 10, 10),
        tcp(SeriesKey::default(), 1, 0, 7, 9),
    ]
}

/// Exemplars of the first series of [`every_kind`]: a request of 3 ms, and one of 70 ms.
pub fn exemplars(round: u64) -> (SeriesKey, Vec<Exemplar>) {
    let exemplar = |bucket, milliseconds: u64| Exemplar {
        bucket,
        trace_id: 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736,
        span_id: 0x00f0_67aa_0ba9_0000 + 1_000 * round + milliseconds,
        microseconds: milliseconds * 1_000 + 250,
        at: at(round * 10) - Duration::from_millis(milliseconds),
    };
    (key(1, Leg::SOURCE, "10.96.0.1:80", Protocol::HTTP, 200), vec![exemplar(2, 3), exemplar(6, 70)])
}

/// Returns the observer's own stats.
pub fn own() -> SelfMetrics {
    let mut delay = DelayHistogram::default();
    for milliseconds in [1, 1, 30] {
        delay.record(Duration::from_millis(milliseconds));
    }
    SelfMetrics {
        cpu: Some(Duration::from_millis(1_500)),
        resident_bytes: Some(12_000_000),
        unattached: Some(0),
        collection_delay: delay,
        emitters: vec![EmitterStats {
            name: "wavefront+file:-".to_owned(),
            on_disk: Some((7, 512)),
            sent: 10,
            rejected: vec![("tag_length", 1)],
            dropped: vec![("gave_up", 2)],
            ..EmitterStats::default()
        }],
        endpoint: Some(EndpointStats { scrapes: vec![("ok", 3)], duration: Duration::from_millis(20), refused: 0 }),
        kubernetes: Some(KubernetesStats {
            requests: vec![("services", "ok", 2)],
            watches: vec![("services", true, Duration::ZERO)],
        }),
    }
}

/// The snapshots of two rounds ten seconds apart, both closing an interval.
pub fn snapshots() -> [Arc<Snapshot>; 2] {
    let mut model = Model::new(at(0), Duration::from_mins(15));
    let (sidecars, components, peers, own) = (sidecars(), [istiod(9)], peers(), own());
    [1, 2].map(|round| {
        let mut reading = reading(round * 10, every_kind(round));
        reading.kernel.as_mut().expect("a reading").exemplars = vec![exemplars(round)];
        model.update(Inputs {
            reading: &reading,
            running: &sidecars,
            ended: &[],
            components: &components,
            peers: &peers,
            own: &own,
            closes_interval: true,
        })
    })
}

/// The second of them, with cells.
pub fn cumulated() -> Arc<Snapshot> {
    let mut model = Model::new(at(0), Duration::from_mins(15));
    model.cumulate_cells();
    model.update(Inputs {
        reading: &reading(20, every_kind(2)),
        running: &sidecars(),
        ended: &[],
        components: &[],
        peers: &peers(),
        own: &own(),
        closes_interval: false,
    })
}

/// The same with a control plane that shows every family of the catalogue that istiod may have.
pub fn snapshots_of_everything() -> [Arc<Snapshot>; 2] {
    let mut model = Model::new(at(0), Duration::from_mins(15));
    let (sidecars, peers, own) = (sidecars(), peers(), own());
    [1, 2].map(|round| {
        let scrapes = vec![scraped("10.0.0.8:15014", &page_of_everything(round))];
        model.update(Inputs {
            reading: &Reading { scrapes, ..reading(round * 10, every_kind(round)) },
            running: &sidecars,
            ended: &[],
            components: &[],
            peers: &peers,
            own: &own,
            closes_interval: true,
        })
    })
}

fn page_of_everything(value: u64) -> String {
    let mut exposition = String::new();
    for family in catalogue::FAMILIES.iter().filter(|family| family.origin == catalogue::Origin::Istiod) {
        let name = family.prometheus_name;
        let labels: Vec<String> = family.labels.iter().map(|label| format!("{label}=\"a {label}\"")).collect();
        let labels = labels.join(",");
        exposition.push_str(&format!("# TYPE {name} {}\n", family.metric_type.name()));
        match family.metric_type {
            MetricType::Histogram => exposition.push_str(&format!(
                "{name}_bucket{{le=\"0.1\"}} 0\n{name}_bucket{{le=\"+Inf\"}} {value}\n{name}_sum {value}\n{name}_count {value}\n"
            )),
            _ => exposition.push_str(&format!("{name}{{{labels}}} {value}\n")),
        }
    }
    exposition
}

/// Returns a discovered instance with this exposition.
pub fn scraped(instance: &str, text: &str) -> ScrapeReading {
    scraped_by(None, instance, text)
}

/// The same of one that is named on this node.
pub fn scraped_by(node: Option<&str>, instance: &str, text: &str) -> ScrapeReading {
    ScrapeReading {
        instance: Instance {
            instance: instance.to_owned(),
            app: "istiod".to_owned(),
            pod: None,
            namespace: None,
            node: node.map(str::to_owned),
        },
        exposition: Some(Arc::new(ScrapedExposition::parse(Format::Text, text).unwrap())),
        tried: true,
        duration: Duration::from_millis(5),
        scrapes: [("ok", 1)].into(),
        skipped: BTreeMap::new(),
    }
}

/// The mesh with these control planes.
pub fn snapshot_of(scrapes: Vec<ScrapeReading>) -> Arc<Snapshot> {
    Model::new(at(0), Duration::from_mins(15)).update(Inputs {
        reading: &Reading { scrapes, ..reading(1, every_kind(1)) },
        running: &sidecars(),
        ended: &[],
        components: &[],
        peers: &peers(),
        own: &own(),
        closes_interval: true,
    })
}

/// Compares with a golden file; `UPDATE_GOLDEN=1` writes it instead.
#[expect(clippy::disallowed_methods, reason = "golden files of tests")]
pub fn assert_golden(name: &str, text: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name);
    let text = text.replace(&format!("\"{}\"", env!("CARGO_PKG_VERSION")), "\"VERSION\"");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(golden == text, "{} differs; UPDATE_GOLDEN=1 writes it again:\n{text}", path.display());
}
