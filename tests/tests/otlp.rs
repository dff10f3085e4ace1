//! OTLP over HTTP and gRPC through the whole observer: a collector with opentelemetry-proto's decoder has, value by value,
//! what `/metrics` has.

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    env, fs,
    io::Read as _,
    net::SocketAddr,
    path::Path,
    process::{self, Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, sleep},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use flate2::read::GzDecoder;
use harness::{
    observer::{Observer, free_port},
    otlp::{self, Samples, exposed},
    replay::{Capture, Replay},
    tools,
    wait::wait_until,
};
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::{
    Request, Response,
    body::Incoming,
    header::{HeaderMap, HeaderValue},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::{
    collector::metrics::v1::{ExportMetricsPartialSuccess, ExportMetricsServiceRequest, ExportMetricsServiceResponse},
    metrics::v1::metric::Data,
};
use prost::Message as _;
use tokio::{net::TcpListener, runtime::Runtime};

const TIMEOUT: Duration = Duration::from_secs(90);
const PAGE: &str = "1.25.3/16-one-left";
const OTHER_PAGE: &str = "1.25.3/05-config-update";
const DROPPED: &str = "mesh_observer_emitter_points_dropped_total";
const ERRORS: &str = "mesh_observer_emitter_errors_total";

#[test]
fn a_collector_has_over_http_what_the_page_has() -> Result<()> {
    check("http", false, vec![Act::Status(503), Act::Status(401), Act::Refuse(3)])
}

#[test]
fn a_collector_has_over_grpc_what_the_page_has() -> Result<()> {
    check("grpc", true, vec![Act::Status(14), Act::Status(16), Act::Refuse(3)])
}

fn check(name: &str, is_grpc: bool, script: Vec<Act>) -> Result<()> {
    let directory = env::temp_dir().join(format!("mesh-otlp-{}-{name}", process::id()));
    fs::create_dir_all(&directory)?;
    let headers = directory.join("headers").display().to_string();
    fs::write(&headers, "authorization: Bearer secret\n")?;
    let collector = Collector::start(is_grpc, script)?;
    let plane = Replay::start(&Capture::named(PAGE)?)?;
    let (instance, url) = (plane.instance(), format!("otlp+{name}://{}#headers-file={headers}", collector.address));
    let arguments = ["--interval", "1s", "--emit", &url, "--otlp-resource", "k8s.cluster.name=c1"];
    let observer = Observer::start_scraping(&directory, &[plane.url()], &arguments)?;
    let equal = wait_for_all(&observer, &instance, || Ok(collector.samples(&instance)))?;
    println!("{equal} samples over {name} are what the page has");
    let page = observer.wait(TIMEOUT, |page| page.sum(ERRORS, &[("kind", "partly_refused")]) == Some(1.0))?;
    ensure!(
        page.sum(DROPPED, &[("reason", "refused")]) == Some(3.0),
        "the refused points: {:?}",
        page.sum(DROPPED, &[])
    );
    ensure!(page.sum(ERRORS, &[("kind", "server")]) == Some(1.0) && page.sum(ERRORS, &[]) == Some(3.0), "other errors");
    let resource = collector.resource();
    for (name, value) in [("service.name", "mesh-observer"), ("k8s.cluster.name", "c1")] {
        ensure!(resource.get(name).map(String::as_str) == Some(value), "{resource:?}");
    }
    ensure!(!observer.log().contains("secret"), "the token is logged");
    observer.stop()?;
    Ok(fs::remove_dir_all(directory)?)
}

#[test]
fn the_real_collector_has_over_http_what_the_page_has_across_its_restart() -> Result<()> {
    check_real("http")
}

#[test]
fn the_real_collector_has_over_grpc_what_the_page_has_across_its_restart() -> Result<()> {
    check_real("grpc")
}

fn check_real(name: &str) -> Result<()> {
    let directory = env::temp_dir().join(format!("mesh-otelcol-{}-{name}", process::id()));
    fs::create_dir_all(&directory)?;
    let address = free_port()?;
    let collector = RealCollector::start(&directory, name, address)?;
    let plane = Replay::start(&Capture::named(PAGE)?)?;
    let (instance, url) = (plane.instance(), format!("otlp+{name}://{address}"));
    let queue = directory.join("queue").display().to_string();
    let arguments = ["--interval", "1s", "--emit", &url, "--queue-dir", &queue];
    let observer = Observer::start_scraping(&directory, &[plane.url()], &arguments)?;
    let received = || Ok(otlp::of_instance(&written(&directory)?.1, &instance));
    let before = wait_for_all(&observer, &instance, received)?;
    drop(collector);
    plane.show(&Capture::named(OTHER_PAGE)?)?;
    sleep(OUTAGE);
    ensure!(observer.scrape()?.sum("mesh_observer_emitter_disk_points", &[]) > Some(0.0), "nothing waits on disk");
    let _collector = RealCollector::start(&directory, name, address)?;
    observer.wait(TIMEOUT, |page| page.sum("mesh_observer_emitter_disk_points", &[]) == Some(0.0))?;
    // Series that the second page lacks stay in the file.
    let equal = wait_until("what is exposed is received after the restart", TIMEOUT, || {
        equal_samples(&received()?, &exposed(&observer.scrape()?, &instance)?)
    })?;
    let page = observer.scrape()?;
    ensure!(page.sum(DROPPED, &[]) == Some(0.0), "points are dropped: {:?}", page.sum(DROPPED, &[]));
    let times = written(&directory)?.0;
    let gap = times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
    let length = times.last().zip(times.first()).map_or(0, |(last, first)| last - first);
    // The newest push that is compared may be an interval older than the restart.
    let is_spanned = length + 1_000 > OUTAGE.as_millis();
    ensure!(is_spanned && gap < 1_900, "{} pushes in {length} ms, {gap} ms apart", times.len());
    println!(
        "{before} samples over {name} before and {equal} after the restart are the page's; {} pushes in {length} ms, at \
         most {gap} ms apart",
        times.len()
    );
    observer.stop()?;
    Ok(fs::remove_dir_all(directory)?)
}

/// Waits until what the collector has of this instance is what the page has, and nothing else; returns the number of
/// samples.
fn wait_for_all(observer: &Observer, instance: &str, received: impl Fn() -> Result<Samples>) -> Result<usize> {
    let all = wait_until("what is exposed is received", TIMEOUT, || {
        let (found, expected) = (received()?, exposed(&observer.scrape()?, instance)?);
        ensure!(found.len() == expected.len(), "{} samples of {}", found.len(), expected.len());
        equal_samples(&found, &expected)
    });
    all.with_context(|| observer.log())
}

/// Returns the number of samples if all that are expected were found.
fn equal_samples(found: &Samples, expected: &Samples) -> Result<usize> {
    let wrong = expected.iter().find(|(sample, value)| found.get(*sample) != Some(*value));
    ensure!(wrong.is_none() && expected.len() > 100, "of {} samples {wrong:?} differs", expected.len());
    Ok(expected.len())
}

/// Time without a collector.
const OUTAGE: Duration = Duration::from_secs(5);

/// The OpenTelemetry collector, which writes what it has received to a file; killed when dropped.
struct RealCollector(Child);

impl RealCollector {
    fn start(directory: &Path, protocol: &str, address: SocketAddr) -> Result<Self> {
        let (configuration, file) = (directory.join("otelcol.yml"), directory.join("received"));
        let text = format!(
            "receivers:\n  otlp:\n    protocols:\n      {protocol}:\n        endpoint: {address}\n\
             exporters:\n  file:\n    path: {}\n    format: proto\n    append: true\n    flush_interval: 100ms\n\
             service:\n  telemetry:\n    metrics:\n      level: none\n  pipelines:\n    metrics:\n      \
             receivers: [otlp]\n      exporters: [file]\n",
            file.display()
        );
        fs::write(&configuration, text)?;
        let log = fs::File::create(directory.join("otelcol.log"))?;
        let process = Command::new(tools::built("otelcol")?)
            .arg("--config")
            .arg(&configuration)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(Self(process))
    }
}

impl Drop for RealCollector {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns the times of all pushes, in milliseconds, and the last value of each series, that the collector has written.
fn written(directory: &Path) -> Result<(Vec<u128>, Samples)> {
    let bytes = fs::read(directory.join("received")).unwrap_or_default();
    let (mut rest, mut times, mut samples) = (&*bytes, Vec::new(), Samples::new());
    while let Some((length, content)) = rest.split_first_chunk() {
        // The last message may be half written.
        let Some((message, next)) = content.split_at_checked(u32::from_be_bytes(*length) as usize) else { break };
        let request = ExportMetricsServiceRequest::decode(message)?;
        let metrics = request.resource_metrics.iter().flat_map(|own| &own.scope_metrics).flat_map(|own| &own.metrics);
        let nanoseconds = metrics.filter_map(|metric| match metric.data.as_ref()? {
            Data::Gauge(data) => Some(data.data_points.first()?.time_unix_nano),
            _ => None,
        });
        times.extend(nanoseconds.take(1).map(|time| u128::from(time) / 1_000_000));
        otlp::store(request, &mut samples)?;
        rest = next;
    }
    times.dedup();
    Ok((times, samples))
}

/// The collector's reaction to one request.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// Answers with this status of HTTP or gRPC.
    Status(u16),
    /// Accepts it but for so many points.
    Refuse(i64),
}

/// A collector on a port of its own, which keeps the last value of each series.
struct Collector {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    script: VecDeque<Act>,
    samples: Samples,
    resource: BTreeMap<String, String>,
}

impl Collector {
    fn start(is_grpc: bool, script: Vec<Act>) -> Result<Self> {
        let state = Arc::new(Mutex::new(State { script: script.into(), ..State::default() }));
        let runtime = Runtime::new()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let collector = Self { address: listener.local_addr()?, state: state.clone() };
        thread::spawn(move || runtime.block_on(accept(&listener, is_grpc, &state)));
        Ok(collector)
    }

    fn samples(&self, instance: &str) -> Samples {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        otlp::of_instance(&state.samples, instance)
    }

    fn resource(&self) -> BTreeMap<String, String> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).resource.clone()
    }
}

async fn accept(listener: &TcpListener, is_grpc: bool, state: &Arc<Mutex<State>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let state = state.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let state = state.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await?.to_bytes();
                let answer = if is_grpc { grpc(&head, &body, &state) } else { http(&head, &body, &state) };
                Ok::<_, hyper::Error>(answer.unwrap_or_else(|error| {
                    // The observer drops a batch that is answered so, and the test fails.
                    eprintln!("{error:#}");
                    Response::builder().status(400).body(full(Vec::new())).expect("it is one")
                }))
            }
        });
        let io = TokioIo::new(stream);
        if is_grpc {
            tokio::spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(io, service));
        } else {
            tokio::spawn(http1::Builder::new().serve_connection(io, service));
        }
    }
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

fn full(body: Vec<u8>) -> BoxBody<Bytes, Infallible> {
    Full::new(Bytes::from(body)).boxed()
}

fn http(head: &hyper::http::request::Parts, body: &[u8], state: &Mutex<State>) -> Result<Answer> {
    ensure!(head.uri.path() == "/v1/metrics" && head.headers["authorization"] == "Bearer secret", "{head:?}");
    ensure!(head.headers["content-encoding"] == "gzip", "{head:?}");
    let (status, body) = receive(body, state)?;
    Ok(Response::builder().status(if status == 0 { 200 } else { status }).body(full(body))?)
}

fn grpc(head: &hyper::http::request::Parts, body: &[u8], state: &Mutex<State>) -> Result<Answer> {
    let method = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";
    ensure!(head.uri.path() == method && head.headers["authorization"] == "Bearer secret", "{head:?}");
    ensure!(body[0] == 1 && u32::from_be_bytes(body[1..5].try_into()?) as usize == body.len() - 5, "no message");
    let (status, body) = receive(&body[5..], state)?;
    let mut message = vec![0];
    message.extend(u32::try_from(body.len())?.to_be_bytes());
    message.extend(body);
    let trailers = HeaderMap::from_iter([("grpc-status".parse()?, HeaderValue::from(status))]);
    let body = full(message).with_trailers(async move { Some(Ok(trailers)) }).boxed();
    Ok(Response::builder().header("content-type", "application/grpc").body(body)?)
}

/// Stores a request, unless the script has a status for it. Returns status and message of the answer.
fn receive(body: &[u8], state: &Mutex<State>) -> Result<(u16, Vec<u8>)> {
    let mut message = Vec::new();
    GzDecoder::new(body).read_to_end(&mut message)?;
    let request = ExportMetricsServiceRequest::decode(&*message)?;
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    let partial = match state.script.pop_front() {
        Some(Act::Status(status)) => return Ok((status, Vec::new())),
        Some(Act::Refuse(points)) => {
            Some(ExportMetricsPartialSuccess { rejected_data_points: points, error_message: "too old".to_owned() })
        }
        None => None,
    };
    state.resource = otlp::store(request, &mut state.samples)?;
    Ok((0, ExportMetricsServiceResponse { partial_success: partial }.encode_to_vec()))
}
