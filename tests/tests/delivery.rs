//! Reports to a Wavefront proxy through the whole observer: whatever the proxy answers, and whatever room the disk has, every
//! point arrives or is counted.

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
    let stage = Stage::start("answers", &script, TAKE, &mut Command::new(tools::observer()?), &[])?;
    let expected = [("too_large", 1.0), ("push_back", 2.0), ("server", 1.0), ("connection", 1.0), ("timeout", 1.0)];
    let errors = |page: &Exposition, kind| page.sum(ERRORS, &[("kind", kind)]);
    stage.wait(|page| expected.iter().all(|(kind, count)| errors(page, kind) == Some(*count)))?;
    let page = stage.settled()?;
    ensure!(page.sum(DROPPED, &[]) == Some(0.0), "points are dropped");
    ensure!(page.sum(ERRORS, &[]) == Some(6.0), "other errors");
    let requests = stage.proxy.requests();
    let refused = requests.iter().filter(|request| !request.taken).count();
    ensure!(refused == 6, "{refused} requests refused");
    stage.check_lines(&requests)?;
    stage.end()
}

#[test]
fn a_full_disk_is_logged_once_and_used_again_when_it_has_room() -> Result<()> {
    let full = Act::Answer("429 Too Many Requests\r\nretry-after: 1");
    let directory = directory("full");
    let queue = directory.join("queue").display().to_string();
    // A file system of its own, which nobody else sees and which ends with the observer.
    let mut command = Command::new(tools::require("unshare")?);
    command.args([
        "--mount",
        "sh",
        "-c",
        "mount -t tmpfs -o size=128k mesh-observer-test \"$0\" && exec \"$@\"",
        &queue,
    ]);
    fs::create_dir_all(&queue)?;
    let stage = Stage::start("full", &[], full, command.arg(tools::observer()?), &["--queue-dir", &queue])?;
    let problem = |page: &Exposition| page.sum(ERRORS, &[("kind", "queue_dir")]).unwrap_or(0.0);
    let lost = |page: &Exposition| page.sum(REPORTS_DROPPED, &[("reason", "queue_full")]).unwrap_or(0.0);
    let on_disk = |page: &Exposition| page.sum(ON_DISK, &[]).unwrap_or(0.0);
    let page = stage.wait(|page| problem(page) > 1.0 && lost(page) > 0.0)?;
    let kept = on_disk(&page);
    ensure!(kept > 0.0 && page.sum(DROPPED, &[]) == Some(0.0), "what fitted stays: {kept} points");
    // The rest of the observer does not care.
    ensure!(get(stage.observer.address(), "/readyz")?.0 == 200);
    ensure!(page.sum("mesh_observer_control_plane_up", &[]) == Some(1.0));
    let runs = |page: &Exposition| page.sum("mesh_observer_collector_runs_total", &[]).unwrap_or(0.0);
    stage.wait(|later| runs(later) > runs(&page))?;

    let remount = ["--mount", "--target", &stage.observer.pid().to_string(), "mount", "-o", "remount,size=8m", &queue];
    run("nsenter", &remount)?;
    stage.wait(|page| on_disk(page) > kept)?;
    let log = stage.observer.log();
    let said: Vec<&str> = log.lines().filter(|line| line.contains("No space left on device")).collect();
    ensure!(said.len() == 1 && said[0].contains(&queue) && said[0].contains("--queue-dir"), "{log}");
    ensure!(log.contains("can be kept on disk again"), "{log}");

    stage.proxy.then(TAKE);
    stage.wait(|page| on_disk(page) == 0.0)?;
    let page = stage.settled()?;
    ensure!(page.sum(DROPPED, &[]) == Some(0.0), "points are dropped");
    stage.check_lines(&stage.proxy.requests())?;
    stage.end()
}

/// An observer that looks at one control plane and reports to a proxy every second.
struct Stage {
    observer: Observer,
    proxy: Proxy,
    directory: PathBuf,
}

impl Stage {
    fn start(name: &str, script: &[Act], then: Act, command: &mut Command, arguments: &[&str]) -> Result<Self> {
        let directory = directory(name);
        fs::create_dir_all(&directory)?;
        let proxy = Proxy::start(script, then)?;
        let (page, url) = (Replay::start(&Capture::named(PAGE)?)?.url(), proxy.url());
        let nobody = format!("nobody-{}", process::id());
        let own = [
            "--interval",
            "1s",
            "--scrape-interval",
            "1s",
            "--sidecar-exe",
            &nobody,
            "--control-plane",
            &page,
            "--emit",
            &url,
        ];
        let observer = Observer::launch(command, &directory, "", 0, &[&own, arguments].concat())?;
        Ok(Self { observer, proxy, directory })
    }

    fn wait(&self, ready: impl Fn(&Exposition) -> bool) -> Result<Exposition> {
        self.observer.wait(DELIVERY_TIMEOUT, ready)
    }

    /// Waits until the proxy has taken what it was offered last, and exactly the points that the observer says it sent.
    fn settled(&self) -> Result<Exposition> {
        self.wait(|page| {
            let requests = self.proxy.requests();
            #[expect(clippy::cast_precision_loss, reason = "a small number")]
            let points = taken(&requests).lines().count() as f64;
            requests.last().is_some_and(|last| last.taken) && page.sum(SENT, &[]) == Some(points)
        })
    }

    /// Every line that was ever offered was taken in the end, and all are as Wavefront wants them.
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
