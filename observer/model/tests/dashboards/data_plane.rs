//! Content of "Istio Data Plane".

use observer_model::catalogue::{
    CGROUP_CPU_THROTTLED_SECONDS, CGROUP_MEMORY, CGROUP_MEMORY_LIMIT, GATEWAY_ENCRYPTED, PROCESS_CPU_SECONDS_TOTAL,
    PROCESS_OPEN_FDS, PROCESS_RESIDENT_MEMORY_BYTES, PROCESS_THREADS, PROCESS_VIRTUAL_MEMORY_BYTES, REQUEST_BYTES,
    REQUEST_DURATION, REQUEST_MESSAGES, REQUESTS, RESPONSE_BYTES, RESPONSE_MESSAGES, TCP_CLOSED, TCP_OPENED,
    TCP_RECEIVED_BYTES, TCP_SENT_BYTES,
};

use crate::{
    board::{Board, Choice, Colour, Panel, Row, Shown, Thresholds, Unit, Variable},
    query::{Match, Query, Series},
};

/// Conditions of the variables, the reporter's apart.
const SELECTED: [Match; 6] = [
    Match::Selected("destination_cluster", "cluster"),
    Match::Selected("source_workload_namespace", "source_namespace"),
    Match::Selected("source_workload", "source"),
    Match::Selected("destination_workload_namespace", "destination_namespace"),
    Match::Selected("destination_workload", "destination"),
    Match::Selected("destination_service", "service"),
];
const REPORTER: Match = Match::Selected("reporter", "reporter");
const AT_SOURCE: Match = Match::Any("reporter", &["source"]);
const AT_DESTINATION: Match = Match::Any("reporter", &["destination"]);
/// No answer, or one that says the server failed; of gRPC, the statuses that stand for 5xx.
const ANSWERED: Match = Match::None("response_code", &["0", "5*"]);
const NOT_FAILED: Match = Match::None("grpc_response_status", &["2", "4", "12", "13", "14", "15"]);
const GOOD: [Match; 2] = [ANSWERED, NOT_FAILED];
/// Sidecars and gateways.
const PROXY: [Match; 1] = [Match::Any("app", &["istio-proxy"])];
const SERVICE: [&str; 1] = ["destination_service"];
const CALLER: [&str; 2] = ["source_workload", "source_workload_namespace"];
const CALLED: [&str; 2] = ["destination_workload", "destination_workload_namespace"];
const PAIR: [&str; 2] = ["source_workload", "destination_workload"];
const POD: [&str; 2] = ["namespace", "pod"];
const SUCCESS: Thresholds = &[(0.0, Colour::Bad), (0.95, Colour::Warning), (0.99, Colour::Fine)];
const ERRORS: Thresholds = &[(0.0, Colour::Fine), (0.001, Colour::Warning), (1.0, Colour::Bad)];

pub(crate) fn board() -> Board {
    Board {
        id: "istio-data-plane",
        title: "Istio Data Plane",
        description: "Requests, connections and bytes of the mesh, as sidecars and gateways report them.",
        variables: variables(),
        rows: vec![
            overview(),
            services(),
            workloads("Workloads called, at their own sidecars", AT_DESTINATION, &CALLED),
            workloads("Callers, at their own sidecars", AT_SOURCE, &CALLER),
            pairs(),
            sizes(),
            grpc(),
            tcp(),
            gateways(),
            proxies(),
        ],
    }
}

fn variables() -> Vec<Variable> {
    let values = |name, label, of| Variable {
        name,
        label,
        choice: Choice::Values(of, vec![&REQUESTS, &TCP_OPENED], &[REPORTER], Shown::All),
    };
    vec![
        Variable {
            name: "reporter",
            label: "Reported by",
            choice: Choice::One(&[("the caller's side", "source"), ("the called side", "destination")]),
        },
        values("cluster", "Cluster", "destination_cluster"),
        values("source_namespace", "Caller's namespace", "source_workload_namespace"),
        values("source", "Caller", "source_workload"),
        values("destination_namespace", "Called namespace", "destination_workload_namespace"),
        values("destination", "Called workload", "destination_workload"),
        values("service", "Service", "destination_service"),
        Variable {
            name: "gateway",
            label: "Gateway",
            choice: Choice::Values("source_workload", vec![&REQUESTS], &[AT_SOURCE], Shown::Containing("gateway")),
        },
    ]
}

fn series(family: &'static observer_model::catalogue::Descriptor) -> Series {
    Series::new(family, &[REPORTER]).only(&SELECTED)
}

fn overview() -> Row {
    let (requests, durations) = (series(&REQUESTS), series(&REQUEST_DURATION));
    let code = |pattern| requests.only(&[Match::Any("response_code", pattern)]).sum().or_zero();
    let average = |title, unit, family| Panel::number(title, unit, series(family).mean());
    Row {
        title: "Overview",
        panels: vec![
            Panel::number("Success rate", Unit::Share, requests.share(&GOOD))
                .marking(SUCCESS)
                .noting("Share of requests with an answer that is not 5xx, nor a gRPC status that stands for 5xx."),
            Panel::number("Requests", Unit::Requests, requests.sum()),
            Panel::number("4xx", Unit::Requests, code(&["4*"])),
            Panel::number("5xx", Unit::Requests, code(&["5*"])).marking(ERRORS),
            Panel::number("Without a response", Unit::Requests, code(&["0"]))
                .marking(ERRORS)
                .noting("Requests whose connection ended first: response code 0."),
            Panel::number("TCP connections opened", Unit::PerSecond, series(&TCP_OPENED).sum()),
            average("Average response time", Unit::Milliseconds, &REQUEST_DURATION).sized(8, 4),
            average("Average request size", Unit::Bytes, &REQUEST_BYTES).sized(8, 4),
            average("Average response size", Unit::Bytes, &RESPONSE_BYTES).sized(8, 4),
            Panel::areas("Requests by response code", Unit::Requests).with("", requests.by(&["response_code"]).sum()),
            Panel::percentiles("Response time", Unit::Milliseconds, &durations),
            Panel::heatmap("Response time, distribution", Unit::Milliseconds, &durations),
            Panel::lines("Requests timed", Unit::Requests)
                .with("", durations.by(&["request_protocol"]).count())
                .noting("Number of values in the histogram of response times, by protocol."),
        ],
    }
}

fn services() -> Row {
    let requests = series(&REQUESTS).by(&SERVICE);
    let durations = series(&REQUEST_DURATION).by(&SERVICE);
    let table = Panel::table("Services")
        .column("Requests", Unit::Requests, requests.sum())
        .column("Success rate", Unit::Share, requests.share(&GOOD))
        .column("p50", Unit::Milliseconds, durations.quantile("p50"))
        .column("p90", Unit::Milliseconds, durations.quantile("p90"))
        .column("p95", Unit::Milliseconds, durations.quantile("p95"))
        .column("p99", Unit::Milliseconds, durations.quantile("p99"))
        .column("p999", Unit::Milliseconds, durations.quantile("p999"))
        .column("Request size", Unit::Bytes, series(&REQUEST_BYTES).by(&SERVICE).mean())
        .column("Response size", Unit::Bytes, series(&RESPONSE_BYTES).by(&SERVICE).mean());
    Row {
        title: "Services",
        panels: vec![
            table,
            Panel::areas("Requests by service", Unit::Requests).with("", requests.sum().top(20)),
            Panel::lines("Success rate by service", Unit::Share)
                .with("", requests.share(&GOOD))
                .marking(SUCCESS)
                .noting("Share of requests with an answer that is not 5xx, nor a gRPC status that stands for 5xx."),
            Panel::percentile("Response time by service, p95", Unit::Milliseconds, "p95", &durations),
            Panel::percentile("Response time by service, p99", Unit::Milliseconds, "p99", &durations),
        ],
    }
}

/// One side of the traffic, whatever reporter is chosen.
fn workloads(title: &'static str, reporter: Match, by: &'static [&'static str]) -> Row {
    let series = |family| Series::new(family, &[reporter]).only(&SELECTED).by(by);
    let requests = series(&REQUESTS);
    Row {
        title,
        panels: vec![
            Panel::areas("Requests by workload", Unit::Requests).with("", requests.sum().top(20)),
            Panel::lines("Success rate by workload", Unit::Share).with("", requests.share(&GOOD)).marking(SUCCESS),
            Panel::percentile("Response time, p50", Unit::Milliseconds, "p50", &series(&REQUEST_DURATION)),
            Panel::percentile("Response time, p95", Unit::Milliseconds, "p95", &series(&REQUEST_DURATION)),
            Panel::percentile("Request size, p95", Unit::Bytes, "p95", &series(&REQUEST_BYTES)),
            Panel::percentile("Response size, p95", Unit::Bytes, "p95", &series(&RESPONSE_BYTES)),
        ],
    }
}

fn pairs() -> Row {
    let requests = series(&REQUESTS);
    let durations = series(&REQUEST_DURATION).by(&PAIR);
    let applications = [PAIR.as_slice(), &["request_protocol", "response_code"]].concat();
    Row {
        title: "Who calls whom",
        panels: vec![
            Panel::table("Callers and called workloads")
                .column("Requests", Unit::Requests, requests.by(&PAIR).sum())
                .column("Success rate", Unit::Share, requests.by(&PAIR).share(&GOOD))
                .column("p50", Unit::Milliseconds, durations.quantile("p50"))
                .column("p95", Unit::Milliseconds, durations.quantile("p95"))
                .column("p99", Unit::Milliseconds, durations.quantile("p99"))
                .noting("The called side does not see who calls it; choose the caller's side as reporter for pairs."),
            Panel::table("Applications that speak HTTP or gRPC, by response code").column(
                "Requests",
                Unit::Requests,
                requests.by(&applications).sum(),
            ),
            Panel::areas("Requests by pair", Unit::Requests).with("", requests.by(&PAIR).sum().top(20)),
            Panel::percentile("Response time by pair, p95", Unit::Milliseconds, "p95", &durations),
        ],
    }
}

fn sizes() -> Row {
    let (sent, received) = (series(&REQUEST_BYTES), series(&RESPONSE_BYTES));
    Row {
        title: "Sizes",
        panels: vec![
            Panel::percentiles("Request size", Unit::Bytes, &sent),
            Panel::percentiles("Response size", Unit::Bytes, &received),
            Panel::heatmap("Request size, distribution", Unit::Bytes, &sent),
            Panel::heatmap("Response size, distribution", Unit::Bytes, &received),
            Panel::lines("Average size by service", Unit::Bytes)
                .with("request:", sent.by(&SERVICE).mean())
                .with("response:", received.by(&SERVICE).mean()),
            Panel::lines("Messages measured", Unit::PerSecond)
                .with("requests", sent.count())
                .with("responses", received.count()),
        ],
    }
}

fn grpc() -> Row {
    let calls = series(&REQUESTS).only(&[Match::Any("request_protocol", &["grpc"])]);
    Row {
        title: "gRPC",
        panels: vec![
            Panel::areas("Calls by status", Unit::Requests).with("", calls.by(&["grpc_response_status"]).sum()),
            Panel::lines("Success rate by service", Unit::Share)
                .with("", calls.by(&SERVICE).share(&[Match::Any("grpc_response_status", &["0"])]))
                .noting("Share of calls with status 0 (OK)."),
            Panel::lines("Messages to the server", Unit::Messages)
                .with("", series(&REQUEST_MESSAGES).by(&SERVICE).sum().top(20)),
            Panel::lines("Messages to the client", Unit::Messages)
                .with("", series(&RESPONSE_MESSAGES).by(&SERVICE).sum().top(20)),
        ],
    }
}

fn tcp() -> Row {
    let lines = |title, unit, family| Panel::lines(title, unit).with("", series(family).by(&PAIR).sum().top(20));
    let rate = |family| series(family).by(&PAIR).sum();
    Row {
        title: "TCP",
        panels: vec![
            Panel::table("Applications that speak TCP")
                .column("Sent", Unit::BytesPerSecond, rate(&TCP_SENT_BYTES))
                .column("Received", Unit::BytesPerSecond, rate(&TCP_RECEIVED_BYTES))
                .column("Opened", Unit::PerSecond, rate(&TCP_OPENED))
                .column("Closed", Unit::PerSecond, rate(&TCP_CLOSED))
                .noting("Sent is from server to client, received from client to server, at either reporter."),
            lines("Bytes sent", Unit::BytesPerSecond, &TCP_SENT_BYTES),
            lines("Bytes received", Unit::BytesPerSecond, &TCP_RECEIVED_BYTES),
            lines("Connections opened", Unit::PerSecond, &TCP_OPENED),
            lines("Connections closed", Unit::PerSecond, &TCP_CLOSED),
        ],
    }
}

fn gateways() -> Row {
    let series = |family| Series::new(family, &[AT_SOURCE, Match::Selected("source_workload", "gateway")]);
    let requests = series(&REQUESTS);
    let gateway = ["source_workload"];
    Row {
        title: "Gateways",
        panels: vec![
            Panel::areas("Requests by response code", Unit::Requests)
                .with("", requests.by(&["source_workload", "response_code"]).sum()),
            Panel::lines("Success rate", Unit::Share).with("", requests.by(&gateway).share(&GOOD)).marking(SUCCESS),
            Panel::areas("Requests by service", Unit::Requests).with("", requests.by(&SERVICE).sum().top(20)),
            Panel::percentile(
                "Response time by gateway, p95",
                Unit::Milliseconds,
                "p95",
                &series(&REQUEST_DURATION).by(&gateway),
            ),
            Panel::lines("Encrypted connections", Unit::PerSecond)
                .with("", Series::new(&GATEWAY_ENCRYPTED, &[]).by(&["workload", "port", "event"]).sum()),
        ],
    }
}

fn proxies() -> Row {
    let series = |family| Series::new(family, &PROXY).by(&POD);
    let lines = |title, unit, family| Panel::lines(title, unit).with("", series(family).max().top(20));
    let used = Query::Ratio(series(&CGROUP_MEMORY).max().into(), series(&CGROUP_MEMORY_LIMIT).max().into());
    Row {
        title: "Sidecar and gateway processes",
        panels: vec![
            lines("CPU", Unit::Cores, &PROCESS_CPU_SECONDS_TOTAL),
            lines("Resident memory", Unit::Bytes, &PROCESS_RESIDENT_MEMORY_BYTES),
            lines("Virtual memory", Unit::Bytes, &PROCESS_VIRTUAL_MEMORY_BYTES),
            lines("Open file descriptors", Unit::Number, &PROCESS_OPEN_FDS),
            lines("Threads", Unit::Number, &PROCESS_THREADS),
            Panel::lines("Memory, share of the limit", Unit::Share).with("", used.top(20)),
            lines("Time throttled per second", Unit::Cores, &CGROUP_CPU_THROTTLED_SECONDS),
        ],
    }
}
