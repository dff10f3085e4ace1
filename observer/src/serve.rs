//! `/metrics`, `/healthz`, `/readyz` and a small index over HTTP/1.
//!
//! A scrape gets a snapshot that is at most [`SNAPSHOT_MAX_AGE`] old; concurrent scrapes share one. Memory is bounded whatever
//! clients do: connections, headers, snapshots in use, stalls and response times are limited, and bodies are streamed.

pub mod negotiation;
pub mod readiness;
pub mod snapshot_cache;
mod stall_timeout;

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body, Frame, Incoming},
    header::{self, HeaderMap, HeaderName, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{AbortHandle, JoinHandle, JoinSet},
    time::sleep,
};

pub use self::snapshot_cache::{Bounds, SNAPSHOT_MAX_AGE};
use self::{
    negotiation::Gzip,
    snapshot_cache::{Lease, SnapshotCache, Source},
    stall_timeout::{Deadline, Exchange, ResponseGuard, StallTimeout},
};
use crate::model::{
    EndpointStats,
    encode::{prometheus::Exposition, selection::Selection},
};

/// Maximum size and number of request headers.
const HEADER_BYTES: usize = 16 * 1024;
const HEADER_COUNT: usize = 64;

/// ServeLimits of what clients use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServeLimits {
    /// Maximum number of connections; a further one replaces the oldest idle one.
    pub connections: usize,
    /// Timeout of a request's headers, including idle time.
    pub headers: Duration,
    /// How long a client may read nothing of a response.
    pub stall: Duration,
    /// Timeout of a whole response.
    pub response: Duration,
    /// Bounds of snapshots in use.
    pub snapshots: Bounds,
}

impl Default for ServeLimits {
    fn default() -> Self {
        Self {
            connections: 64,
            headers: Duration::from_secs(30),
            stall: Duration::from_secs(30),
            response: Duration::from_secs(60),
            // The default of Prometheus' scrape timeout.
            snapshots: Bounds { snapshots: 4, grace: Duration::from_secs(10) },
        }
    }
}

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process listens there.
    #[error(
        "cannot listen on {0}: the address is taken by another process; stop it (`ss -ltnp` names it) or choose another with --listen"
    )]
    Taken(SocketAddr),
    /// A port below 1024 needs a capability.
    #[error(
        "cannot listen on {0}: permission denied; choose a port from 1024 up with --listen or grant CAP_NET_BIND_SERVICE"
    )]
    Denied(SocketAddr),
    /// No interface of this machine has the address.
    #[error("cannot listen on {0}: this machine has no such address; choose one it has, or 0.0.0.0, with --listen")]
    NoSuchAddress(SocketAddr),
    /// Anything else.
    #[error("cannot listen on {0}: {1}; choose another address with --listen")]
    Other(SocketAddr, io::Error),
}

impl ListenError {
    /// Classifies the error of listening on this address.
    #[must_use]
    pub fn new(address: SocketAddr, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::AddrInUse => Self::Taken(address),
            io::ErrorKind::PermissionDenied => Self::Denied(address),
            io::ErrorKind::AddrNotAvailable => Self::NoSuchAddress(address),
            _ => Self::Other(address, error),
        }
    }
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    /// The address, with the actual port if 0 was given.
    pub address: SocketAddr,
    /// Accepts connections until aborted or dropped by the runtime.
    pub task: JoinHandle<()>,
    stats: Arc<Stats>,
}

impl Server {
    /// Returns the numbers of scrapes so far.
    #[must_use]
    pub fn stats(&self) -> EndpointStats {
        self.stats.stats()
    }

    /// Returns a function that reads [`Server::stats`].
    pub fn reader(&self) -> impl Fn() -> EndpointStats + Send + Sync + use<> {
        let stats = self.stats.clone();
        move || stats.stats()
    }
}

/// A listening socket; connections wait until it is served.
#[derive(Debug)]
pub struct Listening {
    listener: TcpListener,
    address: SocketAddr,
}

/// Listens on `address`.
///
/// # Errors
/// It cannot be listened on; the message names it and the remedy.
pub async fn bind(address: SocketAddr) -> Result<Listening, ListenError> {
    let failed = |error| ListenError::new(address, error);
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok(Listening { listener, address })
}

/// Serves snapshots of `source` within the default [`ServeLimits`]. `pending` has the reasons why readiness is blocked.
pub fn start(listening: Listening, source: impl Source, pending: watch::Receiver<Vec<String>>) -> Server {
    start_within(listening, source, pending, ServeLimits::default())
}

/// Serves as [`start`] does, within these limits.
pub fn start_within(
    listening: Listening,
    source: impl Source,
    pending: watch::Receiver<Vec<String>>,
    limits: ServeLimits,
) -> Server {
    let Listening { listener, address } = listening;
    tracing::info!("listening on {address}");
    let stats = Arc::<Stats>::default();
    let snapshots = Mutex::new(SnapshotCache::new(source, limits.snapshots));
    let app_state = Arc::new(AppState { snapshots, pending, limits, stats: stats.clone() });
    let task = tokio::spawn(accept(listener, app_state));
    Server { address, task, stats }
}

#[derive(Debug, Default)]
struct Stats {
    served: AtomicU64,
    cut: AtomicU64,
    refused_method: AtomicU64,
    duration_nanoseconds: AtomicU64,
    closed_connections: AtomicU64,
}

impl Stats {
    fn stats(&self) -> EndpointStats {
        EndpointStats {
            scrapes: vec![
                ("ok", self.served.load(Relaxed)),
                ("cut", self.cut.load(Relaxed)),
                ("method_not_allowed", self.refused_method.load(Relaxed)),
            ],
            duration: Duration::from_nanos(self.duration_nanoseconds.load(Relaxed)),
            refused: self.closed_connections.load(Relaxed),
        }
    }
}

struct AppState<S> {
    snapshots: Mutex<SnapshotCache<S>>,
    pending: watch::Receiver<Vec<String>>,
    limits: ServeLimits,
    stats: Arc<Stats>,
}

async fn accept<S: Source>(listener: TcpListener, app_state: Arc<AppState<S>>) {
    // Connections end with the server.
    let mut connections = JoinSet::new();
    let mut open: Vec<Open> = Vec::new();
    loop {
        while connections.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, or the client is gone: the server continues.
                tracing::warn!("a connection to the metrics port could not be accepted: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        open.retain(|connection| !connection.task.is_finished());
        if open.len() >= app_state.limits.connections {
            app_state.stats.closed_connections.fetch_add(1, Relaxed);
            make_room(&mut open);
        }
        let (app_state, exchange) = (app_state.clone(), Arc::<Exchange>::default());
        let answers = exchange.clone();
        let task = connections.spawn(async move {
            let service = service_fn(|request| {
                let mut response = app_state.respond(&request);
                let body = response.body_mut();
                body.answering = Some(answers.begin(deadline(app_state.limits.response, body.revoked.take())));
                std::future::ready(Ok::<_, Infallible>(response))
            });
            let stream = StallTimeout::new(stream, app_state.limits.stall, answers.clone());
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(app_state.limits.headers)
                .max_headers(HEADER_COUNT)
                .max_buf_size(HEADER_BYTES)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!("a connection to the metrics port ended: {error}");
            }
            if answers.was_cut() {
                app_state.stats.cut.fetch_add(1, Relaxed);
            }
        });
        open.push(Open { task, exchange });
    }
}

/// Resolves after a time, or when the snapshot is revoked.
fn deadline(time: Duration, revoked: Option<watch::Receiver<()>>) -> Deadline {
    Box::pin(async move {
        let Some(mut revoked) = revoked else { return sleep(time).await };
        tokio::select! {
            () = sleep(time) => {}
            _ = revoked.changed() => {}
        }
    })
}

/// An open connection.
struct Open {
    task: AbortHandle,
    exchange: Arc<Exchange>,
}

/// Closes the oldest idle connection, or the oldest if none is idle, so that slow or silent clients do not lock out others.
fn make_room(open: &mut Vec<Open>) {
    let silent = open.iter().position(|connection| !connection.exchange.is_busy());
    open.remove(silent.unwrap_or_default()).task.abort();
}

impl<S: Source> AppState<S> {
    fn respond(&self, request: &Request<Incoming>) -> Response<BodyStream> {
        let (path, method) = (request.uri().path(), request.method());
        let known = matches!(path, "/" | "/metrics" | "/healthz" | "/readyz");
        let mut response = if !known {
            text(StatusCode::NOT_FOUND, "not found; see /\n")
        } else if !matches!(*method, Method::GET | Method::HEAD) {
            if path == "/metrics" {
                self.stats.refused_method.fetch_add(1, Relaxed);
            }
            with(text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n"), header::ALLOW, "GET, HEAD")
        } else if !request.body().is_end_stream() {
            with(text(StatusCode::PAYLOAD_TOO_LARGE, "request bodies are not accepted\n"), header::CONNECTION, "close")
        } else {
            match path {
                "/metrics" => self.metrics(request.headers(), negotiation::selection(request.uri().query())),
                "/healthz" => text(StatusCode::OK, "ok\n"),
                "/readyz" => self.ready(),
                _ => index(),
            }
        };
        if *request.method() == Method::HEAD {
            *response.body_mut() = BodyStream::none();
        }
        response
    }

    fn metrics(&self, headers: &HeaderMap, selection: Selection) -> Response<BodyStream> {
        let began = Instant::now();
        let Lease { snapshot, revoked } = self.snapshots.lock().unwrap_or_else(PoisonError::into_inner).read();
        self.stats.served.fetch_add(1, Relaxed);
        self.stats.spent(began);
        let format = negotiation::format(joined(headers, &header::ACCEPT).as_deref());
        let page = Exposition::of(snapshot, format, selection);
        let stats = self.stats.clone();
        let pieces = |pieces| {
            let (pieces, stats, revoked) = (Some(pieces), Some(stats), Some(revoked));
            Response::new(BodyStream { pieces, stats, revoked, answering: None })
        };
        let response = if negotiation::accepts_gzip(joined(headers, &header::ACCEPT_ENCODING).as_deref()) {
            with(pieces(Box::new(Gzip::new(page))), header::CONTENT_ENCODING, "gzip")
        } else {
            pieces(Box::new(page))
        };
        let response = with(response, header::VARY, "accept, accept-encoding");
        with(response, header::CONTENT_TYPE, format.content_type())
    }

    fn ready(&self) -> Response<BodyStream> {
        let pending = self.pending.borrow();
        if pending.is_empty() {
            return text(StatusCode::OK, "ready\n");
        }
        text(StatusCode::SERVICE_UNAVAILABLE, &format!("not ready: {}\n", pending.join("; ")))
    }
}

impl Stats {
    fn spent(&self, since: Instant) {
        let spent = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.duration_nanoseconds.fetch_add(spent, Relaxed);
    }
}

fn index() -> Response<BodyStream> {
    let page = concat!(
        "<!doctype html><title>mesh observer</title><h1>mesh observer ",
        env!("CARGO_PKG_VERSION"),
        "</h1><ul><li><a href=\"/metrics\">metrics</a><li><a href=\"/healthz\">health</a>",
        "<li><a href=\"/readyz\">readiness</a></ul>\n"
    );
    with(text(StatusCode::OK, page), header::CONTENT_TYPE, "text/html; charset=utf-8")
}

fn text(status: StatusCode, text: &str) -> Response<BodyStream> {
    let piece = Bytes::copy_from_slice(text.as_bytes());
    let mut response =
        Response::new(BodyStream { pieces: Some(Box::new(std::iter::once(piece))), ..BodyStream::none() });
    *response.status_mut() = status;
    with(response, header::CONTENT_TYPE, "text/plain; charset=utf-8")
}

fn with<B>(mut response: Response<B>, name: HeaderName, value: &'static str) -> Response<B> {
    response.headers_mut().insert(name, HeaderValue::from_static(value));
    response
}

/// Joins the values of a repeated header.
fn joined(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let values: Vec<_> = headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
    (!values.is_empty()).then(|| values.join(","))
}

/// A streamed body.
struct BodyStream {
    pieces: Option<Box<dyn Iterator<Item = Bytes> + Send>>,
    /// Where the time spent is counted.
    stats: Option<Arc<Stats>>,
    /// Closed when the snapshot is revoked.
    revoked: Option<watch::Receiver<()>>,
    /// Held while it is being read.
    answering: Option<ResponseGuard>,
}

impl BodyStream {
    fn none() -> Self {
        Self { pieces: None, stats: None, revoked: None, answering: None }
    }
}

impl Body for BodyStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let began = Instant::now();
        let piece = self.pieces.as_mut().and_then(Iterator::next);
        if let Some(stats) = &self.stats {
            stats.spent(began);
        }
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Snapshot, encode::prometheus::Format, fixture};
    use std::{io::Read, sync::atomic::AtomicUsize};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    struct Scripted {
        snapshot: Arc<Snapshot>,
        asked: Arc<AtomicUsize>,
    }

    impl Source for Scripted {
        fn snapshot(&self) -> Arc<Snapshot> {
            self.asked.fetch_add(1, Relaxed);
            self.snapshot.clone()
        }
    }

    struct Bench {
        server: Server,
        pending: watch::Sender<Vec<String>>,
        asked: Arc<AtomicUsize>,
    }

    const QUICK: ServeLimits = ServeLimits {
        connections: 4,
        headers: Duration::from_millis(200),
        stall: Duration::from_millis(200),
        response: Duration::from_millis(600),
        snapshots: Bounds { snapshots: 2, grace: Duration::from_millis(300) },
    };

    async fn bench() -> Bench {
        bench_of(fixture::snapshots()[0].clone()).await
    }

    async fn bench_of(snapshot: Arc<Snapshot>) -> Bench {
        bench_within(snapshot, QUICK).await
    }

    async fn bench_within(snapshot: Arc<Snapshot>, limits: ServeLimits) -> Bench {
        let (pending, receiver) = watch::channel(Vec::new());
        let asked = Arc::<AtomicUsize>::default();
        let source = Scripted { snapshot, asked: asked.clone() };
        let server = start_within(bind("127.0.0.1:0".parse().unwrap()).await.unwrap(), source, receiver, limits);
        Bench { server, pending, asked }
    }

    async fn ask(bench: &Bench, request: &str) -> (String, Vec<u8>) {
        let mut stream = TcpStream::connect(bench.server.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let head = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or(answer.len());
        let body = answer.split_off((head + 4).min(answer.len()));
        (String::from_utf8(answer).unwrap().to_lowercase(), body)
    }

    async fn get(bench: &Bench, path: &str, headers: &str) -> (String, Vec<u8>) {
        ask(bench, &format!("GET {path} HTTP/1.0\r\n{headers}\r\n")).await
    }

    fn count(bench: &Bench, outcome: &str) -> u64 {
        bench.server.stats().scrapes.iter().find(|(name, _)| *name == outcome).unwrap().1
    }

    #[tokio::test]
    async fn metrics_come_in_the_form_that_was_asked_for() {
        let [snapshot, _] = fixture::snapshots();
        let bench = bench_of(snapshot.clone()).await;
        let (head, body) = get(&bench, "/metrics", "").await;
        assert!(head.starts_with("http/1.0 200") && head.contains("text/plain; version=0.0.4"), "{head}");
        assert_eq!(body, Exposition::new(snapshot.clone(), Format::Text).collect::<Vec<_>>().concat());
        let (head, body) =
            get(&bench, "/metrics", "accept: application/openmetrics-text\r\naccept-encoding: gzip\r\n").await;
        assert!(
            head.contains("application/openmetrics-text; version=1.0.0") && head.contains("content-encoding: gzip")
        );
        let mut text = String::new();
        flate2::read::GzDecoder::new(body.as_slice()).read_to_string(&mut text).unwrap();
        assert!(text.ends_with("# EOF\n"));
        assert_eq!(count(&bench, "ok"), 2);
        assert!(bench.server.stats().duration > Duration::ZERO);
    }

    #[tokio::test]
    async fn a_query_chooses_families() {
        let bench = bench().await;
        let (_, whole) = get(&bench, "/metrics", "").await;
        let (_, body) = get(&bench, "/metrics?name%5B%5D=x&family=*_build_*&other=1", "").await;
        let body = String::from_utf8(body).unwrap();
        assert!(body.len() < whole.len() && body.lines().count() == 3, "{body}");
        assert!(body.lines().all(|line| line.contains("_build_info")), "{body}");
    }

    #[tokio::test]
    async fn scrapes_at_the_same_time_share_one_reading() {
        let bench = bench().await;
        tokio::join!(get(&bench, "/metrics", ""), get(&bench, "/metrics", ""), get(&bench, "/metrics", ""));
        assert_eq!(bench.asked.load(Relaxed), 1);
        tokio::time::sleep(SNAPSHOT_MAX_AGE).await;
        get(&bench, "/metrics", "").await;
        assert_eq!(bench.asked.load(Relaxed), 2);
    }

    #[tokio::test]
    async fn readiness_names_what_it_waits_for() {
        let bench = bench().await;
        assert!(get(&bench, "/readyz", "").await.0.starts_with("http/1.0 200"));
        bench.pending.send(vec!["kernel programs".to_owned(), "first scan".to_owned()]).unwrap();
        let (head, body) = get(&bench, "/readyz", "").await;
        assert!(head.starts_with("http/1.0 503"));
        assert_eq!(body, b"not ready: kernel programs; first scan\n");
        assert!(get(&bench, "/healthz", "").await.0.starts_with("http/1.0 200"));
    }

    #[tokio::test]
    async fn only_get_and_head_of_known_pages_without_bodies() {
        let bench = bench().await;
        let (head, body) = ask(&bench, "HEAD /metrics HTTP/1.0\r\n\r\n").await;
        assert!(head.starts_with("http/1.0 200") && body.is_empty() && head.contains("version=0.0.4"));
        for (request, status) in [
            ("POST /metrics HTTP/1.0\r\ncontent-length: 0\r\n\r\n", 405),
            ("DELETE / HTTP/1.0\r\n\r\n", 405),
            ("GET /metrics HTTP/1.0\r\ncontent-length: 3\r\n\r\nabc", 413),
            ("GET /secret HTTP/1.0\r\n\r\n", 404),
            ("GET / HTTP/1.0\r\n\r\n", 200),
            ("nonsense\r\n\r\n", 400),
        ] {
            let (head, _) = ask(&bench, request).await;
            assert!(head.contains(&format!(" {status} ")), "{request}: {head}");
        }
        assert_eq!(count(&bench, "method_not_allowed"), 1);
        let large = format!("GET / HTTP/1.0\r\nx: {}\r\n\r\n", "x".repeat(HEADER_BYTES));
        assert!(ask(&bench, &large).await.0.contains(" 431 "));
    }

    #[tokio::test]
    async fn slow_and_silent_clients_lose_their_connection_and_keep_nobody_out() {
        let bench = bench().await;
        let mut silent = Vec::new();
        for _ in 0..QUICK.connections {
            let mut stream = TcpStream::connect(bench.server.address).await.unwrap();
            stream.write_all(b"GET / HT").await.unwrap();
            silent.push(stream);
        }
        for _ in 0..3 {
            assert!(get(&bench, "/healthz", "").await.0.starts_with("http/1.0 200"));
        }
        let closed = bench.server.stats().refused;
        assert!((1..=3).contains(&closed), "{closed} closed");
        for mut stream in silent {
            stream.read_to_end(&mut Vec::new()).await.unwrap();
        }
        assert!(get(&bench, "/healthz", "").await.0.starts_with("http/1.0 200"));
    }

    /// A page of some megabytes.
    fn large() -> Arc<Snapshot> {
        let lines: String = (0..60_000).map(|number| format!("a{{n=\"{number:050}\"}} 1\n")).collect();
        fixture::snapshot_of(vec![fixture::scraped("10.0.0.9:15014", &lines)])
    }

    #[tokio::test]
    async fn an_answer_that_is_taken_too_slowly_is_cut_and_counted() {
        let bench = bench_within(large(), ServeLimits { stall: Duration::from_secs(20), ..QUICK }).await;
        let mut stream = TcpStream::connect(bench.server.address).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let began = Instant::now();
        let mut taken = 0;
        // Faster than a stall, and slower than the whole answer would need.
        while let Ok(read @ 1..) = stream.read(&mut [0; 1 << 10]).await {
            taken += read;
            tokio::time::sleep(Duration::from_millis(5)).await;
            if count(&bench, "cut") == 1 {
                break;
            }
        }
        assert!(taken < 4_000_000 && began.elapsed() >= QUICK.response, "{taken} bytes in {:?}", began.elapsed());
        assert_eq!(count(&bench, "cut"), 1);
        assert!(get(&bench, "/healthz", "").await.0.starts_with("http/1.0 200"));
    }

    #[tokio::test]
    async fn readers_that_stall_make_room_for_newer_stats() {
        let bench = bench_of(large()).await;
        let mut stalled = Vec::new();
        for _ in 0..3 {
            let mut stream = TcpStream::connect(bench.server.address).await.unwrap();
            stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.unwrap();
            stalled.push(stream);
            tokio::time::sleep(SNAPSHOT_MAX_AGE + Duration::from_millis(50)).await;
        }
        let (head, body) = get(&bench, "/metrics", "").await;
        assert!(head.starts_with("http/1.0 200") && body.len() > 4_000_000, "{} bytes", body.len());
    }

    #[tokio::test]
    async fn a_taken_port_is_named_with_the_remedy() {
        let bench = bench().await;
        let error = bind(bench.server.address).await.unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, ListenError::Taken(_)) && text.contains(&bench.server.address.to_string()), "{text}");
        assert!(text.contains("--listen"));
        let elsewhere = bind("192.0.2.1:0".parse().unwrap()).await.unwrap_err();
        assert!(matches!(elsewhere, ListenError::NoSuchAddress(_)), "{elsewhere}");
    }
}
