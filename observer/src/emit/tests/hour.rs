//! An hour of pushes to a receiver that restarts, refuses, loses connections and answers, on a clock that jumps from one
//! timer to the next: what it has at the end is what was encoded, value by value.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt,
    future::{pending, ready},
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper::{
    HeaderMap, Request, Response,
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest, common::v1::KeyValue, metrics::v1::metric::Data,
};
use prost::Message;
use tokio::{
    net::{TcpSocket, TcpStream},
    task::JoinSet,
};

use super::{receiver::Held, receivers::ungzip, *};
use crate::{
    emit::{
        http::Access,
        options::Compression,
        otlp::{
            grpc::{EXPORT_METRICS, OtlpGrpc},
            http::OtlpHttp,
        },
        remote_write::RemoteWrite,
    },
    model::{
        Inputs, Model,
        encode::{
            otlp::{self, OtlpEncoder, Temporality},
            remote_write::{Histograms, RemoteWriteEncoder},
        },
        reading::Reading,
    },
};

const INTERVAL: Duration = Duration::from_secs(10);
const ROUNDS: u64 = 360;
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long the receiver runs between restarts, and how long it takes for one.
const UP: Duration = Duration::from_secs(200);
const DOWN: Duration = Duration::from_secs(40);

/// Values by series and time.
type Store = BTreeMap<String, BTreeMap<u64, String>>;
/// Reads a body that is not compressed: series, time and value of each point.
type Read = fn(&[u8]) -> Vec<(String, u64, String)>;

/// One kind of receiver.
struct Kind {
    encoder: fn() -> Box<dyn Encoder>,
    transport: fn(reqwest::Url) -> Box<dyn Transport>,
    unpack: fn(&[u8]) -> Vec<u8>,
    read: Read,
    is_grpc: bool,
    /// Whether a value has those before it in it.
    is_cumulative: bool,
}

const OTLP: Kind = Kind {
    encoder: || Box::new(OtlpEncoder::new(otlp::Options::default(), "node-1")),
    transport: |url| Box::new(Held(OtlpHttp::new(url, Access::default(), Compression::Gzip, TIMEOUT).unwrap())),
    unpack: ungzip,
    read: read_otlp,
    is_grpc: false,
    is_cumulative: true,
};
const DELTA: Kind = Kind {
    encoder: || {
        let options = otlp::Options { temporality: Temporality::Delta, ..otlp::Options::default() };
        Box::new(OtlpEncoder::new(options, "node-1"))
    },
    is_cumulative: false,
    ..OTLP
};
const GRPC: Kind = Kind {
    transport: |url| {
        let access = Access::default();
        Box::new(Held(OtlpGrpc::new(url, EXPORT_METRICS, access, Compression::Gzip, TIMEOUT).unwrap()))
    },
    // Behind the prefix of the message.
    unpack: |body| ungzip(&body[5..]),
    is_grpc: true,
    ..OTLP
};
const REMOTE_WRITE: Kind = Kind {
    encoder: || Box::new(RemoteWriteEncoder::new("node-1", Histograms::Classic)),
    transport: |url| Box::new(Held(RemoteWrite::new(url, Access::default(), TIMEOUT).unwrap())),
    unpack: |body| snap::raw::Decoder::new().decompress_vec(body).unwrap(),
    read: read_remote_write,
    ..OTLP
};
const WAVEFRONT: Kind = Kind {
    encoder: || Box::new(WavefrontEncoder::new(Options::default(), "node-1").unwrap()),
    transport: |url| Box::new(Held(HttpSink::proxy(url, TIMEOUT).unwrap())),
    read: read_wavefront,
    ..OTLP
};

#[tokio::test(start_paused = true)]
async fn otlp_is_equal_value_by_value_after_an_hour() {
    hour(&OTLP).await;
}

#[tokio::test(start_paused = true)]
async fn otlp_deltas_are_equal_value_by_value_after_an_hour() {
    hour(&DELTA).await;
}

#[tokio::test(start_paused = true)]
async fn otlp_over_grpc_is_equal_value_by_value_after_an_hour() {
    hour(&GRPC).await;
}

#[tokio::test(start_paused = true)]
async fn remote_write_is_equal_value_by_value_after_an_hour() {
    hour(&REMOTE_WRITE).await;
}

#[tokio::test(start_paused = true)]
async fn wavefront_is_equal_value_by_value_after_an_hour() {
    hour(&WAVEFRONT).await;
}

/// With a disk queue everything arrives; without one, at least the last values.
async fn hour(kind: &Kind) {
    let rounds = rounds();
    let directory = tempfile::tempdir().unwrap();
    let queue = DiskQueue::new(directory.path().to_owned(), 64 << 20);
    let (store, stats) = push(kind, &rounds, Some(queue)).await;
    assert!(losses(&stats.dropped).is_empty() && losses(&stats.pushes_dropped).is_empty(), "{stats:?}");
    let kinds: Vec<_> = stats.errors.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, ["connect", "connection", "push_back", "server", "timeout", "too_large", "unauthorised"]);
    assert_equal(&store, &encoded(kind, &rounds, true));

    if !kind.is_cumulative {
        return;
    }
    let (store, _) = push(kind, &rounds, None).await;
    for (series, values) in encoded(kind, &rounds[rounds.len() - 1..], false) {
        let (at, value) = values.first_key_value().unwrap();
        assert_eq!(store.get(&series).and_then(|values| values.get(at)), Some(value), "{series}");
    }
}

/// Snapshots of an hour: counters grow, series end, a control plane restarts.
fn rounds() -> Vec<Arc<Snapshot>> {
    let mut model = Model::new(fixture::at(0), Duration::from_mins(15));
    let (sidecars, peers, own) = (fixture::sidecars(), fixture::peers(), fixture::own());
    let snapshot = |round| {
        let mut series = fixture::every_kind(round);
        if round > ROUNDS / 2 {
            series.remove(0);
        }
        let scrapes = vec![fixture::scraped("10.0.0.8:15014", &page(round % (ROUNDS / 3)))];
        model.update(Inputs {
            reading: &Reading { scrapes, ..fixture::reading(round * INTERVAL.as_secs(), series) },
            running: &sidecars,
            ended: &[],
            components: &[],
            peers: &peers,
            own: &own,
            closes_interval: true,
        })
    };
    (1..=ROUNDS).map(snapshot).collect()
}

fn page(total: u64) -> String {
    format!(
        "# TYPE a_total counter\na_total{{kind=\"x\"}} {total}\n# TYPE b gauge\nb 0.{total}\n\
         # TYPE c histogram\nc_bucket{{le=\"1\"}} {total}\nc_bucket{{le=\"+Inf\"}} {}\nc_sum {total}.5\nc_count {}\n\
         # TYPE d summary\nd{{quantile=\"0.5\"}} {total}\nd_sum {total}\nd_count {total}\n",
        2 * total,
        2 * total
    )
}

/// Pushes the snapshots; returns what the receiver has at the end.
async fn push(kind: &Kind, rounds: &[Arc<Snapshot>], queue: Option<DiskQueue>) -> (Store, EmitterStats) {
    let receiver = Receiver::start(kind).await;
    let transport = (kind.transport)(format!("http://{}/", receiver.address).parse().unwrap());
    let emitter = Emitter::start("test".to_owned(), (kind.encoder)(), transport, queue, DeliveryLimits::default());
    for snapshot in rounds {
        emitter.offer(snapshot.clone());
        tokio::time::sleep(INTERVAL).await;
    }
    let began = Instant::now();
    while emitter.stats().queued_pushes > 0 || emitter.stats().on_disk.is_some_and(|(points, _)| points > 0) {
        assert!(began.elapsed() < Duration::from_mins(10), "{:?}", emitter.stats());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let stats = emitter.finish(Duration::from_mins(10)).await;
    assert!(receiver.restarts.load(Relaxed) >= 14, "{} restarts", receiver.restarts.load(Relaxed));
    (std::mem::take(&mut *receiver.store.lock().unwrap()), stats)
}

/// Returns what a receiver is to have of these snapshots, with what ends their series if `is_ended`.
fn encoded(kind: &Kind, rounds: &[Arc<Snapshot>], is_ended: bool) -> Store {
    let (mut store, mut encoder) = (Store::new(), (kind.encoder)());
    let mut keep = |batch: Batch| keep(&mut store, (kind.read)(&batch.body));
    for snapshot in rounds {
        encoder.encode(snapshot.clone()).for_each(&mut keep);
    }
    if is_ended {
        encoder.end().for_each(&mut keep);
    }
    store
}

/// Stores points as receivers do: in the order of their times, and one that comes again must be the same.
fn keep(store: &mut Store, points: Vec<(String, u64, String)>) {
    for (series, at, value) in points {
        let values = store.entry(series.clone()).or_default();
        if let Some((last, _)) = values.last_key_value() {
            assert!(at >= *last, "out of order: {series}");
        }
        assert_eq!(values.entry(at).or_insert_with(|| value.clone()), &value, "{series} at {at}");
    }
}

fn assert_equal(found: &Store, expected: &Store) {
    let points = |store: &Store| store.values().map(BTreeMap::len).sum::<usize>();
    assert!(points(expected) > 100 * ROUNDS as usize, "{} points", points(expected));
    for (series, values) in expected {
        let found = found.get(series).unwrap_or_else(|| panic!("{series} never came"));
        let differs = values.iter().find(|(at, value)| found.get(at) != Some(value));
        assert_eq!(differs, None, "{series}: {:?}", differs.and_then(|(at, _)| found.get(at)));
    }
    assert_eq!(points(found), points(expected));
}

/// A receiver that is unreliable for an hour.
struct Receiver {
    address: SocketAddr,
    store: Arc<Mutex<Store>>,
    restarts: Arc<AtomicU64>,
}

impl Receiver {
    async fn start(kind: &Kind) -> Self {
        // Bound throughout, so that nobody else gets the port while it restarts.
        let place = socket("127.0.0.1:0".parse().unwrap());
        let address = place.local_addr().unwrap();
        let own = Self { address, store: Arc::default(), restarts: Arc::default() };
        let (store, restarts) = (own.store.clone(), own.restarts.clone());
        let (unpack, read, is_grpc) = (kind.unpack, kind.read, kind.is_grpc);
        let listening = socket(address).listen(64).unwrap();
        tokio::spawn(async move {
            let end = Instant::now() + INTERVAL * ROUNDS as u32;
            let (mut listening, _place, number) = (Some(listening), place, Arc::<AtomicU64>::default());
            loop {
                let listener = listening.take().unwrap_or_else(|| socket(address).listen(64).unwrap());
                // Connections end with the process.
                let mut connections = JoinSet::new();
                let restart = if Instant::now() < end { Instant::now() + UP } else { end + Duration::from_hours(24) };
                while let Ok(accepted) = tokio::time::timeout_at(restart, listener.accept()).await {
                    let (store, number) = (store.clone(), number.clone());
                    let taker = Taker { store, number, end, unpack, read, is_grpc };
                    connections.spawn(taker.serve(accepted.unwrap().0));
                }
                drop(listener);
                connections.shutdown().await;
                restarts.fetch_add(1, Relaxed);
                tokio::time::sleep(DOWN).await;
            }
        });
        own
    }
}

fn socket(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.set_reuseport(true).unwrap();
    socket.bind(address).unwrap();
    socket
}

/// Takes the requests of one connection.
#[derive(Clone)]
struct Taker {
    store: Arc<Mutex<Store>>,
    /// Number of requests of all connections.
    number: Arc<AtomicU64>,
    /// From then on everything is taken.
    end: Instant,
    unpack: fn(&[u8]) -> Vec<u8>,
    read: Read,
    is_grpc: bool,
}

/// A connection that breaks off.
#[derive(Debug)]
struct Lost;

impl std::error::Error for Lost {}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("lost")
    }
}

impl Taker {
    async fn serve(self, stream: TcpStream) {
        let (is_grpc, io) = (self.is_grpc, TokioIo::new(stream));
        let service = service_fn(move |request: Request<Incoming>| {
            let own = self.clone();
            async move { own.take(request).await }
        });
        // A connection that was made to break off is no failure of the test.
        let _ = if is_grpc {
            http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await
        } else {
            http1::Builder::new().serve_connection(io, service).await
        };
    }

    async fn take(self, request: Request<Incoming>) -> Result<Response<UnsyncBoxBody<Bytes, Infallible>>, Lost> {
        let body = request.into_body().collect().await.map_err(|_| Lost)?.to_bytes();
        let refused = |status: u16, after: &str| {
            let response = Response::builder().status(status).header("retry-after", after);
            Ok(response.body(Full::default().boxed_unsync()).unwrap())
        };
        let act = if Instant::now() < self.end { self.number.fetch_add(1, Relaxed) % 13 } else { u64::MAX };
        match act {
            1 => return Err(Lost),
            3 => return refused(500, ""),
            5 => return refused(413, ""),
            // Half of the batch before has been taken.
            7 => return refused(429, "3"),
            8 => return refused(401, ""),
            9 => return refused(503, "Sun, 06 Nov 1994 08:49:37 GMT"),
            10 => {
                tokio::time::advance(TIMEOUT + Duration::from_secs(1)).await;
                pending::<Infallible>().await;
            }
            _ => {}
        }
        let points = (self.read)(&(self.unpack)(&body));
        let written = points.len();
        keep(&mut self.store.lock().unwrap(), points);
        if act == 11 {
            // Taken, and its answer is lost.
            return Err(Lost);
        }
        if self.is_grpc {
            // A message without fields, and the status behind it.
            let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
            let body = Full::from(vec![0; 5]).with_trailers(ready(Some(Ok(trailers))));
            return Ok(Response::builder().body(body.boxed_unsync()).unwrap());
        }
        let response = Response::builder().header("x-prometheus-remote-write-samples-written", written);
        Ok(response.body(Full::default().boxed_unsync()).unwrap())
    }
}

fn read_otlp(body: &[u8]) -> Vec<(String, u64, String)> {
    let request = ExportMetricsServiceRequest::decode(body).unwrap();
    let mut points = Vec::new();
    for resource in &request.resource_metrics {
        for metric in resource.scope_metrics.iter().flat_map(|scope| &scope.metrics) {
            let mut point = |attributes: &[KeyValue], at: u64, value: &dyn fmt::Debug| {
                let series = format!("{:?} {} {attributes:?}", resource.resource, metric.name);
                points.push((series, at, format!("{value:?}")));
            };
            match metric.data.as_ref().unwrap() {
                Data::Gauge(data) => {
                    data.data_points.iter().for_each(|own| point(&own.attributes, own.time_unix_nano, &own.value));
                }
                Data::Sum(data) => data.data_points.iter().for_each(|own| {
                    point(&own.attributes, own.time_unix_nano, &(own.value, own.start_time_unix_nano));
                }),
                Data::Histogram(data) => data.data_points.iter().for_each(|own| {
                    let value = (own.sum, &own.bucket_counts, &own.explicit_bounds, own.start_time_unix_nano);
                    point(&own.attributes, own.time_unix_nano, &value);
                }),
                Data::Summary(data) => data.data_points.iter().for_each(|own| {
                    point(&own.attributes, own.time_unix_nano, &(own.sum, own.count, &own.quantile_values));
                }),
                Data::ExponentialHistogram(_) => panic!("not asked for"),
            }
        }
    }
    points
}

#[derive(Clone, PartialEq, Message)]
struct WriteRequest {
    #[prost(string, repeated, tag = "4")]
    symbols: Vec<String>,
    #[prost(message, repeated, tag = "5")]
    timeseries: Vec<TimeSeries>,
}

#[derive(Clone, PartialEq, Message)]
struct TimeSeries {
    #[prost(uint32, repeated, tag = "1")]
    labels_refs: Vec<u32>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<Sample>,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(double, tag = "1")]
    value: f64,
    #[prost(uint64, tag = "2")]
    timestamp: u64,
    #[prost(uint64, tag = "3")]
    start_timestamp: u64,
}

fn read_remote_write(body: &[u8]) -> Vec<(String, u64, String)> {
    let WriteRequest { symbols, timeseries } = WriteRequest::decode(body).unwrap();
    let mut points = Vec::new();
    for TimeSeries { labels_refs, samples } in timeseries {
        let labels: Vec<&str> = labels_refs.iter().map(|at| symbols[*at as usize].as_str()).collect();
        let [Sample { value, timestamp, start_timestamp }] = &samples[..] else { panic!("one sample each") };
        points.push((labels.join("\n"), *timestamp, format!("{:x} {start_timestamp}", value.to_bits())));
    }
    points
}

fn read_wavefront(body: &[u8]) -> Vec<(String, u64, String)> {
    let line = |line: &str| {
        let (name, rest) = line[1..].split_once("\" ").unwrap();
        let (value, rest) = rest.split_once(' ').unwrap();
        let (at, tags) = rest.split_once(' ').unwrap();
        (format!("{name} {tags}"), at.parse().unwrap(), value.to_owned())
    };
    std::str::from_utf8(body).unwrap().lines().map(line).collect()
}
