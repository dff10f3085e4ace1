//! Connections whose first bytes arrive with the handshake: the kernel passes those bytes only to the listener's hooks.

use std::cell::Cell;

use anyhow::{Result, ensure};
use harness::{
    apps::{
        frames::{Block, PREFACE, Peer, flag, headers, settings},
        raw::{Connection, DATA_WITH_THE_ACK, Server, SocketOption},
        tcp,
    },
    net::finish,
    pair::{Expected, Pair},
};

use crate::{BOTH, counted_in, finish_cleanly};

/// For a client: delays the SYN until the first data.
const DATA_WITH_THE_SYN: SocketOption = (libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 1);

pub(super) fn http1_data_with_the_handshake(pair: &mut Pair) -> Result<String> {
    http1(pair, DATA_WITH_THE_ACK)
}

pub(super) fn fast_open(pair: &mut Pair) -> Result<String> {
    let before = counted_in(&pair.client, "TCPFastOpenPassive")?;
    let summary = http1(pair, DATA_WITH_THE_SYN)?;
    let taken = counted_in(&pair.client, "TCPFastOpenPassive")? - before;
    ensure!(taken == 22, "{taken} of 22 connections came with data in the SYN");
    Ok(summary)
}

/// One request, two in one segment, a request whose body follows, on declared and sniffed ports. Envoy counts again
/// what it had buffered of the second: at the source, the client's bytes are expected.
fn http1(pair: &mut Pair, option: SocketOption) -> Result<String> {
    const GET: &str = "GET /bytes/10 HTTP/1.1\r\nhost: web\r\n\r\n";
    let body = [b'u'; 3000];
    let (sent, source) = (Cell::new(0), pair.source());
    let traffic = |pair: &Pair| {
        for family in BOTH {
            for service in [&pair.web, &pair.sniffed] {
                let open = || Connection::open_with(&pair.client, service.address(family), &[option], None);
                for _ in 0..3 {
                    let mut connection = open()?;
                    connection.send(GET)?;
                    ensure!(connection.receive_response()?.status == 200);
                    end(&mut connection, &sent)?;
                }
            }
            let open = || Connection::open_with(&pair.client, pair.web.address(family), &[option], None);
            for _ in 0..3 {
                let mut connection = open()?;
                connection.send(format!("{GET}{GET}"))?;
                connection.receive_response()?;
                connection.receive_response()?;
                end(&mut connection, &sent)?;
            }
            for _ in 0..2 {
                let mut connection = open()?;
                connection.send("POST /upload HTTP/1.1\r\nhost: web\r\ncontent-length: 3000\r\nx-cut: he")?;
                connection.send("re\r\n\r\n")?;
                connection.send(body)?;
                ensure!(connection.receive_response()?.body == b"3000");
                connection.send(GET)?;
                ensure!(connection.receive_response()?.status == 200);
                end(&mut connection, &sent)?;
            }
        }
        Ok(())
    };
    pair.check_with(Expected::both(32), traffic, &|truth| {
        let requests = truth.of(&source, "200");
        requests.request_bytes = sent.get();
        // Requests that wait in a pipeline have begun for the client, not yet for Envoy.
        requests.duration_ms = None;
    })
}

fn end(connection: &mut Connection, sent: &Cell<u64>) -> Result<()> {
    sent.set(sent.get() + connection.sent);
    finish_cleanly(connection)
}

pub(super) fn http2_data_with_the_handshake(pair: &mut Pair) -> Result<String> {
    let server = Server::start(&pair.server, pair.http2.target_port, |connection| {
        let mut peer = Peer::server(connection.as_mut().expect("given by the server"), &[])?;
        loop {
            let stream = peer.request()?;
            peer.send(headers(stream, flag::END_STREAM, &Block::status(200)))?;
        }
    })?;
    let summary = pair.check(Expected::both(8), |pair| {
        for family in BOTH {
            for _ in 0..2 {
                let address = pair.http2.address(family);
                let mut connection = Connection::open_with(&pair.client, address, &[DATA_WITH_THE_ACK], None)?;
                let mut peer = Peer::new(&mut connection);
                let request = headers(1, flag::END_STREAM, &Block::request("GET", "/"));
                peer.send([PREFACE, &settings(&[]), &request].concat())?;
                peer.ended(1)?;
                peer.send(headers(3, flag::END_STREAM, &Block::request("GET", "/")))?;
                peer.ended(3)?;
            }
        }
        Ok(())
    });
    drop(server);
    summary
}

pub(super) fn tcp_data_with_the_handshake(pair: &mut Pair) -> Result<String> {
    let server = tcp::echo(&pair.server, pair.tcp.target_port)?;
    let summary = pair.check(Expected::both(6), |pair| {
        for family in BOTH {
            for length in [1, 1000, 50_000] {
                let address = pair.tcp.address(family);
                let mut connection = Connection::open_with(&pair.client, address, &[DATA_WITH_THE_ACK], None)?;
                connection.send(vec![0x80; length])?;
                connection.receive(length)?;
                finish_cleanly(&mut connection)?;
            }
        }
        Ok(())
    });
    drop(server);
    summary
}

/// The packet that ends the handshake is lost, so that the first data completes it.
pub(super) fn handshake_with_a_lost_last_ack(pair: &mut Pair) -> Result<String> {
    let lose = |pair: &Pair, action: &str| -> Result<()> {
        for command in ["iptables-legacy", "ip6tables-legacy"] {
            let rule = format!(
                "{action} INPUT -i lo -p tcp --dport 15001 --tcp-flags ALL ACK -m length --length 40:80 -j DROP"
            );
            finish(pair.client.command(command)?.args(rule.split(' ')), "")?;
        }
        Ok(())
    };
    pair.check(Expected::both(10), |pair| {
        for family in BOTH {
            for _ in 0..5 {
                lose(pair, "-A")?;
                let opened = Connection::open(&pair.client, pair.web.address(family)).and_then(|mut connection| {
                    connection.send("GET /bytes/10 HTTP/1.1\r\nhost: web\r\n\r\n")?;
                    Ok(connection)
                });
                lose(pair, "-D")?;
                let mut connection = opened?;
                ensure!(connection.receive_response()?.status == 200);
                finish_cleanly(&mut connection)?;
            }
        }
        Ok(())
    })
}
