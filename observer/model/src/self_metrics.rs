//! The observer's own metrics.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use observer_common::health::{Counter, Group};

use crate::{
    catalogue,
    delay::DelayHistogram,
    identity::{Instance, Role, Sidecar},
    kubernetes::{Cluster, Unresolved},
    reading::{KernelReading, ProgramReading, ScrapeReading},
    recorded::RecordedFamilies,
};

/// Stats of the observer itself, cumulative unless documented otherwise.
#[derive(Clone, Debug, Default)]
pub struct SelfMetrics {
    /// User and system CPU time.
    pub cpu: Option<Duration>,
    /// Resident memory now.
    pub resident_bytes: Option<u64>,
    /// Sidecars found now to which the eBPF programs could not be attached.
    pub unattached: Option<u64>,
    /// Delay of the rounds that close an interval; empty where none does.
    pub collection_delay: DelayHistogram,
    /// Stats of every emitter.
    pub emitters: Vec<EmitterStats>,
    /// Stats of the `/metrics` endpoint, if it is served.
    pub endpoint: Option<EndpointStats>,
    /// Stats of the Kubernetes API, if it is used.
    pub kubernetes: Option<KubernetesStats>,
}

/// What was asked of the Kubernetes API, cumulative, and how old its answers are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KubernetesStats {
    /// Requests by resource and outcome.
    pub requests: Vec<(&'static str, &'static str, u64)>,
    /// Resources, whether a watch is open now, and since when nothing was heard otherwise; none before the first watch.
    pub watches: Vec<(&'static str, bool, Duration)>,
}

/// Stats of one emitter, cumulative.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EmitterStats {
    /// Label value.
    pub name: String,
    /// Pushes queued now.
    pub queued_pushes: u64,
    /// Points and bytes queued on disk now, for emitters that have a disk queue.
    pub on_disk: Option<(u64, u64)>,
    /// Points accepted by the receiver.
    pub sent: u64,
    /// Points that break the format's rules, by reason.
    pub rejected: Vec<(&'static str, u64)>,
    /// Points held back by the configured filters.
    pub filtered: u64,
    /// Points given up, by reason.
    pub dropped: Vec<(&'static str, u64)>,
    /// Pushes dropped unsent, by reason.
    pub pushes_dropped: Vec<(&'static str, u64)>,
    /// Failed sends, by kind.
    pub errors: Vec<(&'static str, u64)>,
}

/// Stats of the `/metrics` endpoint, cumulative.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointStats {
    /// Requests by outcome.
    pub scrapes: Vec<(&'static str, u64)>,
    /// Time spent rendering.
    pub duration: Duration,
    /// Connections closed because too many were open.
    pub refused: u64,
}

pub(crate) fn record_process(own: &SelfMetrics, running: &[Arc<Sidecar>], families: &mut RecordedFamilies) {
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
        sidecars.point(&[name], running.iter().filter(|sidecar| sidecar.role == role).count() as u64);
    }
    if let Some(unattached) = own.unattached {
        families.add(&catalogue::UNATTACHED).point(&[], unattached);
    }
}

/// Records the eBPF programs, which are this process's even where their maps are continued.
pub(crate) fn record_programs(programs: &[ProgramReading], families: &mut RecordedFamilies) {
    let links = families.add(&catalogue::PROGRAM_LINKS);
    for program in programs {
        links.point(&[program.name], program.links);
    }
    // The kernel counts runs only while `kernel.bpf_stats_enabled` is set; not counted is not 0.
    let counted = || programs.iter().filter(|program| program.runs > 0);
    let runs = families.add(&catalogue::PROGRAM_RUNS);
    counted().for_each(|program| runs.point(&[program.name], program.runs));
    let seconds = families.add(&catalogue::PROGRAM_SECONDS);
    counted().for_each(|program| seconds.point(&[program.name], program.run_time));
}

pub(crate) fn record_kernel(kernel: &KernelReading, families: &mut RecordedFamilies) {
    for (group, family) in [
        (Group::Connections, &catalogue::CONNECTIONS),
        (Group::Requests, &catalogue::PARSED_REQUESTS),
        (Group::Desyncs, &catalogue::DESYNCS),
        (Group::Uncounted, &catalogue::UNCOUNTED),
        (Group::Audit, &catalogue::AUDIT_BYTES),
    ] {
        let family = families.add(family);
        for (counter, value) in &kernel.health {
            let has_own_family = matches!(counter, Counter::AuditConnections | Counter::AuditEmpty);
            if counter.group() == group && !has_own_family {
                family.point(&[counter.label()], *value);
            }
        }
    }
    for (counter, value) in &kernel.health {
        match counter {
            Counter::AuditConnections => families.add(&catalogue::AUDIT_CONNECTIONS).point(&[], *value),
            Counter::AuditEmpty => families.add(&catalogue::AUDIT_EMPTY).point(&[], *value),
            Counter::LossSeries => families.add(&catalogue::SERIES_OVERFLOWED).point(&[], *value),
            _ => {}
        }
    }
}

/// Records the Kubernetes API and what is known by it.
pub(crate) fn record_kubernetes(
    own: &SelfMetrics,
    cluster: &Cluster,
    unresolved: &BTreeMap<Unresolved, u64>,
    families: &mut RecordedFamilies,
) {
    let Some(KubernetesStats { requests, watches }) = &own.kubernetes else { return };
    let family = families.add(&catalogue::KUBERNETES_REQUESTS);
    requests.iter().for_each(|(resource, outcome, count)| family.point(&[resource, outcome], *count));
    let family = families.add(&catalogue::KUBERNETES_WATCHES);
    watches.iter().for_each(|(resource, is_open, _)| family.point(&[resource], u64::from(*is_open)));
    let family = families.add(&catalogue::KUBERNETES_STALENESS);
    watches.iter().for_each(|(resource, _, age)| family.point(&[resource], *age));
    let family = families.add(&catalogue::KUBERNETES_OBJECTS);
    cluster.sizes().iter().for_each(|(kind, size)| family.point(&[kind], *size));
    let family = families.add(&catalogue::KUBERNETES_REJECTED);
    cluster.rejected().for_each(|(resource, reason, count)| family.point(&[resource, reason], count));
    let family = families.add(&catalogue::DESTINATIONS_UNRESOLVED);
    for reason in Unresolved::ALL {
        family.point(&[reason.reason()], unresolved.get(&reason).copied().unwrap_or(0));
    }
}

pub(crate) fn record_outputs(own: &SelfMetrics, families: &mut RecordedFamilies) {
    let queue = families.add(&catalogue::EMITTER_QUEUE);
    own.emitters.iter().for_each(|emitter| queue.point(&[&emitter.name], emitter.queued_pushes));
    let on_disk = || own.emitters.iter().filter_map(|emitter| Some((&emitter.name, emitter.on_disk?)));
    let points = families.add(&catalogue::EMITTER_DISK_POINTS);
    on_disk().for_each(|(name, (waiting, _))| points.point(&[name], waiting));
    let bytes = families.add(&catalogue::EMITTER_DISK_BYTES);
    on_disk().for_each(|(name, (_, waiting))| bytes.point(&[name], waiting));
    let sent = families.add(&catalogue::EMITTER_SENT);
    own.emitters.iter().for_each(|emitter| sent.point(&[&emitter.name], emitter.sent));
    let filtered = families.add(&catalogue::EMITTER_FILTERED);
    own.emitters.iter().for_each(|emitter| filtered.point(&[&emitter.name], emitter.filtered));
    type ByReason = fn(&EmitterStats) -> &Vec<(&'static str, u64)>;
    let by_reason: [(_, ByReason); 4] = [
        (&catalogue::EMITTER_REJECTED, |emitter| &emitter.rejected),
        (&catalogue::EMITTER_DROPPED, |emitter| &emitter.dropped),
        (&catalogue::EMITTER_PUSHES_DROPPED, |emitter| &emitter.pushes_dropped),
        (&catalogue::EMITTER_ERRORS, |emitter| &emitter.errors),
    ];
    for (family, counts) in by_reason {
        let family = families.add(family);
        for emitter in &own.emitters {
            for (reason, value) in counts(emitter) {
                family.point(&[&emitter.name, reason], *value);
            }
        }
    }
    if let Some(stats) = &own.endpoint {
        let scrapes = families.add(&catalogue::SCRAPES);
        stats.scrapes.iter().for_each(|(outcome, value)| scrapes.point(&[outcome], *value));
        families.add(&catalogue::SCRAPE_SECONDS).point(&[], stats.duration);
        families.add(&catalogue::SCRAPE_REFUSED).point(&[], stats.refused);
    }
}

/// Records the scrapes of other instances.
pub(crate) fn record_scrapes(readings: &[ScrapeReading], conflicting: u64, families: &mut RecordedFamilies) {
    let up = families.add(&catalogue::CONTROL_PLANE_UP);
    for reading in readings.iter().filter(|reading| reading.tried) {
        up.point(&labels(reading), u64::from(reading.exposition.is_some()));
    }
    let scrapes = families.add(&catalogue::CONTROL_PLANE_SCRAPES);
    for reading in readings {
        for (outcome, count) in &reading.scrapes {
            let [instance, app, node] = labels(reading);
            scrapes.point(&[instance, app, outcome, node], *count);
        }
    }
    let seconds = families.add(&catalogue::CONTROL_PLANE_SCRAPE_SECONDS);
    for reading in readings.iter().filter(|reading| reading.tried) {
        seconds.point(&labels(reading), reading.duration);
    }
    let samples = families.add(&catalogue::CONTROL_PLANE_SAMPLES);
    for (reading, exposition) in readings.iter().filter_map(|reading| Some((reading, reading.exposition.as_ref()?))) {
        samples.point(&labels(reading), exposition.samples);
    }
    let skipped = families.add(&catalogue::CONTROL_PLANE_SKIPPED);
    for reading in readings {
        for (reason, lines) in &reading.skipped {
            let [instance, app, node] = labels(reading);
            skipped.point(&[instance, app, reason, node], *lines);
        }
    }
    if !readings.is_empty() {
        families.add(&catalogue::CONTROL_PLANE_CONFLICTING).point(&[], conflicting);
    }
}

/// Returns the labels of an instance; an empty one counts as absent.
fn labels(reading: &ScrapeReading) -> [&str; 3] {
    let Instance { instance, app, node, .. } = &reading.instance;
    [instance, app, node.as_deref().unwrap_or_default()]
}
