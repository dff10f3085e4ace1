//! Content of "Istio Control Plane".

use observer_model::{
    catalogue::{
        CITADEL_SERVER_CSR_COUNT, CITADEL_SERVER_CSR_SIGN_ERR_COUNT, CITADEL_SERVER_SUCCESS_CERT_ISSUANCE_COUNT,
        CONTROL_PLANE_UP, Descriptor, GALLEY_VALIDATION_CONFIG_DELETE_ERROR, GALLEY_VALIDATION_CONFIG_LOAD,
        GALLEY_VALIDATION_CONFIG_LOAD_ERROR, GALLEY_VALIDATION_CONFIG_UPDATE_ERROR, GALLEY_VALIDATION_CONFIG_UPDATES,
        GALLEY_VALIDATION_FAILED, GALLEY_VALIDATION_HTTP_ERROR, GALLEY_VALIDATION_PASSED, GO_GOROUTINES,
        GO_MEMSTATS_ALLOC_BYTES, GO_MEMSTATS_HEAP_ALLOC_BYTES, GO_MEMSTATS_HEAP_INUSE_BYTES,
        GO_MEMSTATS_HEAP_SYS_BYTES, GO_MEMSTATS_STACK_INUSE_BYTES, ISTIO_BUILD, Origin,
        PILOT_CONFLICT_INBOUND_LISTENER, PILOT_CONFLICT_OUTBOUND_LISTENER_HTTP_OVER_CURRENT_TCP,
        PILOT_CONFLICT_OUTBOUND_LISTENER_TCP_OVER_CURRENT_HTTP, PILOT_CONFLICT_OUTBOUND_LISTENER_TCP_OVER_CURRENT_TCP,
        PILOT_PROXY_CONVERGENCE_TIME, PILOT_PROXY_QUEUE_TIME, PILOT_SERVICES, PILOT_TOTAL_XDS_INTERNAL_ERRORS,
        PILOT_TOTAL_XDS_REJECTS, PILOT_VIRT_SERVICES, PILOT_XDS_CDS_REJECT, PILOT_XDS_EDS_REJECT, PILOT_XDS_LDS_REJECT,
        PILOT_XDS_PUSH_CONTEXT_ERRORS, PILOT_XDS_PUSHES, PILOT_XDS_RDS_REJECT, PILOT_XDS_WRITE_TIMEOUT,
        PROCESS_CPU_SECONDS_TOTAL, PROCESS_OPEN_FDS, PROCESS_RESIDENT_MEMORY_BYTES, PROCESS_THREADS,
        PROCESS_VIRTUAL_MEMORY_BYTES, Stability,
    },
    exposition::MetricType,
};

use crate::{
    board::{Board, Choice, Colour, Panel, Row, Shown, Thresholds, Unit, Variable},
    query::{Match, Query, Series},
};

const INSTANCE: Match = Match::Selected("instance", "instance");
/// Processes of the control plane, which are those that are not a proxy's.
const NO_PROXY: Match = Match::None("app", &["istio-proxy"]);
/// Instances have an address at least; discovered ones a pod.
const BY: [&str; 2] = ["instance", "pod"];
const NONE_IS_FINE: Thresholds = &[(0.0, Colour::Fine), (1e-9, Colour::Warning)];
/// Seconds.
const DAY: f64 = 86_400.0;
const EXPIRY: Thresholds = &[(0.0, Colour::Bad), (30.0 * DAY, Colour::Warning), (90.0 * DAY, Colour::Fine)];

/// Families that are exposed as istiod has them, and are not in the catalogue.
macro_rules! passed_through {
    ($($name:ident = $documented:literal, $prometheus:literal, $metric_type:ident, $unit:literal, $help:literal;)*) => {
        $(static $name: Descriptor = Descriptor {
            documented_name: $documented,
            prometheus_name: $prometheus,
            metric_type: MetricType::$metric_type,
            unit: $unit,
            labels: &[],
            origin: Origin::Istiod,
            stability: Stability::Stable,
            help: $help,
        };)*
    };
}

passed_through! {
    PROXIES = "pilot.xds.value", "pilot_xds", Gauge, "", "Proxies connected to the control plane.";
    ROOT_EXPIRY = "citadel.server.root.cert.expiry.timestamp.value", "citadel_server_root_cert_expiry_timestamp",
        Gauge, "seconds", "When the root certificate expires, in seconds since 1970.";
    INJECTIONS = "sidecar.injection.requests.total.value", "sidecar_injection_requests_total",
        Counter, "", "Requests to inject a sidecar.";
    INJECTED = "sidecar.injection.success.total.value", "sidecar_injection_success_total",
        Counter, "", "Sidecars injected.";
    INJECTION_FAILURES = "sidecar.injection.failure.total.value", "sidecar_injection_failure_total",
        Counter, "", "Sidecars that could not be injected.";
    INJECTION_SKIPS = "sidecar.injection.skip.total.value", "sidecar_injection_skip_total",
        Counter, "", "Requests that needed no sidecar.";
}

pub(crate) fn board() -> Board {
    Board {
        id: "istio-control-plane",
        title: "Istio Control Plane",
        description: "Configuration, validation, certificates and processes of istiod.",
        variables: vec![Variable {
            name: "instance",
            label: "Instance",
            choice: Choice::Values("instance", vec![&ISTIO_BUILD, &PROCESS_CPU_SECONDS_TOTAL], &[NO_PROXY], Shown::All),
        }],
        rows: vec![
            overview(),
            pushes(),
            convergence(),
            conflicts(),
            validation(),
            certificates(),
            injection(),
            processes(),
            runtime(),
        ],
    }
}

fn series(family: &'static Descriptor) -> Series {
    Series::new(family, &[INSTANCE])
}

/// A value or rate of each instance and each set of the family's own labels.
fn each(family: &'static Descriptor) -> Query {
    series(family).by(&[BY.as_slice(), family.labels].concat()).max()
}

fn lines(title: &'static str, unit: Unit, family: &'static Descriptor) -> Panel {
    Panel::lines(title, unit).with("", each(family))
}

fn overview() -> Row {
    let highest = |title, family| Panel::number(title, Unit::Number, series(family).max());
    Row {
        title: "Overview",
        panels: vec![
            Panel::number("Instances answering", Unit::Share, Series::new(&CONTROL_PLANE_UP, &[]).average())
                .marking(&[(0.0, Colour::Bad), (1.0, Colour::Fine)]),
            highest("Services", &PILOT_SERVICES),
            highest("Virtual services", &PILOT_VIRT_SERVICES),
            Panel::number("Proxies connected", Unit::Number, series(&PROXIES).sum()),
            Panel::number("Goroutines", Unit::Number, series(&GO_GOROUTINES).sum()),
            Panel::number("Configurations rejected", Unit::PerSecond, series(&PILOT_TOTAL_XDS_REJECTS).sum())
                .marking(NONE_IS_FINE),
            Panel::table("Builds").sized(12, 8).column(
                "Value",
                Unit::Number,
                Series::new(&ISTIO_BUILD, &[]).by(&["app", "instance", "pod", "component", "tag"]).max(),
            ),
            Panel::areas("Pushes by type", Unit::PerSecond).with("", series(&PILOT_XDS_PUSHES).by(&["type"]).sum()),
        ],
    }
}

fn pushes() -> Row {
    let rejecting = |title, family| Panel::table(title).sized(12, 6).column("Flag", Unit::Number, each(family));
    Row {
        title: "Pushes and rejections",
        panels: vec![
            Panel::table("Pushes by instance and type").sized(12, 8).column(
                "Pushes",
                Unit::PerSecond,
                each(&PILOT_XDS_PUSHES),
            ),
            lines("Configurations rejected by type", Unit::PerSecond, &PILOT_TOTAL_XDS_REJECTS),
            rejecting("Proxies that rejected clusters (CDS)", &PILOT_XDS_CDS_REJECT),
            rejecting("Proxies that rejected endpoints (EDS)", &PILOT_XDS_EDS_REJECT),
            rejecting("Proxies that rejected listeners (LDS)", &PILOT_XDS_LDS_REJECT),
            rejecting("Proxies that rejected routes (RDS)", &PILOT_XDS_RDS_REJECT),
            lines("Write timeouts", Unit::PerSecond, &PILOT_XDS_WRITE_TIMEOUT),
            lines("Internal errors", Unit::PerSecond, &PILOT_TOTAL_XDS_INTERNAL_ERRORS),
            lines("Push context errors", Unit::PerSecond, &PILOT_XDS_PUSH_CONTEXT_ERRORS)
                .noting("Istio reports them up to 1.25."),
        ],
    }
}

fn convergence() -> Row {
    let (time, queue) = (series(&PILOT_PROXY_CONVERGENCE_TIME), series(&PILOT_PROXY_QUEUE_TIME));
    Row {
        title: "Convergence",
        panels: vec![
            Panel::heatmap("Convergence time, distribution", Unit::Seconds, &time),
            Panel::percentiles("Convergence time", Unit::Seconds, &time),
            Panel::heatmap("Queue time, distribution", Unit::Seconds, &queue),
            Panel::percentiles("Queue time", Unit::Seconds, &queue),
            Panel::lines("Average", Unit::Seconds).with("convergence", time.mean()).with("queue", queue.mean()),
            Panel::lines("Proxies updated", Unit::PerSecond)
                .with("converged:", time.by(&BY).count())
                .with("queued:", queue.by(&BY).count()),
        ],
    }
}

fn conflicts() -> Row {
    let by = |family| series(family).by(&BY).max();
    Row {
        title: "Conflicting listeners",
        panels: vec![
            Panel::lines("Inbound", Unit::Number).with("", by(&PILOT_CONFLICT_INBOUND_LISTENER)),
            Panel::lines("Outbound", Unit::Number)
                .with("TCP over TCP:", by(&PILOT_CONFLICT_OUTBOUND_LISTENER_TCP_OVER_CURRENT_TCP))
                .with("HTTP over TCP:", by(&PILOT_CONFLICT_OUTBOUND_LISTENER_HTTP_OVER_CURRENT_TCP))
                .with("TCP over HTTP:", by(&PILOT_CONFLICT_OUTBOUND_LISTENER_TCP_OVER_CURRENT_HTTP))
                .noting("Those between HTTP and TCP are reported up to Istio 1.18."),
        ],
    }
}

fn validation() -> Row {
    Row {
        title: "Validation",
        panels: vec![
            lines("Resources that passed", Unit::PerSecond, &GALLEY_VALIDATION_PASSED),
            lines("Resources that failed", Unit::PerSecond, &GALLEY_VALIDATION_FAILED),
            lines("HTTP errors", Unit::PerSecond, &GALLEY_VALIDATION_HTTP_ERROR),
            Panel::lines("Webhook configuration", Unit::PerSecond)
                .with("updates:", each(&GALLEY_VALIDATION_CONFIG_UPDATES))
                .with("loads:", each(&GALLEY_VALIDATION_CONFIG_LOAD))
                .noting("No supported release of Istio reports loads."),
            Panel::lines("Webhook configuration, errors", Unit::PerSecond)
                .with("update:", each(&GALLEY_VALIDATION_CONFIG_UPDATE_ERROR))
                .with("load:", each(&GALLEY_VALIDATION_CONFIG_LOAD_ERROR))
                .with("delete:", each(&GALLEY_VALIDATION_CONFIG_DELETE_ERROR))
                .noting("No supported release of Istio reports failed deletions."),
        ],
    }
}

fn certificates() -> Row {
    let expiry = Query::Until(Series::new(&ROOT_EXPIRY, &[INSTANCE]).min().into());
    Row {
        title: "Certificates",
        panels: vec![
            Panel::number("Root certificate expires in", Unit::Seconds, expiry).marking(EXPIRY).sized(6, 8),
            Panel::lines("Signing requests", Unit::PerSecond)
                .with("received:", each(&CITADEL_SERVER_CSR_COUNT))
                .with("issued:", each(&CITADEL_SERVER_SUCCESS_CERT_ISSUANCE_COUNT))
                .sized(9, 8),
            lines("Signing errors", Unit::PerSecond, &CITADEL_SERVER_CSR_SIGN_ERR_COUNT).sized(9, 8),
        ],
    }
}

fn injection() -> Row {
    Row {
        title: "Sidecar injection",
        panels: vec![
            Panel::lines("Requests", Unit::PerSecond)
                .with("requests:", each(&INJECTIONS))
                .with("injected:", each(&INJECTED))
                .with("skipped:", each(&INJECTION_SKIPS)),
            lines("Failures", Unit::PerSecond, &INJECTION_FAILURES),
        ],
    }
}

fn processes() -> Row {
    let lines = |title, unit, family| {
        let series = Series::new(family, &[INSTANCE, NO_PROXY]).by(&["app", "instance", "pod"]);
        Panel::lines(title, unit).with("", series.max())
    };
    Row {
        title: "Processes",
        panels: vec![
            lines("CPU", Unit::Cores, &PROCESS_CPU_SECONDS_TOTAL),
            lines("Resident memory", Unit::Bytes, &PROCESS_RESIDENT_MEMORY_BYTES),
            lines("Virtual memory", Unit::Bytes, &PROCESS_VIRTUAL_MEMORY_BYTES),
            lines("Open file descriptors", Unit::Number, &PROCESS_OPEN_FDS),
            lines("Threads", Unit::Number, &PROCESS_THREADS),
        ],
    }
}

fn runtime() -> Row {
    let by = |family| series(family).by(&BY).max();
    Row {
        title: "Go runtime",
        panels: vec![
            lines("Goroutines by instance", Unit::Number, &GO_GOROUTINES),
            Panel::lines("Allocated", Unit::Bytes).with("", by(&GO_MEMSTATS_ALLOC_BYTES)),
            Panel::lines("Heap", Unit::Bytes)
                .with("from the system:", by(&GO_MEMSTATS_HEAP_SYS_BYTES))
                .with("in use:", by(&GO_MEMSTATS_HEAP_INUSE_BYTES))
                .with("allocated:", by(&GO_MEMSTATS_HEAP_ALLOC_BYTES)),
            Panel::lines("Stacks", Unit::Bytes).with("", by(&GO_MEMSTATS_STACK_INUSE_BYTES)),
        ],
    }
}
