//! Dashboards in `deploy/dashboards`: `UPDATE_GOLDEN=1` rewrites them from the descriptions here, whose names come from
//! the catalogue.

mod board;
mod control_plane;
mod data_plane;
mod grafana;
mod mesh_observer;
mod query;
mod wavefront;

use std::{collections::BTreeSet, env, fs, path::Path};

use observer_model::{
    catalogue::{Descriptor, FAMILIES},
    exposition::MetricType,
    histogram::QUANTILES,
};
use serde_json::Value;

use crate::board::Board;

/// Names that Istio's documentation of the integration lists.
const DOCUMENTED: &str = include_str!("../../../../tests/fixtures/documented_names.txt");
/// Panels that Grafana 10 to 12 have without plugins.
const PANELS: [&str; 6] = ["row", "stat", "timeseries", "table", "heatmap", "bargauge"];

#[test]
#[expect(clippy::disallowed_methods, reason = "compares and rewrites files of the repository")]
fn files_are_as_described() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/dashboards");
    for (name, text) in files() {
        let path = directory.join(&name);
        if env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&path, text).expect("deploy/dashboards is writable");
        } else {
            let found = fs::read_to_string(&path).expect("deploy/dashboards has it");
            assert!(found == text, "deploy/dashboards/{name} is stale; UPDATE_GOLDEN=1 rewrites it");
        }
    }
}

#[test]
fn every_documented_statistic_is_in_a_panel_and_in_a_chart() {
    let [data, control, _] = boards();
    let [grafana, charts] = [
        expressions(&[grafana::dashboard(&data), grafana::dashboard(&control)], "expr"),
        expressions(&[wavefront::dashboard(&data), wavefront::dashboard(&control)], "query"),
    ];
    assert_eq!(DOCUMENTED.lines().count(), 46);
    for name in DOCUMENTED.lines() {
        let family = FAMILIES.iter().find(|family| family.documented_name == name);
        let family = family.unwrap_or_else(|| panic!("{name} is not in the catalogue"));
        for wanted in promql_of(family) {
            assert!(grafana.iter().any(|found| wanted.iter().all(|part| has_word(found, part))), "{name}: {wanted:?}");
        }
        for wanted in names_in_wavefront(family) {
            assert!(charts.iter().any(|found| found.contains(&format!("ts(\"{wanted}\""))), "{wanted}");
        }
    }
}

#[test]
fn every_family_is_in_a_panel() {
    let shown: Vec<_> = boards().iter().flat_map(Board::queries).flat_map(query::Query::families).collect();
    let missing: Vec<_> = FAMILIES.iter().filter(|family| !shown.contains(family)).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn panels_are_complete_and_do_not_overlap() {
    for board in boards() {
        let dashboard: Value = serde_json::from_str(&grafana::dashboard(&board)).unwrap();
        let top = dashboard["panels"].as_array().unwrap();
        let mut numbers = BTreeSet::new();
        for panels in [top].into_iter().chain(top.iter().filter_map(|panel| panel["panels"].as_array())) {
            let (mut taken, mut titles) = (BTreeSet::new(), BTreeSet::new());
            for panel in panels {
                assert!(numbers.insert(panel["id"].as_u64().unwrap()), "{}: two panels have one number", board.id);
                assert!(PANELS.contains(&panel["type"].as_str().unwrap()), "{}", panel["type"]);
                let [x, y, w, h] = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap());
                assert!(w > 0 && h > 0 && x + w <= u64::from(board::WIDTH), "{}: {}", board.id, panel["title"]);
                let cells = (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y)));
                for cell in cells {
                    assert!(taken.insert(cell), "{}: {} overlaps another panel", board.id, panel["title"]);
                }
                if panel["type"] == "row" {
                    titles.clear();
                } else {
                    check_panel(panel, &dashboard);
                }
                assert!(titles.insert(panel["title"].as_str().unwrap()), "{}: {} twice", board.id, panel["title"]);
            }
        }
        assert!(numbers.len() > 10, "{}", board.id);
    }
}

#[test]
fn charts_are_valid_queries() {
    let [data, control, _] = boards();
    for board in [data, control] {
        let text = wavefront::dashboard(&board);
        let dashboard: Value = serde_json::from_str(&text).unwrap();
        let variables: Vec<_> = dashboard["parameterDetails"].as_object().unwrap().keys().collect();
        let queries = expressions(&[text], "query");
        assert!(queries.len() > 40, "{}", board.id);
        for query in queries {
            check_ts(&query, &variables);
        }
    }
}

fn boards() -> [Board; 3] {
    let istios = [data_plane::board(), control_plane::board()];
    let own = mesh_observer::board(&istios);
    let [data, control] = istios;
    [data, control, own]
}

/// Returns names and texts of the files.
fn files() -> Vec<(String, String)> {
    let boards = boards();
    let charts = boards[..2].iter().map(|own| (format!("wavefront/{}.json", own.id), wavefront::dashboard(own)));
    boards.iter().map(|own| (format!("{}.json", own.id), grafana::dashboard(own))).chain(charts).collect()
}

/// Returns every text under this key.
fn expressions(texts: &[String], key: &str) -> Vec<String> {
    fn collect(value: &Value, key: &str, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get(key).and_then(Value::as_str).map(str::to_owned));
                fields.values().for_each(|field| collect(field, key, found));
            }
            Value::Array(values) => values.iter().for_each(|value| collect(value, key, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    texts.iter().for_each(|text| collect(&serde_json::from_str(text).unwrap(), key, &mut found));
    found
}

/// Returns for each documented statistic what an expression that shows it contains.
fn promql_of(family: &Descriptor) -> Vec<Vec<String>> {
    let name = family.prometheus_name;
    let sample = |suffix: &str| format!("{name}{suffix}");
    let quantile = |(_, value): (&str, f64)| vec![format!("histogram_quantile({value}"), sample("_bucket")];
    match family.documented_name.contains('*') {
        true => ["_bucket", "_count", "_sum"]
            .into_iter()
            .map(|suffix| vec![sample(suffix)])
            .chain(QUANTILES.map(quantile))
            .collect(),
        false if family.metric_type == MetricType::Histogram => vec![vec![sample("_bucket")]],
        false => vec![vec![sample("")]],
    }
}

/// Whether a text has this name, and not as a part of another.
fn has_word(text: &str, word: &str) -> bool {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.match_indices(word)
        .any(|(at, _)| !text[..at].ends_with(is_name) && !text[at + word.len()..].starts_with(is_name))
}

fn names_in_wavefront(family: &Descriptor) -> Vec<String> {
    let statistics = ["bucket", "count", "sum"].into_iter().chain(QUANTILES.map(|(name, _)| name));
    match family.documented_name.contains('*') {
        true => statistics.map(|statistic| family.documented_name.replace('*', statistic)).collect(),
        false => vec![family.documented_name.to_owned()],
    }
}

/// Checks what a panel needs to be read without a look at its queries.
fn check_panel(panel: &Value, dashboard: &Value) {
    let title = panel["title"].as_str().unwrap();
    assert!(!title.is_empty() && panel["description"].as_str().is_some_and(|text| text.ends_with('.')), "{title}");
    assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title}");
    assert!(panel["fieldConfig"]["defaults"]["thresholds"]["steps"][0]["value"].is_null(), "{title}");
    let targets = panel["targets"].as_array().unwrap();
    let references: BTreeSet<_> = targets.iter().map(|target| target["refId"].as_str().unwrap()).collect();
    assert!(!targets.is_empty() && references.len() == targets.len(), "{title}");
    for target in targets {
        assert_eq!(target["datasource"]["uid"], "${datasource}");
        let expression = target["expr"].as_str().unwrap();
        assert!(target["legendFormat"].as_str().is_some_and(|legend| !legend.is_empty()), "{title}");
        let is_latency = panel["type"] == "timeseries" && expression.contains("histogram_quantile(");
        assert_eq!(target["exemplar"] == true, is_latency, "{title}");
        let known = dashboard["templating"]["list"].as_array().unwrap();
        for variable in expression.split('$').skip(1) {
            let end = variable.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(variable.len());
            let name = &variable[..end];
            assert!(name.starts_with("__") || known.iter().any(|own| own["name"] == name), "{title}: ${name}");
        }
    }
}

/// Checks brackets, quotes, functions and variables of a query.
fn check_ts(query: &str, variables: &[&String]) {
    let parts: Vec<_> = query.split('"').collect();
    assert!(parts.len() % 2 == 1, "an open quote: {query}");
    let plain: String = parts.iter().step_by(2).copied().collect();
    let mut depth = 0_i32;
    for c in plain.chars() {
        depth += i32::from(c == '(') - i32::from(c == ')');
        assert!(depth >= 0, "a bracket that closes nothing: {query}");
    }
    assert_eq!(depth, 0, "an open bracket: {query}");
    for before in plain.split('(').rev().skip(1) {
        let name = before.rsplit(|c: char| !c.is_ascii_alphanumeric()).next().unwrap();
        let known = ["", "ts", "rate", "sum", "max", "min", "avg", "topk", "default", "time"];
        assert!(known.contains(&name), "the function {name}: {query}");
    }
    for variable in plain.split("${").skip(1) {
        let name = variable.split('}').next().unwrap();
        assert!(variables.iter().any(|own| *own == name), "the variable {name}: {query}");
    }
    assert!(plain.contains("ts("), "{query}");
}
