//! HTTP/1.1 on sidecars, case by case: the observer against Envoy's access log.

use std::{
    process::ExitCode,
    thread::{self, sleep},
    time::Duration,
};

use anyhow::{Result, ensure};
use harness::{
    apps::raw::{Connection, Response, Server},
    cases,
    counts::{Counts, Leg},
    mesh::Family,
    net::finish,
    observer::Snapshot,
    pair::{Expected, Pair, SETTLE_TIMEOUT, however_late, without_durations},
    wait::wait_until,
};

const BOTH: [Family; 2] = [Family::V4, Family::V6];
const PAUSE: Duration = Duration::from_millis(20);
const GIBIBYTE: u64 = 1 << 30;

fn main() -> ExitCode {
    cases::run(
        Pair::new,
        cases![
            one_request,
            keep_alive,
            statuses,
            head,
            no_content_and_not_modified,
            content_length_both_ways,
            chunked_both_ways_with_extensions_and_trailers,
            close_delimited_body,
            http_1_0,
            http_1_0_keep_alive,
            connection_close,
            early_hints,
            expect_continue,
            upgrade,
            connect,
            pipelining,
            pipelining_in_one_segment,
            leading_crlf_between_messages,
            response_before_the_request_body_has_ended,
            headers_split_at_every_byte,
            response_headers_split_at_every_byte,
            headers_larger_than_8_kib,
            obs_fold,
            length_and_chunked_in_a_request,
            length_and_chunked_in_a_response,
            body_of_1_gib_down,
            body_of_1_gib_up,
            application_ends_without_a_word,
            application_resets,
            application_ends_inside_the_body,
            application_is_not_there,
            client_ends_before_the_answer,
            client_resets_before_the_answer,
            client_ends_inside_the_response,
            client_ends_inside_the_request_body,
            client_ends_inside_the_headers,
            sniffed_port,
            malformed_request,
            retransmissions,
            delays,
            percentiles,
            percentiles_of_quick_answers,
            wrk,
            h2load,
            a_thousand_short_connections,
            call_to_the_own_service,
            service_without_a_sidecar,
            client_outside_the_mesh,
            agent_probes_are_not_counted,
            traffic_past_the_sidecar_is_not_counted,
        ],
    )
}

fn one_request(pair: &mut Pair) -> Result<String> {
    pair.check(Expected::both(2), |pair| {
        for family in BOTH {
            ensure!(pair.curl(&[&pair.url(family, "/")])? == "200");
        }
        Ok(())
    })
}

fn keep_alive(pair: &mut Pair) -> Result<String> {
    pair.check(Expected::both(40), |pair| {
        for family in BOTH {
            let url = pair.url(family, "/bytes/[1-20]");
            ensure!(pair.curl(&[&url])?.lines().count() == 20);
        }
        Ok(())
    })
}

fn statuses(pair: &mut Pair) -> Result<String> {
    let codes = [200, 201, 301, 400, 403, 404, 418, 500, 502, 503, 504, 599];
    pair.check(Expected::both(codes.len() * 2), |pair| {
        for (family, code) in BOTH.iter().flat_map(|family| codes.map(|code| (family, code))) {
            ensure!(pair.curl(&[&pair.url(*family, &format!("/status/{code}"))])? == code.to_string());
        }
        Ok(())
    })
}

fn head(pair: &mut Pair) -> Result<String> {
    pair.check(Expected::both(6), |pair| {
        for family in BOTH {
            let url = pair.url(family, "/bytes/5000");
            pair.curl(&["--head", &url, "--next", "-sS", "-o", "/dev/null", &url, "--next", "-sS", "--head", &url])?;
        }
        Ok(())
    })
}

fn no_content_and_not_modified(pair: &mut Pair) -> Result<String> {
    pair.check(Expected::both(8), |pair| {
        for family in BOTH {
            pair.curl(&[&pair.url(family, "/status/{204,304,204,200}")])?;
        }
        Ok(())
    })
}

fn content_length_both_ways(pair: &mut Pair) -> Result<String> {
    pair.check(Expected::both(4), |pair| {
        for family in BOTH {
            for length in [1, 100_000] {
                let body = "x".repeat(length);
                let request = format!("POST /echo HTTP/1.1\r\nhost: web\r\ncontent-length: {length}\r\n\r\n{body}");
                let answer = ask(pair, family, request)?;
                ensure!(answer.status == 200 && answer.body == body.as_bytes());
            }
        }
        Ok(())
    })
}

fn chunked_both_ways_with_extensions_and_trailers(pair: &mut Pair) -> Result<String> {
    pair.check(Expected::both(6), |pair| {
        for family in BOTH {
            let mut connection = Connection::open(&pair.client, pair.web.address(family))?;
            connection.send_pieces(
                [
                    b"POST /chunked/2500 HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked\r\ntrailer: x-end\r\n\r\n"
                        .as_slice(),
                    b"5;name=value\r\nhel",
                    b"lo\r\n0001",
                    b"0;a=\"b;c\"\r\n0123456789abcdef\r\n",
                    b"0;last\r\nx-end: yes\r\n\r",
                    b"\n",
                ],
                PAUSE,
            )?;
            ensure!(connection.receive_response()?.body.len() == 2500);
            connection
                .send("POST /upload HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n")?;
            ensure!(connection.receive_response()?.body == b"1");
            connection.send("GET /chunked/0 HTTP/1.1\r\nhost: web\r\n\r\n")?;
            ensure!(connection.receive_response()?.body.is_empty());
        }
        Ok(())
    })
}

fn close_delimited_body(pair: &mut Pair) -> Result<String> {
    pair.check(Expected::both(4), |pair| {
        for family in BOTH {
            pair.curl(&[&pair.url(family, "/until-close/{0,70000}")])?;
        }
        Ok(())
    })
}

fn http_1_0(pair: &mut Pair) -> Result<String> {
    pair.check(Expected::both(4), |pair| {
        for family in BOTH {
            pair.curl(&["--http1.0", &pair.url(family, "/{bytes/3000,chunked/3000}")])?;
        }
        Ok(())
    })
}

fn http_1_0_keep_alive(pair: &mut Pair) -> Result<String> {
    pair.check(Expected::both(4), |pair| {
        for family in BOTH {
            let mut connection = Connection::open(&pair.client, pair.web.address(family))?;
            for _ in 0..2 {
                connection.send("GET /bytes/10 HTTP/1.0\r\nhost: web\r\nconnection: keep-alive\r\n\r\n")?;
                ensure!(connection.receive_response()?.body.len() == 10);
            }
        }
        Ok(())
    })
}

fn connection_close(pair: &mut Pair) -> Result<String> {
    pair.check(Expected::both(4), |pair| {
        for family in BOTH {
            pair.curl(&[
                &pair.url(family, "/close"),
                "--next",
                "-sS",
                "-H",
                "connection: close",
                &pair.url(family, "/"),
            ])?;
        }
        Ok(())
    })
}

fn early_hints(pair: &mut Pair) -> Result<String> {
    pair.check(Expected::both(4), |pair| {
        for family in BOTH {
            ensure!(pair.curl(&[&pair.url(family, "/{hints,bytes/5}")])? == "200\n200");
        }
        Ok(())
    })
}

fn expect_continue(pair: &mut Pair) -> Result<String> {
    let file = pair.mesh.directory().join("upload");
    std::fs::write(&file, vec![b'u'; 200_000])?;
    let file = format!("@{}", file.display());
    pair.check(Expected::both(4), |pair| {
        for family in BOTH {
            let url = pair.url(family, "/upload");
            let upload = ["-H", "expect: 100-continue", "--data-binary", &file, &url];
            pair.curl(&[upload.as_slice(), &["--next", "-sS", "-o", "/dev/null"], &upload].concat())?;
        }
        Ok(())
    })
}

fn upgrade(pair: &mut Pair) -> Result<String> {
    tunnels(
        pair,
        "GET /upgrade HTTP/1.1\r\nhost: web\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        "HTTP/1.1 101",
    )
}

fn connect(pair: &mut Pair) -> Result<String> {
    tunnels(pair, "CONNECT web:80 HTTP/1.1\r\nhost: web:80\r\n\r\n", "HTTP/1.1 200")
}

/// One request that lasts until the close, with the tunnel's bytes.
fn tunnels(pair: &mut Pair, request: &str, answer: &str) -> Result<String> {
    pair.check(Expected::both(2), |pair| {
        for family in BOTH {
            let mut connection = Connection::open(&pair.client, pair.web.address(family))?;
            connection.send(request)?;
            let head = connection.receive_until(b"\r\n\r\n")?;
            ensure!(head.starts_with(answer.as_bytes()), "{}", String::from_utf8_lossy(&head));
            for message in ["GET / HTTP/1.1\r\n\r\n", "\u{0}\u{1}\u{2} anything", "HTTP/1.1 500 no\r\n\r\n"] {
                connection.send(message)?;
                connection.receive(message.len())?;
            }
            connection.finish_sending()?;
            connection.drain()?;
        }
        Ok(())
    })
}

fn pipelining(pair: &mut Pair) -> Result<String> {
    pipelined(pair, PAUSE)
}

fn pipelining_in_one_segment(pair: &mut Pair) -> Result<String> {
    pipelined(pair, Duration::ZERO)
}

/// Envoy counts buffered bytes again: at the source, the client's bytes are expected.
fn pipelined(pair: &mut Pair, pause: Duration) -> Result<String> {
    let requests: Vec<String> = (0..10)
        .map(|number| format!("POST /bytes/{number} HTTP/1.1\r\nhost: web\r\ncontent-length: 3\r\n\r\nabc"))
        .collect();
    let sent: u64 = requests.iter().map(|request| request.len() as u64).sum::<u64>() * 2;
    let source = pair.source();
    pair.check_with(
        Expected::both(20),
        |pair| {
            for family in BOTH {
                let mut connection = Connection::open(&pair.client, pair.web.address(family))?;
                if pause.is_zero() {
                    connection.send(requests.concat())?;
                } else {
                    connection.send_pieces(requests.iter().map(String::as_bytes), pause)?;
                }
                for number in 0..10 {
                    ensure!(connection.receive_response()?.body.len() == number);
                }
            }
            Ok(())
        },
        &|truth| {
            truth.of(&source, "200").request_bytes = sent;
        },
    )
}

fn leading_crlf_between_messages(pair: &mut Pair) -> Result<String> {
    pair.check(Expected::both(6), |pair| {
        for family in BOTH {
            let mut connection = Connection::open(&pair.client, pair.web.address(family))?;
            for before in ["", "\r\n", "\r\n\r\n"] {
                connection.send(format!("{before}GET /bytes/7 HTTP/1.1\r\nhost: web\r\n\r\n"))?;
                ensure!(connection.receive_response()?.body.len() == 7);
            }
        }
        Ok(())
    })
}

/// Bytes of the request after the answer do not count, for Envoy and for the observer.
fn response_before_the_request_body_has_ended(pair: &mut Pair) -> Result<String> {
    pair.check(Expected::both(2), |pair| {
        for family in BOTH {
            let mut connection = Connection::open(&pair.client, pair.web.address(family))?;
            connection.send("POST /early HTTP/1.1\r\nhost: web\r\ncontent-length: 2000\r\n\r\n")?;
            connection.send([b'a'; 1000])?;
            ensure!(connection.receive_response()?.status == 413);
            sleep(PAUSE);
            // Envoy may not wait for the rest any more.
            let _ = connection.send([b'b'; 1000]);
            connection.finish_sending()?;
            connection.drain()?;
        }
        Ok(())
    })
}

fn headers_split_at_every_byte(pair: &mut Pair) -> Result<String> {
    let request = b"POST /echo HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\n\r\nhello";
    pair.check(Expected::both(2 * request.len()), |pair| {
        for family in BOTH {
            let mut connection = Connection::open(&pair.client, pair.web.address(family))?;
            for at in 1..request.len() {
                connection.send_pieces([&request[..at], &request[at..]], Duration::from_millis(2))?;
                ensure!(connection.receive_response()?.body == b"hello");
            }
            connection.send_pieces(request.chunks(1), Duration::from_millis(1))?;
            ensure!(connection.receive_response()?.body == b"hello");
        }
        Ok(())
    })
}

fn response_headers_split_at_every_byte(pair: &mut Pair) -> Result<String> {
    const ANSWER: &[u8] = b"HTTP/1.1 202 Accepted\r\nContent-Length: 5\r\n\r\nhello";
    let server = raw_server(pair, |connection| {
        for at in 1..=ANSWER.len() {
            connection.receive_until(b"\r\n\r\n")?;
            let pieces: Vec<&[u8]> =
                if at < ANSWER.len() { vec![&ANSWER[..at], &ANSWER[at..]] } else { ANSWER.chunks(1).collect() };
            connection.send_pieces(pieces, Duration::from_millis(2))?;
        }
        Ok(())
    })?;
    let summary = pair.check(Expected::both(2 * ANSWER.len()), |pair| {
        for family in BOTH {
            let mut connection = Connection::open(&pair.client, pair.raw.address(family))?;
            for _ in 0..ANSWER.len() {
                connection.send("GET / HTTP/1.1\r\nhost: raw\r\n\r\n")?;
                ensure!(connection.receive_response()?.status == 202);
            }
        }
        Ok(())
    });
    drop(server);
    summary
}

fn headers_larger_than_8_kib(pair: &mut Pair) -> Result<String> {
    let large: String = (0..40).map(|n| format!("x-filler-{n}: {}\r\n", "y".repeat(500))).collect();
    let answer = format!("HTTP/1.1 200 OK\r\n{large}content-length: 2\r\n\r\nok");
    let server = raw_server(pair, move |connection| {
        while connection.receive_head()?.is_some() {
            connection.send(&answer)?;
        }
        Ok(())
    })?;
    let summary = pair.check(Expected::both(4), |pair| {
        for family in BOTH {
            let mut connection = Connection::open(&pair.client, pair.raw.address(family))?;
            for _ in 0..2 {
                connection.send(format!("GET / HTTP/1.1\r\nhost: raw\r\n{large}\r\n"))?;
                ensure!(connection.receive_response()?.body == b"ok");
            }
        }
        Ok(())
    });
    drop(server);
    summary
}

fn obs_fold(pair: &mut Pair) -> Result<String> {
    pair.check(Expected { source: 2, destination: 2 }, |pair| {
        for family in BOTH {
            let mut connection = Connection::open(&pair.client, pair.web.address(family))?;
            connection.send("GET /bytes/4 HTTP/1.1\r\nhost: web\r\nx-long: one\r\n  two\r\n\tthree\r\n\r\n")?;
            connection.receive_response()?;
        }
        Ok(())
    })
}

fn length_and_chunked_in_a_request(pair: &mut Pair) -> Result<String> {
    // Envoy refuses it: one request at the source, none at the destination.
    pair.check(Expected { source: 2, destination: 0 }, |pair| {
        for family in BOTH {
            let mut connection = Connection::open(&pair.client, pair.web.address(family))?;
            connection.send(
                "POST /echo HTTP/1.1\r\nhost: web\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
            )?;
            ensure!(connection.receive_response()?.status == 400);
            connection.drain()?;
        }
        Ok(())
    })
}

/// Envoy refuses it.
fn length_and_chunked_in_a_response(pair: &mut Pair) -> Result<String> {
    let server = raw_server(pair, |connection| {
        while connection.receive_head()?.is_some() {
            connection.send(
                "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            )?;
        }
        Ok(())
    })?;
    let summary = pair.check(Expected::both(2), |pair| {
        for family in BOTH {
            let mut connection = Connection::open(&pair.client, pair.raw.address(family))?;
            connection.send("GET / HTTP/1.1\r\nhost: raw\r\n\r\n")?;
            ensure!(connection.receive_response()?.status == 502);
        }
        Ok(())
    });
    drop(server);
    summary
}

fn body_of_1_gib_down(pair: &mut Pair) -> Result<String> {
    pair.check(Expected::both(2), |pair| {
        for family in BOTH {
            ensure!(pair.curl(&[&pair.url(family, &format!("/bytes/{GIBIBYTE}"))])? == "200");
        }
        Ok(())
    })
}

fn body_of_1_gib_up(pair: &mut Pair) -> Result<String> {
    pair.check(Expected::both(2), |pair| {
        for family in BOTH {
            let mut connection = Connection::open(&pair.client, pair.web.address(family))?;
            connection.send(format!("PUT /upload HTTP/1.1\r\nhost: web\r\ncontent-length: {GIBIBYTE}\r\n\r\n"))?;
            connection.send_zeros(GIBIBYTE)?;
            ensure!(connection.receive_response()?.body == GIBIBYTE.to_string().as_bytes());
        }
        Ok(())
    })
}

fn application_ends_without_a_word(pair: &mut Pair) -> Result<String> {
    pair.check(Expected::both(2), |pair| both_codes(pair, "/vanish", "503"))
}

fn application_resets(pair: &mut Pair) -> Result<String> {
    pair.check(Expected::both(2), |pair| both_codes(pair, "/reset", "503"))
}

/// The delayed close of Envoy is in its durations.
fn application_ends_inside_the_body(pair: &mut Pair) -> Result<String> {
    pair.check_with(
        Expected::both(2),
        |pair| {
            for family in BOTH {
                let mut connection = Connection::open(&pair.client, pair.web.address(family))?;
                connection.send("GET /short HTTP/1.1\r\nhost: web\r\n\r\n")?;
                connection.receive_until(b"\r\n\r\n")?;
                connection.drain()?;
            }
            Ok(())
        },
        &without_durations,
    )
}

/// Nothing is on the application's leg.
fn application_is_not_there(pair: &mut Pair) -> Result<String> {
    pair.check(Expected { source: 2, destination: 2 }, |pair| {
        for family in BOTH {
            ensure!(pair.curl(&[&pair.raw.url(family, "/")])? == "503");
        }
        Ok(())
    })
}

fn client_ends_before_the_answer(pair: &mut Pair) -> Result<String> {
    pair.check_with(
        Expected::both(2),
        |pair| {
            for family in BOTH {
                let mut connection = Connection::open(&pair.client, pair.web.address(family))?;
                connection.send("GET /delay/600 HTTP/1.1\r\nhost: web\r\n\r\n")?;
                sleep(Duration::from_millis(150));
            }
            // The late answers meet closed sockets.
            sleep(Duration::from_millis(700));
            Ok(())
        },
        &|_| {},
    )
}

fn client_resets_before_the_answer(pair: &mut Pair) -> Result<String> {
    pair.check(Expected::both(2), |pair| {
        for family in BOTH {
            let mut connection = Connection::open(&pair.client, pair.web.address(family))?;
            connection.send("GET /delay/600 HTTP/1.1\r\nhost: web\r\n\r\n")?;
            sleep(Duration::from_millis(150));
            connection.reset();
        }
        sleep(Duration::from_millis(700));
        Ok(())
    })
}

fn client_ends_inside_the_response(pair: &mut Pair) -> Result<String> {
    let server = raw_server(pair, |connection| {
        connection.receive_until(b"\r\n\r\n")?;
        connection.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n0123456789")?;
        connection.drain().map(|_| ())
    })?;
    let summary = pair.check(Expected::both(2), |pair| {
        for family in BOTH {
            let mut connection = Connection::open(&pair.client, pair.raw.address(family))?;
            connection.send("GET / HTTP/1.1\r\nhost: raw\r\n\r\n")?;
            connection.receive_until(b"0123456789")?;
        }
        Ok(())
    });
    drop(server);
    summary
}

fn client_ends_inside_the_request_body(pair: &mut Pair) -> Result<String> {
    pair.check(Expected::both(2), |pair| {
        for family in BOTH {
            let mut connection = Connection::open(&pair.client, pair.web.address(family))?;
            connection.send("POST /upload HTTP/1.1\r\nhost: web\r\ncontent-length: 100\r\n\r\n0123456789")?;
            sleep(Duration::from_millis(150));
        }
        Ok(())
    })
}

fn client_ends_inside_the_headers(pair: &mut Pair) -> Result<String> {
    pair.check(Expected { source: 2, destination: 0 }, |pair| {
        for family in BOTH {
            let mut connection = Connection::open(&pair.client, pair.web.address(family))?;
            connection.send("GET /upload HTTP/1.1\r\nhost: web\r\nx-unfini")?;
            sleep(Duration::from_millis(100));
        }
        Ok(())
    })
}

fn sniffed_port(pair: &mut Pair) -> Result<String> {
    pair.check(Expected::both(6), |pair| {
        for family in BOTH {
            pair.curl(&[&pair.sniffed.url(family, "/{bytes/10,status/404,chunked/5000}")])?;
        }
        Ok(())
    })
}

fn malformed_request(pair: &mut Pair) -> Result<String> {
    pair.check(Expected { source: 4, destination: 2 }, |pair| {
        for family in BOTH {
            let mut connection = Connection::open(&pair.client, pair.web.address(family))?;
            connection.send("GET /bytes/3 HTTP/1.1\r\nhost: web\r\n\r\n")?;
            connection.receive_response()?;
            connection.send("\u{1}\u{2}\u{3} what is this\r\n\r\n")?;
            connection.drain()?;
        }
        Ok(())
    })
}

/// A retransmitted byte is sent for Envoy, and not yet for the peer.
fn retransmissions(pair: &mut Pair) -> Result<String> {
    pair.check_with(
        Expected::both(40),
        |pair| {
            pair.losing_packets(|| {
                BOTH.iter().try_for_each(|family| {
                    pair.curl(&["-m", "60", &pair.url(*family, "/bytes/[200000-200009]")])?;
                    let body = vec![b'r'; 100_000];
                    let mut connection = Connection::open(&pair.client, pair.web.address(*family))?;
                    for _ in 0..10 {
                        let head =
                            format!("POST /echo HTTP/1.1\r\nhost: web\r\ncontent-length: {}\r\n\r\n", body.len());
                        connection.send(head)?;
                        connection.send(&body)?;
                        ensure!(connection.receive_response()?.body == body);
                    }
                    Ok(())
                })
            })
        },
        &however_late,
    )
}

fn delays(pair: &mut Pair) -> Result<String> {
    pair.check(Expected::both(24), |pair| {
        for family in BOTH {
            pair.curl(&[&pair.url(family, "/delay/{0,1,5,10,25,50,75,100,150,200,250,300}")])?;
        }
        Ok(())
    })
}

/// Four clients, far from saturation: p50, p90 and p99 of both legs.
fn percentiles(pair: &mut Pair) -> Result<String> {
    let paths = "/delay/{5,20,5,60,5,5,20,5,20,5,60,5}?round=[1-10]";
    percentiles_of(pair, 480, |pair| {
        thread::scope(|scope| -> Result<()> {
            let ask = |number: usize| pair.curl(&[&pair.url(BOTH[number % 2], paths)]);
            let clients: Vec<_> = (0..4).map(|number| scope.spawn(move || ask(number))).collect();
            clients.into_iter().try_for_each(|client| client.join().expect("curl's thread").map(drop))
        })
    })
}

/// One after the other, most of them answered within a fraction of a millisecond.
fn percentiles_of_quick_answers(pair: &mut Pair) -> Result<String> {
    percentiles_of(pair, 1000, |pair| {
        for family in BOTH {
            pair.curl(&[&pair.url(family, "/bytes/10?round=[1-500]")])?;
        }
        Ok(())
    })
}

/// A snapshot's percentiles equal the access log's, except for the width of a bucket and Envoy's lateness (see
/// [`Counts::differences`]): all times of one leg are late to the same side, so percentiles are too, and of what
/// threads waited each [`BAR_MS`] can move one request up by more than that.
fn percentiles_of(pair: &mut Pair, count: usize, traffic: impl FnOnce(&Pair) -> Result<()>) -> Result<String> {
    const BAR_MS: f64 = 0.7;
    const CELL: f64 = 1.0 / 64.0;
    // On connections that are older than the snapshot labels may be unknown: a series of their own.
    pair.sidecars[0].stop()?;
    pair.sidecars[0].start_again()?;
    let snapshot = Snapshot::start(&pair.mesh, 2, Duration::from_secs(8))?;
    let before = pair.begin()?;
    traffic(pair)?;
    let (truth, lines) = pair.truth(&Expected::both(count))?;
    pair.agree(&before, &truth)?;
    let said = snapshot.finish()?;
    let mut summary = Vec::new();
    for (leg, direction) in [(pair.source(), "outbound"), (pair.destination(), "inbound")] {
        let mut durations: Vec<f64> = lines
            .iter()
            .filter(|line| line.text("direction") == direction && line.is_end())
            .map(|line| line.duration().as_secs_f64() * 1000.0)
            .collect();
        durations.sort_by(f64::total_cmp);
        let late = truth.late[&leg];
        let moved = (late.times.waited.as_secs_f64() * 1000.0 * late.under_way as f64 / BAR_MS) as usize;
        for (name, per_cent) in [("p50", 50), ("p90", 90), ("p99", 99)] {
            let found = said.statistic("istio.request.duration.milliseconds", name, &leg.reporter)?;
            let at = count * per_cent / 100 - 1;
            let (low, high) = match leg.reporter.as_str() {
                "source" => (durations[at], durations.get(at + moved).map_or(f64::INFINITY, |last| last + BAR_MS)),
                _ => (at.checked_sub(moved).map_or(0.0, |first| durations[first] - BAR_MS), durations[at]),
            };
            let (low, high) = (low * (1.0 - CELL) - 0.05, high * (1.0 + CELL) + 0.05);
            summary.push(format!("{leg} {name} {found:.3}/{:.3} ms ({low:.3} to {high:.3})", durations[at]));
            ensure!((low..=high).contains(&found), "{}", summary.join(", "));
        }
    }
    Ok(summary.join(", "))
}

fn wrk(pair: &mut Pair) -> Result<String> {
    let before = pair.begin()?;
    for family in BOTH {
        let mut command = pair.client.command("wrk")?;
        command.args(["-t1", "-c4", "-d2s", &pair.url(family, "/bytes/1024")]);
        finish(&mut command, "")?;
    }
    sleep(Duration::from_millis(500));
    // Only the access log has the number of requests that wrk made, and dropped at its end.
    let (truth, _) = pair.truth_of_any()?;
    agree_but_for_the_end(pair, &before, &truth, 8)
}

/// When a client leaves, the proxy cancels its requests and logs them with code 0, while the application's answers are
/// in transit: their bytes on the sockets are in no log. Every request is nevertheless counted once and to the byte;
/// for at most `limit` of them, code and length of the answer may differ from the log.
fn agree_but_for_the_end(pair: &Pair, before: &Counts, truth: &Counts, limit: u64) -> Result<String> {
    const ANSWER: u64 = 2048;
    let observer = pair.observer()?;
    wait_until("the observer counts like Envoy's access log", SETTLE_TIMEOUT, || {
        let seen = observer.counts()?.since(before);
        let agrees = |leg: &Leg| {
            let [truth, seen] = [truth, &seen].map(|counts| counts.all(leg));
            truth.count == seen.count
                && truth.request_bytes == seen.request_bytes
                && truth.response_bytes.abs_diff(seen.response_bytes) <= limit * ANSWER
        };
        let legs = [pair.source(), pair.destination()];
        let codes = legs.iter().all(|leg| truth.count(leg, "200").abs_diff(seen.count(leg, "200")) <= limit);
        ensure!(
            codes && legs.iter().all(agrees),
            "the observer has {seen}\n    the access log has {truth}\n    {}",
            observer.health()?
        );
        Ok(seen.to_string())
    })
}

fn h2load(pair: &mut Pair) -> Result<String> {
    pair.check(Expected::both(2000), |pair| {
        for family in BOTH {
            let mut command = pair.client.command("h2load")?;
            command.args(["--h1", "-n1000", "-c5", "-m1", &pair.url(family, "/bytes/100")]);
            let said = finish(&mut command, "")?;
            ensure!(said.contains("1000 succeeded"), "{said}");
        }
        Ok(())
    })
}

fn a_thousand_short_connections(pair: &mut Pair) -> Result<String> {
    pair.check(Expected::both(1000), |pair| {
        for number in 0..1000 {
            let mut connection = Connection::open(&pair.client, pair.web.address(BOTH[number % 2]))?;
            connection.send("GET /bytes/1 HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n")?;
            ensure!(connection.receive_response()?.status == 200);
        }
        Ok(())
    })
}

/// The server calls its own service: both legs are in its own sidecar.
fn call_to_the_own_service(pair: &mut Pair) -> Result<String> {
    pair.check(Expected { source: 0, destination: 4 }, |pair| {
        for family in BOTH {
            ensure!(pair.curl_from(&pair.server, &[&pair.url(family, "/bytes/9")])? == "200");
        }
        Ok(())
    })
}

fn service_without_a_sidecar(pair: &mut Pair) -> Result<String> {
    pair.check(Expected { source: 4, destination: 0 }, |pair| {
        for family in BOTH {
            ensure!(pair.curl(&[&pair.plaintext.url(family, "/{status/500,bytes/1}")])? == "500\n200");
        }
        Ok(())
    })
}

fn client_outside_the_mesh(pair: &mut Pair) -> Result<String> {
    pair.check(Expected { source: 0, destination: 2 }, |pair| {
        for family in BOTH {
            let address = std::net::SocketAddr::new(pair.server.ip(family), pair.web.target_port);
            ensure!(pair.curl_from(&pair.outside, &[&format!("http://{address}/bytes/8")])? == "200");
        }
        Ok(())
    })
}

/// pilot-agent is in the sidecar's cgroup, runs as its user, and comes from 127.0.0.6 too.
fn agent_probes_are_not_counted(pair: &mut Pair) -> Result<String> {
    pair.check(Expected::both(0), |pair| {
        for (family, from) in [(Family::V4, "127.0.0.6"), (Family::V6, "::6")] {
            let address = std::net::SocketAddr::new(pair.server.ip(family), pair.web.target_port);
            for _ in 0..5 {
                let mut command = pair.sidecars[1].agent_command("curl")?;
                command.args(["-sS", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", "--interface", from]);
                command.arg(format!("http://{address}/status/204"));
                ensure!(finish(&mut command, "")? == "204");
            }
        }
        Ok(())
    })
}

fn traffic_past_the_sidecar_is_not_counted(pair: &mut Pair) -> Result<String> {
    pair.check(Expected::both(0), |pair| {
        let own = pair.server.ipv4;
        for url in ["http://127.0.0.1:8080/", "http://[::1]:8080/", &format!("http://{own}:8080/")] {
            ensure!(pair.curl_from(&pair.server, &[url])? == "200");
        }
        Ok(())
    })
}

fn ask(pair: &Pair, family: Family, request: String) -> Result<Response> {
    let mut connection = Connection::open(&pair.client, pair.web.address(family))?;
    connection.send(request)?;
    Ok(connection.receive_response()?)
}

fn both_codes(pair: &Pair, path: &str, code: &str) -> Result<()> {
    for family in BOTH {
        let found = pair.curl(&[&pair.url(family, path)])?;
        ensure!(found == code, "{found} instead of {code} to {path}");
    }
    Ok(())
}

/// Returns an application of the case's own behind the undeclared port; it must end before the next case's begins.
fn raw_server(
    pair: &Pair,
    handler: impl Fn(&mut Connection) -> std::io::Result<()> + Send + Sync + 'static,
) -> Result<Server> {
    Server::start(&pair.server, pair.raw.target_port, move |connection| {
        handler(connection.as_mut().expect("given by the server"))
    })
}
