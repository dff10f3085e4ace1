//! The bounded queue between collection and an emitter's task, with the emitter's counters.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::transport::Failure;
use crate::model::{EmitterStats, Snapshot};

/// Bounds of an emitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliveryLimits {
    /// Maximum number of queued snapshots with metrics.
    pub queue: usize,
    /// Maximum number of spans in queued snapshots.
    pub queued_spans: usize,
    /// How long a batch is retried that cannot wait on disk, with one more attempt after the last pause.
    pub retry_timeout: Duration,
    /// First pause between attempts; each further one is twice as long.
    pub first_pause: Duration,
    /// Longest pause between attempts.
    pub max_pause: Duration,
    /// Pause after a push-back that names none.
    pub push_back: Duration,
    /// Longest pause after a push-back.
    pub max_push_back: Duration,
}

impl Default for DeliveryLimits {
    fn default() -> Self {
        Self {
            queue: 4,
            queued_spans: 32_768,
            retry_timeout: Duration::from_secs(120),
            first_pause: Duration::from_secs(1),
            max_pause: Duration::from_secs(30),
            push_back: Duration::from_secs(30),
            max_push_back: Duration::from_mins(5),
        }
    }
}

impl DeliveryLimits {
    /// Returns the pause after failure number `attempt` (from 0), `jitter` from 0 to 1 spreading emitters over time. It is bounded,
    /// as the receiver may not be the one that the operator meant.
    #[must_use]
    pub fn pause(&self, attempt: u32, failure: &Failure, jitter: f64) -> Duration {
        match failure {
            Failure::PushBack { after } => {
                let asked = after.unwrap_or(self.push_back).min(self.max_push_back).max(self.first_pause);
                asked.mul_f64(1.0 + jitter / 4.0).min(self.max_push_back)
            }
            _ => {
                let grown = self.first_pause.saturating_mul(1 << attempt.min(16)).min(self.max_pause);
                grown.mul_f64(0.5 + jitter / 2.0)
            }
        }
    }
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) limits: DeliveryLimits,
    pub(super) state: Mutex<QueueState>,
    pub(super) changed: Notify,
    /// When sends are abandoned in favour of the disk; `None` while the emitter runs.
    pub(super) end: watch::Sender<Option<Instant>>,
}

#[derive(Debug, Default)]
pub(super) struct QueueState {
    pub(super) queue: VecDeque<Arc<Snapshot>>,
    pub(super) closing: bool,
    pub(super) stats: EmitterStats,
    pub(super) dropped: BTreeMap<&'static str, u64>,
    pub(super) pushes_dropped: BTreeMap<&'static str, u64>,
    pub(super) errors: BTreeMap<&'static str, u64>,
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, QueueState> {
        // Counters stay valid even if a thread panicked while it held them.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the next snapshot; `None` when the emitter is closing and the queue is empty.
    pub(super) async fn next(&self) -> Option<Arc<Snapshot>> {
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

    /// Returns when sends are to be abandoned.
    pub(super) async fn ending(&self) {
        let mut end = self.end.subscribe();
        if let Ok(end) = end.wait_for(Option::is_some).await.map(|end| *end) {
            tokio::time::sleep_until(end.unwrap_or_else(Instant::now)).await;
        }
    }

    pub(super) fn name(&self) -> String {
        self.state().stats.name.clone()
    }

    pub(super) fn count_error(&self, kind: &'static str) {
        *self.state().errors.entry(kind).or_default() += 1;
    }

    pub(super) fn drop_points(&self, reason: &'static str, points: u64) {
        *self.state().dropped.entry(reason).or_default() += points;
    }
}
