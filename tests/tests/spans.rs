//! Spans of sampled requests against Envoy's access log: every sampled request is one at each leg, with its ids, its code, its
//! sizes and its duration, and no other request is. The same in each format, as a collector of OTLP, a real Zipkin server and
//! Wavefront's own decoder have understood it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::ExitCode,
    thread::sleep,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail, ensure};
use harness::{
    apps::{program::Program, raw::Connection},
    cases,
    counts::Leg,
    envoy_access_log::Line,
    mesh::Family,
    net::finish,
    pair::{Expected, Pair, SETTLE_TIMEOUT},
    sidecar::Options,
    spans::{Receiver, Span, otlp::Collector, wavefront::SpanProxy, zipkin::Zipkin},
    tools,
    wait::wait_until,
};

const TRACE: u128 = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;

/// Namespace of the workloads, which is a part of Zipkin's names of services.
const NAMESPACE: &str = "default";

struct Bed {
    pair: Pair,
    outputs: Vec<Output>,
}

/// A format, and what its receiver has.
struct Output {
    receiver: Box<dyn Receiver>,
    format: Format,
    /// Ids that it had before.
    known: BTreeSet<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Format {
    Otlp,
    Zipkin,
    Wavefront,
}

impl Format {
    /// Returns the name of a workload's service.
    fn service(self, workload: &str) -> String {
        if self == Self::Zipkin { format!("{workload}.{NAMESPACE}") } else { workload.to_owned() }
    }

    /// Returns the unit of its times.
    fn unit(self) -> Duration {
        match self {
            Self::Otlp => Duration::ZERO,
            Self::Zipkin => Duration::from_micros(1),
            Self::Wavefront => Duration::from_millis(1),
        }
    }
}

impl Output {
    fn new(format: Format, receiver: impl Receiver + 'static) -> Self {
        Self { receiver: Box::new(receiver), format, known: BTreeSet::new() }
    }

    /// Returns the spans that were not known.
    fn new_spans(&self) -> Result<Vec<Span>> {
        let spans = self.receiver.spans()?.into_iter();
        Ok(spans.filter(|span| !self.known.contains(&span.id)).collect())
    }
}

fn main() -> ExitCode {
    cases::run(
        || {
            let mut pair = Pair::unobserved(Options::default(), Options::default())?;
            let outputs = vec![
                Output::new(Format::Otlp, Collector::start()?),
                Output::new(Format::Zipkin, Zipkin::start(pair.mesh.directory(), TRACE)?),
                Output::new(Format::Wavefront, SpanProxy::start()?),
            ];
            let urls: Vec<String> = outputs.iter().map(|output| output.receiver.url()).collect();
            let options: Vec<&str> = urls.iter().flat_map(|url| ["--emit", url]).collect();
            pair.observe_with(2, &options)?;
            Ok(Bed { pair, outputs })
        },
        cases![over_http1, kept_alive, over_http2],
    )
}

/// The header of a request whose span id is `number`.
fn header(number: u64, is_sampled: bool) -> String {
    format!("traceparent: 00-{TRACE:032x}-{number:016x}-{:02x}", u8::from(is_sampled))
}

/// The span id in a line's header, if it is sampled: an independent reading by splitting text.
fn sampled(line: &Line) -> Option<u64> {
    let parts: Vec<&str> = line.text("traceparent").split('-').collect();
    let [.., span, "01"] = &*parts else { return None };
    u64::from_str_radix(span, 16).ok()
}

/// Makes traffic, and compares the spans of every receiver with the lines of both logs.
fn check(bed: &mut Bed, requests: usize, traffic: impl FnOnce(&Pair) -> Result<()>) -> Result<String> {
    bed.pair.begin()?;
    traffic(&bed.pair)?;
    let (truth, lines) = bed.pair.truth(&Expected::both(requests))?;
    let mut expected = BTreeMap::<(bool, u64), &Line>::new();
    for line in lines.iter().filter(|line| line.is_end()) {
        if let Some(span) = sampled(line) {
            ensure!(expected.insert((line.text("direction") == "outbound", span), line).is_none(), "{line:?} twice");
        }
    }
    for output in &bed.outputs {
        let is_whole = wait_until("every sampled request is a span", SETTLE_TIMEOUT, || {
            let found = output.new_spans()?.len();
            if found < expected.len() { bail!("{found} spans of {}", expected.len()) } else { Ok(()) }
        });
        is_whole.with_context(|| {
            format!("{:?}: {:?}", output.format, bed.pair.observer().map(|observer| observer.log()))
        })?;
    }
    // One that is too many would come now.
    sleep(Duration::from_millis(600));
    let mut off = 0_f64;
    for Output { receiver, format, known } in &mut bed.outputs {
        let spans = receiver.spans()?;
        let found: Vec<&Span> = spans.iter().filter(|span| !known.contains(&span.id)).collect();
        let count = expected.len();
        ensure!(found.len() == count, "{format:?}: {} spans of {count} sampled requests", found.len());
        let mut left = expected.clone();
        for span in found {
            let line = left.remove(&(span.is_client, span.parent_id));
            let line = line.with_context(|| format!("{format:?}: nobody sent {span:?}"))?;
            let leg = if span.is_client { bed.pair.source() } else { bed.pair.destination() };
            let late = truth.late.get(&leg).map_or(Duration::ZERO, |late| late.times.ran + late.times.waited);
            let compared = compare(span, line, &leg, *format, late);
            off = off.max(compared.with_context(|| format!("{format:?}: {span:?}"))?);
        }
        known.extend(spans.iter().map(|span| span.id));
    }
    let all: BTreeSet<&BTreeSet<u64>> = bed.outputs.iter().map(|output| &output.known).collect();
    ensure!(all.len() == 1, "the receivers have spans of different ids");
    let formats = bed.outputs.len();
    Ok(format!("{} spans of {requests} requests in {formats} formats, {off:.3} ms off at most", expected.len()))
}

/// Compares a span with the line of its request; returns how far the durations are apart, milliseconds. Envoy ran or waited so
/// late.
fn compare(span: &Span, line: &Line, leg: &Leg, format: Format, late: Duration) -> Result<f64> {
    ensure!(span.trace_id == TRACE && span.id != 0 && span.id != span.parent_id, "its ids");
    let [sent, received] = if span.is_client {
        ["downstream_wire_received", "downstream_wire_sent"]
    } else {
        ["upstream_wire_sent", "upstream_wire_received"]
    };
    ensure!(span.service == format.service(leg.workload.as_str()), "the service of {leg}");
    let path = line.text("path").split('?').next().unwrap_or_default();
    let [path, called] = if line.outcome().grpc { ["", path] } else { [path, ""] };
    let (service, method) = called.strip_prefix('/').and_then(|call| call.split_once('/')).unwrap_or_default();
    for (name, value) in [
        ("http.request.method", line.text("method").to_owned()),
        ("url.path", path.to_owned()),
        ("rpc.service", service.to_owned()),
        ("rpc.method", method.to_owned()),
        ("http.response.status_code", line.code()),
        ("http.request.size", line.number(sent).to_string()),
        ("http.response.size", line.number(received).to_string()),
        ("rpc.grpc.status_code", line.outcome().grpc_status),
    ] {
        ensure!(span.attribute(name) == value, "{name} is {:?}, in the log {value:?}", span.attribute(name));
    }
    let code = line.number("code");
    ensure!(span.is_error == (code >= 500 || span.is_client && code >= 400), "its error for {code}");
    let (milliseconds, logged) = (span.milliseconds(), line.duration().as_secs_f64() * 1e3);
    let difference = (milliseconds - logged).abs();
    let allowed = (0.05 * logged).max(1.0) + (late + format.unit()).as_secs_f64() * 1e3;
    ensure!(difference <= allowed, "{milliseconds} ms, in the log {logged} ms");
    if span.is_client {
        // The destination's begins when Envoy has chosen an upstream.
        let (start, began) = (span.start_ns / 1_000, line.text("start_us").replace('.', "").parse::<u64>()?);
        ensure!(start.abs_diff(began) <= 5_000 + (late + format.unit()).as_micros() as u64, "in the log at {began}");
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_nanos();
    ensure!(u128::from(span.end_ns) <= now && now - u128::from(span.start_ns) < 120_000_000_000, "the time is {now}");
    Ok(difference)
}

fn over_http1(bed: &mut Bed) -> Result<String> {
    let paths = ["/delay/15", "/status/404", "/status/503?token=secret", "/bytes/3000", "/chunked/700", "/delay/70"];
    check(bed, 3 * paths.len(), |pair| {
        for (number, path) in (0..).zip(paths) {
            for (round, family) in [Family::V4, Family::V6, Family::V4].into_iter().enumerate() {
                let header = header(0x100 + 10 * number + round as u64, round < 2);
                pair.curl(&["-H", &header, &pair.url(family, path)])?;
            }
        }
        Ok(())
    })
}

fn kept_alive(bed: &mut Bed) -> Result<String> {
    check(bed, 40, |pair| {
        let mut connection = Connection::open(&pair.client, pair.web.address(Family::V4))?;
        for number in 0..40 {
            let header = header(0x1_000 + number, !number.is_multiple_of(3));
            connection.send(format!("GET /bytes/{number} HTTP/1.1\r\nhost: web\r\n{header}\r\n\r\n"))?;
            ensure!(connection.receive_response()?.status == 200);
        }
        Ok(())
    })
}

/// Half of the requests are gRPC's by their type.
fn over_http2(bed: &mut Bed) -> Result<String> {
    let pair = &bed.pair;
    let pages = pair.mesh.directory().join("pages");
    fs::create_dir_all(pages.join("shop.Cart"))?;
    for name in ["small", "shop.Cart/Add"] {
        fs::File::create(pages.join(name))?.set_len(10)?;
    }
    let body = pages.join("small").display().to_string();
    let mut command = pair.server.command(&tools::require("nghttpd")?.to_string_lossy())?;
    command.arg("--no-tls").arg("-d").arg(&pages).arg(pair.http2.target_port.to_string());
    let _server = Program::serve(&pair.server, pair.http2.target_port, &mut command)?;
    check(bed, 24, |pair| {
        let grpc = ["-H", "content-type: application/grpc", "-H", "te: trailers", "-d", &body];
        for number in 0..24 {
            let (path, others) = if number % 2 == 0 { ("/small", &[][..]) } else { ("/shop.Cart/Add", &grpc[..]) };
            let url = pair.http2.url(Family::V4, path);
            let header = header(0x2_000 + number, number % 4 != 3);
            let mut command = pair.client.command(&tools::require("nghttp")?.to_string_lossy())?;
            command.args(["-n", &format!("-H{header}")]).args(others).arg(&url);
            finish(&mut command, "")?;
        }
        Ok(())
    })
}
