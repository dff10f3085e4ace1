//! Emitters: each has its own task and a bounded queue of reports, so that no receiver holds up collection.
//!
//! What a receiver does not take is tried again with jittered, growing pauses: for a bounded time, or out of a directory
//! of bounded size. A queue that is full drops its oldest; stats are cumulative, so the next report still holds all
//! counts. Every drop is counted.

pub mod disk_queue;
pub mod target;
pub mod wavefront;
mod worker;

use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    io::Write,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::Instant,
};

pub use self::target::{Target, TargetError};
use self::{disk_queue::DiskQueue, worker::Worker};
use crate::model::{EmitterStats, Snapshot};
pub use observer_model::encode::{Batch, Encoder, Form, prometheus, selection};

/// The text of a batch, gzipped.
#[expect(clippy::expect_used, reason = "writing to memory does not fail")]
fn gzip(batch: &Batch) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::with_capacity(batch.text.len() / 16), Compression::fast());
    encoder.write_all(&batch.text).expect("writing to memory does not fail");
    encoder.finish().expect("writing to memory does not fail").into()
}

/// A send in progress.
pub type Sending<'a> = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>>;

/// Hands batches over.
pub trait Transport: Send + 'static {
    /// Sends one batch; the receiver has it when this returns `Ok`.
    fn send<'a>(&'a mut self, batch: &'a Batch) -> Sending<'a>;
}

/// Why a batch was not taken, which decides what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Too large: halves are tried.
    TooLarge,
    /// Never taken as it is: dropped.
    Refused {
        /// Label value it is counted under.
        kind: &'static str,
        /// For people.
        message: String,
    },
    /// The receiver asks for a pause.
    PushBack {
        /// How long, if it says so.
        after: Option<Duration>,
    },
    /// May go better next time.
    Transient {
        /// Label value it is counted under.
        kind: &'static str,
        /// For people.
        message: String,
    },
}

/// Bounds of an emitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Reports that wait at most.
    pub queue: usize,
    /// How long one batch is tried where it cannot wait on disk, and once more after the last pause.
    pub retry_timeout: Duration,
    /// First pause between two tries; each further one is twice as long.
    pub first_pause: Duration,
    /// Longest pause between two tries.
    pub max_pause: Duration,
    /// Pause that a receiver's push-back means if it names none.
    pub push_back: Duration,
    /// Longest pause that a receiver is granted, whatever it asks for.
    pub max_push_back: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queue: 4,
            retry_timeout: Duration::from_secs(120),
            first_pause: Duration::from_secs(1),
            max_pause: Duration::from_secs(30),
            push_back: Duration::from_secs(30),
            max_push_back: Duration::from_mins(5),
        }
    }
}

impl Limits {
    /// Pause after failure number `attempt` (from 0), `jitter` in 0 to 1 spreading many emitters over time. It is bounded
    /// whatever the receiver asks for: it may not be the one that the operator meant.
    #[must_use]
    pub fn pause(&self, attempt: u32, failure: &Failure, jitter: f64) -> Duration {
        match failure {
            Failure::PushBack { after } => {
                let asked = after.unwrap_or(self.push_back).min(self.max_push_back).max(self.first_pause);
                asked.mul_f64(1.0 + jitter / 4.0)
            }
            _ => {
                let grown = self.first_pause.saturating_mul(1 << attempt.min(16)).min(self.max_pause);
                grown.mul_f64(0.5 + jitter / 2.0)
            }
        }
    }
}

/// A running emitter.
#[derive(Debug)]
pub struct Emitter {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Emitter {
    /// Starts an emitter in a task of its own. `name` is its label value, without secrets; `disk_queue` is where batches wait
    /// for a receiver that does not take them.
    #[must_use]
    pub fn start(
        name: String,
        encoder: Box<dyn Encoder>,
        transport: Box<dyn Transport>,
        disk_queue: Option<DiskQueue>,
        limits: Limits,
    ) -> Self {
        let state = State {
            // Known ways to lose something start at 0, so that the first loss is seen as growth.
            dropped: [("gave_up", 0), ("queue_full", 0)].into(),
            pushes_dropped: [("queue_full", 0), ("shutdown", 0)].into(),
            stats: EmitterStats { name, rejected: encoder.rejected(), ..EmitterStats::default() },
            ..State::default()
        };
        let (end, _) = watch::channel(None);
        let shared = Arc::new(Shared { limits, state: Mutex::new(state), changed: Notify::new(), end });
        let worker = Worker::new(shared.clone(), encoder, transport, disk_queue);
        Self { shared, task: tokio::spawn(worker.run()) }
    }

    /// Queues a report; drops the oldest that waits if there are too many. Never blocks.
    pub fn offer(&self, snapshot: Arc<Snapshot>) {
        let mut state = self.shared.state();
        if state.queue.len() >= self.shared.limits.queue {
            state.queue.pop_front();
            *state.pushes_dropped.entry("queue_full").or_default() += 1;
        }
        state.queue.push_back(snapshot);
        drop(state);
        self.shared.changed.notify_one();
    }

    /// How it fares.
    #[must_use]
    pub fn stats(&self) -> EmitterStats {
        let state = self.shared.state();
        let list = |counts: &BTreeMap<&'static str, u64>| counts.iter().map(|(key, value)| (*key, *value)).collect();
        EmitterStats {
            queued_pushes: state.queue.len() as u64,
            dropped: list(&state.dropped),
            pushes_dropped: list(&state.pushes_dropped),
            errors: list(&state.errors),
            ..state.stats.clone()
        }
    }

    /// Sends what waits and ends, within `limit`. What is left then stays on disk for the next run; without a place there
    /// it is dropped, counted and describe. Returns the last stats.
    pub async fn finish(mut self, limit: Duration) -> EmitterStats {
        self.shared.state().closing = true;
        self.shared.end.send_replace(Some(Instant::now() + limit / 2));
        self.shared.changed.notify_one();
        if tokio::time::timeout(limit, &mut self.task).await.is_err() {
            self.task.abort();
            let mut state = self.shared.state();
            // The report in hand counts too.
            let lost = state.queue.len() as u64 + 1;
            state.queue.clear();
            *state.pushes_dropped.entry("shutdown").or_default() += lost;
            tracing::warn!("emitter {}: {lost} report(s) could not be sent before the end", state.stats.name);
        }
        self.stats()
    }
}

#[derive(Debug)]
struct Shared {
    limits: Limits,
    state: Mutex<State>,
    changed: Notify,
    /// When a send is given up in favour of the disk; `None` while the emitter is to go on.
    end: watch::Sender<Option<Instant>>,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Arc<Snapshot>>,
    closing: bool,
    stats: EmitterStats,
    dropped: BTreeMap<&'static str, u64>,
    pushes_dropped: BTreeMap<&'static str, u64>,
    errors: BTreeMap<&'static str, u64>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Counters stay usable even if a thread panicked while it held them.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next report; `None` when the emitter is to end and nothing waits.
    async fn next(&self) -> Option<Arc<Snapshot>> {
        loop {
            let (snapshot, closing) = {
                let mut state = self.state();
                (state.queue.pop_front(), state.closing)
            };
            match snapshot {
                Some(snapshot) => return Some(snapshot),
                None if closing => return None,
                None => self.changed.notified().await,
            }
        }
    }

    /// Returns when the emitter is to end and a send has had its time.
    async fn ending(&self) {
        let mut end = self.end.subscribe();
        if let Ok(end) = end.wait_for(Option::is_some).await.map(|end| *end) {
            tokio::time::sleep_until(end.unwrap_or_else(Instant::now)).await;
        }
    }

    fn name(&self) -> String {
        self.state().stats.name.clone()
    }

    fn count_error(&self, kind: &'static str) {
        *self.state().errors.entry(kind).or_default() += 1;
    }

    fn drop_points(&self, reason: &'static str, points: u64) {
        *self.state().dropped.entry(reason).or_default() += points;
    }
}

impl Failure {
    fn describe(&self) -> (&'static str, String) {
        match self {
            Self::TooLarge => ("too_large", "the receiver finds the batch too large; halves are tried".to_owned()),
            Self::PushBack { .. } => ("push_back", "the receiver asks to send less; pausing".to_owned()),
            Self::Refused { kind, message } => (kind, format!("{message}; these points are dropped")),
            Self::Transient { kind, message } => (kind, format!("{message}; trying again")),
        }
    }
}

#[cfg(test)]
mod tests;
