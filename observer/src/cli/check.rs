//! `observer check`: reports what this kernel, these privileges, this node and this configuration allow.

mod kubernetes;
mod outputs;

use std::{
    collections::BTreeMap,
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::thread::CapabilitySet;

use self::{
    kubernetes::KubernetesFacts,
    outputs::{CONNECT_TIMEOUT, Listening, Outputs},
};
use super::{
    args::CheckArgs,
    outcome::{Failure, configure, print},
    own_pages::{OwnPages, ReaderArgs},
};
use crate::{
    config::Config,
    discovery::{Component, Finding, ProcessId, Role, Sidecar, events::ExecEvents, scan::Scanner},
    kernel::{self, ProgramProbe},
    model::{catalogue, identity::MetricsEndpoint},
    persist::inspect::{Contents, inspect},
    system::capabilities::{self, CAPABILITIES},
};

/// Prints the report.
///
/// # Errors
/// `observer run` could not work.
pub fn run(args: &CheckArgs) -> Result<(), Failure> {
    let facts = gather(&configure(&args.run)?, &args.reader);
    print(report(&facts).as_bytes())?;
    if obstacles(&facts).is_empty() { Ok(()) } else { Err(Failure::printed()) }
}

/// Everything that the report is made of.
#[derive(Clone, Debug)]
struct Facts {
    /// Version of the observer.
    version: &'static str,
    /// Kernel release and machine [uname(2)].
    kernel: String,
    /// Lockdown mode, if the kernel has lockdown.
    lockdown: Option<String>,
    /// Active security modules, if known.
    security_modules: Option<String>,
    user: u32,
    /// Effective capabilities; `None` if they cannot be read.
    capabilities: Option<CapabilitySet>,
    programs: Result<Vec<ProgramProbe>, String>,
    /// The pin directory, if one is named.
    pins: Option<Pins>,
    /// Whether the kernel announces new processes, or why not.
    exec_events: Result<(), String>,
    outputs: Outputs,
    kubernetes: KubernetesFacts,
    node: Result<Node, String>,
}

/// The pin directory.
#[derive(Clone, Debug)]
struct Pins {
    path: PathBuf,
    /// Its contents if it exists, or why it cannot be used.
    contents: Result<Option<Contents>, String>,
    /// ABI hash of this build's maps.
    abi_hash: Option<String>,
}

/// What was found on the node.
#[derive(Clone, Debug)]
struct Node {
    cgroup_mount: PathBuf,
    hidepid: Option<String>,
    /// Whether process ids are those of a nested pid namespace.
    is_nested: bool,
    findings: Vec<Finding>,
    /// Why endpoints cannot be reached that should be, by their processes.
    unreachable: BTreeMap<ProcessId, String>,
}

fn gather(config: &Config, reader: &ReaderArgs) -> Facts {
    let uname = rustix::system::uname();
    let capabilities = capabilities::held().ok();
    // Continue with the capabilities that `run` keeps, so that root does not succeed where `run` would fail.
    let _ = capabilities::drop_unneeded();
    let pages = OwnPages::new(config.listen.0, config.web_config_file.as_deref(), reader, CONNECT_TIMEOUT)
        .map_err(|error| error.to_string());
    let outputs = outputs::inspect(config, &pages);
    let programs = kernel::probe(config.trace_reading()).map_err(|error| format!("{:#}", anyhow::Error::from(error)));
    Facts {
        version: env!("CARGO_PKG_VERSION"),
        kernel: format!("{} {}", uname.release().to_string_lossy(), uname.machine().to_string_lossy()),
        lockdown: security_file("lockdown").map(|modes| selected(&modes).to_owned()),
        security_modules: security_file("lsm"),
        user: rustix::process::geteuid().as_raw(),
        capabilities,
        programs,
        pins: config.pin.as_deref().map(|path| Pins {
            path: path.to_owned(),
            contents: inspect(path).map_err(|error| error.to_string()),
            abi_hash: kernel::abi_hash(&config.kernel()).ok(),
        }),
        exec_events: ExecEvents::subscribe().map(drop),
        kubernetes: kubernetes::inspect(config, &pages, &outputs.listening),
        outputs,
        node: scan(config),
    }
}

fn scan(config: &Config) -> Result<Node, String> {
    let mut scanner = Scanner::new(config.discovery()).map_err(|error| error.to_string())?;
    scanner.scan().map_err(|error| error.to_string())?;
    Ok(Node {
        cgroup_mount: scanner.hierarchy().mount_point().to_owned(),
        hidepid: scanner.hidepid().map(str::to_owned),
        is_nested: scanner.is_nested(),
        findings: scanner.findings(),
        unreachable: scanner
            .components()
            .filter_map(|component| Some((component.process, connect_error(component)?)))
            .collect(),
    })
}

/// Returns why an endpoint that should be reachable from here is not.
fn connect_error(component: &Component) -> Option<String> {
    let endpoint = component.endpoint.as_ref().ok().filter(|endpoint| endpoint.inside_only.is_none())?;
    TcpStream::connect_timeout(&endpoint.address, CONNECT_TIMEOUT).err().map(|error| error.to_string())
}

fn security_file(name: &str) -> Option<String> {
    let text = fs::read_to_string(Path::new("/sys/kernel/security").join(name)).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// Returns the word in brackets, e.g. of `none [integrity] confidentiality`.
fn selected(modes: &str) -> &str {
    modes.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map_or(modes, |(mode, _)| mode)
}

/// Returns the reasons why `observer run` could not work.
fn obstacles(facts: &Facts) -> Vec<String> {
    let mut obstacles = Vec::new();
    if let Some(missing) = facts.capabilities.and_then(capabilities::missing_required) {
        obstacles.push(format!("{missing} (run as root or grant them)"));
    }
    match &facts.programs {
        Err(_) => obstacles.push("the eBPF programs cannot be loaded".to_owned()),
        Ok(programs) => {
            let refused = programs.iter().filter(|program| program.result.is_err()).count();
            if refused > 0 {
                obstacles.push(format!("the kernel rejects {refused} of {} programs", programs.len()));
            }
        }
    }
    if facts.pins.as_ref().is_some_and(|pins| pins.contents.is_err()) {
        obstacles.push("the pin directory cannot be used".to_owned());
    }
    let Outputs { listening, emitters, queues, control_plane_ca, web_config, .. } = &facts.outputs;
    if matches!(listening, Listening::Refused(_)) {
        obstacles.push("the address for /metrics cannot be listened on".to_owned());
    }
    if emitters.is_err() {
        obstacles.push("an emitter cannot be used".to_owned());
    }
    if queues.iter().any(|(_, usable)| usable.is_err()) {
        obstacles.push("the queue directory cannot be used".to_owned());
    }
    if matches!(control_plane_ca, Some(Err(_))) {
        obstacles.push("the control plane's CA file cannot be used".to_owned());
    }
    if matches!(web_config, Some(Err(_))) {
        obstacles.push("the web configuration file cannot be used".to_owned());
    }
    if matches!(facts.kubernetes, KubernetesFacts::Unusable(_)) {
        obstacles.push("the credentials for the Kubernetes API cannot be used".to_owned());
    }
    if facts.node.is_err() {
        obstacles.push("the node cannot be scanned for sidecars".to_owned());
    }
    obstacles
}

/// Formats the report.
fn report(facts: &Facts) -> String {
    let mut report = Report::default();
    report.line(&format!("mesh observer {} on Linux {}", facts.version, facts.kernel));
    report.kernel(facts);
    report.privileges(facts);
    report.programs(facts);
    if let Some(pins) = &facts.pins {
        report.pins(pins);
    }
    report.outputs(&facts.outputs);
    report.kubernetes(&facts.kubernetes);
    match &facts.node {
        Ok(node) => report.node(node, facts),
        Err(problem) => {
            report.title("Node");
            report.item("FAIL", problem);
        }
    }
    let obstacles = obstacles(facts);
    report.line("");
    if obstacles.is_empty() {
        report.line("Result: `observer run` works here.");
    } else {
        report.line(&format!("Result: `observer run` cannot work here: {}.", obstacles.join("; ")));
    }
    report.text
}

#[derive(Default)]
struct Report {
    text: String,
}

impl Report {
    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn title(&mut self, title: &str) {
        self.line("");
        self.line(title);
    }

    fn item(&mut self, state: &str, what: &str) {
        self.line(&format!("  {state:<4}  {what}"));
    }

    fn detail(&mut self, what: &str) {
        self.line(&format!("        {what}"));
    }

    fn kernel(&mut self, facts: &Facts) {
        self.title("Kernel");
        self.item(
            "ok",
            &format!("lockdown: {}", facts.lockdown.as_deref().unwrap_or("not in this kernel, or not visible")),
        );
        if facts.lockdown.as_deref() == Some("confidentiality") {
            self.detail("It forbids eBPF programs to read kernel memory. The observer's read packets and sockets only, which is allowed.");
        }
        if let Some(modules) = &facts.security_modules {
            self.item("ok", &format!("security modules: {}", modules.replace(',', ", ")));
        }
        match &facts.exec_events {
            Ok(()) => self.item("ok", "new processes: announced by the kernel"),
            Err(reason) => self.item("note", &format!("new processes: found by scans every second ({reason})")),
        }
    }

    fn privileges(&mut self, facts: &Facts) {
        self.title(&format!("Privileges (user {})", facts.user));
        let Some(held) = facts.capabilities else {
            return self.item("note", "the observer's own capabilities cannot be read");
        };
        for capability in &CAPABILITIES {
            let (state, missing) = match (capability.is_held(held), capability.is_required()) {
                (true, _) => ("ok", ""),
                (false, true) => ("FAIL", "missing, "),
                (false, false) => ("note", "missing, "),
            };
            let until = if capability.need.is_startup_only() { "; until started" } else { "" };
            self.item(state, &format!("{}: {missing}{}{until}", capability.name, capability.purpose));
        }
        match capabilities::superfluous(held) {
            0 => {}
            more => self.item("note", &format!("not needed: {more} more, which `observer run` drops at startup")),
        }
    }

    fn programs(&mut self, facts: &Facts) {
        self.title("Programs");
        match &facts.programs {
            Err(problem) => self.item("FAIL", problem),
            Ok(programs) => {
                for ProgramProbe { name, result } in programs {
                    match result {
                        Ok(0) => self.item("ok", name),
                        Ok(instructions) => {
                            self.item("ok", &format!("{name:<16} {instructions} instructions verified"))
                        }
                        Err(reason) => self.item("FAIL", reason),
                    }
                }
            }
        }
    }

    fn pins(&mut self, pins: &Pins) {
        self.title("Restart without loss");
        let path = pins.path.display();
        let contents = match &pins.contents {
            Err(problem) => return self.item("FAIL", problem),
            Ok(None) => {
                return self.item("ok", &format!("{path} can be created: counts will outlive the process"));
            }
            Ok(Some(contents)) => contents,
        };
        let user = contents.lock_owner.as_deref().unwrap_or("no observer");
        self.item(
            "ok",
            &format!("{path} is in use by {user} now; {} programs are attached from there", contents.links),
        );
        if contents.abi_hashes.iter().any(|hash| Some(hash) != pins.abi_hash.as_ref()) {
            self.item(
                "note",
                "pinned maps have a different layout: totals are kept, but connections that are open now are",
            );
            self.detail("counted from their next request");
        }
    }

    fn outputs(&mut self, outputs: &Outputs) {
        self.title("Outputs");
        let Outputs { address, listening, emitters, queues, control_plane_ca, web_config } = outputs;
        match listening {
            Listening::Free => self.item("ok", &format!("/metrics can be served at {address}")),
            Listening::Observer => self.item("note", &format!("an observer listens on {address} now")),
            Listening::Refused(problem) => self.item("FAIL", problem),
        }
        match emitters {
            Ok(names) => names.iter().for_each(|name| self.item("ok", &format!("emitter {name}"))),
            Err(problem) => self.item("FAIL", problem),
        }
        for (directory, usable) in queues {
            let directory = directory.display();
            match usable {
                Ok(false) => self.item("ok", &format!("queue directory {directory}")),
                Ok(true) => self.item("note", &format!("queue directory {directory}: an observer uses it now")),
                Err(problem) => self.item("FAIL", problem),
            }
        }
        match control_plane_ca {
            None => {}
            Some(Ok(path)) => self.item("ok", &format!("CA file {}", path.display())),
            Some(Err(problem)) => self.item("FAIL", problem),
        }
        match web_config {
            None => {}
            Some(Ok(path)) => self.item("ok", &format!("web configuration file {}", path.display())),
            Some(Err(problem)) => self.item("FAIL", problem),
        }
    }

    fn node(&mut self, node: &Node, facts: &Facts) {
        self.title("Node");
        self.item("ok", &format!("cgroup v2 at {}", node.cgroup_mount.display()));
        match &node.hidepid {
            None => self.item("ok", "every process is visible"),
            Some(value) => {
                let sees = facts.capabilities.is_some_and(|held| held.contains(CapabilitySet::SYS_PTRACE));
                let (state, so) = if sees {
                    ("ok", "CAP_SYS_PTRACE sees through it")
                } else {
                    ("note", "sidecars of other users are invisible without CAP_SYS_PTRACE")
                };
                self.item(state, &format!("proc is mounted with hidepid={value}: {so}"));
            }
        }
        if node.is_nested {
            self.item("note", "process ids are those of a nested pid namespace, which the kernel does not use");
            self.detail(
                "Sidecars are distinguished from their agents by the names of Envoy's worker threads; several in one",
            );
            self.detail("cgroup are not distinguished.");
        }
        let of = |gateway: bool| {
            node.findings.iter().filter_map(move |finding| match finding {
                Finding::Observed(sidecar) if (sidecar.role == Role::Gateway) == gateway => Some(sidecar),
                _ => None,
            })
        };
        self.sidecars("Sidecars", of(false));
        if self.sidecars("Gateways", of(true)) > 0 {
            self.detail("Plaintext traffic of a gateway's own ports is counted. HTTP on its TLS listeners is not visible; their");
            self.detail(&format!("connections are counted in {}.", catalogue::GATEWAY_ENCRYPTED.prometheus_name));
        }
        self.control_plane(node, facts);
        self.rest(&node.findings);
    }

    fn control_plane(&mut self, node: &Node, facts: &Facts) {
        let mut components: Vec<_> = node
            .findings
            .iter()
            .filter_map(|finding| match finding {
                Finding::Component(component) => Some(component),
                _ => None,
            })
            .collect();
        components.sort_by_key(|component| (&component.workload.namespace, &component.workload.pod, component.process));
        self.title(&format!("Control plane ({})", components.len()));
        let may_enter = facts.capabilities.is_some_and(|held| held.contains(CapabilitySet::SYS_ADMIN));
        for component in components {
            let namespace = component.workload.namespace.as_deref().unwrap_or("-");
            let pod = component.workload.pod.as_deref().unwrap_or("-");
            let unreachable = node.unreachable.get(&component.process);
            let (state, lines) = match &component.endpoint {
                Err(reason) => ("note", vec![format!("/metrics endpoint not known: {reason}")]),
                Ok(endpoint) => reachability(endpoint, unreachable, may_enter),
            };
            self.item(state, &format!("{namespace}/{pod}: {}, process {}", component.app, component.process.pid));
            lines.iter().for_each(|line| self.detail(line));
            if let Some(id) = &component.container.id {
                self.detail(&format!("container {id}"));
            }
        }
    }

    fn sidecars<'a>(&mut self, title: &str, sidecars: impl Iterator<Item = &'a Arc<Sidecar>>) -> usize {
        let mut sidecars: Vec<_> = sidecars.collect();
        sidecars.sort_by_key(|sidecar| (&sidecar.workload.namespace, &sidecar.workload.pod, sidecar.process));
        self.title(&format!("{title} ({})", sidecars.len()));
        for sidecar in &sidecars {
            let workload = &sidecar.workload;
            let namespace = workload.namespace.as_deref().unwrap_or("-");
            let pod = workload.pod.as_deref().unwrap_or("-");
            let name = workload.name.as_deref().unwrap_or("-");
            let process = match sidecar.process.pid {
                0 => "no process".to_owned(),
                pid => format!("process {pid}"),
            };
            self.item("ok", &format!("{namespace}/{pod}, workload {name}: {}, {process}", sidecar.role));
            self.detail(&format!("because: {}", sidecar.evidence));
            let addresses: Vec<String> = sidecar.addresses.iter().map(ToString::to_string).collect();
            let addresses = if addresses.is_empty() { "no address known".to_owned() } else { addresses.join(" ") };
            self.detail(&format!("{addresses}; cgroup {}", crate::discovery::printable(&sidecar.cgroup)));
        }
        sidecars.len()
    }

    fn rest(&mut self, findings: &[Finding]) {
        let refused: Vec<_> = findings
            .iter()
            .filter_map(|finding| match finding {
                Finding::Refused { process, executable, reason } => Some((process.pid, executable, reason)),
                _ => None,
            })
            .collect();
        if !refused.is_empty() {
            self.title(&format!("Not observed ({})", refused.len()));
            for (pid, executable, reason) in refused {
                self.item("note", &format!("{executable}, process {pid}: {reason}"));
            }
        }
        let warnings: Vec<_> = findings
            .iter()
            .filter_map(|finding| match finding {
                Finding::Warning(warning) => Some(warning),
                _ => None,
            })
            .collect();
        if !warnings.is_empty() {
            self.title("Warnings");
            for warning in warnings {
                self.item("note", warning);
            }
        }
    }
}

/// Whether an endpoint can be scraped, and what is needed for it.
fn reachability(
    endpoint: &MetricsEndpoint,
    unreachable: Option<&String>,
    may_enter: bool,
) -> (&'static str, Vec<String>) {
    let at = format!("metrics at {}", endpoint.address);
    let why_not = match (endpoint.inside_only, unreachable) {
        (None, None) => return ("ok", vec![format!("{at}: {}", endpoint.evidence)]),
        (Some(reason), _) => reason.text(),
        (None, Some(reason)) if endpoint.inside.is_some() => reason,
        (None, Some(reason)) => return ("note", vec![format!("{at}: {reason}")]),
    };
    let (state, held) = if may_enter { ("ok", "held") } else { ("note", "missing") };
    let so = format!("It can be scraped only from inside its network namespace, which needs CAP_SYS_ADMIN ({held}).");
    (state, vec![format!("{at}: {why_not}"), so])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        discovery::{
            ProcessId, Workload,
            component::InsideOnly,
            kubernetes::{ApiError, Permission},
        },
        model::fixture::istiod,
    };

    const ENOUGH: CapabilitySet = CapabilitySet::BPF
        .union(CapabilitySet::PERFMON)
        .union(CapabilitySet::NET_ADMIN)
        .union(CapabilitySet::SYS_PTRACE)
        .union(CapabilitySet::DAC_READ_SEARCH);

    fn sidecar(role: Role, pid: u32, pod: &str) -> Finding {
        let some = |text: &str| Some(text.to_owned());
        Finding::Observed(Arc::new(Sidecar {
            id: pid,
            process: ProcessId { pid, start_time: 5 },
            role,
            evidence: "node type sidecar".to_owned(),
            cgroup: format!("/sys/fs/cgroup/pods/{pod}").into(),
            cgroup_id: pid.into(),
            netns_inode: 1,
            addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            coresidents: Vec::new(),
            is_cgroup_shared: false,
            workload: Arc::new(Workload {
                pod: some(pod),
                namespace: some("default"),
                name: some("app"),
                ..Workload::default()
            }),
        }))
    }

    fn component(pid: u32, inside_only: Option<InsideOnly>) -> Finding {
        let mut component = istiod(pid);
        let known = Arc::get_mut(&mut component).unwrap();
        known.endpoint.as_mut().unwrap().inside_only = inside_only;
        Finding::Component(component)
    }

    /// Without an endpoint, in a container.
    fn closed(pid: u32) -> Finding {
        let mut component = istiod(pid);
        let known = Arc::get_mut(&mut component).unwrap();
        known.endpoint = Err("it listens on no port".to_owned());
        known.container.id = Some("3f".repeat(32));
        Finding::Component(component)
    }

    fn contents(abi_hash: &str) -> Contents {
        Contents { lock_owner: Some("process 7".to_owned()), links: 18, abi_hashes: vec![abi_hash.to_owned()] }
    }

    fn pins(contents: Result<Option<Contents>, String>) -> Pins {
        Pins { path: "/sys/fs/bpf/mesh-observer".into(), contents, abi_hash: Some("0123456789abcdef".to_owned()) }
    }

    fn asked(granted: fn(usize) -> Result<bool, ApiError>, age: f64) -> KubernetesFacts {
        let permissions = Permission::ALL.into_iter().enumerate().map(|(at, it)| (it, granted(at)));
        KubernetesFacts::Asked {
            source: "the pod's service account".to_owned(),
            permissions: permissions.collect(),
            staleness: Ok(vec![("services".to_owned(), age)]),
        }
    }

    fn good() -> Facts {
        let probe = |name, instructions| ProgramProbe { name, result: Ok(instructions) };
        Facts {
            version: "1.2.3",
            kernel: "6.18.0 x86_64".to_owned(),
            lockdown: Some("integrity".to_owned()),
            security_modules: Some("lockdown,capability,bpf".to_owned()),
            user: 0,
            capabilities: Some(ENOUGH),
            programs: Ok(vec![probe("mesh_connect4", 120), probe("mesh_egress", 20_000)]),
            pins: Some(pins(Ok(Some(contents("0123456789abcdef"))))),
            exec_events: Ok(()),
            outputs: Outputs {
                address: "127.0.0.1:9469".parse().unwrap(),
                listening: Listening::Free,
                emitters: Ok(vec!["wavefront+http://proxy:2878/".to_owned()]),
                queues: vec![("/queue/wavefront_http___proxy_2878_".into(), Ok(false))],
                control_plane_ca: Some(Ok("/etc/ca.pem".into())),
                web_config: Some(Ok("/etc/web.yml".into())),
            },
            kubernetes: asked(|_| Ok(true), 0.0),
            node: Ok(Node {
                cgroup_mount: "/sys/fs/cgroup".into(),
                hidepid: None,
                is_nested: false,
                findings: vec![
                    sidecar(Role::TproxySidecar, 20, "b-1"),
                    sidecar(Role::Sidecar, 10, "a-1"),
                    sidecar(Role::Gateway, 30, "edge-1"),
                    component(50, None),
                    component(51, Some(InsideOnly::Loopback)),
                    component(52, None),
                    closed(53),
                    Finding::Refused {
                        process: ProcessId { pid: 40, start_time: 1 },
                        executable: "envoy".to_owned(),
                        reason: "neither sidecar nor gateway".to_owned(),
                    },
                    Finding::Warning("cgroup /x holds 2 sidecars".to_owned()),
                ],
                unreachable: [(ProcessId { pid: 52, start_time: 1 }, "connection timed out".to_owned())].into(),
            }),
        }
    }

    fn bad() -> Facts {
        Facts {
            lockdown: Some("confidentiality".to_owned()),
            security_modules: None,
            user: 1000,
            capabilities: Some(CapabilitySet::empty()),
            programs: Err("not permitted: run as root".to_owned()),
            pins: Some(pins(Err("/pins is not on a bpffs".to_owned()))),
            exec_events: Err("the process-events connector needs CAP_NET_ADMIN".to_owned()),
            outputs: Outputs {
                address: "127.0.0.1:9469".parse().unwrap(),
                listening: Listening::Refused("cannot listen on 127.0.0.1:9469".to_owned()),
                emitters: Err("emitter wavefront+https://x: it needs an API token".to_owned()),
                queues: vec![(
                    "/queue/x".into(),
                    Err("queue directory /queue/x: /queue is not a directory".to_owned()),
                )],
                control_plane_ca: Some(Err("CA file /ca cannot be read".to_owned())),
                web_config: Some(Err("web configuration file /web.yml: it protects nothing".to_owned())),
            },
            kubernetes: KubernetesFacts::Unusable("kubeconfig /k cannot be used".to_owned()),
            node: Err("no cgroup v2 file system is mounted".to_owned()),
            ..good()
        }
    }

    fn partly() -> Facts {
        let mut facts = good();
        facts.capabilities = Some(CapabilitySet::SYS_ADMIN | CapabilitySet::CHOWN);
        facts.programs = Ok(vec![ProgramProbe {
            name: "mesh_egress",
            result: Err("the kernel rejects program mesh_egress".to_owned()),
        }]);
        facts.outputs.listening = Listening::Observer;
        facts.outputs.queues[0].1 = Ok(true);
        facts.kubernetes = asked(|at| if at < 3 { Ok(at == 0) } else { Err(ApiError::Timeout) }, 75.0);
        facts.pins = Some(pins(Ok(Some(Contents { lock_owner: None, ..contents("fedcba9876543210") }))));
        facts.node = Ok(Node {
            cgroup_mount: "/sys/fs/cgroup/unified".into(),
            hidepid: Some("invisible".to_owned()),
            is_nested: true,
            findings: vec![component(50, Some(InsideOnly::Refusing))],
            unreachable: BTreeMap::new(),
        });
        facts
    }

    #[test]
    fn reports_match_the_golden_files() {
        for (name, facts) in [("good", good()), ("bad", bad()), ("partly", partly())] {
            let path = format!("{}/golden/check-{name}.txt", env!("CARGO_MANIFEST_DIR"));
            let text = report(&facts);
            if std::env::var_os("UPDATE_GOLDEN").is_some() {
                fs::write(&path, &text).unwrap();
            }
            assert_eq!(text, fs::read_to_string(&path).unwrap(), "{path}; UPDATE_GOLDEN=1 updates it");
        }
    }

    #[test]
    fn obstacles_are_found() {
        assert!(obstacles(&good()).is_empty());
        assert_eq!(obstacles(&bad()).len(), 10);
        assert_eq!(obstacles(&partly()), ["the kernel rejects 1 of 1 programs"]);
        assert_eq!(selected("none [integrity] confidentiality"), "integrity");
    }
}
