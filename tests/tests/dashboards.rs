//! Dashboards, recording rules and alerts through the real Prometheus, which scrapes an observed mesh with traffic: it
//! must answer every expression with a number. `UPDATE_PICTURES=1` takes the picture in `docs/` anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    os::fd::OwnedFd,
    path::PathBuf,
    process,
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bookstore::{Bookstore, Talk};
use harness::{
    bpf,
    dashboard::{collect_expressions, picture, select_everything},
    envoy::{GATEWAY_PLAIN, GATEWAY_TLS},
    mesh::{Family, Workload},
    net::finish,
    observer::{Observer, free_port},
    prometheus::Prometheus,
    replay::{Capture, Replay},
    server::Server,
    sidecar::{Options, Sidecar},
    tools,
    wait::wait_until,
    wavefront::{Act, Proxy, TAKE},
};

/// Limits the time until every expression has had an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(45);
/// Window of rates and of tables, instead of Grafana's variables.
const WINDOW: &str = "30s";
const RULES: &str = "deploy/alerts/mesh-observer.rules.yaml";
/// Recorded series that the mesh must give.
const RECORDED: [&str; 3] =
    ["mesh:requests:rate5m", "mesh:request_errors:ratio_rate5m", "mesh:slow_requests:ratio_rate5m"];
const DASHBOARDS: [&str; 3] = ["istio-data-plane", "istio-control-plane", "mesh-observer"];
/// bpf(2): counts runs of programs while the descriptor is open.
const ENABLE_STATS: libc::c_long = 32;
/// Lines that the observer does not take over.
const INVALID_PAGE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 40\r\n\r\n\
                              # TYPE pilot_services gauge\none 1\ntwo x\n";
/// How long traffic has run when the picture is kept.
const BEFORE_PICTURES: Duration = Duration::from_secs(180);
/// Time that the picture shows.
const PICTURE_SECONDS: u32 = 150;
/// Families whose state this mesh cannot have, and why.
const WITHOUT_DATA: [(&str, &str); 15] = [
    ("galley_validation_config_load", "no supported release of Istio reports it"),
    ("galley_validation_config_delete_error", "no supported release of Istio reports it"),
    ("sidecar_injection_requests_total", "no recording has an injection"),
    ("sidecar_injection_success_total", "no recording has an injection"),
    ("sidecar_injection_failure_total", "no recording has an injection"),
    ("sidecar_injection_skip_total", "no recording has an injection"),
    ("mesh_observer_kubernetes_objects", "the mesh has no Kubernetes API"),
    ("mesh_observer_kubernetes_objects_rejected_total", "the mesh has no Kubernetes API"),
    ("mesh_observer_kubernetes_requests_total", "the mesh has no Kubernetes API"),
    ("mesh_observer_kubernetes_staleness_seconds", "the mesh has no Kubernetes API"),
    ("mesh_observer_kubernetes_watch_open", "the mesh has no Kubernetes API"),
    ("mesh_observer_destinations_unresolved", "the mesh has no Kubernetes API"),
    ("mesh_observer_cgroup_memory_limit_bytes", "a cgroup of the mesh has a limit only with cgroup v2's controllers"),
    ("mesh_observer_cgroup_cpu_throttled_seconds_total", "it needs cgroup v2's controllers"),
    ("mesh_observer_cgroup_cpu_throttled_periods_total", "it needs a CPU limit, and cgroup v2's controllers"),
];

#[test]
fn every_expression_of_the_dashboards_has_an_answer() -> Result<()> {
    let mut expressions = BTreeMap::new();
    for dashboard in DASHBOARDS {
        let path = tools::repository().join("deploy/dashboards").join(format!("{dashboard}.json"));
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        collect_expressions(&serde_json::from_str(&text)?, dashboard, &mut expressions);
    }
    ensure!(expressions.len() > 150, "only {} expressions", expressions.len());
    let fixture = Fixture::start()?;
    let mut open: BTreeSet<&String> = expressions.keys().collect();
    let begun = Instant::now();
    let answered = wait_until("an answer to every expression", ANSWER_TIMEOUT, || {
        fixture.visit()?;
        let mut left = BTreeSet::new();
        for expression in &open {
            let found = fixture.prometheus.query(&evaluable(expression))?;
            if !found.values().any(|value| value.is_finite()) {
                left.insert(*expression);
            }
        }
        open = left;
        let unexpected: Vec<_> = open.iter().filter(|expression| reason(expression).is_none()).collect();
        ensure!(unexpected.is_empty(), "no answer: {unexpected:#?}");
        Ok(())
    });
    answered.with_context(|| fixture.observer.log())?;
    // Limits of cgroups depend on the machine.
    let is_stale = |family: &str| !family.contains("_cgroup_") && !open.iter().any(|own| names(own, family));
    let stale: Vec<_> = WITHOUT_DATA.iter().filter(|(family, _)| is_stale(family)).collect();
    ensure!(stale.is_empty(), "have data: {stale:?}");
    println!("{} expressions, {} of them without data, after {:?}", expressions.len(), open.len(), begun.elapsed());
    for expression in open {
        println!("{}: {expression}: {}", expressions[expression], reason(expression).unwrap_or_default());
    }
    for record in RECORDED {
        wait_until(record, ANSWER_TIMEOUT, || {
            let found = fixture.prometheus.query(&format!("{record}{{destination_service=~\"catalog.+\"}}"))?;
            ensure!(found.values().any(|value| value.is_finite()), "{found:?}");
            Ok(())
        })?;
    }
    let failures = fixture.prometheus.own()?.sum("prometheus_rule_evaluation_failures_total", &[]);
    ensure!(failures == Some(0.0), "{failures:?} rules cannot be evaluated: {}", fixture.prometheus.log()?);
    draw(&fixture)?;
    fixture.end()
}

/// Draws the data plane's dashboard; keeps the picture where asked.
fn draw(fixture: &Fixture) -> Result<()> {
    let is_kept = env::var_os("UPDATE_PICTURES").is_some();
    if is_kept {
        sleep(BEFORE_PICTURES);
    }
    let root = tools::repository();
    let dashboard = fs::read_to_string(root.join("deploy/dashboards/istio-data-plane.json"))?;
    let picture = picture::svg(&serde_json::from_str(&dashboard)?, &fixture.prometheus, PICTURE_SECONDS, evaluable)?;
    if is_kept {
        fs::write(root.join("docs/dashboard.svg"), picture)?;
    }
    Ok(())
}

/// Replaces the variables as Grafana does with their values at the start.
fn evaluable(expression: &str) -> String {
    let set = expression.replace("$__rate_interval", WINDOW).replace("$__range", WINDOW);
    // The 0 of nothing is no answer.
    let set = set.replace(" or vector(0)", "").replace("$reporter", "source").replace("$gateway", ".*gateway.*");
    select_everything(&set)
}

/// Returns why an expression has no answer, if it may have none.
fn reason(expression: &str) -> Option<&'static str> {
    WITHOUT_DATA.iter().find(|(family, _)| names(expression, family)).map(|(_, reason)| *reason)
}

fn names(expression: &str, family: &str) -> bool {
    expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(|word| word == family)
}

/// The bookstore with a gateway, control planes, a receiver of pushes, an observer of all, and Prometheus.
struct Fixture {
    prometheus: Prometheus,
    observer: Observer,
    _counting_runs: OwnedFd,
    _talk: Talk,
    istiods: [Replay; 4],
    _process: Server,
    _gateway: Sidecar,
    gateway: Arc<Workload>,
    visitor: Arc<Workload>,
    store: Bookstore,
    directory: PathBuf,
}

impl Fixture {
    fn start() -> Result<Self> {
        let directory = env::temp_dir().join(format!("mesh-dashboards-{}", process::id()));
        fs::create_dir_all(directory.join("queue"))?;
        let mut store = Bookstore::open()?;
        let (gateway, visitor) = (store.mesh.workload("ingressgateway")?, store.mesh.workload("visitor")?);
        let proxy = Sidecar::start(&store.mesh, &gateway, Options::gateway())?;
        let istiods = [
            Replay::start(&Capture::named("1.25.3/05-config-update")?)?,
            Replay::start(&Capture::named("1.12.9/22-no-sniffing-conflicts")?)?,
            Replay::start(&Capture::named("1.25.3/21-bad-ca-bundle")?)?,
            Replay::start_with(INVALID_PAGE.to_vec())?,
        ];
        let process = Server::prometheus(&store.mesh, free_port()?)?;
        let counting_runs = bpf::create(ENABLE_STATS, &mut [0]).context("BPF_ENABLE_STATS")?;
        // The receiver refuses some batches: one is sent again, one is lost.
        let receiver = Proxy::start(&[Act::Answer("500 Error"), Act::Answer("400 Bad Request")], TAKE)?;
        let queue = directory.join("queue").display().to_string();
        let urls: Vec<String> = istiods.iter().map(Replay::url).collect();
        let receiver = receiver.url();
        let mut arguments = vec!["--scrape-interval", "1s", "--interval", "1s", "--emit", &receiver];
        arguments.extend(["--queue-dir", &queue, "--control-plane-exe", process.executable()]);
        arguments.extend(urls.iter().flat_map(|url| ["--control-plane", url]));
        let observer = Observer::start(&store.mesh, 4, &arguments)?;
        let talk = store.talk()?;
        let prometheus = Prometheus::start(&directory, &configuration(&observer))?;
        let fixture = Self {
            prometheus,
            observer,
            _counting_runs: counting_runs,
            _talk: talk,
            istiods,
            _process: process,
            _gateway: proxy,
            gateway,
            visitor,
            store,
            directory,
        };
        wait_until("a first scrape", ANSWER_TIMEOUT, || {
            fixture.visit()?;
            ensure!(!fixture.prometheus.query("pilot_xds_pushes")?.is_empty(), "nothing stored");
            Ok(())
        })?;
        // Everything that istiod had seen when its recording ended, so that rates are not 0.
        fixture.istiods[0].show(&Capture::named("1.25.3/16-one-left")?)?;
        Ok(fixture)
    }

    /// Makes a request at each of the gateway's listeners, and one of which the caller does not await the response.
    fn visit(&self) -> Result<()> {
        for (scheme, port) in [("http", GATEWAY_PLAIN), ("https", GATEWAY_TLS)] {
            let mut command = self.visitor.command("curl")?;
            let url = format!("{scheme}://{}:{port}/bytes/100", self.gateway.ip(Family::V4));
            command.args(["-sSk", "-m", "10", "-o", "/dev/null", "-H", "host: catalog", &url]);
            finish(&mut command, "")?;
        }
        let mut command = self.store.shop.command("curl")?;
        let url = self.store.services.catalog.url(Family::V4, "/delay/1000");
        let impatient = command.args(["-sS", "-m", "0.1", "-o", "/dev/null", &url]).output()?;
        // 28: it gave up.
        ensure!(impatient.status.code() == Some(28), "{impatient:?}");
        Ok(())
    }

    fn end(self) -> Result<()> {
        let Self { prometheus, observer, directory, .. } = self;
        drop(prometheus);
        observer.stop()?;
        Ok(fs::remove_dir_all(directory)?)
    }
}

fn configuration(observer: &Observer) -> String {
    format!(
        "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 5s}}\nrule_files: ['{}']\n\
         scrape_configs:\n- job_name: mesh-observer\n  \
         honor_labels: true\n  static_configs:\n  - targets: ['{}']\n",
        tools::repository().join(RULES).display(),
        observer.address()
    )
}
