//! TCP on sidecars, case by case: the observer against Envoy's access log and the peers' own counts.

use std::{
    io::Write,
    net::SocketAddr,
    process::{ExitCode, Stdio},
    sync::atomic::Ordering,
    thread::sleep,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{
    apps::{
        raw::{Connection, Server},
        tcp,
    },
    cases,
    counts::{Connections, Counts},
    mesh::{Family, Service},
    net::{finish, run},
    pair::{Expected, Pair, SETTLE_TIMEOUT},
    wait::wait_until,
};

const BOTH: [Family; 2] = [Family::V4, Family::V6];
const MEBIBYTE: u64 = 1 << 20;

fn main() -> ExitCode {
    cases::run(
        Pair::new,
        cases![
            echo,
            echo_on_a_sniffed_port,
            server_speaks_first,
            server_speaks_first_on_a_sniffed_port,
            netcat,
            tls_of_the_application,
            bulk_down,
            bulk_up,
            half_close,
            client_resets,
            server_resets,
            server_closes_first,
            nothing_is_said,
            nothing_listens,
            failed_connects_are_not_opened,
            counted_while_open,
            http_on_a_configured_tcp_port,
            retransmissions,
            keep_alive_probes,
            one_byte_at_a_time,
            a_thousand_short_connections,
            many_at_once,
            outside_client,
        ],
    )
}

fn echo(pair: &mut Pair) -> Result<String> {
    let service = pair.tcp.clone();
    echoes(pair, &service)
}

fn echo_on_a_sniffed_port(pair: &mut Pair) -> Result<String> {
    let service = pair.raw.clone();
    echoes(pair, &service)
}

/// The peers' own counts are compared with the access log too.
fn echoes(pair: &mut Pair, service: &Service) -> Result<String> {
    let server = tcp::echo(&pair.server, service.target_port)?;
    let summary = pair.check(Expected::both(6), |pair| {
        let mut sent = 0;
        for family in BOTH {
            for length in [1, 100, 70_000] {
                let mut connection = Connection::open(&pair.client, service.address(family))?;
                let message = vec![0x80; length];
                connection.send(&message)?;
                ensure!(connection.receive(length)? == message);
                finish_cleanly(&mut connection)?;
                sent += connection.sent;
            }
        }
        wait_for("the server's count", || server.totals().received.load(Ordering::Relaxed) == sent)
    });
    drop(server);
    summary
}

fn server_speaks_first(pair: &mut Pair) -> Result<String> {
    let service = pair.tcp.clone();
    speaks_first(pair, &service)
}

/// Envoy waits for the client until its timeout, then treats it as TCP.
fn server_speaks_first_on_a_sniffed_port(pair: &mut Pair) -> Result<String> {
    let service = pair.raw.clone();
    speaks_first(pair, &service)
}

fn speaks_first(pair: &mut Pair, service: &Service) -> Result<String> {
    const BANNER: &[u8] = b"220 mail.example ESMTP\r\n";
    let server = tcp::banner(&pair.server, service.target_port, BANNER)?;
    let summary = pair.check(Expected::both(2), |pair| {
        for family in BOTH {
            let mut connection = Connection::open(&pair.client, service.address(family))?;
            ensure!(connection.receive(BANNER.len())? == BANNER);
            // Even bytes that look like HTTP are TCP after that.
            connection.send("GET / HTTP/1.1\r\n\r\n")?;
            connection.receive(18)?;
            finish_cleanly(&mut connection)?;
        }
        Ok(())
    });
    drop(server);
    summary
}

fn netcat(pair: &mut Pair) -> Result<String> {
    let server = tcp::echo(&pair.server, pair.tcp.target_port)?;
    let summary = pair.check(Expected::both(2), |pair| {
        for family in BOTH {
            let address = pair.tcp.address(family);
            let mut command = pair.client.command("nc")?;
            command.args(["-N", "-w", "5", &address.ip().to_string(), &address.port().to_string()]);
            ensure!(finish(&mut command, "hello from netcat\n")? == "hello from netcat\n");
        }
        Ok(())
    });
    drop(server);
    summary
}

/// The application's own TLS is the payload.
fn tls_of_the_application(pair: &mut Pair) -> Result<String> {
    let directory = pair.mesh.directory().to_owned();
    let identity = pair.mesh.authority().server("application.example")?;
    let [certificate, key] = ["application.pem", "application-key.pem"].map(|name| directory.join(name));
    std::fs::write(&certificate, identity.certificate)?;
    std::fs::write(&key, identity.key)?;
    let mut command = pair.server.command("openssl")?;
    command.args(["s_server", "-quiet", "-rev", "-accept", &pair.raw.target_port.to_string()]);
    command.arg("-cert").arg(&certificate).arg("-key").arg(&key).stdin(Stdio::null()).stderr(Stdio::null());
    let mut server = command.spawn().context("openssl s_server")?;
    sleep(Duration::from_millis(300));
    let summary = pair.check(Expected::both(2), |pair| {
        for family in BOTH {
            let mut command = pair.client.command("openssl")?;
            command.args(["s_client", "-quiet", "-connect", &pair.raw.address(family).to_string()]);
            let mut client = command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .context("s_client")?;
            let mut input = client.stdin.take().context("piped")?;
            input.write_all(b"forwards\n")?;
            sleep(Duration::from_millis(400));
            drop(input);
            client.kill()?;
            let said = client.wait_with_output()?;
            ensure!(said.stdout.starts_with(b"sdrawrof"), "{}", String::from_utf8_lossy(&said.stdout));
        }
        Ok(())
    });
    server.kill()?;
    server.wait()?;
    summary
}

fn bulk_down(pair: &mut Pair) -> Result<String> {
    let length = 64 * MEBIBYTE;
    let server = tcp::source(&pair.server, pair.tcp.target_port, length)?;
    let summary = pair.check(Expected::both(2), |pair| {
        for family in BOTH {
            let mut connection = Connection::open(&pair.client, pair.tcp.address(family))?;
            connection.send("x")?;
            ensure!(connection.drain()? == length);
        }
        Ok(())
    });
    drop(server);
    summary
}

fn bulk_up(pair: &mut Pair) -> Result<String> {
    let length = 64 * MEBIBYTE;
    let server = tcp::sink(&pair.server, pair.tcp.target_port)?;
    let summary = pair.check(Expected::both(2), |pair| {
        for family in BOTH {
            let mut connection = Connection::open(&pair.client, pair.tcp.address(family))?;
            connection.send_zeros(length)?;
            finish_cleanly(&mut connection)?;
        }
        wait_for("the server's count", || server.totals().received.load(Ordering::Relaxed) == 2 * length)
    });
    drop(server);
    summary
}

fn half_close(pair: &mut Pair) -> Result<String> {
    let server = Server::start(&pair.server, pair.tcp.target_port, |connection| {
        let connection = connection.as_mut().expect("given by the server");
        let heard = connection.drain()?;
        connection.send(format!("heard {heard} bytes"))
    })?;
    let summary = pair.check(Expected::both(2), |pair| {
        for family in BOTH {
            let mut connection = Connection::open(&pair.client, pair.tcp.address(family))?;
            connection.send([1; 5000])?;
            connection.finish_sending()?;
            ensure!(connection.receive(16)? == b"heard 5000 bytes");
            connection.drain()?;
        }
        Ok(())
    });
    drop(server);
    summary
}

fn client_resets(pair: &mut Pair) -> Result<String> {
    let server = tcp::echo(&pair.server, pair.tcp.target_port)?;
    let summary = pair.check(Expected::both(2), |pair| {
        for family in BOTH {
            let mut connection = Connection::open(&pair.client, pair.tcp.address(family))?;
            connection.send("to be reset")?;
            connection.receive(11)?;
            connection.reset();
        }
        Ok(())
    });
    drop(server);
    summary
}

fn server_resets(pair: &mut Pair) -> Result<String> {
    let server = Server::start(&pair.server, pair.tcp.target_port, |slot| {
        let connection = slot.as_mut().expect("given by the server");
        connection.receive(5)?;
        connection.send("no")?;
        sleep(Duration::from_millis(50));
        slot.take().expect("still there").reset();
        Ok(())
    })?;
    let summary = pair.check(Expected::both(2), |pair| {
        for family in BOTH {
            let mut connection = Connection::open(&pair.client, pair.tcp.address(family))?;
            connection.send("hello")?;
            ensure!(connection.drain()? == 2);
        }
        Ok(())
    });
    drop(server);
    summary
}

fn server_closes_first(pair: &mut Pair) -> Result<String> {
    let server = Server::start(&pair.server, pair.tcp.target_port, |connection| {
        let connection = connection.as_mut().expect("given by the server");
        connection.receive(5)?;
        connection.send("goodbye")
    })?;
    let summary = pair.check(Expected::both(2), |pair| {
        for family in BOTH {
            let mut connection = Connection::open(&pair.client, pair.tcp.address(family))?;
            connection.send("hello")?;
            ensure!(connection.drain()? == 7);
        }
        Ok(())
    });
    drop(server);
    summary
}

fn nothing_is_said(pair: &mut Pair) -> Result<String> {
    let server = tcp::echo(&pair.server, pair.tcp.target_port)?;
    let summary = pair.check(Expected::both(2), |pair| {
        for family in BOTH {
            let mut connection = Connection::open(&pair.client, pair.tcp.address(family))?;
            sleep(Duration::from_millis(100));
            finish_cleanly(&mut connection)?;
        }
        Ok(())
    });
    drop(server);
    summary
}

/// The client's connection to its sidecar is open nevertheless; the application's leg never is.
fn nothing_listens(pair: &mut Pair) -> Result<String> {
    pair.check(Expected::both(2), |pair| {
        for family in BOTH {
            let mut connection = Connection::open(&pair.client, pair.dead.address(family))?;
            ensure!(connection.drain()? == 0);
        }
        Ok(())
    })
}

fn failed_connects_are_not_opened(pair: &mut Pair) -> Result<String> {
    // The outside workload's port is closed: nothing of the mesh is in between, and no connection is established.
    pair.check(Expected::both(0), |pair| {
        for family in BOTH {
            let refused = Connection::open(&pair.outside, SocketAddr::new(pair.outside.ip(family), 9));
            ensure!(refused.is_err());
        }
        Ok(())
    })
}

fn counted_while_open(pair: &mut Pair) -> Result<String> {
    let server = tcp::echo(&pair.server, pair.tcp.target_port)?;
    let before = pair.begin()?;
    let mut connection = Connection::open(&pair.client, pair.tcp.address(Family::V4))?;
    connection.send([7; 1000])?;
    connection.receive(1000)?;
    let mut truth = Counts::default();
    let open = Connections { opened: 1, closed: 0, received: 1000, sent: 1000 };
    for leg in [pair.source(), pair.destination()] {
        truth.connections.insert(leg, open.clone());
    }
    pair.agree(&before, &truth).context("while it is open")?;
    finish_cleanly(&mut connection)?;
    drop(connection);
    let (truth, _) = pair.truth(&Expected::both(1))?;
    let summary = pair.agree(&before, &truth);
    drop(server);
    summary
}

fn http_on_a_configured_tcp_port(pair: &mut Pair) -> Result<String> {
    let server = tcp::echo(&pair.server, pair.tcp.target_port)?;
    let summary = pair.check(Expected::both(2), |pair| {
        for family in BOTH {
            let request = b"GET / HTTP/1.1\r\nhost: tcp\r\n\r\n";
            let mut connection = Connection::open(&pair.client, pair.tcp.address(family))?;
            connection.send(request)?;
            ensure!(connection.receive(request.len())? == request);
            finish_cleanly(&mut connection)?;
        }
        Ok(())
    });
    drop(server);
    summary
}

/// One packet in thirty on the loopback of both pods is lost.
fn retransmissions(pair: &mut Pair) -> Result<String> {
    let server = tcp::echo(&pair.server, pair.tcp.target_port)?;
    let lose = |pair: &Pair, action: &str| -> Result<()> {
        for (workload, command) in [&pair.client, &pair.server]
            .iter()
            .flat_map(|workload| ["iptables-legacy", "ip6tables-legacy"].map(|command| (workload, command)))
        {
            let rule = format!("{action} INPUT -i lo -p tcp -m statistic --mode random --probability 0.033 -j DROP");
            finish(workload.command(command)?.args(rule.split(' ')), "")?;
        }
        Ok(())
    };
    let net = pair.client.net.name().to_owned();
    let retransmitted = || retransmitted_segments(&net);
    let before = retransmitted()?;
    let summary = pair.check(Expected::both(2), |pair| {
        lose(pair, "-A")?;
        let outcome = BOTH.iter().try_for_each(|family| {
            let begun = retransmitted()?;
            let mut connection = Connection::open(&pair.client, pair.tcp.address(*family))?;
            // One or two packets per round: by chance, none of twenty rounds may be lost.
            for round in 0..1000 {
                connection.send([9; 50_000])?;
                connection.receive(50_000)?;
                if round >= 20 && retransmitted()? > begun {
                    break;
                }
            }
            finish_cleanly(&mut connection)
        });
        lose(pair, "-D")?;
        outcome
    })?;
    let lost = retransmitted()? - before;
    ensure!(lost > 0, "nothing was retransmitted, the case proves nothing");
    drop(server);
    Ok(format!("{lost} segments retransmitted at the client, {summary}"))
}

/// Probes carry a byte position that was counted already.
fn keep_alive_probes(pair: &mut Pair) -> Result<String> {
    let server = tcp::echo(&pair.server, pair.tcp.target_port)?;
    let summary = pair.check(Expected::both(2), |pair| {
        for family in BOTH {
            let mut connection = Connection::open(&pair.client, pair.tcp.address(family))?;
            connection.probe_when_idle(1)?;
            connection.send("alive")?;
            connection.receive(5)?;
            sleep(Duration::from_millis(2500));
            connection.send("still")?;
            connection.receive(5)?;
            finish_cleanly(&mut connection)?;
        }
        Ok(())
    });
    drop(server);
    summary
}

fn one_byte_at_a_time(pair: &mut Pair) -> Result<String> {
    let server = tcp::echo(&pair.server, pair.tcp.target_port)?;
    let summary = pair.check(Expected::both(2), |pair| {
        for family in BOTH {
            let mut connection = Connection::open(&pair.client, pair.tcp.address(family))?;
            for byte in 0..200 {
                connection.send([byte])?;
                connection.receive(1)?;
            }
            finish_cleanly(&mut connection)?;
        }
        Ok(())
    });
    drop(server);
    summary
}

fn a_thousand_short_connections(pair: &mut Pair) -> Result<String> {
    let server = tcp::echo(&pair.server, pair.tcp.target_port)?;
    let summary = pair.check(Expected::both(1000), |pair| {
        for number in 0..1000 {
            let mut connection = Connection::open(&pair.client, pair.tcp.address(BOTH[number % 2]))?;
            connection.send("short")?;
            connection.receive(5)?;
        }
        Ok(())
    });
    drop(server);
    summary
}

fn many_at_once(pair: &mut Pair) -> Result<String> {
    let server = tcp::echo(&pair.server, pair.tcp.target_port)?;
    let summary = pair.check(Expected::both(200), |pair| {
        let mut connections = (0..200)
            .map(|number| Connection::open(&pair.client, pair.tcp.address(BOTH[number % 2])))
            .collect::<Result<Vec<_>>>()?;
        for connection in &mut connections {
            connection.send([3; 2000])?;
        }
        for connection in &mut connections {
            connection.receive(2000)?;
        }
        Ok(())
    });
    drop(server);
    summary
}

fn outside_client(pair: &mut Pair) -> Result<String> {
    let server = tcp::echo(&pair.server, pair.tcp.target_port)?;
    let summary = pair.check(Expected { source: 0, destination: 2 }, |pair| {
        for family in BOTH {
            let address = SocketAddr::new(pair.server.ip(family), pair.tcp.target_port);
            let mut connection = Connection::open(&pair.outside, address)?;
            // The TLS inspector waits for the first bytes.
            connection.send("plain")?;
            connection.receive(5)?;
            finish_cleanly(&mut connection)?;
        }
        Ok(())
    });
    drop(server);
    summary
}

/// Ends the sending direction and waits for the peer's end, so that both have seen every byte.
fn finish_cleanly(connection: &mut Connection) -> Result<()> {
    connection.finish_sending()?;
    connection.drain()?;
    Ok(())
}

fn wait_for(what: &str, done: impl Fn() -> bool) -> Result<()> {
    wait_until(what, SETTLE_TIMEOUT, || {
        ensure!(done(), "it is not so");
        Ok(())
    })
}

fn retransmitted_segments(namespace: &str) -> Result<u64> {
    let text = run("ip", &["netns", "exec", namespace, "cat", "/proc/net/snmp"])?;
    let mut lines = text.lines().filter(|line| line.starts_with("Tcp:")).map(|line| line.split(' '));
    let (names, values) = (lines.next().context("Tcp names")?, lines.next().context("Tcp values")?);
    let found = names.zip(values).find(|(name, _)| *name == "RetransSegs").context("RetransSegs")?;
    found.1.parse().context("RetransSegs")
}
