//! Traffic in a virtual machine, known to the byte: HTTP/1.1, HTTP/2, gRPC and TCP, one protocol per connection.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use harness::{
    apps::frames::{Block, PREFACE, data, flag, frame, headers, kind, settings},
    counts::{Connections, Counts, Leg, Messages, Outcome, Requests},
};

/// Port of the sidecar's application.
pub(crate) const APPLICATION: u16 = 8080;
/// Outbound port of a sidecar.
pub(crate) const OUTBOUND: u16 = 15001;
/// Original destination of the application's connections, which are redirected to [`OUTBOUND`].
pub(crate) const ORIGINAL_DESTINATION: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 1, 2, 3), 9080);
/// Original destination of connections that are redirected to [`INBOUND`], as if it were a pod's address.
pub(crate) const REACHED: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 1, 2, 4), APPLICATION);
/// Inbound port of a sidecar.
pub(crate) const INBOUND: u16 = 15006;
/// Port of the gateway's listener.
pub(crate) const LISTENER: u16 = 8081;

/// Exchanges per protocol, half of them with the first of its two outcomes.
const EXCHANGES: u32 = 40;
const HTTP1: [&str; 2] = ["200", "503"];
const HTTP2: [u16; 2] = [204, 404];
const GRPC: [&str; 2] = ["0", "5"];
const HTTP1_REQUEST: &str = "POST /orders HTTP/1.1\r\nhost: app\r\ncontent-length: 4\r\n\r\nbody";
/// TCP connections, and the bytes of each, none of which begins like HTTP.
const CONNECTIONS: u64 = 5;
const QUESTION: [u8; 1000] = [0xf1; 1000];
const ANSWER: [u8; 300] = [0xf2; 300];
/// Limits the time until an answer.
const IO_TIMEOUT: Duration = Duration::from_secs(60);

/// Returns the counts of a whole conversation at each leg.
pub(crate) fn expected(legs: impl IntoIterator<Item = Leg>) -> Counts {
    let mut counts = Counts::default();
    for leg in legs {
        for (which, number) in (0..EXCHANGES).map(|number| (outcome(number), number)) {
            let stream = stream(number);
            add(counts.of(&leg, HTTP1[which]), HTTP1_REQUEST.len(), http1_answer(number).len());
            let code = HTTP2[which].to_string();
            add(counts.of(&leg, code.as_str()), http2_request(stream).len(), http2_answer(number).len());
            let grpc = Outcome::grpc("200", GRPC[which]);
            add(counts.of(&leg, grpc), grpc_request(stream).concat().len(), grpc_answer(number).len());
        }
        let messages = u64::from(EXCHANGES);
        counts.messages.insert(leg.clone(), Messages { requests: messages, responses: messages });
        let (received, sent) = (CONNECTIONS * QUESTION.len() as u64, CONNECTIONS * ANSWER.len() as u64);
        counts.connections.insert(leg, Connections { opened: CONNECTIONS, closed: CONNECTIONS, received, sent });
    }
    counts
}

fn add(requests: &mut Requests, request_bytes: usize, response_bytes: usize) {
    requests.count += 1;
    requests.request_bytes += request_bytes as u64;
    requests.response_bytes += response_bytes as u64;
}

fn outcome(number: u32) -> usize {
    (number % 2) as usize
}

fn stream(number: u32) -> u32 {
    number * 2 + 1
}

fn http1_answer(number: u32) -> String {
    format!("HTTP/1.1 {} so\r\ncontent-length: 6\r\n\r\nanswer", HTTP1[outcome(number)])
}

fn http2_request(stream: u32) -> Vec<u8> {
    headers(stream, flag::END_STREAM, &Block::request("GET", "/orders"))
}

fn http2_answer(number: u32) -> Vec<u8> {
    headers(stream(number), flag::END_STREAM, &Block::status(HTTP2[outcome(number)]))
}

/// Encodes headers and message.
fn grpc_request(stream: u32) -> [Vec<u8>; 2] {
    let head = Block::request("POST", "/shop.Stock/Take").literal("content-type", "application/grpc");
    [headers(stream, 0, &head), data(stream, flag::END_STREAM, b"\0\0\0\0\x03one")]
}

fn grpc_answer(number: u32) -> Vec<u8> {
    let stream = stream(number);
    let head = Block::status(200).literal("content-type", "application/grpc");
    let trailers = Block::default().literal("grpc-status", GRPC[outcome(number)]);
    [headers(stream, 0, &head), data(stream, 0, b"\0\0\0\0\x04four"), headers(stream, flag::END_STREAM, &trailers)]
        .concat()
}

/// Answers every connection by its first bytes; returns when the listener is gone.
pub(crate) fn serve(listener: &TcpListener) {
    listener.incoming().map_while(Result::ok).for_each(serve_one);
}

/// Answers one connection.
pub(crate) fn serve_one(connection: TcpStream) {
    thread::spawn(move || {
        // A failure shows at the client.
        let _ = answer(&connection);
    });
}

fn answer(connection: &TcpStream) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let mut first = [0];
    if connection.peek(&mut first)? == 0 {
        return Ok(());
    }
    if first[0] == QUESTION[0] {
        receive(connection, QUESTION.len())?;
        send(connection, ANSWER)?;
        receive(connection, 1).map(drop)
    } else if first == PREFACE[..1] && is_http2(connection)? {
        answer_http2(connection)
    } else {
        answer_http1(connection)
    }
}

/// Returns whether the preface follows: POST begins with the same letter.
fn is_http2(connection: &TcpStream) -> io::Result<bool> {
    let mut two = [0; 2];
    while connection.peek(&mut two)? == 1 {
        thread::yield_now();
    }
    Ok(two == PREFACE[..2])
}

fn answer_http1(connection: &TcpStream) -> io::Result<()> {
    let mut number = 0;
    loop {
        receive_message(connection)?;
        send(connection, http1_answer(number))?;
        number += 1;
    }
}

fn answer_http2(connection: &TcpStream) -> io::Result<()> {
    receive(connection, PREFACE.len())?;
    send(connection, settings(&[]))?;
    let mut number = 0;
    loop {
        let (kind, flags) = receive_frame(connection)?;
        let ended = flags & flag::END_STREAM != 0;
        match kind {
            kind::HEADERS if ended => send(connection, http2_answer(number))?,
            kind::DATA if ended => send(connection, grpc_answer(number))?,
            _ => continue,
        }
        number += 1;
    }
}

/// Makes every exchange with `server`.
pub(crate) fn ask(server: SocketAddr) -> Result<()> {
    let open = || -> Result<TcpStream> {
        let connection = TcpStream::connect_timeout(&server, IO_TIMEOUT)?;
        connection.set_nodelay(true)?;
        connection.set_read_timeout(Some(IO_TIMEOUT))?;
        Ok(connection)
    };
    let http1 = open()?;
    for number in 0..EXCHANGES {
        send(&http1, HTTP1_REQUEST)?;
        let answer = receive_message(&http1)?;
        // A proxy in between adds headers and has its own reason phrase.
        let code = HTTP1[outcome(number)];
        let is_right = answer.starts_with(&format!("HTTP/1.1 {code} ")) && answer.ends_with("\r\n\r\nanswer");
        ensure!(is_right, "another answer over HTTP/1.1: {answer}");
    }
    ask_http2(&open()?, http2_request)?;
    ask_http2(&open()?, |stream| grpc_request(stream).concat())?;
    for _ in 0..CONNECTIONS {
        let tcp = open()?;
        send(&tcp, QUESTION)?;
        ensure!(receive(&tcp, ANSWER.len())? == ANSWER, "another answer over TCP");
        tcp.shutdown(Shutdown::Write)?;
        ensure!((&tcp).read(&mut [0])? == 0, "more than the answer over TCP");
    }
    Ok(())
}

fn ask_http2(connection: &TcpStream, request: impl Fn(u32) -> Vec<u8>) -> Result<()> {
    send(connection, [PREFACE, &settings(&[])].concat())?;
    for number in 0..EXCHANGES {
        send(connection, request(stream(number)))?;
        loop {
            let (kind, flags) = receive_frame(connection)?;
            if kind == kind::HEADERS && flags & flag::END_STREAM != 0 {
                break;
            }
        }
    }
    Ok(())
}

/// Returns the next message of HTTP/1.1, whose head says how long its body is.
fn receive_message(connection: &TcpStream) -> io::Result<String> {
    let mut message = String::new();
    while !message.ends_with("\r\n\r\n") {
        message.push(char::from(receive(connection, 1)?[0]));
    }
    let length = message.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let body = receive(connection, length.ok_or(io::ErrorKind::InvalidData)?)?;
    message.push_str(&String::from_utf8_lossy(&body));
    Ok(message)
}

/// Receives a frame and acknowledges settings; returns its type and flags.
fn receive_frame(connection: &TcpStream) -> io::Result<(u8, u8)> {
    let head = receive(connection, 9)?;
    receive(connection, usize::from(head[1]) << 8 | usize::from(head[2]))?;
    let (kind, flags) = (head[3], head[4]);
    if kind == kind::SETTINGS && flags & flag::ACK == 0 {
        send(connection, frame(kind::SETTINGS, flag::ACK, 0, ""))?;
    }
    Ok((kind, flags))
}

fn receive(mut connection: &TcpStream, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    connection.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn send(mut connection: &TcpStream, bytes: impl AsRef<[u8]>) -> io::Result<()> {
    connection.write_all(bytes.as_ref())
}
