//! Connections between a real HTTP/2 client and a real server, recorded byte for byte.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;
use h2::{RecvStream, client, server};
use http::{HeaderMap, HeaderValue, Request, Response, Version};
use observer_proto::socket::{REQUEST, RESPONSE};
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex},
    task::{LocalSet, spawn_local},
};

use super::frames::message;

/// What was written, in order: by which side, and what.
pub(crate) type Record = Vec<(usize, Vec<u8>)>;

/// One call and its answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Exchange {
    pub(crate) status: u16,
    /// Status in the trailers of a gRPC call; in the only header block if it has no messages.
    pub(crate) grpc: Option<u16>,
    /// Lengths of messages, or of pieces of a body, by direction.
    pub(crate) bodies: [Vec<usize>; 2],
    /// A field of the request and of the response.
    pub(crate) field: String,
    /// The answer is announced by this many 103.
    pub(crate) interim: usize,
}

/// How the two are set up.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// Header table sizes that each side allows the other.
    pub(crate) tables: [u32; 2],
    /// Calls open at once.
    pub(crate) concurrency: usize,
    /// Bytes that the pipe between them holds.
    pub(crate) pipe: usize,
}

/// One end of the pipe.
struct Recorded {
    end: DuplexStream,
    direction: usize,
    record: Rc<RefCell<Record>>,
}

impl AsyncRead for Recorded {
    fn poll_read(mut self: Pin<&mut Self>, c: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.end).poll_read(c, buffer)
    }
}

impl AsyncWrite for Recorded {
    fn poll_write(mut self: Pin<&mut Self>, c: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.end).poll_write(c, bytes);
        if let Poll::Ready(Ok(length)) = written {
            self.record.borrow_mut().push((self.direction, bytes[..length].to_vec()));
        }
        written
    }
    fn poll_flush(mut self: Pin<&mut Self>, c: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.end).poll_flush(c)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, c: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.end).poll_shutdown(c)
    }
}

/// Has the exchanges made; returns what was written, and the stream id of each exchange.
pub(crate) fn record(exchanges: &[Exchange], setup: &Setup) -> (Record, Vec<u32>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, talk(exchanges, setup))
}

async fn talk(exchanges: &[Exchange], setup: &Setup) -> (Record, Vec<u32>) {
    let record = Rc::new(RefCell::new(Record::new()));
    let (asking, answering) = duplex(setup.pipe);
    let end = |end, direction| Recorded { end, direction, record: record.clone() };
    let (asking, answering) = (end(asking, REQUEST), end(answering, RESPONSE));
    let shared = Rc::new(exchanges.to_vec());
    let served = spawn_local(serve(answering, setup.tables[RESPONSE], shared.clone()));
    let mut builder = client::Builder::new();
    builder.header_table_size(setup.tables[REQUEST]).enable_push(false);
    let (sender, connection) = builder.handshake::<_, Bytes>(asking).await.expect("a connection");
    let driven = spawn_local(connection);
    let mut ids = Vec::new();
    for batch in (0..exchanges.len()).collect::<Vec<_>>().chunks(setup.concurrency) {
        let asked: Vec<_> =
            batch.iter().map(|&number| spawn_local(ask(sender.clone(), shared.clone(), number))).collect();
        for one in asked {
            ids.push(one.await.expect("a call"));
        }
    }
    drop(sender);
    driven.await.expect("a client").expect("a connection that ends");
    served.await.expect("a server");
    (Rc::try_unwrap(record).expect("both ends are gone").into_inner(), ids)
}

fn body(exchange: &Exchange, direction: usize) -> Vec<Bytes> {
    let piece = |&length: &usize| if exchange.grpc.is_some() { message(length) } else { vec![b'd'; length] };
    exchange.bodies[direction].iter().map(piece).map(Bytes::from).collect()
}

fn header(value: impl ToString) -> HeaderValue {
    HeaderValue::from_str(&value.to_string()).expect("a header value")
}

async fn ask(mut sender: client::SendRequest<Bytes>, exchanges: Rc<Vec<Exchange>>, number: usize) -> u32 {
    let exchange = &exchanges[number];
    std::future::poll_fn(|c| sender.poll_ready(c)).await.expect("room");
    let mut request = Request::post("http://a/").version(Version::HTTP_2).header("x-number", number);
    if exchange.grpc.is_some() {
        request = request.header("content-type", "application/grpc").header("te", "trailers");
    }
    let request = request.header("x-field", header(&exchange.field)).body(()).expect("a request");
    let pieces = body(exchange, REQUEST);
    let (response, mut stream) = sender.send_request(request, pieces.is_empty()).expect("a stream");
    let id = response.stream_id().as_u32();
    let last = pieces.len();
    for (number, piece) in pieces.into_iter().enumerate() {
        stream.send_data(piece, number + 1 == last).expect("data");
    }
    drain(response.await.expect("an answer").into_body()).await;
    id
}

async fn drain(mut body: RecvStream) {
    while let Some(piece) = body.data().await {
        let length = piece.expect("data").len();
        body.flow_control().release_capacity(length).expect("capacity");
    }
    body.trailers().await.expect("trailers or none");
}

async fn serve(io: Recorded, table: u32, exchanges: Rc<Vec<Exchange>>) {
    let mut connection = server::Builder::new().header_table_size(table).handshake(io).await.expect("a connection");
    while let Some(accepted) = connection.accept().await {
        let (request, answer) = accepted.expect("a request");
        spawn_local(respond(request, answer, exchanges.clone()));
    }
}

async fn respond(request: Request<RecvStream>, mut answer: server::SendResponse<Bytes>, exchanges: Rc<Vec<Exchange>>) {
    let (parts, asked) = request.into_parts();
    let number: usize = parts.headers["x-number"].to_str().unwrap().parse().unwrap();
    let exchange = &exchanges[number];
    drain(asked).await;
    for _ in 0..exchange.interim {
        let interim = Response::builder().status(103).header("link", header(&exchange.field)).body(()).unwrap();
        answer.send_informational(interim).expect("an announcement");
    }
    let pieces = body(exchange, RESPONSE);
    let mut response = Response::builder().status(exchange.status).header("x-field", header(&exchange.field));
    let ends = pieces.is_empty();
    if let Some(status) = exchange.grpc {
        response = response.header("content-type", "application/grpc");
        if ends {
            response = response.header("grpc-status", status);
        }
    }
    let mut stream = answer.send_response(response.body(()).unwrap(), ends).expect("an answer");
    let last = pieces.len();
    for (number, piece) in pieces.into_iter().enumerate() {
        stream.send_data(piece, number + 1 == last && exchange.grpc.is_none()).expect("data");
    }
    if let Some(status) = exchange.grpc.filter(|_| !ends) {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", header(status));
        trailers.insert("grpc-message", header(&exchange.field));
        stream.send_trailers(trailers).expect("trailers");
    }
}
