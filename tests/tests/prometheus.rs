//! The observer's exposition through the real Prometheus: it must accept every scrape without a complaint, store
//! exactly what was exposed, and answer the queries of control-plane dashboards.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
    process::{self, Command},
    thread::{self, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use harness::{
    exposition::Sample,
    mesh::Family,
    observer::{Lines, Observer, get},
    pair::Pair,
    prometheus::{Prometheus, Series, lint, stored},
    relay::Relay,
    replay::{Capture, Replay},
    sidecar::Options,
    tools,
    wait::wait_until,
};

const SCRAPE_TIMEOUT: Duration = Duration::from_secs(60);
/// Series that Prometheus adds to each target.
const ITS_OWN: &str = "up|scrape_.*";
/// Reasons for which Prometheus drops a sample, or changes it.
const REFUSALS: [&str; 6] = [
    "prometheus_target_scrapes_sample_out_of_order_total",
    "prometheus_target_scrapes_sample_duplicate_timestamp_total",
    "prometheus_target_scrapes_sample_out_of_bounds_total",
    "prometheus_target_scrapes_exceeded_sample_limit_total",
    "prometheus_target_scrapes_exceeded_body_size_limit_total",
    "prometheus_tsdb_out_of_order_samples_total",
];
const FEDERATION: &str = "federation";
/// Remarks on names that Istio documents: dashboards query them as they are, so they stay. Its milliseconds as well.
const ACCEPTED: &str = include_str!("../fixtures/promtool_accepted.txt");

#[test]
fn stores_exactly_what_was_exposed() -> Result<()> {
    let fixture = Fixture::start("stored")?;
    // Some recordings, and then the last of each forever, whose stored samples are compared.
    fixture.wait("three pages of each job", || {
        Ok(fixture.jobs.iter().all(|job| job.relay.answers() >= 3).then_some(()))
    })?;
    for job in &fixture.jobs {
        let (head, body) = job.relay.freeze()?;
        let said = |wanted: &&str| head.to_ascii_lowercase().contains(wanted);
        ensure!(head.contains(" 200 ") && job.head.iter().all(said), "{}: {head}", job.name);
        let exposed = Sample::all(&body)?;
        ensure!(exposed.len() >= job.samples, "{}: only {} samples", job.name, exposed.len());
        let expected = stored(&exposed, job.name, &job.relay.instance())?;
        let everything = format!("{{job=\"{}\",__name__!~\"{ITS_OWN}\"}}", job.name);
        let mut found = Series::new();
        let equal = fixture.wait("the last page stored", || {
            found = fixture.prometheus.query(&everything)?;
            Ok(same(&found, &expected).then_some(()))
        });
        equal.with_context(|| difference(&found, &expected)).with_context(|| job.name)?;
        let instance = job.relay.instance();
        let of_target = |name: &str| {
            let found = fixture.prometheus.query(&format!("{name}{{job=\"{}\",instance=\"{instance}\"}}", job.name))?;
            found.into_values().next().with_context(|| format!("{}: no {name}", job.name))
        };
        ensure!(of_target("up")? == 1.0, "{}: its target is not up", job.name);
        #[expect(clippy::cast_precision_loss, reason = "a small number")]
        let number = exposed.len() as f64;
        for name in ["scrape_samples_scraped", "scrape_samples_post_metric_relabeling"] {
            ensure!(of_target(name)? == number, "{}: {name}: {} of {number}", job.name, of_target(name)?);
        }
        let failed = format!("count_over_time((up{{job=\"{}\",instance=\"{instance}\"}} == 0)[5m:1s])", job.name);
        ensure!(fixture.prometheus.query(&failed)?.is_empty(), "{}: a scrape failed", job.name);
        println!("{}: {number} samples stored as they were exposed", job.name);
    }
    let own = fixture.prometheus.own()?;
    for refusal in REFUSALS {
        ensure!(own.sum(refusal, &[]) == Some(0.0), "{refusal}: {:?}", own.sum(refusal, &[]));
    }
    let log = fixture.prometheus.log()?;
    let complaints: Vec<&str> =
        log.lines().filter(|line| line.contains("level=warn") || line.contains("level=error")).collect();
    ensure!(complaints.is_empty(), "{complaints:#?}");
    fixture.end()
}

#[test]
fn answers_what_dashboards_of_control_planes_ask() -> Result<()> {
    let fixture = Fixture::start("asked")?;
    let instance = fixture.moving.instance();
    let pushes = format!("pilot_xds_pushes{{job=\"text\",type=\"eds\",instance=\"{instance}\"}}");
    let is = |value: f64| move |found: &Series| found.values().copied().collect::<Vec<_>>() == [value];
    fixture.wait_for(&pushes, is(3.0))?;
    // The control plane has pushed 21 times more, so that rates are not 0.
    fixture.moving.show(&Capture::named("1.25.3/08-conflicts")?)?;
    fixture.wait_for(&pushes, is(24.0))?;

    let of = format!("job=\"text\",instance=\"{instance}\"");
    let by_instance = fixture.prometheus.query("sum(pilot_xds{job=\"text\"}) by (instance)")?;
    let instance_label: BTreeMap<String, String> = [("instance".to_owned(), instance.clone())].into();
    ensure!(by_instance.get(&instance_label) == Some(&3.0) && by_instance.len() > 1, "{by_instance:?}");
    let within = |low: f64, high: f64| {
        move |found: &Series| found.len() == 1 && found.values().all(|value| (low..=high).contains(value))
    };
    for types in ["eds", "cds|lds|rds", ".*"] {
        fixture.wait_for(
            &format!("sum(rate(pilot_xds_pushes{{{of},type=~\"{types}\"}}[1m]))"),
            within(f64::MIN_POSITIVE, f64::MAX),
        )?;
    }
    for quantile in ["0.5", "0.9", "0.99", "0.999"] {
        let buckets = format!("rate(pilot_proxy_convergence_time_bucket{{{of}}}[1m])");
        fixture.wait_for(&format!("histogram_quantile({quantile}, sum({buckets}) by (le))"), within(0.0, 30.0))?;
    }
    let mean = format!(
        "sum(rate(pilot_proxy_convergence_time_sum{{{of}}}[1m])) / sum(rate(pilot_proxy_convergence_time_count{{{of}}}[1m]))"
    );
    fixture.wait_for(&mean, within(f64::MIN_POSITIVE, 30.0))?;
    for (expression, value) in [
        (format!("pilot_services{{{of}}}"), None),
        (format!("pilot_virt_services{{{of}}}"), None),
        (format!("sum(pilot_conflict_inbound_listener{{{of}}})"), None),
        (format!("sum(istio_build{{{of},component=\"pilot\"}}) by (tag)"), Some(1.0)),
        (format!("process_resident_memory_bytes{{{of}}} > 0"), None),
        (format!("go_goroutines{{{of}}} > 0"), None),
        ("sum(mesh_observer_control_plane_up{job=\"text\"})".to_owned(), Some(4.0)),
    ] {
        fixture.wait_for(&expression, |found: &Series| {
            found.len() == 1 && found.values().all(|own| value.is_none_or(|value| *own == value))
        })?;
    }
    fixture.end()
}

#[test]
fn promtool_has_no_remarks_but_on_names_that_istio_documents() -> Result<()> {
    let fixture = Fixture::start("lint")?;
    let (status, metrics) = get(fixture.observer.address(), "/metrics")?;
    ensure!(status == 200, "/metrics: {status}");
    // The golden page has the families of the mesh as well.
    let golden = fs::read_to_string(tools::repository().join("observer/model/golden/metrics.prom"))?;
    let remarks: BTreeSet<String> = lint(&metrics)?.into_iter().chain(lint(&golden)?).collect();
    let accepted = ACCEPTED.lines().map(str::to_owned).collect();
    ensure!(remarks == accepted, "new: {:#?}\ngone: {:#?}", &remarks - &accepted, &accepted - &remarks);
    fixture.end()
}

#[test]
fn native_histograms_answer_what_the_observer_measured() -> Result<()> {
    // No multiple of these quantiles is whole, so that both sides mean the same request.
    const REQUESTS: f64 = 137.0;
    const FAMILY: &str = "istio_request_duration_milliseconds";
    let mut pair = Pair::unobserved(Options::default(), Options::default())?;
    let pushes = pair.mesh.directory().join("pushes");
    let emit = format!("wavefront+file:{}", pushes.display());
    // The only interval ends with the observer.
    let observer = pair.observer.insert(Observer::start(&pair.mesh, 2, &["--interval", "1h", "--emit", &emit])?);
    let configuration = format!(
        "global:\n  scrape_interval: 1s\n  scrape_timeout: 1s\nscrape_configs:\n- job_name: native\n  honor_labels: true\n  \
         static_configs:\n  - targets: ['{}']\n",
        observer.address()
    );
    let feature = ["--enable-feature=native-histograms"];
    let prometheus = Prometheus::start_with(pair.mesh.directory(), &configuration, &feature)?;
    // The cells of the first ones are read before the last ones are asked.
    pair.curl(&[&pair.url(Family::V4, "/bytes/1")])?;
    sleep(Duration::from_secs(3));
    pair.curl(&[&pair.url(Family::V4, "/delay/{5,20,60,1}?round=[1-34]")])?;
    let of = |function: &str, reporter: &str| -> Result<f64> {
        let found = prometheus.query(&format!("{function} sum({FAMILY}{{reporter=\"{reporter}\"}}))"))?;
        found
            .into_values()
            .next()
            .with_context(|| format!("{function} of {reporter}: {}", prometheus.log().unwrap_or_default()))
    };
    wait_until("every request is stored", SCRAPE_TIMEOUT, || {
        for reporter in ["source", "destination"] {
            let count = of("histogram_count(", reporter)?;
            ensure!(equal(count, REQUESTS), "{count} of {reporter}");
        }
        Ok(())
    })?;
    let mut stored = Vec::new();
    for (reporter, (name, quantile)) in ["source", "destination"]
        .into_iter()
        .flat_map(|one| [("p50", 0.5), ("p75", 0.75), ("p90", 0.9), ("p99", 0.99)].map(|own| (one, own)))
    {
        stored.push((reporter, name, of(&format!("histogram_quantile({quantile},"), reporter)?));
    }
    let bytes = prometheus.query("histogram_sum(sum(istio_request_bytes{reporter=\"source\"}))")?;
    ensure!(bytes.into_values().next().is_some_and(|sum| sum > 0.0), "no native histogram of bytes");
    pair.observer.take().context("the observer")?.stop()?;
    let said = Lines::read(&pushes)?;
    for (reporter, name, found) in stored {
        let own = said.statistic("istio.request.duration.milliseconds", name, reporter)?;
        ensure!((found / own - 1.0).abs() < 0.02, "{name} of {reporter}: {found} stored, {own} measured");
        println!("{name} of {reporter}: {found:.3} stored, {own:.3} measured");
    }
    Ok(())
}

#[test]
fn a_page_that_two_nodes_name_is_two_series_that_only_grow() -> Result<()> {
    /// Growth of the counter per second.
    const RATE: f64 = 10.0;
    let directory = env::temp_dir().join(format!("mesh-prometheus-{}-two", process::id()));
    let page = |count: usize| {
        let line = format!("# TYPE pilot_xds_pushes counter\npilot_xds_pushes{{type=\"eds\"}} {count}\n");
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n{line}", line.len())
            .into_bytes()
    };
    let plane = Replay::start_with(page(1_000))?;
    let moving = plane.clone();
    thread::spawn(move || {
        for count in 1_001.. {
            sleep(Duration::from_millis(100));
            moving.answer_with(page(count));
        }
    });
    let url = plane.url();
    let nobody = format!("nobody-{}", process::id());
    let mut observers = Vec::new();
    for node in ["node-a", "node-b"] {
        let directory = directory.join(node);
        fs::create_dir_all(&directory)?;
        let mut command = Command::new(tools::observer()?);
        command.env("NODE_NAME", node);
        // Each scrapes the page at times of its own.
        let arguments = ["--scrape-interval", "2s", "--sidecar-exe", &nobody, "--control-plane", &url];
        observers.push(Observer::launch(&mut command, &directory, "", 0, &arguments)?);
        sleep(Duration::from_millis(700));
    }
    let targets: Vec<_> = observers.iter().map(|observer| format!("'{}'", observer.address())).collect();
    let configuration = format!(
        "global:\n  scrape_interval: 1s\n  scrape_timeout: 1s\nscrape_configs:\n- job_name: both\n  honor_labels: true\n  \
         static_configs:\n  - targets: [{}]\n",
        targets.join(", ")
    );
    let prometheus = Prometheus::start(&directory, &configuration)?;
    wait_until("the page is stored for ten seconds", SCRAPE_TIMEOUT, || {
        let found = prometheus.query("count_over_time(pilot_xds_pushes[20s]) >= 12")?;
        ensure!(found.len() == 2, "{found:?}");
        Ok(())
    })?;
    for (labels, rate) in prometheus.query("rate(pilot_xds_pushes[12s])")? {
        println!("{:?}: {rate:.1}/s", labels.get("scraper_node"));
        ensure!((0.5 * RATE..1.5 * RATE).contains(&rate), "{labels:?} seems to grow by {rate}/s");
    }
    let resets = prometheus.query("resets(pilot_xds_pushes[20s])")?;
    let nodes: BTreeSet<_> =
        resets.keys().filter_map(|labels| labels.get("scraper_node").map(String::as_str)).collect();
    ensure!(
        nodes == BTreeSet::from(["node-a", "node-b"]) && resets.values().all(|resets| equal(*resets, 0.0)),
        "{resets:?}"
    );
    // The page counts once where one node is chosen, as the documentation says.
    let once = prometheus.query("sum(max without (scraper_node) (rate(pilot_xds_pushes[12s])))")?;
    ensure!(once.into_values().all(|rate| (0.5 * RATE..1.5 * RATE).contains(&rate)), "counted twice");
    drop(prometheus);
    observers.into_iter().try_for_each(Observer::stop)?;
    Ok(fs::remove_dir_all(directory)?)
}

/// A target of Prometheus, and the expected response.
struct Job {
    name: &'static str,
    relay: Relay,
    /// Expected in the responses' headers.
    head: &'static [&'static str],
    /// Minimum of exposed samples.
    samples: usize,
}

/// Control planes, an observer of them, and a Prometheus that scrapes it in each format and through a selector.
struct Fixture {
    prometheus: Prometheus,
    jobs: Vec<Job>,
    observer: Observer,
    moving: Replay,
    directory: PathBuf,
}

impl Fixture {
    fn start(name: &str) -> Result<Self> {
        let directory = env::temp_dir().join(format!("mesh-prometheus-{}-{name}", process::id()));
        fs::create_dir_all(&directory)?;
        let moving = Replay::start(&Capture::named("1.25.3/05-config-update")?)?;
        let others = ["1.25.3/23-odd-labels", "1.12.9/16-one-left", "1.32-dev/16-one-left"];
        let others =
            others.into_iter().map(|name| Replay::start(&Capture::named(name)?)).collect::<Result<Vec<_>>>()?;
        let observer = observe(&directory, others.iter().chain([&moving]))?;
        let text: &[&str] = &["http/1.0", "text/plain; version=0.0.4"];
        let open_metrics: &[&str] =
            &["application/openmetrics-text; version=1.0.0", "content-encoding: gzip", "transfer-encoding: chunked"];
        let job = |name, accept, head, samples| {
            Ok(Job { name, relay: Relay::start(observer.address(), accept)?, head, samples })
        };
        let jobs: Vec<Job> = [
            // Prometheus itself asks for OpenMetrics first, compressed, and has no setting that would change it in
            // Debian's version.
            job("openmetrics", None, open_metrics, 1000),
            job("text", Some("text/plain;version=0.0.4"), text, 1000),
            job(FEDERATION, None, open_metrics, 20),
        ]
        .into_iter()
        .collect::<Result<_>>()?;
        let prometheus = Prometheus::start(&directory, &configuration(&jobs))?;
        Ok(Self { prometheus, jobs, observer, moving, directory })
    }

    fn end(self) -> Result<()> {
        drop(self.prometheus);
        self.observer.stop()?;
        Ok(fs::remove_dir_all(self.directory)?)
    }

    fn wait_for(&self, expression: &str, ready: impl Fn(&Series) -> bool) -> Result<()> {
        let mut last = Series::new();
        let answer = self.wait(expression, || {
            last = self.prometheus.query(expression)?;
            Ok(ready(&last).then_some(()))
        });
        answer.with_context(|| format!("{last:?}"))
    }

    /// Waits for a result. Errors may pass: a starting server refuses to answer.
    fn wait<T>(&self, what: &str, mut ready: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        let end = Instant::now() + SCRAPE_TIMEOUT;
        loop {
            let last = ready();
            match last {
                Ok(Some(found)) => return Ok(found),
                last if Instant::now() > end => {
                    let problem = last.err().map_or_else(String::new, |error| format!("{error:#}\n"));
                    let log = self.prometheus.log()?;
                    bail!("{what}: not there within {SCRAPE_TIMEOUT:?}\n{problem}{log}{}", self.observer.log());
                }
                _ => sleep(Duration::from_millis(200)),
            }
        }
    }
}

/// Returns an observer that looks at these control planes only, once it has read them all.
fn observe<'a>(directory: &Path, planes: impl Iterator<Item = &'a Replay>) -> Result<Observer> {
    let urls: Vec<String> = planes.map(Replay::url).collect();
    let observer = Observer::start_scraping(directory, &urls, &[])?;
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let all = urls.len() as f64;
    observer.wait(SCRAPE_TIMEOUT, |metrics| metrics.sum("mesh_observer_control_plane_up", &[]) == Some(all))?;
    Ok(observer)
}

fn configuration(jobs: &[Job]) -> String {
    let mut text = "global:\n  scrape_interval: 3s\n  scrape_timeout: 3s\nscrape_configs:\n".to_owned();
    for job in jobs {
        let instance = job.relay.instance();
        text += &format!(
            "- job_name: {}\n  honor_labels: true\n  static_configs:\n  - targets: ['{instance}']\n",
            job.name
        );
        if job.name == FEDERATION {
            text += "  params:\n    'name[]': [pilot_xds, pilot_proxy_convergence_time_bucket, mesh_observer_control_plane_up]\n";
        }
    }
    text
}

/// Returns whether both have the same series with the same values, where no number equals no number.
fn same(one: &Series, other: &Series) -> bool {
    one.len() == other.len()
        && one.iter().all(|(labels, value)| other.get(labels).is_some_and(|own| equal(*value, *own)))
}

fn equal(one: f64, other: f64) -> bool {
    one == other || one.is_nan() && other.is_nan()
}

/// Describes some of the differences.
fn difference(found: &Series, expected: &Series) -> String {
    let lacks = |one: &Series, other: &Series| {
        let differs = one.iter().filter(|(labels, value)| !other.get(*labels).is_some_and(|own| equal(**value, *own)));
        differs.take(5).map(|entry| format!("{entry:?}")).collect::<Vec<_>>().join("\n")
    };
    format!("stored only:\n{}\nexposed only:\n{}", lacks(found, expected), lacks(expected, found))
}
