//! `/metrics`, `/healthz`, `/readyz`, the page and its API over HTTP/1.
//!
//! A scrape gets a snapshot that is at most [`SNAPSHOT_MAX_AGE`] old; concurrent scrapes share one. Memory is bounded whatever
//! clients do: connections, headers, snapshots in use, stalls and response times are limited, and bodies are streamed.

mod api;
mod hosts;
mod live;
pub mod negotiation;
mod page;
mod passwords;
mod protection;
pub mod readiness;
pub mod snapshot_cache;
mod stall_timeout;
mod tls;
pub mod web_config;

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
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
use rustix::net::sockopt::set_socket_send_buffer_size;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::{Mutex, mpsc, watch},
    task::{AbortHandle, JoinHandle, JoinSet},
    time::{sleep, timeout},
};

use self::{
    api::Resource,
    live::{Live, STREAM_LENGTH},
    negotiation::{Coding, Compressed, PageFormat},
    page::File,
    passwords::Verdict,
    snapshot_cache::{Lease, SnapshotCache, Source},
    stall_timeout::{Deadline, Exchange, ResponseGuard, StallTimeout},
};
pub use self::{
    hosts::{Hosts, WebHost},
    protection::Protection,
    snapshot_cache::{Bounds, SNAPSHOT_MAX_AGE},
};
use crate::{
    model::{
        EndpointStats,
        encode::{prometheus::Exposition, protobuf::ProtobufExposition, selection::Selection},
    },
    system::host::node_name,
};

/// Maximum size and number of request headers.
const HEADER_BYTES: usize = 16 * 1024;
const HEADER_COUNT: usize = 64;
/// Kernel's buffer per connection (it reserves twice as much), enough for 100 MB/s over 2 ms.
const SEND_BUFFER_BYTES: usize = 256 * 1024;

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
    let listener = TcpListener::bind(address).await;
    listener.and_then(listening).map_err(|error| ListenError::new(address, error))
}

/// Listens on a socket that listens already, and does not block.
///
/// # Errors
/// It is not such a socket.
pub fn adopt(listener: std::net::TcpListener) -> io::Result<Listening> {
    listening(TcpListener::from_std(listener)?)
}

fn listening(listener: TcpListener) -> io::Result<Listening> {
    // Connections inherit it. A buffer that grows by itself would hold up to four megabytes for each slow reader.
    set_socket_send_buffer_size(&listener, SEND_BUFFER_BYTES)?;
    let address = listener.local_addr()?;
    Ok(Listening { listener, address })
}

/// Serves snapshots of `source` within the default [`ServeLimits`]. `pending` has the reasons why readiness is blocked.
pub fn start(
    listening: Listening,
    source: impl Source,
    pending: watch::Receiver<Vec<String>>,
    protection: Protection,
) -> Server {
    start_within(listening, source, pending, protection, ServeLimits::default())
}

/// Serves as [`start`] does, within these limits.
pub fn start_within(
    listening: Listening,
    source: impl Source,
    pending: watch::Receiver<Vec<String>>,
    protection: Protection,
    limits: ServeLimits,
) -> Server {
    let Listening { listener, address } = listening;
    tracing::info!("listening on {address}");
    let stats = Arc::<Stats>::default();
    let source = Arc::new(source);
    let snapshots = Mutex::new(SnapshotCache::new(source.clone(), limits.snapshots));
    let live = Arc::new(Live::new(source, node_name()));
    let app_state = Arc::new(AppState { snapshots, live, pending, protection, limits, stats: stats.clone() });
    let task = tokio::spawn(async move {
        tokio::join!(accept(listener, app_state.clone()), app_state.protection.keep_current());
    });
    Server { address, task, stats }
}

#[derive(Debug, Default)]
struct Stats {
    served: AtomicU64,
    cut: AtomicU64,
    refused_method: AtomicU64,
    unauthorized: AtomicU64,
    busy: AtomicU64,
    wrong_host: AtomicU64,
    failed_handshakes: AtomicU64,
    too_many_streams: AtomicU64,
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
                ("unauthorized", self.unauthorized.load(Relaxed)),
                ("too_many_passwords", self.busy.load(Relaxed)),
                ("wrong_host", self.wrong_host.load(Relaxed)),
                ("handshake_failed", self.failed_handshakes.load(Relaxed)),
                ("too_many_streams", self.too_many_streams.load(Relaxed)),
            ],
            duration: Duration::from_nanos(self.duration_nanoseconds.load(Relaxed)),
            refused: self.closed_connections.load(Relaxed),
        }
    }
}

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Metrics,
    Health,
    Readiness,
    Api(Resource),
    File(File),
}

impl Route {
    fn of(path: &str) -> Option<Self> {
        match path {
            "/metrics" => Some(Self::Metrics),
            "/healthz" => Some(Self::Health),
            "/readyz" => Some(Self::Readiness),
            _ => Resource::of(path).map(Self::Api).or_else(|| File::of(path).map(Self::File)),
        }
    }
}

struct AppState<S> {
    live: Arc<Live<S>>,
    snapshots: Mutex<SnapshotCache<S>>,
    pending: watch::Receiver<Vec<String>>,
    protection: Protection,
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
            let stream = StallTimeout::new(stream, app_state.limits.stall, answers.clone());
            app_state.serve(stream, &answers).await;
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
    /// Serves a connection until it ends, after a handshake if there is TLS.
    async fn serve(&self, stream: StallTimeout, exchange: &Arc<Exchange>) {
        let Some(tls) = self.protection.current().tls.clone() else { return self.serve_http(stream, exchange).await };
        let failed = |problem: &dyn std::fmt::Display| {
            self.stats.failed_handshakes.fetch_add(1, Relaxed);
            tracing::debug!("a TLS handshake at the metrics port failed: {problem}");
        };
        match timeout(self.limits.headers, tls.acceptor.accept(stream)).await {
            Err(_) => failed(&"it took too long"),
            Ok(Err(error)) => failed(&error),
            Ok(Ok(stream)) if !tls.is_allowed(stream.get_ref().1) => failed(&"no allowed name in the certificate"),
            Ok(Ok(stream)) => self.serve_http(stream, exchange).await,
        }
    }

    async fn serve_http(&self, stream: impl AsyncRead + AsyncWrite + Unpin, exchange: &Arc<Exchange>) {
        let service = service_fn(async |request: Request<Incoming>| {
            let mut response = self.respond(&request).await;
            let body = response.body_mut();
            let time = if body.events.is_some() { STREAM_LENGTH + self.limits.response } else { self.limits.response };
            body.answering = Some(exchange.begin(deadline(time, body.revoked.take())));
            Ok::<_, Infallible>(response)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.headers)
            .max_headers(HEADER_COUNT)
            .max_buf_size(HEADER_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        if let Err(error) = connection.await {
            tracing::debug!("a connection to the metrics port ended: {error}");
        }
    }

    async fn respond(&self, request: &Request<Incoming>) -> Response<BodyStream> {
        let route = Route::of(request.uri().path());
        let protected = self.protection.current();
        // Probes cannot hold a secret, and these pages have no metrics.
        let refusal = match route {
            Some(Route::Health | Route::Readiness) => None,
            _ if !self.protection.allows_host(request) => Some(self.wrong_host()),
            _ => self.refusal(protected.passwords.check(request.headers().get(header::AUTHORIZATION)).await),
        };
        let mut response = match (refusal, route) {
            (Some(refusal), _) => refusal,
            (None, None) => text(StatusCode::NOT_FOUND, "not found; see /\n"),
            (None, Some(route)) => self.route(route, request).await,
        };
        if *request.method() == Method::HEAD {
            *response.body_mut() = BodyStream::none();
        }
        response.headers_mut().extend(protected.headers.iter().cloned());
        response
    }

    async fn route(&self, route: Route, request: &Request<Incoming>) -> Response<BodyStream> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            if route == Route::Metrics {
                self.stats.refused_method.fetch_add(1, Relaxed);
            }
            return with(text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n"), header::ALLOW, "GET, HEAD");
        }
        if !request.body().is_end_stream() {
            let response = text(StatusCode::PAYLOAD_TOO_LARGE, "request bodies are not accepted\n");
            return with(response, header::CONNECTION, "close");
        }
        match route {
            Route::Metrics => self.metrics(request.headers(), negotiation::selection(request.uri().query())).await,
            Route::Health => text(StatusCode::OK, "ok\n"),
            Route::Readiness => self.ready(),
            Route::Api(resource) => self.api(resource, request.headers()).await,
            Route::File(file) => file.response(request.headers()),
        }
    }

    fn wrong_host(&self) -> Response<BodyStream> {
        self.stats.wrong_host.fetch_add(1, Relaxed);
        text(
            StatusCode::MISDIRECTED_REQUEST,
            "this server is not read under the name in the header Host; use its address, or add the name with --web-host\n",
        )
    }

    fn refusal(&self, verdict: Verdict) -> Option<Response<BodyStream>> {
        match verdict {
            Verdict::Accepted => None,
            Verdict::Refused => {
                self.stats.unauthorized.fetch_add(1, Relaxed);
                let response = text(StatusCode::UNAUTHORIZED, "a user and a password are needed\n");
                Some(with(response, header::WWW_AUTHENTICATE, "Basic realm=\"mesh observer\", charset=\"UTF-8\""))
            }
            Verdict::Busy => {
                self.stats.busy.fetch_add(1, Relaxed);
                let response = text(StatusCode::TOO_MANY_REQUESTS, "too many wrong passwords are being checked\n");
                Some(with(response, header::RETRY_AFTER, "1"))
            }
        }
    }

    async fn metrics(&self, headers: &HeaderMap, selection: Selection) -> Response<BodyStream> {
        let began = Instant::now();
        let format = negotiation::format(joined(headers, &header::ACCEPT).as_deref());
        let with_cells = format == PageFormat::Protobuf;
        let Lease { snapshot, revoked } = self.snapshots.lock().await.read(with_cells).await;
        self.stats.served.fetch_add(1, Relaxed);
        self.stats.spent(began);
        let page: Pieces = match format {
            PageFormat::Lines(format) => Box::new(Exposition::of(snapshot, format, selection)),
            PageFormat::Protobuf => Box::new(ProtobufExposition::of(snapshot, selection)),
        };
        let stats = self.stats.clone();
        let pieces = |pieces: Pieces| {
            let (pieces, stats, revoked) = (Some(pieces), Some(stats), Some(revoked));
            BodyStream { pieces, stats, revoked, ..BodyStream::none() }
        };
        let response = with(compressed(headers, page, pieces), header::VARY, "accept, accept-encoding");
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

/// Returns a response of these pieces in the coding that the client prefers; `body` makes its body.
fn compressed(headers: &HeaderMap, pieces: Pieces, body: impl FnOnce(Pieces) -> BodyStream) -> Response<BodyStream> {
    let coding = negotiation::coding(joined(headers, &header::ACCEPT_ENCODING).as_deref());
    let pieces: Pieces = match coding {
        Coding::Identity => pieces,
        Coding::Gzip => Box::new(Compressed::gzip(pieces)),
        Coding::Zstd => match Compressed::zstd(pieces) {
            Ok(pieces) => Box::new(pieces),
            Err(_) => return text(StatusCode::SERVICE_UNAVAILABLE, "no memory to compress\n"),
        },
    };
    let response = with(Response::new(body(pieces)), header::VARY, "accept-encoding");
    if coding == Coding::Identity { response } else { with(response, header::CONTENT_ENCODING, coding.name()) }
}

fn text(status: StatusCode, text: &str) -> Response<BodyStream> {
    let piece = Bytes::copy_from_slice(text.as_bytes());
    let mut response = Response::new(BodyStream::of(Box::new(std::iter::once(piece))));
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

type Pieces = Box<dyn Iterator<Item = Bytes> + Send>;

/// A streamed body.
struct BodyStream {
    pieces: Option<Pieces>,
    /// Server-sent events, instead of pieces.
    events: Option<mpsc::Receiver<Bytes>>,
    /// Where the time spent is counted.
    stats: Option<Arc<Stats>>,
    /// Closed when the snapshot is revoked.
    revoked: Option<watch::Receiver<()>>,
    /// Held while it is being read.
    answering: Option<ResponseGuard>,
}

impl BodyStream {
    fn none() -> Self {
        Self { pieces: None, events: None, stats: None, revoked: None, answering: None }
    }

    fn of(pieces: Pieces) -> Self {
        Self { pieces: Some(pieces), ..Self::none() }
    }
}

impl Body for BodyStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(events) = &mut self.events {
            return events.poll_recv(context).map(|event| event.map(|event| Ok(Frame::data(event))));
        }
        let began = Instant::now();
        let piece = self.pieces.as_mut().and_then(Iterator::next);
        if let Some(stats) = &self.stats {
            stats.spent(began);
        }
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_none() && self.events.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Snapshot, encode::prometheus::Format, fixture, view::Finding};
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
        async fn snapshot(&self, _with_cells: bool) -> Arc<Snapshot> {
            self.asked.fetch_add(1, Relaxed);
            self.snapshot.clone()
        }

        async fn watch(&self) -> (Arc<Snapshot>, Vec<Finding>) {
            (self.snapshot(true).await, Vec::new())
        }

        async fn stop_watching(&self) {}
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
        bench_with(snapshot, Protection::load(None, Hosts::default()).unwrap(), limits).await
    }

    async fn bench_with(snapshot: Arc<Snapshot>, protection: Protection, limits: ServeLimits) -> Bench {
        let (pending, receiver) = watch::channel(Vec::new());
        let asked = Arc::<AtomicUsize>::default();
        let source = Scripted { snapshot, asked: asked.clone() };
        let server =
            start_within(bind("127.0.0.1:0".parse().unwrap()).await.unwrap(), source, receiver, protection, limits);
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
    async fn the_api_answers_in_json_and_bounds_its_streams() {
        let bench = bench_within(fixture::snapshots()[0].clone(), ServeLimits { connections: 64, ..QUICK }).await;
        for path in ["/api/v1", "/api/v1/state", "/api/v1/history"] {
            let (head, body) = get(&bench, path, "").await;
            assert!(head.starts_with("http/1.0 200") && head.contains("content-type: application/json"), "{head}");
            assert!(head.contains("cache-control: no-store") && !head.contains("access-control"), "{head}");
            assert!(serde_json::from_slice::<serde_json::Value>(&body).unwrap().is_object());
        }
        assert!(get(&bench, "/api/v1/other", "").await.0.starts_with("http/1.0 404"));
        let mut streams = Vec::new();
        for _ in 0..live::MAX_STREAMS {
            let mut stream = TcpStream::connect(bench.server.address).await.unwrap();
            stream.write_all(b"GET /api/v1/events HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
            let mut head = [0; 15];
            stream.read_exact(&mut head).await.unwrap();
            assert_eq!(&head, b"HTTP/1.1 200 OK");
            streams.push(stream);
        }
        let (head, _) = get(&bench, "/api/v1/events", "").await;
        assert!(head.starts_with("http/1.0 503") && head.contains("retry-after"), "{head}");
        assert_eq!(count(&bench, "too_many_streams"), 1);
        drop(streams);
    }

    #[tokio::test]
    async fn a_page_elsewhere_cannot_read_under_its_own_name() {
        let bench = bench().await;
        for (path, status) in [("/metrics", 421), ("/", 421), ("/healthz", 200)] {
            let (head, _) = get(&bench, path, "host: evil.example.com\r\n").await;
            assert!(head.starts_with(&format!("http/1.0 {status}")), "{path}: {head}");
        }
        assert_eq!(count(&bench, "wrong_host"), 2);
        assert!(get(&bench, "/metrics", "host: localhost:1\r\n").await.0.starts_with("http/1.0 200"));
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
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
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
