//! Scans /proc for sidecars and control-plane processes, and compares the result with the previous scan.
//!
//! A full scan costs one `readlink` and one read per process, and some twenty reads per new sidecar. A known sidecar
//! costs three reads, and two more per coresident process.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Change, DiscoveryConfig, Finding, ProcessId, Role, Sidecar, SidecarRule, Workload, bootstrap,
    cgroup::Hierarchy,
    component::{self, Component, ComponentRule, Context},
    container::Container,
    error::DiscoveryError,
    is_named, kubelet, pod_labels, printable,
    proc_files::{self, Executable, ProcFiles, agent_role, hidepid},
    process::{self, Classification, INBOUND_PORT, OUTBOUND_PORT, ProcessFacts},
    registry::Registry,
};

/// Maximum number of processes of a cgroup that are checked for pilot-agent.
const MAX_NEIGHBOURS: usize = 64;

/// Scans the node.
#[derive(Debug)]
pub struct Scanner {
    config: DiscoveryConfig,
    files: ProcFiles,
    hierarchy: Hierarchy,
    hidepid: Option<String>,
    is_nested: bool,
    registry: Registry,
    candidates: BTreeMap<u32, Candidate>,
    named: BTreeMap<PathBuf, Arc<Sidecar>>,
}

#[derive(Clone, Debug)]
enum Candidate {
    Observed {
        sidecar: Arc<Sidecar>,
        cgroup: String,
        /// Whether the classification cannot change any more.
        is_final: bool,
        warnings: Vec<String>,
    },
    Component {
        component: Arc<Component>,
        cgroup: String,
    },
    Refused {
        process: ProcessId,
        executable: String,
        reason: String,
    },
}

/// What a process may be by its executable.
enum Kind {
    Sidecar,
    Component(ComponentRule),
}

impl Candidate {
    fn process(&self) -> ProcessId {
        match self {
            Self::Observed { sidecar, .. } => sidecar.process,
            Self::Component { component, .. } => component.process,
            Self::Refused { process, .. } => *process,
        }
    }

    fn sidecar(&self) -> Option<&Arc<Sidecar>> {
        match self {
            Self::Observed { sidecar, .. } => Some(sidecar),
            Self::Component { .. } | Self::Refused { .. } => None,
        }
    }

    fn component(&self) -> Option<&Arc<Component>> {
        match self {
            Self::Component { component, .. } => Some(component),
            Self::Observed { .. } | Self::Refused { .. } => None,
        }
    }

    /// Returns the path from `/proc/PID/cgroup`; `None` if it is not needed.
    fn cgroup(&self) -> Option<&String> {
        match self {
            Self::Observed { cgroup, .. } | Self::Component { cgroup, .. } => Some(cgroup),
            Self::Refused { .. } => None,
        }
    }

    /// Whether the candidate needs no further examination.
    fn is_final(&self) -> bool {
        !self.is_pending()
            && self.component().is_none_or(|component| component.endpoint.as_ref().is_ok_and(|it| !it.is_guess))
    }

    /// Whether the candidate must be examined again soon.
    fn is_pending(&self) -> bool {
        match self {
            Self::Observed { is_final, .. } => !is_final,
            Self::Component { component, .. } => component.endpoint.is_err(),
            Self::Refused { .. } => true,
        }
    }

    fn found(&self) -> Option<Change> {
        let component = || self.component().cloned().map(Change::ComponentFound);
        self.sidecar().cloned().map(Change::Found).or_else(component)
    }

    fn updated(&self) -> Option<Change> {
        let component = || self.component().cloned().map(Change::ComponentUpdated);
        self.sidecar().cloned().map(Change::Updated).or_else(component)
    }

    fn gone(&self) -> Option<Change> {
        let component = || self.component().cloned().map(Change::ComponentGone);
        self.sidecar().cloned().map(Change::Gone).or_else(component)
    }
}

impl Scanner {
    /// Fails if there is no cgroup v2, no readable proc file system, or a named cgroup that is not one.
    pub fn new(config: DiscoveryConfig) -> Result<Self, DiscoveryError> {
        let files = ProcFiles::new(config.proc_root.clone());
        let mounts = files.own_mounts()?;
        let own = files.own_cgroup().unwrap_or_else(|| "/".to_owned());
        let hierarchy = Hierarchy::find(&mounts, config.cgroup_root.as_deref(), &own)?;
        let mut scanner = Self::with_hierarchy(config, files, hierarchy)?;
        scanner.hidepid = hidepid(&mounts, &scanner.config.proc_root);
        Ok(scanner)
    }

    fn with_hierarchy(config: DiscoveryConfig, files: ProcFiles, hierarchy: Hierarchy) -> Result<Self, DiscoveryError> {
        for cgroup in &config.cgroups {
            hierarchy.named(cgroup)?;
        }
        let (registry, candidates, named) = Default::default();
        let is_nested = files.is_nested();
        Ok(Self { config, files, hierarchy, hidepid: None, is_nested, registry, candidates, named })
    }

    /// Continues with the ids of an earlier observer.
    pub fn resume(&mut self, registry: Registry) {
        self.registry = registry;
    }

    /// Returns the assigned ids.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Releases the ids of processes that have ended while no observer ran.
    pub fn release_ended(&mut self) {
        let named = self.named.values().map(|sidecar| sidecar.process);
        let present = self.candidates.values().map(Candidate::process).chain(named).collect();
        self.registry.retain(&present);
    }

    /// Examines every process.
    pub fn scan(&mut self) -> Result<Vec<Change>, DiscoveryError> {
        let pids = self.files.pids()?;
        let present: BTreeSet<u32> = pids.iter().copied().collect();
        let ended: Vec<u32> = self.candidates.keys().filter(|pid| !present.contains(pid)).copied().collect();
        let mut changes: Vec<Change> = ended.into_iter().filter_map(|pid| self.forget(pid)).collect();
        let known = changes.len();
        for pid in pids {
            changes.extend(self.examine(pid));
        }
        if changes.len() > known {
            changes.extend(self.update_companions());
        }
        changes.extend(self.examine_named());
        Ok(changes)
    }

    /// Examines a process that has just started, or has had time to start up.
    pub fn examine_process(&mut self, pid: u32) -> Vec<Change> {
        let mut changes = self.examine(pid);
        if !changes.is_empty() {
            changes.extend(self.update_companions());
            changes.extend(self.examine_named());
        }
        changes
    }

    /// Handles the end of a process.
    pub fn ended(&mut self, process: ProcessId) -> Vec<Change> {
        if self.candidates.get(&process.pid).is_none_or(|candidate| candidate.process() != process) {
            return Vec::new();
        }
        let mut changes: Vec<Change> = self.forget(process.pid).into_iter().collect();
        changes.extend(self.examine_named());
        changes
    }

    /// Whether a process has the executable of a sidecar or component, observed or not.
    pub fn is_candidate(&self, pid: u32) -> bool {
        self.candidates.contains_key(&pid)
    }

    /// Whether it is a candidate that is not observed, may change its classification, or has no known /metrics
    /// endpoint.
    pub fn is_pending(&self, pid: u32) -> bool {
        self.candidates.get(&pid).is_some_and(Candidate::is_pending)
    }

    /// Returns all processes with the executable of a sidecar or component, observed or not.
    pub fn candidates(&self) -> impl Iterator<Item = u32> {
        self.candidates.keys().copied()
    }

    /// Returns all observed sidecars.
    pub fn sidecars(&self) -> impl Iterator<Item = &Arc<Sidecar>> {
        self.candidates.values().filter_map(Candidate::sidecar).chain(self.named.values())
    }

    /// Returns all control-plane processes.
    pub fn components(&self) -> impl Iterator<Item = &Arc<Component>> {
        self.candidates.values().filter_map(Candidate::component)
    }

    /// Returns the proc file system.
    pub fn files(&self) -> &ProcFiles {
        &self.files
    }

    /// Returns the cgroup v2 hierarchy.
    pub fn hierarchy(&self) -> &Hierarchy {
        &self.hierarchy
    }

    /// Returns the `hidepid` option of the proc file system, if it hides anything.
    pub fn hidepid(&self) -> Option<&str> {
        self.hidepid.as_deref()
    }

    /// Whether process ids are those of a nested pid namespace.
    pub fn is_nested(&self) -> bool {
        self.is_nested
    }

    /// Returns what is observed, what is not and why, and warnings.
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings: Vec<Finding> = self.sidecars().cloned().map(Finding::Observed).collect();
        findings.extend(self.components().cloned().map(Finding::Component));
        for candidate in self.candidates.values() {
            if let Candidate::Refused { process, executable, reason } = candidate {
                let (executable, reason) = (executable.clone(), reason.clone());
                findings.push(Finding::Refused { process: *process, executable, reason });
            }
        }
        let warnings = self.candidates.values().flat_map(|candidate| match candidate {
            Candidate::Observed { warnings, .. } => warnings.clone(),
            Candidate::Component { .. } | Candidate::Refused { .. } => Vec::new(),
        });
        findings.extend(warnings.chain(self.shared_cgroups()).chain(self.nested_cgroups()).map(Finding::Warning));
        findings
    }

    fn shared_cgroups(&self) -> impl Iterator<Item = String> {
        let mut cgroups: BTreeMap<&Path, Vec<&Sidecar>> = BTreeMap::new();
        for sidecar in self.sidecars() {
            cgroups.entry(&sidecar.cgroup).or_default().push(sidecar);
        }
        cgroups.into_iter().filter_map(move |(cgroup, mut sidecars)| {
            sidecars.sort_by_key(|sidecar| (sidecar.process.start_time, sidecar.process.pid));
            let first = sidecars.first()?;
            if sidecars.iter().all(|sidecar| sidecar.id == first.id) {
                return None;
            }
            let pids: Vec<String> = sidecars.iter().map(|sidecar| sidecar.process.pid.to_string()).collect();
            let which = if self.is_nested {
                "in a nested pid namespace, where they are not distinguished, every connection"
            } else {
                "a connection that none of them was seen to open or accept"
            };
            Some(format!(
                "cgroup {} holds {} sidecars (processes {}): {which} is counted for process {}, which started first; give \
                 each a cgroup of its own",
                printable(cgroup),
                sidecars.len(),
                pids.join(", "),
                first.process.pid
            ))
        })
    }

    /// Programs of a cgroup run for the cgroups below it too.
    fn nested_cgroups(&self) -> impl Iterator<Item = String> {
        self.named.values().flat_map(|above| {
            let below =
                self.sidecars().filter(|below| below.cgroup != above.cgroup && below.cgroup.starts_with(&above.cgroup));
            below.map(|below| {
                format!(
                    "--cgroup {} is above {}, whose sidecar is observed by itself: leave that option out",
                    printable(&above.cgroup),
                    printable(&below.cgroup)
                )
            })
        })
    }

    /// A vanished process is not an error.
    fn examine(&mut self, pid: u32) -> Vec<Change> {
        let looked = self.classify_process(pid);
        match looked {
            Ok(Some(candidate)) => self.replace(pid, candidate),
            Ok(None) => self.forget(pid).into_iter().collect(),
            Err(error) if has_vanished(&error) => self.forget(pid).into_iter().collect(),
            Err(error) => {
                tracing::debug!(pid, %error, "process cannot be read");
                Vec::new()
            }
        }
    }

    fn classify_process(&mut self, pid: u32) -> io::Result<Option<Candidate>> {
        // Most processes are neither, which is all that is read of them.
        if self.kind(&self.files, pid)?.is_none() {
            return Ok(None);
        }
        let files = self.files.with_open_dir(pid)?;
        let process = ProcessId { pid, start_time: files.start_time(pid)? };
        let Some((kind, executable)) = self.kind(&files, pid)? else { return Ok(None) };
        if let Some(known) = self.candidates.get(&pid)
            && known.process() == process
            && known.is_final()
            && known.cgroup() == Some(&files.cgroup(pid)?)
        {
            return Ok(Some(known.clone()));
        }
        self.build_candidate(&files, process, executable, kind).map(Some)
    }

    /// Returns what a process may be by the name of its executable or the names it was started with.
    fn kind(&self, files: &ProcFiles, pid: u32) -> io::Result<Option<(Kind, Executable)>> {
        let executable = files.executable(pid)?;
        let cut = executable.path.is_none();
        let of = |name: &str, cut: bool| {
            if self.config.executables.iter().any(|max_value_bytes| is_named(max_value_bytes, name, cut)) {
                return Some(Kind::Sidecar);
            }
            self.config
                .components
                .iter()
                .find(|rule| is_named(&rule.executable, name, cut))
                .cloned()
                .map(Kind::Component)
        };
        if let Some(kind) = of(&executable.name, cut) {
            return Ok(Some((kind, executable)));
        }
        // If the link cannot be read, the kernel's command name is used.
        let arguments = permitted(files.first_arguments(pid))?.unwrap_or_default();
        let invocation_names = proc_files::invocation_names(&executable, &arguments);
        Ok(invocation_names.iter().find_map(|name| of(name, false)).map(|kind| (kind, executable)))
    }

    fn build_candidate(
        &mut self,
        files: &ProcFiles,
        process: ProcessId,
        executable: Executable,
        kind: Kind,
    ) -> io::Result<Candidate> {
        let pid = process.pid;
        let mut facts = ProcessFacts {
            process,
            executable,
            environment: permitted(files.environment(pid, process::max_value_bytes))?,
            node_type: None,
            bootstrap: None,
            agent: None,
            listening: None,
            cgroup: files.cgroup(pid)?,
        };
        match kind {
            Kind::Component(rule) => self.component(files, facts, &rule),
            Kind::Sidecar => {
                let arguments = permitted(files.command_line(pid))?.unwrap_or_default();
                facts.node_type = proc_files::node_type(&arguments);
                facts.bootstrap = bootstrap::node_type(files, pid, &arguments);
                facts.agent = self.agent(files, pid, &facts.cgroup);
                facts.listening = permitted(files.sockets(pid, |_| true))?;
                Ok(self.sidecar(files, facts))
            }
        }
    }

    /// Returns the role of the pilot-agent that started the process, or of one in its cgroup.
    fn agent(&self, files: &ProcFiles, pid: u32, cgroup: &str) -> Option<String> {
        let directory = self.hierarchy.directory(cgroup).ok();
        let neighbours = directory.iter().flat_map(|directory| members(directory)).take(MAX_NEIGHBOURS);
        let parent = files.parent(pid).ok().flatten();
        parent.into_iter().chain(neighbours).find_map(|other| agent_role(&self.files.first_arguments(other).ok()?))
    }

    fn component(&self, files: &ProcFiles, facts: ProcessFacts, rule: &ComponentRule) -> io::Result<Candidate> {
        let pid = facts.process.pid;
        let netns_inode = permitted(files.netns_inode(pid))?;
        let (workload, mut addresses) = process::identity(&facts, None, || None);
        addresses.extend(files.addresses(pid));
        let context = Context {
            sockets: permitted(files.sockets(pid, |_| true))?,
            configured: rule.port,
            argument: permitted(files.monitoring_port(pid))?.flatten(),
            addresses,
            local_only: facts.variable("METRICS_LOCALHOST_ACCESS_ONLY") == Some("true"),
            same_namespace: netns_inode.is_some() && netns_inode == self.files.own_netns_inode(),
        };
        let component = Component {
            process: facts.process,
            app: rule.app().to_owned(),
            cgroup: self.hierarchy.directory(&facts.cgroup).ok(),
            container: Container::of_cgroup(&facts.cgroup),
            workload: Arc::new(workload),
            endpoint: component::endpoint(&context),
        };
        Ok(Candidate::Component { component: Arc::new(component), cgroup: facts.cgroup })
    }

    fn sidecar(&mut self, files: &ProcFiles, facts: ProcessFacts) -> Candidate {
        let (process, pid) = (facts.process, facts.process.pid);
        let executable = facts.executable.name.clone();
        let rule = facts.rule(&self.config.rules).cloned();
        let rule = rule.as_ref();
        let (role, evidence, is_final) = match process::classify(&facts, rule) {
            Classification::Observed { role, evidence, is_final } => (role, evidence, is_final),
            Classification::Refused(reason) => return Candidate::Refused { process, executable, reason },
        };
        let located = self
            .hierarchy
            .directory(&facts.cgroup)
            .and_then(|directory| self.hierarchy.id(&directory).map(|id| (directory, id)));
        let (cgroup, cgroup_id) = match located {
            Ok(located) => located,
            Err(error) => return Candidate::Refused { process, executable, reason: error.to_string() },
        };
        let mut warnings = process::warnings(&facts, rule, role);
        let uid = Container::of_cgroup(&facts.cgroup).pod_uid;
        let root = files.root_directory(pid);
        let (mut workload, mut addresses) = process::identity(&facts, rule, || pod_labels::read(&root));
        let mut is_disputed = false;
        if let Some((real, problem)) = self.impostor(process, &workload, uid.as_deref(), rule) {
            (workload, is_disputed) = (real, true);
            warnings.push(problem);
        }
        if rule.is_none_or(|rule| rule.addresses.is_empty()) {
            addresses = process::own_addresses(addresses, files.addresses(pid));
        }
        let sidecar = Sidecar {
            id: self.registry.assign(process, &workload, uid.as_deref(), &cgroup),
            process,
            role,
            evidence,
            coresidents: Vec::new(),
            is_cgroup_shared: false,
            cgroup,
            cgroup_id,
            netns_inode: files.netns_inode(pid).unwrap_or_default(),
            addresses,
            workload: Arc::new(workload),
        };
        let (sidecar, cgroup) = (Arc::new(sidecar), facts.cgroup);
        Candidate::Observed { sidecar, cgroup, is_final: is_final && !is_disputed, warnings }
    }

    /// Returns the real identity of a process whose environment names another pod than its cgroup, and a warning. The
    /// configuration file may override the pod.
    fn impostor(
        &mut self,
        process: ProcessId,
        workload: &Workload,
        uid: Option<&str>,
        rule: Option<&SidecarRule>,
    ) -> Option<(Workload, String)> {
        let (namespace, pod) = (workload.namespace.as_ref()?, workload.pod.as_ref()?);
        if rule.is_some_and(|rule| rule.workload.pod.is_some()) {
            return None;
        }
        let claim = format!("process {} says that it is in pod {namespace}/{pod}", process.pid);
        let known = uid.and_then(|uid| kubelet::pod_of(&self.files.root_directory(1), uid));
        if let Some((real_namespace, real_pod)) = known {
            if (&real_namespace, &real_pod) == (namespace, pod) {
                return None;
            }
            let problem = format!("{claim}, but its cgroup is that of {real_namespace}/{real_pod}, whose name it gets");
            let real = Workload { namespace: Some(real_namespace), pod: Some(real_pod), ..Workload::default() };
            return Some((real, problem));
        }
        let rival = self.registry.name_conflict(process, namespace, pod, uid)?;
        if rival.start_time > process.start_time {
            // It was only examined first; the next examination decides.
            if let Some(Candidate::Observed { is_final, .. }) = self.candidates.get_mut(&rival.pid) {
                *is_final = false;
            }
            return None;
        }
        let problem = format!(
            "{claim}, as process {} does, which was there before it in a cgroup of another pod: it gets no name for as long as \
             that runs",
            rival.pid
        );
        Some((Workload::default(), problem))
    }

    fn replace(&mut self, pid: u32, mut candidate: Candidate) -> Vec<Change> {
        if let Candidate::Observed { sidecar, .. } = &mut candidate {
            let coresidents = self.coresidents(&sidecar.cgroup, pid);
            // A process that has just started may have become pilot-agent.
            let is_shared = self.is_shared(&coresidents);
            if coresidents != sidecar.coresidents || is_shared != sidecar.is_cgroup_shared {
                let sidecar = Arc::make_mut(sidecar);
                (sidecar.coresidents, sidecar.is_cgroup_shared) = (coresidents, is_shared);
            }
        }
        let before = self.candidates.get(&pid).filter(|before| before.process() == candidate.process()).cloned();
        let mut changes = Vec::new();
        if before.is_none() {
            changes.extend(self.forget(pid));
        }
        let sidecar = before.as_ref().and_then(Candidate::sidecar);
        let component = before.as_ref().and_then(Candidate::component);
        let is_same = sidecar.map(|it| it.id) == candidate.sidecar().map(|it| it.id)
            && component.is_some() == candidate.component().is_some();
        if !is_same {
            if sidecar.is_some() && candidate.sidecar().is_none() {
                self.registry.release(candidate.process());
            }
            changes.extend(before.as_ref().and_then(Candidate::gone));
            changes.extend(candidate.found());
        } else if sidecar != candidate.sidecar() || component != candidate.component() {
            changes.extend(candidate.updated());
        }
        self.candidates.insert(pid, candidate);
        changes
    }

    fn forget(&mut self, pid: u32) -> Option<Change> {
        let candidate = self.candidates.remove(&pid)?;
        self.registry.release(candidate.process());
        candidate.gone()
    }

    /// Returns the processes of a cgroup other than sidecars. `cgroup.procs` lists those of other pid namespaces as 0.
    fn coresidents(&self, cgroup: &Path, own: u32) -> Vec<ProcessId> {
        members(cgroup)
            .filter(|&pid| pid != own && self.candidates.get(&pid).is_none_or(|other| other.sidecar().is_none()))
            .filter_map(|pid| Some(ProcessId { pid, start_time: self.files.start_time(pid).ok()? }))
            .collect()
    }

    fn is_shared(&self, coresidents: &[ProcessId]) -> bool {
        let is_agent = |pid| self.files.first_arguments(pid).is_ok_and(|arguments| agent_role(&arguments).is_some());
        coresidents.iter().any(|companion| !is_agent(companion.pid))
    }

    /// Removes sidecars from the coresident processes of others that were found before them.
    fn update_companions(&mut self) -> Vec<Change> {
        let observed: BTreeSet<u32> =
            self.candidates.iter().filter(|(_, it)| it.sidecar().is_some()).map(|(pid, _)| *pid).collect();
        let mut updated = Vec::new();
        for sidecar in self.candidates.values().filter_map(Candidate::sidecar) {
            let is_companion = |companion: &&ProcessId| !observed.contains(&companion.pid);
            let coresidents: Vec<ProcessId> = sidecar.coresidents.iter().filter(is_companion).copied().collect();
            if coresidents != sidecar.coresidents {
                let is_cgroup_shared = self.is_shared(&coresidents);
                updated.push(Arc::new(Sidecar { coresidents, is_cgroup_shared, ..Sidecar::clone(sidecar) }));
            }
        }
        for changed in &updated {
            if let Some(Candidate::Observed { sidecar, .. }) = self.candidates.get_mut(&changed.process.pid) {
                *sidecar = Arc::clone(changed);
            }
        }
        updated.into_iter().map(Change::Updated).collect()
    }

    /// Examines the named cgroups without a recognised sidecar.
    fn examine_named(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        for path in self.config.cgroups.clone() {
            let taken =
                |cgroup: &Path| self.candidates.values().any(|it| it.sidecar().is_some_and(|s| s.cgroup == cgroup));
            let there = self.hierarchy.named(&path).ok().filter(|cgroup| !taken(cgroup));
            let sidecar = there.and_then(|cgroup| self.unrecognised(cgroup));
            match (self.named.get(&path), sidecar) {
                (None, Some(sidecar)) => {
                    changes.push(Change::Found(Arc::clone(&sidecar)));
                    self.named.insert(path, sidecar);
                }
                (Some(before), Some(sidecar)) if **before != *sidecar => {
                    let same = before.cgroup_id == sidecar.cgroup_id;
                    if !same {
                        self.registry.release(before.process);
                        changes.push(Change::Gone(Arc::clone(before)));
                    }
                    changes.push(if same { Change::Updated } else { Change::Found }(Arc::clone(&sidecar)));
                    self.named.insert(path, sidecar);
                }
                (Some(before), None) => {
                    self.registry.release(before.process);
                    changes.extend(self.named.remove(&path).map(Change::Gone));
                }
                _ => {}
            }
        }
        changes
    }

    fn unrecognised(&mut self, cgroup: PathBuf) -> Option<Arc<Sidecar>> {
        let cgroup_id = self.hierarchy.id(&cgroup).ok()?;
        let pids: Vec<u32> = members(&cgroup).collect();
        let redirected = pids.iter().any(|&pid| {
            let listening = self.files.sockets(pid, |port| [OUTBOUND_PORT, INBOUND_PORT].contains(&port));
            listening.is_ok_and(|sockets| !sockets.listeners.is_empty())
        });
        let (role, what) = if redirected {
            (Role::Sidecar, "a process in it listens on 15001 or 15006")
        } else {
            (Role::Gateway, "no process in it listens on 15001 or 15006")
        };
        let netns_inode = pids.iter().find_map(|&pid| self.files.netns_inode(pid).ok()).unwrap_or_default();
        let workload = Workload::default();
        let mut sidecar = Sidecar {
            id: 0,
            process: ProcessId::of_cgroup(cgroup_id),
            role,
            evidence: format!("--cgroup; {what}"),
            cgroup,
            cgroup_id,
            netns_inode,
            addresses: Vec::new(),
            coresidents: Vec::new(),
            is_cgroup_shared: true,
            workload: Arc::new(workload),
        };
        sidecar.id = self.registry.assign(sidecar.process, &sidecar.workload, None, &sidecar.cgroup);
        Some(Arc::new(sidecar))
    }
}

fn members(cgroup: &Path) -> impl Iterator<Item = u32> {
    let pids = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    pids.lines().filter_map(|pid| pid.parse().ok()).filter(|&pid| pid != 0).collect::<Vec<u32>>().into_iter()
}

fn permitted<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(None),
        Err(error) => Err(error),
    }
}

/// A read fails with ENOENT or ESRCH if the process has ended.
fn has_vanished(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::discovery::cgroup_defaults;

    const SIDECAR: &[(&str, &str)] = &[
        ("POD_NAME", "reviews-1"),
        ("POD_NAMESPACE", "default"),
        ("INSTANCE_IP", "10.0.0.1"),
        ("ISTIO_META_WORKLOAD_NAME", "reviews"),
    ];

    /// A proc file system and a cgroup hierarchy made of plain files.
    struct Host {
        proc: tempfile::TempDir,
        cgroups: tempfile::TempDir,
    }

    impl Host {
        fn new() -> Self {
            Self { proc: tempfile::tempdir().unwrap(), cgroups: tempfile::tempdir().unwrap() }
        }

        fn scanner(&self, named: &[&str]) -> Result<Scanner, DiscoveryError> {
            let config = DiscoveryConfig {
                proc_root: self.proc.path().to_owned(),
                cgroup_root: None,
                executables: vec!["envoy".to_owned()],
                components: vec!["pilot-discovery".parse().unwrap(), "etcd:2379".parse().unwrap()],
                cgroups: named.iter().map(PathBuf::from).collect(),
                rules: Vec::new(),
            };
            let files = ProcFiles::new(config.proc_root.clone());
            Scanner::with_hierarchy(config, files, Hierarchy::plain(self.cgroups.path()))
        }

        fn file(&self, pid: u32, name: &str) -> PathBuf {
            self.proc.path().join(pid.to_string()).join(name)
        }

        fn start(&self, pid: u32, started: u64, executable: &str, cgroup: &str, environment: &[(&str, &str)]) {
            fs::create_dir_all(self.file(pid, "ns")).unwrap();
            fs::create_dir_all(self.file(pid, "net")).unwrap();
            fs::create_dir_all(self.file(pid, "fd")).unwrap();
            symlink(executable, self.file(pid, "exe")).unwrap();
            symlink("net:[4026531840]", self.file(pid, "ns/net")).unwrap();
            let zeros = "0 ".repeat(18);
            fs::write(self.file(pid, "stat"), format!("{pid} (e) n) S {zeros}{started} {}\n", "0 ".repeat(30)))
                .unwrap();
            let environ: String = environment.iter().map(|(name, value)| format!("{name}={value}\0")).collect();
            fs::write(self.file(pid, "environ"), environ).unwrap();
            fs::write(self.file(pid, "cmdline"), format!("{executable}\0")).unwrap();
            fs::write(self.file(pid, "net/tcp"), "header\n").unwrap();
            self.place(pid, cgroup);
        }

        fn place(&self, pid: u32, cgroup: &str) {
            fs::write(self.file(pid, "cgroup"), format!("4:cpu:/x\n0::{cgroup}\n")).unwrap();
            let directory = self.cgroups.path().join(cgroup.trim_start_matches('/'));
            fs::create_dir_all(&directory).unwrap();
            let members = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            fs::write(directory.join("cgroup.procs"), format!("{members}{pid}\n")).unwrap();
        }

        fn arguments(&self, pid: u32, arguments: &[&str]) {
            fs::write(self.file(pid, "cmdline"), arguments.join("\0") + "\0").unwrap();
        }

        fn parent(&self, pid: u32, started: u64, parent: u32) {
            let stat = format!("{pid} (e) S {parent} {}{started} {}\n", "0 ".repeat(17), "0 ".repeat(30));
            fs::write(self.file(pid, "stat"), stat).unwrap();
        }

        fn listen(&self, pid: u32, port: u16, inode: u64, own: bool) {
            let line = format!("h\n 0: 00000000:{port:04X} 00000000:0000 0A 0:0 0:0 0 0 0 {inode} 1\n");
            fs::write(self.file(pid, "net/tcp"), line).unwrap();
            if own {
                symlink(format!("socket:[{inode}]"), self.file(pid, "fd/3")).unwrap();
            }
        }

        fn end(&self, pid: u32) {
            fs::remove_dir_all(self.proc.path().join(pid.to_string())).unwrap();
        }
    }

    fn found(changes: &[Change]) -> &Arc<Sidecar> {
        match changes {
            [Change::Found(sidecar)] => sidecar,
            changes => panic!("one found expected: {changes:?}"),
        }
    }

    #[test]
    fn finds_a_sidecar_with_everything_it_says() {
        let host = Host::new();
        host.start(1, 1, "/sbin/init", "/", &[]);
        host.start(10, 500, "/usr/local/bin/envoy (deleted)", "/pods/a", SIDECAR);
        host.start(11, 400, "/usr/local/bin/pilot-agent", "/pods/a", SIDECAR);
        let mut scanner = host.scanner(&[]).unwrap();
        let changes = scanner.scan().unwrap();
        let sidecar = found(&changes);
        assert_eq!((sidecar.id, sidecar.process), (1, ProcessId { pid: 10, start_time: 500 }));
        assert_eq!(sidecar.role, Role::Sidecar);
        assert_eq!(sidecar.coresidents, [ProcessId { pid: 11, start_time: 400 }]);
        assert_eq!(sidecar.netns_inode, 4_026_531_840);
        assert_eq!(sidecar.cgroup, host.cgroups.path().join("pods/a"));
        assert_eq!(sidecar.workload.name.as_deref(), Some("reviews"));
        assert_eq!(scanner.scan().unwrap(), []);
    }

    #[test]
    fn a_container_restarted_keeps_its_number() {
        let host = Host::new();
        host.start(10, 500, "/envoy", "/pods/a", SIDECAR);
        let mut scanner = host.scanner(&[]).unwrap();
        let first = found(&scanner.scan().unwrap()).clone();
        host.end(10);
        assert_eq!(scanner.scan().unwrap(), [Change::Gone(first.clone())]);
        host.start(20, 900, "/envoy", "/pods/a-again", SIDECAR);
        assert_eq!(found(&scanner.examine_process(20)).id, first.id);
        // The same process number by another process.
        host.end(20);
        host.start(20, 950, "/envoy", "/pods/a-again", SIDECAR);
        let changes = scanner.scan().unwrap();
        assert!(matches!(&changes[..], [Change::Gone(_), Change::Found(again)] if again.id == first.id), "{changes:?}");
    }

    #[test]
    fn its_end_is_taken_once() {
        let host = Host::new();
        host.start(10, 500, "/envoy", "/pods/a", SIDECAR);
        let mut scanner = host.scanner(&[]).unwrap();
        let process = found(&scanner.scan().unwrap()).process;
        host.end(10);
        assert_eq!(scanner.ended(ProcessId { start_time: 1, ..process }), []);
        assert_eq!(scanner.ended(process).len(), 1);
        assert_eq!(scanner.ended(process), []);
        assert_eq!(scanner.scan().unwrap(), []);
    }

    #[test]
    fn a_young_candidate_is_decided_when_it_listens() {
        let host = Host::new();
        host.start(10, 500, "/envoy", "/service", &[]);
        let mut scanner = host.scanner(&[]).unwrap();
        assert_eq!(scanner.examine_process(10), []);
        assert!(scanner.is_candidate(10));
        assert!(matches!(&scanner.findings()[..], [Finding::Refused { reason, .. }] if reason.contains("15001")));
        // Another process of its network namespace listens, not this one.
        host.listen(10, 15001, 77, false);
        assert_eq!(scanner.examine_process(10), []);
        host.listen(10, 15001, 77, true);
        assert_eq!(found(&scanner.examine_process(10)).evidence, "listens on 15001");
    }

    #[test]
    fn a_role_that_was_not_known_yet_is_learned_later() {
        let host = Host::new();
        host.start(10, 500, "/envoy", "/pods/a", SIDECAR);
        let mut scanner = host.scanner(&[]).unwrap();
        let first = found(&scanner.examine_process(10)).clone();
        assert_eq!(first.role, Role::Sidecar);
        assert!(scanner.is_pending(10), "it does not listen yet");
        assert_eq!(scanner.examine_process(10), []);
        host.listen(10, 8080, 77, true);
        let changes = scanner.examine_process(10);
        let [Change::Updated(gateway)] = &changes[..] else { panic!("{changes:?}") };
        assert_eq!((gateway.role, gateway.id), (Role::Gateway, first.id));
        assert!(gateway.evidence.ends_with("listens on 8080 and on neither 15001 nor 15006"), "{}", gateway.evidence);
        // pilot-agent comes back, and says more.
        host.start(11, 600, "/usr/local/bin/pilot-agent", "/pods/a", SIDECAR);
        host.arguments(11, &["/usr/local/bin/pilot-agent", "proxy", "sidecar"]);
        let changes = scanner.examine_process(10);
        let [Change::Updated(sidecar)] = &changes[..] else { panic!("{changes:?}") };
        assert_eq!((sidecar.role, sidecar.coresidents.len(), sidecar.is_cgroup_shared), (Role::Sidecar, 1, false));
        assert!(!scanner.is_pending(10));
    }

    #[test]
    fn a_gateway_is_known_by_its_bootstrap_and_by_its_parent() {
        let (host, root) = (Host::new(), tempfile::tempdir().unwrap());
        fs::create_dir_all(root.path().join("etc/istio/proxy")).unwrap();
        let bootstrap = r#"{"node":{"id":"router~10.0.0.1~edge.istio-system~istio-system.svc"}}"#;
        fs::write(root.path().join("etc/istio/proxy/envoy-rev.json"), bootstrap).unwrap();
        let environment = [SIDECAR, &[("ISTIO_META_INTERCEPTION_MODE", "REDIRECT")]].concat();
        for pid in [10, 20] {
            host.start(pid, 500, "/usr/local/bin/envoy", &format!("/pods/{pid}"), &environment);
            host.listen(pid, 8080, u64::from(pid), true);
            host.arguments(pid, &["/usr/local/bin/envoy", "-c", "etc/istio/proxy/envoy-rev.json"]);
        }
        for link in ["root", "cwd"] {
            symlink(root.path(), host.file(10, link)).unwrap();
        }
        host.start(19, 400, "/usr/local/bin/pilot-agent", "/pods/else", SIDECAR);
        host.arguments(19, &["/usr/local/bin/pilot-agent", "proxy", "router", "--domain", "x.svc.cluster.local"]);
        host.parent(20, 500, 19);
        let mut scanner = host.scanner(&[]).unwrap();
        scanner.scan().unwrap();
        let gateways: Vec<(Role, &str)> = scanner.sidecars().map(|it| (it.role, it.evidence.as_str())).collect();
        let expected = [
            (Role::Gateway, "the node id of its bootstrap says router"),
            (Role::Gateway, "pilot-agent's command line says router"),
        ];
        assert_eq!(gateways, expected);
        assert!(!scanner.is_pending(10) && !scanner.is_pending(20));
    }

    #[test]
    fn an_executable_goes_by_the_name_that_it_is_called() {
        let host = Host::new();
        for (pid, executable, arguments) in [
            (10, "/opt/envoy-1.30", &["/usr/local/bin/envoy", "-c", "x"][..]),
            (11, "/nix/store/x/bin/.envoy-wrapped", &["/nix/store/x/bin/.envoy-wrapped"]),
            (12, "/lib64/ld-linux-x86-64.so.2", &["/lib64/ld-linux-x86-64.so.2", "--library-path", "/x", "/opt/envoy"]),
            (13, "/opt/proxy", &["/opt/proxy", "envoy"]),
            (14, "/opt/istiod-1.30", &["pilot-discovery", "discovery"]),
        ] {
            host.start(pid, 500, executable, &format!("/pods/{pid}"), SIDECAR);
            host.arguments(pid, arguments);
        }
        let mut scanner = host.scanner(&[]).unwrap();
        scanner.scan().unwrap();
        assert_eq!(scanner.candidates().collect::<Vec<u32>>(), [10, 11, 12, 14]);
        assert_eq!((scanner.sidecars().count(), scanner.components().count()), (3, 1));
    }

    /// The cgroup of a pod with a uid.
    fn pod_cgroup(digit: char) -> String {
        let uid = "00000000-3c5c-4a9e-8f0e-0123456789ab".replace("00000000", &digit.to_string().repeat(8));
        format!("/kubepods/burstable/pod{uid}/{}", digit.to_string().repeat(64))
    }

    #[test]
    fn another_pods_name_is_not_had_by_claiming_it() {
        let host = Host::new();
        host.start(10, 500, "/envoy", &pod_cgroup('1'), SIDECAR);
        let mut scanner = host.scanner(&[]).unwrap();
        let victim = found(&scanner.scan().unwrap()).clone();
        host.start(20, 600, "/envoy", &pod_cgroup('2'), SIDECAR);
        let impostor = found(&scanner.examine_process(20)).clone();
        assert_ne!(impostor.id, victim.id);
        assert_eq!(*impostor.workload, Workload::default());
        let warning = scanner.findings().into_iter().find_map(|finding| match finding {
            Finding::Warning(warning) => Some(warning),
            _ => None,
        });
        assert!(warning.unwrap().contains("process 20 says that it is in pod default/reviews-1, as process 10 does"));
        // A container that was restarted is no impostor.
        host.start(11, 700, "/envoy", &pod_cgroup('1'), SIDECAR);
        assert_eq!(found(&scanner.examine_process(11)).id, victim.id);
        // A pod that was made again under its name has it once the old one is gone.
        for pid in [10, 11] {
            host.end(pid);
        }
        scanner.scan().unwrap();
        let [again] = scanner.sidecars().collect::<Vec<_>>()[..] else { panic!("one is left") };
        assert_eq!((again.process.pid, again.workload.pod.as_deref()), (20, Some("reviews-1")));
        assert!(again.id != victim.id && again.id != impostor.id);
    }

    #[test]
    fn of_two_that_claim_a_pods_name_the_older_has_it() {
        let host = Host::new();
        host.start(10, 900, "/envoy", &pod_cgroup('2'), SIDECAR);
        let mut scanner = host.scanner(&[]).unwrap();
        scanner.examine_process(10);
        host.start(20, 500, "/envoy", &pod_cgroup('1'), SIDECAR);
        assert_eq!(found(&scanner.examine_process(20)).workload.pod.as_deref(), Some("reviews-1"));
        let changes = scanner.examine_process(10);
        let [Change::Gone(before), Change::Found(after)] = &changes[..] else { panic!("{changes:?}") };
        assert!(before.id != after.id && *after.workload == Workload::default());
    }

    #[test]
    fn the_kubelet_says_which_pod_a_cgroup_is_of() {
        let (host, node) = (Host::new(), tempfile::tempdir().unwrap());
        host.start(1, 1, "/sbin/init", "/", &[]);
        symlink(node.path(), host.file(1, "root")).unwrap();
        for (digit, name) in [('1', "default_reviews-1"), ('2', "evil_pod")] {
            let cgroup = pod_cgroup(digit);
            let uid = cgroup.split('/').find_map(|part| part.strip_prefix("pod")).unwrap();
            fs::create_dir_all(node.path().join(format!("var/log/pods/{name}_{uid}"))).unwrap();
        }
        // The impostor is there first.
        host.start(20, 100, "/envoy", &pod_cgroup('2'), SIDECAR);
        host.start(10, 500, "/envoy", &pod_cgroup('1'), SIDECAR);
        let mut scanner = host.scanner(&[]).unwrap();
        scanner.scan().unwrap();
        let names: BTreeMap<u32, (Option<&str>, Option<&str>)> = scanner
            .sidecars()
            .map(|it| (it.process.pid, (it.workload.pod.as_deref(), it.workload.name.as_deref())))
            .collect();
        assert_eq!(names[&10], (Some("reviews-1"), Some("reviews")));
        assert_eq!(names[&20], (Some("pod"), None));
    }

    #[test]
    fn addresses_of_others_are_not_taken() {
        let host = Host::new();
        let environment = [SIDECAR, &[("INSTANCE_IPS", "10.0.0.1,10.0.0.9")]].concat();
        host.start(10, 500, "/envoy", "/pods/a", &environment);
        fs::write(host.file(10, "net/fib_trie"), "Main:\n |-- 10.0.0.9\n    /32 host LOCAL\n").unwrap();
        let mut scanner = host.scanner(&[]).unwrap();
        assert_eq!(found(&scanner.examine_process(10)).addresses, ["10.0.0.9".parse::<std::net::IpAddr>().unwrap()]);
    }

    #[test]
    fn moving_to_another_cgroup_is_a_change() {
        let host = Host::new();
        host.start(10, 500, "/envoy", "/", SIDECAR);
        let mut scanner = host.scanner(&[]).unwrap();
        let id = found(&scanner.examine_process(10)).id;
        assert!(matches!(&scanner.findings()[..], [_, Finding::Warning(warning)] if warning.contains("root cgroup")));
        host.place(10, "/pods/a");
        let changes = scanner.examine_process(10);
        assert!(matches!(&changes[..], [Change::Updated(moved)] if moved.id == id && moved.cgroup.ends_with("pods/a")));
    }

    #[test]
    fn several_in_one_cgroup_are_all_found_and_told() {
        let host = Host::new();
        let other = [("POD_NAME", "other"), ("POD_NAMESPACE", "default"), ("ISTIO_META_MESH_ID", "m")];
        host.start(10, 700, "/envoy", "/shared", SIDECAR);
        host.start(11, 600, "/envoy", "/shared", &other);
        host.start(12, 500, "/app", "/shared", &[]);
        let mut scanner = host.scanner(&[]).unwrap();
        scanner.scan().unwrap();
        let sidecars: Vec<Arc<Sidecar>> = scanner.sidecars().cloned().collect();
        assert_eq!(sidecars.len(), 2);
        for sidecar in &sidecars {
            assert_eq!(sidecar.coresidents, [ProcessId { pid: 12, start_time: 500 }], "{sidecar:?}");
        }
        let defaults: Vec<u32> = cgroup_defaults(&sidecars).values().map(|sidecar| sidecar.process.pid).collect();
        assert_eq!(defaults, [11]);
        let warning = scanner.findings().into_iter().find_map(|finding| match finding {
            Finding::Warning(warning) => Some(warning),
            _ => None,
        });
        assert!(warning.unwrap().contains("processes 11, 10"));
    }

    #[test]
    fn a_named_cgroup_is_observed_until_a_sidecar_is_recognised_in_it() {
        let host = Host::new();
        host.start(30, 100, "/proxy", "/named", &[]);
        host.listen(30, 15006, 7, true);
        let mut scanner = host.scanner(&["/named"]).unwrap();
        let changes = scanner.scan().unwrap();
        let named = found(&changes).clone();
        assert_eq!((named.process.is_process(), named.role), (false, Role::Sidecar));
        assert!(named.evidence.starts_with("--cgroup; a process in it listens"));
        host.start(31, 200, "/envoy", "/named", SIDECAR);
        let changes = scanner.examine_process(31);
        assert!(matches!(&changes[..], [Change::Found(_), Change::Gone(gone)] if *gone == named), "{changes:?}");
        host.end(31);
        let changes = scanner.scan().unwrap();
        assert!(matches!(&changes[..], [Change::Gone(_), Change::Found(again)] if again.id == named.id), "{changes:?}");
        fs::remove_dir_all(host.cgroups.path().join("named")).unwrap();
        assert!(matches!(&scanner.scan().unwrap()[..], [Change::Gone(_)]));
    }

    fn component(changes: &[Change]) -> Arc<Component> {
        match changes {
            [Change::ComponentFound(component) | Change::ComponentUpdated(component)] => component.clone(),
            changes => panic!("one component expected: {changes:?}"),
        }
    }

    #[test]
    fn finds_istiod_with_its_pod_and_its_page() {
        let host = Host::new();
        let (uid, id) = ("0d6bd6b1-3c5c-4a9e-8f0e-0123456789ab", "3f".repeat(32));
        let pod = [("POD_NAME", "istiod-1"), ("POD_NAMESPACE", "istio-system"), ("SECRET", "x")];
        host.start(10, 500, "/usr/local/bin/pilot-discovery", &format!("/kubepods/pod{uid}/{id}"), &pod);
        fs::create_dir_all(host.proc.path().join("self/ns")).unwrap();
        symlink("net:[1]", host.proc.path().join("self/ns/net")).unwrap();
        fs::write(host.file(10, "net/fib_trie"), "Main:\n |-- 10.1.0.9\n    /32 host LOCAL\n").unwrap();
        let mut scanner = host.scanner(&[]).unwrap();
        // It does not listen yet.
        let young = component(&scanner.examine_process(10));
        assert!(young.endpoint.as_ref().unwrap_err().contains("no port") && scanner.is_pending(10), "{young:?}");
        assert_eq!(scanner.examine_process(10), []);
        host.listen(10, 15014, 77, true);
        let changes = scanner.scan().unwrap();
        assert!(matches!(&changes[..], [Change::ComponentUpdated(_)]), "{changes:?}");
        let istiod = component(&changes);
        assert_eq!((istiod.app.as_str(), istiod.process), ("istiod", ProcessId { pid: 10, start_time: 500 }));
        assert_eq!(istiod.workload.pod.as_deref(), Some("istiod-1"));
        assert_eq!(istiod.workload.namespace.as_deref(), Some("istio-system"));
        assert_eq!((istiod.container.id.as_deref(), istiod.container.pod_uid.as_deref()), (Some(&*id), Some(uid)));
        let endpoint = istiod.endpoint.as_ref().unwrap();
        assert_eq!((endpoint.address.to_string().as_str(), endpoint.inside_only), ("10.1.0.9:15014", None));
        assert!(!scanner.is_pending(10) && scanner.scan().unwrap().is_empty());
        assert!(matches!(&scanner.findings()[..], [Finding::Component(found)] if *found == istiod));
        assert_eq!(scanner.sidecars().count(), 0);
    }

    #[test]
    fn a_port_that_was_the_only_one_gives_way_to_the_right_one() {
        let host = Host::new();
        host.start(10, 500, "/usr/local/bin/pilot-discovery", "/istiod", &[]);
        host.listen(10, 9876, 5, true);
        let mut scanner = host.scanner(&[]).unwrap();
        let port = |component: Arc<Component>| component.endpoint.as_ref().unwrap().address.port();
        assert_eq!(port(component(&scanner.examine_process(10))), 9876);
        assert!(!scanner.is_pending(10) && scanner.examine_process(10).is_empty());
        fs::remove_file(host.file(10, "fd/3")).unwrap();
        host.listen(10, 15014, 6, true);
        assert_eq!(port(component(&scanner.scan().unwrap())), 15014);
    }

    #[test]
    fn a_component_that_restarts_is_another() {
        let host = Host::new();
        host.start(10, 500, "/usr/bin/etcd", "/etcd", &[]);
        host.listen(10, 2379, 5, true);
        let mut scanner = host.scanner(&[]).unwrap();
        let first = component(&scanner.examine_process(10));
        let endpoint = first.endpoint.as_ref().unwrap();
        assert_eq!((first.app.as_str(), endpoint.evidence.as_str()), ("etcd", "listens on 2379 as configured"));
        host.end(10);
        host.start(10, 900, "/usr/bin/etcd", "/etcd", &[]);
        let changes = scanner.examine_process(10);
        let [Change::ComponentGone(gone), Change::ComponentFound(found)] = &changes[..] else { panic!("{changes:?}") };
        assert_eq!((gone, found.process.start_time), (&first, 900));
        host.end(10);
        assert!(scanner.ended(first.process).is_empty());
        assert!(matches!(&scanner.ended(found.process)[..], [Change::ComponentGone(_)]));
    }

    #[test]
    fn a_process_that_becomes_another_program_is_what_it_is_now() {
        let host = Host::new();
        host.start(10, 500, "/usr/bin/etcd", "/pods/a", SIDECAR);
        let mut scanner = host.scanner(&[]).unwrap();
        component(&scanner.examine_process(10));
        fs::remove_file(host.file(10, "exe")).unwrap();
        symlink("/envoy", host.file(10, "exe")).unwrap();
        let changes = scanner.examine_process(10);
        assert!(matches!(&changes[..], [Change::ComponentGone(_), Change::Found(_)]), "{changes:?}");
        fs::remove_file(host.file(10, "exe")).unwrap();
        symlink("/bin/sh", host.file(10, "exe")).unwrap();
        host.arguments(10, &["sh"]);
        assert!(matches!(&scanner.examine_process(10)[..], [Change::Gone(_)]));
    }

    #[test]
    fn a_path_that_is_no_cgroup_is_refused() {
        let error = Host::new().scanner(&["/absent"]).unwrap_err().to_string();
        assert!(error.contains("/absent is not a cgroup v2 directory: it does not exist"), "{error}");
    }

    #[test]
    fn processes_that_vanish_are_as_if_never_there() {
        let host = Host::new();
        for (pid, vanished) in [(40, "stat"), (41, "environ"), (42, "cgroup"), (43, "exe"), (44, "net/tcp")] {
            host.start(pid, 1, "/envoy", "/pods/a", &[]);
            fs::remove_file(host.file(pid, vanished)).unwrap();
        }
        let mut scanner = host.scanner(&[]).unwrap();
        assert_eq!(scanner.scan().unwrap(), []);
        assert_eq!(scanner.findings(), []);
    }

    #[test]
    fn a_cgroup_that_is_gone_is_said() {
        let host = Host::new();
        host.start(10, 1, "/envoy", "/pods/a", SIDECAR);
        fs::remove_dir_all(host.cgroups.path().join("pods")).unwrap();
        let mut scanner = host.scanner(&[]).unwrap();
        assert_eq!(scanner.scan().unwrap(), []);
        assert!(
            matches!(&scanner.findings()[..], [Finding::Refused { reason, .. }] if reason.contains("does not exist"))
        );
    }
}
