//! The node beside its calls, as lines: findings, what is not seen, control plane, processes, the observer itself.

use std::collections::BTreeMap;

use crate::{
    calls::{Health, Sums},
    clean::Clean,
    document::{Document, Family, Finding, Point, Process, Unseen},
    format::{self, known},
};

/// Labels that name the instance, over which families of the control plane are added up.
const OF_INSTANCE: [&str; 7] = ["instance", "app", "pod", "namespace", "job", "scraper_node", "node"];

/// A line, and what it says about the node's health.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) text: String,
    pub(crate) health: Health,
    pub(crate) is_title: bool,
}

impl Line {
    fn new(health: Health, text: impl Into<String>) -> Self {
        Self { text: text.into(), health, is_title: false }
    }
}

/// Returns the figures over all calls.
pub(crate) fn summary(document: &Document, sums: &Sums) -> String {
    let sidecars: f64 = document.observer.sidecars.iter().map(|role| role.value).sum();
    format!(
        "{} requests/s · {} errors · slowest p99 {} · {}/s · {} sidecars",
        format::short(sums.requests),
        known(sums.error_ratio(), format::percent),
        known(sums.slowest_p99, format::milliseconds),
        format::bytes(sums.bytes),
        format::count(sidecars),
    )
}

/// Returns the node in one line per subject.
pub(crate) fn brief(document: &Document) -> [Line; 3] {
    [brief_findings(document), brief_unseen(document), brief_mesh(document)]
}

fn brief_findings(document: &Document) -> Line {
    let Some(first) = document.findings.first() else { return Line::new(Health::Good, "findings: none") };
    let more = match document.findings.len() {
        1 => String::new(),
        all => format!(" (1 of {all})"),
    };
    Line::new(weight(&first.level), format!("{}{more}: {}", &*first.level, &*first.text))
}

fn brief_unseen(document: &Document) -> Line {
    let rate = |unseen: &&Unseen| unseen.per_second.unwrap_or(0.0);
    let most = document.unseen.iter().max_by(|one, other| rate(one).total_cmp(&rate(other)));
    match most {
        Some(most) if rate(&most) > 0.0 => {
            let all: f64 = document.unseen.iter().map(|unseen| rate(&unseen)).sum();
            Line::new(Health::Warning, format!("not seen: {}/s, most: {}", format::short(all), unseen(most)))
        }
        Some(_) => Line::new(Health::Good, "not seen: nothing in the last minute, something before (Tab)"),
        None => Line::new(Health::Good, "not seen: nothing"),
    }
}

fn brief_mesh(document: &Document) -> Line {
    let instances = &document.control_plane.instances;
    let down = instances.iter().filter(|instance| !instance.up).count();
    let control_plane = match (instances.len(), down) {
        (0, _) => "none here".to_owned(),
        (all, 0) => format!("{all} up"),
        (all, down) => format!("{down} of {all} cannot be scraped"),
    };
    let sum =
        |of: fn(&Process) -> Option<f64>| document.processes.iter().filter_map(of).reduce(|sum, value| sum + value);
    let health = if down > 0 { Health::Bad } else { Health::Good };
    let text = format!(
        "control plane: {control_plane} · processes: {}, {} cores, {} · observer: {} CPU, {}",
        document.processes.len(),
        known(sum(|process| process.cpu_cores), format::short),
        known(sum(|process| process.resident_bytes), format::bytes),
        known(document.observer.cpu_cores, format::percent),
        known(document.observer.resident_bytes, format::bytes),
    );
    Line::new(health, text)
}

/// Returns everything of the node.
pub(crate) fn lines(document: &Document) -> Vec<Line> {
    [
        section("FINDINGS", "none", findings(document)),
        section("NOT SEEN, AND WHY", "everything was seen", not_seen(document)),
        section("CONTROL PLANE", "none here, and none is configured with --control-plane", control_plane(document)),
        section("PROCESSES OF THE MESH", "none here", processes(document)),
    ]
    .concat()
}

fn section(title: &str, nothing: &str, mut lines: Vec<Line>) -> Vec<Line> {
    if lines.is_empty() {
        lines.push(Line::new(Health::Idle, nothing));
    }
    lines.insert(0, Line { text: title.to_owned(), health: Health::Good, is_title: true });
    lines
}

fn findings(document: &Document) -> Vec<Line> {
    let line = |one: &Finding| Line::new(weight(&one.level), format!("{}: {}", &*one.level, &*one.text));
    document.findings.iter().map(line).collect()
}

fn not_seen(document: &Document) -> Vec<Line> {
    let mut lines: Vec<Line> = document
        .unseen
        .iter()
        .map(|one| {
            let health = if one.per_second.unwrap_or(0.0) > 0.0 { Health::Warning } else { Health::Idle };
            Line::new(health, unseen(one))
        })
        .collect();
    if document.unlisted_series > 0.0 {
        let text = format!("{} series of further calls are not listed", format::count(document.unlisted_series));
        lines.push(Line::new(Health::Warning, text));
    }
    lines
}

fn control_plane(document: &Document) -> Vec<Line> {
    let instances = document.control_plane.instances.iter().map(|instance| {
        let (health, scraped) = match (instance.up, instance.scrape_seconds) {
            (false, _) => (Health::Bad, "cannot be scraped".to_owned()),
            (true, None) => (Health::Good, "scraped".to_owned()),
            (true, Some(seconds)) => (Health::Good, format!("scraped in {}", format::milliseconds(seconds * 1_000.0))),
        };
        Line::new(health, format!("{} {}: {scraped}", &*instance.app, &*instance.instance))
    });
    instances.chain(document.control_plane.families.iter().flat_map(family)).collect()
}

fn processes(document: &Document) -> Vec<Line> {
    document.processes.iter().map(|one| Line::new(Health::Good, process(one, document.at))).collect()
}

fn weight(level: &str) -> Health {
    match level {
        "error" => Health::Bad,
        "warning" => Health::Warning,
        _ => Health::Good,
    }
}

fn unseen(Unseen { help, labels, value, per_second }: &Unseen) -> String {
    let rate = per_second.filter(|rate| *rate > 0.0).map(|rate| format!(" ({}/s)", format::short(rate)));
    format!("{}{}: {}{}", &**help, in_brackets(labels), format::count(*value), rate.unwrap_or_default())
}

/// Returns a line per label set, added up over instances.
fn family(Family { name, points, at_most }: &Family) -> Vec<Line> {
    let mut sums: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    for Point { labels, value, per_second } in points {
        let own = labels.iter().filter(|(name, _)| !OF_INSTANCE.contains(&&***name));
        let own: BTreeMap<Clean, Clean> = own.map(|(name, value)| (name.clone(), value.clone())).collect();
        let (sum, rate) = sums.entry(in_brackets(&own)).or_default();
        *sum += value;
        *rate += per_second.unwrap_or(0.0);
    }
    let p99 = at_most.p99.map(|p99| format!(", 99 % at most {}", format::milliseconds(p99 * 1_000.0)));
    let p99 = p99.unwrap_or_default();
    sums.into_iter()
        .map(|(labels, (sum, rate))| {
            let rate = if rate > 0.0 { format!(" ({}/s)", format::short(rate)) } else { String::new() };
            Line::new(Health::Good, format!("{}{labels}: {}{rate}{p99}", &**name, format::count(sum)))
        })
        .collect()
}

fn process(process: &Process, at: f64) -> String {
    let name = if process.pod.is_empty() { &process.instance } else { &process.pod };
    let age = process.started.map(|started| at - started);
    format!(
        "{} {}: {} cores, {}, {} files, {} threads, {} old",
        &*process.app,
        &**name,
        known(process.cpu_cores, format::short),
        known(process.resident_bytes, format::bytes),
        known(process.open_files, format::count),
        known(process.threads, format::count),
        known(age, format::duration),
    )
}

fn in_brackets(labels: &BTreeMap<Clean, Clean>) -> String {
    let labels: Vec<String> = labels
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("{}={}", &**name, &**value))
        .collect();
    if labels.is_empty() { String::new() } else { format!(" [{}]", labels.join(", ")) }
}
