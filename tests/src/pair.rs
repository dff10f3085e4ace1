//! The fixture of most cases: a client and a server with a sidecar each, observed, and compared with the access log.

use std::{sync::Arc, thread::sleep, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::{
    apps::{
        http,
        raw::{Connection, Server},
        tcp,
    },
    counts::{Counts, Leg},
    envoy_access_log::{EnvoyAccessLog, Line},
    mesh::{Family, Mesh, Protocol, Service, Workload},
    net::finish,
    observer::Observer,
    sidecar::{Options, Sidecar},
    wait::wait_until,
};

/// Longest that a log line or a count may take to appear.
pub const SETTLE_TIMEOUT: Duration = Duration::from_secs(8);

/// Client, server, their sidecars, the services between them, and the observer.
pub struct Pair {
    /// The observer; `None` before it is started, see [`Pair::observer`].
    pub observer: Option<Observer>,
    /// Sidecars of client and server.
    pub sidecars: [Sidecar; 2],
    access_logs: [EnvoyAccessLog; 2],
    /// Workload of the clients.
    pub client: Arc<Workload>,
    /// Workload of the servers.
    pub server: Arc<Workload>,
    /// A workload without a sidecar.
    pub outside: Arc<Workload>,
    /// HTTP, declared.
    pub web: Service,
    /// Not declared: port 81 to 8081, with the same HTTP server.
    pub sniffed: Service,
    /// Not declared: port 82 to 8082, for the case's own server.
    pub raw: Service,
    /// HTTP/2, declared: port 83 to 8083, for the case's own server.
    pub http2: Service,
    /// TCP, declared: port 9000, for the case's own server.
    pub tcp: Service,
    /// TCP, declared: port 9001, where nothing listens.
    pub dead: Service,
    /// HTTP to the outside workload, port 80 to 8080, plaintext.
    pub plaintext: Service,
    _servers: Vec<Server>,
    /// Dropped last.
    pub mesh: Mesh,
}

/// Expected number of lines in the access logs.
#[derive(Debug)]
pub struct Expected {
    /// Requests and ended connections in the client's log.
    pub source: usize,
    /// Those in the server's log.
    pub destination: usize,
}

impl Expected {
    /// Expects the same number at both.
    pub fn both(count: usize) -> Self {
        Self { source: count, destination: count }
    }
}

/// Corrects the expected counts where Envoy's log is known to be wrong.
pub type Correction<'a> = &'a dyn Fn(&mut Counts);

impl Pair {
    /// Builds and observes it.
    pub fn new() -> Result<Self> {
        Self::with(Options::default(), Options::default())
    }

    /// Builds and observes it with other options for the client's and the server's sidecar.
    pub fn with(client_options: Options, server_options: Options) -> Result<Self> {
        let mut pair = Self::unobserved(client_options, server_options)?;
        pair.observe(2)?;
        Ok(pair)
    }

    /// Builds it without an observer.
    pub fn unobserved(client_options: Options, server_options: Options) -> Result<Self> {
        let mut mesh = Mesh::new()?;
        let (client, server, outside) = (mesh.workload("client")?, mesh.workload("server")?, mesh.workload("outside")?);
        let web = mesh.service("web", 80, &server, 8080, Protocol::Http)?;
        let sniffed = mesh.service("sniffed", 81, &server, 8081, Protocol::Auto)?;
        let raw = mesh.service("raw", 82, &server, 8082, Protocol::Auto)?;
        let http2 = mesh.service("http2", 83, &server, 8083, Protocol::Http2)?;
        let tcp = mesh.service("tcp", 9000, &server, 9000, Protocol::Tcp)?;
        let dead = mesh.service("dead", 9001, &server, 9001, Protocol::Tcp)?;
        let plaintext = mesh.plaintext_service("plaintext", 80, &outside, 8080, Protocol::Http)?;
        let servers = vec![http::serve(&server, 8080)?, http::serve(&server, 8081)?, http::serve(&outside, 8080)?];
        let sidecars =
            [Sidecar::start(&mesh, &client, client_options)?, Sidecar::start(&mesh, &server, server_options)?];
        let access_logs = [EnvoyAccessLog::new(&sidecars[0])?, EnvoyAccessLog::new(&sidecars[1])?];
        Ok(Self {
            observer: None,
            sidecars,
            access_logs,
            client,
            server,
            outside,
            web,
            sniffed,
            raw,
            http2,
            tcp,
            dead,
            plaintext,
            _servers: servers,
            mesh,
        })
    }

    /// Starts an observer that sees `sidecars` of them.
    pub fn observe(&mut self, sidecars: usize) -> Result<()> {
        self.observe_with(sidecars, &[])
    }

    /// Starts one with these options.
    pub fn observe_with(&mut self, sidecars: usize, options: &[&str]) -> Result<()> {
        self.observer = Some(Observer::start(&self.mesh, sidecars, options)?);
        Ok(())
    }

    /// Returns the observer; an error without one, since nothing can be compared then.
    pub fn observer(&self) -> Result<&Observer> {
        self.observer.as_ref().context("no observer watches this pair")
    }

    /// Returns the client's leg.
    pub fn source(&self) -> Leg {
        Leg::source(&self.client.name)
    }

    /// Returns the server's leg.
    pub fn destination(&self) -> Leg {
        Leg::destination(&self.server.name)
    }

    /// Makes traffic and compares: counts, codes and bytes must be equal, durations close. Returns a summary.
    pub fn check(&mut self, expected: Expected, traffic: impl FnOnce(&Self) -> Result<()>) -> Result<String> {
        self.check_with(expected, traffic, &|_| {})
    }

    /// Compares some of everything: codes, bytes, a request without an answer, and raw TCP.
    pub fn http_and_tcp(&mut self) -> Result<String> {
        let echo = tcp::echo(&self.server, self.tcp.target_port)?;
        let summary = self.check(Expected::both(14), |pair| {
            for family in [Family::V4, Family::V6] {
                let codes = pair.curl(&[&pair.url(family, "/{bytes/10,status/404,chunked/3000,vanish,delay/20}")])?;
                ensure!(codes == "200\n404\n200\n503\n200", "{codes}");
                ensure!(pair.curl(&[&pair.sniffed.url(family, "/bytes/2")])? == "200");
                let mut connection = Connection::open(&pair.client, pair.tcp.address(family))?;
                connection.send([5; 3000])?;
                connection.receive(3000)?;
                connection.finish_sending()?;
                connection.drain()?;
            }
            Ok(())
        });
        drop(echo);
        summary
    }

    /// Makes traffic and compares like [`Pair::check`], with a correction of the expected counts.
    pub fn check_with(
        &mut self,
        expected: Expected,
        traffic: impl FnOnce(&Self) -> Result<()>,
        correct: Correction<'_>,
    ) -> Result<String> {
        let before = self.begin()?;
        traffic(self).context("traffic")?;
        let (mut truth, _) = self.truth(&expected)?;
        correct(&mut truth);
        self.agree(&before, &truth)
    }

    /// Skips what the logs have, and returns the observer's counts so far: none without an observer.
    pub fn begin(&mut self) -> Result<Counts> {
        for access_log in &mut self.access_logs {
            access_log.settled(0, SETTLE_TIMEOUT)?;
        }
        self.observer.as_ref().map_or_else(|| Ok(Counts::default()), Observer::counts)
    }

    /// Returns the counts of the access logs since [`Pair::begin`], and their lines.
    pub fn truth(&mut self, expected: &Expected) -> Result<(Counts, Vec<Line>)> {
        let (mut counts, mut all) = (Counts::default(), Vec::new());
        for (access_log, count) in self.access_logs.iter_mut().zip([expected.source, expected.destination]) {
            let lines = access_log.settled(count, SETTLE_TIMEOUT)?;
            let ended = lines.iter().filter(|line| line.is_end()).count();
            ensure!(ended == count, "{ended} log lines instead of {count}: {lines:#?}");
            access_log.count(&lines, &mut counts);
            all.extend(lines);
        }
        Ok((counts, all))
    }

    /// Returns the counts like [`Pair::truth`], of however many lines there are once no more come.
    pub fn truth_of_any(&mut self) -> Result<(Counts, Vec<Line>)> {
        let (mut counts, mut all) = (Counts::default(), Vec::new());
        for access_log in &mut self.access_logs {
            let lines = access_log.settled(0, SETTLE_TIMEOUT)?;
            access_log.count(&lines, &mut counts);
            all.extend(lines);
        }
        Ok((counts, all))
    }

    /// Waits until the observer's counts since `before` equal `truth`, and stay so.
    pub fn agree(&self, before: &Counts, truth: &Counts) -> Result<String> {
        let observer = self.observer()?;
        let equal = || -> Result<()> { Ok(truth.differences(&observer.counts()?.since(before)).none()?) };
        wait_until("the observer counts like Envoy's access log", SETTLE_TIMEOUT, equal).with_context(|| {
            format!("its own metrics: {}", observer.health().unwrap_or_else(|error| error.to_string()))
        })?;
        // A second count of the same thing would show now.
        sleep(Duration::from_millis(200));
        equal().context("the observer went on counting")?;
        Ok(truth.to_string())
    }

    /// Runs curl in the client's pod and returns the response codes, one for each URL.
    pub fn curl(&self, arguments: &[&str]) -> Result<String> {
        self.curl_from(&self.client, arguments)
    }

    /// Runs curl in a pod.
    pub fn curl_from(&self, workload: &Workload, arguments: &[&str]) -> Result<String> {
        let mut command = workload.command("curl")?;
        command.args(["-sS", "-m", "20", "-o", "/dev/null", "-w", "%{http_code}\\n"]).args(arguments);
        finish(&mut command, "").map(|codes| codes.trim().to_owned())
    }

    /// Makes traffic while one packet in thirty on the loopback of both pods is lost, of those long enough to carry
    /// data.
    pub fn losing_packets(&self, traffic: impl FnOnce() -> Result<()>) -> Result<()> {
        let lose = |action: &str| -> Result<()> {
            for (workload, command) in [&self.client, &self.server]
                .iter()
                .flat_map(|workload| ["iptables-legacy", "ip6tables-legacy"].map(|command| (workload, command)))
            {
                let rule = format!(
                    "{action} INPUT -i lo -p tcp -m length --length 100:65535 -m statistic --mode random --probability 0.033 -j DROP"
                );
                finish(workload.command(command)?.args(rule.split(' ')), "")?;
            }
            Ok(())
        };
        lose("-A")?;
        let outcome = traffic();
        lose("-D")?;
        outcome
    }

    /// Returns a URL at the declared HTTP service.
    pub fn url(&self, family: Family, path: &str) -> String {
        self.web.url(family, path)
    }
}

/// Corrects large answers over HTTP/2: Envoy's last window updates, 13 bytes each, are for data that it reads
/// when the kernel has seen the answer's end.
pub fn with_late_window_updates(truth: &mut Counts) {
    for ((leg, _), requests) in &mut truth.requests {
        if leg.reporter == "destination" {
            requests.late_bytes = requests.count * 2 * 13;
        }
    }
}

/// Accepts any delay between Envoy's clock and the socket's: Envoy writes an answer long before its last byte leaves,
/// or reads it long after, on a lossy or slow network, and never the other way round.
pub fn however_late(truth: &mut Counts) {
    truth.late.values_mut().for_each(|late| late.times.waited = Duration::MAX);
}

/// Removes durations, where those of the log and of the sockets differ in meaning.
pub fn without_durations(truth: &mut Counts) {
    for requests in truth.requests.values_mut() {
        requests.duration_ms = None;
    }
}
