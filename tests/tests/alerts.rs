//! Alerts and recording rules: valid, unit-tested both ways, explained, and about families that there are.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use harness::tools;
use observer_model::catalogue;

const RULES: &str = "deploy/alerts/mesh-observer.rules.yaml";
/// Begin the names of metrics.
const PREFIXES: [&str; 5] = ["istio_", "pilot_", "galley_", "citadel_", "mesh_observer_"];
/// What histograms add to their name.
const SUFFIXES: [&str; 3] = ["_bucket", "_count", "_sum"];
/// Exposed as istiod has it, and not in the catalogue.
const PASSED_THROUGH: &str = "citadel_server_root_cert_expiry_timestamp";

#[test]
fn rules_are_valid_and_their_unit_tests_pass() -> Result<()> {
    promtool(&["check", "rules"], &[tools::repository().join(RULES)])?;
    promtool(&["test", "rules"], &unit_tests()?)
}

#[test]
fn every_alert_is_tested_firing_and_silent() -> Result<()> {
    let (mut firing, mut silent) = (BTreeSet::new(), BTreeSet::new());
    for file in unit_tests()? {
        let text = read(&file)?;
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for pair in lines.windows(2) {
            let Some(name) = pair[0].strip_prefix("alertname: ") else { continue };
            let expects = pair[1].strip_prefix("exp_alerts:").with_context(|| format!("{name}: {}", pair[1]))?;
            if expects.is_empty() { &mut firing } else { &mut silent }.insert(name.to_owned());
        }
    }
    let alerts = alerts()?;
    ensure!(firing == alerts && silent == alerts, "alerts: {alerts:?}\nfiring: {firing:?}\nsilent: {silent:?}");
    Ok(())
}

#[test]
fn every_alert_has_its_paragraph_in_the_runbook() -> Result<()> {
    let text = read(&tools::repository().join("docs/runbook.md"))?;
    let headings: BTreeSet<_> = text.lines().filter_map(|line| line.strip_prefix("### ")).map(str::to_owned).collect();
    let alerts = alerts()?;
    ensure!(headings == alerts, "alerts: {alerts:?}\nheadings: {headings:?}");
    let rules = read(&tools::repository().join(RULES))?;
    for alert in alerts {
        let link = format!("runbook_url: \"docs/runbook.md#{}\"", alert.to_lowercase());
        ensure!(rules.contains(&link), "{alert}: no {link}");
    }
    Ok(())
}

#[test]
fn rules_name_families_of_the_catalogue() -> Result<()> {
    let rules = read(&tools::repository().join(RULES))?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words: BTreeSet<&str> = rules.split(|c| !is_name(c)).collect();
    let names = words.into_iter().filter(|word| PREFIXES.iter().any(|prefix| word.starts_with(prefix)));
    let is_known = |name: &str| {
        let without = SUFFIXES.iter().filter_map(|suffix| name.strip_suffix(suffix));
        [name].into_iter().chain(without).any(|name| catalogue::by_prometheus_name(name).is_some())
    };
    let names: Vec<_> = names.collect();
    ensure!(names.len() > 15, "only {names:?}");
    let unknown: Vec<_> = names.into_iter().filter(|name| *name != PASSED_THROUGH && !is_known(name)).collect();
    ensure!(unknown.is_empty(), "not in the catalogue: {unknown:?}");
    Ok(())
}

fn promtool(arguments: &[&str], files: &[PathBuf]) -> Result<()> {
    let output = Command::new(tools::server("promtool")?).args(arguments).args(files).output()?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "promtool {arguments:?}: {said}");
    Ok(())
}

fn alerts() -> Result<BTreeSet<String>> {
    let rules = read(&tools::repository().join(RULES))?;
    let names = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    let names: BTreeSet<_> = names.map(str::to_owned).collect();
    ensure!(!names.is_empty(), "no alerts in {RULES}");
    Ok(names)
}

fn unit_tests() -> Result<Vec<PathBuf>> {
    let files = fs::read_dir(tools::repository().join("deploy/alerts/tests"))?;
    files.map(|file| Ok(file?.path())).collect()
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| path.display().to_string())
}
