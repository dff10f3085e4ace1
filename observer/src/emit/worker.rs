//! The task of one emitter: reports become batches, batches are sent, wait or are dropped.
//!
//! A batch that is not taken is tried again after a jittered, growing pause. Without a directory for it that holds up the
//! reports behind it, for a bounded time. With one, it waits there, whatever comes after it waits behind it, and one
//! batch at a time tries the receiver.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Batch, Encoder, Failure, Shared, Transport,
    disk_queue::{DiskQueue, DiskQueueError, Oldest, Waiting},
};
use crate::{
    model::{Snapshot, catalogue},
    system::jitter::jitter,
};

pub(super) struct Worker {
    encoder: Box<dyn Encoder>,
    delivery: Delivery,
    /// Reasons for which points are rejected that the log has already.
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
        self.delivery.find_earlier().await;
        let shared = self.delivery.shared.clone();
        loop {
            let resume = self.delivery.resume();
            tokio::select! {
                biased;
                report = shared.next() => match report {
                    Some(snapshot) => self.report(snapshot).await,
                    None => break,
                },
                () = tokio::time::sleep_until(resume.unwrap_or_else(Instant::now)), if resume.is_some() => {
                    self.delivery.try_oldest().await;
                }
            }
        }
    }

    async fn report(&mut self, snapshot: Arc<Snapshot>) {
        for batch in self.encoder.encode(snapshot) {
            self.delivery.deliver(batch).await;
        }
        let rejected = self.encoder.rejected();
        self.log_rejected(&rejected);
        let mut state = self.delivery.shared.state();
        state.stats.rejected = rejected;
        state.stats.filtered = self.encoder.filtered();
    }

    /// Once for each reason: who watches the receiver alone would not learn it otherwise.
    fn log_rejected(&mut self, rejected: &[(&'static str, u64)]) {
        for (reason, points) in rejected.iter().filter(|(_, points)| *points > 0) {
            if !self.logged.contains(reason) {
                self.logged.push(reason);
                tracing::warn!(
                    "emitter {}: {points} points are not sent, as the receiver would not deliver them: {reason} \
                     ({} counts them)",
                    self.delivery.shared.name(),
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
    /// Whether the last send failed, and whether nothing could be kept on disk since something there failed: only changes
    /// are logged. A full disk can still be read.
    failing: bool,
    disk_failing: bool,
    /// Failures since the last success.
    attempt: u32,
}

/// Where batches wait for a receiver that does not deliver them.
struct Disk {
    queue: Arc<Mutex<DiskQueue>>,
    /// Whether something waits there, or may: a directory that cannot be used yet may hold what an earlier run left.
    may_hold: bool,
    /// When the oldest is tried again.
    resume: Instant,
}

impl Delivery {
    /// When the disk is looked at next; `None` if nothing waits there.
    fn resume(&self) -> Option<Instant> {
        self.disk.as_ref().filter(|disk| disk.may_hold).map(|disk| disk.resume)
    }

    /// What an earlier run could not send is sent first.
    async fn find_earlier(&mut self) {
        if self.disk.is_some() {
            let found = self.on_disk(DiskQueue::waiting).await;
            if let Ok(Waiting { points: points @ 1.., .. }) = found {
                tracing::info!("emitter {}: {points} points wait on disk", self.shared.name());
            }
        }
    }

    /// Sends a batch, or lets it wait behind others.
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
            // Compared before the pause: what a receiver asks for is waited for, and then the batch is tried once more.
            if began.elapsed() >= self.shared.limits.retry_timeout {
                waiting.pop().into_iter().for_each(|batch| self.shared.drop_points("gave_up", batch.points));
                continue;
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Sends the batch that waits on disk longest.
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
            // Some of it was taken: what was not waits on its own. The whole makes room for it.
            self.forget_oldest().await;
            if !self.keep(&mut waiting).await {
                waiting.iter().for_each(|batch| self.shared.drop_points("queue_dir", batch.points));
            }
        }
        self.wait(pause);
    }

    /// Sends all of `waiting`, the last first, in halves where need be. What is refused is dropped. What failed in a way
    /// that may pass stays, with all that is left.
    async fn send(&mut self, waiting: &mut Vec<Batch>) -> Result<(), Failure> {
        while let Some(batch) = waiting.pop() {
            let Err(failure) = self.send_once(&batch).await else {
                self.shared.state().stats.sent += batch.points;
                self.attempt = 0;
                if std::mem::take(&mut self.failing) {
                    tracing::info!("emitter {}: sending again", self.shared.name());
                }
                continue;
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

    /// Where batches can wait on disk, the end does not wait for a send.
    async fn send_once(&mut self, batch: &Batch) -> Result<(), Failure> {
        let stopping = || Failure::Transient { kind: "shutdown", message: "stopping".to_owned() };
        tokio::select! {
            biased;
            sent = self.transport.send(batch) => sent,
            () = self.shared.ending(), if self.disk.is_some() => Err(stopping()),
        }
    }

    /// The pause before the next try.
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
            tracing::warn!("emitter {}: {message}", self.shared.name());
        }
    }

    /// Moves `waiting` to the disk, the last first. `false` if there is none, or it cannot be used: what is left stays.
    async fn keep(&mut self, waiting: &mut Vec<Batch>) -> bool {
        if self.disk.is_none() {
            return false;
        }
        while let Some(batch) = waiting.pop() {
            let kept = batch.clone();
            match self.on_disk(move |queue| queue.push(&kept)).await {
                Ok(dropped) => {
                    if std::mem::take(&mut self.disk_failing) {
                        tracing::info!("emitter {}: batches can be kept on disk again", self.shared.name());
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

    /// Does something on the disk without holding up the runtime, and learns what waits there then.
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
                tracing::warn!("emitter {}: {error}", self.shared.name());
            }
        }
        done
    }
}
