//! Control planes through the whole observer: pages of real istiods are replayed, and what the observer exposes of them
//! must be as expected from the recordings' index.

use std::{
    collections::BTreeMap,
    env, fs,
    path::PathBuf,
    process::{self, Command},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use harness::{
    catalogue,
    exposition::Exposition,
    observer::{Observer, get},
    replay::{Capture, Replay, fixtures},
    tools,
};

const SCRAPE_TIMEOUT: Duration = Duration::from_secs(20);
const UP: &str = "mesh_observer_control_plane_up";

#[test]
fn every_known_figure_of_every_version_is_exposed() -> Result<()> {
    let planes = planes(&Capture::all()?)?;
    let fixture = Fixture::start("all", planes.values())?;
    let exposition = fixture.wait_for(UP, planes.len())?;
    ensure!(
        exposition.sum("mesh_observer_control_plane_families_conflicting", &[]) == Some(0.0),
        "families are left out"
    );
    check_expected(&planes, &exposition)?;
    check_coverage(&planes, &exposition)?;
    for (format, accept) in [("text", "text/plain"), ("openmetrics", "application/openmetrics-text;version=1.0.0")] {
        check_form(&fixture, format, accept, 100_000)?;
    }
    fixture.end()
}

#[test]
fn any_response_disturbs_nothing_else() -> Result<()> {
    let captures = Capture::all()?;
    let named = |name: &str| captures.iter().find(|own| own.name == name).context("no such page");
    let good = Replay::start(named("1.25.3/16-one-left")?)?;
    let text = |body: &str| {
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n{body}", body.len())
            .into_bytes()
    };
    let bad = [
        ("forbidden", b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n".to_vec()),
        ("redirect", b"HTTP/1.1 302 Found\r\nlocation: /metrics\r\ncontent-length: 0\r\n\r\n".to_vec()),
        ("content_type", b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 1\r\n\r\nx".to_vec()),
        ("no_metrics", text("\u{0}\n<html>\n")),
        ("gzip", b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 1\r\n\r\nx".to_vec()),
        ("broken", b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\na 1\n".to_vec()),
    ];
    let bad =
        bad.into_iter().map(|(kind, answer)| Ok((kind, Replay::start_with(answer)?))).collect::<Result<Vec<_>>>()?;
    let secret = bad[0].1.url().replace("http://", "http://user:secret@");
    let urls: Vec<String> = bad.iter().skip(1).map(|(_, replay)| replay.url()).chain([secret, good.url()]).collect();
    let fixture = Fixture::start_at("bad", &urls)?;
    let exposition = fixture.wait_for(UP, 1)?;
    for (kind, replay) in &bad {
        let instance = replay.instance();
        let labels = [("instance", instance.as_str()), ("outcome", kind)];
        fixture.wait(|metrics| {
            metrics.sum("mesh_observer_control_plane_scrapes_total", &labels).is_some_and(|count| count > 0.0)
        })?;
        ensure!(exposition.sum(UP, &[("instance", &instance)]) != Some(1.0), "{kind} is up");
    }
    let log = fixture.observer.log();
    ensure!(log.contains("METRICS_LOCALHOST_ACCESS_ONLY") && !log.contains("secret"), "{log}");

    // The instance restarts: its counters fall, and its previous counts are gone.
    let instance = good.instance();
    let pushes = |metrics: &Exposition| metrics.sum("pilot_xds_pushes", &[("instance", &instance), ("type", "cds")]);
    let before = pushes(&exposition).context("no pushes")?;
    good.show(named("1.25.3/20-slow-client")?)?;
    fixture.wait(|metrics| pushes(metrics).is_some_and(|after| after < before))?;
    // An invalid line is skipped alone; the instance's other families go with the exposition that had them.
    good.answer_with(text("# TYPE one gauge\none 1\ntwo x\none 2\n"));
    let labels = [("instance", instance.as_str())];
    let metrics = fixture.wait(|metrics| metrics.sum("one", &labels) == Some(1.0))?;
    ensure!(pushes(&metrics).is_none(), "samples of an instance that has restarted");
    for reason in ["value", "duplicate"] {
        let labels = [labels[0], ("reason", reason)];
        let skipped = metrics.sum("mesh_observer_control_plane_lines_skipped_total", &labels);
        ensure!(skipped.is_some_and(|lines| lines > 0.0), "{reason}: {skipped:?}");
    }
    // A selector requests some families.
    let (_, body) = get(fixture.observer.address(), "/metrics?name[]=one&family=*control_plane_up")?;
    let families: Vec<&str> = body.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    ensure!(families == [&format!("{UP} gauge"), "one gauge"], "{families:?}");
    fixture.end()
}

/// Samples that a strict parser would refuse are omitted, with a reason, and the rest stays.
#[test]
fn an_invalid_exposition_spoils_nothing_else() -> Result<()> {
    let metrics = concat!(
        "# TYPE lacks histogram\nlacks_bucket{le=\"1\"} 1\nlacks_sum 1\nlacks_count 1\n",
        "# TYPE nan histogram\nnan_bucket{le=\"+Inf\"} 1\nnan_sum NaN\nnan_count 1\n",
        "# TYPE mixed histogram\nmixed_sum{a=\"1\"} 1\nmixed_sum{a=\"2\"} 1\nmixed_bucket{a=\"1\",le=\"inf\"} 1\n",
        "mixed_bucket{a=\"2\",le=\"+Inf\"} 1\nmixed_count{a=\"2\"} 1\nmixed_count{a=\"1\"} 1\n",
        "# TYPE s summary\ns{quantile=\"7\"} 1\ns_sum 1\ns_count 1\n",
        "# TYPE down counter\ndown_total -1\n# TYPE whole gauge\nwhole NaN\n",
    );
    let answer = |metrics: &str| {
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n{metrics}", metrics.len())
    };
    let planes = [metrics, "# TYPE mixed_count gauge\nmixed_count 1\n# TYPE other gauge\nother 1\n"];
    let planes: Vec<_> =
        planes.iter().map(|metrics| Replay::start_with(answer(metrics).into_bytes())).collect::<Result<_>>()?;
    let sound = Replay::start(&Capture::named("1.25.3/16-one-left")?)?;
    let urls: Vec<String> = planes.iter().chain([&sound]).map(Replay::url).collect();
    let fixture = Fixture::start_at("unsound", &urls)?;
    let exposition = fixture.wait_for(UP, 3)?;
    for (reason, lines) in [("histogram", 6.0), ("summary", 3.0), ("counter_value", 1.0)] {
        let labels = [("reason", reason), ("instance", &planes[0].instance())];
        let skipped = exposition.sum("mesh_observer_control_plane_lines_skipped_total", &labels);
        ensure!(skipped.is_some_and(|skipped| skipped >= lines && skipped % lines == 0.0), "{reason}: {skipped:?}");
    }
    ensure!(exposition.sum("mixed_count", &[]) == Some(2.0) && exposition.sum("other", &[]) == Some(1.0));
    ensure!(exposition.samples("whole").any(|sample| sample.value.is_nan()), "a gauge may be no number");
    ensure!(exposition.sum("mesh_observer_control_plane_families_conflicting", &[]) == Some(1.0));
    for (format, accept) in [("text", "text/plain"), ("openmetrics", "application/openmetrics-text;version=1.0.0")] {
        check_form(&fixture, format, accept, 10_000)?;
    }
    fixture.end()
}

#[test]
fn an_address_that_is_none_is_refused_without_repeating_it() -> Result<()> {
    let output = Command::new(tools::observer()?).args(["run", "--control-plane", "http://user:secret@:x"]).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(2) && said.contains("--control-plane") && !said.contains("secret"), "{said}");
    Ok(())
}

/// Starts one control plane per recording.
fn planes(captures: &[Capture]) -> Result<BTreeMap<String, Replay>> {
    captures.iter().map(|capture| Ok((capture.name.clone(), Replay::start(capture)?))).collect()
}

fn check_expected(planes: &BTreeMap<String, Replay>, exposition: &Exposition) -> Result<()> {
    let table = fs::read_to_string(fixtures().join("expected.tsv"))?;
    let mut checked = 0;
    for row in table.lines().skip(1) {
        let columns: Vec<&str> = row.split('\t').collect();
        let [capture, _, name, labels, value, _] = columns[..] else { bail!("{row}") };
        let instance = planes.get(capture).with_context(|| format!("no page {capture}"))?.instance();
        let mut wanted = vec![("instance", instance.as_str())];
        if !matches!(labels, "-" | "*") {
            wanted.extend(labels.split(',').filter_map(|label| {
                let (name, value) = label.split_once('=')?;
                Some((name, value.trim_matches('"')))
            }));
        }
        let found = exposition.sum(name, &wanted);
        let right = match (value, value.split_once("..")) {
            ("absent", _) => found.unwrap_or(0.0) == 0.0,
            (_, Some((low, high))) => {
                found.is_some_and(|found| (low.parse().ok()..=high.parse().ok()).contains(&Some(found)))
            }
            (value, None) => found == Some(value.parse().with_context(|| row.to_owned())?),
        };
        ensure!(right, "{found:?} instead of:\n{row}");
        checked += 1;
    }
    println!("{checked} expected samples are equal");
    ensure!(checked == 369, "{checked} rows");
    Ok(())
}

/// Checks that absent families are 0 if the release has them without labels, else absent.
fn check_coverage(planes: &BTreeMap<String, Replay>, exposition: &Exposition) -> Result<()> {
    let catalogue = catalogue::rows(&[])?;
    let mut checked = 0;
    for (family, states) in catalogue::coverage()? {
        let row = catalogue.iter().find(|row| row["prometheus_name"] == family).with_context(|| family.clone())?;
        for (capture, state) in states {
            let instance = planes.get(&capture).with_context(|| capture.clone())?.instance();
            let samples = ["", "_bucket", "_sum", "_count"]
                .map(|suffix| exposition.sum(&format!("{family}{suffix}"), &[("instance", &instance)]));
            let found = match samples.into_iter().flatten().reduce(|one, other| one.abs() + other.abs()) {
                None => "absent",
                Some(0.0) => "zero",
                Some(_) => "nonzero",
            };
            let has = row["labels"].is_empty() && reports(row, &capture);
            let expected = if state == "absent" && has { "zero" } else { state.as_str() };
            ensure!(found == expected, "{capture} {family}: {found} instead of {expected} (its page: {state})");
            checked += 1;
        }
    }
    println!("{checked} states are as the pages and the releases say");
    Ok(())
}

/// Checks that the reference parser, strict in OpenMetrics, accepts the whole exposition.
fn check_form(fixture: &Fixture, format: &str, accept: &str, least: usize) -> Result<()> {
    let metrics = fixture.directory.join(format);
    let mut curl = Command::new(tools::require("curl")?);
    curl.args(["-sSf", "-H", &format!("accept: {accept}"), "-o"]).arg(&metrics);
    let status = curl.arg(format!("http://{}/metrics", fixture.observer.address())).status()?;
    ensure!(status.success(), "curl: {status}");
    let mut reference = Command::new(tools::require("python3")?);
    reference.arg(tools::repository().join("tests/fixtures/reference_parser.py")).args(["parse", format]).arg(metrics);
    let output = reference.env("PYTHONPATH", tools::cache().join("prometheus-client")).output()?;
    ensure!(output.status.success(), "{format}: {}", String::from_utf8_lossy(&output.stderr));
    ensure!(output.stdout.len() > least, "{format}: the reference reads little of the page");
    Ok(())
}

/// Returns whether the release of this page reports the family.
fn reports(row: &BTreeMap<String, String>, capture: &str) -> bool {
    let number = |release: &str| -> u32 {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
        numbers.next().unwrap_or(0) * 1_000 + numbers.next().unwrap_or(0)
    };
    let (since, until) = (&row["since_istio"], &row["until_istio"]);
    !since.is_empty() && (until.is_empty() || number(capture) <= number(until))
}

/// An observer of control planes only.
struct Fixture {
    observer: Observer,
    directory: PathBuf,
}

impl Fixture {
    fn start<'a>(name: &str, planes: impl Iterator<Item = &'a Replay>) -> Result<Self> {
        Self::start_at(name, &planes.map(Replay::url).collect::<Vec<_>>())
    }

    fn start_at(name: &str, urls: &[String]) -> Result<Self> {
        let directory = env::temp_dir().join(format!("mesh-control-plane-{}-{name}", process::id()));
        fs::create_dir_all(&directory)?;
        let observer = Observer::start_scraping(&directory, urls, &[])?;
        Ok(Self { observer, directory })
    }

    fn end(self) -> Result<()> {
        self.observer.stop()?;
        Ok(fs::remove_dir_all(self.directory)?)
    }

    /// Waits until the family sums up to this.
    fn wait_for(&self, family: &str, sum: usize) -> Result<Exposition> {
        #[expect(clippy::cast_precision_loss, reason = "a small number")]
        self.wait(|metrics| metrics.sum(family, &[]) == Some(sum as f64))
    }

    fn wait(&self, ready: impl Fn(&Exposition) -> bool) -> Result<Exposition> {
        self.observer.wait(SCRAPE_TIMEOUT, ready)
    }
}
