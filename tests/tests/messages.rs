//! Unusual messages of HTTP/1, and first lines that may not be HTTP, byte for byte on sidecars: the
//! observer against Envoy's access log.

use std::{io, process::ExitCode, thread::sleep, time::Duration};

use anyhow::{Result, ensure};
use harness::{
    apps::raw::{Connection, Server},
    cases,
    mesh::{Family, Service},
    pair::{Correction, Pair, without_durations},
};

/// Long enough for an answer to have come if there is one, on a busy machine too.
const RESPONSE_WINDOW: Duration = Duration::from_millis(800);
/// Envoy writes its log every 20 ms, and later on a busy machine; not every case knows the number of lines.
const LOG_DELAY: Duration = Duration::from_millis(400);
/// Between an answer and what follows it.
const PAUSE: Duration = Duration::from_millis(20);

fn main() -> ExitCode {
    cases::run(
        Pair::new,
        cases![
            methods_that_envoy_forwards,
            request_lines,
            refused_requests,
            requests_cut_off,
            last_requests,
            upgrades_and_what_is_behind_them,
            first_lines_on_a_sniffed_port,
            refused_answers,
            answers_cut_off,
            surplus_bytes,
            interim_answers,
            chunks,
            early_answers,
            pipelined_durations,
            grpc_over_http1,
            a_tcp_port_answers_a_request_line,
            an_odd_message_blinds_no_pooled_connection,
        ],
    )
}

const GET: &str = "GET /bytes/3 HTTP/1.1\r\nhost: a\r\n\r\n";

/// Plays each of the named exchanges on its own and compares the observer's counts with the log; reports all
/// differences.
fn each<'a, T: 'a + ?Sized>(
    pair: &mut Pair,
    plays: impl IntoIterator<Item = (String, &'a T)>,
    play: impl Fn(&Pair, &'a T) -> Result<()>,
    correct: Correction<'_>,
) -> Result<String> {
    let (mut played, mut wrong) = (0, Vec::new());
    for (name, what) in plays {
        let before = pair.begin()?;
        play(pair, what)?;
        sleep(LOG_DELAY);
        let (mut truth, _) = pair.truth_of_any()?;
        correct(&mut truth);
        if let Err(error) = pair.agree(&before, &truth) {
            wrong.push(format!("{name}: {error:#}"));
        }
        played += 1;
    }
    ensure!(played > 0, "nothing was played");
    ensure!(wrong.is_empty(), "{} of {played} differ:\n  {}", wrong.len(), wrong.join("\n  "));
    Ok(format!("{played} equal"))
}

/// Sends the pieces one by one, each after the answer to the one before or its timeout, and ends the connection.
fn say(pair: &Pair, to: &Service, pieces: &[&[u8]]) -> Result<()> {
    say_and_wait(pair, to, pieces, PAUSE)
}

fn say_and_wait(pair: &Pair, to: &Service, pieces: &[&[u8]], pause: Duration) -> Result<()> {
    let mut connection = Connection::open(&pair.client, to.address(Family::V4))?;
    for piece in pieces {
        // Envoy may have refused what came before.
        if connection.send(piece).is_err() || connection.drain_for(RESPONSE_WINDOW).is_err() {
            break;
        }
        sleep(pause);
    }
    let _ = connection.finish_sending();
    let _ = connection.drain();
    Ok(())
}

fn requests(pair: &mut Pair, requests: &[&str]) -> Result<String> {
    let named = requests.iter().map(|request| (format!("{request:?}"), *request));
    each(pair, named, |pair, request| say(pair, &pair.web.clone(), &[request.as_bytes()]), &without_durations)
}

/// RFC 10008 and others.
fn methods_that_envoy_forwards(pair: &mut Pair) -> Result<String> {
    requests(
        pair,
        &[
            "QUERY /bytes/3 HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
            "PURGE /bytes/3 HTTP/1.1\r\nhost: a\r\n\r\n",
            "PROPFIND /bytes/3 HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
            "MKCALENDAR /bytes/3 HTTP/1.1\r\nhost: a\r\n\r\n",
            "UNSUBSCRIBE /bytes/3 HTTP/1.1\r\nhost: a\r\n\r\n",
        ],
    )
}

fn request_lines(pair: &mut Pair) -> Result<String> {
    requests(
        pair,
        &[
            "LIST /bytes/3 HTTP/1.1\r\nhost: a\r\n\r\n",
            "get /bytes/3 HTTP/1.1\r\nhost: a\r\n\r\n",
            "GET /bytes/3 HTTP/2.0\r\nhost: a\r\n\r\n",
            "GET /bytes/3 HTTP/1.2\r\nhost: a\r\n\r\n",
            "GET /bytes/3 HTTP/1.10\r\nhost: a\r\n\r\n",
            "GET /bytes/3 http/1.1\r\nhost: a\r\n\r\n",
            "GET /bytes/3\r\nhost: a\r\n\r\n",
            "GET  /bytes/3  HTTP/1.1\r\nhost: a\r\n\r\n",
            "GET\t/bytes/3\tHTTP/1.1\r\nhost: a\r\n\r\n",
            "GET /bytes/3 HTTP/1.1 \r\nhost: a\r\n\r\n",
            " GET /bytes/3 HTTP/1.1\r\nhost: a\r\n\r\n",
            "GET /a b HTTP/1.1\r\nhost: a\r\n\r\n",
            "GET foo HTTP/1.1\r\nhost: a\r\n\r\n",
            "GET /bytes/3 HTTP/1.1\nhost: a\n\n",
            "GET /bytes/3 HTTP/1.1\r\n\r\n",
            "GET /bytes/3 HTTP/1.0\r\n\r\n",
            "\r\nGET /bytes/3 HTTP/1.1\r\nhost: a\r\n\r\n",
            "\n\nGET /bytes/3 HTTP/1.1\r\nhost: a\r\n\r\n",
            "hello world\r\n\r\n",
            "EHLO mail.example now\r\n",
            "\u{1}\u{2}\u{3} what is this\r\n\r\n",
            "\u{16}\u{3}\u{1}\0\u{5}hello",
        ],
    )
}

fn refused_requests(pair: &mut Pair) -> Result<String> {
    let post = |fields: &str, body: &str| format!("POST /upload HTTP/1.1\r\nhost: a\r\n{fields}\r\n{body}");
    let all = [
        post("transfer-encoding: gzip\r\n", ""),
        post("transfer-encoding: gzip, chunked\r\n", "0\r\n\r\n"),
        post("transfer-encoding: chunked, gzip\r\n", "0\r\n\r\n"),
        post("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n"),
        post("transfer-encoding: identity\r\n", ""),
        post("transfer-encoding: \r\n", ""),
        post("transfer-encoding: xchunked\r\n", "0\r\n\r\n"),
        post("transfer-encoding: gzip,\r\n chunked\r\n", "0\r\n\r\n"),
        post("transfer-encoding : chunked\r\n", "0\r\n\r\n"),
        post("transfer-encoding: chunked\r\ncontent-length: 5\r\n", "0\r\n\r\n"),
        post("content-length: 5\r\ncontent-length: 6\r\n", "hello"),
        post("content-length: 5\r\ncontent-length: 5\r\n", "hello"),
        post("content-length: 5, 5\r\n", "hello"),
        post("content-length: +5\r\n", "hello"),
        post("content-length: 0x5\r\n", "hello"),
        post("content-length: 5 0\r\n", "hello"),
        post("content-length: \r\n", ""),
        post("content-length: 99999999999999999999\r\n", "hello"),
        post("content-length : 5\r\n", "hello"),
        post("content-length: 1\r\n 0\r\n", "helloworld"),
        post("x(: y\r\n", ""),
        post("x y: z\r\n", ""),
        post("nocolon\r\n", ""),
        post("x: a\0b\r\n", ""),
        post("transfer-encoding: chunked\r\n", "0x5\r\nhello\r\n0\r\n\r\n"),
        post("transfer-encoding: chunked\r\n", "g\r\nhello\r\n0\r\n\r\n"),
        post("transfer-encoding: chunked\r\n", "5\nhello\n0\n\n"),
        post("transfer-encoding: chunked\r\n", "5\r\nhel\r\n0\r\n\r\n"),
        // Methods that Envoy accepts.
        post("transfer-encoding: Chunked\t\r\n", "0000000000000005\r\nhello\r\n0\r\n\r\n"),
        post("transfer-encoding:\r\n chunked\r\n", "5 ;a=\"b\"\r\nhello\r\n00;x\r\nx: y\r\n\r\n"),
        post("content-length: 000000000000000000000000000005\r\n", "hello"),
        post("content-length:\r\n 5\r\n", "hello"),
        post("content-length:\t5\t\r\n", "hello"),
    ];
    requests(pair, &all.each_ref().map(String::as_str))
}

fn requests_cut_off(pair: &mut Pair) -> Result<String> {
    let plays: [&[&str]; 7] = [
        &["hello"],
        &["GET /"],
        &["GET /bytes/3 HTTP/1.1\r\nhost: a\r\n"],
        &["\r\n\r\n"],
        &["POST /upload HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhe"],
        &["POST /upload HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhe"],
        &[GET, "\r\n"],
    ];
    let named = plays.iter().map(|play| (format!("{play:?}"), *play));
    each(
        pair,
        named,
        |pair, play| {
            let pieces: Vec<&[u8]> = play.iter().map(|piece| piece.as_bytes()).collect();
            say(pair, &pair.web.clone(), &pieces)
        },
        &without_durations,
    )
}

fn last_requests(pair: &mut Pair) -> Result<String> {
    let heads = [
        "HTTP/1.1\r\nconnection: close\r\n",
        "HTTP/1.1\r\nconnection: keep-alive, close\r\n",
        "HTTP/1.1\r\nConnection: Close\r\nconnection: keep-alive\r\n",
        "HTTP/1.0\r\n",
    ];
    let firsts = heads.map(|head| format!("GET /bytes/3 {head}host: a\r\n\r\n"));
    let named = firsts.iter().map(|first| (format!("{first:?}"), first.as_str()));
    each(
        pair,
        named,
        |pair, first| {
            say(pair, &pair.web.clone(), &[[first, GET].concat().as_bytes()])?;
            // After it, and not with it.
            say(pair, &pair.web.clone(), &[first.as_bytes(), GET.as_bytes()])
        },
        &without_durations,
    )
}

fn upgrades_and_what_is_behind_them(pair: &mut Pair) -> Result<String> {
    let fields = [
        "upgrade: h2c\r\n",
        "connection: upgrade\r\nupgrade: h2c\r\n",
        "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAARAAAAAAAIAAAAA\r\n",
        "upgrade: websocket\r\n",
        "connection: upgrade\r\n",
        "connection: xupgrade\r\nupgrade: websocket\r\n",
        "connection: keep-alive, Upgrade\r\nupgrade: WebSocket\r\n",
        "connection: upgrade\r\nupgrade: foo\r\n",
        "connection: upgrade\r\nupgrade: TLS/1.2\r\n",
    ];
    let firsts = fields.map(|fields| format!("GET /bytes/3 HTTP/1.1\r\nhost: a\r\n{fields}\r\n"));
    let named = firsts.iter().map(|first| (format!("{first:?}"), first.as_str()));
    each(
        pair,
        named,
        |pair, first| say(pair, &pair.web.clone(), &[first.as_bytes(), GET.as_bytes()]),
        &without_durations,
    )
}

/// First lines, and their classification by Envoy's http_inspector.
fn first_lines_on_a_sniffed_port(pair: &mut Pair) -> Result<String> {
    let server = answering(pair, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")?;
    let lines = [
        "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        "LIST / HTTP/1.1\r\nhost: a\r\n\r\n",
        "get / HTTP/1.1\r\nhost: a\r\n\r\n",
        "M-SEARCH * HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET / HTTP/2.0\r\nhost: a\r\n\r\n",
        "GET /\r\n\r\n",
        "USER /x\r\n",
        "GET\t/\tHTTP/1.1\r\nhost: a\r\n\r\n",
        "\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n",
        " GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET / http/1.1\r\nhost: a\r\n\r\n",
        "GET / HTTP/1.10\r\nhost: a\r\n\r\n",
        "GET /a b HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET foo HTTP/1.1\r\nhost: a\r\n\r\n",
        "G(T / HTTP/1.1\r\nhost: a\r\n\r\n",
        "HELO\r\n",
        "MAIL FROM:<a@b>\r\n",
        "SET a b\r\n",
        "OPTIONS sip:u@h SIP/2.0\r\n\r\n",
        "*1\r\n$4\r\nPING\r\n",
        "\u{1}\u{2}\u{3}",
    ];
    let named = lines.iter().map(|line| (format!("{line:?}"), *line));
    let summary = each(pair, named, |pair, line| say(pair, &pair.raw.clone(), &[line.as_bytes()]), &without_durations);
    drop(server);
    summary
}

/// Returns an application that answers whatever comes with these bytes.
fn answering(pair: &Pair, answer: &'static [u8]) -> Result<Server> {
    served(pair, move |connection| {
        while !connection.receive_some()?.is_empty() {
            connection.send(answer)?;
        }
        Ok(())
    })
}

fn served(pair: &Pair, handler: impl Fn(&mut Connection) -> io::Result<()> + Send + Sync + 'static) -> Result<Server> {
    Server::start(&pair.server, pair.raw.target_port, move |connection| {
        handler(connection.as_mut().expect("given by the server"))
    })
}

/// Each answer from an application that then waits, or closes.
fn answers(pair: &mut Pair, answers: &[&'static str], leaves: bool) -> Result<String> {
    let named = answers.iter().map(|answer| (format!("{answer:?}"), *answer));
    each(
        pair,
        named,
        |pair, answer| {
            let server = served(pair, move |connection| {
                connection.receive_until(b"\r\n\r\n")?;
                connection.send(answer)?;
                if !leaves {
                    connection.drain()?;
                } else {
                    sleep(PAUSE);
                }
                Ok(())
            })?;
            // The application's end comes first, also on a slow machine.
            let pause = if leaves { 10 * PAUSE } else { PAUSE };
            say_and_wait(pair, &pair.raw.clone(), &[b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"], pause)?;
            drop(server);
            Ok(())
        },
        &without_durations,
    )
}

fn refused_answers(pair: &mut Pair) -> Result<String> {
    answers(
        pair,
        &[
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 204 No\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 204 No\r\ncontent-length: 5\r\n\r\nhello",
            "HTTP/1.1 204 No\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\ncontent-length: abc\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\ncontent-length : 5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\ncontent-length: 00000000000000000000000005\r\n\r\nhello",
            "ICY 200 OK\r\nx: y\r\n\r\nhello",
            "HTTP/2.0 200 OK\r\ncontent-length: 5\r\n\r\nhello",
            "HTTP/1.2 200 OK\r\ncontent-length: 5\r\n\r\nhello",
            "http/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
            "HTTP/1.10 200 OK\r\ncontent-length: 5\r\n\r\nhello",
            "HTTP/1.1 20 OK\r\ncontent-length: 5\r\n\r\nhello",
            "HTTP/1.1 099 OK\r\ncontent-length: 5\r\n\r\nhello",
            "HTTP/1.1 999 OK\r\ncontent-length: 5\r\n\r\nhello",
            "HTTP/1.1 200OK\r\ncontent-length: 5\r\n\r\nhello",
            "HTTP/1.1  200  OK\r\ncontent-length: 5\r\n\r\nhello",
            "\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
            "\u{15}\u{3}\u{3}\0\u{2}\u{2}\u{28}",
            "hello",
            "Hello\r\n\r\n",
            "{\"a\":1}",
            "SSH-2.0-OpenSSH\r\n",
        ],
        false,
    )
}

fn answers_cut_off(pair: &mut Pair) -> Result<String> {
    answers(
        pair,
        &[
            "",
            "H",
            "HTTP/1.1 2",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 200 OK\r\ncontent-le",
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel",
            "HTTP/1.1 204 No\r\n",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 100 Con",
            "HTTP/1.1 103 E\r\n\r\nHTTP/1.1 200",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n",
            "HTTP/1.1 200 OK\r\nx: y\r\n\r\nhello",
        ],
        true,
    )
}

fn surplus_bytes(pair: &mut Pair) -> Result<String> {
    answers(
        pair,
        &[
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello world",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            "HTTP/1.1 304 No\r\ncontent-length: 5\r\n\r\nhello",
            "HTTP/1.1 304 No\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        ],
        false,
    )
}

fn interim_answers(pair: &mut Pair) -> Result<String> {
    answers(
        pair,
        &[
            "HTTP/1.1 101 S\r\n\r\n",
            "HTTP/1.1 101 S\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
            "HTTP/1.1 101 S\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            "HTTP/1.1 101 S\r\ncontent-length: 3\r\n\r\nabc",
            "HTTP/1.1 100 C\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            "HTTP/1.1 102 P\r\n\r\nHTTP/1.1 103 P\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            "HTTP/1.1 199 P\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            "HTTP/1.1 100 C\r\ncontent-length: 3\r\n\r\n",
            "HTTP/1.1 100 C\r\ntransfer-encoding: chunked\r\n\r\n",
        ],
        false,
    )
}

fn chunks(pair: &mut Pair) -> Result<String> {
    answers(
        pair,
        &[
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0000000000000005\r\nhello\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n00000000000000000000000000005\r\nhello\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5 ;a\r\nhello\r\n0\r\nx: y\r\n z\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5,\r\nhello\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\r\nhello\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\nhello",
        ],
        false,
    )
}

/// The application answers at once and keeps reading, and the client sends everything: Envoy has the whole body before
/// it reads the answer.
fn early_answers(pair: &mut Pair) -> Result<String> {
    const LENGTH: usize = 1_000_000;
    let server = served(pair, |connection| {
        while connection.receive_head()?.is_some() {
            connection.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")?;
            connection.receive(LENGTH)?;
        }
        Ok(())
    })?;
    let rounds = [1, 2, 3];
    let named = rounds.iter().map(|round| (round.to_string(), round));
    let summary = each(
        pair,
        named,
        |pair, _| {
            let mut connection = Connection::open(&pair.client, pair.raw.address(Family::V4))?;
            let head = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {LENGTH}\r\n\r\n");
            let _ = connection.send([head.as_bytes(), &vec![b'x'; LENGTH]].concat());
            let _ = connection.receive_until(b"ok");
            sleep(PAUSE);
            Ok(())
        },
        &without_durations,
    );
    drop(server);
    summary
}

/// Envoy begins a request after the answer to the one before it.
fn pipelined_durations(pair: &mut Pair) -> Result<String> {
    let source = pair.source();
    let rounds = [20, 5];
    let named = rounds.iter().map(|round| (format!("{round} requests"), round));
    each(
        pair,
        named,
        |pair, count| {
            let mut connection = Connection::open(&pair.client, pair.web.address(Family::V4))?;
            connection.send("GET /delay/30 HTTP/1.1\r\nhost: a\r\n\r\n".repeat(*count))?;
            for _ in 0..*count {
                ensure!(connection.receive_response()?.status == 200);
            }
            Ok(())
        },
        &|truth| {
            // Its meter counts the waiting bytes again.
            let sent = "GET /delay/30 HTTP/1.1\r\nhost: a\r\n\r\n".len() as u64;
            let requests = truth.of(&source, "200");
            requests.request_bytes = requests.count * sent;
        },
    )
}

fn grpc_over_http1(pair: &mut Pair) -> Result<String> {
    const PLAYS: &[(&str, &str)] = &[
        ("application/grpc", "HTTP/1.1 200 OK\r\ngrpc-status: 5\r\ncontent-length: 0\r\n\r\n"),
        ("application/grpc+proto", "HTTP/1.1 200 OK\r\ngrpc-status: 0\r\ncontent-length: 0\r\n\r\n"),
        ("application/grpc", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\ngrpc-status: 7\r\n\r\n"),
        ("application/grpc", "HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n"),
        ("application/grpc", "ICY\r\n\r\n"),
        ("application/grpc", "HTTP/1.1 200 OK\r\ngrpc-status: 40103\r\ncontent-length: 0\r\n\r\n"),
        ("application/grpc-web", "HTTP/1.1 200 OK\r\ngrpc-status: 5\r\ncontent-length: 0\r\n\r\n"),
    ];
    let named = PLAYS.iter().map(|play| (format!("{play:?}"), play));
    each(
        pair,
        named,
        |pair, (kind, answer)| {
            let server = served(pair, move |connection| {
                connection.receive_until(b"\r\n\r\n")?;
                connection.send(answer)?;
                connection.drain().map(drop)
            })?;
            let head = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-type: {kind}\r\ncontent-length: 0\r\n\r\n");
            say(pair, &pair.raw.clone(), &[head.as_bytes()])?;
            drop(server);
            Ok(())
        },
        &without_durations,
    )
}

fn a_tcp_port_answers_a_request_line(pair: &mut Pair) -> Result<String> {
    let server = Server::start(&pair.server, pair.tcp.target_port, |connection| {
        let connection = connection.as_mut().expect("given by the server");
        connection.receive_until(b"\r\n\r\n")?;
        connection.send("ICY 200 OK\r\nicy-name: a station\r\n\r\n...")?;
        connection.drain().map(drop)
    })?;
    let request = ["GET /stream HTTP/1.0\r\nicy-metadata: 1\r\n\r\n"];
    let named = request.iter().map(|request| ((*request).to_owned(), *request));
    let summary =
        each(pair, named, |pair, request| say(pair, &pair.tcp.clone(), &[request.as_bytes()]), &without_durations);
    drop(server);
    summary
}

/// On the destination's pooled connection, and on the client's own: what follows is read again.
fn an_odd_message_blinds_no_pooled_connection(pair: &mut Pair) -> Result<String> {
    let odd = [
        "QUERY /bytes/3 HTTP/1.1\r\nhost: a\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\n{}",
        "GET /bytes/3 HTTP/1.1\r\nhost: a\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
        "GET /bytes/3 HTTP/2.0\r\nhost: a\r\nconnection: keep-alive\r\n\r\n",
        "POST /upload HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\n0\r\n\r\n",
        "\r\n\r\nGET\t/bytes/3 \t HTTP/1.1 \r\nhost: a\r\n\r\n",
    ];
    let named = odd.iter().map(|odd| (format!("{odd:?}"), *odd));
    each(
        pair,
        named,
        |pair, odd| {
            let pieces = [odd, GET, GET, odd, GET].map(str::as_bytes);
            say(pair, &pair.web.clone(), &pieces)?;
            say(pair, &pair.web.clone(), &[GET.as_bytes()])
        },
        &without_durations,
    )
}
