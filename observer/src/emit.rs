//! Emitters: each has its own task and a bounded queue of reports, so that no receiver holds up collection.
//!
//! What a receiver does not take is tried again with jittered, growing pauses for a bounded time. A queue that is full
//! drops its oldest report; figures are cumulative, so the next report still holds all counts. Every drop is counted.

pub mod prometheus;
pub mod selection;
pub mod target;
pub mod wavefront;

use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    hash::{BuildHasher, Hasher, RandomState},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{sync::Notify, task::JoinHandle};

pub use self::target::{Target, TargetError};
use crate::model::{EmitterFigures, Snapshot};

/// Part of a report, as one send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Lines, each ended by a line feed.
    pub text: Bytes,
    /// Points, one a line.
    pub points: u64,
}

impl Batch {
    /// Two halves, cut between lines; `None` if there is only one.
    fn split(&self) -> Option<(Self, Self)> {
        let middle = self.text.len() / 2;
        let before = self.text[..middle].iter().rposition(|byte| *byte == b'\n');
        let after = || self.text[middle..].iter().position(|byte| *byte == b'\n').map(|at| middle + at);
        let cut = before.or_else(after)? + 1;
        let half = |text: Bytes| {
            let points = text.iter().filter(|byte| **byte == b'\n').count() as u64;
            Self { text, points }
        };
        (cut < self.text.len()).then(|| (half(self.text.slice(..cut)), half(self.text.slice(cut..))))
    }
}

/// Turns reports into batches.
pub trait Encoder: Send + 'static {
    /// The batches of one report, made as they are asked for.
    fn encode(&mut self, snapshot: Arc<Snapshot>) -> Box<dyn Iterator<Item = Batch> + Send + '_>;

    /// Points that broke the format's rules so far, by reason.
    fn rejected(&self) -> Vec<(&'static str, u64)>;
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
    /// How long one batch is tried.
    pub patience: Duration,
    /// First pause between two tries; each further one is twice as long.
    pub first_pause: Duration,
    /// Longest pause between two tries.
    pub longest_pause: Duration,
    /// Pause that a receiver's push-back means if it names none.
    pub push_back: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queue: 4,
            patience: Duration::from_secs(120),
            first_pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(30),
            push_back: Duration::from_secs(30),
        }
    }
}

impl Limits {
    /// Pause after failure number `attempt` (from 0), `chance` in 0 to 1 spreading many emitters over time.
    fn pause(&self, attempt: u32, failure: &Failure, chance: f64) -> Duration {
        match failure {
            Failure::PushBack { after } => after.unwrap_or(self.push_back).mul_f64(1.0 + chance / 4.0),
            _ => {
                let grown = self.first_pause.saturating_mul(1 << attempt.min(16)).min(self.longest_pause);
                grown.mul_f64(0.5 + chance / 2.0)
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
    /// Starts an emitter in a task of its own. `name` is its label value, without secrets.
    #[must_use]
    pub fn start(name: String, encoder: Box<dyn Encoder>, transport: Box<dyn Transport>, limits: Limits) -> Self {
        let state = State {
            // Known ways to lose something start at 0, so that the first loss is seen as growth.
            dropped: [("gave_up", 0)].into(),
            reports_dropped: [("queue_full", 0), ("shutdown", 0)].into(),
            figures: EmitterFigures { name, rejected: encoder.rejected(), ..EmitterFigures::default() },
            ..State::default()
        };
        let shared = Arc::new(Shared { limits, state: Mutex::new(state), changed: Notify::new() });
        let worker = Worker { shared: shared.clone(), encoder, transport, failing: false };
        Self { shared, task: tokio::spawn(worker.run()) }
    }

    /// Queues a report; drops the oldest that waits if there are too many. Never blocks.
    pub fn offer(&self, snapshot: Arc<Snapshot>) {
        let mut state = self.shared.state();
        if state.queue.len() >= self.shared.limits.queue {
            state.queue.pop_front();
            *state.reports_dropped.entry("queue_full").or_default() += 1;
        }
        state.queue.push_back(snapshot);
        drop(state);
        self.shared.changed.notify_one();
    }

    /// How it fares.
    #[must_use]
    pub fn figures(&self) -> EmitterFigures {
        let state = self.shared.state();
        let list = |counts: &BTreeMap<&'static str, u64>| counts.iter().map(|(key, value)| (*key, *value)).collect();
        EmitterFigures {
            queued_reports: state.queue.len() as u64,
            dropped: list(&state.dropped),
            reports_dropped: list(&state.reports_dropped),
            errors: list(&state.errors),
            ..state.figures.clone()
        }
    }

    /// Sends what waits and ends, within `limit`; what is left then is dropped, counted and said. Returns the last figures.
    pub async fn finish(mut self, limit: Duration) -> EmitterFigures {
        self.shared.state().closing = true;
        self.shared.changed.notify_one();
        if tokio::time::timeout(limit, &mut self.task).await.is_err() {
            self.task.abort();
            let mut state = self.shared.state();
            // The report in hand counts too.
            let lost = state.queue.len() as u64 + 1;
            state.queue.clear();
            *state.reports_dropped.entry("shutdown").or_default() += lost;
            tracing::warn!("emitter {}: {lost} report(s) could not be sent before the end", state.figures.name);
        }
        self.figures()
    }
}

#[derive(Debug)]
struct Shared {
    limits: Limits,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Arc<Snapshot>>,
    closing: bool,
    figures: EmitterFigures,
    dropped: BTreeMap<&'static str, u64>,
    reports_dropped: BTreeMap<&'static str, u64>,
    errors: BTreeMap<&'static str, u64>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Counters stay usable even if a thread panicked while it held them.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Worker {
    shared: Arc<Shared>,
    encoder: Box<dyn Encoder>,
    transport: Box<dyn Transport>,
    /// Whether the last send failed: only changes are logged.
    failing: bool,
}

impl Worker {
    async fn run(mut self) {
        while let Some(snapshot) = self.shared.next().await {
            let Self { shared, encoder, transport, failing } = &mut self;
            for batch in encoder.encode(snapshot) {
                deliver(shared, transport.as_mut(), batch, failing).await;
            }
            shared.state().figures.rejected = encoder.rejected();
        }
    }
}

/// Sends one batch, in halves if need be, until it is taken, refused or the patience ends.
async fn deliver(shared: &Shared, transport: &mut dyn Transport, batch: Batch, failing: &mut bool) {
    let mut waiting = vec![batch];
    let (began, mut attempt) = (Instant::now(), 0);
    while let Some(batch) = waiting.pop() {
        let Err(failure) = transport.send(&batch).await else {
            shared.state().figures.sent += batch.points;
            if std::mem::take(failing) {
                tracing::info!("emitter {}: sending again", shared.state().figures.name);
            }
            attempt = 0;
            continue;
        };
        let (kind, message) = failure.said();
        {
            let mut state = shared.state();
            *state.errors.entry(kind).or_default() += 1;
            if !std::mem::replace(failing, true) {
                tracing::warn!("emitter {}: {message}", state.figures.name);
            }
        }
        match failure {
            Failure::TooLarge => match batch.split() {
                Some((first, second)) => waiting.extend([second, first]),
                None => shared.drop_points(kind, &batch),
            },
            Failure::Refused { .. } => shared.drop_points(kind, &batch),
            Failure::PushBack { .. } | Failure::Transient { .. } => {
                let pause = shared.limits.pause(attempt, &failure, chance());
                if began.elapsed() + pause > shared.limits.patience {
                    shared.drop_points("gave_up", &batch);
                    continue;
                }
                attempt += 1;
                tokio::time::sleep(pause).await;
                waiting.push(batch);
            }
        }
    }
}

impl Shared {
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

    fn drop_points(&self, reason: &'static str, batch: &Batch) {
        *self.state().dropped.entry(reason).or_default() += batch.points;
    }
}

impl Failure {
    fn said(&self) -> (&'static str, String) {
        match self {
            Self::TooLarge => ("too_large", "the receiver finds the batch too large; halves are tried".to_owned()),
            Self::PushBack { .. } => ("push_back", "the receiver asks to send less; pausing".to_owned()),
            Self::Refused { kind, message } => (kind, format!("{message}; these points are dropped")),
            Self::Transient { kind, message } => (kind, format!("{message}; trying again")),
        }
    }
}

/// A number in 0 to 1 that differs between processes and calls.
#[expect(clippy::cast_precision_loss, reason = "a chance needs no more than 53 bits")]
fn chance() -> f64 {
    RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64
}

#[cfg(test)]
mod tests;
