//! Pushes to a Wavefront proxy through the whole observer: whatever the proxy answers, and however full the disk is,
//! every point arrives or is counted.

use std::{
    collections::HashSet,
    env, fs,
    path::PathBuf,
    process::{self, Command},
    time::Duration,
};

use anyhow::{Result, bail, ensure};
use harness::{
    exposition::Exposition,
    net::run,
    observer::{Observer, get},
    replay::{Capture, Replay},
    tools,
    wavefront::{Act, Proxy, Request, TAKE, judged},
};

const DELIVERY_TIMEOUT: Duration = Duration::from_secs(90);
const PAGE: &str = "1.25.3/16-one-left";
/// A line that must be among those that arrive: istiod counted so many services.
const KNOWN: &str = "\"pilot.services.value\" 16 ";
const ERRORS: &str = "mesh_observer_emitter_errors_total";
const DROPPED: &str = "mesh_observer_emitter_points_dropped_total";
const REPORTS_DROPPED: &str = "mesh_observer_emitter_pushes_dropped_total";
const SENT: &str = "mesh_observer_emitter_points_sent_total";
const ON_DISK: &str = "mesh_observer_emitter_disk_points";

#[test]
fn every_point_arrives_whatever_a_proxy_answers() -> Result<()> {
    let script = [
        TAKE,
        Act::Answer("413 Content Too Large"),
        TAKE,
        TAKE,
        Act::Answer("406 Not Acceptable\r\nretry-after: 1"),
        TAKE,
        Act::Answer("429 Too Many Requests\r\nretry-after: 1"),
        TAKE,
        Act::Answer("500 Internal Server Error"),
        TAKE,
        Act::Close,
        TAKE,
        Act::Hang,
    ];
    let fixture = Fixture::start("answers", &script, TAKE, &mut Command::new(tools::observer()?), &[])?;
    let expected = [("too_large", 1.0), ("push_back", 2.0), ("server", 1.0), ("connection", 1.0), ("timeout", 1.0)];
    let errors = |metrics: &Exposition, kind| metrics.sum(ERRORS, &[("kind", kind)]);
    fixture.wait(|metrics| expected.iter().all(|(kind, count)| errors(metrics, kind) == Some(*count)))?;
    let metrics = fixture.settled()?;
    ensure!(metrics.sum(DROPPED, &[]) == Some(0.0), "points are dropped");
    ensure!(metrics.sum(ERRORS, &[]) == Some(6.0), "other errors");
    let requests = fixture.proxy.requests();
    let refused = requests.iter().filter(|request| !request.taken).count();
    ensure!(refused == 6, "{refused} requests refused");
    fixture.check_lines(&requests)?;
    fixture.end()
}

#[test]
fn a_full_disk_is_logged_once_and_used_again_when_it_has_room() -> Result<()> {
    let full = Act::Answer("429 Too Many Requests\r\nretry-after: 1");
    let directory = directory("full");
    let queue = directory.join("queue").display().to_string();
    // A private file system, which ends with the observer.
    let mut command = Command::new(tools::require("unshare")?);
    command.args([
        "--mount",
        "sh",
        "-c",
        "mount -t tmpfs -o size=128k mesh-observer-test \"$0\" && exec \"$@\"",
        &queue,
    ]);
    fs::create_dir_all(&queue)?;
    let fixture = Fixture::start("full", &[], full, command.arg(tools::observer()?), &["--queue-dir", &queue])?;
    let problem = |metrics: &Exposition| metrics.sum(ERRORS, &[("kind", "queue_dir")]).unwrap_or(0.0);
    let lost = |metrics: &Exposition| metrics.sum(REPORTS_DROPPED, &[("reason", "queue_full")]).unwrap_or(0.0);
    let on_disk = |metrics: &Exposition| metrics.sum(ON_DISK, &[]).unwrap_or(0.0);
    let metrics = fixture.wait(|metrics| problem(metrics) > 1.0 && lost(metrics) > 0.0)?;
    let kept = on_disk(&metrics);
    ensure!(kept > 0.0 && metrics.sum(DROPPED, &[]) == Some(0.0), "what fitted stays: {kept} points");
    // The rest of the observer is not affected.
    ensure!(get(fixture.observer.address(), "/readyz")?.0 == 200);
    ensure!(metrics.sum("mesh_observer_control_plane_up", &[]) == Some(1.0));
    let runs = |metrics: &Exposition| metrics.sum("mesh_observer_collector_runs_total", &[]).unwrap_or(0.0);
    fixture.wait(|later| runs(later) > runs(&metrics))?;

    let remount =
        ["--mount", "--target", &fixture.observer.pid().to_string(), "mount", "-o", "remount,size=8m", &queue];
    run("nsenter", &remount)?;
    fixture.wait(|metrics| on_disk(metrics) > kept)?;
    let log = fixture.observer.log();
    let said: Vec<&str> = log.lines().filter(|line| line.contains("No space left on device")).collect();
    ensure!(said.len() == 1 && said[0].contains(&queue) && said[0].contains("--queue-dir"), "{log}");
    ensure!(log.contains("can be kept on disk again"), "{log}");

    fixture.proxy.then(TAKE);
    fixture.wait(|metrics| on_disk(metrics) == 0.0)?;
    let metrics = fixture.settled()?;
    ensure!(metrics.sum(DROPPED, &[]) == Some(0.0), "points are dropped");
    fixture.check_lines(&fixture.proxy.requests())?;
    fixture.end()
}

/// An observer of one control plane that pushes to a proxy every second.
struct Fixture {
    observer: Observer,
    proxy: Proxy,
    directory: PathBuf,
}

impl Fixture {
    fn start(name: &str, script: &[Act], then: Act, command: &mut Command, arguments: &[&str]) -> Result<Self> {
        let directory = directory(name);
        fs::create_dir_all(&directory)?;
        let proxy = Proxy::start(script, then)?;
        let (metrics, url) = (Replay::start(&Capture::named(PAGE)?)?.url(), proxy.url());
        let nobody = format!("nobody-{}", process::id());
        let own = [
            "--interval",
            "1s",
            "--scrape-interval",
            "1s",
            "--sidecar-exe",
            &nobody,
            "--control-plane",
            &metrics,
            "--emit",
            &url,
        ];
        let observer = Observer::launch(command, &directory, "", 0, &[&own, arguments].concat())?;
        Ok(Self { observer, proxy, directory })
    }

    fn wait(&self, ready: impl Fn(&Exposition) -> bool) -> Result<Exposition> {
        self.observer.wait(DELIVERY_TIMEOUT, ready)
    }

    /// Waits until the proxy has accepted the last batch, and exactly the points that the observer counts as sent.
    fn settled(&self) -> Result<Exposition> {
        self.wait(|metrics| {
            let requests = self.proxy.requests();
            #[expect(clippy::cast_precision_loss, reason = "a small number")]
            let points = taken(&requests).lines().count() as f64;
            requests.last().is_some_and(|last| last.taken) && metrics.sum(SENT, &[]) == Some(points)
        })
    }

    /// Checks that every line was accepted in the end, and is valid for Wavefront.
    fn check_lines(&self, requests: &[Request]) -> Result<()> {
        let taken = taken(requests);
        let known: HashSet<&str> = taken.lines().collect();
        let offered = requests.iter().filter(|request| !request.taken).flat_map(|request| request.lines.lines());
        let missing: Vec<&str> = offered.filter(|line| !known.contains(line)).collect();
        ensure!(missing.is_empty(), "{} lines never arrived, as {:?}", missing.len(), missing[0]);
        ensure!(taken.lines().any(|line| line.starts_with(KNOWN)), "no line begins with {KNOWN:?}");
        let judged = judged(&taken)?;
        ensure!(judged.len() == taken.lines().count(), "{} answers", judged.len());
        match taken.lines().zip(&judged).find(|(_, said)| *said != "ok") {
            Some((line, said)) => bail!("{said}: {line}"),
            None => Ok(()),
        }
    }

    fn end(self) -> Result<()> {
        self.observer.stop()?;
        Ok(fs::remove_dir_all(self.directory)?)
    }
}

fn taken(requests: &[Request]) -> String {
    requests.iter().filter(|request| request.taken).map(|request| request.lines.as_str()).collect()
}

fn directory(name: &str) -> PathBuf {
    env::temp_dir().join(format!("mesh-delivery-{}-{name}", process::id()))
}
