//! Gateways: Envoy without redirection, with a plaintext and a TLS listener, in front of a workload with a sidecar.

use std::{net::SocketAddr, process::ExitCode, sync::Arc, thread::sleep, time::Duration};

use anyhow::{Result, ensure};
use harness::{
    apps::{
        frames::{Block, PREFACE, Peer, flag, headers, settings},
        http,
        raw::{Connection, DATA_WITH_THE_ACK, Server},
    },
    cases,
    counts::Counts,
    envoy::{GATEWAY_PLAIN, GATEWAY_PROXIED, GATEWAY_TLS},
    envoy_access_log::EnvoyAccessLog,
    forge::{CLAIMS, Forger},
    link::Seen,
    mesh::{Family, Mesh, Protocol, Workload},
    net::finish,
    observer::Observer,
    pair::SETTLE_TIMEOUT,
    sidecar::{Options, Sidecar},
    tools,
    wait::wait_until,
};

const BOTH: [Family; 2] = [Family::V4, Family::V6];

fn main() -> ExitCode {
    cases::run(
        Gateway::new,
        cases![
            plaintext_listener,
            plaintext_listener_keep_alive,
            no_route,
            application_ends_without_a_word,
            client_ends_before_the_answer,
            proxy_protocol,
            requests_that_the_gateway_refuses,
            listeners_with_handshake_data,
            segments_forged_by_a_client,
            segments_joined_on_arrival,
            tls_listener_is_reported_as_unseen,
            check_says_it_plainly,
        ],
    )
}

struct Gateway {
    observer: Observer,
    access_logs: [EnvoyAccessLog; 2],
    _sidecars: [Sidecar; 2],
    _application: Server,
    gateway: Arc<Workload>,
    visitor: Arc<Workload>,
    mesh: Mesh,
}

impl Gateway {
    fn new() -> Result<Self> {
        let mut mesh = Mesh::new()?;
        let (gateway, server, visitor) =
            (mesh.workload("gateway")?, mesh.workload("server")?, mesh.workload("visitor")?);
        mesh.service("web", 80, &server, 8080, Protocol::Http)?;
        let application = http::serve(&server, 8080)?;
        let sidecars =
            [Sidecar::start(&mesh, &gateway, Options::gateway())?, Sidecar::start(&mesh, &server, Options::default())?];
        let access_logs = [EnvoyAccessLog::new(&sidecars[0])?, EnvoyAccessLog::new(&sidecars[1])?];
        let observer = Observer::start(&mesh, 2, &[])?;
        Ok(Self { observer, access_logs, _sidecars: sidecars, _application: application, gateway, visitor, mesh })
    }

    /// Compares the counts of the gateway's listener and of the server's sidecar.
    fn check(&mut self, lines: [usize; 2], traffic: impl FnOnce(&Self) -> Result<()>) -> Result<String> {
        for access_log in &mut self.access_logs {
            access_log.skip()?;
        }
        let before = self.observer.counts()?;
        traffic(self)?;
        let mut truth = Counts::default();
        for (access_log, count) in self.access_logs.iter_mut().zip(lines) {
            let lines = access_log.settled(count, SETTLE_TIMEOUT)?;
            let ended = lines.iter().filter(|line| line.is_end()).count();
            ensure!(ended == count, "{ended} log lines instead of {count}: {lines:#?}");
            access_log.count(&lines, &mut truth);
        }
        wait_until("the observer counts like Envoy's access log", SETTLE_TIMEOUT, || {
            Ok(truth.differences(&self.observer.counts()?.since(&before)).none()?)
        })?;
        Ok(truth.to_string())
    }

    fn curl(&self, host: &str, listener: u16, family: Family, path: &str) -> Result<String> {
        let scheme = if listener == GATEWAY_TLS { "https" } else { "http" };
        let mut command = self.visitor.command("curl")?;
        command.args(["-sSk", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}\\n"]);
        command
            .args(["-H", &format!("host: {host}")])
            .arg(format!("{scheme}://{}{path}", self.listener(listener, family)));
        finish(&mut command, "").map(|codes| codes.trim().replace('\n', " "))
    }

    /// Returns the number of connections at the TLS listener.
    fn encrypted(&self) -> Result<f64> {
        const FAMILY: &str = "mesh_observer_gateway_encrypted_connections_total";
        self.observer.own(FAMILY, &[("event", "opened")])
    }

    fn listener(&self, port: u16, family: Family) -> SocketAddr {
        SocketAddr::new(self.gateway.ip(family), port)
    }
}

fn plaintext_listener(fixture: &mut Gateway) -> Result<String> {
    fixture.check([4, 4], |fixture| {
        for family in BOTH {
            for code in ["200", "503"] {
                let found = fixture.curl("web", GATEWAY_PLAIN, family, &format!("/status/{code}"))?;
                ensure!(found == code, "{found} instead of {code}");
            }
        }
        Ok(())
    })
}

fn plaintext_listener_keep_alive(fixture: &mut Gateway) -> Result<String> {
    fixture.check([20, 20], |fixture| {
        for family in BOTH {
            fixture.curl("web", GATEWAY_PLAIN, family, "/bytes/[1-10]")?;
        }
        Ok(())
    })
}

/// Envoy's own answer is on the listener's socket.
fn no_route(fixture: &mut Gateway) -> Result<String> {
    fixture.check([2, 0], |fixture| {
        for family in BOTH {
            ensure!(fixture.curl("nowhere", GATEWAY_PLAIN, family, "/")? == "404");
        }
        Ok(())
    })
}

fn application_ends_without_a_word(fixture: &mut Gateway) -> Result<String> {
    fixture.check([2, 2], |fixture| {
        for family in BOTH {
            ensure!(fixture.curl("web", GATEWAY_PLAIN, family, "/vanish")? == "503");
        }
        Ok(())
    })
}

fn client_ends_before_the_answer(fixture: &mut Gateway) -> Result<String> {
    fixture.check([2, 2], |fixture| {
        for family in BOTH {
            let mut connection = Connection::open(&fixture.visitor, fixture.listener(GATEWAY_PLAIN, family))?;
            connection.send("GET /delay/500 HTTP/1.1\r\nhost: web\r\n\r\n")?;
            sleep(Duration::from_millis(150));
        }
        sleep(Duration::from_millis(600));
        Ok(())
    })
}

/// A balancer's header before everything else, in one segment with the request or in several.
fn proxy_protocol(fixture: &mut Gateway) -> Result<String> {
    const GET: &[u8] = b"GET /bytes/10 HTTP/1.1\r\nhost: web\r\n\r\n";
    let binary = |command: u8, family: u8, rest: &[u8]| {
        let length = u16::try_from(rest.len()).expect("short").to_be_bytes();
        [b"\r\n\r\n\0\r\nQUIT\n".as_slice(), &[0x20 | command, family], &length, rest].concat()
    };
    let address = [192, 0, 2, 7, 198, 18, 0, 14, 0x9c, 0x40, 0, 80];
    let noop = [4, 0, 3, 1, 2, 3];
    let headers = [
        b"PROXY TCP4 192.0.2.7 198.18.0.14 40000 80\r\n".to_vec(),
        b"PROXY TCP6 2001:db8::7 2001:db8::14 40000 80\r\n".to_vec(),
        b"PROXY UNKNOWN\r\n".to_vec(),
        binary(1, 0x11, &address),
        binary(1, 0x21, &[&[0x20; 32][..], &address[8..]].concat()),
        binary(0, 0, &[]),
        binary(1, 0x11, &[&address[..], &noop].concat()),
    ];
    let ways = [0, 1, 7, 14];
    let count = headers.len() * ways.len() * 2;
    fixture.check([count, count], |fixture| {
        for (header, cut) in headers.iter().flat_map(|header| ways.map(|cut| (header, cut))) {
            let mut connection = Connection::open(&fixture.visitor, fixture.listener(GATEWAY_PROXIED, Family::V4))?;
            let (first, second) = header.split_at(cut.min(header.len()));
            match cut {
                0 => connection.send([header, GET].concat())?,
                // The request in a separate segment.
                1 => connection.send_pieces([header.as_slice(), GET], Duration::from_millis(20))?,
                _ => connection.send_pieces([first, &[second, GET].concat()], Duration::from_millis(20))?,
            }
            ensure!(connection.receive_response()?.status == 200);
            connection.send(GET)?;
            ensure!(connection.receive_response()?.status == 200);
        }
        Ok(())
    })
}

/// A gateway has no inspector: everything is parsed as HTTP, and refused.
fn requests_that_the_gateway_refuses(fixture: &mut Gateway) -> Result<String> {
    let requests = [
        "LIST / HTTP/1.1\r\nhost: web\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: web\r\ntransfer-encoding: gzip\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: web\r\ncontent-length : 5\r\n\r\nhello",
        "hello world\r\n\r\n",
    ];
    fixture.check([requests.len(), 0], |fixture| {
        for request in requests {
            let mut connection = Connection::open(&fixture.visitor, fixture.listener(GATEWAY_PLAIN, Family::V4))?;
            connection.send(request)?;
            ensure!([400, 501].contains(&connection.receive_response()?.status));
            connection.drain()?;
        }
        Ok(())
    })
}

/// Handshake data, which the kernel passes to the listener's hooks only: HTTP/1, HTTP/2, and the beginning of TLS.
fn listeners_with_handshake_data(fixture: &mut Gateway) -> Result<String> {
    const GET: &str = "GET /bytes/10 HTTP/1.1\r\nhost: web\r\n\r\n";
    let before = fixture.encrypted()?;
    let summary = fixture.check([6, 6], |fixture| {
        for family in BOTH {
            let open = |listener| {
                Connection::open_with(&fixture.visitor, fixture.listener(listener, family), &[DATA_WITH_THE_ACK], None)
            };
            let mut connection = open(GATEWAY_PLAIN)?;
            for _ in 0..2 {
                connection.send(GET)?;
                ensure!(connection.receive_response()?.status == 200);
            }
            let mut connection = open(GATEWAY_PLAIN)?;
            let mut peer = Peer::new(&mut connection);
            let block = Block::default().named(2, "GET").indexed(6).named(4, "/bytes/10").named(1, "web");
            peer.send([PREFACE, &settings(&[]), &headers(1, flag::END_STREAM, &block)].concat())?;
            peer.ended(1)?;
            let mut connection = open(GATEWAY_TLS)?;
            // The beginning of a ClientHello: the listener waits for the rest, which never comes.
            connection.send([[0x16, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3].as_slice(), &[7; 300]].concat())?;
            connection.finish_sending()?;
            connection.drain()?;
        }
        Ok(())
    })?;
    let came = fixture.encrypted()? - before;
    ensure!(came == 2.0, "{came} encrypted connections");
    Ok(format!("{came} encrypted connections, {summary}"))
}

/// In the name of its own connection, between and inside requests.
fn segments_forged_by_a_client(fixture: &mut Gateway) -> Result<String> {
    fixture.check([6, 6], |fixture| {
        let mut connection = Connection::open(&fixture.visitor, fixture.listener(GATEWAY_PLAIN, Family::V4))?;
        let forge = |connection: &Connection| -> Result<()> {
            let forger = Forger::of(&fixture.visitor, connection)?;
            (0..1_000).try_for_each(|number| forger.claim(CLAIMS[number as usize % CLAIMS.len()].1, number))
        };
        for _ in 0..3 {
            connection.send("GET /bytes/10 HTTP/1.1\r\nhost: web\r\n\r\n")?;
            ensure!(connection.receive_response()?.status == 200);
            forge(&connection)?;
            connection.send("POST /upload HTTP/1.1\r\nhost: web\r\ncontent-length: 9\r\n\r\nhalf")?;
            forge(&connection)?;
            connection.send("other")?;
            ensure!(connection.receive_response()?.body == b"9");
        }
        Ok(())
    })
}

/// GRO: the visitor's segments are small, and many are one packet by the time the gateway's hooks have them. Times are
/// not compared: the many small packets keep the processors busy, and the proxy reads late.
fn segments_joined_on_arrival(fixture: &mut Gateway) -> Result<String> {
    const LENGTH: u64 = 1 << 20;
    fixture.mesh.join_segments(&fixture.gateway)?;
    fixture.visitor.net.batch("link set eth0 gso_max_segs 1")?;
    let joined = Seen::new(&fixture.gateway, "--length 3000:65535")?;
    let traffic = |fixture: &Gateway| {
        for family in BOTH {
            let mut connection = Connection::open(&fixture.visitor, fixture.listener(GATEWAY_PLAIN, family))?;
            for _ in 0..2 {
                connection.send(format!("POST /upload HTTP/1.1\r\nhost: web\r\ncontent-length: {LENGTH}\r\n\r\n"))?;
                connection.send_zeros(LENGTH)?;
                ensure!(connection.receive_response()?.body == LENGTH.to_string().as_bytes());
            }
        }
        Ok(())
    };
    let summary = fixture.check([4, 4], traffic)?;
    let packets = joined.packets()?;
    fixture.visitor.net.batch("link set eth0 gso_max_segs 65535")?;
    ensure!(packets > 0, "no segments were joined: the case proves nothing");
    Ok(format!("{packets} packets of joined segments, {summary}"))
}

/// Both legs are encrypted: only connections are counted there.
fn tls_listener_is_reported_as_unseen(fixture: &mut Gateway) -> Result<String> {
    let before = fixture.encrypted()?;
    let summary = fixture.check([4, 4], |fixture| {
        for family in BOTH {
            let code = fixture.curl("web", GATEWAY_TLS, family, "/{status/200,bytes/5}")?;
            ensure!(code == "200 200", "{code}");
        }
        Ok(())
    })?;
    ensure!(!summary.contains("source"), "the access log counts no TLS listener: {summary}");
    let came = fixture.encrypted()? - before;
    ensure!(came == 2.0, "{came} encrypted connections");
    Ok(format!("{came} encrypted connections, {summary}"))
}

fn check_says_it_plainly(fixture: &mut Gateway) -> Result<String> {
    let mut command = std::process::Command::new(tools::observer()?);
    let said = finish(command.args(["check", "--sidecar-exe", &fixture.mesh.executable()]), "")?;
    let of_gateway =
        said.lines().find(|line| line.contains(&fixture.gateway.name) || line.contains(&fixture.gateway.pod));
    ensure!(of_gateway.is_some(), "the gateway is not named:\n{said}");
    let plainly = said.to_lowercase();
    ensure!(plainly.contains("gateway") && (plainly.contains("tls") || plainly.contains("encrypted")), "{said}");
    Ok(of_gateway.unwrap_or_default().trim().to_owned())
}
