//! Istio's own dashboards, of the module that the cluster's Istio is built from: Prometheus scrapes the observers of both
//! nodes, and must answer every expression over Istio's metrics with a number and with names for both ends.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Child,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use harness::{
    dashboard::{collect_expressions, select_everything},
    prometheus::{Series, query_path, vector},
    tools,
    wait::wait_until,
};

use crate::{
    expectation, istio,
    node::{NODES, Node, address},
};

/// Those over Istio's metrics. The others ask the control plane, cAdvisor, Envoy's own statistics or ztunnel.
const DASHBOARDS: [&str; 3] =
    ["istio-mesh-dashboard.gen.json", "istio-service-dashboard.json", "istio-workload-dashboard.json"];
/// Families that only observers answer for.
const FAMILIES: [&str; 3] = ["istio_requests_total", "istio_request_", "istio_tcp_"];
/// Window of rates: longer than the traffic.
const WINDOW: &str = "10m";
/// Where Prometheus listens in the first node.
const LISTEN: &str = "127.0.0.1:9090";
const START_TIMEOUT: Duration = Duration::from_secs(60);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// What no sidecar of Istio's gives, either: matchers that an expression has all of, and why.
const WITHOUT_DATA: [(&[&str], &str); 1] = [(
    &["reporter=~\"source\"", "connection_security_policy=~\"mutual_tls\""],
    "a sidecar gives the policy at the destination only",
)];

/// A Prometheus in the first node that scrapes both observers, until it is dropped: every scrape is a round of theirs.
pub(crate) struct Dashboards {
    process: Child,
    /// Expressions, and where they were found.
    expressions: BTreeMap<String, String>,
}

impl Dashboards {
    /// Starts it and waits for its first scrape.
    pub(crate) fn start() -> Result<Self> {
        let node = Node(NODES[0]);
        let directory = node.directory().join("prometheus");
        fs::create_dir_all(&directory)?;
        let targets = NODES.map(|node| format!("'{}:9469'", address(node))).join(", ");
        let configuration = directory.join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\nscrape_configs:\n- job_name: mesh-observer\n  \
             honor_labels: true\n  static_configs:\n  - targets: [{targets}]\n"
        );
        fs::write(&configuration, text).with_context(|| format!("{}", configuration.display()))?;
        let arguments = [
            format!("--config.file={}", configuration.display()),
            format!("--storage.tsdb.path={}", directory.join("store").display()),
            format!("--web.listen-address={LISTEN}"),
        ];
        let process = node.spawn("prometheus", tools::server("prometheus")?, &arguments)?;
        let dashboards = Self { process, expressions: expressions()? };
        let number = dashboards.expressions.len();
        ensure!(number > 100, "only {number} expressions in Istio's dashboards");
        wait_until("both observers are scraped", START_TIMEOUT, || {
            let found = query("sum(up)")?;
            ensure!(found.values().any(|value| *value as usize == NODES.len()), "{found:?}");
            Ok(())
        })?;
        Ok(dashboards)
    }

    /// Evaluates every expression; all traffic so far must have names at both ends. Returns a summary.
    pub(crate) fn check(&self) -> Result<String> {
        let mut open: BTreeSet<(&str, &str)> = BTreeSet::new();
        for expression in self.expressions.keys() {
            let reporters: &[&str] =
                if expression.contains("$qrep") { &["destination", "source"] } else { &["destination"] };
            open.extend(reporters.iter().map(|reporter| (expression.as_str(), *reporter)));
        }
        let (all, mut nameless) = (open.len(), BTreeSet::new());
        let answered = wait_until("an answer to every expression", ANSWER_TIMEOUT, || {
            nameless.clear();
            let mut left = BTreeSet::new();
            for &(expression, reporter) in &open {
                let found = query(&evaluable(expression, reporter))?;
                if !found.values().any(|value| value.is_finite()) {
                    left.insert((expression, reporter));
                }
                for (labels, _) in found.into_iter().filter(|(_, value)| value.is_finite() && *value != 0.0) {
                    let is_unknown = |(label, value): &(String, String)| is_nameless(label, value);
                    let unknown = labels.into_iter().filter(is_unknown).map(|(label, _)| label);
                    nameless.extend(unknown.map(|label| (self.expressions[expression].clone(), label)));
                }
            }
            let reason = |(expression, reporter): &(&str, &str)| reason(&evaluable(expression, reporter));
            let unexpected: Vec<_> = left.iter().filter(|it| reason(it).is_none()).collect();
            ensure!(unexpected.is_empty(), "no answer: {unexpected:#?}");
            ensure!(left.len() < open.len(), "no expression has data");
            Ok(left.len())
        })?;
        ensure!(nameless.is_empty(), "unknown in Istio's dashboards: {nameless:#?}");
        open.retain(|(expression, reporter)| reason(&evaluable(expression, reporter)).is_none());
        ensure!(all - open.len() == answered, "some have data of which it is said that nothing can: {answered}");
        Ok(format!("Istio's dashboards: {all} expressions, {answered} without data as in Istio, none nameless"))
    }
}

impl Drop for Dashboards {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns the expressions over Istio's metrics, and where they are.
fn expressions() -> Result<BTreeMap<String, String>> {
    let directory = istio::module()?.join("manifests/addons/dashboards");
    let mut found = BTreeMap::new();
    for name in DASHBOARDS {
        let path = directory.join(name);
        let text = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
        let dashboard = serde_json::from_str(&text).with_context(|| format!("{}", path.display()))?;
        collect_expressions(&dashboard, name.trim_end_matches(".json"), &mut found);
    }
    found.retain(|expression, _| FAMILIES.iter().any(|family| expression.contains(family)));
    Ok(found)
}

/// Replaces the variables: the reporter by one, the others by what selects everything.
fn evaluable(expression: &str, reporter: &str) -> String {
    // What a reader chooses is one value or all; and between the last two samples there may be no request.
    let set = expression.replace("!=\"", "!~\"").replace("=\"", "=~\"").replace("irate(", "rate(");
    // The 0 of nothing is no answer.
    let set = set.replace(" or vector(0)", "").replace("or vector(0)", "");
    let set = set.replace("$__rate_interval", WINDOW).replace("$qrep", reporter);
    select_everything(&set)
}

/// Returns why an expression has no answer, if it may have none.
fn reason(expression: &str) -> Option<&'static str> {
    let is_one = |(parts, _): &&(&[&str], _)| parts.iter().all(|part| expression.contains(part));
    WITHOUT_DATA.iter().find(is_one).map(|(_, reason)| *reason)
}

fn is_nameless(label: &str, value: &str) -> bool {
    let is_end = label.starts_with("source_") || label.starts_with("destination_");
    is_end && (value.is_empty() || value == expectation::unknown(label))
}

/// Evaluates an expression now.
fn query(expression: &str) -> Result<Series> {
    let url = format!("http://{LISTEN}{}", query_path(expression));
    vector(expression, &Node(NODES[0]).run("curl", &["-sS", "--max-time", "10", &url])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_replaced_as_a_reader_would_choose_them() {
        let expression = "round(sum(irate(istio_requests_total{reporter=~\"$qrep\",destination_service=\"$service\",\
                          response_code!~\"5.*\"}[$__rate_interval])), 0.01)or vector(0)";
        assert_eq!(
            evaluable(expression, "source"),
            "round(sum(rate(istio_requests_total{reporter=~\"source\",destination_service=~\".*\",\
             response_code!~\"5.*\"}[10m])), 0.01)"
        );
    }

    #[test]
    fn an_end_without_a_name_is_found() {
        assert!(is_nameless("source_workload", "unknown"));
        assert!(is_nameless("destination_service", ""));
        assert!(!is_nameless("destination_workload", "web"));
        assert!(!is_nameless("le", "10"));
        assert_eq!(reason("sum(x{reporter=\"source\", connection_security_policy!=\"mutual_tls\"})"), None);
    }
}
