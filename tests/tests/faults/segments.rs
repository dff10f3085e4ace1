//! Segments of unusual sizes and contents, and data that is sent in unusual ways.

use std::{
    fs::{self, File},
    io::{Read, Write, pipe},
};

use anyhow::{Context, Result, ensure};
use harness::{
    apps::{raw::Connection, tcp},
    link::{self, Seen},
    pair::{Expected, Pair, however_late},
};

use crate::{BOTH, counted_in, finish_cleanly, wait_for};

const MEBIBYTE: u64 = 1 << 20;

/// Segments of about 64 bytes, none of them joined in transit.
pub(super) fn tiny_segments(pair: &mut Pair) -> Result<String> {
    const LARGEST: i32 = 88;
    let before = counted_in(&pair.client, "OutSegs")?;
    links(pair, "gso_max_segs 1")?;
    // Answers fill the window many times, and leave at the peer's pace.
    let traffic = |pair: &Pair| {
        for family in BOTH {
            let option = (libc::IPPROTO_TCP, libc::TCP_MAXSEG, LARGEST);
            let mut connection = Connection::open_with(&pair.client, pair.web.address(family), &[option], None)?;
            for length in [0, 1000] {
                let filler = "f".repeat(length);
                connection.send(format!("GET /bytes/20000 HTTP/1.1\r\nhost: web\r\nx-filler: {filler}\r\n\r\n"))?;
                ensure!(connection.receive_response()?.body.len() == 20_000);
                let request = format!("POST /upload HTTP/1.1\r\nhost: web\r\ncontent-length: {length}\r\n\r\n{filler}");
                connection.send(request)?;
                ensure!(connection.receive_response()?.status == 200);
            }
            finish_cleanly(&mut connection)?;
        }
        Ok(())
    };
    let summary = pair.check_with(Expected::both(8), traffic, &however_late);
    links(pair, "gso_max_segs 65535")?;
    let segments = counted_in(&pair.client, "OutSegs")? - before;
    ensure!(segments > 1000, "{segments} segments, the case proves nothing");
    Ok(format!("{segments} segments at the client, {}", summary?))
}

/// BIG TCP: packets of more than 64 KiB, over IPv6 with a jumbo header, over IPv4, since Linux 6.3, without a length.
pub(super) fn large_segments(pair: &mut Pair) -> Result<String> {
    let length = 8 * MEBIBYTE;
    let server = tcp::source(&pair.server, pair.tcp.target_port, length)?;
    links(pair, "gso_max_size 262144")?;
    let over_ipv4 =
        [&pair.client, &pair.server].map(|workload| workload.net.enter(|| link::set_ipv4_gso("lo", 262_144)));
    for set in over_ipv4 {
        set?.context("IFLA_GSO_IPV4_MAX_SIZE")?;
    }
    let large = Seen::new(&pair.client, "! --length 0:65535")?;
    let summary = pair.check(Expected::both(6), |pair| {
        for family in BOTH {
            pair.curl(&[&pair.url(family, &format!("/bytes/{length}"))])?;
            let mut upload = Connection::open(&pair.client, pair.web.address(family))?;
            upload.send(format!("POST /upload HTTP/1.1\r\nhost: web\r\ncontent-length: {length}\r\n\r\n"))?;
            upload.send_zeros(length)?;
            ensure!(upload.receive_response()?.body == length.to_string().as_bytes());
            let mut connection = Connection::open(&pair.client, pair.tcp.address(family))?;
            connection.send("x")?;
            ensure!(connection.drain()? == length);
        }
        Ok(())
    });
    let large = large.packets()?;
    // Which sets both.
    links(pair, "gso_max_size 65536")?;
    drop(server);
    let known = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let version: Vec<u32> = known.split(['.', '-']).map_while(|number| number.parse().ok()).take(2).collect();
    ensure!(large > 0 || version < vec![6, 3], "no packet was above 64 KiB: the case proves nothing");
    Ok(format!("{large} large packets over IPv4, {}", summary?))
}

/// MSG_ZEROCOPY.
pub(super) fn without_copies(pair: &mut Pair) -> Result<String> {
    let body = vec![b'z'; 1 << 20];
    uploads(pair, body.len() as u64, |connection| Ok(connection.send_without_copy(&body)?))
}

pub(super) fn sent_from_a_file(pair: &mut Pair) -> Result<String> {
    let path = pair.mesh.directory().join("sent");
    File::create(&path)?.set_len(MEBIBYTE)?;
    uploads(pair, MEBIBYTE, |connection| Ok(connection.send_file(&File::open(&path)?)?))
}

/// By splice(2), at the client and at the server.
pub(super) fn spliced(pair: &mut Pair) -> Result<String> {
    static PIECE: [u8; 1 << 16] = [b's'; 1 << 16];
    const PIECES: usize = 16;
    let server = tcp::spliced_echo(&pair.server, pair.tcp.target_port)?;
    let length = PIECES * PIECE.len();
    let summary = pair.check(Expected::both(4), |pair| {
        for family in BOTH {
            let (mut reader, mut writer) = pipe()?;
            let mut upload = Connection::open(&pair.client, pair.web.address(family))?;
            upload.send(format!("POST /upload HTTP/1.1\r\nhost: web\r\ncontent-length: {length}\r\n\r\n"))?;
            let mut connection = Connection::open(&pair.client, pair.tcp.address(family))?;
            for _ in 0..PIECES {
                for to in [&mut upload, &mut connection] {
                    writer.write_all(&PIECE)?;
                    to.splice_from(&reader, PIECE.len())?;
                }
                let mut left = PIECE.len();
                while left > 0 {
                    let moved = connection.splice_into(&writer)?;
                    ensure!((1..=left).contains(&moved), "{moved} of {left} bytes");
                    reader.read_exact(&mut vec![0; moved])?;
                    left -= moved;
                }
            }
            ensure!(upload.receive_response()?.body == length.to_string().as_bytes());
            finish_cleanly(&mut connection)?;
        }
        Ok(())
    });
    drop(server);
    summary
}

/// Sends `length` bytes over HTTP and over TCP.
fn uploads(pair: &mut Pair, length: u64, send: impl Fn(&mut Connection) -> Result<()>) -> Result<String> {
    let server = tcp::sink(&pair.server, pair.tcp.target_port)?;
    let summary = pair.check(Expected::both(6), |pair| {
        for family in BOTH {
            let mut connection = Connection::open(&pair.client, pair.web.address(family))?;
            for _ in 0..2 {
                connection.send(format!("POST /upload HTTP/1.1\r\nhost: web\r\ncontent-length: {length}\r\n\r\n"))?;
                send(&mut connection)?;
                ensure!(connection.receive_response()?.body == length.to_string().as_bytes());
            }
            let mut connection = Connection::open(&pair.client, pair.tcp.address(family))?;
            send(&mut connection)?;
            finish_cleanly(&mut connection)?;
        }
        Ok(())
    });
    drop(server);
    summary
}

/// Envoy does not read the urgent byte, which is in the stream: one byte more than in its log.
pub(super) fn urgent_data(pair: &mut Pair) -> Result<String> {
    let server = tcp::echo(&pair.server, pair.tcp.target_port)?;
    let source = pair.source();
    let summary = pair.check_with(
        Expected::both(2),
        |pair| {
            for family in BOTH {
                let mut connection = Connection::open(&pair.client, pair.tcp.address(family))?;
                connection.send("before")?;
                connection.receive(6)?;
                connection.send_urgent(b'!')?;
                connection.send("behind")?;
                connection.receive(6)?;
                finish_cleanly(&mut connection)?;
            }
            Ok(())
        },
        &|truth| {
            if let Some(connections) = truth.connections.get_mut(&source) {
                connections.received += 2;
            }
        },
    );
    drop(server);
    summary
}

/// The client does not read until its window is closed and the sidecar probes it.
pub(super) fn window_of_zero(pair: &mut Pair) -> Result<String> {
    let length = 4 * MEBIBYTE;
    let server = tcp::source(&pair.server, pair.tcp.target_port, length)?;
    let summary = pair.check(Expected::both(2), |pair| {
        for family in BOTH {
            let before = counted_in(&pair.client, "TCPToZeroWindowAdv")?;
            let option = (libc::SOL_SOCKET, libc::SO_RCVBUF, 8192);
            let mut connection = Connection::open_with(&pair.client, pair.tcp.address(family), &[option], None)?;
            connection.send("x")?;
            wait_for("the window", || Ok(counted_in(&pair.client, "TCPToZeroWindowAdv")? > before))?;
            let before = counted_in(&pair.client, "TCPWinProbe")?;
            wait_for("the number of probes", || Ok(counted_in(&pair.client, "TCPWinProbe")? > before))?;
            ensure!(connection.drain()? == length);
        }
        Ok(())
    });
    drop(server);
    summary
}

fn links(pair: &Pair, settings: &str) -> Result<()> {
    for workload in [&pair.client, &pair.server] {
        workload.net.batch(&format!("link set lo {settings}"))?;
    }
    Ok(())
}
