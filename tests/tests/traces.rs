//! Exemplars of durations: the ids, codes and durations of sampled requests, against Envoy's access log.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use harness::{
    apps::{program::Program, raw::Connection},
    cases,
    envoy_access_log::Line,
    exposition::Exposition,
    mesh::Family,
    net::finish,
    pair::{Expected, Pair, SETTLE_TIMEOUT},
    sidecar::Options,
    tools,
    wait::wait_until,
};
use observer_common::histogram;

const BUCKETS: &str = "istio_request_duration_milliseconds_bucket{";
/// Delays of the application, each of another bucket and on most machines far from its bounds, milliseconds.
const DELAYS: [u64; 5] = [15, 35, 70, 160, 320];

fn main() -> ExitCode {
    cases::run(
        || {
            let mut pair = Pair::unobserved(Options::default(), Options::default())?;
            pair.observe_with(2, &["--traces"])?;
            Ok(pair)
        },
        cases![each_form_over_http1, kept_alive_and_pipelined, over_http2, grpc_by_content_type, off_by_default],
    )
}

/// Trace id and span id.
type Ids = (u128, u64);

/// An exemplar as the page has it.
#[derive(Clone, Debug)]
struct Exemplar {
    reporter: String,
    code: String,
    bound: f64,
    ids: Ids,
    milliseconds: f64,
    seconds: f64,
}

impl Exemplar {
    fn bucket(&self) -> u32 {
        bucket(self.bound)
    }

    fn parse(line: &str) -> Result<Self> {
        let (sample, rest) = line.split_once(" # {").context("no exemplar")?;
        let quoted = |text: &str, name: &str| -> Result<String> {
            let (_, value) = text.split_once(&format!("{name}=\"")).with_context(|| format!("no {name} in {text}"))?;
            Ok(value.split('"').next().unwrap_or_default().to_owned())
        };
        let (labels, numbers) = rest.split_once("} ").context("no value")?;
        let (milliseconds, seconds) = numbers.split_once(' ').context("no time")?;
        let bound = quoted(sample, "le")?;
        Ok(Self {
            reporter: quoted(sample, "reporter")?,
            code: quoted(sample, "response_code")?,
            bound: if bound == "+Inf" { f64::INFINITY } else { bound.parse()? },
            ids: (
                u128::from_str_radix(&quoted(labels, "trace_id")?, 16)?,
                u64::from_str_radix(&quoted(labels, "span_id")?, 16)?,
            ),
            milliseconds: milliseconds.parse()?,
            seconds: seconds.parse()?,
        })
    }
}

/// Scrapes OpenMetrics.
fn page(address: SocketAddr) -> Result<String> {
    let accept = "accept: application/openmetrics-text;version=1.0.0";
    finish(Command::new("curl").args(["-sS", "-m", "10", "-H", accept, &format!("http://{address}/metrics")]), "")
}

fn exemplars(pair: &Pair) -> Result<Vec<Exemplar>> {
    let page = page(pair.observer()?.address())?;
    let lines = page.lines().filter(|line| line.contains(" # {"));
    lines
        .map(|line| {
            ensure!(line.starts_with(BUCKETS), "an exemplar of another family: {line}");
            Exemplar::parse(line)
        })
        .collect()
}

/// The context in a line's headers, if it is sampled: an independent reading by splitting text.
fn context(line: &Line) -> Option<Ids> {
    let ids =
        |trace: &str, span: &str| Some((u128::from_str_radix(trace, 16).ok()?, u64::from_str_radix(span, 16).ok()?));
    let parent: Vec<&str> = line.text("traceparent").split('-').collect();
    if let ["00", trace, span, "01"] = &*parent {
        return ids(trace, span);
    }
    let single: Vec<&str> = line.text("b3").split('-').collect();
    if let [trace, span, "1" | "d", ..] = &*single {
        return ids(trace, span);
    }
    (line.text("b3_sampled") == "1").then(|| ids(line.text("b3_trace"), line.text("b3_span")))?
}

/// What a request's headers are to say.
#[derive(Clone, Copy, Debug)]
enum Form {
    Traceparent,
    Unsampled,
    Single,
    Short,
    Multi,
    None,
}

impl Form {
    fn lines(self, (trace, span): Ids) -> Vec<String> {
        match self {
            Self::Traceparent => vec![format!("traceparent: 00-{trace:032x}-{span:016x}-01")],
            Self::Unsampled => vec![format!("traceparent: 00-{trace:032x}-{span:016x}-00")],
            Self::Single => vec![format!("b3: {trace:032x}-{span:016x}-1")],
            Self::Short => vec![format!("b3: {:016x}-{span:016x}-d", trace as u64)],
            Self::Multi => vec![
                format!("X-B3-TraceId: {trace:032x}"),
                format!("X-B3-SpanId: {span:016x}"),
                "X-B3-Sampled: 1".to_owned(),
            ],
            Self::None => Vec::new(),
        }
    }
}

/// Requests of which one is a bucket's exemplar.
#[derive(Clone, Debug, Default)]
struct Candidates {
    /// The last request that certainly fell into the bucket, and those behind it that may have.
    ids: Vec<Ids>,
    /// Whether the first of them certainly did.
    is_filled: bool,
}

/// Returns the number of a duration's bucket.
fn bucket(milliseconds: f64) -> u32 {
    histogram::bucket(milliseconds as u64)
}

/// Makes traffic, and compares the exemplars with the lines of both logs: where a bucket is certain, its exemplar is the last
/// sampled request; each is a request with these ids, this code and this duration.
fn check(pair: &mut Pair, requests: usize, traffic: impl FnOnce(&Pair) -> Result<()>) -> Result<String> {
    pair.begin()?;
    let known: BTreeSet<Ids> = exemplars(pair)?.iter().map(|own| own.ids).collect();
    traffic(pair)?;
    let (truth, lines) = pair.truth(&Expected::both(requests))?;
    // For so long Envoy ran or waited for a processor between its time and the packet's.
    let late = |reporter: &str| {
        let leg = if reporter == "source" { pair.source() } else { pair.destination() };
        truth.late.get(&leg).map_or(0.0, |late| (late.times.ran + late.times.waited).as_secs_f64() * 1e3)
    };
    let allowed = |milliseconds: f64, reporter: &str| (0.05 * milliseconds).max(1.0) + late(reporter);
    let mut sampled = BTreeMap::<(String, Ids), (f64, String)>::new();
    let mut last = BTreeMap::<(String, String, u32), Candidates>::new();
    let mut unsampled = 0;
    for line in lines.iter().filter(|line| line.is_end()) {
        let reporter = if line.text("direction") == "inbound" { "destination" } else { "source" }.to_owned();
        let Some(ids) = context(line) else {
            unsampled += 1;
            continue;
        };
        let milliseconds = line.duration().as_secs_f64() * 1e3;
        let off = allowed(milliseconds, &reporter);
        let buckets = bucket((milliseconds - off).max(0.0))..=bucket(milliseconds + off);
        let is_certain = buckets.start() == buckets.end();
        for bucket in buckets {
            let candidates = last.entry((reporter.clone(), line.code(), bucket)).or_default();
            if is_certain {
                *candidates = Candidates { ids: vec![ids], is_filled: true };
            } else {
                candidates.ids.push(ids);
            }
        }
        sampled.insert((reporter, ids), (milliseconds, line.code()));
    }
    last.retain(|_, candidates| candidates.is_filled);
    let mut found = Vec::new();
    let is_whole = wait_until("each bucket has its last sampled request", SETTLE_TIMEOUT, || {
        found = exemplars(pair)?;
        let missing = last.iter().find(|((reporter, code, bucket), candidates)| {
            let is_here = |own: &&Exemplar| own.reporter == *reporter && own.code == *code && own.bucket() == *bucket;
            !found.iter().filter(is_here).any(|own| candidates.ids.contains(&own.ids))
        });
        missing.map_or(Ok(()), |missing| bail!("{missing:?} is missing"))
    });
    is_whole.with_context(|| format!("{found:#?} instead of {last:?}"))?;
    let own: Vec<&Exemplar> = found.iter().filter(|own| !known.contains(&own.ids)).collect();
    ensure!(sampled.is_empty() || own.len() >= 2, "{} exemplars of {} requests", own.len(), sampled.len());
    let mut off = 0_f64;
    for exemplar in &own {
        let key = (exemplar.reporter.clone(), exemplar.ids);
        let (milliseconds, code) = sampled.get(&key).with_context(|| format!("nobody sent {exemplar:?}"))?;
        let difference = (exemplar.milliseconds - milliseconds).abs();
        ensure!(difference <= allowed(*milliseconds, &exemplar.reporter), "{exemplar:?}, in the log {milliseconds} ms");
        ensure!(exemplar.code == *code, "{exemplar:?}, in the log {code}");
        ensure!(exemplar.milliseconds.floor() <= exemplar.bound, "{exemplar:?} in the wrong bucket");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs_f64();
        ensure!(exemplar.seconds <= now && exemplar.seconds > now - 120.0, "{exemplar:?} now {now}");
        off = off.max(difference);
    }
    Ok(format!("{} sampled, {unsampled} not, {} exemplars, {off:.3} ms off at most", sampled.len(), own.len()))
}

fn ids(number: u64) -> Ids {
    (0x4bf9_2f35_77b3_4da6_a3ce_929d_0000_0000 + u128::from(number), 0x00f0_67aa_0000_0000 + number)
}

fn each_form_over_http1(pair: &mut Pair) -> Result<String> {
    let forms = [Form::Traceparent, Form::Single, Form::Short, Form::Multi, Form::Traceparent];
    check(pair, 4 * DELAYS.len(), |pair| {
        for (number, (delay, form)) in (0..).zip(DELAYS.into_iter().zip(forms)) {
            for (round, (form, family)) in (0..).zip([
                (form, Family::V4),
                (form, Family::V6),
                (Form::Unsampled, Family::V4),
                (Form::None, Family::V6),
            ]) {
                let lines = form.lines(ids(100 + 10 * number + round));
                let mut arguments: Vec<&str> = lines.iter().flat_map(|line| ["-H", line]).collect();
                let url = pair.url(family, &format!("/delay/{delay}"));
                arguments.push(&url);
                ensure!(pair.curl(&arguments)? == "200");
            }
        }
        Ok(())
    })
}

/// Of several requests in one packet each has its own.
fn kept_alive_and_pipelined(pair: &mut Pair) -> Result<String> {
    check(pair, 2 * DELAYS.len(), |pair| {
        let mut connection = Connection::open(&pair.client, pair.web.address(Family::V4))?;
        for (number, delay) in (0..).zip(DELAYS) {
            let mut requests = String::new();
            for (form, number) in [(Form::Traceparent, 200 + 2 * number), (Form::Unsampled, 201 + 2 * number)] {
                let lines = form.lines(ids(number)).join("\r\n");
                requests.push_str(&format!("GET /delay/{delay} HTTP/1.1\r\nhost: web\r\n{lines}\r\n\r\n"));
            }
            connection.send(requests)?;
            for _ in 0..2 {
                ensure!(connection.receive_response()?.status == 200);
            }
        }
        Ok(())
    })
}

fn nghttpd(pair: &Pair) -> Result<Program> {
    let pages = pair.mesh.directory().join("pages");
    fs::create_dir_all(&pages)?;
    fs::File::create(pages.join("small"))?.set_len(10)?;
    let mut command = pair.server.command(&tools::require("nghttpd")?.to_string_lossy())?;
    command.arg("--no-tls").arg("-d").arg(&pages).arg(pair.http2.target_port.to_string());
    Program::serve(&pair.server, pair.http2.target_port, &mut command)
}

/// Sends two requests per form on a connection of their own, of which the second has the same headers, as indices. The
/// sidecar's connection to the application is the same for all.
fn send_pairs(pair: &Pair, first: u64, forms: &[Form], others: &[&str]) -> Result<()> {
    let url = pair.http2.url(Family::V4, "/small");
    for (number, form) in (first..).zip(forms) {
        let lines = form.lines(ids(number));
        let mut command = pair.client.command(&tools::require("nghttp")?.to_string_lossy())?;
        command.args(["-n", "-m", "2"]).args(others).args(lines.iter().map(|line| format!("-H{line}"))).arg(&url);
        finish(&mut command, "")?;
    }
    Ok(())
}

fn over_http2(pair: &mut Pair) -> Result<String> {
    let _server = nghttpd(pair)?;
    let mut summary = Vec::new();
    for (number, form) in (0..).zip([Form::Traceparent, Form::Single, Form::Short, Form::Multi]) {
        let forms = [form, Form::Unsampled, Form::None, form];
        let said = check(pair, 2 * forms.len(), |pair| send_pairs(pair, 1_000 + 100 * number, &forms, &[]))?;
        summary.push(format!("{form:?}: {said}"));
    }
    Ok(summary.join("; "))
}

fn grpc_by_content_type(pair: &mut Pair) -> Result<String> {
    let _server = nghttpd(pair)?;
    let forms = [Form::Traceparent; 3];
    let body = pair.mesh.directory().join("body");
    fs::write(&body, "x")?;
    let body = body.display().to_string();
    let others = ["-H", "content-type: application/grpc", "-H", "te: trailers", "-d", &body];
    check(pair, 2 * forms.len(), |pair| send_pairs(pair, 2_000, &forms, &others))
}

fn off_by_default(pair: &mut Pair) -> Result<String> {
    pair.observer = None;
    pair.observe(2)?;
    let lines = Form::Traceparent.lines(ids(3_000));
    let observer = pair.observer()?;
    let url = pair.url(Family::V4, "/delay/15");
    ensure!(pair.curl(&["-H", &lines[0], &url])? == "200");
    let counted = |page: &Exposition| page.sum("istio_requests_total", &[]).unwrap_or(0.0) >= 2.0;
    observer.wait(Duration::from_secs(10), counted)?;
    ensure!(!page(observer.address())?.contains(" # {"), "an exemplar without --traces");
    Ok("no exemplar".to_owned())
}
