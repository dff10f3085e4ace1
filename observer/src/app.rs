//! The wiring and the one loop: changes on the node, the ticks of reports and of housekeeping, and the signals.

mod emitters;
mod pinned;
mod signals;

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result};
use tokio::{
    io::{Interest, unix::AsyncFd},
    signal::unix::{SignalKind, signal},
    task::JoinSet,
    time::MissedTickBehavior,
};

pub use self::emitters::Emitters;

use crate::{
    cli::RunArgs,
    collect::{
        Outcome, Reading,
        control_plane::{ControlPlane, ScrapeTarget, targets},
        kernel::{Kernel, Store},
        own, procfs,
    },
    config::Config,
    confinement,
    discovery::{
        Change, ProcessId, Role, Sidecar, component::Component, proc_files::ProcFiles, registry::Registry,
        watch::Watcher,
    },
    emit::Emitter,
    limits::Limits,
    memory::Memory,
    model::{Model, SelfMetrics, Snapshot, aggregate, delay::DelayHistogram, workload_index::StaticPeers},
    privileges,
    readiness::Readiness,
    serve,
};

/// Longest that the emitters' last reports may take at the end.
const FAREWELL: Duration = Duration::from_secs(5);
/// Longest that the end may take in all.
const END: Duration = Duration::from_secs(10);
/// Time between two looks at what ended, what can be freed and what could not be attached, whatever the interval of reports.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// How long there may be no sidecar before that is said.
const LONELY: Duration = Duration::from_secs(60);
/// How long programs stay attached for an ended sidecar's sockets, which its kernel closes after up to a minute
/// (`tcp_fin_timeout`).
const LINGER: Duration = Duration::from_secs(75);
/// Ended sidecars whose figures and addresses are remembered.
const REMEMBERED: usize = 1024;

/// Observes until SIGINT or SIGTERM. SIGHUP reads the configuration that `args` name anew.
///
/// # Errors
/// What keeps it from beginning: kernel, privileges, cgroups, a taken address. Later failures are logged and counted.
pub async fn run(config: &Config, args: &RunArgs, emitters: Emitters) -> Result<()> {
    let mut hung_up = signal(SignalKind::hangup())?;
    let readiness = Readiness::new();
    let attaching = readiness.block("first look for sidecars");
    let listener = serve::bind(config.listen).await?;
    let (node, memory) = Node::start(config, !emitters.is_empty())?;
    let mut watcher = Watcher::new(config.discovery())?;
    let server = serve::start(listener, node.clone(), readiness.pending());
    settle()?;
    let mut stop = signals::stop(END)?;
    let names = emitters.names().collect::<Vec<_>>().join(", ");
    {
        let mut state = node.state();
        state.scrapes = Some(Box::new(server.reader()));
        state.emitters = emitters.start();
    }
    let changes = watcher.resume(memory.registry);
    node.state().resume(changes, watcher.registry(), memory.running);
    node.state().log_start(&names, args);
    drop(attaching);
    let (mut reports, mut housekeeping) = (ticks(config.report_interval()), ticks(HOUSEKEEPING));
    let mut peers = Reload::new(config, args);
    loop {
        tokio::select! {
            changes = watcher.next() => node.state().apply(changes, watcher.registry()),
            due = reports.tick() => node.report(Some(due.into_std())),
            _ = housekeeping.tick() => node.state().keep_house(),
            _ = hung_up.recv() => node.state().take_peers(peers.again()),
            _ = &mut stop => break,
        }
    }
    tracing::info!("stopping");
    node.report(None);
    let emitters = std::mem::take(&mut node.state().emitters);
    let farewells: JoinSet<_> = emitters.into_iter().map(|emitter| emitter.finish(FAREWELL)).collect();
    farewells.join_all().await;
    server.task.abort();
    Ok(())
}

/// Ticks from one period on. Those that were missed are not made up for.
fn ticks(period: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks
}

/// Observes for a while and yields what was counted.
///
/// # Errors
/// As [`run`].
pub async fn snapshot(config: &Config, length: Duration) -> Result<Arc<Snapshot>> {
    // Whatever else is scraped seldom is to be scraped in that time.
    let config = &Config { scrape_interval: config.scrape_interval.min(length), pin: None, ..config.clone() };
    let (node, _) = Node::start(config, true)?;
    let mut watcher = Watcher::new(config.discovery())?;
    settle()?;
    let changes = watcher.scan();
    node.state().apply(changes, watcher.registry());
    tracing::info!("observing for {length:?}");
    let end = tokio::time::sleep(length);
    tokio::pin!(end);
    loop {
        tokio::select! {
            changes = watcher.next() => node.state().apply(changes, watcher.registry()),
            () = &mut end => break,
        }
    }
    Ok(node.state().round(true))
}

/// Gives up what only the start needed. Before anything waits, so that there is no other thread yet, whose capabilities would
/// be its own.
fn settle() -> Result<()> {
    // Loading took more than all that follows.
    own::give_memory_back();
    privileges::warn_of_gaps();
    privileges::give_up_what_started().context("privileges cannot be given up")?;
    if let Err(error) = confinement::filter_calls() {
        tracing::warn!("observing without a filter of system calls: {error}");
    }
    Ok(())
}

/// What SIGHUP reads anew.
struct Reload<'a> {
    args: &'a RunArgs,
    config: Config,
}

impl<'a> Reload<'a> {
    fn new(config: &Config, args: &'a RunArgs) -> Self {
        Self { args, config: config.clone() }
    }

    /// The tables of services and workloads as they are now; `None` if they are as before or cannot be read. The rest of the
    /// configuration is part of what runs already, and stays.
    fn again(&mut self) -> Option<StaticPeers> {
        let read = match Config::load(self.args) {
            Ok(read) => read,
            Err(error) => {
                tracing::error!("SIGHUP: the configuration stays as it was: {error}");
                return None;
            }
        };
        let peers = read.peers();
        let changed = peers != self.config.peers();
        self.config.peers = peers.clone();
        let rest = if read == self.config { "" } else { "; what else has changed needs a restart" };
        let (services, workloads) = (peers.services.len(), peers.workloads.len());
        tracing::info!("SIGHUP: the configuration names {services} services and {workloads} workloads{rest}");
        changed.then_some(peers)
    }
}

/// The node as it is observed, shared between the loop and the scrapes.
#[derive(Clone)]
struct Node(Arc<Mutex<State>>);

struct State {
    kernel: Kernel,
    /// Where it is remembered what the kernel's maps do not tell, if they outlive the process.
    store: Option<Store>,
    /// As it is remembered there.
    registry: Registry,
    /// The last that was to be remembered is not.
    forgetful: bool,
    proc_root: PathBuf,
    control_plane: ControlPlane,
    /// Pages that the configuration names.
    named_pages: Vec<ScrapeTarget>,
    scrape_proxies: bool,
    model: Model,
    collection_delay: DelayHistogram,
    peers: Arc<StaticPeers>,
    running: Vec<Arc<Sidecar>>,
    ended: Vec<Arc<Sidecar>>,
    components: Vec<Arc<Component>>,
    unattached: Vec<u64>,
    /// Cgroups that a running sidecar has left: what it listened with before goes on accepting there.
    moved: Vec<(ProcessId, u64)>,
    lingering: Vec<(Instant, u64)>,
    emitters: Vec<Emitter>,
    scrapes: Option<Box<dyn Fn() -> crate::model::EndpointStats + Send + Sync>>,
    percentiles: bool,
    limits: Limits,
    began: Instant,
    /// Since when there has been no sidecar, until that is said.
    lonely: Option<Instant>,
}

impl Node {
    /// Loads the programs; nothing new is attached yet. Percentiles cost reading the log-linear cells.
    fn start(config: &Config, percentiles: bool) -> Result<(Self, Memory)> {
        let started = SystemTime::now();
        own::raise_file_limit();
        let loaded = pinned::load(config);
        let (mut kernel, store, mut memory) = match (loaded, privileges::held().ok().and_then(privileges::lacking)) {
            (Err(error), Some(lack)) => return Err(error).context(lack),
            (loaded, _) => loaded?,
        };
        forward_log(&mut kernel);
        let is_nested = ProcFiles::new(config.proc_root.clone()).is_nested();
        if is_nested {
            tracing::info!(
                "process ids here are those of a nested pid namespace, which the kernel does not know: sidecars are told from \
                 their agents by Envoy's worker threads"
            );
        }
        kernel.tell_nested(is_nested);
        let retention = aggregate::DEFAULT_RETENTION;
        let model = match memory.model.take() {
            Some(remembered) => Model::restore(started, retention, remembered)
                .context("--pin: what the observer remembered is not whole: `observer detach --pin DIR` gives it up")?,
            None => Model::new(started, retention),
        };
        // Those that ran are known as ended until they are found again.
        let ended = memory.running.iter().chain(&memory.ended).take(REMEMBERED).cloned().collect();
        let mut control_plane = ControlPlane::new(config.scraping());
        control_plane.set(config.control_plane()).context("the control plane's pages cannot be read")?;
        let node = Self(Arc::new(Mutex::new(State {
            kernel,
            store,
            registry: memory.registry.clone(),
            forgetful: false,
            proc_root: config.proc_root.clone(),
            control_plane,
            named_pages: config.control_plane().collect(),
            scrape_proxies: config.scrape_proxies,
            model,
            collection_delay: DelayHistogram::default(),
            peers: Arc::new(config.peers()),
            running: Vec::new(),
            ended,
            components: Vec::new(),
            unattached: Vec::new(),
            moved: memory.moved.clone(),
            lingering: Vec::new(),
            emitters: Vec::new(),
            scrapes: None,
            percentiles,
            limits: Limits::default(),
            began: Instant::now(),
            lonely: Some(Instant::now()),
        })));
        Ok((node, memory))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends an interval that was due to end then, or one that is cut short: one snapshot for every emitter.
    fn report(&self, due: Option<Instant>) {
        let mut state = self.state();
        if let Some(due) = due {
            state.collection_delay.record(due.elapsed());
        }
        let snapshot = state.round(true);
        for emitter in &state.emitters {
            emitter.offer(snapshot.clone());
        }
    }
}

impl serve::Source for Node {
    fn snapshot(&self) -> Arc<Snapshot> {
        self.state().round(false)
    }
}

impl State {
    /// The one line that says what runs, where, and what it found.
    fn log_start(&self, emitters: &str, args: &RunArgs) {
        let gateways = self.running.iter().filter(|sidecar| sidecar.role == Role::Gateway).count();
        let none = |text: &str| if text.is_empty() { "none".to_owned() } else { text.to_owned() };
        tracing::info!(
            "mesh observer {} on Linux {}: {} sidecars, {gateways} gateways and {} control-plane processes found; emitters: {}; \
             configuration file: {}",
            env!("CARGO_PKG_VERSION"),
            rustix::system::uname().release().to_string_lossy(),
            self.running.len() - gateways,
            self.components.len(),
            none(emitters),
            none(&args.node.config.as_ref().map(|path| path.display().to_string()).unwrap_or_default()),
        );
    }

    /// Labels by these peers from now on.
    fn take_peers(&mut self, peers: Option<StaticPeers>) {
        if let Some(peers) = peers {
            self.peers = Arc::new(peers);
        }
    }

    /// Attaches to what came, detaches from what went.
    fn apply(&mut self, changes: Vec<Change>, registry: &Registry) {
        if self.store.is_some() && self.registry != *registry {
            self.registry = registry.clone();
            self.remember();
        }
        for change in changes {
            match change {
                Change::Found(sidecar) | Change::Updated(sidecar) => self.observe(sidecar),
                Change::Gone(sidecar) => self.leave(&sidecar),
                Change::ComponentFound(component) | Change::ComponentUpdated(component) => self.know(component),
                Change::ComponentGone(component) => self.forget(&component),
            }
        }
        self.follow_pages();
        self.remember();
    }

    /// Has the pages scraped that are named, and those of the processes that are here now.
    fn follow_pages(&mut self) {
        let named = &self.named_pages;
        let found = targets(&self.components, &self.running, self.scrape_proxies)
            .into_iter()
            .filter(|found| !named.iter().any(|named| named.is_same_page(found)));
        if let Err(error) = self.control_plane.set(named.iter().cloned().chain(found)) {
            tracing::error!("metrics pages cannot be read: {:#}", anyhow::Error::from(error));
        }
    }

    fn know(&mut self, component: Arc<Component>) {
        self.components.retain(|other| other.process != component.process);
        if let Ok(page) = &component.page {
            let (pid, evidence) = (component.process.pid, &page.evidence);
            tracing::info!(pid, evidence, "{} at {}", component.app, page.address);
        }
        self.components.push(component);
    }

    fn forget(&mut self, component: &Component) {
        self.components.retain(|other| other.process != component.process);
        tracing::info!(pid = component.process.pid, "{} has ended", component.app);
    }

    fn observe(&mut self, sidecar: Arc<Sidecar>) {
        let known = self.running.iter().position(|other| other.process == sidecar.process);
        let before = known.map(|at| self.running.swap_remove(at));
        self.moved.retain(|&left| left != (sidecar.process, sidecar.cgroup_id));
        if let Some(before) = before.as_ref().filter(|before| before.cgroup_id != sidecar.cgroup_id) {
            self.moved.push((before.process, before.cgroup_id));
            self.unattached.retain(|&id| id != before.cgroup_id);
        }
        if before.as_ref().is_some_and(|before| before.role != sidecar.role) {
            tracing::info!(
                pid = sidecar.process.pid,
                "{} is a {}: {}",
                name_of(&sidecar),
                sidecar.role,
                sidecar.evidence
            );
        }
        self.attach(&sidecar);
        self.running.push(sidecar);
        if let Some(before) = before {
            self.forget_processes(&before);
        }
        self.name_cgroups();
    }

    /// Says once that a sidecar is not observed, and once that it is.
    fn attach(&mut self, sidecar: &Sidecar) {
        let started = Instant::now();
        let (pid, path) = (sidecar.process.pid, sidecar.cgroup.display());
        match self.kernel.attach(sidecar) {
            Ok(true) => {
                let took = started.elapsed();
                self.unattached.retain(|&id| id != sidecar.cgroup_id);
                tracing::info!(pid, role = ?sidecar.role, "observing {} in {path}, attached in {took:.1?}", name_of(sidecar));
            }
            Ok(false) => {}
            Err(error) => {
                if !self.unattached.contains(&sidecar.cgroup_id) {
                    self.unattached.push(sidecar.cgroup_id);
                    tracing::error!(pid, "not observing {}: {:#}", name_of(sidecar), anyhow::Error::from(error));
                }
            }
        }
    }

    /// Tries again where the programs could not be attached: what was in their way may be gone.
    fn attach_refused(&mut self) {
        let refused = self.running.iter().filter(|sidecar| self.unattached.contains(&sidecar.cgroup_id));
        let refused: Vec<_> = refused.cloned().collect();
        refused.iter().for_each(|sidecar| self.attach(sidecar));
    }

    fn leave(&mut self, sidecar: &Arc<Sidecar>) {
        self.running.retain(|other| other.process != sidecar.process);
        self.forget_processes(sidecar);
        let left = self.moved.extract_if(.., |(process, _)| *process == sidecar.process).map(|(_, id)| id);
        let left: Vec<u64> = left.chain([sidecar.cgroup_id]).collect();
        left.into_iter().for_each(|cgroup_id| self.linger(cgroup_id));
        self.name_cgroups();
        self.ended.retain(|other| other.id != sidecar.id);
        // Its successor in the same pod may be there already.
        if self.running.iter().all(|other| other.id != sidecar.id) {
            self.ended.insert(0, sidecar.clone());
            self.ended.truncate(REMEMBERED);
        }
        tracing::info!(pid = sidecar.process.pid, "{} has ended", name_of(sidecar));
    }

    /// Forgets a sidecar's processes, except for numbers that are those of others now.
    fn forget_processes(&mut self, sidecar: &Sidecar) {
        let living: HashSet<u32> = self.running.iter().flat_map(|other| other.pids()).collect();
        sidecar.pids().filter(|pid| !living.contains(pid)).for_each(|pid| self.kernel.forget_process(pid));
    }

    fn linger(&mut self, cgroup_id: u64) {
        self.lingering.retain(|&(_, other)| other != cgroup_id);
        self.lingering.push((Instant::now() + LINGER, cgroup_id));
        self.unattached.retain(|&id| id != cgroup_id);
    }

    /// What must not wait for the next report: frees what ended, detaches from what is over, attaches where that was refused.
    fn keep_house(&mut self) {
        self.recycle();
        self.detach_left();
        self.attach_refused();
        // What ended is freed once its last figures are read. With percentiles the round that ends the interval reads them.
        if !self.percentiles && self.kernel.has_unread_ends() {
            self.round(false);
        }
        match self.lonely {
            _ if !self.running.is_empty() => self.lonely = Some(Instant::now()),
            Some(since) if since.elapsed() >= LONELY => {
                self.lonely = None;
                tracing::warn!(
                    "no sidecar has been found for a minute: `observer check` says what was looked at and why"
                );
            }
            _ => {}
        }
    }

    /// Frees in the kernel's maps what is nobody's any more.
    fn recycle(&mut self) {
        match self.kernel.recycle() {
            Ok(0) => {}
            Ok(series) => tracing::debug!("{series} series of ended sidecars are free again"),
            Err(error) => {
                tracing::error!("series of ended sidecars cannot be freed: {:#}", anyhow::Error::from(error));
            }
        }
    }

    /// Detaches from cgroups whose sidecars ended long enough ago or that have no sockets left, unless others have come.
    fn detach_left(&mut self) {
        let now = Instant::now();
        let is_due = |&(at, cgroup_id): &(Instant, u64)| at <= now || self.kernel.is_severed(cgroup_id);
        let (due, later): (Vec<_>, Vec<_>) = self.lingering.drain(..).partition(is_due);
        self.lingering = later;
        let severed = self.moved.extract_if(.., |(_, cgroup_id)| self.kernel.is_severed(*cgroup_id));
        let due: Vec<u64> = due.into_iter().map(|(_, id)| id).chain(severed.map(|(_, id)| id)).collect();
        for cgroup_id in due {
            let observed = self.running.iter().map(|sidecar| sidecar.cgroup_id);
            if observed.chain(self.moved.iter().map(|&(_, id)| id)).all(|other| other != cgroup_id) {
                self.kernel.detach(cgroup_id);
            }
        }
    }

    /// Where several sidecars share a cgroup, the programs take the oldest for the owner of what no process was seen on.
    fn name_cgroups(&mut self) {
        for sidecar in crate::discovery::cgroup_defaults(&self.running).into_values() {
            if let Err(error) = self.kernel.know_cgroup(sidecar) {
                tracing::error!("{}: {:#}", name_of(sidecar), anyhow::Error::from(error));
            }
        }
    }

    /// Reads everything once.
    fn round(&mut self, closes_interval: bool) -> Arc<Snapshot> {
        let at = SystemTime::now();
        let start = Instant::now();
        let wants_cells = closes_interval && self.percentiles;
        let mut round = self.model.begin(at, &self.running, &self.ended, &self.peers, closes_interval);
        let (kernel, error) = match self.kernel.read(wants_cells, |series| round.series(series)) {
            Ok(reading) => (Some(reading), None),
            Err(error) => (None, Some(format!("{:#}", anyhow::Error::from(error)))),
        };
        match &error {
            Some(error) => tracing::error!("reading the kernel's maps: {error}"),
            None if wants_cells || !self.percentiles => self.kernel.mark_read(),
            None => {}
        }
        for limit in kernel.iter().flat_map(|kernel| self.limits.newly_reached(&kernel.health)) {
            tracing::warn!("{limit}");
        }
        let mut outcomes = vec![Outcome { collector: "kernel", duration: start.elapsed(), error }];
        let start = Instant::now();
        let sidecars = self.running.iter().map(|sidecar| (sidecar.process, Some(&*sidecar.cgroup)));
        let components = self.components.iter().map(|component| (component.process, component.cgroup.as_deref()));
        let (processes, error) = procfs::read(&self.proc_root, sidecars.chain(components));
        outcomes.push(Outcome { collector: "procfs", duration: start.elapsed(), error });
        let usage = own::usage();
        let own = SelfMetrics {
            cpu: usage.cpu,
            resident_bytes: usage.resident_bytes,
            unattached: Some(self.unattached.len() as u64),
            collection_delay: self.collection_delay.clone(),
            emitters: self.emitters.iter().map(Emitter::stats).collect(),
            endpoint: self.scrapes.as_ref().map(|stats| stats()),
        };
        let scrapes = self.control_plane.read();
        let reading = Reading { at, steady: self.began.elapsed(), kernel, processes, scrapes, outcomes };
        let snapshot = round.finish(&reading, &self.components, &own);
        if self.model.take_changed() || self.forgetful {
            self.remember();
        }
        snapshot
    }
}

fn name_of(sidecar: &Sidecar) -> String {
    let workload = &sidecar.workload;
    match (&workload.namespace, workload.pod.as_ref().or(workload.name.as_ref())) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        (None, Some(name)) => name.clone(),
        _ if sidecar.process.is_process() => format!("process {}", sidecar.process.pid),
        _ => "a named cgroup".to_owned(),
    }
}

/// Hands the programs' log lines on, in a build that has any.
fn forward_log(kernel: &mut Kernel) {
    let Some(lines) = kernel.log() else { return };
    // SAFETY: the logger owns its file descriptor for as long as it lives, and nothing else closes it.
    let Ok(mut lines) = (unsafe { AsyncFd::register_with_interest(lines, Interest::READABLE) }) else { return };
    tokio::spawn(async move {
        while let Ok(mut ready) = lines.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    });
}

/// The node's name: what Kubernetes says, or the host's.
#[must_use]
pub fn node_name() -> String {
    let given = std::env::var("NODE_NAME").ok().filter(|name| !name.is_empty());
    given.or_else(|| host_name(Path::new("/proc/sys/kernel/hostname"))).unwrap_or_else(|| "unknown".to_owned())
}

fn host_name(path: &Path) -> Option<String> {
    let name = std::fs::read_to_string(path).ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}
