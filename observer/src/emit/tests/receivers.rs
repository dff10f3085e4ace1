//! OTLP and remote write against a receiver that follows a script.

use std::{collections::VecDeque, convert::Infallible, io::Read as _, net::SocketAddr, path::Path};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::{
    HeaderMap, Request, Response,
    body::Incoming,
    header::{HeaderName, HeaderValue},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsPartialSuccess, ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use prost::Message as _;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::{
    emit::{
        credentials::Credentials,
        http::Access,
        options::Compression,
        otlp::{
            grpc::{EXPORT_METRICS, OtlpGrpc},
            http::OtlpHttp,
        },
        remote_write::RemoteWrite,
    },
    model::encode::{
        otlp::OtlpEncoder,
        remote_write::{Histograms, RemoteWriteEncoder, version_1},
    },
};

pub(super) const LIMIT: Duration = Duration::from_secs(5);

/// An answer: status, headers, body and trailers.
#[derive(Clone, Default)]
pub(super) struct Answer(
    pub(super) u16,
    pub(super) Vec<(&'static str, &'static str)>,
    pub(super) Bytes,
    pub(super) Vec<(&'static str, &'static str)>,
);

/// A request: path, headers, and the body as it came.
pub(super) struct Taken(pub(super) String, pub(super) HeaderMap, pub(super) Bytes);

fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
    list.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
}

/// Starts a receiver that follows the script and then repeats its last answer.
pub(super) async fn serve(is_http2: bool, script: Vec<Answer>) -> (SocketAddr, UnboundedReceiver<Taken>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, taken) = unbounded_channel();
    let script = Arc::new(Mutex::new(VecDeque::from(script)));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (sender, script) = (sender.clone(), script.clone());
            let service = service_fn(move |request: Request<Incoming>| {
                let (sender, script) = (sender.clone(), script.clone());
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await.unwrap().to_bytes();
                    let _ = sender.send(Taken(head.uri.path().to_owned(), head.headers, body));
                    let mut script = script.lock().unwrap();
                    let answer = script.front().cloned().unwrap();
                    if script.len() > 1 {
                        script.pop_front();
                    }
                    let Answer(status, own, body, trailers) = answer;
                    let mut body: BoxBody<Bytes, Infallible> = Full::new(body).boxed();
                    if !trailers.is_empty() {
                        body = body.with_trailers(async move { Some(Ok(headers(&trailers))) }).boxed();
                    }
                    let mut response = Response::builder().status(status).body(body).unwrap();
                    response.headers_mut().extend(headers(&own));
                    Ok::<_, Infallible>(response)
                }
            });
            let io = TokioIo::new(stream);
            if is_http2 {
                tokio::spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(io, service));
            } else {
                tokio::spawn(http1::Builder::new().serve_connection(io, service));
            }
        }
    });
    (address, taken)
}

fn ok(body: Vec<u8>) -> Answer {
    Answer(200, vec![], body.into(), vec![])
}

pub(super) fn url(address: SocketAddr, path: &str) -> reqwest::Url {
    format!("http://{address}{path}").parse().unwrap()
}

pub(super) fn start(encoder: Box<dyn Encoder>, transport: impl Transport, disk_queue: Option<DiskQueue>) -> Emitter {
    Emitter::start("test".to_owned(), encoder, Box::new(transport), disk_queue, QUICK)
}

fn otlp_encoder() -> Box<dyn Encoder> {
    Box::new(OtlpEncoder::new(observer_model::encode::otlp::Options::default(), "node-1"))
}

fn rejecting(points: i64) -> Vec<u8> {
    let partial = ExportMetricsPartialSuccess { rejected_data_points: points, error_message: "too\nold".to_owned() };
    ExportMetricsServiceResponse { partial_success: Some(partial) }.encode_to_vec()
}

pub(super) fn ungzip(body: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    flate2::read::GzDecoder::new(body).read_to_end(&mut text).unwrap();
    text
}

fn points(request: &ExportMetricsServiceRequest) -> usize {
    use opentelemetry_proto::tonic::metrics::v1::metric::Data;
    let metrics = request.resource_metrics.iter().flat_map(|own| &own.scope_metrics).flat_map(|own| &own.metrics);
    let points = metrics.map(|metric| match metric.data.as_ref().unwrap() {
        Data::Gauge(data) => data.data_points.len(),
        Data::Sum(data) => data.data_points.len(),
        Data::Histogram(data) => data.data_points.len(),
        Data::ExponentialHistogram(data) => data.data_points.len(),
        Data::Summary(data) => data.data_points.len(),
    });
    points.sum()
}

/// What a request and its retries are: all that was taken, and the stats at the end.
async fn push(emitter: Emitter, taken: &mut UnboundedReceiver<Taken>) -> (Vec<Taken>, EmitterStats) {
    emitter.offer(fixture::snapshots()[0].clone());
    let stats = emitter.finish(Duration::from_mins(1)).await;
    let mut requests = Vec::new();
    while let Ok(request) = taken.try_recv() {
        requests.push(request);
    }
    (requests, stats)
}

#[tokio::test]
async fn otlp_over_http_is_retried_taken_once_and_partly_refused() {
    let script = vec![
        Answer(503, vec![("retry-after", "0")], Bytes::new(), vec![]),
        Answer(404, vec![], Bytes::new(), vec![]),
        ok(rejecting(3)),
    ];
    let (address, mut taken) = serve(false, script).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "Authorization: Bearer secret\n").unwrap();
    let credentials = Credentials { headers: Some(file.path().to_owned()), ..Credentials::default() };
    let access = Access { credentials, ..Access::default() };
    let transport = OtlpHttp::new(url(address, "/v1/metrics"), access, Compression::Gzip, LIMIT).unwrap();
    assert!(!format!("{transport:?}").contains("secret"));
    let (requests, stats) = push(start(otlp_encoder(), transport, None), &mut taken).await;
    assert_eq!(requests.len(), 3);
    for Taken(path, headers, body) in &requests {
        assert!(path == "/v1/metrics" && headers["content-type"] == "application/x-protobuf");
        assert!(headers["authorization"] == "Bearer secret" && headers["content-encoding"] == "gzip");
        assert_eq!(body, &requests[0].2);
    }
    let request = ExportMetricsServiceRequest::decode(&*ungzip(&requests[2].2)).unwrap();
    assert_eq!(stats.sent + 3, points(&request) as u64);
    assert_eq!(losses(&stats.dropped), [("refused", 3)]);
    assert_eq!(stats.errors, [("partly_refused", 1), ("push_back", 1), ("refused", 1)]);
}

#[tokio::test]
async fn answers_of_any_size_and_content_decide_by_their_status() {
    let large = vec![b'x'; 300 << 10];
    for (answer, sent) in [(ok(large.clone()), true), (Answer(400, vec![], large.into(), vec![]), false)] {
        let (address, mut taken) = serve(false, vec![answer]).await;
        let transport = OtlpHttp::new(url(address, "/"), Access::default(), Compression::None, LIMIT).unwrap();
        let (requests, stats) = push(start(otlp_encoder(), transport, None), &mut taken).await;
        let points = points(&ExportMetricsServiceRequest::decode(&*requests[0].2).unwrap()) as u64;
        assert!(!requests[0].1.contains_key("content-encoding"));
        let expected = if sent { (points, vec![]) } else { (0, vec![("refused", points)]) };
        assert_eq!((stats.sent, losses(&stats.dropped)), expected);
    }
}

#[tokio::test]
async fn otlp_over_grpc_is_a_unary_call_with_its_status_behind_it() {
    let message = |text: Vec<u8>| {
        let length = u32::try_from(text.len()).unwrap().to_be_bytes();
        Bytes::from([&[0], &length[..], &text].concat())
    };
    let grpc = vec![("content-type", "application/grpc")];
    let details = "CA4aNgoodHlwZS5nb29nbGVhcGlzLmNvbS9nb29nbGUucnBjLlJldHJ5SW5mbxIKCggIBxCAyrXuAQ";
    let script = vec![
        // An answer without a message has its status among the headers.
        Answer(200, vec![("content-type", "application/grpc"), ("grpc-status", "14")], Bytes::new(), vec![]),
        Answer(200, grpc.clone(), Bytes::new(), vec![("grpc-status", "14"), ("grpc-status-details-bin", details)]),
        Answer(200, grpc.clone(), Bytes::new(), vec![("grpc-status", "16"), ("grpc-message", "who?")]),
        Answer(502, vec![], Bytes::new(), vec![]),
        Answer(200, grpc.clone(), message(vec![0; 5 << 20]), vec![("grpc-status", "0")]),
        Answer(200, grpc, message(rejecting(2)), vec![("grpc-status", "0")]),
    ];
    let (address, mut taken) = serve(true, script).await;
    let transport =
        OtlpGrpc::new(url(address, "/"), EXPORT_METRICS, Access::default(), Compression::Gzip, LIMIT).unwrap();
    let (requests, stats) = push(start(otlp_encoder(), transport, None), &mut taken).await;
    assert_eq!(requests.len(), 6);
    let Taken(path, headers, body) = &requests[5];
    assert!(path == EXPORT_METRICS && headers["content-type"] == "application/grpc" && headers["te"] == "trailers");
    assert!(headers["grpc-encoding"] == "gzip" && body[0] == 1);
    assert_eq!(u32::from_be_bytes(body[1..5].try_into().unwrap()) as usize, body.len() - 5);
    let request = ExportMetricsServiceRequest::decode(&*ungzip(&body[5..])).unwrap();
    assert_eq!(stats.sent + 2, points(&request) as u64);
    assert_eq!(losses(&stats.dropped), [("refused", 2)]);
    let errors = [("connection", 1), ("partly_refused", 1), ("push_back", 1), ("server", 2), ("unauthorised", 1)];
    assert_eq!(stats.errors, errors);
}

#[tokio::test]
async fn what_is_not_taken_waits_on_disk_in_any_form() {
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str| Some(DiskQueue::new(directory.path().join(name), 1 << 20));
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let transports = |address| {
        let otlp = OtlpHttp::new(url(address, "/"), Access::default(), Compression::Gzip, LIMIT).unwrap();
        (otlp, RemoteWrite::new(url(address, "/"), Access::default(), LIMIT).unwrap())
    };
    let (otlp, remote_write) = transports(dead);
    let emitters = [
        start(otlp_encoder(), otlp, place("otlp")),
        start(Box::new(RemoteWriteEncoder::new("node-1", Histograms::Classic)), remote_write, place("remote-write")),
    ];
    let mut kept = Vec::new();
    for emitter in emitters {
        emitter.offer(fixture::snapshots()[0].clone());
        let stats = emitter.finish(Duration::from_secs(5)).await;
        assert!(stats.sent == 0 && losses(&stats.dropped).is_empty(), "{stats:?}");
        kept.push(stats.on_disk.unwrap().0);
    }
    assert!(kept[0] > 50 && kept[1] > 500, "{kept:?}");
    let (address, _taken) = serve(false, vec![ok(vec![])]).await;
    let (otlp, remote_write) = transports(address);
    let emitters = [
        start(otlp_encoder(), otlp, place("otlp")),
        start(Box::new(RemoteWriteEncoder::new("node-1", Histograms::Classic)), remote_write, place("remote-write")),
    ];
    for (emitter, kept) in emitters.into_iter().zip(kept) {
        let began = Instant::now();
        while emitter.stats().sent < kept {
            assert!(began.elapsed() < Duration::from_mins(1), "{:?}", emitter.stats());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(emitter.finish(Duration::from_secs(5)).await.on_disk, Some((0, 0)));
    }
}

fn written(status: u16, samples: &'static str) -> Answer {
    Answer(status, vec![("x-prometheus-remote-write-samples-written", samples)], Bytes::from("why"), vec![])
}

/// Returns version, and bytes behind the compression, of requests.
fn versions(requests: &[Taken]) -> Vec<(String, Vec<u8>)> {
    let read = |Taken(_, headers, body): &Taken| {
        assert!(headers["content-encoding"] == "snappy" && headers.contains_key("user-agent"));
        let version = headers["x-prometheus-remote-write-version"].to_str().unwrap().to_owned();
        let is_new = headers["content-type"] == "application/x-protobuf;proto=io.prometheus.write.v2.Request";
        assert!(is_new == (version == "2.0.0") && (is_new || headers["content-type"] == "application/x-protobuf"));
        (version, snap::raw::Decoder::new().decompress_vec(body).unwrap())
    };
    requests.iter().map(read).collect()
}

#[tokio::test]
async fn remote_write_finds_the_version_of_the_receiver() {
    let refusal = |status| Answer(status, vec![], Bytes::new(), vec![]);
    for (script, expected, kinds) in [
        // Series of this push, and those that end: two batches.
        (vec![refusal(204)], vec!["2.0.0", "0.1.0", "0.1.0"], vec![]),
        (vec![refusal(415), refusal(204)], vec!["2.0.0", "0.1.0", "0.1.0"], vec![]),
        (vec![refusal(400), refusal(204)], vec!["2.0.0", "0.1.0", "0.1.0"], vec![]),
        (vec![written(204, "100000")], vec!["2.0.0", "2.0.0"], vec![]),
        (
            vec![refusal(500), refusal(401), written(204, "100000")],
            vec!["2.0.0"; 4],
            vec![("server", 1), ("unauthorised", 1)],
        ),
    ] {
        let (address, mut taken) = serve(false, script).await;
        let transport = RemoteWrite::new(url(address, "/"), Access::default(), LIMIT).unwrap();
        let encoder = Box::new(RemoteWriteEncoder::new("node-1", Histograms::Classic));
        let (requests, stats) = push(start(encoder, transport, None), &mut taken).await;
        let versions = versions(&requests);
        assert_eq!(versions.iter().map(|(version, _)| version.as_str()).collect::<Vec<_>>(), expected);
        assert!(losses(&stats.dropped).is_empty() && stats.sent > 500, "{stats:?}");
        assert_eq!(stats.errors, kinds);
        if expected[1] == "0.1.0" {
            assert_eq!(versions[1].1, version_1(&versions[0].1).unwrap().body);
        }
    }
}

#[tokio::test]
async fn what_a_receiver_of_remote_write_does_not_write_is_counted() {
    let (address, mut taken) = serve(false, vec![written(400, "10"), written(204, "100000")]).await;
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "user:secret").unwrap();
    let credentials = Credentials { basic: Some(Path::new(token.path()).to_owned()), ..Credentials::default() };
    let access = Access { credentials, ..Access::default() };
    let transport = RemoteWrite::new(url(address, "/api/v1/write"), access, LIMIT).unwrap();
    let encoder = Box::new(RemoteWriteEncoder::new("node-1", Histograms::Classic));
    let (requests, stats) = push(start(encoder, transport, None), &mut taken).await;
    assert!(requests[0].1["authorization"] == "Basic dXNlcjpzZWNyZXQ=" && requests[0].0 == "/api/v1/write");
    let half = (stats.sent - 10, losses(&stats.dropped));
    assert_eq!(half.1, [("refused", half.0 - 10)], "the rest of the first batch, which is as large as the second");
}

#[tokio::test]
async fn native_histograms_count_as_written_or_refused() {
    let histograms = |number| {
        let Answer(status, mut headers, body, trailers) = written(204, "100000");
        headers.push(("x-prometheus-remote-write-histograms-written", number));
        Answer(status, headers, body, trailers)
    };
    let snapshot = crate::model::fixture::cumulated();
    let mut encoder = RemoteWriteEncoder::new("node-1", Histograms::Native);
    let points: Vec<u64> = encoder.encode(snapshot.clone()).map(|batch| batch.points).collect();
    let native = 3 * snapshot.http.len() as u64;
    for (script, refused) in [
        (vec![histograms("100000")], 0),
        // A receiver of 1.0, to which a batch is sent again without them, and so is the end of every series.
        (vec![Answer(204, vec![], Bytes::new(), vec![])], 2 * native),
    ] {
        let (address, mut taken) = serve(false, script).await;
        let transport = RemoteWrite::new(url(address, "/"), Access::default(), LIMIT).unwrap();
        let encoder = Box::new(RemoteWriteEncoder::new("node-1", Histograms::Native));
        let emitter = start(encoder, transport, None);
        emitter.offer(snapshot.clone());
        taken.recv().await.unwrap();
        let stats = emitter.finish(LIMIT).await;
        let dropped: u64 = losses(&stats.dropped).iter().map(|(_, points)| points).sum();
        assert_eq!((dropped, stats.sent + dropped), (refused, 2 * points.iter().sum::<u64>()));
    }
}
