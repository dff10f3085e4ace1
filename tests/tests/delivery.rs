//! Reports to a Wavefront proxy through the whole observer: whatever the proxy answers, every point arrives or is counted.

use std::{
    collections::HashSet,
    env, fs,
    path::PathBuf,
    process::{self, Command},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use harness::{
    exposition::Exposition,
    observer::Observer,
    replay::{Capture, Replay},
    tools,
    wavefront::{Act, Proxy, Request, TAKE, judged},
};

const PATIENCE: Duration = Duration::from_secs(90);
const PAGE: &str = "1.25.3/16-one-left";
/// A line that must be among those that arrive: istiod counted so many services.
const KNOWN: &str = "\"pilot.services.value\" 16 ";
const ERRORS: &str = "mesh_observer_emitter_errors_total";
const DROPPED: &str = "mesh_observer_emitter_points_dropped_total";
const SENT: &str = "mesh_observer_emitter_points_sent_total";

#[test]
fn whatever_a_proxy_answers_every_point_arrives() -> Result<()> {
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
        let own = ["--interval", "1s", "--sidecar-exe", &nobody, "--control-plane", &page, "--emit", &url];
        let observer = Observer::launch(command, &directory, "", 0, &[&own, arguments].concat())?;
        Ok(Self { observer, proxy, directory })
    }

    fn wait(&self, ready: impl Fn(&Exposition) -> bool) -> Result<Exposition> {
        let end = Instant::now() + PATIENCE;
        loop {
            let page = self.observer.scrape()?;
            if ready(&page) {
                return Ok(page);
            }
            ensure!(Instant::now() < end, "not there within {PATIENCE:?}:\n{}", self.observer.log());
            sleep(Duration::from_millis(50));
        }
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
