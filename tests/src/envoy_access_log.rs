//! Envoy's access log, which the observer is compared with.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::PathBuf,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{
    counts::{Counts, Leg, Messages, Outcome},
    schedule::{Schedule, Times},
    sidecar::Sidecar,
};

/// Longer than Envoy's interval of writing its log (20 ms), by enough for a busy machine.
const QUIET: Duration = Duration::from_millis(150);

/// Reads one sidecar's log from where it last was.
#[derive(Debug)]
pub struct EnvoyAccessLog {
    workload: String,
    path: PathBuf,
    position: u64,
    /// cgroup of the pod: a sidecar can be given another container in it.
    pod: PathBuf,
    schedule: Schedule,
    /// Times of the sidecar's threads between the last two settled reads.
    times: Times,
    /// TCP connections that have found their upstream and not ended.
    connected: BTreeSet<u64>,
}

/// One line: a request, or an event of a TCP connection.
#[derive(Clone, Debug)]
pub struct Line {
    fields: Value,
    /// Whether it is a TCP connection that has found its upstream.
    connected: bool,
}

impl EnvoyAccessLog {
    /// Reads from the current end of the log.
    pub fn new(sidecar: &Sidecar) -> Result<Self> {
        let mut access_log = Self {
            workload: sidecar.workload().name.clone(),
            path: sidecar.log(),
            position: 0,
            pod: sidecar.cgroup().parent().context("a container is in a pod")?.to_owned(),
            schedule: Schedule::default(),
            times: Times::default(),
            connected: BTreeSet::new(),
        };
        access_log.skip()?;
        Ok(access_log)
    }

    /// Skips what has been written so far.
    pub fn skip(&mut self) -> Result<()> {
        self.settled(0, Duration::ZERO).map(|_| ())
    }

    /// Waits until at least `count` requests or ended connections are in the log and nothing more comes; an error after
    /// `patience` with what there is.
    pub fn settled(&mut self, count: usize, patience: Duration) -> Result<Vec<Line>> {
        let (mut lines, start, mut last) = (Vec::new(), Instant::now(), Instant::now());
        loop {
            let more = self.read()?;
            if !more.is_empty() {
                last = Instant::now();
                lines.extend(more);
            }
            let ended = lines.iter().filter(|line: &&Line| line.is_end()).count();
            if ended >= count && last.elapsed() >= QUIET {
                let schedule = Schedule::of(&self.pod);
                self.times = schedule.since(&self.schedule);
                self.schedule = schedule;
                return Ok(lines);
            }
            if ended < count && start.elapsed() > patience + QUIET {
                let texts: Vec<String> = lines.iter().map(|line| format!("\n  {}", line.fields)).collect();
                bail!(
                    "the access log of {} has {ended} lines instead of {count} after {patience:?}:{}",
                    self.workload,
                    texts.concat()
                );
            }
            sleep(Duration::from_millis(10));
        }
    }

    /// Adds `lines` to `counts` as Istio counts them, on the legs that a sidecar's sockets show.
    pub fn count(&self, lines: &[Line], counts: &mut Counts) {
        for (leg, direction) in
            [(Leg::source(&self.workload), "outbound"), (Leg::destination(&self.workload), "inbound")]
        {
            let late = counts.late.entry(leg).or_default();
            late.times.ran += self.times.ran;
            late.times.waited += self.times.waited;
            late.under_way = late.under_way.max(under_way(lines, direction));
        }
        for line in lines {
            let leg = match line.text("direction") {
                "outbound" => Leg::source(&self.workload),
                "inbound" => Leg::destination(&self.workload),
                // A gateway's TLS listener: nothing can be seen.
                _ => continue,
            };
            match line.text("kind") {
                "http" => count_request(line, &leg, counts),
                _ => count_connection(line, leg, counts),
            }
        }
    }

    /// Reads the complete lines since the last read.
    fn read(&mut self) -> Result<Vec<Line>> {
        let mut file = File::open(&self.path).with_context(|| format!("{}", self.path.display()))?;
        file.seek(SeekFrom::Start(self.position))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        let complete = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.position += complete as u64;
        let text = String::from_utf8_lossy(&text[..complete]);
        text.lines().map(|line| self.line(line).with_context(|| format!("access log line {line}"))).collect()
    }

    fn line(&mut self, text: &str) -> Result<Line> {
        let mut line = Line { fields: serde_json::from_str(text)?, connected: false };
        let connection = line.number("connection");
        line.connected = match line.text("type") {
            "TcpUpstreamConnected" => self.connected.insert(connection),
            "TcpConnectionEnd" => self.connected.remove(&connection),
            _ => false,
        };
        Ok(line)
    }
}

impl Line {
    /// Returns a field as text, empty if it is absent.
    pub fn text(&self, field: &str) -> &str {
        self.fields[field].as_str().unwrap_or_default()
    }

    /// Returns a field as a number, 0 if it is absent.
    pub fn number(&self, field: &str) -> u64 {
        match &self.fields[field] {
            Value::Number(number) => number.as_u64().unwrap_or(0),
            Value::String(text) => text.parse().unwrap_or(0),
            _ => 0,
        }
    }

    /// Returns the response code.
    pub fn code(&self) -> String {
        self.number("code").to_string()
    }

    /// Returns protocol and status as Istio labels them.
    pub fn outcome(&self) -> Outcome {
        let content_type = self.text("content_type");
        let grpc = content_type == "application/grpc" || content_type.starts_with("application/grpc+");
        // In trailers, or in the headers of a trailers-only answer.
        let status =
            [self.text("grpc_trailer"), self.text("grpc_header")].into_iter().find(|status| !status.is_empty());
        let grpc_status = status.filter(|_| grpc).unwrap_or_default().to_owned();
        Outcome { code: self.code(), grpc, grpc_status }
    }

    /// Returns the request's duration on the leg: from first byte in to last byte out at source, from first byte to the
    /// application to last byte from it at destination; until Envoy gave it up where there was no last byte.
    pub fn duration(&self) -> Duration {
        let [field, before] = self.duration_fields();
        let took = if self.was_given_up() {
            self.time("end_us").saturating_sub(self.time("start_us")).saturating_sub(self.number(before))
        } else {
            self.number(field)
        };
        Duration::from_micros(took)
    }

    /// Returns whether there was no last byte of an answer on the leg.
    fn was_given_up(&self) -> bool {
        self.fields[self.duration_fields()[0]].is_null()
    }

    /// Returns the leg's duration, and what came before it.
    fn duration_fields(&self) -> [&'static str; 2] {
        if self.text("direction") == "inbound" { ["upstream_us", "until_upstream_us"] } else { ["downstream_us", ""] }
    }

    /// Returns a time in microseconds since 1970, as seconds with six digits.
    fn time(&self, field: &str) -> u64 {
        self.text(field).replace('.', "").parse().unwrap_or(0)
    }

    /// Returns the messages of a gRPC call, as counted by the Envoy filter that Istio uses.
    fn messages(&self) -> Option<Messages> {
        let counted = &self.fields["grpc_messages"];
        // 64-bit numbers are strings in protobuf's JSON, and a zero is left out.
        let number = |field: &str| counted[field].as_str().and_then(|text| text.parse().ok()).unwrap_or(0);
        let messages =
            || Messages { requests: number("request_message_count"), responses: number("response_message_count") };
        counted.is_object().then(messages)
    }

    /// Returns whether it is a request's or a connection's last line.
    pub fn is_end(&self) -> bool {
        matches!(self.text("type"), "DownstreamEnd" | "TcpConnectionEnd")
    }

    /// Returns whether anything of it reached the application.
    fn reached_application(&self) -> bool {
        self.number("upstream_wire_sent") > 0
    }
}

/// Returns the largest number of concurrent requests of one direction.
fn under_way(lines: &[Line], direction: &str) -> u64 {
    let requests = lines.iter().filter(|line| line.is_end() && line.text("kind") == "http");
    // At the same time, an end sorts before a beginning.
    let mut changes: Vec<(u64, i64)> = requests
        .filter(|line| line.text("direction") == direction)
        .flat_map(|line| [(line.time("start_us"), 1), (line.time("end_us"), -1)])
        .collect();
    changes.sort_unstable();
    let mut now = 0_i64;
    let most = changes.iter().map(|(_, change)| {
        now += change;
        now
    });
    most.max().map_or(0, i64::unsigned_abs)
}

/// Counts at source the wire bytes to and from the calling application, at destination those of the application that
/// answered; a request that never reached it is on no socket and not counted.
fn count_request(line: &Line, leg: &Leg, counts: &mut Counts) {
    let source = leg.reporter == "source";
    if !line.is_end() || !(source || line.reached_application()) {
        return;
    }
    let [received, sent] = if source {
        ["downstream_wire_received", "downstream_wire_sent"]
    } else {
        ["upstream_wire_sent", "upstream_wire_received"]
    };
    let requests = counts.of(leg, line.outcome());
    requests.count += 1;
    requests.given_up += u64::from(line.was_given_up());
    requests.request_bytes += line.number(received);
    requests.response_bytes += line.number(sent);
    *requests.duration_ms.get_or_insert(0.0) += line.duration().as_secs_f64() * 1000.0;
    if let Some(messages) = line.messages() {
        let sum = counts.messages.entry(leg.clone()).or_default();
        sum.requests += messages.requests;
        sum.responses += messages.responses;
    }
}

/// Counts a connection. Without an upstream it has no line at its beginning: at source it was open nevertheless, at
/// destination it is on no socket.
fn count_connection(line: &Line, leg: Leg, counts: &mut Counts) {
    if !(line.connected || leg.reporter == "source") {
        return;
    }
    let connections = counts.connections.entry(leg).or_default();
    if !line.is_end() || !line.connected {
        connections.opened += 1;
    }
    if line.is_end() {
        connections.closed += 1;
        connections.received += line.number("received");
        connections.sent += line.number("sent");
    }
}
