//! Reading + previous Reading + identity -> Snapshot -> text. Pure: no I/O, no clock.
//!
//! [`Model::update`] takes what was read and yields an immutable [`Snapshot`]: families of points, as they are exposed.
//! Scrapes and reports may interleave: only a round that closes an interval touches the percentiles.

#![forbid(unsafe_code)]

pub mod cardinality;
pub mod catalogue;
pub mod control_plane;
pub mod counter;
pub mod encode;
pub mod exposition;
#[cfg(any(test, feature = "fixture"))]
pub mod fixture;
pub mod histogram;
pub mod identity;
pub mod labels;
pub mod lateness;
pub mod live;
pub mod page;
mod process;
pub mod reading;
pub mod remembered;
pub mod series_key;

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use observer_common::{
    DURATION, Direction, Protocol, REQUEST_BYTES, RESPONSE_BYTES, SeriesKey,
    health::{self, Group},
    histogram::BUCKETS,
};

use self::{
    cardinality::{Accounts, Moment},
    catalogue::{Family, Origin},
    control_plane::ControlPlane,
    counter::{Figures, TcpFigures},
    histogram::{HttpFigures, PackedCells},
    labels::{Directory, GatewayLabels, MeshLabels, Peers},
    lateness::Lateness,
};
use crate::{
    identity::{Component, Role, Sidecar, SidecarId},
    reading::{KernelReading, ProgramReading, Reading, SeriesReading},
};

/// What one round knows.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// What was read.
    pub reading: &'a Reading,
    /// Sidecars and gateways that run.
    pub running: &'a [Arc<Sidecar>],
    /// Those that ended and whose figures or addresses may still matter, the last one first.
    pub ended: &'a [Arc<Sidecar>],
    /// Control-plane processes that run.
    pub components: &'a [Arc<Component>],
    /// Peers known otherwise; compared by pointer, so a change needs a new `Arc`.
    pub peers: &'a Arc<Peers>,
    /// The observer's own figures.
    pub own: &'a Own,
    /// Whether this round ends a reporting interval: percentiles are then over what fell since the last such round.
    pub closes_interval: bool,
}

/// The observer's own figures, cumulative unless said otherwise.
#[derive(Clone, Debug, Default)]
pub struct Own {
    /// User and system CPU time.
    pub cpu: Option<Duration>,
    /// Resident memory now.
    pub resident_bytes: Option<u64>,
    /// Sidecars found now whose programs could not be attached.
    pub unattached: Option<u64>,
    /// How late the rounds that close an interval began; empty where nothing closes one.
    pub lateness: Lateness,
    /// Every emitter.
    pub emitters: Vec<EmitterFigures>,
    /// The metrics page, if it is served.
    pub scrapes: Option<ScrapeFigures>,
}

/// How one emitter fares, cumulative.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EmitterFigures {
    /// Its name.
    pub name: String,
    /// Reports that wait now.
    pub queued_reports: u64,
    /// Points and bytes that wait on disk now, where some may.
    pub on_disk: Option<(u64, u64)>,
    /// Points the receiver took.
    pub sent: u64,
    /// Points that break the format's rules, by reason.
    pub rejected: Vec<(&'static str, u64)>,
    /// Points that the configured filters keep back.
    pub filtered: u64,
    /// Points given up, by reason.
    pub dropped: Vec<(&'static str, u64)>,
    /// Reports dropped unsent, by reason.
    pub reports_dropped: Vec<(&'static str, u64)>,
    /// Failed sends, by kind.
    pub errors: Vec<(&'static str, u64)>,
}

/// How the metrics page fares, cumulative.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrapeFigures {
    /// Requests by outcome.
    pub scrapes: Vec<(&'static str, u64)>,
    /// Time spent in producing pages.
    pub busy: Duration,
    /// Connections closed because too many were open.
    pub refused: u64,
}

/// Everything known of the past.
#[derive(Debug)]
pub struct Model {
    started: SystemTime,
    /// Since when the kernel's counters go on.
    counting_since: SystemTime,
    before: SystemTime,
    closed: Duration,
    retention: Duration,
    known: Vec<Arc<Sidecar>>,
    peers: Arc<Peers>,
    directory: Directory,
    http: Accounts<SeriesKey, MeshLabels, HttpFigures>,
    tcp: Accounts<SeriesKey, MeshLabels, TcpFigures>,
    encrypted: Accounts<SeriesKey, GatewayLabels, TcpFigures>,
    collectors: BTreeMap<&'static str, Collector>,
}

#[derive(Debug, Default)]
struct Collector {
    succeeded: u64,
    failed: u64,
    busy: Duration,
}

impl Model {
    /// A model without a past. `started` is when the kernel programs were loaded, `retention` how long an idle series is
    /// exposed after its sidecar is gone ([`cardinality::DEFAULT_RETENTION`]).
    #[must_use]
    pub fn new(started: SystemTime, retention: Duration) -> Self {
        let peers = Arc::new(Peers::default());
        Self {
            started,
            counting_since: started,
            before: started,
            closed: Duration::ZERO,
            retention,
            known: Vec::new(),
            directory: Directory::new([].iter(), &peers),
            peers,
            http: Accounts::default(),
            tcp: Accounts::default(),
            encrypted: Accounts::default(),
            collectors: BTreeMap::new(),
        }
    }

    /// Whether something must be remembered anew before the last round is told.
    pub fn take_changed(&mut self) -> bool {
        let Self { http, tcp, encrypted, .. } = self;
        http.take_changed() | tcp.take_changed() | encrypted.take_changed()
    }

    /// Takes one round and says how everything stands. Without a kernel reading the figures of the last one stand.
    pub fn update(&mut self, inputs: Inputs<'_>) -> Arc<Snapshot> {
        let Inputs { reading, running, ended, components, peers, own, closes_interval } = inputs;
        let mut round = self.begin(reading.at, running, ended, peers, closes_interval);
        for series in reading.kernel.iter().flat_map(|kernel| &kernel.series) {
            round.series(series);
        }
        round.finish(reading, components, own)
    }

    /// Begins a round whose series are handed over one by one, so that they need never be in memory together.
    /// The arguments are those of [`Inputs`].
    pub fn begin<'a>(
        &'a mut self,
        at: SystemTime,
        running: &'a [Arc<Sidecar>],
        ended: &[Arc<Sidecar>],
        peers: &Arc<Peers>,
        closes_interval: bool,
    ) -> Round<'a> {
        let at = Moment { now: at, before: self.before };
        self.learn(running, ended, peers, at);
        self.http.begin(closes_interval);
        self.tcp.begin(false);
        self.encrypted.begin(false);
        let alive = running.iter().map(|sidecar| sidecar.id).collect();
        Round { model: self, at, running, alive, closes_interval, series: 0 }
    }

    /// Builds the directory anew when somebody came, went or became known, and moves series to their new labels.
    fn learn(&mut self, running: &[Arc<Sidecar>], ended: &[Arc<Sidecar>], peers: &Arc<Peers>, at: Moment) {
        let sidecars = running.iter().chain(ended);
        let same = self.known.len() == running.len() + ended.len()
            && self.known.iter().zip(sidecars.clone()).all(|(old, new)| Arc::ptr_eq(old, new))
            && Arc::ptr_eq(&self.peers, peers);
        if same {
            return;
        }
        self.directory = Directory::new(sidecars.clone(), peers);
        self.known = sidecars.cloned().collect();
        self.peers = peers.clone();
        let directory = &self.directory;
        let known = |key: &SeriesKey| directory.knows(key.sidecar);
        self.http.relabel(at, |key| known(key).then(|| directory.resolve(key)));
        self.tcp.relabel(at, |key| known(key).then(|| directory.resolve(key)));
        self.encrypted.relabel(at, |key| known(key).then(|| directory.gateway(key)));
    }
}

/// A round in progress. Dropped without [`Round::finish`] it leaves the figures as far as they were handed over.
#[derive(Debug)]
pub struct Round<'a> {
    model: &'a mut Model,
    at: Moment,
    running: &'a [Arc<Sidecar>],
    alive: HashSet<SidecarId>,
    closes_interval: bool,
    series: u64,
}

impl Round<'_> {
    /// Takes one series; each at most once a round.
    pub fn series(&mut self, reading: &SeriesReading) {
        let Model { directory, http, tcp, encrypted, .. } = &mut *self.model;
        let (key, at) = (&reading.key, self.at);
        // The overflow series belongs to nobody who could go, and counts both HTTP and TCP.
        let overflow = key.sidecar == 0;
        let alive = overflow || self.alive.contains(&key.sidecar);
        self.series += u64::from(!overflow);
        if key.protocol == Protocol::ENCRYPTED && !overflow {
            take(encrypted, reading, alive, at, || directory.gateway(key));
            return;
        }
        if key.protocol == Protocol::TCP || overflow {
            take(tcp, reading, alive, at, || directory.resolve(key));
        }
        if key.protocol != Protocol::TCP || overflow {
            take(http, reading, alive, at, || directory.resolve(key));
            if self.closes_interval {
                http.cells(key, reading.histograms.each_ref().map(|histogram| histogram.cells.as_slice()));
            }
        }
    }

    /// Ends the round with all else that was read; the series in `reading` are not looked at. Without a kernel reading
    /// the series that were not handed over stand as they were.
    #[must_use]
    pub fn finish(self, reading: &Reading, components: &[Arc<Component>], own: &Own) -> Arc<Snapshot> {
        let (model, now) = (&mut *self.model, self.at.now);
        if reading.kernel.is_some() {
            model.http.end(now, model.retention);
            model.tcp.end(now, model.retention);
            model.encrypted.end(now, model.retention);
            model.before = now;
        }
        for outcome in &reading.outcomes {
            let collector = model.collectors.entry(outcome.collector).or_default();
            collector.busy += outcome.duration;
            match outcome.error {
                None => collector.succeeded += 1,
                Some(_) => collector.failed += 1,
            }
        }
        let interval = self.closes_interval.then(|| {
            let length = reading.steady.saturating_sub(model.closed);
            model.closed = reading.steady;
            length
        });
        let (http, tcp) = (series(&model.http), series(&model.tcp));
        let has_messages = |series: &Series<HttpFigures>| {
            series.labels.is_grpc() || Direction::BOTH.into_iter().any(|way| series.figures.messages(way) > 0)
        };
        let grpc = http.iter().filter(|series| has_messages(series)).cloned().collect();
        let mut control_plane = ControlPlane::new(&reading.control_plane);
        let own = self.own(reading, components, own, &mut control_plane);
        Arc::new(Snapshot {
            at: now,
            steady: reading.steady,
            began: self.model.started,
            interval,
            http,
            grpc,
            tcp,
            own,
            control_plane,
        })
    }

    fn own(
        &self,
        reading: &Reading,
        components: &[Arc<Component>],
        own: &Own,
        control_plane: &mut ControlPlane,
    ) -> Vec<OwnFamily> {
        let Model { http, tcp, encrypted, .. } = &*self.model;
        let mut families = Families { created: self.model.started, families: Vec::new() };
        self.own_process(own, &mut families);
        if let Some(kernel) = &reading.kernel {
            own_programs(&kernel.programs, &mut families);
            families.created = self.model.counting_since;
            own_kernel(kernel, &mut families);
            families.add(&catalogue::SERIES_IN_USE).point(&[], self.series);
            families.add(&catalogue::SERIES_CAPACITY).point(&[], kernel.series_capacity);
        }
        let exposed = http.exposed().count() + tcp.exposed().count();
        families.add(&catalogue::SERIES_EXPOSED).point(&[], exposed as u64);
        families.add(&catalogue::SERIES_RETIRED).point(&[], http.retired() + tcp.retired());
        families.add(&catalogue::FIGURE_RESETS).point(&[], http.resets() + tcp.resets() + encrypted.resets());
        families.created = self.model.started;
        let runs = families.add(&catalogue::COLLECTOR_RUNS);
        for (name, collector) in &self.model.collectors {
            runs.point(&[name, "ok"], collector.succeeded);
            runs.point(&[name, "error"], collector.failed);
        }
        let seconds = families.add(&catalogue::COLLECTOR_SECONDS);
        for (name, collector) in &self.model.collectors {
            seconds.point(&[name], collector.busy);
        }
        if own.lateness.count() > 0 {
            families.add(&catalogue::TICK_LATENESS).point(&[], own.lateness.clone());
        }
        own_outputs(own, &mut families);
        process::families(&reading.processes, self.running, components, &mut families);
        control_plane::own(&reading.control_plane, control_plane, &mut families);
        families.outdo(control_plane);
        let gateways = families.add(&catalogue::GATEWAY_ENCRYPTED);
        for account in encrypted.exposed() {
            let GatewayLabels { workload, namespace, cluster, port } = &*account.labels;
            let port = port.to_string();
            gateways.since(account.created);
            gateways.point(&[workload, namespace, cluster, &port, "opened"], account.total.opened);
            gateways.point(&[workload, namespace, cluster, &port, "closed"], account.total.closed);
        }
        families.families.retain(|family| !family.points.is_empty());
        families.families
    }

    fn own_process(&self, own: &Own, families: &mut Families) {
        families.add(&catalogue::BUILD_INFO).point(&[env!("CARGO_PKG_VERSION")], 1);
        if let Some(cpu) = own.cpu {
            families.add(&catalogue::CPU_SECONDS).point(&[], cpu);
        }
        if let Some(bytes) = own.resident_bytes {
            families.add(&catalogue::RESIDENT_MEMORY).point(&[], bytes);
        }
        let sidecars = families.add(&catalogue::SIDECARS);
        let roles = [(Role::Sidecar, "sidecar"), (Role::TproxySidecar, "tproxy_sidecar"), (Role::Gateway, "gateway")];
        for (role, name) in roles {
            sidecars.point(&[name], self.running.iter().filter(|sidecar| sidecar.role == role).count() as u64);
        }
        if let Some(unattached) = own.unattached {
            families.add(&catalogue::UNATTACHED).point(&[], unattached);
        }
    }
}

/// Takes one series into its accounts; series that count nothing have no account.
fn take<L: Eq + std::hash::Hash, F: Figures>(
    accounts: &mut Accounts<SeriesKey, L, F>,
    reading: &SeriesReading,
    alive: bool,
    at: Moment,
    labels: impl FnOnce() -> L,
) {
    if accounts.is_unchanged(&reading.key, |figures| figures.equals(reading)) {
        accounts.keep(&reading.key, alive);
        return;
    }
    let figures = F::of(reading);
    if !figures.is_zero() {
        accounts.feed(reading.key, Arc::new(figures), alive, at, labels);
    }
}

fn series<F: Figures>(accounts: &Accounts<SeriesKey, MeshLabels, F>) -> Vec<Series<F>> {
    accounts
        .exposed()
        .map(|account| Series {
            labels: account.labels.clone(),
            figures: account.total.clone(),
            recent: account.recent.clone(),
            created: account.created,
        })
        .collect()
}

/// Programs are the process's own, whatever their maps have from before.
fn own_programs(programs: &[ProgramReading], families: &mut Families) {
    let links = families.add(&catalogue::PROGRAM_LINKS);
    for program in programs {
        links.point(&[program.name], program.links);
    }
    // The kernel counts runs only while `kernel.bpf_stats_enabled` is set; never counted is not 0.
    let counted = || programs.iter().filter(|program| program.runs > 0);
    let runs = families.add(&catalogue::PROGRAM_RUNS);
    counted().for_each(|program| runs.point(&[program.name], program.runs));
    let seconds = families.add(&catalogue::PROGRAM_SECONDS);
    counted().for_each(|program| seconds.point(&[program.name], program.run_time));
}

fn own_kernel(kernel: &KernelReading, families: &mut Families) {
    for (group, family) in [
        (Group::Connections, &catalogue::CONNECTIONS),
        (Group::Requests, &catalogue::PARSED_REQUESTS),
        (Group::Desyncs, &catalogue::LOST_SYNC),
        (Group::Uncounted, &catalogue::LOSSES),
        (Group::Audit, &catalogue::AUDIT_BYTES),
    ] {
        let family = families.add(family);
        for (counter, value) in &kernel.health {
            let of_its_own = matches!(counter, health::Counter::AuditConnections | health::Counter::AuditEmpty);
            if counter.group() == group && !of_its_own {
                family.point(&[counter.label()], *value);
            }
        }
    }
    for (counter, value) in &kernel.health {
        match counter {
            health::Counter::AuditConnections => families.add(&catalogue::AUDIT_CONNECTIONS).point(&[], *value),
            health::Counter::AuditEmpty => families.add(&catalogue::AUDIT_EMPTY).point(&[], *value),
            health::Counter::LossSeries => families.add(&catalogue::SERIES_OVERFLOWED).point(&[], *value),
            _ => {}
        }
    }
}

fn own_outputs(own: &Own, families: &mut Families) {
    let queue = families.add(&catalogue::EMITTER_QUEUE);
    own.emitters.iter().for_each(|emitter| queue.point(&[&emitter.name], emitter.queued_reports));
    let on_disk = || own.emitters.iter().filter_map(|emitter| Some((&emitter.name, emitter.on_disk?)));
    let points = families.add(&catalogue::EMITTER_DISK_POINTS);
    on_disk().for_each(|(name, (waiting, _))| points.point(&[name], waiting));
    let bytes = families.add(&catalogue::EMITTER_DISK_BYTES);
    on_disk().for_each(|(name, (_, waiting))| bytes.point(&[name], waiting));
    let sent = families.add(&catalogue::EMITTER_SENT);
    own.emitters.iter().for_each(|emitter| sent.point(&[&emitter.name], emitter.sent));
    let filtered = families.add(&catalogue::EMITTER_FILTERED);
    own.emitters.iter().for_each(|emitter| filtered.point(&[&emitter.name], emitter.filtered));
    type ByReason = fn(&EmitterFigures) -> &Vec<(&'static str, u64)>;
    let by_reason: [(_, ByReason); 4] = [
        (&catalogue::EMITTER_REJECTED, |emitter| &emitter.rejected),
        (&catalogue::EMITTER_DROPPED, |emitter| &emitter.dropped),
        (&catalogue::EMITTER_REPORTS_DROPPED, |emitter| &emitter.reports_dropped),
        (&catalogue::EMITTER_ERRORS, |emitter| &emitter.errors),
    ];
    for (family, figures) in by_reason {
        let family = families.add(family);
        for emitter in &own.emitters {
            for (reason, value) in figures(emitter) {
                family.point(&[&emitter.name, reason], *value);
            }
        }
    }
    if let Some(figures) = &own.scrapes {
        let scrapes = families.add(&catalogue::SCRAPES);
        figures.scrapes.iter().for_each(|(outcome, value)| scrapes.point(&[outcome], *value));
        families.add(&catalogue::SCRAPE_SECONDS).point(&[], figures.busy);
        families.add(&catalogue::SCRAPE_REFUSED).point(&[], figures.refused);
    }
}

/// Istio's families of the data plane, which come first in a [`Snapshot`].
pub const MESH_FAMILIES: usize = 10;

/// How everything stands at one instant. Shares its figures with the model and with other snapshots.
#[derive(Debug)]
pub struct Snapshot {
    /// When it was read, by the wall clock.
    pub at: SystemTime,
    /// The same as time since the observer began, by a clock that nobody sets.
    pub steady: Duration,
    /// When this process began to observe; totals may be older.
    pub began: SystemTime,
    /// Length of the reporting interval that this snapshot closes, if it closes one.
    pub interval: Option<Duration>,
    /// HTTP and gRPC, one entry a label set.
    pub http: Vec<Series<HttpFigures>>,
    /// Those of `http` that are gRPC.
    pub grpc: Vec<Series<HttpFigures>>,
    /// TCP, one entry a label set.
    pub tcp: Vec<Series<TcpFigures>>,
    own: Vec<OwnFamily>,
    /// What the control plane's pages said last; its families come behind the others.
    pub control_plane: ControlPlane,
}

/// One label set of Istio's families with its totals.
#[derive(Clone, Debug)]
pub struct Series<F> {
    /// The labels.
    pub labels: Arc<MeshLabels>,
    /// Totals, cumulative.
    pub figures: Arc<F>,
    /// Values of the last reporting interval by cell, if there were any.
    pub recent: Option<Arc<PackedCells>>,
    /// When it was 0.
    pub created: SystemTime,
}

/// A family with its points.
#[derive(Clone, Copy, Debug)]
pub struct FamilyPoints<'a> {
    /// The family.
    pub family: &'static Family,
    points: Points<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Points<'a> {
    Requests(&'a [Series<HttpFigures>]),
    Histograms(&'a [Series<HttpFigures>], usize),
    Messages(&'a [Series<HttpFigures>], Direction),
    Tcp(&'a [Series<TcpFigures>], fn(&TcpFigures) -> u64),
    Own(&'a [OwnPoint]),
}

/// One point of a family.
#[derive(Clone, Copy, Debug)]
pub struct Point<'a> {
    /// Its labels.
    pub labels: Labels<'a>,
    /// Its value.
    pub value: Value<'a>,
    /// When a counter or histogram was 0.
    pub created: SystemTime,
}

/// Labels of a point.
#[derive(Clone, Copy, Debug)]
pub enum Labels<'a> {
    /// Labels of an HTTP family.
    Http(&'a MeshLabels),
    /// Labels of a TCP family.
    Tcp(&'a MeshLabels),
    /// Names and values, in the family's order.
    Own(&'static [&'static str], &'a [Box<str>]),
}

impl Labels<'_> {
    /// Calls `each` with every label, in the family's order.
    pub fn each(&self, mut each: impl FnMut(&'static str, &str)) {
        match self {
            Self::Http(labels) => labels.http(each),
            Self::Tcp(labels) => labels.tcp(each),
            Self::Own(names, values) => names.iter().zip(*values).for_each(|(name, value)| each(name, value)),
        }
    }
}

/// Value of a point.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    /// A whole number.
    Integer(u64),
    /// A real number.
    Real(f64),
    /// A histogram of a series.
    Histogram(HistogramView<'a>),
    /// A histogram of the observer's own delays.
    Lateness(&'a Lateness),
}

/// One histogram of a series, in the unit it is exposed in.
#[derive(Clone, Copy, Debug)]
pub struct HistogramView<'a> {
    figures: &'a HttpFigures,
    recent: Option<&'a PackedCells>,
    index: usize,
}

impl<'a> HistogramView<'a> {
    /// Histogram `index` (`observer_ebpf::{DURATION, REQUEST_BYTES, RESPONSE_BYTES}`) of `figures`.
    #[must_use]
    pub fn new(figures: &'a HttpFigures, recent: Option<&'a PackedCells>, index: usize) -> Self {
        Self { figures, recent, index }
    }

    /// Values up to each bound of [`histogram::LE`].
    #[must_use]
    pub fn cumulative(&self) -> [u64; BUCKETS] {
        let mut buckets = self.figures.buckets(self.index);
        for bucket in 1..BUCKETS {
            buckets[bucket] += buckets[bucket - 1];
        }
        buckets
    }

    /// Number of values.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.figures.buckets(self.index).iter().sum()
    }

    /// Sum of the values, milliseconds or bytes.
    #[must_use]
    pub fn sum(&self) -> f64 {
        self.exposed(self.figures.sum(self.index))
    }

    /// [`histogram::QUANTILES`] of the last reporting interval, milliseconds or bytes; `None` without values.
    #[must_use]
    pub fn quantiles(&self) -> Option<[f64; histogram::QUANTILES.len()]> {
        let quantiles = histogram::quantiles(&self.recent?.of(self.index))?;
        Some(quantiles.map(|value| self.exposed(value)))
    }

    /// Values of the last reporting interval, ascending, milliseconds or bytes, each with its count. A value is its cell's
    /// midpoint, within 1/64 of the truth.
    #[must_use]
    pub fn recent_values(&self) -> Vec<(f64, u64)> {
        let cells = self.recent.map(|recent| recent.of(self.index)).unwrap_or_default();
        cells.into_iter().map(|(cell, count)| (self.exposed(histogram::midpoint(cell)), u64::from(count))).collect()
    }

    #[expect(clippy::cast_precision_loss, reason = "exposed as a double by both formats")]
    fn exposed(&self, value: u64) -> f64 {
        if self.index == DURATION { value as f64 / 1_000.0 } else { value as f64 }
    }
}

impl Snapshot {
    /// The family at `index`, in the order they are printed; `None` behind the last one. Some may have no points. The
    /// first [`MESH_FAMILIES`] are Istio's.
    #[must_use]
    pub fn family(&self, index: usize) -> Option<FamilyPoints<'_>> {
        let (family, points) = match index {
            0 => (&catalogue::REQUESTS, Points::Requests(&self.http)),
            1 => (&catalogue::REQUEST_DURATION, Points::Histograms(&self.http, DURATION)),
            2 => (&catalogue::REQUEST_BYTES, Points::Histograms(&self.http, REQUEST_BYTES)),
            3 => (&catalogue::RESPONSE_BYTES, Points::Histograms(&self.http, RESPONSE_BYTES)),
            4 => (&catalogue::REQUEST_MESSAGES, Points::Messages(&self.grpc, Direction::Request)),
            5 => (&catalogue::RESPONSE_MESSAGES, Points::Messages(&self.grpc, Direction::Response)),
            6 => (&catalogue::TCP_OPENED, Points::Tcp(&self.tcp, |figures| figures.opened)),
            7 => (&catalogue::TCP_CLOSED, Points::Tcp(&self.tcp, |figures| figures.closed)),
            8 => (&catalogue::TCP_RECEIVED_BYTES, Points::Tcp(&self.tcp, |figures| figures.received_bytes)),
            9 => (&catalogue::TCP_SENT_BYTES, Points::Tcp(&self.tcp, |figures| figures.sent_bytes)),
            _ => {
                let own = self.own.get(index - MESH_FAMILIES)?;
                (own.family, Points::Own(&own.points))
            }
        };
        Some(FamilyPoints { family, points })
    }

    /// All families, in the order they are printed.
    pub fn families(&self) -> impl Iterator<Item = FamilyPoints<'_>> {
        (0..).map_while(|index| self.family(index))
    }
}

impl<'a> FamilyPoints<'a> {
    /// The point at `index`; `None` behind the last one.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<Point<'a>> {
        Some(match self.points {
            Points::Requests(series) => {
                let series = series.get(index)?;
                Point {
                    labels: Labels::Http(&series.labels),
                    value: Value::Integer(series.figures.requests()),
                    created: series.created,
                }
            }
            Points::Histograms(series, histogram) => {
                let series = series.get(index)?;
                let view = HistogramView::new(&series.figures, series.recent.as_deref(), histogram);
                Point { labels: Labels::Http(&series.labels), value: Value::Histogram(view), created: series.created }
            }
            Points::Messages(series, direction) => {
                let series = series.get(index)?;
                Point {
                    labels: Labels::Http(&series.labels),
                    value: Value::Integer(series.figures.messages(direction)),
                    created: series.created,
                }
            }
            Points::Tcp(series, figure) => {
                let series = series.get(index)?;
                Point {
                    labels: Labels::Tcp(&series.labels),
                    value: Value::Integer(figure(&series.figures)),
                    created: series.created,
                }
            }
            Points::Own(points) => {
                let point = points.get(index)?;
                let value = match &point.value {
                    OwnValue::Integer(value) => Value::Integer(*value),
                    OwnValue::Real(value) => Value::Real(*value),
                    OwnValue::Lateness(lateness) => Value::Lateness(lateness),
                };
                Point { labels: Labels::Own(self.family.labels, &point.labels), value, created: point.created }
            }
        })
    }

    /// All points.
    pub fn iter(self) -> impl Iterator<Item = Point<'a>> {
        (0..).map_while(move |index| self.get(index))
    }
}

#[derive(Debug)]
struct OwnFamily {
    family: &'static Family,
    points: Vec<OwnPoint>,
    created: SystemTime,
}

#[derive(Debug)]
struct OwnPoint {
    labels: Box<[Box<str>]>,
    value: OwnValue,
    created: SystemTime,
}

#[derive(Clone, Debug)]
enum OwnValue {
    Integer(u64),
    Real(f64),
    Lateness(Box<Lateness>),
}

impl OwnValue {
    /// The one number that it is; a histogram is none.
    #[expect(clippy::cast_precision_loss, reason = "compared with a double")]
    const fn real(&self) -> Option<f64> {
        match self {
            Self::Integer(value) => Some(*value as f64),
            Self::Real(value) => Some(*value),
            Self::Lateness(_) => None,
        }
    }
}

impl From<f64> for OwnValue {
    fn from(value: f64) -> Self {
        Self::Real(value)
    }
}

impl From<u64> for OwnValue {
    fn from(value: u64) -> Self {
        Self::Integer(value)
    }
}

impl From<Lateness> for OwnValue {
    fn from(value: Lateness) -> Self {
        Self::Lateness(Box::new(value))
    }
}

impl From<Duration> for OwnValue {
    /// The double next to it, which is written with as many digits as the duration has; `as_secs_f64` rounds twice.
    #[expect(clippy::cast_precision_loss, reason = "exact up to 104 days, then to microseconds")]
    fn from(value: Duration) -> Self {
        const EXACT: u128 = 1 << f64::MANTISSA_DIGITS;
        let nanoseconds = value.as_nanos();
        Self::Real(if nanoseconds <= EXACT { nanoseconds as f64 / 1e9 } else { value.as_micros() as f64 / 1e6 })
    }
}

/// The observer's own families while they are gathered.
struct Families {
    created: SystemTime,
    families: Vec<OwnFamily>,
}

impl Families {
    fn add(&mut self, family: &'static Family) -> &mut OwnFamily {
        self.families.push(OwnFamily::new(family, self.created));
        self.families.last_mut().expect("just pushed")
    }
}

impl Families {
    /// Where the kernel knows a process's figure and its page says it too, the kernel's is exposed, and the difference.
    fn outdo(&mut self, control_plane: &mut ControlPlane) {
        let mut differences = OwnFamily::new(&catalogue::PROCESS_DIFFERENCE, self.created);
        for own in self.families.iter().filter(|own| own.family.origin == Origin::Procfs) {
            let Some(label) = own.family.labels.iter().position(|label| *label == "instance") else { continue };
            let known: BTreeMap<&str, f64> =
                own.points.iter().filter_map(|point| Some((&*point.labels[label], point.value.real()?))).collect();
            for (instance, said) in control_plane.yield_to(own.family, |instance| known.contains_key(instance)) {
                let difference = said - known[instance.as_str()];
                differences.point(&[&instance, own.family.prometheus_name], difference);
            }
        }
        self.families.push(differences);
    }
}

impl OwnFamily {
    const fn new(family: &'static Family, created: SystemTime) -> Self {
        Self { family, points: Vec::new(), created }
    }

    fn point(&mut self, labels: &[&str], value: impl Into<OwnValue>) {
        let labels: Box<[Box<str>]> = labels.iter().map(|label| Box::from(*label)).collect();
        debug_assert_eq!(labels.len(), self.family.labels.len());
        self.points.push(OwnPoint { labels, value: value.into(), created: self.created });
    }

    fn since(&mut self, created: SystemTime) {
        self.created = created;
    }
}

#[cfg(test)]
mod tests {
    use super::{
        fixture::{at, http, key, peers, reading, sidecar, sidecars, snapshots},
        *,
    };
    use observer_common::{Leg, Protocol};

    struct Bench {
        model: Model,
        running: Vec<Arc<Sidecar>>,
        ended: Vec<Arc<Sidecar>>,
        peers: Arc<Peers>,
    }

    impl Bench {
        fn new() -> Self {
            let model = Model::new(at(0), Duration::from_mins(15));
            Self { model, running: sidecars(), ended: Vec::new(), peers: peers() }
        }

        fn round(&mut self, seconds: u64, series: Vec<SeriesReading>, closes_interval: bool) -> Arc<Snapshot> {
            self.model.update(Inputs {
                reading: &reading(seconds, series),
                running: &self.running,
                ended: &self.ended,
                components: &[],
                peers: &self.peers,
                own: &Own::default(),
                closes_interval,
            })
        }
    }

    fn call(sidecar: u32) -> SeriesKey {
        key(sidecar, Leg::SOURCE, "10.96.0.1:80", Protocol::HTTP, 200)
    }

    fn requests(snapshot: &Snapshot) -> Vec<u64> {
        snapshot.http.iter().map(|series| series.figures.requests()).collect()
    }

    #[test]
    fn series_with_equal_labels_are_added_up_and_keep_the_past_of_those_that_end() {
        let mut bench = Bench::new();
        bench.running[1] = sidecar(2, Role::Sidecar, "10.0.0.2", bench.running[0].workload.clone());
        let round = |bench: &mut Bench, seconds, counts: &[(u32, usize)]| {
            let series = counts.iter().map(|(id, count)| http(call(*id), &vec![1; *count])).collect();
            requests(&bench.round(seconds, series, false))
        };
        assert_eq!(round(&mut bench, 1, &[(1, 3), (2, 4)]), [7]);
        assert_eq!(round(&mut bench, 2, &[(1, 5), (2, 4)]), [9]);
        // The second one's series is gone from the kernel, then starts anew.
        assert_eq!(round(&mut bench, 3, &[(1, 6)]), [10]);
        assert_eq!(round(&mut bench, 4, &[(1, 6), (2, 2)]), [12]);
        // The first one's went back.
        assert_eq!(round(&mut bench, 5, &[(1, 1), (2, 2)]), [13]);
        assert_eq!(round(&mut bench, 6, &[(1, 2), (2, 3)]), [15]);
        assert_eq!(bench.model.http.resets(), 1);
    }

    #[test]
    fn an_idle_series_is_retired_after_its_sidecar_and_comes_back_with_its_past() {
        let mut bench = Bench::new();
        let series = || vec![http(call(1), &[1, 2, 3])];
        assert_eq!(requests(&bench.round(1, series(), false)), [3]);
        assert_eq!(requests(&bench.round(10_000, series(), false)), [3], "its sidecar runs");
        let gone = bench.running.remove(0);
        bench.ended.push(gone);
        assert!(requests(&bench.round(10_001, series(), false)).is_empty());
        assert_eq!(bench.model.http.retired(), 1);
        // It moves once more (its last connections end), with its whole past.
        assert_eq!(requests(&bench.round(10_002, vec![http(call(1), &[1, 2, 3, 3])], false)), [4]);
        assert_eq!(requests(&bench.round(10_902 - 1, vec![http(call(1), &[1, 2, 3, 3])], false)), [4]);
        assert!(requests(&bench.round(10_902, vec![http(call(1), &[1, 2, 3, 3])], false)).is_empty());
        // The kernel forgets it, so does the model.
        bench.round(10_903, Vec::new(), false);
        assert!(bench.model.http.exposed().next().is_none());
        assert_eq!(requests(&bench.round(10_904, vec![http(call(1), &[1; 2])], false)), [2]);
    }

    #[test]
    fn what_was_counted_before_a_peer_became_known_stays_where_it_was() {
        let mut bench = Bench::new();
        let known = std::mem::take(&mut bench.peers);
        assert_eq!(requests(&bench.round(1, vec![http(call(1), &[1; 3])], false)), [3]);
        bench.peers = known;
        let snapshot = bench.round(2, vec![http(call(1), &[1; 5])], false);
        assert_eq!(requests(&snapshot), [3, 2]);
        let mut services = Vec::new();
        for series in &snapshot.http {
            series.labels.http(|name, value| {
                if name == "destination_service_name" {
                    services.push(value.to_owned());
                }
            });
        }
        assert_eq!(services, ["unknown", "reviews"]);
        assert_eq!(snapshot.http[1].created, at(1), "it was 0 in the round before");
    }

    #[test]
    fn percentiles_are_over_the_interval_whatever_scrapes_come_between() {
        let mut bench = Bench::new();
        let quantiles = |snapshot: &Snapshot| {
            snapshot.family(1).unwrap().get(0).and_then(|point| match point.value {
                Value::Histogram(histogram) => histogram.quantiles(),
                _ => None,
            })
        };
        let first = bench.round(10, vec![http(call(1), &[10, 10])], true);
        assert!(quantiles(&first).is_some_and(|values| values.iter().all(|value| (9.9..10.5).contains(value))));
        assert_eq!(first.interval, Some(Duration::from_secs(10)));
        let mut without_cells = http(call(1), &[10, 10, 500]);
        without_cells.histograms.iter_mut().for_each(|histogram| histogram.cells.clear());
        let scraped = bench.round(12, vec![without_cells], false);
        assert_eq!(quantiles(&scraped), quantiles(&first));
        let second = bench.round(20, vec![http(call(1), &[10, 10, 500])], true);
        assert!(quantiles(&second).is_some_and(|values| values.iter().all(|value| (492.0..508.0).contains(value))));
        assert_eq!(quantiles(&bench.round(30, vec![http(call(1), &[10, 10, 500])], true)), None);
    }

    #[test]
    fn without_a_kernel_reading_the_last_figures_stand() {
        let mut bench = Bench::new();
        bench.round(1, vec![http(call(1), &[1; 3])], false);
        let mut failed = reading(2, Vec::new());
        failed.kernel = None;
        let snapshot = bench.model.update(Inputs {
            reading: &failed,
            running: &bench.running,
            ended: &[],
            components: &[],
            peers: &bench.peers,
            own: &Own::default(),
            closes_interval: false,
        });
        assert_eq!(requests(&snapshot), [3]);
    }

    #[test]
    fn encrypted_gateway_connections_and_the_overflow_have_their_own_places() {
        let [snapshot, _] = snapshots();
        let gateway = snapshot.families().find(|points| std::ptr::eq(points.family, &catalogue::GATEWAY_ENCRYPTED));
        let points: Vec<_> = gateway.unwrap().iter().collect();
        assert!(matches!(points[0].value, Value::Integer(1)) && matches!(points[1].value, Value::Integer(0)));
        let mut values = Vec::new();
        points[0].labels.each(|_, value| values.push(value.to_owned()));
        assert_eq!(values, ["gateway", "default", "c1", "8443", "opened"]);
        assert_eq!(snapshot.tcp.len(), 2, "one service and the overflow");
        let mut overflow = HashSet::new();
        snapshot.tcp[1].labels.tcp(|name, value| {
            if name != "response_flags" {
                overflow.insert(value.to_owned());
            }
        });
        assert_eq!(overflow.into_iter().collect::<Vec<_>>(), ["unknown"]);
    }

    #[test]
    fn seconds_are_written_with_the_digits_that_they_have() {
        for (microseconds, text) in [
            (1_950_956, "1.950956"),
            (0, "0"),
            (100, "0.0001"),
            (86_400_000_001, "86400.000001"),
            (20_000_000_000_003, "20000000.000003"),
        ] {
            let OwnValue::Real(value) = OwnValue::from(Duration::from_micros(microseconds)) else { panic!("a number") };
            assert_eq!(value.to_string(), text);
        }
    }

    #[test]
    fn every_point_has_its_familys_labels() {
        let [snapshot, _] = snapshots();
        for points in snapshot.families() {
            for point in points.iter() {
                let mut names = Vec::new();
                point.labels.each(|name, _| names.push(name));
                assert_eq!(names, points.family.labels, "{}", points.family.prometheus_name);
            }
        }
    }
}
