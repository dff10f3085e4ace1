//! Networks that lose, reorder, duplicate or delay packets, as the kernel's own counters confirm.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use harness::{
    apps::{program::Program, raw::Connection, tcp},
    packet_faults::{FaultyLoopback, PacketFaults},
    pair::{Expected, Pair, however_late},
    tools,
};

use crate::{BOTH, counted, finish_cleanly};

const SEED: u64 = 20_261_125;
const LOSES: (PacketFaults, &str) =
    (PacketFaults { lost: 15, swapped: 0, late: 0, delay: Duration::ZERO }, "RetransSegs");
const SWAPS: (PacketFaults, &str) =
    (PacketFaults { lost: 0, swapped: 150, late: 0, delay: Duration::ZERO }, "TCPOFOQueue");
const REPEATS: (PacketFaults, &str) =
    (PacketFaults { lost: 0, swapped: 0, late: 40, delay: Duration::ZERO }, "TCPDSACKOldSent");
const DELAYS: (PacketFaults, &str) =
    (PacketFaults { lost: 0, swapped: 0, late: 0, delay: Duration::from_millis(4) }, "InSegs");

pub(super) fn http1_with_lost_packets(pair: &mut Pair) -> Result<String> {
    http1(pair, LOSES)
}

pub(super) fn http1_with_reordered_packets(pair: &mut Pair) -> Result<String> {
    http1(pair, SWAPS)
}

pub(super) fn http1_with_duplicated_packets(pair: &mut Pair) -> Result<String> {
    http1(pair, REPEATS)
}

pub(super) fn http1_with_delayed_packets(pair: &mut Pair) -> Result<String> {
    http1(pair, DELAYS)
}

pub(super) fn http2_with_lost_packets(pair: &mut Pair) -> Result<String> {
    http2(pair, LOSES)
}

pub(super) fn http2_with_reordered_packets(pair: &mut Pair) -> Result<String> {
    http2(pair, SWAPS)
}

pub(super) fn http2_with_duplicated_packets(pair: &mut Pair) -> Result<String> {
    http2(pair, REPEATS)
}

pub(super) fn http2_with_delayed_packets(pair: &mut Pair) -> Result<String> {
    http2(pair, DELAYS)
}

pub(super) fn tcp_with_lost_packets(pair: &mut Pair) -> Result<String> {
    tcp(pair, LOSES)
}

pub(super) fn tcp_with_reordered_packets(pair: &mut Pair) -> Result<String> {
    tcp(pair, SWAPS)
}

pub(super) fn tcp_with_duplicated_packets(pair: &mut Pair) -> Result<String> {
    tcp(pair, REPEATS)
}

pub(super) fn tcp_with_delayed_packets(pair: &mut Pair) -> Result<String> {
    tcp(pair, DELAYS)
}

/// Answers of one connection, requests with bodies of another, and connections of a request each.
fn http1(pair: &mut Pair, faults: (PacketFaults, &str)) -> Result<String> {
    over(pair, faults, Expected::both(50), |pair| {
        for family in BOTH {
            pair.curl(&["-m", "60", &pair.url(family, "/bytes/[30000-30009]")])?;
            let body = vec![b'r'; 60_000];
            let mut connection = Connection::open(&pair.client, pair.web.address(family))?;
            for _ in 0..5 {
                connection
                    .send(format!("POST /echo HTTP/1.1\r\nhost: web\r\ncontent-length: {}\r\n\r\n", body.len()))?;
                // In separate segments, so that there are some to lose.
                for piece in body.chunks(6_000) {
                    connection.send(piece)?;
                }
                ensure!(connection.receive_response()?.body == body);
            }
            for _ in 0..10 {
                let mut connection = Connection::open(&pair.client, pair.web.address(family))?;
                connection.send("GET /bytes/10 HTTP/1.1\r\nhost: web\r\n\r\n")?;
                connection.receive_response()?;
                finish_cleanly(&mut connection)?;
            }
        }
        Ok(())
    })
}

/// Calls beside each other, uploads, and connections of a call each.
fn http2(pair: &mut Pair, faults: (PacketFaults, &str)) -> Result<String> {
    let pages = pair.mesh.directory().join("pages");
    fs::create_dir_all(&pages)?;
    let (page, upload) = (pages.join("page"), pair.mesh.directory().join("upload"));
    fs::File::create(page)?.set_len(5000)?;
    fs::File::create(&upload)?.set_len(200_000)?;
    let mut command = pair.server.command(&tools::require("nghttpd")?.to_string_lossy())?;
    command.arg("--no-tls").arg("-d").arg(&pages).arg(pair.http2.target_port.to_string());
    let server = Program::serve(&pair.server, pair.http2.target_port, &mut command)?;
    let summary = over(pair, faults, Expected::both(112), |pair| {
        for family in BOTH {
            let url = pair.http2.url(family, "/page");
            let mut load = pair.client.command("h2load")?;
            let said = harness::net::finish(load.args(["-n", "50", "-c", "2", "-m", "5", &url]), "")?;
            ensure!(said.contains("50 succeeded"), "{said}");
            let upload = upload.to_string_lossy();
            let codes = pair.curl(&["-m", "60", "--http2-prior-knowledge", "-T", &upload, &url])?;
            ensure!(codes == "200", "{codes}");
            for _ in 0..5 {
                ensure!(pair.curl(&["-m", "60", "--http2-prior-knowledge", &url])? == "200");
            }
        }
        Ok(())
    });
    drop(server);
    summary
}

fn tcp(pair: &mut Pair, faults: (PacketFaults, &str)) -> Result<String> {
    let server = tcp::echo(&pair.server, pair.tcp.target_port)?;
    let summary = over(pair, faults, Expected::both(22), |pair| {
        for family in BOTH {
            for round in 0..11 {
                let mut connection = Connection::open(&pair.client, pair.tcp.address(family))?;
                for _ in 0..(if round == 0 { 30 } else { 1 }) {
                    for _ in 0..4 {
                        connection.send([9; 5_000])?;
                    }
                    connection.receive(20_000)?;
                }
                finish_cleanly(&mut connection)?;
            }
        }
        Ok(())
    });
    drop(server);
    summary
}

/// Compares over faulty networks, without durations: a retransmitted byte is sent for Envoy, and not yet for the peer.
fn over(
    pair: &mut Pair,
    (faults, proof): (PacketFaults, &str),
    expected: Expected,
    traffic: impl FnOnce(&Pair) -> Result<()>,
) -> Result<String> {
    let before = counted(pair, proof)?;
    let summary = pair.check_with(
        expected,
        |pair| {
            let wires = [
                FaultyLoopback::start(&pair.client, faults, SEED)?,
                FaultyLoopback::start(&pair.server, faults, SEED.wrapping_add(1))?,
            ];
            let outcome = traffic(pair);
            drop(wires);
            outcome
        },
        &however_late,
    )?;
    let proven = counted(pair, proof)? - before;
    ensure!(proven > 0, "{proof} did not move: the case proves nothing");
    Ok(format!("{proof} {proven}, {summary}"))
}
