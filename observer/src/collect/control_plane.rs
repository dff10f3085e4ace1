//! Metrics pages of control-plane processes. Each target has a task of its own that scrapes it now and then and keeps what
//! came last, so that a slow or dead one delays nothing: a round takes what is there.

mod fetch;
mod page;
mod scraper;

use std::{
    collections::BTreeMap,
    fmt,
    path::PathBuf,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use reqwest::Url;
use tokio::{task::JoinHandle, time::MissedTickBehavior};

use crate::{
    chance::chance,
    client::ClientError,
    discovery::target::{self, Inside},
};

use self::scraper::Scraper;
pub use self::{
    fetch::{Body, ScrapeError},
    page::{Page, PageFamily, PageLine, Suffix, TooMuch, escape},
};

/// Labels that every point of a target has, in the order they are written.
pub const LABELS: [&str; 5] = ["instance", "app", "pod", "namespace", "scraper_node"];
/// Longest time that one scrape takes.
const PATIENCE: Duration = Duration::from_secs(10);

/// A page of more samples takes so much memory while it is read that it is worth while to give it back.
const LARGE: u64 = 2_000;

/// A metrics page to be read, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// Where it is.
    pub url: PageUrl,
    /// `address:port`, the label that tells instances apart.
    pub instance: String,
    /// `istiod`, …
    pub app: String,
    /// Pod, if known.
    pub pod: Option<String>,
    /// Namespace, if known.
    pub namespace: Option<String>,
    /// Which node scrapes it, of a page that others may scrape too: their series would be one otherwise.
    pub node: Option<String>,
    /// The other way to it, where there is one.
    pub inside: Option<Inside>,
}

impl Target {
    /// A page that somebody named, probably on every node. Its host and port are the instance; `node` is this one's name.
    #[must_use]
    pub fn named(url: PageUrl, node: &str) -> Self {
        let (instance, node) = (url.instance(), Some(node.to_owned()));
        Self { url, instance, app: "istiod".to_owned(), pod: None, namespace: None, node, inside: None }
    }

    /// The page of a process that was found.
    #[must_use]
    pub fn found(found: target::Target) -> Option<Self> {
        let target::Target { url, instance, app, pod, namespace, inside, .. } = found;
        Some(Self { url: url.parse().ok()?, instance, app, pod, namespace, node: None, inside })
    }

    /// Names of the labels that its points get: a page that was found has no `scraper_node`.
    fn labels(&self) -> &'static [&'static str] {
        let unnamed = LABELS.split_last().map_or(&[] as &[_], |(_, others)| others);
        if self.node.is_some() { &LABELS } else { unnamed }
    }

    /// Whether a page that was found is this one. An address that leads to it only from inside another network namespace
    /// says nothing here.
    #[must_use]
    pub fn is_same_page(&self, found: &Self) -> bool {
        let is_reached_here = found.inside.is_none_or(|inside| inside.only.is_none());
        self.instance == found.instance || self.url == found.url && is_reached_here
    }
}

/// Address of a metrics page. It may hold credentials, so it shows itself without.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PageUrl(Url);

impl PageUrl {
    /// Host and port.
    #[must_use]
    pub fn instance(&self) -> String {
        let host = self.0.host_str().unwrap_or_default();
        format!("{host}:{}", self.0.port_or_known_default().unwrap_or_default())
    }
}

impl FromStr for PageUrl {
    type Err = String;

    /// The text is not repeated in the error: it may hold a password.
    fn from_str(text: &str) -> Result<Self, String> {
        let example = "write it as in http://istiod.istio-system:15014/metrics";
        let mut url = Url::parse(text).map_err(|error| format!("no address of a metrics page: {error}; {example}"))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
            return Err(format!("no address of a metrics page: it is neither http nor https; {example}"));
        }
        if url.path() == "/" {
            url.set_path("/metrics");
        }
        Ok(Self(url))
    }
}

impl fmt::Display for PageUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = &self.0;
        write!(f, "{}://{}", url.scheme(), url.host_str().unwrap_or_default())?;
        if let Some(port) = url.port() {
            write!(f, ":{port}")?;
        }
        f.write_str(url.path())
    }
}

impl fmt::Debug for PageUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How targets are scraped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Time between two scrapes of a target.
    pub interval: Duration,
    /// Authorities trusted over TLS, PEM; those of the system if absent.
    pub ca_file: Option<PathBuf>,
    /// The proc file system, where network namespaces are found.
    pub proc_root: PathBuf,
}

/// How one target fares.
#[derive(Clone, Debug)]
pub struct TargetReading {
    /// Whose page.
    pub target: Arc<Target>,
    /// What the last scrape said; `None` before the first one and after one that failed.
    pub page: Option<Arc<Page>>,
    /// Whether any scrape has ended yet.
    pub tried: bool,
    /// How long the last scrape took.
    pub took: Duration,
    /// Scrapes by outcome: `ok`, or the kind of error.
    pub scrapes: Counts,
    /// Lines passed over, by reason.
    pub skipped: Counts,
}

type Counts = BTreeMap<&'static str, u64>;

/// Every target with its task.
#[derive(Debug)]
pub struct ControlPlane {
    options: Options,
    running: BTreeMap<Arc<Target>, Running>,
}

#[derive(Debug)]
struct Running {
    last: Arc<Mutex<TargetReading>>,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ControlPlane {
    /// No target yet.
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self { options, running: BTreeMap::new() }
    }

    /// Scrapes these targets from now on and no others. What is known of those that stay is kept.
    ///
    /// # Errors
    /// A client cannot be made, as with a CA file that cannot be read. The targets before it are scraped.
    pub fn set(&mut self, targets: impl IntoIterator<Item = Target>) -> Result<(), ClientError> {
        let mut before = std::mem::take(&mut self.running);
        for target in targets {
            let running = match before.remove_entry(&target) {
                Some(running) => running,
                None => {
                    let counted =
                        before.iter().find(|(other, _)| other.instance == target.instance).map(|(_, running)| {
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
    fn start(&self, target: Arc<Target>, counted: Option<(Counts, Counts)>) -> Result<Running, ClientError> {
        let limit = PATIENCE.min(self.options.interval.max(Duration::from_secs(1)));
        let scraper = Scraper::new(&target, &self.options, limit)?;
        let (scrapes, skipped) = counted.unwrap_or_else(|| (Counts::from([("ok", 0)]), Counts::new()));
        let (page, tried, took) = (None, false, Duration::ZERO);
        let last = TargetReading { target: target.clone(), page, tried, took, scrapes, skipped };
        let last = Arc::new(Mutex::new(last));
        let task = tokio::spawn(scrape(target, scraper, self.options.interval, last.clone()));
        Ok(Running { last, task })
    }

    /// What every target's last scrape said.
    #[must_use]
    pub fn read(&self) -> Vec<TargetReading> {
        self.running.values().map(|running| lock(&running.last).clone()).collect()
    }
}

fn lock(last: &Mutex<TargetReading>) -> MutexGuard<'_, TargetReading> {
    last.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Scrapes one target for ever. The first time lies anywhere in half an interval, so that nodes that start together do not
/// ask together.
async fn scrape(target: Arc<Target>, scraper: Scraper, interval: Duration, last: Arc<Mutex<TargetReading>>) {
    let first = tokio::time::Instant::now() + interval.mul_f64(chance() / 2.0);
    let mut tick = tokio::time::interval_at(first, interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failing = None;
    loop {
        tick.tick().await;
        let began = Instant::now();
        let outcome = scraper.page(&target).await;
        told(&target, &outcome, &mut failing);
        let mut last = lock(&last);
        (last.tried, last.took) = (true, began.elapsed());
        *last.scrapes.entry(outcome.as_ref().map_or_else(ScrapeError::kind, |_| "ok")).or_default() += 1;
        if let Ok(page) = &outcome {
            for (reason, lines) in &page.skipped {
                *last.skipped.entry(reason).or_default() += lines;
            }
        }
        last.page = outcome.ok();
        let large = last.page.as_ref().is_some_and(|page| page.samples > LARGE);
        drop(last);
        if large {
            give_back();
        }
    }
}

/// What reading a page took beside the page itself goes back to the system: glibc would keep it between the pages.
fn give_back() {
    // SAFETY: no pointers; the allocator locks itself.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Logs what changed.
fn told(target: &Target, outcome: &Result<Arc<Page>, ScrapeError>, failing: &mut Option<&'static str>) {
    let (instance, url) = (&target.instance, &target.url);
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
