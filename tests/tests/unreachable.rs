//! Targets that can be scraped only from inside their own network namespaces.

use std::{collections::BTreeMap, env, fs, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use harness::{
    apps::program::Program,
    cases,
    exposition::Exposition,
    mesh::{Mesh, Workload},
    net::{finish, run},
    observer::{Observer, get, without},
    replay::{Capture, fixtures, serve_local_callers},
    server::Server,
};

const UP: &str = "mesh_observer_control_plane_up";
const SCRAPES: &str = "mesh_observer_control_plane_scrapes_total";
const PORT: u16 = 15014;
const PAGE: &str = "1.25.3/16-one-left";
/// First argument of the process that stands in for istiod.
const STAND_IN: &str = "stand-in";
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(30);

struct Fixture {
    etcd: Server,
    /// istiod of this pod refuses clients that are not local.
    refusing: (Program, Arc<Workload>),
    /// This pod drops all packets from outside.
    shut: (Program, Arc<Workload>),
    store: Arc<Workload>,
    mesh: Mesh,
}

fn main() -> ExitCode {
    if env::args().nth(1).as_deref() == Some(STAND_IN) {
        let served = Capture::named(PAGE).and_then(|capture| serve_local_callers(&capture, PORT));
        eprintln!("{served:?}");
        return ExitCode::FAILURE;
    }
    cases::run(
        fixture,
        cases![targets_are_scraped_from_inside_their_namespace, without_the_capability_the_reason_is_reported],
    )
}

fn fixture() -> Result<Fixture> {
    let mut mesh = Mesh::new()?;
    let (store, refusing, shut) = (mesh.workload("store")?, mesh.workload("refusing")?, mesh.workload("shut")?);
    mesh.join()?;
    let etcd = Server::etcd(&mesh, &store)?;
    let refusing = (start_stand_in(&mesh, &refusing)?, refusing);
    let shut = (start_stand_in(&mesh, &shut)?, shut);
    let rule = ["-A", "INPUT", "!", "-i", "lo", "-p", "tcp", "-j", "DROP"];
    run("ip", &[["netns", "exec", shut.1.net.name(), "iptables-legacy"].as_slice(), &rule].concat())?;
    Ok(Fixture { etcd, refusing, shut, store, mesh })
}

impl Fixture {
    fn arguments(&self) -> Vec<String> {
        let etcd = format!("{}:{}", self.etcd.executable(), self.etcd.metrics_address().port());
        ["--scrape-interval", "2s", "--control-plane-exe", &etcd, "--control-plane-exe", &stand_in(&self.mesh)]
            .map(str::to_owned)
            .into()
    }

    /// Returns the label `instance` of every target.
    fn instances(&self) -> [String; 3] {
        let stand_in = |workload: &Workload| format!("{}:{PORT}", workload.ipv4);
        let etcd = format!("{}:{}", self.store.ipv4, self.etcd.metrics_address().port());
        [etcd, stand_in(&self.refusing.1), stand_in(&self.shut.1)]
    }
}

fn targets_are_scraped_from_inside_their_namespace(fixture: &mut Fixture) -> Result<String> {
    let [etcd, refusing, shut] = fixture.instances();
    // None of them can be scraped from here.
    ensure!(get(etcd.parse()?, "/metrics").is_err() && get(shut.parse()?, "/metrics").is_err());
    ensure!(get(refusing.parse()?, "/metrics")?.0 == 403);
    let before = plain_figures(&fixture.etcd.own_page()?)?;
    let arguments = fixture.arguments();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let observer = Observer::start(&fixture.mesh, 0, &arguments)?;
    let metrics = observer.wait(SCRAPE_TIMEOUT, |metrics| metrics.sum(UP, &[]) == Some(3.0))?;
    let after = plain_figures(&fixture.etcd.own_page()?)?;
    // Counters that are equal afterwards did not move meanwhile. Resource usage is counted by the observer itself.
    let only_grows = |name: &str| ["_total", "_count", "_sum"].iter().any(|end| name.ends_with(end));
    let still: BTreeMap<&str, f64> = before
        .iter()
        .filter(|(name, value)| only_grows(name) && !name.starts_with("process_") && after.get(*name) == Some(*value))
        .map(|(name, value)| (name.as_str(), *value))
        .collect();
    ensure!(still.len() > 20, "etcd shows only {} values that do not move", still.len());
    same(&metrics, &etcd, &still)?;
    let captured = plain_figures(&fs::read_to_string(fixtures().join(format!("{PAGE}.prom")))?)?;
    let captured: BTreeMap<&str, f64> = captured
        .iter()
        .filter(|(name, _)| !name.starts_with("process_"))
        .map(|(name, value)| (&**name, *value))
        .collect();
    ensure!(captured.len() > 20, "only {} samples in the exposition", captured.len());
    same(&metrics, &refusing, &captured)?;
    same(&metrics, &shut, &captured)?;
    for instance in [&etcd, &refusing, &shut] {
        let outcomes: Vec<_> = metrics.samples(SCRAPES).filter(|sample| sample.label("instance") == instance).collect();
        // A busy machine may be late.
        ensure!(outcomes.iter().all(|sample| ["ok", "timeout"].contains(&sample.label("outcome"))), "{outcomes:?}");
    }
    observer.stop()?;
    Ok(format!("{} values of etcd, {} of each stand-in", still.len(), captured.len()))
}

fn without_the_capability_the_reason_is_reported(fixture: &mut Fixture) -> Result<String> {
    let arguments = fixture.arguments();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let observer = Observer::start_without("sys_admin", &fixture.mesh, &arguments)?;
    let denied = |metrics: &Exposition, instance: &String| {
        metrics.sum(SCRAPES, &[("instance", instance), ("outcome", "not_permitted")]).is_some_and(|count| count > 0.0)
    };
    let instances = fixture.instances();
    let metrics =
        observer.wait(SCRAPE_TIMEOUT, |metrics| instances.iter().all(|instance| denied(metrics, instance)))?;
    ensure!(metrics.sum(UP, &[]) == Some(0.0), "a page is up");
    let log = observer.log();
    for said in ["it listens on loopback only", "403 Forbidden", "cannot connect"] {
        let line = log.lines().find(|line| line.contains(said));
        ensure!(line.is_some_and(|line| line.contains("needs CAP_SYS_ADMIN")), "{said}: {line:?}\n{log}");
    }
    observer.stop()?;
    let mut check = without("sys_admin")?;
    check.args(["check", "--sidecar-exe", "no-sidecar"]).args(&arguments[2..]);
    let report = finish(&mut check, "")?;
    for said in ["CAP_SYS_ADMIN: missing, to scrape endpoints", "which needs CAP_SYS_ADMIN (missing)."] {
        ensure!(report.contains(said), "no {said:?} in:\n{report}");
    }
    Ok("three pages, none readable".to_owned())
}

/// Checks that every sample is exposed with the label of its instance.
fn same(metrics: &Exposition, instance: &str, values: &BTreeMap<&str, f64>) -> Result<()> {
    for (name, value) in values {
        let ours = metrics.sum(name, &[("instance", instance)]);
        ensure!(ours == Some(*value), "{name} of {instance}: {ours:?} instead of {value}");
    }
    Ok(())
}

/// Returns the samples without labels.
fn plain_figures(metrics: &str) -> Result<BTreeMap<String, f64>> {
    let lines = metrics.lines().filter(|line| !line.starts_with('#') && !line.contains('{'));
    lines
        .map(|line| {
            let (name, value) = line.split_once(' ').with_context(|| line.to_owned())?;
            Ok((name.to_owned(), value.parse()?))
        })
        .collect()
}

/// Returns the executable name of the stand-ins, which no other process has.
fn stand_in(mesh: &Mesh) -> String {
    format!("istiod-{}", mesh.name())
}

/// Starts this program as a control-plane process.
fn start_stand_in(mesh: &Mesh, workload: &Workload) -> Result<Program> {
    let program = mesh.directory().join(stand_in(mesh));
    if !program.exists() {
        fs::copy(env::current_exe()?, &program)?;
    }
    let mut command = workload.command(&program.display().to_string())?;
    command.arg(STAND_IN).env("POD_NAME", &workload.pod).env("POD_NAMESPACE", &workload.namespace);
    Program::serve(workload, PORT, &mut command)
}
