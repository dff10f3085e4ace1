//! The catalogue of metric families, and the only place of their names.

use std::{
    collections::HashMap,
    fmt::{self, Write},
    sync::LazyLock,
};

use crate::{
    exposition::MetricType,
    labels::{HTTP_NAMES, PROCESS_NAMES, TCP_NAMES},
};

/// Where the values of a family come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// eBPF programs on the sidecars' sockets.
    Kernel,
    /// The `/metrics` endpoint of istiod.
    Istiod,
    /// `/proc`.
    Procfs,
    /// The observer itself.
    Observer,
}

impl Origin {
    /// Returns the word in the catalogue.
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

/// How long a name is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stability {
    /// Istio's, kept as long as Istio keeps it.
    Stable,
    /// Istio's, removed from newer releases of istiod.
    Removed,
    /// Documented, but not reported by any supported release of istiod.
    Never,
    /// The observer's own; may change between minor versions.
    Own,
}

impl Stability {
    /// Returns the word in the catalogue.
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

/// Describes a metric family: one name, one type, one unit.
#[derive(Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Name in Wavefront; `*` stands for the statistic of a histogram.
    pub documented_name: &'static str,
    /// Name in Prometheus.
    pub prometheus_name: &'static str,
    /// Type.
    pub metric_type: MetricType,
    /// Unit of the value, empty where it has none.
    pub unit: &'static str,
    /// Label names in exposition order, without `le`.
    pub labels: &'static [&'static str],
    /// Where the values come from.
    pub origin: Origin,
    /// How long the name is kept.
    pub stability: Stability,
    /// One sentence of help.
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

    /// Parses the release at the start of a build's tag, e.g. `1.25.3-distroless`.
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
    /// The oldest one measured; older ones may report it too.
    pub since: Release,
    /// The last one; `None` if the newest still reports it.
    pub until: Option<Release>,
}

impl Releases {
    /// Returns whether this release reports it.
    #[must_use]
    pub fn include(&self, release: Release) -> bool {
        self.until.is_none_or(|until| release <= until)
    }
}

/// The oldest release that was measured.
const OLDEST: Release = Release::new(1, 12);
/// Families that newer releases no longer report, and their last release, as measured and as in istiod's history.
static LAST: [(&Descriptor, Release); 3] = [
    (&PILOT_XDS_PUSH_CONTEXT_ERRORS, Release::new(1, 25)),
    (&PILOT_CONFLICT_OUTBOUND_LISTENER_HTTP_OVER_CURRENT_TCP, Release::new(1, 18)),
    (&PILOT_CONFLICT_OUTBOUND_LISTENER_TCP_OVER_CURRENT_HTTP, Release::new(1, 18)),
];

impl Descriptor {
    /// Returns the releases of Istio that report it; `None` if no supported one does or it does not come from Istio.
    #[must_use]
    pub fn releases(&self) -> Option<Releases> {
        let until = LAST.iter().find(|(family, _)| *family == self).map(|(_, last)| *last);
        (self.origin == Origin::Istiod && self.stability != Stability::Never)
            .then_some(Releases { since: OLDEST, until })
    }
}

/// Returns the family of this name in Prometheus.
#[must_use]
pub fn by_prometheus_name(name: &str) -> Option<&'static Descriptor> {
    static BY_NAME: LazyLock<HashMap<&str, &Descriptor>> =
        LazyLock::new(|| FAMILIES.iter().map(|family| (family.prometheus_name, *family)).collect());
    BY_NAME.get(name).copied()
}

macro_rules! families {
    ($($name:ident = $documented:literal, $prometheus:literal, $metric_type:ident, $unit:literal, $labels:expr,
        $origin:ident, $stability:ident, $help:literal;)*) => {
        $(#[doc = $help]
        pub static $name: Descriptor = Descriptor {
            documented_name: $documented,
            prometheus_name: $prometheus,
            metric_type: MetricType::$metric_type,
            unit: $unit,
            labels: $labels,
            origin: Origin::$origin,
            stability: Stability::$stability,
            help: $help,
        };)*

        /// Every family, in catalogue order.
        pub static FAMILIES: &[&Descriptor] = &[$(&$name,)*];
    };
}

families! {
    REQUEST_BYTES = "istio.request.bytes.*.value", "istio_request_bytes",
        Histogram, "bytes", &HTTP_NAMES, Kernel, Stable,
        "Wire bytes of each request on the observed plaintext leg, headers and framing included.";
    REQUEST_DURATION = "istio.request.duration.milliseconds.*.value", "istio_request_duration_milliseconds",
        Histogram, "milliseconds", &HTTP_NAMES, Kernel, Stable,
        "Time from the first request byte to the last response byte, in whole milliseconds.";
    RESPONSE_BYTES = "istio.response.bytes.*.value", "istio_response_bytes",
        Histogram, "bytes", &HTTP_NAMES, Kernel, Stable,
        "Wire bytes of each response on the observed plaintext leg, headers and framing included.";
    REQUESTS = "istio.requests.total.value", "istio_requests_total",
        Counter, "requests", &HTTP_NAMES, Kernel, Stable,
        "Requests, counted once each when their stream ends.";
    REQUEST_MESSAGES = "istio.request.messages.total.value", "istio_request_messages_total",
        Counter, "messages", &HTTP_NAMES, Kernel, Stable,
        "gRPC messages from client to server, counted when their call ends.";
    RESPONSE_MESSAGES = "istio.response.messages.total.value", "istio_response_messages_total",
        Counter, "messages", &HTTP_NAMES, Kernel, Stable,
        "gRPC messages from server to client, counted when their call ends.";
    TCP_SENT_BYTES = "istio.tcp.sent.bytes.total.value", "istio_tcp_sent_bytes_total",
        Counter, "bytes", &TCP_NAMES, Kernel, Stable,
        "Payload bytes from server to client, at either reporter.";
    TCP_RECEIVED_BYTES = "istio.tcp.received.bytes.total.value", "istio_tcp_received_bytes_total",
        Counter, "bytes", &TCP_NAMES, Kernel, Stable,
        "Payload bytes from client to server, at either reporter.";
    TCP_OPENED = "istio.tcp.connections.opened.total.value", "istio_tcp_connections_opened_total",
        Counter, "connections", &TCP_NAMES, Kernel, Stable,
        "TCP connections established.";
    TCP_CLOSED = "istio.tcp.connections.closed.total.value", "istio_tcp_connections_closed_total",
        Counter, "connections", &TCP_NAMES, Kernel, Stable,
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
        "Proxies that rejected a cluster configuration; a flag that istiod never clears.";
    PILOT_XDS_EDS_REJECT = "pilot.xds.eds.reject.value", "pilot_xds_eds_reject",
        Gauge, "", &["node", "err"], Istiod, Stable,
        "Proxies that rejected an endpoint configuration; a flag that istiod never clears.";
    PILOT_XDS_LDS_REJECT = "pilot.xds.lds.reject.value", "pilot_xds_lds_reject",
        Gauge, "", &["node", "err"], Istiod, Stable,
        "Proxies that rejected a listener configuration; a flag that istiod never clears.";
    PILOT_XDS_RDS_REJECT = "pilot.xds.rds.reject.value", "pilot_xds_rds_reject",
        Gauge, "", &["node", "err"], Istiod, Stable,
        "Proxies that rejected a route configuration; a flag that istiod never clears.";
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
        Counter, "seconds", &PROCESS_NAMES, Procfs, Stable,
        "User and system CPU time of the control-plane and sidecar processes on the node.";
    PROCESS_RESIDENT_MEMORY_BYTES = "process.resident.memory.bytes.value", "process_resident_memory_bytes",
        Gauge, "bytes", &PROCESS_NAMES, Procfs, Stable,
        "Resident memory of the control-plane and sidecar processes on the node.";
    PROCESS_VIRTUAL_MEMORY_BYTES = "process.virtual.memory.bytes.value", "process_virtual_memory_bytes",
        Gauge, "bytes", &PROCESS_NAMES, Procfs, Stable,
        "Virtual memory of the control-plane and sidecar processes on the node.";
    PROCESS_OPEN_FDS = "process.open.fds.value", "process_open_fds",
        Gauge, "", &PROCESS_NAMES, Procfs, Stable,
        "File descriptors in use by the control-plane and sidecar processes on the node.";
    PROCESS_MAX_FDS = "process.max.fds.value", "process_max_fds",
        Gauge, "", &PROCESS_NAMES, Procfs, Stable,
        "Most file descriptors that the process may have (soft limit).";
    PROCESS_START_TIME_SECONDS = "process.start.time.seconds.value", "process_start_time_seconds",
        Gauge, "seconds", &PROCESS_NAMES, Procfs, Stable,
        "When the process started, in seconds since 1970.";
    PROCESS_THREADS = "process.threads.value", "process_threads",
        Gauge, "", &PROCESS_NAMES, Procfs, Own,
        "Threads of the control-plane and sidecar processes on the node.";
    CGROUP_MEMORY = "mesh.observer.cgroup.memory.bytes.value", "mesh_observer_cgroup_memory_bytes",
        Gauge, "bytes", &PROCESS_NAMES, Procfs, Own,
        "Memory charged to the cgroup of the process (cgroup v2 memory.current), page cache included.";
    CGROUP_MEMORY_LIMIT = "mesh.observer.cgroup.memory.limit.bytes.value", "mesh_observer_cgroup_memory_limit_bytes",
        Gauge, "bytes", &PROCESS_NAMES, Procfs, Own,
        "Memory limit of the cgroup of the process (cgroup v2 memory.max); absent without a limit.";
    CGROUP_CPU_PERIODS = "mesh.observer.cgroup.cpu.periods.total.value", "mesh_observer_cgroup_cpu_periods_total",
        Counter, "periods", &PROCESS_NAMES, Procfs, Own,
        "Enforcement periods of the CPU limit of the cgroup of the process (cgroup v2 cpu.stat, nr_periods).";
    CGROUP_CPU_THROTTLED_PERIODS = "mesh.observer.cgroup.cpu.throttled.periods.total.value",
        "mesh_observer_cgroup_cpu_throttled_periods_total",
        Counter, "periods", &PROCESS_NAMES, Procfs, Own,
        "Periods in which the cgroup of the process was throttled (cgroup v2 cpu.stat, nr_throttled).";
    CGROUP_CPU_THROTTLED_SECONDS = "mesh.observer.cgroup.cpu.throttled.seconds.total.value",
        "mesh_observer_cgroup_cpu_throttled_seconds_total",
        Counter, "seconds", &PROCESS_NAMES, Procfs, Own,
        "Time for which the cgroup of the process was throttled (cgroup v2 cpu.stat, throttled_usec).";
    PROCESSES = "mesh.observer.processes.value", "mesh_observer_processes",
        Gauge, "processes", &["outcome"], Observer, Own,
        "Processes that were read: exposed, or hidden by a younger one with the same labels.";
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
        "Sidecars and gateways found to which the eBPF programs could not be attached.";
    PROGRAM_LINKS = "mesh.observer.program.links.value", "mesh_observer_program_links",
        Gauge, "links", &["program"], Observer, Own,
        "Cgroups that each eBPF program is attached to.";
    PROGRAM_RUNS = "mesh.observer.program.runs.total.value", "mesh_observer_program_runs_total",
        Counter, "runs", &["program"], Observer, Own,
        "Runs of each eBPF program, where the kernel counts them (kernel.bpf_stats_enabled).";
    PROGRAM_SECONDS = "mesh.observer.program.run.seconds.total.value", "mesh_observer_program_run_seconds_total",
        Counter, "seconds", &["program"], Observer, Own,
        "Time spent in each eBPF program, where the kernel counts it (kernel.bpf_stats_enabled).";
    CONNECTIONS = "mesh.observer.connections.total.value", "mesh_observer_connections_total",
        Counter, "connections", &["outcome"], Observer, Own,
        "Observed connections by outcome of their parsing.";
    PARSED_REQUESTS = "mesh.observer.requests.total.value", "mesh_observer_requests_total",
        Counter, "requests", &["outcome"], Observer, Own,
        "Observed requests by outcome; ok, ended_early, preexisting and unknown_status are in Istio's families.";
    DESYNCS = "mesh.observer.parser.desyncs.total.value", "mesh_observer_parser_desyncs_total",
        Counter, "", &["reason"], Observer, Own,
        "Times a connection's position in its protocol was lost.";
    UNCOUNTED = "mesh.observer.uncounted.total.value", "mesh_observer_uncounted_total",
        Counter, "", &["reason"], Observer, Own,
        "What the eBPF programs could not count as they should.";
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
        "Capacity of the kernel map, in series.";
    SERIES_OVERFLOWED = "mesh.observer.series.overflowed.total.value", "mesh_observer_series_overflowed_total",
        Counter, "", &[], Observer, Own,
        "Times a value was counted in the overflow series, without its labels, because the map was full.";
    SERIES_EXPOSED = "mesh.observer.series.exposed.value", "mesh_observer_series_exposed",
        Gauge, "series", &[], Observer, Own,
        "Label sets now exposed.";
    SERIES_RETIRED = "mesh.observer.series.retired.total.value", "mesh_observer_series_retired_total",
        Counter, "series", &[], Observer, Own,
        "Label sets no longer exposed: idle, and their sidecars ended.";
    SERIES_RESETS = "mesh.observer.series.resets.total.value", "mesh_observer_series_resets_total",
        Counter, "", &[], Observer, Own,
        "Times a kernel total decreased, so that counting continued from its new value.";
    UNRESOLVED_CALLERS = "mesh.observer.unresolved.callers.total.value", "mesh_observer_unresolved_callers_total",
        Counter, "", &["reason"], Observer, Own,
        "Requests and TCP connections at the destination whose source_workload is unknown, by reason.";
    COLLECTOR_RUNS = "mesh.observer.collector.runs.total.value", "mesh_observer_collector_runs_total",
        Counter, "runs", &["collector", "outcome"], Observer, Own,
        "Runs of each collector by outcome.";
    COLLECTOR_SECONDS = "mesh.observer.collector.duration.seconds.total.value",
        "mesh_observer_collector_duration_seconds_total",
        Counter, "seconds", &["collector"], Observer, Own,
        "Time spent in each collector.";
    COLLECTION_DELAY = "mesh.observer.collection.delay.seconds.*.value", "mesh_observer_collection_delay_seconds",
        Histogram, "seconds", &[], Observer, Own,
        "Delay of the end of each reporting interval, when the kernel maps are read.";
    EMITTER_QUEUE = "mesh.observer.emitter.queued.pushes.value", "mesh_observer_emitter_queued_pushes",
        Gauge, "pushes", &["emitter"], Observer, Own,
        "Pushes that wait to be sent.";
    EMITTER_SENT = "mesh.observer.emitter.points.sent.total.value", "mesh_observer_emitter_points_sent_total",
        Counter, "points", &["emitter"], Observer, Own,
        "Points accepted by the receiver.";
    EMITTER_REJECTED = "mesh.observer.emitter.points.rejected.total.value",
        "mesh_observer_emitter_points_rejected_total",
        Counter, "points", &["emitter", "reason"], Observer, Own,
        "Points not sent because they break the format's rules.";
    EMITTER_DROPPED = "mesh.observer.emitter.points.dropped.total.value", "mesh_observer_emitter_points_dropped_total",
        Counter, "points", &["emitter", "reason"], Observer, Own,
        "Points dropped: refused, not accepted in time, or without space to wait.";
    EMITTER_PUSHES_DROPPED = "mesh.observer.emitter.pushes.dropped.total.value",
        "mesh_observer_emitter_pushes_dropped_total",
        Counter, "pushes", &["emitter", "reason"], Observer, Own,
        "Pushes dropped unsent, oldest first.";
    EMITTER_ERRORS = "mesh.observer.emitter.errors.total.value", "mesh_observer_emitter_errors_total",
        Counter, "errors", &["emitter", "kind"], Observer, Own,
        "Failed sends, including those that are retried.";
    EMITTER_FILTERED = "mesh.observer.emitter.points.filtered.total.value",
        "mesh_observer_emitter_points_filtered_total",
        Counter, "points", &["emitter"], Observer, Own,
        "Points held back by the configured filters.";
    EMITTER_DISK_POINTS = "mesh.observer.emitter.disk.points.value", "mesh_observer_emitter_disk_points",
        Gauge, "points", &["emitter"], Observer, Own,
        "Points that wait on disk to be sent.";
    EMITTER_DISK_BYTES = "mesh.observer.emitter.disk.bytes.value", "mesh_observer_emitter_disk_bytes",
        Gauge, "bytes", &["emitter"], Observer, Own,
        "Bytes on disk of points that wait to be sent.";
    SCRAPES = "mesh.observer.scrapes.total.value", "mesh_observer_scrapes_total",
        Counter, "scrapes", &["outcome"], Observer, Own,
        "Requests to the /metrics endpoint by outcome.";
    SCRAPE_SECONDS = "mesh.observer.scrape.duration.seconds.total.value", "mesh_observer_scrape_duration_seconds_total",
        Counter, "seconds", &[], Observer, Own,
        "Time spent rendering /metrics.";
    SCRAPE_REFUSED = "mesh.observer.scrape.connections.refused.total.value",
        "mesh_observer_scrape_connections_refused_total",
        Counter, "connections", &[], Observer, Own,
        "Connections to the metrics port closed because too many were open.";
    CONTROL_PLANE_UP = "mesh.observer.control.plane.up.value", "mesh_observer_control_plane_up",
        Gauge, "", &["instance", "app", "scraper_node"], Observer, Own,
        "Whether the last scrape of this control-plane instance succeeded.";
    CONTROL_PLANE_SCRAPES = "mesh.observer.control.plane.scrapes.total.value",
        "mesh_observer_control_plane_scrapes_total",
        Counter, "scrapes", &["instance", "app", "outcome", "scraper_node"], Observer, Own,
        "Scrapes of control-plane instances: ok, or why they failed.";
    CONTROL_PLANE_SCRAPE_SECONDS = "mesh.observer.control.plane.scrape.duration.seconds.value",
        "mesh_observer_control_plane_scrape_duration_seconds",
        Gauge, "seconds", &["instance", "app", "scraper_node"], Observer, Own,
        "Duration of the last scrape of this control-plane instance.";
    CONTROL_PLANE_SAMPLES = "mesh.observer.control.plane.samples.value", "mesh_observer_control_plane_samples",
        Gauge, "samples", &["instance", "app", "scraper_node"], Observer, Own,
        "Samples of the last scrape of this control-plane instance.";
    CONTROL_PLANE_SKIPPED = "mesh.observer.control.plane.lines.skipped.total.value",
        "mesh_observer_control_plane_lines_skipped_total",
        Counter, "lines", &["instance", "app", "reason", "scraper_node"], Observer, Own,
        "Scraped lines of control-plane instances that were invalid or duplicates.";
    CONTROL_PLANE_CONFLICTING = "mesh.observer.control.plane.families.conflicting.value",
        "mesh_observer_control_plane_families_conflicting",
        Gauge, "families", &[], Observer, Own,
        "Scraped families that are not exposed: of another type at another instance, or counted by the observer.";
    KUBERNETES_REQUESTS = "mesh.observer.kubernetes.requests.total.value", "mesh_observer_kubernetes_requests_total",
        Counter, "requests", &["resource", "outcome"], Observer, Own,
        "Requests to the Kubernetes API: ok, or why they failed.";
    KUBERNETES_WATCHES = "mesh.observer.kubernetes.watch.open.value", "mesh_observer_kubernetes_watch_open",
        Gauge, "", &["resource"], Observer, Own,
        "Whether a watch of the resource is open at the Kubernetes API.";
    KUBERNETES_STALENESS = "mesh.observer.kubernetes.staleness.seconds.value",
        "mesh_observer_kubernetes_staleness_seconds",
        Gauge, "seconds", &["resource"], Observer, Own,
        "Time since a watch of the resource was open last: changes since then are not known.";
    KUBERNETES_OBJECTS = "mesh.observer.kubernetes.objects.value", "mesh_observer_kubernetes_objects",
        Gauge, "objects", &["kind"], Observer, Own,
        "Objects of the Kubernetes API that are kept.";
    KUBERNETES_REJECTED = "mesh.observer.kubernetes.objects.rejected.total.value",
        "mesh_observer_kubernetes_objects_rejected_total",
        Counter, "objects", &["resource", "reason"], Observer, Own,
        "Objects of the Kubernetes API that are not kept, each time that they were read.";
    DESTINATIONS_UNRESOLVED = "mesh.observer.destinations.unresolved.value", "mesh_observer_destinations_unresolved",
        Gauge, "destinations", &["reason"], Observer, Own,
        "Addresses and ports that this node calls and whose workload the Kubernetes API does not show.";
    PROCESS_DRIFT = "mesh.observer.process.metric.drift.value", "mesh_observer_process_metric_drift",
        Gauge, "", &["instance", "metric"], Observer, Own,
        "Value that a control plane exposes of its own process, less the value in procfs, which is exposed instead.";
    GATEWAY_ENCRYPTED = "mesh.observer.gateway.encrypted.connections.total.value",
        "mesh_observer_gateway_encrypted_connections_total",
        Counter, "connections", &["workload", "workload_namespace", "cluster", "port", "event"],
        Kernel, Own,
        "Encrypted connections at a gateway's listener, opened and closed; the HTTP inside is not visible.";
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

/// Whether a running observer has data for a family, or why not; adds a column.
pub type Live<'a> = &'a dyn Fn(&Descriptor) -> String;

/// Title of that column.
const LIVE: &str = "live";

/// Returns the families to print: all, or Istio's for a running observer; of these the ones with a name that
/// `wanted` selects.
pub fn printed(live: Option<Live<'_>>, wanted: impl Fn(&str) -> bool) -> Vec<&'static Descriptor> {
    let families = FAMILIES.iter().copied().filter(|family| live.is_none() || family.stability != Stability::Own);
    families.filter(|family| wanted(family.prometheus_name) || wanted(family.documented_name)).collect()
}

/// Formats aligned columns, the help text on a line below each family; for a running observer only names and status.
#[must_use]
pub fn table(families: &[&Descriptor], live: Option<Live<'_>>) -> String {
    let shown: &[usize] = if live.is_some() { &[0, 1] } else { &[0, 1, 2, 3, 5, 6, 8, 9] };
    let rows: Vec<_> = families.iter().map(|family| (cells(family), live.map(|live| live(family)))).collect();
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

/// Formats tab-separated values, one line per family, with a header line.
#[must_use]
pub fn tsv(families: &[&Descriptor], live: Option<Live<'_>>) -> String {
    let mut text = COLUMNS.into_iter().chain(live.map(|_| LIVE)).collect::<Vec<_>>().join("\t");
    text.push('\n');
    for family in families {
        let cells = cells(family).into_iter().chain(live.map(|live| live(family)));
        text.push_str(&cells.collect::<Vec<_>>().join("\t"));
        text.push('\n');
    }
    text
}

/// Formats a JSON array with one object per family.
#[must_use]
pub fn json(families: &[&Descriptor], live: Option<Live<'_>>) -> String {
    let families: Vec<_> = families
        .iter()
        .map(|family| {
            let mut json = serde_json::json!({
                "documented_name": family.documented_name,
                "prometheus_name": family.prometheus_name,
                "type": family.metric_type.name(),
                "unit": family.unit,
                "labels": family.labels,
                "from": family.origin.word(),
                "stability": family.stability.word(),
                "help": family.help,
                "since_istio": family.releases().map(|own| own.since.to_string()),
                "until_istio": until(family),
            });
            if let Some(live) = live {
                json[LIVE] = live(family).into();
            }
            json
        })
        .collect();
    format!("{:#}\n", serde_json::Value::Array(families))
}

fn until(family: &Descriptor) -> Option<String> {
    Some(family.releases()?.until?.to_string())
}

fn cells(family: &Descriptor) -> [String; COLUMNS.len()] {
    [
        family.documented_name.to_owned(),
        family.prometheus_name.to_owned(),
        family.metric_type.name().to_owned(),
        family.unit.to_owned(),
        family.labels.join(","),
        family.origin.word().to_owned(),
        family.stability.word().to_owned(),
        family.help.to_owned(),
        family.releases().map(|own| own.since.to_string()).unwrap_or_default(),
        until(family).unwrap_or_default(),
    ]
}

/// Names of Istio's tags of spans, which Envoy's tracers set too.
pub(crate) mod span_tags {
    pub(crate) const CANONICAL_SERVICE: &str = "istio.canonical_service";
    pub(crate) const CANONICAL_REVISION: &str = "istio.canonical_revision";
    pub(crate) const NAMESPACE: &str = "istio.namespace";
    pub(crate) const CLUSTER_ID: &str = "istio.cluster_id";
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
            assert_eq!(family.metric_type == MetricType::Counter, family.prometheus_name.ends_with("_total"));
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
        let live: Live<'_> = &|_| "no data: x".to_owned();
        let istio = printed(Some(live), |_| true);
        let text = tsv(&istio, Some(live));
        assert!(text.lines().all(|line| line.split('\t').count() == COLUMNS.len() + 1));
        let istios = FAMILIES.iter().filter(|family| family.stability != Stability::Own).count();
        assert_eq!(text.lines().count(), istios + 1);
        assert_eq!(json(&istio, Some(live)).matches("no data: ").count(), istios);
        let table = table(&istio, Some(live));
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
