//! Wires the parts, and runs the one loop: changes on the node, timers and signals.

#![expect(unsafe_code, reason = "AsyncFd takes a descriptor")]

mod declared;
pub mod emitters;
mod findings;
mod naming;
mod persistence;
mod reload;
mod scraping;

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Error, Result};
use tokio::{
    io::{Interest, unix::AsyncFd},
    signal::unix::{SignalKind, signal},
    sync::{Mutex, MutexGuard},
    task::spawn_blocking,
    time::MissedTickBehavior,
};

use self::{
    declared::Declared,
    emitters::{Cells, Emitters},
    findings::Findings,
    naming::Naming,
    persistence::Persistence,
    reload::Reload,
    scraping::Scraping,
};
use crate::{
    cli::args::RunArgs,
    collect::self_usage,
    config::{Config, values::Interval},
    discovery::{Change, registry::Registry, watch::Watcher},
    kernel::{Kernel, Traces},
    model::{Snapshot, view::Finding},
    persist::state::PersistedState,
    reporter::{Reporter, Scope},
    serve::{self, Listening, Protection, readiness::Readiness, snapshot_cache::Source},
    sidecars::{Sidecars, by_role},
    system::{capabilities, seccomp, signals},
};

/// Timeout of the emitters' last pushes.
const LAST_PUSH_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of the whole shutdown.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval of reclaiming, detaching and retries, whatever the interval of pushes.
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(1);
/// Interval at which spans are taken from the kernel, which has room for 4,500.
const SPAN_INTERVAL: Duration = Duration::from_millis(250);

/// Observes until SIGINT or SIGTERM. SIGHUP reloads the configuration that `args` name.
///
/// # Errors
/// The observer cannot start: kernel, privileges, cgroups. Later failures are logged and counted.
pub async fn run(
    config: &Config,
    args: &RunArgs,
    emitters: Emitters,
    listening: Listening,
    protection: Protection,
) -> Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    let readiness = Readiness::new();
    let attaching = readiness.block("first scan for sidecars");
    let mut naming = Naming::open(config).await?;
    let (node, restored) = Node::start(config, emitters.cells())?;
    let mut watcher = Watcher::new(config.discovery())?;
    let server = serve::start(listening, node.clone(), readiness.pending(), protection);
    drop_startup_privileges()?;
    naming.start(&mut node.state().await.reporter);
    let mut shutdown = signals::shutdown(SHUTDOWN_TIMEOUT)?;
    let names = emitters.names().collect::<Vec<_>>().join(", ");
    node.state().await.reporter.start(emitters.start(), Box::new(server.reader()));
    let changes = watcher.resume(restored);
    node.state().await.resume(changes, watcher.registry());
    node.state().await.log_start(&names, args);
    drop(attaching);
    let (mut pushes, mut housekeeping) = (timer(config.push_interval()), timer(HOUSEKEEPING_INTERVAL));
    let (mut spans, has_spans) = (timer(SPAN_INTERVAL), config.trace_reading() >= Traces::Spans);
    let mut reload = Reload::new(config, args);
    loop {
        tokio::select! {
            changes = watcher.next() => node.state().await.apply(changes, watcher.registry()),
            due = pushes.tick() => node.work(move |state| state.push(Some(due.into_std()))).await,
            _ = spans.tick(), if has_spans => node.work(State::push_spans).await,
            _ = housekeeping.tick() => {
                node.work(State::keep_house).await;
                node.state().await.findings.refresh(&watcher);
            }
            changes = naming.next() => node.state().await.reporter.apply(changes),
            _ = hangup.recv() => {
                if let Some(peers) = reload.peers() {
                    node.state().await.reporter.set_peers(peers);
                }
            }
            _ = &mut shutdown => break,
        }
    }
    tracing::info!("stopping");
    node.state().await.reporter.stop_waiting();
    node.work(|state| state.push(None)).await;
    node.work(State::push_spans).await;
    let last_pushes = node.state().await.reporter.finish(LAST_PUSH_TIMEOUT);
    last_pushes.join_all().await;
    server.task.abort();
    Ok(())
}

/// Returns a timer that starts after one period and skips missed ticks.
fn timer(period: Duration) -> tokio::time::Interval {
    let mut timer = tokio::time::interval_at(tokio::time::Instant::now() + period, period);
    timer.set_missed_tick_behavior(MissedTickBehavior::Skip);
    timer
}

/// Observes for a while and returns what was counted.
///
/// # Errors
/// As [`run`].
pub async fn snapshot(config: &Config, length: Duration) -> Result<Arc<Snapshot>> {
    let mut config = config.clone();
    config.pin = None;
    // Every endpoint is to be scraped in that time.
    config.scrape_interval = Interval(config.scrape_interval.0.min(length));
    let config = &config;
    let mut naming = Naming::open(config).await?;
    let (node, _) = Node::start(config, Cells::OfInterval)?;
    let mut watcher = Watcher::new(config.discovery())?;
    drop_startup_privileges()?;
    naming.start(&mut node.state().await.reporter);
    let changes = watcher.scan();
    node.state().await.apply(changes, watcher.registry());
    tracing::info!("observing for {length:?}");
    let mut housekeeping = timer(HOUSEKEEPING_INTERVAL);
    let end = tokio::time::sleep(length);
    tokio::pin!(end);
    loop {
        tokio::select! {
            changes = watcher.next() => node.state().await.apply(changes, watcher.registry()),
            changes = naming.next() => node.state().await.reporter.apply(changes),
            _ = housekeeping.tick() => {
                node.state().await.declare_ports();
                node.state().await.read_new();
            }
            () = &mut end => break,
        }
    }
    node.state().await.reporter.stop_waiting();
    Ok(node.state().await.round(true))
}

/// Drops what only startup needed; called before there is another thread, which would keep its own capabilities.
fn drop_startup_privileges() -> Result<()> {
    // Loading needs more memory than anything after it.
    self_usage::trim_heap();
    capabilities::warn_about_missing();
    capabilities::drop_startup_only().context("capabilities cannot be dropped")?;
    if let Err(error) = seccomp::install_filters() {
        tracing::warn!("running without a system call filter: {error}");
    }
    Ok(())
}

/// The observed node, shared between the loop and scrapes of `/metrics`.
#[derive(Clone)]
struct Node(Arc<Mutex<State>>);

struct State {
    kernel: Kernel,
    sidecars: Sidecars,
    scraping: Scraping,
    reporter: Reporter,
    persistence: Persistence,
    declared: Declared,
    findings: Findings,
}

impl Node {
    /// Loads the programs; nothing new is attached yet. Returns the ids that an earlier observer gave out.
    fn start(config: &Config, cells: Cells) -> Result<(Self, Registry)> {
        let started = SystemTime::now();
        self_usage::raise_file_limit();
        let loaded = Persistence::load(config);
        let missing = capabilities::held().ok().and_then(capabilities::missing_required);
        let (mut kernel, persistence, restored) = match (loaded, missing) {
            (Err(error), Some(missing)) => return Err(error).context(missing),
            (loaded, _) => loaded?,
        };
        forward_log(&mut kernel);
        if kernel.has_nested_pids() {
            tracing::info!(
                "process ids are those of a nested pid namespace, which the kernel does not use: sidecars are distinguished \
                 from their agents by Envoy's worker threads"
            );
        }
        let PersistedState { registry, running, ended, moved, model, kernel: _ } = restored;
        let mut reporter = Reporter::new(config, started, model, cells > Cells::None)?;
        if cells == Cells::Totals {
            reporter.want_cells();
        }
        let state = State {
            kernel,
            sidecars: Sidecars::restore(&running, &ended, &moved),
            scraping: Scraping::new(config)?,
            reporter,
            persistence,
            declared: Declared::default(),
            findings: Findings::default(),
        };
        Ok((Self(Arc::new(Mutex::new(state))), registry))
    }

    async fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().await
    }

    /// Does what reads maps on another thread: what is being sent or answered meanwhile goes on.
    async fn work<R: Send + 'static>(&self, work: impl FnOnce(&mut State) -> R + Send + 'static) -> R {
        let mut state = self.0.clone().lock_owned().await;
        let done = spawn_blocking(move || work(&mut state)).await;
        done.unwrap_or_else(|failed| std::panic::resume_unwind(failed.into_panic()))
    }
}

impl Source for Node {
    async fn snapshot(&self, with_cells: bool) -> Arc<Snapshot> {
        let asked = Instant::now();
        self.work(move |state| state.scrape(asked, with_cells)).await
    }

    async fn watch(&self) -> (Arc<Snapshot>, Vec<Finding>) {
        self.work(|state| {
            state.reporter.watch();
            (state.round(false), state.findings.watch())
        })
        .await
    }

    async fn stop_watching(&self) {
        let mut state = self.state().await;
        state.reporter.stop_watching();
        state.findings.stop_watching();
    }
}

impl State {
    /// Continues where an earlier observer stopped: attaches to what runs now, and ends what ended meanwhile.
    fn resume(&mut self, changes: Vec<Change>, registry: &Registry) {
        self.sidecars.iter().for_each(|sidecar| self.kernel.restore(sidecar));
        let present: HashSet<_> = changes.iter().map(Change::process).collect();
        self.apply(changes, registry);
        if self.persistence.is_on() {
            self.sidecars.end_others(&mut self.kernel, &present);
            self.scraping.update_targets(&self.sidecars.running());
            // Values counted meanwhile belong to no interval of this process.
            self.round(true);
        }
    }

    /// Logs one line with what runs, where, and what it found.
    fn log_start(&self, emitters: &str, args: &RunArgs) {
        let (sidecars, gateways) = by_role(&self.sidecars.running());
        let none = |text: &str| if text.is_empty() { "none".to_owned() } else { text.to_owned() };
        tracing::info!(
            "mesh observer {} on Linux {}: {sidecars} sidecars, {gateways} gateways and {} control-plane processes found; \
             emitters: {}; configuration file: {}",
            env!("CARGO_PKG_VERSION"),
            rustix::system::uname().release().to_string_lossy(),
            self.scraping.components().len(),
            none(emitters),
            none(&args.node.config.as_ref().map(|path| path.display().to_string()).unwrap_or_default()),
        );
    }

    /// Applies changes of the node.
    fn apply(&mut self, changes: Vec<Change>, registry: &Registry) {
        if self.persistence.update_registry(registry) {
            self.persist();
        }
        for change in changes {
            match change {
                Change::Found(sidecar) | Change::Updated(sidecar) => self.sidecars.observe(&mut self.kernel, sidecar),
                Change::Gone(sidecar) => self.sidecars.end(&mut self.kernel, sidecar.process),
                Change::ComponentFound(component) | Change::ComponentUpdated(component) => {
                    self.scraping.insert(component);
                }
                Change::ComponentGone(component) => self.scraping.remove(component.process, &component.app),
            }
        }
        self.scraping.update_targets(&self.sidecars.running());
        self.declare_ports();
        self.persist();
    }

    /// Declares the protocols of ports to the kernel, if the cluster or the sidecars have changed.
    fn declare_ports(&mut self) {
        let running = self.sidecars.running();
        self.declared.update(&mut self.kernel, self.reporter.cluster_mut(), &running);
    }

    /// Does what must not wait for the next push: reclaims map entries, detaches, and retries to attach.
    fn keep_house(&mut self) {
        self.reporter.forget_last();
        match self.kernel.reclaim() {
            Ok(0) => {}
            Ok(series) => tracing::debug!("{series} series of ended sidecars and idle callers were reclaimed"),
            Err(error) => tracing::error!(
                "series of ended sidecars and idle callers cannot be reclaimed: {:#}",
                Error::from(error)
            ),
        }
        self.sidecars.keep_house(&mut self.kernel);
        self.declare_ports();
        self.read_new();
        // Entries are reclaimed once their last values are read. With percentiles the next push reads them.
        if !self.reporter.reads_percentiles() && self.kernel.has_unread() {
            self.round(false);
        }
    }

    /// Reads new series as soon as names may be asked for, and those that wait for an answer.
    fn read_new(&mut self) {
        if self.reporter.cluster().is_on() && (self.reporter.is_waiting() || self.kernel.has_new_series()) {
            self.round(false);
        }
    }

    /// Ends an interval that was due then, or is cut short: one snapshot for every emitter.
    fn push(&mut self, due: Option<Instant>) {
        if let Some(due) = due {
            self.reporter.record_delay(due);
        }
        let snapshot = self.round(true);
        self.reporter.push(&snapshot);
    }

    /// Pushes the spans that have ended since the last time.
    fn push_spans(&mut self) {
        let requests = self.kernel.take_spans();
        if requests.is_empty() {
            return;
        }
        if requests.iter().any(|request| !self.reporter.knows(request.key.sidecar)) {
            // Their sidecar has just come.
            self.round(false);
        }
        self.reporter.push_spans(requests);
    }

    /// Takes a snapshot for a scrape that was asked for then; it waits for no second reading if one was under way.
    fn scrape(&mut self, asked: Instant, with_cells: bool) -> Arc<Snapshot> {
        if let Some(snapshot) = self.reporter.last_since(asked, with_cells) {
            return snapshot;
        }
        if with_cells {
            self.reporter.want_cells();
        }
        self.round(false)
    }

    fn round(&mut self, closes_interval: bool) -> Arc<Snapshot> {
        let scope = Scope {
            running: &self.sidecars.running(),
            ended: &self.sidecars.ended(),
            refused: self.sidecars.refused(),
            components: self.scraping.components(),
            scraped: self.scraping.read(),
        };
        let snapshot = self.reporter.round(&mut self.kernel, scope, closes_interval);
        if self.reporter.take_changed() || self.persistence.is_write_failing() {
            self.persist();
        }
        snapshot
    }

    fn persist(&mut self) {
        let Self { kernel, sidecars, reporter, persistence, .. } = self;
        persistence.save(|registry| PersistedState {
            registry,
            running: sidecars.running(),
            ended: sidecars.ended(),
            moved: sidecars.moved(),
            model: Some(reporter.persisted_model()),
            kernel: kernel.map_state().clone(),
        });
    }
}

/// Forwards the programs' log lines, in a build that has any.
fn forward_log(kernel: &mut Kernel) {
    let Some(lines) = kernel.log() else { return };
    // SAFETY: the logger owns its file descriptor while it lives, and nothing else closes it.
    let Ok(mut lines) = (unsafe { AsyncFd::register_with_interest(lines, Interest::READABLE) }) else { return };
    tokio::spawn(async move {
        while let Ok(mut ready) = lines.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    });
}
