//! Kernel time of the eBPF programs by the kernel's own count (`BPF_ENABLE_STATS`), one sidecar at a time.
//!
//! They are compared with a program of two instructions on the same cgroup under the same load, while the observer is
//! stopped. The empty program's time is the cost of the call and of the statistics.

use std::{collections::BTreeMap, fs::File};

use anyhow::{Context as _, Result, ensure};

use crate::{
    Options,
    bpf::{self, EmptyPair, Runs, Statistics},
    load::SHORTEST_PADDING,
    protocol::BODY,
    protocol::{Application, Protocol},
    report::{Row, Target},
    spread::Spread,
    testbed::{SIDES, Side, Testbed},
};

const REQUEST_HEADERS: f64 = 400.0;
const RESPONSE_HEADERS: f64 = 250.0;
/// Prefix of the observer's program names in the kernel.
pub(crate) const OURS: &str = "mesh_";
/// The packet programs, in the order of [`Costs`].
const PACKET_PROGRAMS: [&str; 2] = ["mesh_ingress", "mesh_egress"];

/// Measures a packet program against the empty one, and all programs per request, on both sidecars.
pub(crate) fn time(options: &Options, protocol: Protocol) -> Result<Vec<Row>> {
    let mut packets = Vec::new();
    let mut requests = Vec::new();
    for side in SIDES {
        let measured = Measured::take(options, protocol, side)?;
        packets.extend([0, 1].map(|way| measured.a_packet(side, way)));
        requests.push(measured.a_request(side));
    }
    Ok(packets.into_iter().chain(requests).collect())
}

/// Targets, and the number of measurements.
struct Terms {
    /// A packet program / the empty one.
    packet: f64,
    /// Microseconds per request.
    request: f64,
    /// Rounds of observed, empty, empty, observed.
    rounds: usize,
}

fn terms(protocol: Protocol) -> Terms {
    match protocol {
        Protocol::Http1 => Terms { packet: 4.0, request: 2.0, rounds: 5 },
        Protocol::Http2 | Protocol::Grpc => Terms { packet: 5.0, request: 2.5, rounds: 2 },
    }
}

/// Nanoseconds per run of the empty program, incoming and outgoing.
pub(crate) type Costs = [f64; 2];

/// Measurements of one sidecar.
struct Measured {
    protocol: Protocol,
    /// Description of the share of requests with a recognised status.
    recognised: String,
    /// Observed intervals, each with the empty program's costs in its neighbour.
    intervals: Vec<(Interval, Costs)>,
    /// Neighbouring intervals, both of the empty program.
    controls: Vec<[Costs; 2]>,
}

impl Measured {
    fn take(options: &Options, protocol: Protocol, side: Side) -> Result<Self> {
        let mut testbed = Testbed::new(protocol)?;
        testbed.observe(side.observed)?;
        let padding = fit_headers(&testbed, side, options)?;
        let cgroup = bpf::open(testbed.sidecar(side).cgroup())?;
        let _statistics = Statistics::enable()?;
        let mut measured = Self { protocol, recognised: String::new(), intervals: Vec::new(), controls: Vec::new() };
        for _ in 0..terms(protocol).rounds {
            testbed.observe(side.observed)?;
            let first = interval(&testbed, side, &cgroup, padding, options)?;
            testbed.unobserve()?;
            let [second, third] = empty_intervals(&testbed, &cgroup, padding, options)?;
            testbed.observe(side.observed)?;
            let fourth = interval(&testbed, side, &cgroup, padding, options)?;
            measured.intervals.extend([(first, second), (fourth, third)]);
            measured.controls.push([second, third]);
        }
        measured.recognised = testbed.recognised();
        Ok(measured)
    }

    /// Returns the row of the packet program of one direction.
    fn a_packet(&self, side: Side, way: usize) -> Row {
        let program = PACKET_PROGRAMS[way];
        let ours = self.spread(|interval, _| interval.ours[program].each());
        let empty = self.spread(|_, empty| empty[way]);
        let ratio = self.spread(|interval, empty| interval.ours[program].each() / empty[way]);
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let requests = self.spread(|interval, _| interval.requests / interval.ours[program].count as f64).median;
        let controls: Vec<f64> = self.controls.iter().map(|[one, other]| one[way] / other[way]).collect();
        let title = format!("{}: {program} / the empty program, {}'s sidecar", self.protocol.name(), side.name);
        Row::new(title, Target::AtMost(terms(self.protocol).packet), "", ratio)
            .with_control(Spread::of(controls))
            .note(format!("{ours} ns a run, the empty program {empty} ns; statistics' own cost is in both"))
            .note(format!("{requests:.1} requests a run, its encrypted leg's packets included"))
    }

    /// Returns the row of all programs together.
    fn a_request(&self, side: Side) -> Row {
        let (net, gross) = (self.spread(Interval::net), self.spread(|interval, _| interval.gross()));
        let [request, response] =
            [0, 1].map(|index| self.spread(|interval, _| interval.mean_bytes[index]).median.round());
        let title = format!("{}: kernel time a request, {}'s sidecar", self.protocol.name(), side.name);
        let mut row = Row::new(title, Target::AtMost(terms(self.protocol).request), "µs", net)
            .note(format!(
                "gross {gross} µs; taken off is the empty program's time for each run, which is the statistics' own cost \
                 and the call"
            ))
            .note(format!(
                "on the leg: requests of {request} bytes, responses of {response} bytes with {BODY} of body; only this \
                 sidecar is observed; its programs also see its encrypted leg"
            ))
            .note(self.protocol.ends())
            .note(&self.recognised);
        row.details.insert("gross_us".to_owned(), gross.median);
        for name in self.programs() {
            let of = |interval: &Interval| interval.ours.get(&name).copied().unwrap_or_default();
            #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
            let runs = self.spread(|interval, _| of(interval).count as f64 / interval.requests).median;
            if runs >= 0.01 {
                let each = self.spread(|interval, _| of(interval).each()).median;
                row.details.insert(format!("{name}_runs_a_request"), runs);
                row.details.insert(format!("{name}_ns_a_run"), each);
                row = row.note(format!("{name}: {runs:.2} runs a request of {each:.0} ns"));
            }
        }
        row
    }

    fn programs(&self) -> Vec<String> {
        self.intervals.first().map(|(interval, _)| interval.ours.keys().cloned().collect()).unwrap_or_default()
    }

    fn spread(&self, of: impl Fn(&Interval, &Costs) -> f64) -> Spread {
        Spread::of(self.intervals.iter().map(|(interval, empty)| of(interval, empty)).collect::<Vec<_>>())
    }
}

/// Requests, and runs of the programs in the same time.
struct Interval {
    requests: f64,
    ours: BTreeMap<String, Runs>,
    /// Mean bytes of a request and of a response on the leg.
    mean_bytes: [f64; 2],
}

impl Interval {
    /// Returns the microseconds per request, including the cost of the statistics.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    fn gross(&self) -> f64 {
        self.ours.values().map(|runs| runs.nanoseconds as f64).sum::<f64>() / self.requests / 1000.0
    }

    /// Returns the microseconds per request without the cost of the statistics.
    fn net(&self, empty: &Costs) -> f64 {
        net(&self.ours, empty) / self.requests / 1000.0
    }
}

/// Returns the nanoseconds of these runs without the cost of the statistics.
#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
pub(crate) fn net(ours: &BTreeMap<String, Runs>, empty: &Costs) -> f64 {
    let own = |(name, runs): (&String, &Runs)| {
        let way = usize::from(name == PACKET_PROGRAMS[1]);
        runs.nanoseconds as f64 - runs.count as f64 * empty[way]
    };
    ours.iter().map(own).sum()
}

/// Returns the nanoseconds per run of the empty programs between two readings.
pub(crate) fn costs(before: [Runs; 2], after: [Runs; 2]) -> Costs {
    [0, 1].map(|way| after[way].since(before[way]).each())
}

fn interval(testbed: &Testbed, side: Side, cgroup: &File, padding: usize, options: &Options) -> Result<Interval> {
    let (bytes, before) = (Sizes::of(testbed, side)?, bpf::runs_of(cgroup, OURS)?);
    let answers = testbed.saturate(padding, options.time)?;
    let (after, mean_bytes) = (bpf::runs_of(cgroup, OURS)?, Sizes::of(testbed, side)?.mean_since(&bytes));
    let ours = bpf::since(after, &before);
    for program in PACKET_PROGRAMS {
        let runs =
            ours.get(program).with_context(|| format!("{program} is not attached to the {}'s sidecar", side.name))?;
        ensure!(runs.count > 0, "{program} did not run under load");
    }
    Ok(Interval { requests: answers.requests, ours, mean_bytes })
}

/// Measures two intervals with only the empty program on the cgroup.
fn empty_intervals(testbed: &Testbed, cgroup: &File, padding: usize, options: &Options) -> Result<[Costs; 2]> {
    let empty = EmptyPair::attach(cgroup)?;
    let mut intervals = [Costs::default(); 2];
    for interval in &mut intervals {
        let before = empty.runs()?;
        testbed.saturate(padding, options.time)?;
        *interval = costs(before, empty.runs()?);
    }
    Ok(intervals)
}

/// Pads headers of HTTP/1.1 on the observed leg to the length of the target, whatever the proxies add to them; returns
/// what the client has to add. Headers of HTTP/2 are not padded.
fn fit_headers(testbed: &Testbed, side: Side, options: &Options) -> Result<usize> {
    let Application::Own(app) = &testbed.app else { return Ok(0) };
    let before = Sizes::of(testbed, side)?;
    testbed.saturate(0, options.time)?;
    let [request, response] = Sizes::of(testbed, side)?.mean_since(&before);
    #[expect(clippy::cast_precision_loss, reason = "small")]
    let response_headers = response - BODY as f64;
    app.pad(missing(response_headers, RESPONSE_HEADERS)?);
    missing(request, REQUEST_HEADERS)
}

/// Returns the bytes to add, 0 if they are too few for a header.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small and positive")]
fn missing(length: f64, wanted: f64) -> Result<usize> {
    let missing = (wanted - length).round();
    ensure!(missing >= 0.0, "headers of {length:.0} bytes on the leg are longer than the {wanted} that are wanted");
    Ok(Some(missing as usize).filter(|missing| *missing >= SHORTEST_PADDING).unwrap_or(0))
}

/// Requests of a leg, request bytes and response bytes so far, as the observer counts them.
struct Sizes([f64; 3]);

impl Sizes {
    fn of(testbed: &Testbed, side: Side) -> Result<Self> {
        let scrape = testbed.observer()?.scrape()?;
        let names = ["istio_requests_total", "istio_request_bytes_sum", "istio_response_bytes_sum"];
        Ok(Self(names.map(|name| scrape.sum(name, &[("reporter", side.reporter)]).unwrap_or(0.0))))
    }

    fn mean_since(&self, before: &Self) -> [f64; 2] {
        let [requests, sent, received] = [0, 1, 2].map(|index| self.0[index] - before.0[index]);
        [sent / requests, received / requests]
    }
}
