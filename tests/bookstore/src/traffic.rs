//! Traffic of the bookstore: pages, uploads, slow answers, errors, and raw TCP; gRPC is in `calls`.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle, sleep},
    time::Duration,
};

use anyhow::Result;
use harness::{
    apps::{
        http,
        raw::{Connection, Server},
        tcp,
    },
    console::say,
    mesh::{Family, Service, Workload},
};

/// Requests on one connection before a new one.
const PER_CONNECTION: usize = 25;

/// Services of the bookstore.
pub struct Services {
    /// HTTP.
    pub catalog: Service,
    /// HTTP.
    pub stock: Service,
    /// TCP.
    pub ledger: Service,
}

/// Servers and clients; ended when dropped.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
    _servers: Vec<Server>,
}

impl Traffic {
    /// Starts servers, then clients.
    pub(crate) fn start(
        services: &Services,
        shop: &Arc<Workload>,
        catalog: &Arc<Workload>,
        stock: &Arc<Workload>,
    ) -> Result<Self> {
        let servers = vec![http::serve(catalog, 8080)?, http::serve(stock, 8080)?, tcp::echo(stock, 9000)?];
        let stop = Arc::new(AtomicBool::new(false));
        let [catalog_address, stock_address, ledger_address] =
            [&services.catalog, &services.stock, &services.ledger].map(|service| service.address(Family::V4));
        let pages = ["GET /bytes/1000", "GET /delay/4", "GET /bytes/15000", "GET /delay/12", "GET /status/404"];
        let slow = ["GET /delay/30", "GET /delay/60", "GET /status/503", "GET /delay/45"];
        let goods = ["GET /bytes/400", "POST /upload", "GET /chunked/5000", "GET /delay/2"];
        let clients = vec![
            client(shop, catalog_address, &stop, Duration::from_millis(20), move |to| requests(to, &pages)),
            client(shop, catalog_address, &stop, Duration::from_millis(100), move |to| requests(to, &slow)),
            client(catalog, stock_address, &stop, Duration::from_millis(30), move |to| requests(to, &goods)),
            client(stock, catalog_address, &stop, Duration::from_millis(250), move |to| {
                requests(to, &["GET /status/500", "GET /bytes/50"])
            }),
            client(shop, ledger_address, &stop, Duration::from_millis(150), |_| booking()),
        ];
        Ok(Self { stop, clients, _servers: servers })
    }

    /// Waits until every exchange has ended.
    pub(crate) fn end(self) {
        drop(self);
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            // A panic has been printed.
            let _ = client.join();
        }
    }
}

/// One thing to send, and how to read the answer.
struct Call {
    send: Vec<u8>,
    answer: Answer,
}

enum Answer {
    Response,
    Bytes(usize),
}

/// Connects, makes all calls of a connection with a pause after each, and repeats.
fn client(
    from: &Arc<Workload>,
    to: SocketAddr,
    stop: &Arc<AtomicBool>,
    pause: Duration,
    calls: impl Fn(SocketAddr) -> Vec<Call> + Send + 'static,
) -> JoinHandle<()> {
    let (from, stop) = (Arc::clone(from), Arc::clone(stop));
    thread::spawn(move || {
        until_told(&stop, &format!("{} to {to}", from.name), || connection(&from, to, &stop, pause, &calls(to)));
    })
}

/// Repeats `work` until `stop`, and reports failures.
pub(crate) fn until_told(stop: &AtomicBool, what: &str, mut work: impl FnMut() -> Result<()>) {
    while !stop.load(Ordering::Relaxed) {
        if let Err(error) = work() {
            // A signal that ends the demo may have ended the sidecar first.
            sleep(Duration::from_secs(1));
            if !stop.load(Ordering::Relaxed) {
                say(format!("{what}: {error:#}"));
            }
        }
    }
}

fn connection(from: &Workload, to: SocketAddr, stop: &AtomicBool, pause: Duration, calls: &[Call]) -> Result<()> {
    let mut connection = Connection::open(from, to)?;
    for call in calls {
        make(&mut connection, call)?;
        sleep(pause);
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
    Ok(())
}

fn make(connection: &mut Connection, call: &Call) -> io::Result<()> {
    connection.send(&call.send)?;
    match call.answer {
        Answer::Response => connection.receive_response().map(drop),
        Answer::Bytes(length) => connection.receive(length).map(drop),
    }
}

/// Returns the calls of one connection: these requests in turn.
fn requests(to: SocketAddr, lines: &[&str]) -> Vec<Call> {
    let request = |line: &&str| {
        let body = if line.starts_with("POST") { "x".repeat(2_000) } else { String::new() };
        let length = body.len();
        let send = format!("{line} HTTP/1.1\r\nhost: {to}\r\ncontent-length: {length}\r\n\r\n{body}").into_bytes();
        Call { send, answer: Answer::Response }
    };
    lines.iter().cycle().take(PER_CONNECTION).map(request).collect()
}

/// Returns the calls of one TCP connection: a few records, echoed.
fn booking() -> Vec<Call> {
    [64, 1_500, 300].map(|length| Call { send: vec![b'r'; length], answer: Answer::Bytes(length) }).into()
}
