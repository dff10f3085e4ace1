//! Segments forged into open connections, and at listeners: they cost next to nothing and change no count.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{
    apps::{
        frames::{Block, PREFACE, Peer, flag, headers, settings},
        raw::{Connection, Server},
    },
    forge::{ACK, CLAIMS, Forged, Forger, Timed},
    mesh::{Family, Workload},
    observer::Observer,
    pair::{Expected, Pair, SETTLE_TIMEOUT, without_durations},
};

/// Segments forged into each connection.
const SEGMENTS: u32 = 10_000;
/// Limit of the processor time for all of them.
const IN_ALL: Duration = Duration::from_millis(200);
const SECONDS: &str = "mesh_observer_program_run_seconds_total";
const RUNS: &str = "mesh_observer_program_runs_total";

/// Forges every claim in turn in the name of this end of the connection.
fn forge(pod: &Workload, connection: &Connection) -> Result<()> {
    let forger = Forger::of(pod, connection)?;
    (0..SEGMENTS).try_for_each(|number| forger.claim(CLAIMS[number as usize % CLAIMS.len()].1, number))
}

/// The application's pod forges answers into the sidecar's connection, while a request is open there.
pub(super) fn forged_into_http1(pair: &mut Pair) -> Result<String> {
    forged_into(pair, |pair, forge| {
        let server = Server::start(&pair.server, pair.raw.target_port, move |slot| {
            let connection = slot.as_mut().expect("given by the server");
            loop {
                let Some(head) = connection.receive_head()? else { return Ok(()) };
                if head.starts_with(b"GET /forge") {
                    forge(connection)?;
                }
                connection.send("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")?;
            }
        })?;
        let mut connection = Connection::open(&pair.client, pair.raw.address(Family::V4))?;
        for path in ["/a", "/forge", "/b", "/c", "/forge", "/d"] {
            connection.send(format!("GET {path} HTTP/1.1\r\nhost: raw\r\n\r\n"))?;
            ensure!(connection.receive_response()?.body == b"hello");
        }
        drop((connection, server));
        Ok(6)
    })
}

/// As [`forged_into_http1`], into HTTP/2.
pub(super) fn forged_into_http2(pair: &mut Pair) -> Result<String> {
    forged_into(pair, |pair, forge| {
        let server = Server::start(&pair.server, pair.http2.target_port, move |slot| {
            let mut peer = Peer::server(slot.as_mut().expect("given by the server"), &[])?;
            let mut number = 0;
            loop {
                let stream = peer.request()?;
                number += 1;
                if number % 3 == 2 {
                    forge(peer.connection)?;
                }
                peer.send(headers(stream, flag::END_STREAM, &Block::status(200)))?;
            }
        })?;
        let mut connection = Connection::open(&pair.client, pair.http2.address(Family::V4))?;
        let mut peer = Peer::new(&mut connection);
        peer.send([PREFACE, &settings(&[])].concat())?;
        for stream in [1, 3, 5, 7, 9, 11] {
            peer.send(headers(stream, flag::END_STREAM, &Block::request("GET", "/")))?;
            peer.ended(stream)?;
        }
        drop((connection, server));
        Ok(6)
    })
}

/// As [`forged_into_http1`], into TCP.
pub(super) fn forged_into_tcp(pair: &mut Pair) -> Result<String> {
    forged_into(pair, |pair, forge| {
        let server = Server::start(&pair.server, pair.tcp.target_port, move |slot| {
            let connection = slot.as_mut().expect("given by the server");
            for _ in 0..4 {
                connection.receive(10)?;
                forge(connection)?;
                connection.send([7; 3000])?;
            }
            connection.drain().map(drop)
        })?;
        let mut connection = Connection::open(&pair.client, pair.tcp.address(Family::V4))?;
        for _ in 0..4 {
            connection.send([1; 10])?;
            connection.receive(3000)?;
        }
        connection.finish_sending()?;
        connection.drain()?;
        drop((connection, server));
        Ok(1)
    })
}

type Forge = Box<dyn Fn(&Connection) -> io::Result<()> + Send + Sync>;

/// Makes traffic with an application that forges segments, compares, and measures the time of the programs.
fn forged_into(pair: &mut Pair, traffic: impl FnOnce(&Pair, Forge) -> Result<usize>) -> Result<String> {
    let (forgeries, failure) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(None)));
    let application = Arc::clone(&pair.server);
    let _timed = Timed::programs()?;
    let before = pair.observer.as_ref().map(cost).transpose()?;
    let counts = pair.begin()?;
    let lines = traffic(
        pair,
        Box::new({
            let (forgeries, failure) = (Arc::clone(&forgeries), Arc::clone(&failure));
            move |connection| {
                forgeries.fetch_add(1, Ordering::Relaxed);
                forge(&application, connection).map_err(|error| {
                    *failure.lock().expect("nobody panics with it") = Some(format!("{error:#}"));
                    io::Error::other("a forger failed")
                })
            }
        }),
    );
    let failed = failure.lock().expect("nobody panics with it").take();
    ensure!(failed.is_none(), "{failed:?}");
    let lines = lines?;
    let (mut truth, _) = pair.truth(&Expected::both(lines))?;
    without_durations(&mut truth);
    let summary = pair.agree(&counts, &truth)?;
    let Some(observer) = &pair.observer else { return Ok(summary) };
    let before = before.expect("as there is an observer");
    let forged = forgeries.load(Ordering::Relaxed) * u64::from(SEGMENTS);
    let spent = spent_since(observer, before, forged)?;
    let allowed = IN_ALL.as_secs_f64() * forged as f64 / f64::from(SEGMENTS);
    ensure!(spent < allowed, "{forged} forged segments took {spent:.3} s instead of {allowed:.3} s");
    Ok(format!("{:.2} µs each of {forged}, {summary}", spent * 1e6 / forged as f64))
}

/// Runs and seconds of all programs so far.
fn cost(observer: &Observer) -> Result<(f64, f64)> {
    let metrics = observer.own_families()?;
    Ok((metrics.sum(RUNS, &[]).unwrap_or(0.0), metrics.sum(SECONDS, &[]).unwrap_or(0.0)))
}

/// Returns the seconds of the programs, once the kernel has reported the runs.
fn spent_since(observer: &Observer, (runs, seconds): (f64, f64), forged: u64) -> Result<f64> {
    let metrics = observer
        .wait_own(SETTLE_TIMEOUT, |metrics| metrics.sum(RUNS, &[]).unwrap_or(0.0) - runs >= forged as f64)
        .context("not every forged segment was seen by a program, so the case proves nothing")?;
    Ok(metrics.sum(SECONDS, &[]).unwrap_or(0.0) - seconds)
}

/// Stray data at the sidecar's listener, where handshake data is kept: that of others is still kept.
pub(super) fn forged_at_a_listener(pair: &mut Pair) -> Result<String> {
    pair.check(Expected::both(8), |pair| {
        let listener: SocketAddr = ([127, 0, 0, 1], 15001).into();
        for number in 0..8u16 {
            for port in 0..500 {
                let from = ([127, 0, 0, 1], 20_000 + port).into();
                let forger = Forger::new(&pair.client, from, listener)?;
                forger.send(&Forged { seq: u32::from(number), ack: 1, flags: ACK }, &[b'x'; 1000])?;
            }
            let option = harness::apps::raw::DATA_WITH_THE_ACK;
            let mut connection = Connection::open_with(&pair.client, pair.web.address(Family::V4), &[option], None)?;
            connection.send("GET /bytes/10 HTTP/1.1\r\nhost: web\r\n\r\n")?;
            ensure!(connection.receive_response()?.status == 200);
            super::finish_cleanly(&mut connection)?;
        }
        Ok(())
    })
}
