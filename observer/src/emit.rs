//! Emitters: each has its own task and a bounded queue of snapshots, so that no receiver delays collection.
//!
//! What a receiver does not accept is retried with jittered exponential backoff: for a bounded time, or from a directory of
//! bounded size. A full queue drops its oldest snapshot; values are cumulative, so the next push still has all counts. Every
//! drop is counted.

pub mod answer;
pub mod credentials;
pub mod disk_queue;
mod http;
pub mod options;
pub mod otlp;
mod queue;
pub mod remote_write;
pub mod target;
pub mod token;
pub mod transport;
pub mod wavefront;
mod worker;
pub mod zipkin;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::Instant,
};

use self::{
    disk_queue::DiskQueue,
    queue::{QueueState, Shared},
    worker::Worker,
};
pub use self::{
    queue::DeliveryLimits,
    target::{EmitTarget, TargetError},
    transport::{Accepted, Failure, Sending, Transport},
};
use crate::model::{EmitterStats, Snapshot};
pub use observer_model::encode::{Batch, Encoder, Form, prometheus, selection};

/// A running emitter.
#[derive(Debug)]
pub struct Emitter {
    takes_spans: bool,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Emitter {
    /// Starts an emitter in a task of its own. `name` is its label value, without secrets; batches that the receiver does not
    /// accept wait in `disk_queue`.
    #[must_use]
    pub fn start(
        name: String,
        encoder: Box<dyn Encoder>,
        transport: Box<dyn Transport>,
        disk_queue: Option<DiskQueue>,
        limits: DeliveryLimits,
    ) -> Self {
        let state = QueueState {
            // Known reasons start at 0, so that the first drop shows as an increase.
            dropped: [("gave_up", 0), ("queue_full", 0), ("refused", 0)].into(),
            pushes_dropped: [("queue_full", 0), ("shutdown", 0)].into(),
            stats: EmitterStats { name, rejected: encoder.rejected(), ..EmitterStats::default() },
            ..QueueState::default()
        };
        let (end, _) = watch::channel(None);
        let shared = Arc::new(Shared { limits, state: Mutex::new(state), changed: Notify::new(), end });
        let takes_spans = encoder.takes_spans();
        let worker = Worker::new(shared.clone(), encoder, transport, disk_queue);
        Self { takes_spans, shared, task: tokio::spawn(worker.run()) }
    }

    /// Whether it takes spans, and no metrics.
    #[must_use]
    pub fn takes_spans(&self) -> bool {
        self.takes_spans
    }

    /// Queues a snapshot; drops the oldest ones if the queue is full. Never blocks.
    pub fn offer(&self, snapshot: Arc<Snapshot>) {
        let mut state = self.shared.state();
        while self.is_full(&state.queue, &snapshot)
            && let Some(oldest) = state.queue.pop_front()
        {
            *state.pushes_dropped.entry("queue_full").or_default() += 1;
            // Totals come again with the next snapshot, spans do not.
            *state.dropped.entry("queue_full").or_default() += oldest.spans.len() as u64;
        }
        state.queue.push_back(snapshot);
        drop(state);
        self.shared.changed.notify_one();
    }

    /// Whether there is no room for one more. Spans are offered as soon as there are some: of them, their number counts.
    fn is_full(&self, queue: &VecDeque<Arc<Snapshot>>, next: &Snapshot) -> bool {
        let limits = &self.shared.limits;
        if self.takes_spans {
            queue.iter().map(|snapshot| snapshot.spans.len()).sum::<usize>() + next.spans.len() > limits.queued_spans
        } else {
            queue.len() >= limits.queue
        }
    }

    /// Returns the counters.
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

    /// Sends what is queued, and ends within `limit`. The rest stays on disk for the next run; without a disk queue it is
    /// dropped, counted and logged. Returns the last counters.
    pub async fn finish(mut self, limit: Duration) -> EmitterStats {
        self.shared.state().closing = true;
        self.shared.end.send_replace(Some(Instant::now() + limit / 2));
        self.shared.changed.notify_one();
        if tokio::time::timeout(limit, &mut self.task).await.is_err() {
            self.task.abort();
            let mut state = self.shared.state();
            // Including the snapshot being sent.
            let lost = state.queue.len() as u64 + 1;
            state.queue.clear();
            *state.pushes_dropped.entry("shutdown").or_default() += lost;
            tracing::warn!(emitter = state.stats.name, "{lost} pushes could not be sent before the end");
        }
        self.stats()
    }
}

#[cfg(test)]
mod tests;
