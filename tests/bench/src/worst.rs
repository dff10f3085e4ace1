//! Worst-case time of the eBPF programs: for one packet, and for the end of many connections at once.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use harness::{
    apps::raw::{Connection, Server},
    forge::{CLAIMS, Forger},
    mesh::Family,
    pair::Pair,
};

use crate::{
    bpf::{self, Runs, Statistics},
    protocol::Protocol,
    report::{Row, Target},
    spread::Spread,
    streams,
    testbed::{SIDES, Side, Testbed},
};

const SEGMENTS: u32 = 10_000;
/// Target for a forged segment, in microseconds.
const FORGED: f64 = 20.0;
/// Target for the end of a thousand connections with a hundred open calls each, in milliseconds.
const CLOSED: f64 = 5.0;
/// Chunks of one byte, as many as a packet on loopback holds.
const CHUNKS: usize = 10_000;
const PACKETS: u32 = 20;
const OURS: &str = "mesh_";

/// Measures both.
pub(crate) fn times() -> Result<Vec<Row>> {
    let mut rows = packets()?;
    for side in SIDES {
        rows.push(close(side)?);
    }
    Ok(rows)
}

/// Measures segments that an application's pod forges, and the packet that needs the most steps.
fn packets() -> Result<Vec<Row>> {
    let pair = Pair::new()?;
    let cgroup = bpf::open(pair.sidecars[1].cgroup())?;
    let _statistics = Statistics::enable()?;
    let application = Arc::clone(&pair.server);
    let measured = Arc::new(std::sync::Mutex::new(Vec::new()));
    let server = Server::start(&pair.server, pair.raw.target_port, {
        let measured = Arc::clone(&measured);
        move |slot| {
            let connection = slot.as_mut().expect("given by the server");
            connection.receive_head()?;
            let result =
                forge(&application, &cgroup, connection).map_err(|error| io::Error::other(format!("{error:#}")))?;
            measured.lock().expect("nobody panics with it").extend(result);
            connection.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
            let chunks = b"1\r\nx\r\n".repeat(CHUNKS);
            let before = spent(&cgroup).map_err(|error| io::Error::other(format!("{error:#}")))?;
            for _ in 0..PACKETS {
                connection.send(&chunks)?;
                sleep(Duration::from_millis(50));
            }
            let time = spent(&cgroup).map_err(|error| io::Error::other(format!("{error:#}")))? - before;
            measured.lock().expect("nobody panics with it").push((CHUNKED, time / 1e3 / f64::from(PACKETS)));
            connection.send("0\r\n\r\n")
        }
    })?;
    let mut connection = Connection::open(&pair.client, pair.raw.address(Family::V4))?;
    connection.send("GET / HTTP/1.1\r\nhost: raw\r\n\r\n")?;
    ensure!(connection.receive_response()?.body.len() == CHUNKS * PACKETS as usize);
    drop((connection, server));
    let measured = std::mem::take(&mut *measured.lock().expect("nobody panics with it"));
    ensure!(measured.len() == CLAIMS.len() + 1, "only {} measurements", measured.len());
    let (forged, chunked): (Vec<_>, Vec<_>) = measured.into_iter().partition(|(name, _)| *name != CHUNKED);
    let worst = forged.iter().map(|(_, time)| *time).fold(0.0, f64::max);
    let mut row =
        Row::new("time of a forged packet, the dearest kind", Target::AtMost(FORGED), "µs", Spread::of([worst]))
            .note(format!("mean of {SEGMENTS} of each kind, with what the kernel answers to them"));
    row.details = forged.iter().map(|(name, time)| ((*name).to_owned(), *time)).collect::<BTreeMap<_, _>>();
    let title = format!("time of {CHUNKS} chunks of one byte in a packet");
    Ok(vec![row, Row::new(title, Target::Stated, "µs", Spread::of([chunked[0].1]))])
}

const CHUNKED: &str = "chunks";

/// Measures the microseconds of each kind of claim.
fn forge(pod: &harness::mesh::Workload, cgroup: &File, connection: &Connection) -> Result<Vec<(&'static str, f64)>> {
    let forger = Forger::of(pod, connection)?;
    CLAIMS
        .iter()
        .map(|&(name, claim)| {
            let before = spent(cgroup)?;
            (0..SEGMENTS).try_for_each(|number| forger.claim(claim, number))?;
            Ok((name, (spent(cgroup)? - before) / 1e3 / f64::from(SEGMENTS)))
        })
        .collect()
}

/// Returns the nanoseconds of all programs on a cgroup so far.
fn spent(cgroup: &File) -> Result<f64> {
    let runs: BTreeMap<String, Runs> = bpf::runs_of(cgroup, OURS)?;
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    Ok(runs.values().map(|runs| runs.nanoseconds as f64).sum())
}

/// Returns the client of a thousand connections is killed while each has a hundred calls open.
fn close(side: Side) -> Result<Row> {
    let mut testbed = Testbed::new(Protocol::Grpc)?;
    testbed.observe(side.observed)?;
    let cgroup = bpf::open(testbed.sidecar(side).cgroup())?;
    let _statistics = Statistics::enable()?;
    let mut client = streams::asking(&testbed)?.spawn().context("h2load")?;
    let open = streams::most_open(&testbed, side)?;
    let before = spent(&cgroup)?;
    client.kill().and_then(|()| client.wait()).context("h2load")?;
    let time = settled(&cgroup)? - before;
    let title = format!("programs' time while 1,000 connections × 100 calls are closed, {}'s sidecar", side.name);
    Ok(Row::new(title, Target::AtMost(CLOSED), "ms", Spread::of([time / 1e6])).note(format!("{open} calls were open")))
}

/// Waits until the programs are idle; returns their nanoseconds.
fn settled(cgroup: &File) -> Result<f64> {
    let end = Instant::now() + Duration::from_secs(30);
    let mut last = spent(cgroup)?;
    loop {
        sleep(Duration::from_secs(1));
        let now = spent(cgroup)?;
        // The rest are the proxy's own few packets per second.
        if now - last < 1e5 || Instant::now() > end {
            return Ok(now);
        }
        last = now;
    }
}
