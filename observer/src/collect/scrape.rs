//! Metrics pages of control-plane processes. Each target has a task of its own that scrapes it now and then and keeps what
//! came last, so that a slow or dead one delays nothing: a round takes what is there.

#![expect(unsafe_code, reason = "malloc_trim(3)")]

mod fetch;
mod scraper;
mod target;

use std::{
    collections::BTreeMap,
    path::PathBuf,
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
    target::{NetnsRoute, PageUrl, ScrapeTarget, targets},
};

/// Longest time that one scrape takes.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(10);

/// A page of more samples takes so much memory while it is read that it is worth while to give it back.
const LARGE_PAGE_SAMPLES: u64 = 2_000;

/// How targets are scraped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScrapeOptions {
    /// Time between two scrapes of a target.
    pub interval: Duration,
    /// Authorities trusted over TLS, PEM; those of the system if absent.
    pub ca_file: Option<PathBuf>,
    /// The proc file system, where network namespaces are found.
    pub proc_root: PathBuf,
}

/// Every target with its task.
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
    /// No target yet.
    #[must_use]
    pub fn new(options: ScrapeOptions) -> Self {
        Self { options, running: BTreeMap::new() }
    }

    /// Scrapes these targets from now on and no others. What is known of those that stay is kept.
    ///
    /// # Errors
    /// A client cannot be made, as with a CA file that cannot be read. The targets before it are scraped.
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

    /// What was counted of an instance before its process was another goes on.
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

    /// What every target's last scrape said.
    #[must_use]
    pub fn read(&self) -> Vec<ScrapeReading> {
        self.running.values().map(|running| lock(&running.last).clone()).collect()
    }
}

fn lock(last: &Mutex<ScrapeReading>) -> MutexGuard<'_, ScrapeReading> {
    last.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Scrapes one target for ever. The first time lies anywhere in half an interval, so that nodes that start together do not
/// ask together.
async fn scrape(target: Arc<ScrapeTarget>, scraper: Scraper, interval: Duration, last: Arc<Mutex<ScrapeReading>>) {
    let first = tokio::time::Instant::now() + interval.mul_f64(jitter() / 2.0);
    let mut tick = tokio::time::interval_at(first, interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failing = None;
    loop {
        tick.tick().await;
        let began = Instant::now();
        let outcome = scraper.page(&target).await;
        log_change(&target, &outcome, &mut failing);
        let mut last = lock(&last);
        (last.tried, last.duration) = (true, began.elapsed());
        *last.scrapes.entry(outcome.as_ref().map_or_else(ScrapeError::kind, |_| "ok")).or_default() += 1;
        if let Ok(page) = &outcome {
            for (reason, lines) in &page.skipped {
                *last.skipped.entry(reason).or_default() += lines;
            }
        }
        last.exposition = outcome.ok();
        let large = last.exposition.as_ref().is_some_and(|page| page.samples > LARGE_PAGE_SAMPLES);
        drop(last);
        if large {
            trim_heap();
        }
    }
}

/// What reading a page took beside the page itself goes back to the system: glibc would keep it between the pages.
fn trim_heap() {
    // SAFETY: no pointers; the allocator locks itself.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Logs what changed.
fn log_change(
    target: &ScrapeTarget,
    outcome: &Result<Arc<ScrapedExposition>, ScrapeError>,
    failing: &mut Option<&'static str>,
) {
    let (instance, url) = (&target.instance.instance, &target.url);
    match outcome {
        Ok(page) if failing.replace("") != Some("") => {
            tracing::info!(instance, "scraping {url}: {} samples", page.samples);
            if !page.skipped.is_empty() {
                tracing::warn!(instance, "lines of {url} that cannot be read: {:?}", page.skipped);
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
