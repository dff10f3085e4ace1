//! Speed of the encoders: `rendering_speed PAGE SERIES RUNS`.
//!
//! Renders SERIES label sets of HTTP, and SERIES samples of control planes that expose PAGE, in each of the formats
//! that the observer has. Prints a line per format: its name, then the megabytes per second of CPU time of each run.

use std::{
    env,
    error::Error,
    fmt::Write as _,
    fs,
    hint::black_box,
    sync::Arc,
    time::{Duration, SystemTime},
};

use observer::collect::self_usage;
use observer_common::{Endpoint, GRPC_NONE, Leg, Protocol, SeriesKey};
use observer_model::{
    Inputs, Model, SelfMetrics, Snapshot,
    encode::{
        Encoder as _,
        otlp::{self, OtlpEncoder},
        prometheus::{Exposition, Format},
        protobuf::ProtobufExposition,
        remote_write::{self, RemoteWriteEncoder, version_1},
        selection::Selection,
        wavefront::{Names, Options, WavefrontEncoder},
    },
    exposition,
    identity::{Instance, ProcessId, Role, Sidecar, Workload},
    reading::{HistogramReading, KernelReading, Reading, ScrapeReading, SeriesReading},
    scraped::ScrapedExposition,
    workload_index::StaticPeers,
};

const SIDECARS: u32 = 100;
const FIRST_STATUS: u16 = 200;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [page, series, runs] = arguments.as_slice() else { return Err("PAGE SERIES RUNS".into()) };
    let (page, series, runs) = (fs::read_to_string(page)?, series.parse()?, runs.parse()?);
    for (name, snapshot) in [("mesh", mesh(series)), ("control-plane", control_plane(&page, series)?)] {
        let (text, open_metrics) =
            (|| prometheus(&snapshot, Format::Text), || prometheus(&snapshot, Format::OpenMetrics));
        measure(&format!("{name}-text"), runs, text)?;
        measure(&format!("{name}-openmetrics"), runs, open_metrics)?;
        measure(&format!("{name}-protobuf"), runs, || protobuf(&snapshot))?;
        measure(&format!("{name}-wavefront"), runs, || wavefront(&snapshot, Names::Documented))?;
        measure(&format!("{name}-collector"), runs, || wavefront(&snapshot, Names::Collector))?;
        measure(&format!("{name}-otlp"), runs, || otlp(&snapshot))?;
        measure(&format!("{name}-remote-write"), runs, || remote_write(&snapshot, |body| body.len()))?;
        let version_1 = |body: &[u8]| version_1(body).map_or(0, |old| black_box(old.body).len());
        measure(&format!("{name}-remote-write-1"), runs, || remote_write(&snapshot, version_1))?;
    }
    Ok(())
}

/// Renders once to warm up, then `runs` times.
#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
fn measure(name: &str, runs: u32, render: impl Fn() -> usize) -> Result<(), Box<dyn Error>> {
    let bytes = render();
    let mut line = name.to_owned();
    for _ in 0..runs {
        let began = own_time();
        if render() != bytes {
            return Err(format!("{name}: not the same text every time").into());
        }
        write!(line, " {:.1}", bytes as f64 / 1e6 / (own_time() - began).as_secs_f64())?;
    }
    println!("{line}");
    Ok(())
}

/// Returns the CPU time of this process, which has one thread.
fn own_time() -> Duration {
    self_usage::usage().cpu.expect("the kernel says it")
}

fn prometheus(snapshot: &Arc<Snapshot>, format: Format) -> usize {
    Exposition::of(snapshot.clone(), format, Selection::default()).map(|piece| black_box(piece).len()).sum()
}

fn protobuf(snapshot: &Arc<Snapshot>) -> usize {
    ProtobufExposition::of(snapshot.clone(), Selection::default()).map(|piece| black_box(piece).len()).sum()
}

fn wavefront(snapshot: &Arc<Snapshot>, names: Names) -> usize {
    let mut lines = WavefrontEncoder::new(Options { names, ..Options::default() }, "node-1").expect("a good name");
    lines.encode(snapshot.clone()).map(|batch| black_box(batch).body.len()).sum()
}

fn otlp(snapshot: &Arc<Snapshot>) -> usize {
    let mut requests = OtlpEncoder::new(otlp::Options::default(), "node-1");
    requests.encode(snapshot.clone()).map(|batch| black_box(batch).body.len()).sum()
}

/// Renders two pushes: the second one is compared with the first, to end what is gone.
fn remote_write(snapshot: &Arc<Snapshot>, convert: impl Fn(&[u8]) -> usize) -> usize {
    let mut requests = RemoteWriteEncoder::new("node-1", remote_write::Histograms::Native);
    let mut push = || requests.encode(snapshot.clone()).map(|batch| convert(&black_box(batch).body)).sum::<usize>();
    push() + push()
}

/// Returns label sets with values in a handful of buckets each, as in a real mesh.
fn mesh(series: usize) -> Arc<Snapshot> {
    let sidecars: Vec<_> = (1..=SIDECARS).map(sidecar).collect();
    let statuses = u16::try_from(series.div_ceil(sidecars.len())).unwrap_or(u16::MAX);
    let keys = (FIRST_STATUS..FIRST_STATUS + statuses).flat_map(|status| (1..=SIDECARS).map(move |id| key(id, status)));
    let series = keys.take(series).map(requests).collect();
    let kernel = KernelReading { series, series_capacity: 16_384, ..KernelReading::default() };
    snapshot(Some(kernel), Vec::new(), &sidecars)
}

/// Returns copies of one exposition, each of another instance.
fn control_plane(page: &str, series: usize) -> Result<Arc<Snapshot>, Box<dyn Error>> {
    let page = Arc::new(ScrapedExposition::parse(exposition::Format::Text, page)?);
    let instances = series.div_ceil(usize::try_from(page.samples)?);
    let reading = |number| ScrapeReading {
        instance: Instance {
            instance: format!("10.0.{}.{}:15014", number / 250, number % 250),
            app: "istiod".to_owned(),
            pod: None,
            namespace: None,
            node: Some("node-1".to_owned()),
        },
        exposition: Some(page.clone()),
        tried: true,
        duration: Duration::from_millis(5),
        scrapes: [("ok", 1)].into(),
        skipped: [].into(),
    };
    let targets = (0..instances).map(reading).collect();
    Ok(snapshot(None, targets, &[]))
}

fn snapshot(kernel: Option<KernelReading>, scrapes: Vec<ScrapeReading>, running: &[Arc<Sidecar>]) -> Arc<Snapshot> {
    let at = SystemTime::now();
    let mut model = Model::new(at, Duration::from_mins(15));
    model.cumulate_cells();
    model.update(Inputs {
        reading: &Reading { at, steady: Duration::ZERO, kernel, processes: Vec::new(), scrapes, outcomes: Vec::new() },
        running,
        ended: &[],
        components: &[],
        peers: &Arc::new(StaticPeers::default()),
        own: &SelfMetrics::default(),
        closes_interval: true,
    })
}

fn sidecar(id: u32) -> Arc<Sidecar> {
    let name = format!("reviews-v{id}");
    let labels = [("app", "reviews"), ("version", "v1"), ("service.istio.io/canonical-name", "reviews")];
    let workload = Workload {
        pod: Some(format!("{name}-7c9f8d6b5-x2x4z")),
        namespace: Some("default".to_owned()),
        name: Some(name),
        cluster: Some("Kubernetes".to_owned()),
        service_account: Some("bookinfo-reviews".to_owned()),
        trust_domain: Some("cluster.local".to_owned()),
        labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        node: Some("node-1".to_owned()),
    };
    Arc::new(Sidecar {
        id,
        process: ProcessId { pid: id, start_time: 1 },
        role: Role::Sidecar,
        evidence: String::new(),
        cgroup: "/sys/fs/cgroup/pod".into(),
        cgroup_id: u64::from(id),
        netns_inode: u64::from(id),
        addresses: Vec::new(),
        coresidents: Vec::new(),
        is_cgroup_shared: false,
        workload: Arc::new(workload),
    })
}

fn key(sidecar: u32, status: u16) -> SeriesKey {
    let destination =
        Endpoint { address: std::net::Ipv4Addr::new(10, 96, 0, 1).to_ipv6_mapped().octets(), port: 9080, padding: 0 };
    let (grpc_status, leg, protocol) = (GRPC_NONE, Leg::SOURCE, Protocol::HTTP);
    SeriesKey { sidecar, destination, status, grpc_status, leg, protocol, ..SeriesKey::default() }
}

fn requests(key: SeriesKey) -> SeriesReading {
    let mut histogram =
        HistogramReading { sum: 123_456, cells: vec![(200, 40), (231, 2)], ..HistogramReading::default() };
    histogram.buckets[2..6].copy_from_slice(&[30, 8, 3, 1]);
    let histograms = [histogram.clone(), histogram.clone(), histogram];
    SeriesReading { key, histograms, opened: 0, closed: 0, received: 0, sent: 0, messages: [0; 2] }
}
