//! Scrapes the /metrics endpoints of control-plane processes. Each target has a task of its own, so that a slow or dead
//! one delays nothing: a round uses the last results.

#![expect(unsafe_code, reason = "malloc_trim(3)")]

mod fetch;
mod scraper;
mod target;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{task::JoinHandle, time::MissedTickBehavior};

use observer_model::{
    reading::{Counts, ScrapeReading},
    scraped::ScrapedExposition,
};

use crate::system::{http_client::ClientError, jitter::jitter};

use self::scraper::Scraper;
pub use self::{
    fetch::{Body, ScrapeError},
    scraper::ScrapeOptions,
    target::{EndpointUrl, NetnsRoute, ScrapeTarget, targets},
};

/// Timeout of a scrape.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(10);

/// Endpoints with more samples take so much memory while parsed that it is returned to the system.
const LARGE_EXPOSITION_SAMPLES: u64 = 2_000;

/// All targets with their tasks.
#[derive(Debug)]
pub struct ScrapePool {
    options: ScrapeOptions,
    running: BTreeMap<Arc<ScrapeTarget>, Running>,
}

#[derive(Debug)]
struct Running {
    last: Arc<Mutex<ScrapeReading>>,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ScrapePool {
    /// Creates a pool without targets.
    #[must_use]
    pub fn new(options: ScrapeOptions) -> Self {
        Self { options, running: BTreeMap::new() }
    }

    /// Replaces the targets. Results of targets that stay are kept.
    ///
    /// # Errors
    /// An HTTP client cannot be created, e.g. because of an unreadable CA file. The targets before it are scraped.
    pub fn set(&mut self, targets: impl IntoIterator<Item = ScrapeTarget>) -> Result<(), ClientError> {
        let mut before = std::mem::take(&mut self.running);
        for target in targets {
            let running = match before.remove_entry(&target) {
                Some(running) => running,
                None => {
                    let counted = before
                        .iter()
                        .find(|(other, _)| other.instance.instance == target.instance.instance)
                        .map(|(_, running)| {
                            let last = lock(&running.last);
                            (last.scrapes.clone(), last.skipped.clone())
                        });
                    let target = Arc::new(target);
                    (target.clone(), self.start(target, counted)?)
                }
            };
            self.running.insert(running.0, running.1);
        }
        Ok(())
    }

    /// Starts a target, with the counters of an earlier process of the same instance.
    fn start(&self, target: Arc<ScrapeTarget>, counted: Option<(Counts, Counts)>) -> Result<Running, ClientError> {
        let limit = SCRAPE_TIMEOUT.min(self.options.interval.max(Duration::from_secs(1)));
        let scraper = Scraper::new(&target, &self.options, limit)?;
        let (scrapes, skipped) = counted.unwrap_or_else(|| (Counts::from([("ok", 0)]), Counts::new()));
        let (exposition, tried, duration) = (None, false, Duration::ZERO);
        let last = ScrapeReading { instance: target.instance.clone(), exposition, tried, duration, scrapes, skipped };
        let last = Arc::new(Mutex::new(last));
        let task = tokio::spawn(scrape(target, scraper, self.options.interval, last.clone()));
        Ok(Running { last, task })
    }

    /// Returns the last result of every target.
    #[must_use]
    pub fn read(&self) -> Vec<ScrapeReading> {
        self.running.values().map(|running| lock(&running.last).clone()).collect()
    }
}

fn lock(last: &Mutex<ScrapeReading>) -> MutexGuard<'_, ScrapeReading> {
    last.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Scrapes a target forever. The first scrape is delayed by up to half an interval, so that nodes that start together
/// do not scrape together.
async fn scrape(target: Arc<ScrapeTarget>, scraper: Scraper, interval: Duration, last: Arc<Mutex<ScrapeReading>>) {
    let first = tokio::time::Instant::now() + interval.mul_f64(jitter() / 2.0);
    let mut tick = tokio::time::interval_at(first, interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failing = None;
    loop {
        tick.tick().await;
        let began = Instant::now();
        let outcome = scraper.scrape(&target).await;
        log_change(&target, &outcome, &mut failing);
        let mut last = lock(&last);
        (last.tried, last.duration) = (true, began.elapsed());
        *last.scrapes.entry(outcome.as_ref().map_or_else(ScrapeError::kind, |_| "ok")).or_default() += 1;
        if let Ok(exposition) = &outcome {
            for (reason, lines) in &exposition.skipped {
                *last.skipped.entry(reason).or_default() += lines;
            }
        }
        last.exposition = outcome.ok();
        let large = last.exposition.as_ref().is_some_and(|exposition| exposition.samples > LARGE_EXPOSITION_SAMPLES);
        drop(last);
        if large {
            trim_heap();
        }
    }
}

/// Returns memory used for parsing to the system: glibc would keep it.
fn trim_heap() {
    // SAFETY: no pointers; the allocator locks itself.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Logs changes.
fn log_change(
    target: &ScrapeTarget,
    outcome: &Result<Arc<ScrapedExposition>, ScrapeError>,
    failing: &mut Option<&'static str>,
) {
    let (instance, url) = (&target.instance.instance, &target.url);
    match outcome {
        Ok(exposition) if failing.replace("") != Some("") => {
            tracing::info!(instance, "scraping {url}: {} samples", exposition.samples);
            if !exposition.skipped.is_empty() {
                tracing::warn!(instance, "lines of {url} that cannot be read: {:?}", exposition.skipped);
            }
        }
        Err(error) if failing.replace(error.kind()) != Some(error.kind()) => {
            tracing::warn!(instance, "cannot scrape {url}: {error}");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;
