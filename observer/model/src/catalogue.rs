//! Every family, declared once: its names, type, unit, labels and source. Metric names stand in this file only.

use std::{
    collections::HashMap,
    fmt::{self, Write},
    sync::LazyLock,
};

use super::{labels, live::Live};

/// What a family's figures are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts values by size.
    Histogram,
}

impl Kind {
    /// The word both exposition formats use.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Where a family's figures come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The kernel programs on the sidecars' sockets.
    Kernel,
    /// The metrics page of istiod.
    Istiod,
    /// `/proc`.
    Procfs,
    /// The observer itself.
    Observer,
}

impl Origin {
    /// The word the catalogue prints.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Istiod => "istiod",
            Self::Procfs => "procfs",
            Self::Observer => "observer",
        }
    }
}

/// How long a name can be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stability {
    /// Istio's own, kept as Istio keeps it.
    Stable,
    /// Istio's own, gone from newer releases of istiod.
    Removed,
    /// Documented, yet reported by no supported release of istiod.
    Never,
    /// The observer's own, may change between minor versions.
    Own,
}

impl Stability {
    /// The word the catalogue prints.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Removed => "removed_in_newer_istio",
            Self::Never => "never_reported_by_istio",
            Self::Own => "own",
        }
    }
}

/// A family of series: one name, one type, one unit.
#[derive(Debug, PartialEq, Eq)]
pub struct Family {
    /// Name in Wavefront; `*` stands for the statistic of a histogram.
    pub documented_name: &'static str,
    /// Name in Prometheus.
    pub prometheus_name: &'static str,
    /// Type.
    pub kind: Kind,
    /// Unit of the value, empty where it has none.
    pub unit: &'static str,
    /// Label names in the order they are printed; `le` is not among them.
    pub labels: &'static [&'static str],
    /// Where the figures come from.
    pub origin: Origin,
    /// How long the name can be relied on.
    pub stability: Stability,
    /// One sentence for people.
    pub help: &'static str,
}

/// A release of Istio, without its patch level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release {
    major: u16,
    minor: u16,
}

impl Release {
    const fn new(major: u16, minor: u16) -> Self {
        Self { major, minor }
    }

    /// The release that a build's tag begins with, as in `1.25.3-distroless`; `None` if it begins with none.
    #[must_use]
    pub fn parse(tag: &str) -> Option<Self> {
        let mut numbers = tag.split(|c: char| !c.is_ascii_digit());
        let (major, minor) = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
        tag.contains('.').then_some(Self { major, minor })
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Releases of Istio whose control plane reports a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Releases {
    /// The oldest that was measured; older ones may have it too.
    pub since: Release,
    /// The last one; `None` if the newest has it.
    pub until: Option<Release>,
}

impl Releases {
    /// Whether this release reports it.
    #[must_use]
    pub fn include(&self, release: Release) -> bool {
        self.until.is_none_or(|until| release <= until)
    }
}

/// The oldest release whose pages were measured.
const OLDEST: Release = Release::new(1, 12);
/// Families that newer releases no longer report, and their last release, as measured and as in istiod's history.
static LAST: [(&Family, Release); 3] = [
    (&PILOT_XDS_PUSH_CONTEXT_ERRORS, Release::new(1, 25)),
    (&PILOT_CONFLICT_OUTBOUND_LISTENER_HTTP_OVER_CURRENT_TCP, Release::new(1, 18)),
    (&PILOT_CONFLICT_OUTBOUND_LISTENER_TCP_OVER_CURRENT_HTTP, Release::new(1, 18)),
];

impl Family {
    /// Releases of Istio that report it; `None` if no supported one does, or if it does not come from Istio's own pages.
    #[must_use]
    pub fn releases(&self) -> Option<Releases> {
        let until = LAST.iter().find(|(family, _)| *family == self).map(|(_, last)| *last);
        (self.origin == Origin::Istiod && self.stability != Stability::Never)
            .then_some(Releases { since: OLDEST, until })
    }
}

/// The family of this name in Prometheus.
#[must_use]
pub fn by_prometheus_name(name: &str) -> Option<&'static Family> {
    static BY_NAME: LazyLock<HashMap<&str, &Family>> =
        LazyLock::new(|| FAMILIES.iter().map(|family| (family.prometheus_name, *family)).collect());
    BY_NAME.get(name).copied()
}

macro_rules! families {
    ($($name:ident = $documented:literal, $prometheus:literal, $kind:ident, $unit:literal, $labels:expr,
        $origin:ident, $stability:ident, $help:literal;)*) => {
        $(#[doc = $help]
        pub static $name: Family = Family {
            documented_name: $documented,
            prometheus_name: $prometheus,
            kind: Kind::$kind,
            unit: $unit,
            labels: $labels,
            origin: Origin::$origin,
            stability: Stability::$stability,
            help: $help,
        };)*

        /// Every family, in the order the catalogue prints them.
        pub static FAMILIES: &[&Family] = &[$(&$name,)*];
    };
}

families! {
    REQUEST_BYTES = "istio.request.bytes.*.value", "istio_request_bytes",
        Histogram, "bytes", &labels::HTTP, Kernel, Stable,
        "Wire bytes of each request on the observed plaintext leg, headers and framing included.";
    REQUEST_DURATION = "istio.request.duration.milliseconds.*.value", "istio_request_duration_milliseconds",
        Histogram, "milliseconds", &labels::HTTP, Kernel, Stable,
        "Time from the first request byte to the last response byte, in whole milliseconds.";
    RESPONSE_BYTES = "istio.response.bytes.*.value", "istio_response_bytes",
        Histogram, "bytes", &labels::HTTP, Kernel, Stable,
        "Wire bytes of each response on the observed plaintext leg, headers and framing included.";
    REQUESTS = "istio.requests.total.value", "istio_requests_total",
        Counter, "requests", &labels::HTTP, Kernel, Stable,
        "Requests, counted once each when their stream ends.";
    REQUEST_MESSAGES = "istio.request.messages.total.value", "istio_request_messages_total",
        Counter, "messages", &labels::HTTP, Kernel, Stable,
        "gRPC messages from client to server, counted when their call ends.";
    RESPONSE_MESSAGES = "istio.response.messages.total.value", "istio_response_messages_total",
        Counter, "messages", &labels::HTTP, Kernel, Stable,
        "gRPC messages from server to client, counted when their call ends.";
    TCP_SENT_BYTES = "istio.tcp.sent.bytes.total.value", "istio_tcp_sent_bytes_total",
        Counter, "bytes", &labels::TCP, Kernel, Stable,
        "Payload bytes from server to client, whoever reports.";
    TCP_RECEIVED_BYTES = "istio.tcp.received.bytes.total.value", "istio_tcp_received_bytes_total",
        Counter, "bytes", &labels::TCP, Kernel, Stable,
        "Payload bytes from client to server, whoever reports.";
    TCP_OPENED = "istio.tcp.connections.opened.total.value", "istio_tcp_connections_opened_total",
        Counter, "connections", &labels::TCP, Kernel, Stable,
        "TCP connections established.";
    TCP_CLOSED = "istio.tcp.connections.closed.total.value", "istio_tcp_connections_closed_total",
        Counter, "connections", &labels::TCP, Kernel, Stable,
        "TCP connections closed.";
    PILOT_SERVICES = "pilot.services.value", "pilot_services",
        Gauge, "", &[], Istiod, Stable,
        "Services known to the control plane.";
    PILOT_VIRT_SERVICES = "pilot.virt.services.value", "pilot_virt_services",
        Gauge, "", &[], Istiod, Stable,
        "Virtual services known to the control plane.";
    ISTIO_BUILD = "istio.build.value", "istio_build",
        Gauge, "", &["component", "tag"], Istiod, Stable,
        "Build of an Istio component; always 1.";
    PILOT_XDS_PUSHES = "pilot.xds.pushes.value", "pilot_xds_pushes",
        Counter, "", &["type"], Istiod, Stable,
        "Configuration pushes tried by type, and failed sends under the type with _senderr.";
    PILOT_TOTAL_XDS_REJECTS = "pilot.total.xds.rejects.value", "pilot_total_xds_rejects",
        Counter, "", &["type"], Istiod, Stable,
        "Configurations that proxies rejected.";
    PILOT_XDS_CDS_REJECT = "pilot.xds.cds.reject.value", "pilot_xds_cds_reject",
        Gauge, "", &["node", "err"], Istiod, Stable,
        "Proxies that rejected a cluster configuration; a flag that istiod never takes back.";
    PILOT_XDS_EDS_REJECT = "pilot.xds.eds.reject.value", "pilot_xds_eds_reject",
        Gauge, "", &["node", "err"], Istiod, Stable,
        "Proxies that rejected an endpoint configuration; a flag that istiod never takes back.";
    PILOT_XDS_LDS_REJECT = "pilot.xds.lds.reject.value", "pilot_xds_lds_reject",
        Gauge, "", &["node", "err"], Istiod, Stable,
        "Proxies that rejected a listener configuration; a flag that istiod never takes back.";
    PILOT_XDS_RDS_REJECT = "pilot.xds.rds.reject.value", "pilot_xds_rds_reject",
        Gauge, "", &["node", "err"], Istiod, Stable,
        "Proxies that rejected a route configuration; a flag that istiod never takes back.";
    PILOT_XDS_WRITE_TIMEOUT = "pilot.xds.write.timeout.value", "pilot_xds_write_timeout",
        Counter, "", &[], Istiod, Stable,
        "Configuration pushes whose write timed out.";
    PILOT_XDS_PUSH_CONTEXT_ERRORS = "pilot.xds.push.context.errors.value", "pilot_xds_push_context_errors",
        Counter, "", &[], Istiod, Removed,
        "Errors while a push context was built.";
    PILOT_CONFLICT_INBOUND_LISTENER = "pilot.conflict.inbound.listener.value", "pilot_conflict_inbound_listener",
        Gauge, "", &[], Istiod, Stable,
        "Conflicting inbound listeners in the last completed push.";
    PILOT_TOTAL_XDS_INTERNAL_ERRORS = "pilot.total.xds.internal.errors.value", "pilot_total_xds_internal_errors",
        Counter, "", &[], Istiod, Stable,
        "Internal errors of the configuration server.";
    PILOT_CONFLICT_OUTBOUND_LISTENER_HTTP_OVER_CURRENT_TCP =
        "pilot.conflict.outbound.listener.http.over.current.tcp.value",
        "pilot_conflict_outbound_listener_http_over_current_tcp",
        Gauge, "", &[], Istiod, Removed,
        "Outbound listeners where HTTP and TCP conflict; the name reads holder over refused.";
    PILOT_CONFLICT_OUTBOUND_LISTENER_TCP_OVER_CURRENT_HTTP =
        "pilot.conflict.outbound.listener.tcp.over.current.http.value",
        "pilot_conflict_outbound_listener_tcp_over_current_http",
        Gauge, "", &[], Istiod, Removed,
        "Outbound listeners where TCP and HTTP conflict; the name reads holder over refused.";
    PILOT_CONFLICT_OUTBOUND_LISTENER_TCP_OVER_CURRENT_TCP =
        "pilot.conflict.outbound.listener.tcp.over.current.tcp.value",
        "pilot_conflict_outbound_listener_tcp_over_current_tcp",
        Gauge, "", &[], Istiod, Stable,
        "Outbound TCP listeners that conflict with another TCP listener.";
    PILOT_PROXY_CONVERGENCE_TIME = "pilot.proxy.convergence.time.bucket.value", "pilot_proxy_convergence_time",
        Histogram, "seconds", &[], Istiod, Stable,
        "Time from a configuration change to the proxies having it.";
    PILOT_PROXY_QUEUE_TIME = "pilot.proxy.queue.time.bucket.value", "pilot_proxy_queue_time",
        Histogram, "seconds", &[], Istiod, Stable,
        "Time a proxy waited in the push queue.";
    PROCESS_CPU_SECONDS_TOTAL = "process.cpu.seconds.total.value", "process_cpu_seconds_total",
        Counter, "seconds", &labels::PROCESS, Procfs, Stable,
        "User and system CPU time of the control-plane and sidecar processes on the node.";
    PROCESS_RESIDENT_MEMORY_BYTES = "process.resident.memory.bytes.value", "process_resident_memory_bytes",
        Gauge, "bytes", &labels::PROCESS, Procfs, Stable,
        "Resident memory of the control-plane and sidecar processes on the node.";
    PROCESS_VIRTUAL_MEMORY_BYTES = "process.virtual.memory.bytes.value", "process_virtual_memory_bytes",
        Gauge, "bytes", &labels::PROCESS, Procfs, Stable,
        "Virtual memory of the control-plane and sidecar processes on the node.";
    PROCESS_OPEN_FDS = "process.open.fds.value", "process_open_fds",
        Gauge, "", &labels::PROCESS, Procfs, Stable,
        "File descriptors in use by the control-plane and sidecar processes on the node.";
    PROCESS_MAX_FDS = "process.max.fds.value", "process_max_fds",
        Gauge, "", &labels::PROCESS, Procfs, Stable,
        "Most file descriptors that the process may have (soft limit).";
    PROCESS_START_TIME_SECONDS = "process.start.time.seconds.value", "process_start_time_seconds",
        Gauge, "seconds", &labels::PROCESS, Procfs, Stable,
        "When the process started, in seconds since 1970.";
    PROCESS_THREADS = "process.threads.value", "process_threads",
        Gauge, "", &labels::PROCESS, Procfs, Own,
        "Threads of the control-plane and sidecar processes on the node.";
    CGROUP_MEMORY = "mesh.observer.cgroup.memory.bytes.value", "mesh_observer_cgroup_memory_bytes",
        Gauge, "bytes", &labels::PROCESS, Procfs, Own,
        "Memory charged to the cgroup of the process (cgroup v2 memory.current), page cache included.";
    CGROUP_MEMORY_LIMIT = "mesh.observer.cgroup.memory.limit.bytes.value", "mesh_observer_cgroup_memory_limit_bytes",
        Gauge, "bytes", &labels::PROCESS, Procfs, Own,
        "Memory limit of the cgroup of the process (cgroup v2 memory.max); absent without a limit.";
    CGROUP_CPU_PERIODS = "mesh.observer.cgroup.cpu.periods.total.value", "mesh_observer_cgroup_cpu_periods_total",
        Counter, "periods", &labels::PROCESS, Procfs, Own,
        "Enforcement periods of the CPU limit of the cgroup of the process (cgroup v2 cpu.stat, nr_periods).";
    CGROUP_CPU_THROTTLED_PERIODS = "mesh.observer.cgroup.cpu.throttled.periods.total.value",
        "mesh_observer_cgroup_cpu_throttled_periods_total",
        Counter, "periods", &labels::PROCESS, Procfs, Own,
        "Periods in which the cgroup of the process was throttled (cgroup v2 cpu.stat, nr_throttled).";
    CGROUP_CPU_THROTTLED_SECONDS = "mesh.observer.cgroup.cpu.throttled.seconds.total.value",
        "mesh_observer_cgroup_cpu_throttled_seconds_total",
        Counter, "seconds", &labels::PROCESS, Procfs, Own,
        "Time for which the cgroup of the process was throttled (cgroup v2 cpu.stat, throttled_usec).";
    PROCESSES = "mesh.observer.processes.value", "mesh_observer_processes",
        Gauge, "processes", &["outcome"], Observer, Own,
        "Processes whose figures were read: exposed, or hidden behind a younger one of the same labels.";
    GALLEY_VALIDATION_HTTP_ERROR = "galley.validation.http.error.value", "galley_validation_http_error",
        Counter, "", &["status"], Istiod, Stable,
        "Errors in answering the validation webhook.";
    GALLEY_VALIDATION_FAILED = "galley.validation.failed.value", "galley_validation_failed",
        Counter, "", &["group", "version", "resource", "reason"], Istiod, Stable,
        "Resources that failed validation.";
    GALLEY_VALIDATION_PASSED = "galley.validation.passed.value", "galley_validation_passed",
        Counter, "", &["group", "version", "resource"], Istiod, Stable,
        "Resources that passed validation.";
    GALLEY_VALIDATION_CONFIG_UPDATES = "galley.validation.config.updates.value", "galley_validation_config_updates",
        Counter, "", &[], Istiod, Stable,
        "Updates of the validation webhook configuration.";
    GALLEY_VALIDATION_CONFIG_UPDATE_ERROR = "galley.validation.config.update.error.value",
        "galley_validation_config_update_error",
        Counter, "", &["reason"], Istiod, Stable,
        "Failed updates of the validation webhook configuration.";
    GALLEY_VALIDATION_CONFIG_LOAD = "galley.validation.config.load.value", "galley_validation_config_load",
        Counter, "", &[], Istiod, Never,
        "Loads of the validation webhook configuration.";
    GALLEY_VALIDATION_CONFIG_LOAD_ERROR = "galley.validation.config.load.error.value",
        "galley_validation_config_load_error",
        Counter, "", &["reason"], Istiod, Stable,
        "Failed loads of the validation webhook configuration.";
    GALLEY_VALIDATION_CONFIG_DELETE_ERROR = "galley.validation.config.delete.error.value",
        "galley_validation_config_delete_error",
        Counter, "", &["reason"], Istiod, Never,
        "Failed deletions of the validation webhook configuration.";
    CITADEL_SERVER_CSR_COUNT = "citadel.server.csr.count.value", "citadel_server_csr_count",
        Counter, "", &[], Istiod, Stable,
        "Certificate signing requests received.";
    CITADEL_SERVER_SUCCESS_CERT_ISSUANCE_COUNT = "citadel.server.success.cert.issuance.count.value",
        "citadel_server_success_cert_issuance_count",
        Counter, "", &[], Istiod, Stable,
        "Certificates issued.";
    CITADEL_SERVER_CSR_SIGN_ERR_COUNT = "citadel.server.csr.sign.error.count.value",
        "citadel_server_csr_sign_err_count",
        Counter, "", &["error"], Istiod, Stable,
        "Certificate signing requests that could not be signed.";
    GO_GOROUTINES = "go.goroutines.value", "go_goroutines",
        Gauge, "", &[], Istiod, Stable,
        "Goroutines of istiod.";
    GO_MEMSTATS_ALLOC_BYTES = "go.memstats.alloc.bytes.value", "go_memstats_alloc_bytes",
        Gauge, "", &[], Istiod, Stable,
        "Bytes allocated and in use by istiod.";
    GO_MEMSTATS_HEAP_ALLOC_BYTES = "go.memstats.heap.alloc.bytes.value", "go_memstats_heap_alloc_bytes",
        Gauge, "", &[], Istiod, Stable,
        "Heap bytes allocated and in use by istiod.";
    GO_MEMSTATS_HEAP_INUSE_BYTES = "go.memstats.heap.inuse.bytes.value", "go_memstats_heap_inuse_bytes",
        Gauge, "", &[], Istiod, Stable,
        "Bytes in istiod's heap spans in use.";
    GO_MEMSTATS_HEAP_SYS_BYTES = "go.memstats.heap.sys.bytes.value", "go_memstats_heap_sys_bytes",
        Gauge, "", &[], Istiod, Stable,
        "Heap bytes istiod obtained from the system.";
    GO_MEMSTATS_STACK_INUSE_BYTES = "go.memstats.stack.inuse.bytes.value", "go_memstats_stack_inuse_bytes",
        Gauge, "", &[], Istiod, Stable,
        "Bytes in istiod's stack spans in use.";
    BUILD_INFO = "mesh.observer.build.info.value", "mesh_observer_build_info",
        Gauge, "", &["version"], Observer, Own,
        "Version of the observer; always 1.";
    CPU_SECONDS = "mesh.observer.cpu.seconds.total.value", "mesh_observer_cpu_seconds_total",
        Counter, "seconds", &[], Observer, Own,
        "The observer's own user and system CPU time.";
    RESIDENT_MEMORY = "mesh.observer.resident.memory.bytes.value", "mesh_observer_resident_memory_bytes",
        Gauge, "bytes", &[], Observer, Own,
        "The observer's own resident memory.";
    SIDECARS = "mesh.observer.sidecars.value", "mesh_observer_sidecars",
        Gauge, "sidecars", &["role"], Observer, Own,
        "Sidecars and gateways observed now.";
    UNATTACHED = "mesh.observer.sidecars.unattached.value", "mesh_observer_sidecars_unattached",
        Gauge, "sidecars", &[], Observer, Own,
        "Sidecars and gateways found whose programs could not be attached.";
    PROGRAM_LINKS = "mesh.observer.program.links.value", "mesh_observer_program_links",
        Gauge, "links", &["program"], Observer, Own,
        "Cgroups that each kernel program is attached to.";
    PROGRAM_RUNS = "mesh.observer.program.runs.total.value", "mesh_observer_program_runs_total",
        Counter, "runs", &["program"], Observer, Own,
        "Runs of each kernel program, where the kernel counts them (kernel.bpf_stats_enabled).";
    PROGRAM_SECONDS = "mesh.observer.program.run.seconds.total.value", "mesh_observer_program_run_seconds_total",
        Counter, "seconds", &["program"], Observer, Own,
        "Time spent in each kernel program, where the kernel counts it (kernel.bpf_stats_enabled).";
    CONNECTIONS = "mesh.observer.connections.total.value", "mesh_observer_connections_total",
        Counter, "connections", &["outcome"], Observer, Own,
        "Observed connections by what became of their parsing.";
    PARSED_REQUESTS = "mesh.observer.requests.total.value", "mesh_observer_requests_total",
        Counter, "requests", &["outcome"], Observer, Own,
        "Observed requests by what became of them; ok, ended_early, preexisting and unknown_status are in Istio's families.";
    LOST_SYNC = "mesh.observer.parser.desyncs.total.value", "mesh_observer_parser_desyncs_total",
        Counter, "", &["reason"], Observer, Own,
        "Times a connection's position in its protocol was lost.";
    LOSSES = "mesh.observer.uncounted.total.value", "mesh_observer_uncounted_total",
        Counter, "", &["reason"], Observer, Own,
        "What the kernel programs could not count as they should.";
    AUDIT_CONNECTIONS = "mesh.observer.audit.connections.total.value", "mesh_observer_audit_connections_total",
        Counter, "connections", &[], Observer, Own,
        "Connections whose byte counts were compared with the kernel's own at their close.";
    AUDIT_EMPTY = "mesh.observer.audit.empty.connections.total.value", "mesh_observer_audit_empty_connections_total",
        Counter, "connections", &[], Observer, Own,
        "Connections that closed without a byte in either direction, of those whose byte counts were compared.";
    AUDIT_BYTES = "mesh.observer.audit.bytes.total.value", "mesh_observer_audit_bytes_total",
        Counter, "bytes", &["kind"], Observer, Own,
        "Bytes by which the observer's and the kernel's own counts differed at close.";
    SERIES_IN_USE = "mesh.observer.series.in.use.value", "mesh_observer_series_in_use",
        Gauge, "series", &[], Observer, Own,
        "Series in use in the kernel map.";
    SERIES_CAPACITY = "mesh.observer.series.capacity.value", "mesh_observer_series_capacity",
        Gauge, "series", &[], Observer, Own,
        "Most series the kernel map holds.";
    SERIES_OVERFLOWED = "mesh.observer.series.overflowed.total.value", "mesh_observer_series_overflowed_total",
        Counter, "", &[], Observer, Own,
        "Times a figure went to the overflow series because the map was full: its labels are lost, its total is not.";
    SERIES_EXPOSED = "mesh.observer.series.exposed.value", "mesh_observer_series_exposed",
        Gauge, "series", &[], Observer, Own,
        "Label sets now exposed.";
    SERIES_RETIRED = "mesh.observer.series.retired.total.value", "mesh_observer_series_retired_total",
        Counter, "series", &[], Observer, Own,
        "Label sets no longer exposed: idle, and their sidecars gone.";
    FIGURE_RESETS = "mesh.observer.counter.resets.total.value", "mesh_observer_counter_resets_total",
        Counter, "", &[], Observer, Own,
        "Times a kernel figure went back, so that counting went on from its new value.";
    COLLECTOR_RUNS = "mesh.observer.collector.runs.total.value", "mesh_observer_collector_runs_total",
        Counter, "runs", &["collector", "outcome"], Observer, Own,
        "Rounds of each collector by outcome.";
    COLLECTOR_SECONDS = "mesh.observer.collector.duration.seconds.total.value", "mesh_observer_collector_duration_seconds_total",
        Counter, "seconds", &["collector"], Observer, Own,
        "Time spent in each collector.";
    TICK_LATENESS = "mesh.observer.collection.delay.seconds.*.value", "mesh_observer_collection_delay_seconds",
        Histogram, "seconds", &[], Observer, Own,
        "How long after its time each reporting interval ended: the kernel's figures are read then.";
    EMITTER_QUEUE = "mesh.observer.emitter.queued.pushes.value", "mesh_observer_emitter_queued_pushes",
        Gauge, "pushes", &["emitter"], Observer, Own,
        "Reports that wait to be sent.";
    EMITTER_SENT = "mesh.observer.emitter.points.sent.total.value", "mesh_observer_emitter_points_sent_total",
        Counter, "points", &["emitter"], Observer, Own,
        "Points the receiver took.";
    EMITTER_REJECTED = "mesh.observer.emitter.points.rejected.total.value",
        "mesh_observer_emitter_points_rejected_total",
        Counter, "points", &["emitter", "reason"], Observer, Own,
        "Points not sent because they break the format's rules.";
    EMITTER_DROPPED = "mesh.observer.emitter.points.dropped.total.value", "mesh_observer_emitter_points_dropped_total",
        Counter, "points", &["emitter", "reason"], Observer, Own,
        "Points dropped: refused, not taken in time, or without room to wait.";
    EMITTER_REPORTS_DROPPED = "mesh.observer.emitter.pushes.dropped.total.value",
        "mesh_observer_emitter_pushes_dropped_total",
        Counter, "pushes", &["emitter", "reason"], Observer, Own,
        "Reports dropped unsent, oldest first.";
    EMITTER_ERRORS = "mesh.observer.emitter.errors.total.value", "mesh_observer_emitter_errors_total",
        Counter, "errors", &["emitter", "kind"], Observer, Own,
        "Sends that failed, the ones tried again included.";
    EMITTER_FILTERED = "mesh.observer.emitter.points.filtered.total.value",
        "mesh_observer_emitter_points_filtered_total",
        Counter, "points", &["emitter"], Observer, Own,
        "Points not sent because the configured filters keep them back.";
    EMITTER_DISK_POINTS = "mesh.observer.emitter.disk.points.value", "mesh_observer_emitter_disk_points",
        Gauge, "points", &["emitter"], Observer, Own,
        "Points that wait on disk to be sent.";
    EMITTER_DISK_BYTES = "mesh.observer.emitter.disk.bytes.value", "mesh_observer_emitter_disk_bytes",
        Gauge, "bytes", &["emitter"], Observer, Own,
        "Bytes on disk of points that wait to be sent.";
    SCRAPES = "mesh.observer.scrapes.total.value", "mesh_observer_scrapes_total",
        Counter, "scrapes", &["outcome"], Observer, Own,
        "Requests for the metrics page by outcome.";
    SCRAPE_SECONDS = "mesh.observer.scrape.duration.seconds.total.value", "mesh_observer_scrape_duration_seconds_total",
        Counter, "seconds", &[], Observer, Own,
        "Time spent in producing metrics pages.";
    SCRAPE_REFUSED = "mesh.observer.scrape.connections.refused.total.value",
        "mesh_observer_scrape_connections_refused_total",
        Counter, "connections", &[], Observer, Own,
        "Connections to the metrics port closed because too many were open.";
    CONTROL_PLANE_UP = "mesh.observer.control.plane.up.value", "mesh_observer_control_plane_up",
        Gauge, "", &["instance", "app", "scraper_node"], Observer, Own,
        "Whether the last scrape of this control-plane page brought figures.";
    CONTROL_PLANE_SCRAPES = "mesh.observer.control.plane.scrapes.total.value",
        "mesh_observer_control_plane_scrapes_total",
        Counter, "scrapes", &["instance", "app", "outcome", "scraper_node"], Observer, Own,
        "Scrapes of control-plane pages: ok, or why there were no figures.";
    CONTROL_PLANE_SCRAPE_SECONDS = "mesh.observer.control.plane.scrape.duration.seconds.value",
        "mesh_observer_control_plane_scrape_duration_seconds",
        Gauge, "seconds", &["instance", "app", "scraper_node"], Observer, Own,
        "How long the last scrape of this control-plane page took.";
    CONTROL_PLANE_SAMPLES = "mesh.observer.control.plane.samples.value", "mesh_observer_control_plane_samples",
        Gauge, "samples", &["instance", "app", "scraper_node"], Observer, Own,
        "Samples that the last scrape of this control-plane page brought.";
    CONTROL_PLANE_SKIPPED = "mesh.observer.control.plane.lines.skipped.total.value",
        "mesh_observer_control_plane_lines_skipped_total",
        Counter, "lines", &["instance", "app", "reason", "scraper_node"], Observer, Own,
        "Lines of control-plane pages that could not be read, or said again what was said.";
    CONTROL_PLANE_LEFT_OUT = "mesh.observer.control.plane.families.conflicting.value",
        "mesh_observer_control_plane_families_conflicting",
        Gauge, "families", &[], Observer, Own,
        "Families of control-plane pages that are not exposed: of another type elsewhere, or counted by the observer.";
    PROCESS_DIFFERENCE = "mesh.observer.process.metric.drift.value", "mesh_observer_process_metric_drift",
        Gauge, "", &["instance", "metric"], Observer, Own,
        "What a control plane says of its own process, less what procfs says now, which is exposed.";
    GATEWAY_ENCRYPTED = "mesh.observer.gateway.encrypted.connections.total.value",
        "mesh_observer_gateway_encrypted_connections_total",
        Counter, "connections", &["workload", "workload_namespace", "cluster", "port", "event"],
        Kernel, Own,
        "Encrypted connections at a gateway's door, opened and closed; the HTTP inside cannot be seen.";
}

/// Columns of the catalogue, in order.
const COLUMNS: [&str; 10] = [
    "documented_name",
    "prometheus_name",
    "type",
    "unit",
    "labels",
    "from",
    "stability",
    "help",
    "since_istio",
    "until_istio",
];

/// The column that a running observer's answer adds.
const LIVE: &str = "live";

/// Families that are printed: all, or with a running observer's answer those that are Istio's; of these the ones that
/// `wanted` chooses by one of their names.
pub fn printed(live: Option<&Live>, wanted: impl Fn(&str) -> bool) -> Vec<&'static Family> {
    let families = FAMILIES.iter().copied().filter(|family| live.is_none() || family.stability != Stability::Own);
    families.filter(|family| wanted(family.prometheus_name) || wanted(family.documented_name)).collect()
}

/// The catalogue for people: aligned columns without the help texts, which follow their family on a line of its own. With
/// a running observer's answer only that stands beside the names.
#[must_use]
pub fn table(families: &[&Family], live: Option<&Live>) -> String {
    let shown: &[usize] = if live.is_some() { &[0, 1] } else { &[0, 1, 2, 3, 5, 6, 8, 9] };
    let rows: Vec<_> = families.iter().map(|family| (cells(family), live.map(|live| live.says(family)))).collect();
    let width =
        |column: usize| rows.iter().map(|(row, _)| row[column].len()).max().unwrap_or(0).max(COLUMNS[column].len());
    let widths: Vec<_> = shown.iter().map(|column| width(*column)).collect();
    let line = |text: &mut String, row: [&str; COLUMNS.len()], last: &str| {
        for (column, width) in shown.iter().zip(&widths) {
            let _ = write!(text, "{:<width$}  ", row[*column]);
        }
        text.push_str(last);
        text.truncate(text.trim_end().len());
        text.push('\n');
    };
    let mut text = String::new();
    line(&mut text, COLUMNS, if live.is_some() { LIVE } else { "" });
    for (row, says) in &rows {
        line(&mut text, std::array::from_fn(|column| row[column].as_str()), says.as_deref().unwrap_or_default());
        if says.is_none() {
            let _ = writeln!(text, "    {}", row[7]);
            if !row[4].is_empty() {
                let _ = writeln!(text, "    labels: {}", row[4].replace(',', ", "));
            }
        }
    }
    text
}

/// The catalogue with one line a family, columns separated by tabs, the first line naming them.
#[must_use]
pub fn tsv(families: &[&Family], live: Option<&Live>) -> String {
    let mut text = COLUMNS.into_iter().chain(live.map(|_| LIVE)).collect::<Vec<_>>().join("\t");
    text.push('\n');
    for family in families {
        let cells = cells(family).into_iter().chain(live.map(|live| live.says(family)));
        text.push_str(&cells.collect::<Vec<_>>().join("\t"));
        text.push('\n');
    }
    text
}

/// The catalogue as a JSON array with one object a family.
#[must_use]
pub fn json(families: &[&Family], live: Option<&Live>) -> String {
    let families: Vec<_> = families
        .iter()
        .map(|family| {
            let mut json = serde_json::json!({
                "documented_name": family.documented_name,
                "prometheus_name": family.prometheus_name,
                "type": family.kind.word(),
                "unit": family.unit,
                "labels": family.labels,
                "from": family.origin.word(),
                "stability": family.stability.word(),
                "help": family.help,
                "since_istio": family.releases().map(|own| own.since.to_string()),
                "until_istio": until(family),
            });
            if let Some(live) = live {
                json[LIVE] = live.says(family).into();
            }
            json
        })
        .collect();
    format!("{:#}\n", serde_json::Value::Array(families))
}

fn until(family: &Family) -> Option<String> {
    Some(family.releases()?.until?.to_string())
}

fn cells(family: &Family) -> [String; COLUMNS.len()] {
    [
        family.documented_name.to_owned(),
        family.prometheus_name.to_owned(),
        family.kind.word().to_owned(),
        family.unit.to_owned(),
        family.labels.join(","),
        family.origin.word().to_owned(),
        family.stability.word().to_owned(),
        family.help.to_owned(),
        family.releases().map(|own| own.since.to_string()).unwrap_or_default(),
        until(family).unwrap_or_default(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_family_stands_once_under_valid_names() {
        let (mut documented, mut prometheus) = (HashSet::new(), HashSet::new());
        for family in FAMILIES {
            assert!(documented.insert(family.documented_name), "{} twice", family.documented_name);
            assert!(prometheus.insert(family.prometheus_name), "{} twice", family.prometheus_name);
            assert!(family.prometheus_name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'));
            assert!(family.documented_name.ends_with(".value"));
            assert!(!family.help.contains(['\t', '\n', '\\', '"']), "{}", family.help);
        }
    }

    #[test]
    fn counters_of_our_own_end_in_total_as_openmetrics_demands() {
        for family in FAMILIES.iter().filter(|family| family.origin != Origin::Istiod) {
            assert_eq!(family.kind == Kind::Counter, family.prometheus_name.ends_with("_total"));
        }
    }

    #[test]
    fn documented_names_are_the_prometheus_names_with_dots() {
        for family in FAMILIES {
            let plain = family.documented_name.replace(".*", "").replace(".bucket.value", ".value");
            let expected = format!("{}.value", family.prometheus_name.replace('_', "."));
            // The documented name differs from istiod's real one.
            if plain != "citadel.server.csr.sign.error.count.value" {
                assert_eq!(plain, expected);
            }
        }
    }

    #[test]
    fn every_row_of_the_tsv_has_all_columns() {
        let text = tsv(&printed(None, |_| true), None);
        assert!(text.starts_with("documented_name\tprometheus_name\ttype\tunit\t"));
        assert!(text.lines().all(|line| line.split('\t').count() == COLUMNS.len()));
        assert_eq!(text.lines().count(), FAMILIES.len() + 1);
    }

    #[test]
    fn releases_are_read_from_tags_and_tell_what_is_reported() {
        for (tag, release) in [
            ("1.12.9", Some((1, 12))),
            ("1.32-dev", Some((1, 32))),
            ("1.25.3-distroless", Some((1, 25))),
            ("2.0", Some((2, 0))),
        ] {
            assert_eq!(Release::parse(tag), release.map(|(major, minor)| Release::new(major, minor)), "{tag}");
        }
        for tag in ["", "latest", "1", "v1.2.3", "master-1.2", "0f3c9-1", "99999.1"] {
            assert_eq!(Release::parse(tag), None, "{tag}");
        }
        let removed = PILOT_XDS_PUSH_CONTEXT_ERRORS.releases().unwrap();
        assert!(removed.include(Release::new(1, 25)) && !removed.include(Release::new(1, 26)));
        assert_eq!(GALLEY_VALIDATION_CONFIG_LOAD.releases(), None);
        assert_eq!(REQUESTS.releases(), None);
        assert!(FAMILIES.iter().all(|own| (own.stability == Stability::Removed) == (until(own).is_some())));
    }

    #[test]
    fn a_running_observer_answers_for_istios_families() {
        let live = Live::default();
        let istio = printed(Some(&live), |_| true);
        let text = tsv(&istio, Some(&live));
        assert!(text.lines().all(|line| line.split('\t').count() == COLUMNS.len() + 1));
        let istios = FAMILIES.iter().filter(|family| family.stability != Stability::Own).count();
        assert_eq!(text.lines().count(), istios + 1);
        assert_eq!(json(&istio, Some(&live)).matches("no data: ").count(), istios);
        let table = table(&istio, Some(&live));
        assert!(table.lines().skip(1).all(|line| line.contains("  no data: ")), "{table}");
    }

    #[test]
    fn the_formats_name_every_family() {
        let all = printed(None, |_| true);
        let (table, json) = (table(&all, None), json(&all, None));
        let parsed: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(parsed.as_array().unwrap().len(), FAMILIES.len());
        assert!(FAMILIES.iter().all(|family| table.contains(family.prometheus_name)));
    }
}
