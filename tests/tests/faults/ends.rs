//! Connections that end in unusual ways.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Barrier},
    thread::sleep,
    time::Duration,
};

use anyhow::{Result, ensure};
use harness::{
    apps::raw::{Connection, Server},
    net::finish,
    pair::{Expected, Pair, SETTLE_TIMEOUT, without_durations},
    wait::wait_until,
};

use crate::BOTH;

pub(super) fn both_end_at_once(pair: &mut Pair) -> Result<String> {
    let met = Arc::new(Barrier::new(2));
    let server = Server::start(&pair.server, pair.tcp.target_port, {
        let met = Arc::clone(&met);
        move |slot| {
            let connection = slot.as_mut().expect("given by the server");
            connection.receive(5)?;
            connection.send("yes")?;
            met.wait();
            connection.finish_sending()?;
            connection.drain().map(drop)
        }
    })?;
    let summary = pair.check(Expected::both(20), |pair| {
        for family in BOTH {
            for _ in 0..10 {
                let mut connection = Connection::open(&pair.client, pair.tcp.address(family))?;
                connection.send("hello")?;
                connection.receive(3)?;
                met.wait();
                connection.finish_sending()?;
                connection.drain()?;
            }
        }
        Ok(())
    });
    drop(server);
    summary
}

/// The client vanishes without a packet that arrives; later packets to it are answered with a reset.
pub(super) fn client_vanishes(pair: &mut Pair) -> Result<String> {
    let met = Arc::new(Barrier::new(2));
    let server = Server::start(&pair.server, pair.tcp.target_port, {
        let met = Arc::clone(&met);
        move |slot| {
            let connection = slot.as_mut().expect("given by the server");
            connection.receive(5)?;
            connection.send("yes")?;
            met.wait();
            connection.send("is anybody there?")?;
            connection.drain().map(drop)
        }
    })?;
    let summary = pair.check(Expected::both(2), |pair| {
        for (family, command) in BOTH.into_iter().zip(["iptables-legacy", "ip6tables-legacy"]) {
            let mut connection = Connection::open(&pair.client, pair.tcp.address(family))?;
            connection.send("hello")?;
            connection.receive(3)?;
            let port = connection.local()?.port();
            let silence = |action: &str| -> Result<()> {
                let rule = format!("{action} INPUT -i lo -p tcp --sport {port} -j DROP");
                finish(pair.client.command(command)?.args(rule.split(' ')), "").map(drop)
            };
            silence("-A")?;
            connection.reset();
            silence("-D")?;
            met.wait();
        }
        Ok(())
    });
    drop(server);
    summary
}

/// The sidecar's socket is in TIME_WAIT when the client comes again from the same port.
pub(super) fn port_used_again(pair: &mut Pair) -> Result<String> {
    const PORT: u16 = 31_999;
    let server = Server::start(&pair.server, pair.tcp.target_port, |connection| {
        let connection = connection.as_mut().expect("given by the server");
        connection.receive(5)?;
        connection.send("goodbye")
    })?;
    let summary = pair.check(Expected::both(10), |pair| {
        for family in BOTH {
            for _ in 0..5 {
                let mut connection = again(pair, pair.tcp.address(family), PORT)?;
                connection.send("hello")?;
                ensure!(connection.drain()? == 7);
            }
        }
        Ok(())
    });
    drop(server);
    summary
}

/// Connects from `port` as soon as the connection before has released it.
fn again(pair: &Pair, to: SocketAddr, port: u16) -> Result<Connection> {
    let option = (libc::SOL_SOCKET, libc::SO_REUSEADDR, 1);
    wait_until("the port is free", SETTLE_TIMEOUT, || Connection::open_with(&pair.client, to, &[option], Some(port)))
}

pub(super) fn client_resets_inside_the_body(pair: &mut Pair) -> Result<String> {
    let server = Server::start(&pair.server, pair.raw.target_port, |slot| {
        let connection = slot.as_mut().expect("given by the server");
        half_an_answer(connection)?;
        connection.drain().map(drop)
    })?;
    let summary = pair.check(Expected::both(2), |pair| {
        for family in BOTH {
            let mut connection = Connection::open(&pair.client, pair.raw.address(family))?;
            connection.send("GET / HTTP/1.1\r\nhost: raw\r\n\r\n")?;
            connection.receive_until(b"the half of it")?;
            connection.reset();
        }
        Ok(())
    });
    drop(server);
    summary
}

/// Times are not compared: the proxy ends the client's connection a second after it has logged the request.
pub(super) fn application_resets_inside_the_body(pair: &mut Pair) -> Result<String> {
    let met = Arc::new(Barrier::new(2));
    let server = Server::start(&pair.server, pair.raw.target_port, {
        let met = Arc::clone(&met);
        move |slot| {
            half_an_answer(slot.as_mut().expect("given by the server"))?;
            met.wait();
            slot.take().expect("still there").reset();
            Ok(())
        }
    })?;
    let traffic = |pair: &Pair| {
        for family in BOTH {
            let mut connection = Connection::open(&pair.client, pair.raw.address(family))?;
            connection.send("GET / HTTP/1.1\r\nhost: raw\r\n\r\n")?;
            connection.receive_until(b"the half of it")?;
            met.wait();
            ensure!(connection.drain()? == 0);
        }
        Ok(())
    };
    let summary = pair.check_with(Expected::both(2), traffic, &without_durations);
    drop(server);
    summary
}

/// The client has gone and the sidecar has closed its connection to the application, whose answer still arrives: nobody
/// reads it. The FIN's acknowledgement must be lost, or there would be no socket any more for the answer.
pub(super) fn answer_to_a_closed_socket(pair: &mut Pair) -> Result<String> {
    let met = Arc::new(Barrier::new(2));
    let server = Server::start(&pair.server, pair.raw.target_port, {
        let met = Arc::clone(&met);
        move |slot| {
            let connection = slot.as_mut().expect("given by the server");
            connection.receive_head()?;
            met.wait();
            met.wait();
            connection.send("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")?;
            connection.drain().map(drop)
        }
    })?;
    let port = pair.raw.target_port;
    let deafen = |pair: &Pair, command: &str, action: &str| -> Result<()> {
        let rule =
            format!("{action} INPUT -i lo -p tcp --sport {port} --tcp-flags ALL ACK -m length --length 40:80 -j DROP");
        finish(pair.server.command(command)?.args(rule.split(' ')), "").map(drop)
    };
    let summary = pair.check(Expected::both(2), |pair| {
        for (family, command) in BOTH.into_iter().zip(["iptables-legacy", "ip6tables-legacy"]) {
            let mut connection = Connection::open(&pair.client, pair.raw.address(family))?;
            connection.send("GET / HTTP/1.1\r\nhost: raw\r\n\r\n")?;
            met.wait();
            deafen(pair, command, "-A")?;
            connection.reset();
            sleep(Duration::from_millis(300));
            met.wait();
            sleep(Duration::from_millis(100));
            deafen(pair, command, "-D")?;
        }
        Ok(())
    });
    drop(server);
    summary
}

fn half_an_answer(connection: &mut Connection) -> io::Result<()> {
    connection.receive_head()?;
    connection.send("HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nthe half of it")
}
