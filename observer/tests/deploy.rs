//! What deploy/ has is what its comments and the daemon's promises need. That the DaemonSet is what the chart renders is
//! tested with Helm (`cargo test -p harness --test chart`).

use std::{collections::BTreeSet, env, fs, path::Path};

use observer::cli::command::command;
use serde_json::Value;

const DAEMON_SET: &str = include_str!("../../deploy/daemonset.yaml");
const CHART: &str = include_str!("../../deploy/helm/mesh-observer/Chart.yaml");
const VALUES: &str = include_str!("../../deploy/helm/mesh-observer/values.yaml");
const SCHEMA: &str = include_str!("../../deploy/helm/mesh-observer/values.schema.json");
const DOCUMENT: &str = include_str!("../../docs/install.md");
const UNIT: &str = include_str!("../../deploy/mesh-observer.service");

/// Options that the chart has values of its own for.
const WIRED: [&str; 8] =
    ["listen", "web-config-file", "emit", "pin", "config", "queue-dir", "cgroup-root", "kubernetes"];

fn lines(text: &str) -> Vec<&str> {
    text.lines().map(str::trim).collect()
}

/// Returns the names of an object's properties.
fn properties(schema: &Value) -> BTreeSet<&str> {
    schema["properties"].as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect()
}

/// A pod in the host's network resolves names of Services only with this policy (Kubernetes, "Pod's DNS Policy").
#[test]
fn the_daemon_set_resolves_names_of_services() {
    let lines = lines(DAEMON_SET);
    assert!(lines.contains(&"hostNetwork: true") && lines.contains(&"dnsPolicy: ClusterFirstWithHostNet"));
    assert!(DAEMON_SET.contains("name: NODE_NAME"), "scraped pages and points are labelled with the node's name");
}

/// The readiness probe alone would be tried at its default period of ten seconds.
#[test]
fn the_daemon_set_is_ready_within_seconds_and_stops_in_the_time_it_has() {
    let lines = lines(DAEMON_SET);
    let startup = lines.iter().position(|line| *line == "startupProbe:").expect("a startup probe");
    assert!(lines[startup..startup + 4].contains(&"periodSeconds: 1"));
    // The observer's own limit is ten seconds.
    assert!(lines.contains(&"terminationGracePeriodSeconds: 15"));
}

/// Helm reads nothing outside a chart, and a link is a text where git makes none: on Windows, or with `core.symlinks=false`.
#[test]
fn the_chart_has_copies_of_the_dashboards_and_rules() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    for (directory, ending) in [("dashboards", ".json"), ("alerts", ".rules.yaml")] {
        let copies = deploy.join("helm/mesh-observer").join(directory);
        let names = |directory: &Path| -> BTreeSet<String> {
            let files = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
            let names = files.map(|file| file.expect("a file").file_name().into_string().expect("a name"));
            names.filter(|name| name.ends_with(ending)).collect()
        };
        let originals = names(&deploy.join(directory));
        assert!(!originals.is_empty() && names(&copies) == originals, "{directory}: {originals:?}");
        for name in originals {
            let (original, copy) = (deploy.join(directory).join(&name), copies.join(&name));
            if env::var_os("UPDATE_GOLDEN").is_some() {
                fs::copy(&original, &copy).expect("the chart is writable");
            }
            let read = |path: &Path| fs::read_to_string(path).expect("a text");
            assert!(read(&original) == read(&copy), "{} is stale: UPDATE_GOLDEN=1 copies it again", copy.display());
        }
    }
}

#[test]
fn the_charts_version_is_the_observers() {
    let version = env!("CARGO_PKG_VERSION");
    let lines = lines(CHART);
    assert!(lines.contains(&&*format!("version: {version}")) && lines.contains(&&*format!("appVersion: {version}")));
}

/// The schema refuses other options, so that a misspelled one is found before it is installed.
#[test]
fn the_chart_has_every_option_of_run() {
    let command = command();
    let run = command.find_subcommand("run").expect("a command");
    let options: BTreeSet<&str> = run.get_arguments().filter_map(|argument| argument.get_long()).collect();
    let schema: Value = serde_json::from_str(SCHEMA).expect("JSON");
    let allowed = properties(&schema["properties"]["options"]);
    let expected: BTreeSet<&str> = options.into_iter().filter(|option| !WIRED.contains(option)).collect();
    assert_eq!(allowed, expected);
}

#[test]
fn every_value_is_in_the_schema_and_the_documentation() {
    let schema: Value = serde_json::from_str(SCHEMA).expect("JSON");
    let top_level = VALUES.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()));
    let values: BTreeSet<&str> = top_level.filter_map(|line| line.split_once(':')).map(|(name, _)| name).collect();
    let mut expected = properties(&schema);
    // Helm's own, for charts that include this one.
    assert!(expected.remove("global"));
    assert_eq!(values, expected);
    for value in values {
        assert!(DOCUMENT.contains(&format!("`{value}`")), "docs/install.md lacks {value}");
    }
}

/// Every object must refuse keys that it does not have.
#[test]
fn the_schema_is_strict() {
    fn check(path: &str, schema: &Value) {
        if schema.get("properties").is_some() {
            assert_eq!(schema["additionalProperties"], false, "{path}");
        }
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            check(&format!("{path}.{name}"), property);
        }
    }
    check("", &serde_json::from_str(SCHEMA).expect("JSON"));
}

#[test]
fn the_unit_reloads_what_can_be_reloaded_and_restarts_after_failures() {
    let lines: Vec<&str> = UNIT.lines().collect();
    assert!(lines.contains(&"ExecReload=/bin/kill -HUP $MAINPID") && lines.contains(&"Restart=on-failure"));
}
