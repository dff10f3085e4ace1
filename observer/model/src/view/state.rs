//! The document of what is shown now. Names and meanings are documented in `docs/api.md`, and are kept.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use observer_common::DURATION;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value as Json};

use super::{
    control_plane::{ControlPlane, control_plane},
    edges::{BySide, Edge, Edges, Side},
    families::{self, PointView},
    figures::{Code, Figures},
    findings::{self, Finding},
    node::NodeKey,
    rates::Rates,
    sampled::SampledView,
};
use crate::{
    Snapshot,
    catalogue::{self, Descriptor},
    histogram::{QUANTILES, quantiles},
    labels::{Peer, Protocol, UNKNOWN},
    snapshot::unix_seconds,
    totals::TcpTotals,
};

/// Everything that is shown now.
#[derive(Debug, Serialize)]
pub struct State<'a> {
    /// Version of the observer.
    version: &'static str,
    /// Name of the node.
    node: &'a str,
    /// When it was read, in seconds since 1970.
    at: f64,
    /// Since when totals count at the earliest, likewise.
    began: f64,
    /// Length of the time that rates are over; absent in the first document.
    window_seconds: Option<f64>,
    nodes: Vec<Node<'a>>,
    edges: Vec<EdgeView<'a>>,
    /// Series of edges beyond the maximum.
    unlisted_series: u64,
    processes: Vec<Process>,
    control_plane: ControlPlane,
    /// What was not seen, or not as it should be, and why.
    unseen: Vec<Unseen>,
    observer: Observer,
    findings: Vec<Finding>,
}

/// A workload, or a service whose workload is not known.
#[derive(Debug, Serialize)]
pub struct Node<'a> {
    id: String,
    kind: &'static str,
    namespace: &'a str,
    name: &'a str,
    /// Whether a sidecar or gateway of it is observed here.
    is_local: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    app: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct EdgeView<'a> {
    id: u32,
    from: String,
    to: String,
    protocol: &'static str,
    services: Vec<&'a str>,
    /// `mutual_tls`, `none`, both, or nothing if no destination counts it.
    security: &'a BTreeSet<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<SideView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination: Option<SideView>,
}

/// What one side has counted: totals as in `/metrics`, and rates.
#[derive(Debug, Serialize)]
struct SideView {
    totals: TotalsView,
    #[serde(skip_serializing_if = "Option::is_none")]
    recent: Option<RecentView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sampled: Option<SampledView>,
}

#[derive(Debug, Serialize)]
struct TotalsView {
    #[serde(flatten)]
    counts: Counts<u64>,
    duration_ms: f64,
}

/// Increases per second over the window, and percentiles of its durations.
#[derive(Debug, Serialize)]
struct RecentView {
    #[serde(flatten)]
    counts: Counts<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_ms: Option<Latency>,
}

/// What is counted: as totals, or per second.
#[derive(Debug, Serialize)]
struct Counts<N> {
    requests: N,
    errors: N,
    client_errors: N,
    codes: BTreeMap<String, N>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    grpc_statuses: BTreeMap<String, N>,
    request_bytes: N,
    response_bytes: N,
    request_messages: N,
    response_messages: N,
    opened: N,
    closed: N,
    received_bytes: N,
    sent_bytes: N,
}

/// Durations of the window.
#[derive(Debug)]
struct Latency {
    mean: f64,
    quantiles: Option<[u64; QUANTILES.len()]>,
}

impl Serialize for Latency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let quantiles = QUANTILES.into_iter().zip(self.quantiles.into_iter().flatten());
        let quantiles = quantiles.map(|((name, _), value)| (name, milliseconds(value)));
        serializer.collect_map([("mean", self.mean)].into_iter().chain(quantiles))
    }
}

/// A process of the mesh, with those figures that are known.
#[derive(Debug, Serialize)]
struct Process {
    #[serde(flatten)]
    labels: Map<String, Json>,
    #[serde(flatten)]
    figures: BTreeMap<&'static str, f64>,
}

#[derive(Debug, Serialize)]
struct Unseen {
    name: &'static str,
    help: &'static str,
    #[serde(flatten)]
    point: PointView,
}

/// The observer itself.
#[derive(Debug, Serialize)]
struct Observer {
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_cores: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resident_bytes: Option<f64>,
    sidecars: Vec<PointView>,
    families: Vec<FamilyView>,
}

#[derive(Debug, Serialize)]
struct FamilyView {
    name: &'static str,
    help: &'static str,
    points: Vec<PointView>,
}

/// Families whose points count what was not seen.
static UNSEEN: [&Descriptor; 14] = [
    &catalogue::DESYNCS,
    &catalogue::UNCOUNTED,
    &catalogue::SERIES_OVERFLOWED,
    &catalogue::AUDIT_BYTES,
    &catalogue::UNRESOLVED_CALLERS,
    &catalogue::DESTINATIONS_UNRESOLVED,
    &catalogue::GATEWAY_ENCRYPTED,
    &catalogue::CONTROL_PLANE_SKIPPED,
    &catalogue::CONTROL_PLANE_CONFLICTING,
    &catalogue::KUBERNETES_REJECTED,
    &catalogue::EMITTER_REJECTED,
    &catalogue::EMITTER_DROPPED,
    &catalogue::EMITTER_PUSHES_DROPPED,
    &catalogue::UNATTACHED,
];

/// Families that describe the observer's work.
static WORK: [&Descriptor; 14] = [
    &catalogue::CONNECTIONS,
    &catalogue::PARSED_REQUESTS,
    &catalogue::SERIES_IN_USE,
    &catalogue::SERIES_CAPACITY,
    &catalogue::SERIES_EXPOSED,
    &catalogue::AUDIT_CONNECTIONS,
    &catalogue::COLLECTOR_RUNS,
    &catalogue::SCRAPES,
    &catalogue::EMITTER_SENT,
    &catalogue::EMITTER_QUEUE,
    &catalogue::EMITTER_ERRORS,
    &catalogue::KUBERNETES_WATCHES,
    &catalogue::KUBERNETES_STALENESS,
    &catalogue::KUBERNETES_OBJECTS,
];

/// Figures of processes: name in the document, family, and whether the rate is shown.
static PROCESS: [(&str, &Descriptor, bool); 10] = [
    ("cpu_cores", &catalogue::PROCESS_CPU_SECONDS_TOTAL, true),
    ("resident_bytes", &catalogue::PROCESS_RESIDENT_MEMORY_BYTES, false),
    ("virtual_bytes", &catalogue::PROCESS_VIRTUAL_MEMORY_BYTES, false),
    ("open_files", &catalogue::PROCESS_OPEN_FDS, false),
    ("max_open_files", &catalogue::PROCESS_MAX_FDS, false),
    ("started", &catalogue::PROCESS_START_TIME_SECONDS, false),
    ("threads", &catalogue::PROCESS_THREADS, false),
    ("cgroup_memory_bytes", &catalogue::CGROUP_MEMORY, false),
    ("cgroup_memory_limit_bytes", &catalogue::CGROUP_MEMORY_LIMIT, false),
    ("throttled_ratio", &catalogue::CGROUP_CPU_THROTTLED_SECONDS, true),
];

/// Makes the document. `recent` is what was counted in `window`.
pub(super) fn state<'a>(
    snapshot: &Snapshot,
    node: &'a str,
    edges: &'a Edges,
    window: Option<Duration>,
    recent: &BySide,
    rates: &Rates,
    findings: &[Finding],
) -> State<'a> {
    let mut all = findings::of_snapshot(snapshot, rates);
    all.extend_from_slice(findings);
    all.sort_by_key(|finding| finding.level);
    State {
        version: env!("CARGO_PKG_VERSION"),
        node,
        at: unix_seconds(snapshot.at),
        began: unix_seconds(snapshot.began),
        window_seconds: window.map(|window| window.as_secs_f64()),
        nodes: nodes(edges),
        edges: edges.iter().map(|(id, edge)| edge_view(id, edge, window, recent)).collect(),
        unlisted_series: edges.unlisted,
        processes: processes(snapshot, rates),
        control_plane: control_plane(snapshot, rates),
        unseen: unseen(snapshot, rates),
        observer: observer(snapshot, rates),
        findings: all,
    }
}

fn nodes(edges: &Edges) -> Vec<Node<'_>> {
    let mut nodes: BTreeMap<&NodeKey, Node<'_>> = BTreeMap::new();
    for (_, edge) in edges.iter() {
        let ends = [
            (&edge.key.from, &edge.labels.source, Side::Source),
            (&edge.key.to, &edge.labels.destination, Side::Destination),
        ];
        for (key, peer, side) in ends {
            let node = nodes.entry(key).or_insert_with(|| node(key, peer));
            node.is_local |= !edge.totals[side as usize].is_zero();
        }
    }
    nodes.into_values().collect()
}

fn node<'a>(key: &'a NodeKey, peer: &'a Peer) -> Node<'a> {
    let known = |text: &'a str| (key.is_workload() && !matches!(text, UNKNOWN | "")).then_some(text);
    Node {
        id: key.id(),
        kind: key.kind.word(),
        namespace: &key.namespace,
        name: &key.name,
        is_local: false,
        app: known(&peer.app),
        version: known(&peer.version),
        cluster: known(&peer.cluster),
    }
}

fn edge_view<'a>(id: u32, edge: &'a Edge, window: Option<Duration>, recent: &BySide) -> EdgeView<'a> {
    let side = |side: Side| {
        let totals = &edge.totals[side as usize];
        let recent = recent.get(&(id, side)).zip(window).map(|(figures, window)| recent_view(figures, window));
        let sampled = edge.sampled[side as usize].view();
        (!totals.is_zero()).then(|| SideView { totals: totals_view(totals), recent, sampled })
    };
    EdgeView {
        id,
        from: edge.key.from.id(),
        to: edge.key.to.id(),
        protocol: match edge.key.protocol {
            Protocol::Http => "http",
            Protocol::Grpc => "grpc",
            Protocol::Tcp => "tcp",
            Protocol::Unknown => UNKNOWN,
        },
        services: edge.services.iter().map(|host| &**host).collect(),
        security: &edge.security,
        source: side(Side::Source),
        destination: side(Side::Destination),
    }
}

fn totals_view(figures: &Figures) -> TotalsView {
    TotalsView { counts: counts(figures, |count| count), duration_ms: milliseconds(figures.duration_us) }
}

#[expect(clippy::cast_precision_loss, reason = "rates need no more than 53 bits")]
fn recent_view(figures: &Figures, window: Duration) -> RecentView {
    let mean = || milliseconds(figures.duration_us) / figures.requests as f64;
    RecentView {
        counts: counts(figures, |count| count as f64 / window.as_secs_f64()),
        latency_ms: (figures.requests > 0)
            .then(|| Latency { mean: mean(), quantiles: quantiles(&figures.durations.of(DURATION)) }),
    }
}

fn counts<N: Default + std::ops::AddAssign + Copy>(figures: &Figures, shown: impl Fn(u64) -> N) -> Counts<N> {
    let TcpTotals { opened, closed, received_bytes, sent_bytes } = figures.tcp;
    let (codes, grpc_statuses) = by_status(figures.by_code.iter().map(|(code, count)| (*code, shown(*count))));
    Counts {
        requests: shown(figures.requests),
        errors: shown(figures.errors()),
        client_errors: shown(figures.client_errors()),
        codes,
        grpc_statuses,
        request_bytes: shown(figures.request_bytes),
        response_bytes: shown(figures.response_bytes),
        request_messages: shown(figures.messages[0]),
        response_messages: shown(figures.messages[1]),
        opened: shown(opened),
        closed: shown(closed),
        received_bytes: shown(received_bytes),
        sent_bytes: shown(sent_bytes),
    }
}

/// Adds counts up by response code, and by gRPC status where there is one, as the labels of Istio's metrics write them.
fn by_status<N: Default + std::ops::AddAssign + Copy>(
    counts: impl Iterator<Item = (Code, N)>,
) -> (BTreeMap<String, N>, BTreeMap<String, N>) {
    let (mut codes, mut statuses) = (BTreeMap::new(), BTreeMap::new());
    for (code, count) in counts {
        let (code, status) = code.texts();
        *codes.entry(code).or_insert_with(N::default) += count;
        if let Some(status) = status {
            *statuses.entry(status).or_insert_with(N::default) += count;
        }
    }
    (codes, statuses)
}

fn processes(snapshot: &Snapshot, rates: &Rates) -> Vec<Process> {
    let mut processes: Vec<Process> = Vec::new();
    for (name, descriptor, is_rate) in &PROCESS {
        for PointView { labels, value, per_second } in families::points_of(snapshot, descriptor, rates) {
            let Some(value) = (if *is_rate { per_second } else { Some(value) }) else { continue };
            let known = processes.iter_mut().find(|process| process.labels == labels);
            if let Some(process) = known {
                process.figures.insert(*name, value);
            } else {
                processes.push(Process { labels, figures: [(*name, value)].into() });
            }
        }
    }
    processes
}

fn unseen(snapshot: &Snapshot, rates: &Rates) -> Vec<Unseen> {
    let of = |descriptor: &&'static Descriptor| {
        let Descriptor { prometheus_name: name, help, .. } = *descriptor;
        let points = families::points_of(snapshot, descriptor, rates).into_iter();
        points.filter(|point| point.value > 0.0).map(move |point| Unseen { name, help, point })
    };
    UNSEEN.iter().flat_map(of).collect()
}

fn observer(snapshot: &Snapshot, rates: &Rates) -> Observer {
    let single = |descriptor| families::single(snapshot, descriptor, rates);
    let work = WORK.iter().map(|descriptor| FamilyView {
        name: descriptor.prometheus_name,
        help: descriptor.help,
        points: families::points_of(snapshot, descriptor, rates),
    });
    Observer {
        cpu_cores: single(&catalogue::CPU_SECONDS).and_then(|point| point.per_second),
        resident_bytes: single(&catalogue::RESIDENT_MEMORY).map(|point| point.value),
        sidecars: families::points_of(snapshot, &catalogue::SIDECARS, rates),
        families: work.filter(|family| !family.points.is_empty()).collect(),
    }
}

#[expect(clippy::cast_precision_loss, reason = "below 2^53 microseconds there are 285 years")]
fn milliseconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1_000.0
}
