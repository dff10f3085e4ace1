//! Who calls whom, out of `/metrics`: what the page and the table of `observer top` must show.

use std::collections::BTreeMap;

use anyhow::{Result, bail};

use crate::exposition::{Exposition, Sample};

/// Returns requests and connections by caller, callee and protocol, as the caller's sidecar counts them, or else the
/// callee's.
pub fn exposed_edges(exposition: &Exposition) -> Result<BTreeMap<String, f64>> {
    let mut sides: BTreeMap<String, [f64; 2]> = BTreeMap::new();
    let requests = exposition.samples("istio_requests_total");
    for sample in requests.chain(exposition.samples("istio_tcp_connections_opened_total")) {
        let side = match sample.label("reporter") {
            "source" => 0,
            "destination" => 1,
            other => bail!("the reporter {other}"),
        };
        sides.entry(key(sample)).or_default()[side] += sample.value;
    }
    let shown = |[source, destination]: [f64; 2]| if source > 0.0 { source } else { destination };
    Ok(sides.into_iter().map(|(key, sides)| (key, shown(sides))).filter(|(_, total)| *total > 0.0).collect())
}

/// Returns caller, callee and protocol of a series, as the API names them.
pub fn key(sample: &Sample) -> String {
    format!("{}|{}|{}", end(sample, "source"), end(sample, "destination"), sample.label("request_protocol"))
}

fn end(sample: &Sample, side: &str) -> String {
    let label = |name: &str| sample.label(&format!("{side}_{name}"));
    match (label("workload"), side) {
        ("unknown", "destination") if label("service_name") != "unknown" => {
            format!("service/{}/{}", label("service_namespace"), label("service_name"))
        }
        ("unknown", _) => "unknown".to_owned(),
        (workload, _) => format!("workload/{}/{workload}", label("workload_namespace")),
    }
}
