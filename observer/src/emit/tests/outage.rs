//! An hour in which the receiver takes nothing, on a clock that jumps from one timer to the next: every point arrives once
//! or is counted lost.

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{sync::mpsc, time::Instant};

use super::{
    losses,
    receiver::{Act, Held, receive},
};
use crate::{
    emit::{Batch, DeliveryLimits, Emitter, Encoder, Form, disk_queue::DiskQueue, wavefront::http::HttpSink},
    model::{EmitterStats, Snapshot, fixture},
};

const TIMEOUT: Duration = Duration::from_secs(10);
const INTERVAL: Duration = Duration::from_secs(30);
const OUTAGE: Duration = Duration::from_hours(1);
/// Reports from the beginning of the outage until well after it.
const REPORTS: u64 = 150;
const BATCHES: u64 = 2;
const LINES: u64 = 4;

/// Numbers every line, so that each can be found again.
struct Numbered(Arc<AtomicU64>);

impl Encoder for Numbered {
    fn encode(&mut self, _: Arc<Snapshot>) -> Box<dyn Iterator<Item = Batch> + Send + '_> {
        Box::new((0..BATCHES).map(|_| {
            let first = self.0.fetch_add(LINES, Relaxed);
            let lines: String = (first..first + LINES).map(|number| format!("line {number}\n")).collect();
            Batch { body: lines.into(), points: LINES, form: Form::Points }
        }))
    }

    fn rejected(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    fn filtered(&self) -> u64 {
        0
    }
}

/// The receiver and the sender's side of one outage.
struct Scene {
    url: reqwest::Url,
    taken: mpsc::UnboundedReceiver<String>,
    encoded: Arc<AtomicU64>,
    offered: u64,
}

impl Scene {
    /// The outage begins now; afterwards only some batches are too large.
    async fn new() -> Self {
        let end = Instant::now() + OUTAGE;
        let mut number = 0;
        let (url, taken) = receive(move || {
            number += 1;
            match (Instant::now() < end, number % 6) {
                (true, 0) => Act::Answer("406 Not Acceptable"),
                (true, 1) => Act::Answer("429 Too Many Requests\r\nretry-after: 20"),
                (true, 2) => Act::Answer("500 Internal Server Error"),
                (true, 3) => Act::Hang(Some(TIMEOUT + Duration::from_secs(1))),
                (true, 4) => Act::Close,
                (_, 5) => Act::Answer("413 Content Too Large"),
                (false, 0) => Act::BrokenGzip,
                (false, _) => Act::Answer("202 Accepted"),
                (true, _) => unreachable!("a remainder of six"),
            }
        })
        .await;
        Self { url, taken, encoded: Arc::default(), offered: 0 }
    }

    fn emitter(&self, disk: Option<(&Path, u64)>) -> Emitter {
        let sink = Held(HttpSink::proxy(self.url.clone(), TIMEOUT).unwrap());
        let disk_queue = disk.map(|(directory, bytes)| DiskQueue::new(directory.to_owned(), bytes));
        let encoder = Numbered(self.encoded.clone());
        Emitter::start("test".to_owned(), Box::new(encoder), Box::new(sink), disk_queue, DeliveryLimits::default())
    }

    async fn offer(&mut self, emitter: &Emitter, reports: u64) {
        for _ in 0..reports {
            emitter.offer(fixture::snapshots()[0].clone());
            self.offered += 1;
            tokio::time::sleep(INTERVAL).await;
        }
    }

    /// How often each line was taken.
    fn taken(&mut self) -> HashMap<String, u32> {
        let mut lines = HashMap::new();
        while let Ok(text) = self.taken.try_recv() {
            text.lines().for_each(|line| *lines.entry(line.to_owned()).or_default() += 1);
        }
        lines
    }

    /// Every point that was made arrived once or is counted lost, and so is every report that made none.
    fn account(&mut self, runs: &[EmitterStats]) {
        let taken = self.taken();
        assert!(taken.values().all(|times| *times == 1), "some came twice");
        let total = |of: fn(&EmitterStats) -> u64| runs.iter().map(of).sum::<u64>();
        let dropped = total(|run| run.dropped.iter().map(|(_, points)| points).sum());
        let pushes_dropped = total(|run| run.pushes_dropped.iter().map(|(_, reports)| reports).sum());
        assert_eq!(total(|run| run.sent), taken.len() as u64);
        assert_eq!(taken.len() as u64 + dropped, self.encoded.load(Relaxed));
        assert_eq!(self.encoded.load(Relaxed), (self.offered - pushes_dropped) * BATCHES * LINES);
    }
}

#[tokio::test(start_paused = true)]
async fn in_memory_the_end_of_the_outage_is_sent_and_the_rest_is_counted() {
    let mut scene = Scene::new().await;
    let emitter = scene.emitter(None);
    scene.offer(&emitter, REPORTS).await;
    let stats = emitter.finish(Duration::from_mins(10)).await;
    scene.account(std::slice::from_ref(&stats));
    assert!(stats.sent > BATCHES * LINES * (REPORTS - 121), "all after the outage: {stats:?}");
    let kinds: Vec<_> = stats.errors.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, ["connection", "push_back", "server", "timeout", "too_large"]);
}

#[tokio::test(start_paused = true)]
async fn on_disk_nothing_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let mut scene = Scene::new().await;
    let emitter = scene.emitter(Some((directory.path(), 1 << 20)));
    scene.offer(&emitter, REPORTS).await;
    let stats = emitter.finish(Duration::from_mins(10)).await;
    scene.account(std::slice::from_ref(&stats));
    assert_eq!(stats.sent, REPORTS * BATCHES * LINES, "{stats:?}");
    assert_eq!(stats.on_disk, Some((0, 0)));
}

#[tokio::test(start_paused = true)]
async fn a_restart_in_the_outage_loses_nothing_that_is_on_disk() {
    let directory = tempfile::tempdir().unwrap();
    let mut scene = Scene::new().await;
    let disk = Some((directory.path(), 1 << 20));
    let emitter = scene.emitter(disk);
    scene.offer(&emitter, 60).await;
    let before = emitter.finish(Duration::from_secs(5)).await;
    assert!(before.on_disk.unwrap().0 > 0 && losses(&before.dropped).is_empty(), "{before:?}");
    let emitter = scene.emitter(disk);
    scene.offer(&emitter, REPORTS - 60).await;
    let after = emitter.finish(Duration::from_mins(10)).await;
    assert_eq!(before.sent + after.sent, REPORTS * BATCHES * LINES, "{after:?}");
    scene.account(&[before, after]);
}

#[tokio::test(start_paused = true)]
async fn a_small_disk_keeps_the_newest_and_counts_the_others() {
    let directory = tempfile::tempdir().unwrap();
    let mut scene = Scene::new().await;
    let emitter = scene.emitter(Some((directory.path(), 4 << 10)));
    scene.offer(&emitter, REPORTS).await;
    let stats = emitter.finish(Duration::from_mins(10)).await;
    scene.account(std::slice::from_ref(&stats));
    let dropped = losses(&stats.dropped);
    assert!(matches!(dropped[..], [("queue_full", 1..)]), "{dropped:?}");
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_cannot_be_used_changes_nothing_but_a_counter() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut scene = Scene::new().await;
    let emitter = scene.emitter(Some((file.path(), 1 << 20)));
    scene.offer(&emitter, REPORTS).await;
    let stats = emitter.finish(Duration::from_mins(10)).await;
    scene.account(std::slice::from_ref(&stats));
    assert!(stats.sent > BATCHES * LINES * (REPORTS - 121), "all after the outage: {stats:?}");
    assert!(stats.errors.iter().any(|(kind, count)| *kind == "queue_dir" && *count > 0), "{stats:?}");
}
