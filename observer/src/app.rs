//! The wiring and the one loop: changes on the node, the interval's tick and the signals that end it.

mod pinned;

use std::{
    collections::HashSet,
    future::Future,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result};
use tokio::{
    io::{Interest, unix::AsyncFd},
    signal::unix::{SignalKind, signal},
    time::MissedTickBehavior,
};

use crate::{
    collect::{
        Outcome, Reading,
        control_plane::{ControlPlane, Target},
        kernel::{Kernel, Store},
        own, procfs,
    },
    config::Config,
    confinement,
    discovery::{Change, Sidecar, component::Component, registry::Registry, target::targets, watch::Watcher},
    emit::{
        self, Emitter, Transport,
        spool::{Spool, directory_name},
        wavefront::{self, file::FileSink, http::HttpSink, token::TokenFile},
    },
    limits::Limits,
    memory::Memory,
    model::{Model, Own, Snapshot, cardinality, labels::Peers, lateness::Lateness},
    privileges,
    readiness::Readiness,
    serve,
};

/// Longest that the emitters' last reports may take at the end.
const FAREWELL: Duration = Duration::from_secs(5);
/// Time-out of one push.
const PUSH: Duration = Duration::from_secs(10);
/// How long programs stay attached for an ended sidecar's sockets, which its kernel closes after up to a minute
/// (`tcp_fin_timeout`).
const LINGER: Duration = Duration::from_secs(75);
/// Ended sidecars whose figures and addresses are remembered.
const REMEMBERED: usize = 1024;

/// Observes until SIGINT or SIGTERM.
///
/// # Errors
/// What keeps it from beginning: kernel, privileges, cgroups, a taken address. Later failures are logged and counted.
pub async fn run(config: &Config) -> Result<()> {
    let readiness = Readiness::new();
    let attaching = readiness.block("first look for sidecars");
    let (node, memory) = Node::start(config, !config.emit.is_empty())?;
    let mut watcher = Watcher::new(config.discovery())?;
    let server = serve::start(config.listen, node.clone(), readiness.pending()).await?;
    let emitters = start_emitters(config)?;
    settle()?;
    {
        let mut state = node.state();
        state.scrapes = Some(Box::new(server.reader()));
        state.emitters = emitters;
    }
    let (mut interrupted, mut terminated) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let changes = watcher.resume(memory.registry);
    node.state().resume(changes, watcher.registry(), memory.running);
    drop(attaching);
    let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + config.interval, config.interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            changes = watcher.next() => node.state().apply(changes, watcher.registry()),
            due = tick.tick() => node.report(Some(due.into_std())),
            _ = interrupted.recv() => break,
            _ = terminated.recv() => break,
        }
    }
    tracing::info!("stopping");
    node.report(None);
    let emitters = std::mem::take(&mut node.state().emitters);
    for emitter in emitters {
        emitter.finish(FAREWELL).await;
    }
    server.task.abort();
    Ok(())
}

/// Observes for a while and yields what was counted.
///
/// # Errors
/// As [`run`].
pub async fn snapshot(config: &Config, length: Duration) -> Result<Arc<Snapshot>> {
    // Whatever else is scraped seldom is to be scraped in that time.
    let config = &Config { interval: config.interval.min(length), pin: None, ..config.clone() };
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
    named_pages: Vec<Target>,
    scrape_proxies: bool,
    model: Model,
    lateness: Lateness,
    peers: Arc<Peers>,
    running: Vec<Arc<Sidecar>>,
    ended: Vec<Arc<Sidecar>>,
    components: Vec<Arc<Component>>,
    unattached: Vec<u64>,
    lingering: Vec<(Instant, u64)>,
    emitters: Vec<Emitter>,
    scrapes: Option<Box<dyn Fn() -> crate::model::ScrapeFigures + Send + Sync>>,
    percentiles: bool,
    limits: Limits,
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
        let retention = cardinality::DEFAULT_RETENTION;
        let model = match memory.model.take() {
            Some(remembered) => Model::resume(started, retention, remembered)
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
            lateness: Lateness::default(),
            peers: Arc::new(config.peers()),
            running: Vec::new(),
            ended,
            components: Vec::new(),
            unattached: Vec::new(),
            lingering: Vec::new(),
            emitters: Vec::new(),
            scrapes: None,
            percentiles,
            limits: Limits::default(),
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
            state.lateness.record(due.elapsed());
        }
        // What was detached the last time has been read since.
        state.recycle();
        state.detach_left();
        state.attach_refused();
        let snapshot = state.round(true);
        for emitter in &state.emitters {
            emitter.offer(snapshot.clone());
        }
    }
}

impl serve::Source for Node {
    fn snapshot(&self) -> Pin<Box<dyn Future<Output = Option<Arc<Snapshot>>> + Send + '_>> {
        Box::pin(async { Some(self.state().round(false)) })
    }
}

impl State {
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
            .filter_map(Target::found)
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
        if let Some(before) = before.as_ref().filter(|before| before.cgroup_id != sidecar.cgroup_id) {
            self.linger(before.cgroup_id);
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
        self.linger(sidecar.cgroup_id);
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
        for (_, cgroup_id) in due {
            if self.running.iter().all(|other| other.cgroup_id != cgroup_id) {
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
        if let Some(error) = &error {
            tracing::error!("reading the kernel's maps: {error}");
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
        let own = Own {
            cpu: usage.cpu,
            resident_bytes: usage.resident_bytes,
            unattached: Some(self.unattached.len() as u64),
            lateness: self.lateness.clone(),
            emitters: self.emitters.iter().map(Emitter::figures).collect(),
            scrapes: self.scrapes.as_ref().map(|figures| figures()),
        };
        let control_plane = self.control_plane.read();
        let reading = Reading { at, kernel, processes, control_plane, outcomes };
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

fn start_emitters(config: &Config) -> Result<Vec<Emitter>> {
    let start = |target: &emit::Target| {
        let encoder = wavefront::Lines::new(config.wavefront.clone(), &node_name())?;
        let (name, transport) = (target.to_string(), transport(config, target)?);
        // A file takes everything at once, or never.
        let directory = config.queue_dir.as_ref().filter(|_| !matches!(target, emit::Target::WavefrontFile(_)));
        let spool = directory.map(|directory| Spool::new(directory.join(directory_name(&name)), config.queue_bytes));
        Ok::<_, anyhow::Error>(Emitter::start(name, Box::new(encoder), transport, spool, emit::Limits::default()))
    };
    config.emit.iter().map(|target| start(target).with_context(|| format!("emitter {target}"))).collect()
}

fn transport(config: &Config, target: &emit::Target) -> Result<Box<dyn Transport>> {
    Ok(match target {
        emit::Target::WavefrontFile(path) => Box::new(FileSink::new(path)),
        emit::Target::WavefrontHttp(url) => Box::new(HttpSink::proxy(url.clone(), PUSH)?),
        emit::Target::WavefrontHttps(url) => {
            let token = config.wavefront_token_file.clone();
            let token =
                token.context("it needs an API token: put one in a file and name it with --wavefront-token-file")?;
            let ca_file = config.wavefront_ca_file.as_deref();
            Box::new(HttpSink::service(url.clone(), TokenFile::new(token), ca_file, PUSH)?)
        }
    })
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
