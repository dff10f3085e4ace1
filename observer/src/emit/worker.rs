//! The task of one emitter: encodes snapshots to batches, which are sent, queued on disk or dropped.
//!
//! A batch that is not accepted is retried with jittered exponential backoff. Without a disk queue that delays the snapshots
//! behind it, for a bounded time. With one, it waits there, later batches queue up behind it, and the oldest one is retried.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    disk_queue::{DiskQueue, DiskQueueError, Oldest, Waiting},
    queue::Shared,
    transport::{Accepted, Failure, Transport},
};
use crate::{
    model::{
        Snapshot, catalogue,
        encode::{Batch, Encoder},
    },
    system::jitter::jitter,
};

pub(super) struct Worker {
    encoder: Box<dyn Encoder>,
    delivery: Delivery,
    /// Reasons of rejected points that were logged.
    logged: Vec<&'static str>,
}

impl Worker {
    pub(super) fn new(
        shared: Arc<Shared>,
        encoder: Box<dyn Encoder>,
        transport: Box<dyn Transport>,
        queue: Option<DiskQueue>,
    ) -> Self {
        let disk =
            queue.map(|queue| Disk { queue: Arc::new(Mutex::new(queue)), may_hold: false, resume: Instant::now() });
        Self {
            encoder,
            delivery: Delivery { shared, transport, disk, failing: false, disk_failing: false, attempt: 0 },
            logged: Vec::new(),
        }
    }

    pub(super) async fn run(mut self) {
        self.delivery.find_queued().await;
        let shared = self.delivery.shared.clone();
        loop {
            let resume = self.delivery.resume();
            tokio::select! {
                biased;
                next = shared.next() => match next {
                    Some(snapshot) => self.push(snapshot).await,
                    None => break self.end().await,
                },
                () = tokio::time::sleep_until(resume.unwrap_or_else(Instant::now)), if resume.is_some() => {
                    self.delivery.try_oldest().await;
                }
            }
        }
    }

    async fn push(&mut self, snapshot: Arc<Snapshot>) {
        for batch in self.encoder.encode(snapshot) {
            self.delivery.deliver(batch).await;
        }
        let rejected = self.encoder.rejected();
        self.log_rejected(&rejected);
        let mut state = self.delivery.shared.state();
        state.stats.rejected = rejected;
        state.stats.filtered = self.encoder.filtered();
    }

    /// Sends what ends the series that were sent.
    async fn end(&mut self) {
        for batch in self.encoder.end() {
            self.delivery.deliver(batch).await;
        }
    }

    /// Logs each reason once: the receiver never sees these points.
    fn log_rejected(&mut self, rejected: &[(&'static str, u64)]) {
        for (reason, points) in rejected.iter().filter(|(_, points)| *points > 0) {
            if !self.logged.contains(reason) {
                self.logged.push(reason);
                tracing::warn!(
                    emitter = self.delivery.shared.name(),
                    "{points} points are not sent, as the receiver would reject them: {reason} ({} counts them)",
                    catalogue::EMITTER_REJECTED.prometheus_name
                );
            }
        }
    }
}

struct Delivery {
    shared: Arc<Shared>,
    transport: Box<dyn Transport>,
    disk: Option<Disk>,
    /// Whether the last send failed, and whether the disk queue has failed since the last batch was kept: changes are logged.
    /// A full disk can still be read.
    failing: bool,
    disk_failing: bool,
    /// Failures since the last success.
    attempt: u32,
}

/// The disk queue.
struct Disk {
    queue: Arc<Mutex<DiskQueue>>,
    /// Whether batches wait or may wait: a directory that cannot be used yet may hold those of an earlier run.
    may_hold: bool,
    /// When the oldest batch is retried.
    resume: Instant,
}

impl Delivery {
    /// Returns when the oldest batch is retried; `None` if none waits.
    fn resume(&self) -> Option<Instant> {
        self.disk.as_ref().filter(|disk| disk.may_hold).map(|disk| disk.resume)
    }

    /// Finds batches that an earlier run could not send.
    async fn find_queued(&mut self) {
        if self.disk.is_some() {
            let found = self.on_disk(DiskQueue::waiting).await;
            if let Ok(Waiting { points: points @ 1.., .. }) = found {
                tracing::info!(emitter = self.shared.name(), "{points} points wait on disk");
            }
        }
    }

    /// Sends a batch, or queues it behind others.
    async fn deliver(&mut self, batch: Batch) {
        let mut waiting = vec![batch];
        if self.resume().is_some() && self.keep(&mut waiting).await {
            return;
        }
        let began = Instant::now();
        while let Err(failure) = self.send(&mut waiting).await {
            let pause = self.pause(&failure);
            if self.keep(&mut waiting).await {
                self.wait(pause);
                return;
            }
            // Compared before the pause: a demanded pause is followed by one more attempt.
            if began.elapsed() >= self.shared.limits.retry_timeout {
                waiting.pop().into_iter().for_each(|batch| self.shared.drop_points("gave_up", batch.points));
                continue;
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Sends the oldest batch on disk.
    async fn try_oldest(&mut self) {
        let batch = match self.on_disk(DiskQueue::oldest).await {
            Ok(Oldest::Batch(batch)) => batch,
            Ok(Oldest::Unreadable(points)) => {
                self.shared.drop_points("unreadable", points);
                return self.forget_oldest().await;
            }
            Ok(Oldest::None) => return,
            Err(_) => return self.wait(self.shared.limits.max_pause),
        };
        let points = batch.points;
        let mut waiting = vec![batch];
        let Err(failure) = self.send(&mut waiting).await else { return self.forget_oldest().await };
        let pause = self.pause(&failure);
        let left: u64 = waiting.iter().map(|batch| batch.points).sum();
        if left < points {
            // A part was accepted: the rest replaces the batch, or else waits behind the others.
            let rest = waiting.clone();
            if self.on_disk(move |queue| queue.replace_oldest(&rest)).await.is_err() {
                self.forget_oldest().await;
                if !self.keep(&mut waiting).await {
                    waiting.iter().for_each(|batch| self.shared.drop_points("queue_dir", batch.points));
                }
            }
        }
        self.wait(pause);
    }

    /// Sends all of `waiting`, the last first, in halves if too large. Rejected batches are dropped; after a transient failure
    /// the rest stays.
    async fn send(&mut self, waiting: &mut Vec<Batch>) -> Result<(), Failure> {
        while let Some(batch) = waiting.pop() {
            let failure = match self.send_once(&batch).await {
                Ok(accepted) => {
                    self.accepted(&batch, &accepted);
                    continue;
                }
                Err(failure) => failure,
            };
            let (kind, message) = failure.describe();
            self.failed(kind, &message);
            match failure {
                Failure::TooLarge => match batch.split() {
                    Some((first, second)) => waiting.extend([second, first]),
                    None => self.shared.drop_points(kind, batch.points),
                },
                Failure::Refused { .. } => self.shared.drop_points(kind, batch.points),
                Failure::PushBack { .. } | Failure::Transient { .. } => {
                    waiting.push(batch);
                    return Err(failure);
                }
            }
        }
        Ok(())
    }

    /// Counts a batch that the receiver has, but for points of it that it may have refused.
    fn accepted(&mut self, batch: &Batch, Accepted { refused, reason }: &Accepted) {
        let refused = (*refused).min(batch.points);
        self.shared.state().stats.sent += batch.points - refused;
        self.attempt = 0;
        if refused > 0 {
            self.shared.drop_points("refused", refused);
            self.failed(
                "partly_refused",
                &format!("the receiver refused {refused} of {} points: {reason}", batch.points),
            );
        } else if std::mem::take(&mut self.failing) {
            tracing::info!(emitter = self.shared.name(), "sending again");
        }
    }

    /// Sends a batch; with a disk queue, shutdown does not wait for it.
    async fn send_once(&mut self, batch: &Batch) -> Result<Accepted, Failure> {
        let stopping = || Failure::Transient { kind: "shutdown", message: "stopping".to_owned() };
        tokio::select! {
            biased;
            sent = self.transport.send(batch) => sent,
            () = self.shared.ending(), if self.disk.is_some() => Err(stopping()),
        }
    }

    /// Returns the pause before the next attempt.
    fn pause(&mut self, failure: &Failure) -> Duration {
        let pause = self.shared.limits.pause(self.attempt, failure, jitter());
        self.attempt = self.attempt.saturating_add(1);
        pause
    }

    fn wait(&mut self, pause: Duration) {
        if let Some(disk) = &mut self.disk {
            disk.resume = Instant::now() + pause;
        }
    }

    fn failed(&mut self, kind: &'static str, message: &str) {
        self.shared.count_error(kind);
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(emitter = self.shared.name(), "{message}");
        }
    }

    /// Moves `waiting` to the disk queue, the last first. Returns `false` if that is not possible; the rest stays.
    async fn keep(&mut self, waiting: &mut Vec<Batch>) -> bool {
        if self.disk.is_none() {
            return false;
        }
        while let Some(batch) = waiting.pop() {
            let kept = batch.clone();
            match self.on_disk(move |queue| queue.push(&kept)).await {
                Ok(dropped) => {
                    if std::mem::take(&mut self.disk_failing) {
                        tracing::info!(emitter = self.shared.name(), "batches can be kept on disk again");
                    }
                    self.shared.drop_points("queue_full", dropped);
                }
                Err(_) => {
                    waiting.push(batch);
                    return false;
                }
            }
        }
        true
    }

    async fn forget_oldest(&mut self) {
        let _ = self.on_disk(|queue| Ok(queue.remove_oldest())).await;
    }

    /// Works on the disk queue without blocking the runtime, and updates the numbers of waiting batches.
    async fn on_disk<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut DiskQueue) -> Result<T, DiskQueueError> + Send + 'static,
    ) -> Result<T, DiskQueueError> {
        let Some(disk) = self.disk.as_mut() else { return Err(DiskQueueError::absent()) };
        let queue = disk.queue.clone();
        let done = tokio::task::spawn_blocking(move || {
            let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
            let done = work(&mut queue);
            (done, queue.waiting())
        });
        let (done, waiting) =
            done.await.unwrap_or_else(|_| (Err(DiskQueueError::absent()), Err(DiskQueueError::absent())));
        let waiting = waiting.ok();
        disk.may_hold = waiting.is_none_or(|waiting| waiting.points > 0);
        self.shared.state().stats.on_disk = waiting.map(|waiting| (waiting.points, waiting.bytes));
        if let Err(error) = &done {
            self.shared.count_error("queue_dir");
            if !std::mem::replace(&mut self.disk_failing, true) {
                tracing::warn!(emitter = self.shared.name(), "{error}");
            }
        }
        done
    }
}
