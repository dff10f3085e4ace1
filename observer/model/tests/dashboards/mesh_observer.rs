//! Content of "Mesh Observer".

use observer_model::catalogue::{
    AUDIT_BYTES, AUDIT_CONNECTIONS, AUDIT_EMPTY, BUILD_INFO, CGROUP_CPU_PERIODS, CGROUP_CPU_THROTTLED_PERIODS,
    COLLECTION_DELAY, COLLECTOR_RUNS, COLLECTOR_SECONDS, CONNECTIONS, CONTROL_PLANE_CONFLICTING, CONTROL_PLANE_SAMPLES,
    CONTROL_PLANE_SCRAPE_SECONDS, CONTROL_PLANE_SCRAPES, CONTROL_PLANE_SKIPPED, CONTROL_PLANE_UP, CPU_SECONDS, DESYNCS,
    Descriptor, EMITTER_DISK_BYTES, EMITTER_DISK_POINTS, EMITTER_DROPPED, EMITTER_ERRORS, EMITTER_FILTERED,
    EMITTER_PUSHES_DROPPED, EMITTER_QUEUE, EMITTER_REJECTED, EMITTER_SENT, FAMILIES, PARSED_REQUESTS, PROCESS_DRIFT,
    PROCESS_MAX_FDS, PROCESS_OPEN_FDS, PROCESS_START_TIME_SECONDS, PROCESSES, PROGRAM_LINKS, PROGRAM_RUNS,
    PROGRAM_SECONDS, RESIDENT_MEMORY, SCRAPE_REFUSED, SCRAPE_SECONDS, SCRAPES, SERIES_CAPACITY, SERIES_EXPOSED,
    SERIES_IN_USE, SERIES_OVERFLOWED, SERIES_RESETS, SERIES_RETIRED, SIDECARS, UNATTACHED, UNCOUNTED,
};
use observer_model::exposition::MetricType;

use crate::{
    board::{Board, Choice, Colour, Panel, Row, Shown, Thresholds, Unit, Variable},
    query::{Match, Query, Series},
};

/// Prometheus' name of the scraped observer, for families that have no label of this name.
const NODE: &str = "instance";
const COUNTED: Match = Match::Any("outcome", &["ok", "ended_early", "preexisting", "unknown_status", "abandoned"]);
const NONE_IS_FINE: Thresholds = &[(0.0, Colour::Fine), (1e-9, Colour::Warning)];
const FILLING: Thresholds = &[(0.0, Colour::Fine), (0.8, Colour::Warning), (0.95, Colour::Bad)];

/// Families that the other dashboards do not show, all of them.
pub(crate) fn board(others: &[Board]) -> Board {
    let mut board = Board {
        id: "mesh-observer",
        title: "Mesh Observer",
        description: "What was not seen and why, what observing costs, how late it is, and whether pushes arrive.",
        variables: vec![Variable {
            name: "node",
            label: "Observer",
            choice: Choice::Values(NODE, vec![&BUILD_INFO], &[], Shown::All),
        }],
        rows: vec![overview(), unseen(), cardinality(), cost(), lateness(), emitters(), control_planes(), processes()],
    };
    let shown: Vec<_> = others.iter().chain([&board]).flat_map(Board::queries).flat_map(Query::families).collect();
    let rest: Vec<_> = FAMILIES.iter().filter(|family| !shown.contains(family)).map(|family| rest(family)).collect();
    if !rest.is_empty() {
        board.rows.push(Row { title: "Further figures", panels: rest });
    }
    board
}

/// Series of the chosen observers. Some families have an `instance` of their own.
fn series(family: &'static Descriptor) -> Series {
    let chosen = [Match::Selected(NODE, "node")];
    Series::new(family, if family.labels.contains(&NODE) { &[] } else { &chosen })
}

/// By the family's own labels, summed over nodes.
fn lines(title: &'static str, unit: Unit, family: &'static Descriptor) -> Panel {
    Panel::lines(title, unit).with("", series(family).by(family.labels).sum())
}

fn by_node(title: &'static str, unit: Unit, family: &'static Descriptor) -> Panel {
    let labels = [&[NODE], family.labels].concat();
    Panel::lines(title, unit).with("", series(family).by(&labels).sum())
}

/// Family without a panel of its own.
fn rest(family: &'static Descriptor) -> Panel {
    let unit = match (family.metric_type, family.unit) {
        (MetricType::Gauge, "bytes") => Unit::Bytes,
        (MetricType::Gauge, "seconds") => Unit::Seconds,
        (MetricType::Gauge, _) => Unit::Number,
        (_, "bytes") => Unit::BytesPerSecond,
        _ => Unit::PerSecond,
    };
    let title = family.prometheus_name;
    match family.metric_type {
        MetricType::Histogram => Panel::lines(title, unit).with("", series(family).count()),
        _ => lines(title, unit, family),
    }
}

fn overview() -> Row {
    let sum = |title, unit, family| Panel::number(title, unit, series(family).sum());
    let used = Query::Ratio(series(&SERIES_IN_USE).max().into(), series(&SERIES_CAPACITY).max().into());
    Row {
        title: "Overview",
        panels: vec![
            sum("Observers", Unit::Number, &BUILD_INFO),
            sum("Sidecars and gateways", Unit::Number, &SIDECARS),
            sum("Not attached", Unit::Number, &UNATTACHED).marking(NONE_IS_FINE),
            Panel::number("Requests in Istio's metrics", Unit::Share, series(&PARSED_REQUESTS).share(&[COUNTED]))
                .marking(&[(0.0, Colour::Bad), (0.999, Colour::Warning), (0.9999, Colour::Fine)])
                .noting("Share of the observed requests; those that a proxy never started count as such."),
            sum("Positions lost", Unit::PerSecond, &DESYNCS).marking(NONE_IS_FINE),
            Panel::number("Fullest series map", Unit::Share, used).marking(FILLING),
            Panel::table("Versions").sized(12, 8).column(
                "Value",
                Unit::Number,
                series(&BUILD_INFO).by(&[NODE, "version"]).sum(),
            ),
            by_node("Sidecars and gateways by node", Unit::Number, &SIDECARS),
        ],
    }
}

fn unseen() -> Row {
    Row {
        title: "Not seen, and why",
        panels: vec![
            lines("Requests by outcome", Unit::Requests, &PARSED_REQUESTS),
            lines("Connections by outcome", Unit::PerSecond, &CONNECTIONS),
            lines("Positions lost by reason", Unit::PerSecond, &DESYNCS),
            lines("Not counted, by reason", Unit::PerSecond, &UNCOUNTED),
            by_node("Not attached, by node", Unit::Number, &UNATTACHED),
            lines("Bytes that differ from the kernel's", Unit::BytesPerSecond, &AUDIT_BYTES),
            Panel::lines("Connections compared with the kernel's counts", Unit::PerSecond)
                .with("compared", series(&AUDIT_CONNECTIONS).sum())
                .with("without a byte", series(&AUDIT_EMPTY).sum()),
        ],
    }
}

fn cardinality() -> Row {
    let by = |family| series(family).by(&[NODE]).sum();
    Row {
        title: "Cardinality",
        panels: vec![
            Panel::lines("Series map in use", Unit::Share)
                .with("", Query::Ratio(by(&SERIES_IN_USE).into(), by(&SERIES_CAPACITY).into()))
                .marking(FILLING),
            Panel::lines("Series", Unit::Number)
                .with("in use:", by(&SERIES_IN_USE))
                .with("exposed:", by(&SERIES_EXPOSED)),
            Panel::lines("Label sets retired", Unit::PerSecond).with("", by(&SERIES_RETIRED)),
            Panel::lines("Values without their labels, and totals that fell", Unit::PerSecond)
                .with("overflowed:", by(&SERIES_OVERFLOWED))
                .with("reset:", by(&SERIES_RESETS)),
        ],
    }
}

fn cost() -> Row {
    let per_run = Query::Ratio(
        series(&PROGRAM_SECONDS).by(&["program"]).sum().into(),
        series(&PROGRAM_RUNS).by(&["program"]).sum().into(),
    );
    let per_collection = Query::Ratio(
        series(&COLLECTOR_SECONDS).by(&["collector"]).sum().into(),
        series(&COLLECTOR_RUNS).by(&["collector"]).sum().into(),
    );
    Row {
        title: "Cost",
        panels: vec![
            by_node("CPU of the observer", Unit::Cores, &CPU_SECONDS),
            by_node("Resident memory of the observer", Unit::Bytes, &RESIDENT_MEMORY),
            lines("Runs of eBPF programs", Unit::PerSecond, &PROGRAM_RUNS),
            lines("CPU of eBPF programs", Unit::Cores, &PROGRAM_SECONDS),
            Panel::lines("Time of a run", Unit::Seconds).with("", per_run),
            by_node("Cgroups attached to, by program", Unit::Number, &PROGRAM_LINKS),
            Panel::lines("Time of a collection", Unit::Seconds).with("", per_collection),
        ],
    }
}

fn lateness() -> Row {
    let delay = series(&COLLECTION_DELAY);
    Row {
        title: "Lateness",
        panels: vec![
            Panel::heatmap("Delay of collections, distribution", Unit::Seconds, &delay),
            Panel::percentiles("Delay of collections", Unit::Seconds, &delay),
            lines("Collections by outcome", Unit::PerSecond, &COLLECTOR_RUNS),
            lines("Scrapes of the observer by outcome", Unit::PerSecond, &SCRAPES),
            by_node("Time spent rendering the exposition", Unit::Cores, &SCRAPE_SECONDS),
            by_node("Connections refused", Unit::PerSecond, &SCRAPE_REFUSED),
        ],
    }
}

fn emitters() -> Row {
    Row {
        title: "Pushes",
        panels: vec![
            lines("Points accepted", Unit::PerSecond, &EMITTER_SENT),
            lines("Failed sends", Unit::PerSecond, &EMITTER_ERRORS),
            lines("Points rejected before they are sent", Unit::PerSecond, &EMITTER_REJECTED),
            lines("Points dropped", Unit::PerSecond, &EMITTER_DROPPED),
            by_node("Pushes waiting", Unit::Number, &EMITTER_QUEUE),
            lines("Pushes dropped", Unit::PerSecond, &EMITTER_PUSHES_DROPPED),
            by_node("Points waiting on disk", Unit::Number, &EMITTER_DISK_POINTS),
            by_node("Bytes waiting on disk", Unit::Bytes, &EMITTER_DISK_BYTES),
            lines("Points held back by filters", Unit::PerSecond, &EMITTER_FILTERED),
        ],
    }
}

fn control_planes() -> Row {
    Row {
        title: "Scrapes of the control plane",
        panels: vec![
            Panel::bars("Answering", Unit::Number)
                .with("", series(&CONTROL_PLANE_UP).by(&["app", "instance"]).min())
                .marking(&[(0.0, Colour::Bad), (1.0, Colour::Fine)]),
            lines("Scrapes by outcome", Unit::PerSecond, &CONTROL_PLANE_SCRAPES),
            lines("Duration", Unit::Seconds, &CONTROL_PLANE_SCRAPE_SECONDS),
            lines("Samples", Unit::Number, &CONTROL_PLANE_SAMPLES),
            lines("Lines skipped", Unit::PerSecond, &CONTROL_PLANE_SKIPPED),
            by_node("Families not exposed", Unit::Number, &CONTROL_PLANE_CONFLICTING),
            lines("Difference from procfs", Unit::Number, &PROCESS_DRIFT),
        ],
    }
}

fn processes() -> Row {
    let by = ["namespace", "pod", "app"];
    let ratio = |one, other| {
        let [one, other] = [one, other].map(|family| series(family).by(&by).sum());
        Query::Ratio(one.into(), other.into()).top(20)
    };
    Row {
        title: "Processes",
        panels: vec![
            by_node("Processes read, by outcome", Unit::Number, &PROCESSES),
            Panel::lines("Share of the limit of file descriptors", Unit::Share)
                .with("", ratio(&PROCESS_OPEN_FDS, &PROCESS_MAX_FDS)),
            Panel::lines("Share of periods throttled", Unit::Share)
                .with("", ratio(&CGROUP_CPU_THROTTLED_PERIODS, &CGROUP_CPU_PERIODS)),
            Panel::lines("Age of the youngest process", Unit::Seconds)
                .with("", Query::Since(series(&PROCESS_START_TIME_SECONDS).by(&["app"]).max().into())),
        ],
    }
}
