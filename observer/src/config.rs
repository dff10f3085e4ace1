//! Options, environment variables and the configuration file make one validated [`Config`]: an option counts more than
//! its environment variable, that more than the file, the file more than the default.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroU16,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Deserializer, de};
use toml::Spanned;

use crate::{
    app,
    cli::{self, LogLevel, NodeArgs, RunArgs},
    collect::{
        control_plane::{self, PageUrl},
        kernel,
    },
    discovery::{DiscoveryConfig, Role, SidecarRule, Workload, component::ComponentRule},
    emit::{
        Target, TargetError,
        spool::directory_name,
        wavefront::{Names, Options, filter::Filters, glob::Glob, point_tag},
    },
    model::workload_index::{ServiceEntry, ServicePort, StaticPeers, WorkloadEntry},
};

/// Address that is served where none is given.
pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9469);
/// Time between two reports where none is given.
pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);
/// Time between two scrapes of a page of the control plane where none is given.
pub const DEFAULT_SCRAPE_INTERVAL: Duration = Duration::from_secs(10);
/// Most series held apart where no number is given.
pub const DEFAULT_MAX_SERIES: u32 = 10_000;
/// Open calls where no number is given.
pub const DEFAULT_MAX_OPEN_CALLS: u32 = 131_072;
/// Most bytes of one emitter's queue on disk where no number is given.
pub const DEFAULT_QUEUE_BYTES: u64 = 256 * 1024 * 1024;
/// More series than this would take a gigabyte of kernel memory.
const MOST_SERIES: u32 = 1_000_000;
/// More open calls than this would take half a gigabyte.
const MOST_OPEN_CALLS: u32 = 2_000_000;

/// Everything that can be set, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Address of /metrics, /healthz and /readyz.
    pub listen: SocketAddr,
    /// Time between two reports, and that their percentiles are over.
    pub interval: Duration,
    /// Time between two scrapes of each page of the control plane.
    pub scrape_interval: Duration,
    /// Where reports go.
    pub emit: Vec<Target>,
    /// What is sent to Wavefront.
    pub wavefront: Options,
    /// File with the API token of the service.
    pub wavefront_token_file: Option<PathBuf>,
    /// File with the authorities that are trusted over TLS; the system's if absent.
    pub wavefront_ca_file: Option<PathBuf>,
    /// Directory where batches wait for receivers that do not take them.
    pub queue_dir: Option<PathBuf>,
    /// Most bytes of one emitter's batches there.
    pub queue_bytes: u64,
    /// Folder on bpffs where maps and attachments outlive the process.
    pub pin: Option<PathBuf>,
    /// How much is logged.
    pub log: LogLevel,
    /// Executable names of sidecars.
    pub sidecar_exe: Vec<String>,
    /// Metrics pages of the control plane that were named.
    pub control_plane: Vec<PageUrl>,
    /// Authorities of those pages' certificates.
    pub control_plane_ca: Option<PathBuf>,
    /// Executables of the control plane.
    pub control_plane_exe: Vec<ComponentRule>,
    /// Whether the metrics pages of sidecars, gateways and ztunnels are read too.
    pub scrape_proxies: bool,
    /// cgroup v2 directories that are observed in any case.
    pub cgroup: Vec<PathBuf>,
    /// The proc file system.
    pub proc_root: PathBuf,
    /// The cgroup v2 file system; found in mountinfo if absent.
    pub cgroup_root: Option<PathBuf>,
    /// Most series held apart.
    pub max_series: u32,
    /// Most open calls of HTTP/2 connections that have more than 32 of them.
    pub max_open_calls: u32,
    /// Destination ports that are TCP whatever their bytes say.
    pub tcp_ports: Vec<u16>,
    /// Destination ports that services declare as HTTP.
    pub http_ports: Vec<u16>,
    /// Ports that are never counted.
    pub excluded_ports: Vec<u16>,
    /// Identity of sidecars without the injector's environment.
    pub sidecars: Vec<SidecarRule>,
    /// Services and workloads elsewhere.
    pub peers: StaticPeers,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration file {path} cannot be read: {reason}; check --config and the file's permissions")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: io::Error,
    },
    /// An address that was given is none. It is not repeated, as it may hold a password.
    #[error("--control-plane: {0}")]
    ControlPlane(String),
    /// A target that was given is none.
    #[error("--emit: {0}")]
    Emit(TargetError),
    /// Each is right, and they cannot be together.
    #[error("{0}")]
    Together(String),
    /// The file is wrong.
    #[error("{path}:{line}:{column}: {key}: {problem}; the annotated observer.example.toml has every key")]
    Wrong {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// The key at fault, with its table.
        key: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
}

impl Config {
    /// Reads the file that the options name, if any, and puts everything together.
    ///
    /// # Errors
    /// The file cannot be read or is wrong.
    pub fn load(args: &RunArgs) -> Result<Self, ConfigError> {
        if let Some(wrong) = args.node.control_plane.iter().find_map(|page| page.as_ref().err()) {
            return Err(ConfigError::ControlPlane(wrong.clone()));
        }
        if let Some(wrong) = args.emit.iter().find_map(|target| target.as_ref().err()) {
            return Err(ConfigError::Emit(wrong.clone()));
        }
        let Some(path) = &args.node.config else { return Self::resolve(args, Settings::default()).consistent() };
        let text = fs::read_to_string(path).map_err(|reason| ConfigError::Unreadable { path: path.clone(), reason })?;
        Self::from_text(args, path, &text)
    }

    /// As [`Config::load`], of a file with this text; `path` is for the errors.
    ///
    /// # Errors
    /// The text is wrong.
    pub fn from_text(args: &RunArgs, path: &Path, text: &str) -> Result<Self, ConfigError> {
        Self::resolve(args, Settings::parse(path, text)?).consistent()
    }

    /// Refuses what is right by itself and cannot be together.
    fn consistent(self) -> Result<Self, ConfigError> {
        if let Some(target) = repeated(&self.emit, |target| directory_name(&target.to_string())) {
            return Err(ConfigError::Together(format!(
                "emit: {target} is there twice (a query makes no difference): each receiver has one name in the figures and \
                 one queue; name it once"
            )));
        }
        if let Some(page) = repeated(&self.control_plane, PageUrl::instance) {
            let instance = page.instance();
            return Err(ConfigError::Together(format!(
                "control_plane: {instance} is there twice: its figures would be exposed twice under the same labels; name one \
                 page of it"
            )));
        }
        Ok(self)
    }

    /// Options and environment first, then the file, then defaults.
    fn resolve(args: &RunArgs, file: Settings) -> Self {
        let RunArgs {
            listen,
            interval,
            scrape_interval,
            emit,
            wavefront_names,
            wavefront_token_file,
            wavefront_ca_file,
            queue_dir,
            pin,
            node,
        } = args.clone();
        let NodeArgs {
            config: _,
            control_plane,
            sidecar_exe,
            control_plane_exe,
            scrape_proxies,
            cgroup,
            proc_root,
            cgroup_root,
            log,
        } = node;
        let mut sidecar_exe = either(sidecar_exe, file.sidecar_exe);
        if sidecar_exe.is_empty() {
            sidecar_exe.push("envoy".to_owned());
        }
        let mut control_plane_exe = either(control_plane_exe, file.control_plane_exe);
        if control_plane_exe.is_empty() {
            control_plane_exe = ComponentRule::control_plane();
        }
        Self {
            listen: listen.or(file.listen).unwrap_or(DEFAULT_LISTEN),
            interval: interval.or(file.interval).unwrap_or(DEFAULT_INTERVAL),
            scrape_interval: scrape_interval.or(file.scrape_interval).unwrap_or(DEFAULT_SCRAPE_INTERVAL),
            emit: either(emit.into_iter().flatten().collect(), file.emit),
            wavefront: Options {
                names: wavefront_names.or(file.wavefront_names).unwrap_or_default(),
                ..file.wavefront
            },
            wavefront_token_file: wavefront_token_file.or(file.wavefront_token_file),
            wavefront_ca_file: wavefront_ca_file.or(file.wavefront_ca_file),
            queue_dir: queue_dir.or(file.queue_dir),
            queue_bytes: file.queue_bytes.unwrap_or(DEFAULT_QUEUE_BYTES),
            pin: pin.or(file.pin),
            log: log.or(file.log).unwrap_or_default(),
            sidecar_exe,
            control_plane: either(control_plane.into_iter().flatten().collect(), file.control_plane),
            control_plane_ca: file.control_plane_ca,
            control_plane_exe,
            scrape_proxies: scrape_proxies.or(file.scrape_proxies).unwrap_or_default(),
            cgroup: either(cgroup, file.cgroup),
            proc_root: proc_root.or(file.proc_root).unwrap_or_else(|| "/proc".into()),
            cgroup_root: cgroup_root.or(file.cgroup_root),
            max_series: file.max_series.unwrap_or(DEFAULT_MAX_SERIES),
            max_open_calls: file.max_open_calls.unwrap_or(DEFAULT_MAX_OPEN_CALLS),
            tcp_ports: file.tcp_ports,
            http_ports: file.http_ports,
            excluded_ports: file.excluded_ports,
            sidecars: file.sidecars,
            peers: file.peers,
        }
    }

    /// Time between two reports as it is kept: Wavefront's timestamps are whole seconds, and of two points of one second the
    /// later would replace the earlier.
    #[must_use]
    pub fn report_interval(&self) -> Duration {
        if self.emit.is_empty() { self.interval } else { self.interval.max(Duration::from_secs(1)) }
    }

    /// What discovery looks for.
    #[must_use]
    pub fn discovery(&self) -> DiscoveryConfig {
        let ztunnel = self.scrape_proxies.then(ComponentRule::ztunnel);
        DiscoveryConfig {
            proc_root: self.proc_root.clone(),
            cgroup_root: self.cgroup_root.clone(),
            executables: self.sidecar_exe.clone(),
            components: self.control_plane_exe.iter().cloned().chain(ztunnel).collect(),
            cgroups: self.cgroup.clone(),
            rules: self.sidecars.clone(),
        }
    }

    /// The metrics pages that were named.
    pub fn control_plane(&self) -> impl Iterator<Item = control_plane::ScrapeTarget> + use<'_> {
        let node = app::node_name();
        self.control_plane.iter().cloned().map(move |url| control_plane::ScrapeTarget::named(url, &node))
    }

    /// How the control plane is scraped.
    #[must_use]
    pub fn scraping(&self) -> control_plane::Options {
        control_plane::Options {
            interval: self.scrape_interval,
            ca_file: self.control_plane_ca.clone(),
            proc_root: self.proc_root.clone(),
        }
    }

    /// What the kernel programs are told.
    #[must_use]
    pub fn kernel(&self) -> kernel::Options {
        kernel::Options {
            max_series: self.max_series,
            max_open_calls: self.max_open_calls,
            tcp_ports: self.tcp_ports.clone(),
            http_ports: self.http_ports.clone(),
            excluded_ports: self.excluded_ports.clone(),
        }
    }

    /// Services and workloads that are not on this node.
    #[must_use]
    pub fn peers(&self) -> StaticPeers {
        self.peers.clone()
    }
}

/// The first that has the key of one before it.
fn repeated<T, K: Ord>(all: &[T], key: impl Fn(&T) -> K) -> Option<&T> {
    let mut seen = BTreeSet::new();
    all.iter().find(|one| !seen.insert(key(one)))
}

fn either<T>(given: Vec<T>, file: Vec<T>) -> Vec<T> {
    if given.is_empty() { file } else { given }
}

/// What the file says, checked.
#[derive(Debug, Default)]
struct Settings {
    listen: Option<SocketAddr>,
    interval: Option<Duration>,
    scrape_interval: Option<Duration>,
    emit: Vec<Target>,
    wavefront_names: Option<Names>,
    /// All but the names.
    wavefront: Options,
    wavefront_token_file: Option<PathBuf>,
    wavefront_ca_file: Option<PathBuf>,
    queue_dir: Option<PathBuf>,
    queue_bytes: Option<u64>,
    pin: Option<PathBuf>,
    log: Option<LogLevel>,
    sidecar_exe: Vec<String>,
    control_plane: Vec<PageUrl>,
    control_plane_ca: Option<PathBuf>,
    control_plane_exe: Vec<ComponentRule>,
    scrape_proxies: Option<bool>,
    cgroup: Vec<PathBuf>,
    proc_root: Option<PathBuf>,
    cgroup_root: Option<PathBuf>,
    max_series: Option<u32>,
    max_open_calls: Option<u32>,
    tcp_ports: Vec<u16>,
    http_ports: Vec<u16>,
    excluded_ports: Vec<u16>,
    sidecars: Vec<SidecarRule>,
    peers: StaticPeers,
}

/// A place in the file's text, in bytes, and what is wrong there.
type Problem = (usize, String);

impl Settings {
    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let parsed = toml::from_str::<File>(text)
            .map_err(|error| (error.span().map_or(0, |span| span.start), error.message().to_owned()));
        parsed.and_then(Self::check).map_err(|(at, problem)| {
            let (line, column) = position(text, at);
            ConfigError::Wrong { path: path.to_owned(), line, column, key: key(text, at), problem }
        })
    }

    fn check(file: File) -> Result<Self, Problem> {
        let mut tcp_ports: Vec<u16> = file.tcp_ports.into_iter().map(NonZeroU16::get).collect();
        let declared = declared_ports(&file.service)?;
        let of = |protocol| declared.iter().filter(move |(_, declared)| **declared == protocol).map(|(port, _)| *port);
        for port in of(PortProtocol::Tcp) {
            if !tcp_ports.contains(&port) {
                tcp_ports.push(port);
            }
        }
        let http_ports = of(PortProtocol::Http).filter(|port| !tcp_ports.contains(port)).collect();
        Ok(Self {
            listen: file.listen.map(|Listen(address)| address),
            interval: file.interval.map(|Interval(interval)| interval),
            scrape_interval: file.scrape_interval.map(|Interval(interval)| interval),
            emit: file.emit.into_iter().map(|Emit(target)| target).collect(),
            wavefront_names: file.wavefront_names.map(|WavefrontNames(names)| names),
            wavefront: file.wavefront.options(),
            wavefront_token_file: file.wavefront_token_file.map(|FilePath(path)| path),
            wavefront_ca_file: file.wavefront_ca_file.map(|FilePath(path)| path),
            queue_dir: file.queue_dir.map(|DirectoryPath(path)| path),
            queue_bytes: file.queue_bytes.map(|QueueBytes(number)| number),
            pin: file.pin.map(|DirectoryPath(path)| path),
            log: file.log,
            sidecar_exe: file.sidecar_exe.into_iter().map(|ExecutableName(name)| name).collect(),
            control_plane: file.control_plane.into_iter().map(|ControlPlane(url)| url).collect(),
            control_plane_ca: file.control_plane_ca.map(|FilePath(path)| path),
            control_plane_exe: file.control_plane_exe.into_iter().map(|ControlPlaneExe(rule)| rule).collect(),
            scrape_proxies: file.scrape_proxies,
            cgroup: file.cgroup.into_iter().map(|DirectoryPath(path)| path).collect(),
            proc_root: file.proc_root.map(|DirectoryPath(path)| path),
            cgroup_root: file.cgroup_root.map(|DirectoryPath(path)| path),
            max_series: file.max_series.map(|MaxSeries(number)| number),
            max_open_calls: file.max_open_calls.map(|MaxOpenCalls(number)| number),
            tcp_ports,
            http_ports,
            excluded_ports: file.excluded_ports.into_iter().map(NonZeroU16::get).collect(),
            sidecars: file.sidecar.into_iter().map(sidecar).collect::<Result<_, _>>()?,
            peers: StaticPeers {
                services: file.service.into_iter().map(service).collect::<Result<_, _>>()?,
                workloads: file.workload.into_iter().map(workload).collect::<Result<_, _>>()?,
            },
        })
    }
}

/// The file's keys.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    listen: Option<Listen>,
    interval: Option<Interval>,
    scrape_interval: Option<Interval>,
    emit: Vec<Emit>,
    wavefront_names: Option<WavefrontNames>,
    wavefront_token_file: Option<FilePath>,
    wavefront_ca_file: Option<FilePath>,
    queue_dir: Option<DirectoryPath>,
    queue_bytes: Option<QueueBytes>,
    pin: Option<DirectoryPath>,
    wavefront: WavefrontTable,
    log: Option<LogLevel>,
    sidecar_exe: Vec<ExecutableName>,
    control_plane: Vec<ControlPlane>,
    control_plane_ca: Option<FilePath>,
    control_plane_exe: Vec<ControlPlaneExe>,
    scrape_proxies: Option<bool>,
    cgroup: Vec<DirectoryPath>,
    proc_root: Option<DirectoryPath>,
    cgroup_root: Option<DirectoryPath>,
    max_series: Option<MaxSeries>,
    max_open_calls: Option<MaxOpenCalls>,
    tcp_ports: Vec<NonZeroU16>,
    excluded_ports: Vec<NonZeroU16>,
    service: Vec<Spanned<Service>>,
    workload: Vec<Spanned<WorkloadTable>>,
    sidecar: Vec<Spanned<SidecarTable>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WavefrontTable {
    tags: PointTags,
    metric_allow_list: Vec<Pattern>,
    metric_deny_list: Vec<Pattern>,
    metric_tag_allow_list: BTreeMap<String, Vec<Pattern>>,
    metric_tag_deny_list: BTreeMap<String, Vec<Pattern>>,
    tag_include: Vec<Pattern>,
    tag_exclude: Vec<Pattern>,
    delta_counters: bool,
    distributions: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Service {
    host: String,
    name: Option<String>,
    namespace: Option<String>,
    addresses: Vec<IpAddr>,
    #[serde(default)]
    ports: Vec<Spanned<Port>>,
    workload: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Port {
    port: NonZeroU16,
    target_port: Option<NonZeroU16>,
    #[serde(default)]
    protocol: PortProtocol,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum PortProtocol {
    #[default]
    Auto,
    Http,
    Tcp,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WorkloadTable {
    addresses: Vec<IpAddr>,
    name: Option<String>,
    namespace: Option<String>,
    pod: Option<String>,
    cluster: Option<String>,
    service_account: Option<String>,
    trust_domain: Option<String>,
    node: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SidecarTable {
    cgroup: Option<PathBuf>,
    executable: Option<PathBuf>,
    role: Option<RoleName>,
    #[serde(default)]
    addresses: Vec<IpAddr>,
    name: Option<String>,
    namespace: Option<String>,
    pod: Option<String>,
    cluster: Option<String>,
    service_account: Option<String>,
    trust_domain: Option<String>,
    node: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RoleName {
    Sidecar,
    Tproxy,
    Gateway,
}

/// A value that is a string in the file and is checked as its option is.
macro_rules! checked {
    ($name:ident($value:ty), $parse:expr) => {
        #[derive(Debug)]
        struct $name($value);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                $parse(&text).map(Self).map_err(de::Error::custom)
            }
        }
    };
}

checked!(Listen(SocketAddr), cli::listen_address);
checked!(Interval(Duration), cli::interval);
checked!(Emit(Target), str::parse::<Target>);
checked!(WavefrontNames(Names), cli::wavefront_names);
checked!(Pattern(Glob), str::parse::<Glob>);
checked!(ExecutableName(String), cli::executable_name);
checked!(FilePath(PathBuf), |text: &str| match text {
    "" => Err("a path is missing; write a file, or leave the key out"),
    path => Ok(PathBuf::from(path)),
});
checked!(ControlPlane(PageUrl), str::parse::<PageUrl>);
checked!(ControlPlaneExe(ComponentRule), str::parse::<ComponentRule>);
checked!(DirectoryPath(PathBuf), |text: &str| match text {
    "" => Err("a path is missing; write a directory, or leave the key out"),
    path => Ok(PathBuf::from(path)),
});

#[derive(Debug, Default)]
struct PointTags(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for PointTags {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let tags = BTreeMap::<String, String>::deserialize(deserializer)?;
        let tags = tags.iter().map(|(key, value)| point_tag(key, value));
        tags.collect::<Result<_, _>>().map(Self).map_err(de::Error::custom)
    }
}

impl WavefrontTable {
    fn options(self) -> Options {
        let globs = |list: Vec<Pattern>| list.into_iter().map(|Pattern(glob)| glob).collect();
        let by_key =
            |table: BTreeMap<String, Vec<Pattern>>| table.into_iter().map(|(key, list)| (key, globs(list))).collect();
        Options {
            names: Names::default(),
            tags: self.tags.0,
            filters: Filters {
                metric_allow: globs(self.metric_allow_list),
                metric_deny: globs(self.metric_deny_list),
                metric_tag_allow: by_key(self.metric_tag_allow_list),
                metric_tag_deny: by_key(self.metric_tag_deny_list),
                tag_include: globs(self.tag_include),
                tag_exclude: globs(self.tag_exclude),
            },
            delta_counters: self.delta_counters,
            distributions: self.distributions,
        }
    }
}

/// A number within bounds.
macro_rules! bounded {
    ($name:ident($value:ty), $least:expr, $most:expr) => {
        #[derive(Debug)]
        struct $name($value);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let number = i64::deserialize(deserializer)?;
                <$value>::try_from(number)
                    .ok()
                    .filter(|number| ($least..=$most).contains(number))
                    .map(Self)
                    .ok_or_else(|| de::Error::custom(format!("{number} is not between {} and {}", $least, $most)))
            }
        }
    };
}

bounded!(MaxSeries(u32), 1, MOST_SERIES);
bounded!(MaxOpenCalls(u32), 1, MOST_OPEN_CALLS);
// One batch is at most half a mebibyte before it is compressed; more than a tebibyte is a slip.
bounded!(QueueBytes(u64), 1_u64 << 20, 1_u64 << 40);

/// What services declare ports as. The kernel programs know ports, not services, so that two services cannot disagree; where one
/// leaves it open, so is it for an HTTP port of another.
fn declared_ports(services: &[Spanned<Service>]) -> Result<BTreeMap<u16, PortProtocol>, Problem> {
    let mut declared: BTreeMap<u16, (PortProtocol, &str)> = BTreeMap::new();
    for service in services.iter().map(Spanned::get_ref) {
        for port in &service.ports {
            let Port { port: number, target_port, protocol } = port.get_ref();
            for number in [Some(*number), *target_port].into_iter().flatten().map(NonZeroU16::get) {
                match declared.entry(number) {
                    Entry::Occupied(mut other) => match (other.get().0, *protocol) {
                        (PortProtocol::Http, PortProtocol::Tcp) | (PortProtocol::Tcp, PortProtocol::Http) => {
                            let problem = format!(
                                "port {number} of {} is HTTP for one service and TCP for another ({}); the kernel side tells \
                                 ports apart, not services: write protocol = \"auto\" for both",
                                service.host,
                                other.get().1
                            );
                            return Err((port.span().start, problem));
                        }
                        (PortProtocol::Http, PortProtocol::Auto) | (PortProtocol::Auto, PortProtocol::Tcp) => {
                            other.insert((*protocol, &service.host));
                        }
                        _ => {}
                    },
                    Entry::Vacant(free) => {
                        free.insert((*protocol, &service.host));
                    }
                }
            }
        }
    }
    Ok(declared.into_iter().map(|(port, (protocol, _))| (port, protocol)).collect())
}

fn service(table: Spanned<Service>) -> Result<ServiceEntry, Problem> {
    let at = table.span().start;
    let table = table.into_inner();
    let mut parts = table.host.split('.').map(str::to_owned);
    let name = table.name.or_else(|| parts.next()).filter(|name| !name.is_empty());
    let namespace = table.namespace.or_else(|| table.host.split('.').nth(1).map(str::to_owned));
    let (Some(name), Some(namespace)) = (name, namespace) else {
        let problem = format!(
            "host {:?} does not tell the namespace; write it in full, as in reviews.default.svc.cluster.local, or add the key \
             namespace",
            table.host
        );
        return Err((at, problem));
    };
    if table.addresses.is_empty() {
        return Err((at, "addresses is empty; write the addresses that clients connect to".to_owned()));
    }
    let ports = table
        .ports
        .into_iter()
        .map(Spanned::into_inner)
        .map(|port| ServicePort { port: port.port.get(), target: port.target_port.unwrap_or(port.port).get() });
    Ok(ServiceEntry {
        name,
        namespace,
        addresses: canonical(table.addresses),
        ports: ports.collect(),
        workload: table.workload,
        host: table.host,
    })
}

fn workload(table: Spanned<WorkloadTable>) -> Result<WorkloadEntry, Problem> {
    let at = table.span().start;
    let WorkloadTable { addresses, name, namespace, pod, cluster, service_account, trust_domain, node, labels } =
        table.into_inner();
    if addresses.is_empty() {
        return Err((at, "addresses is empty; write the addresses of the workload's instances".to_owned()));
    }
    let workload = Workload { pod, namespace, name, cluster, service_account, trust_domain, labels, node };
    Ok(WorkloadEntry { addresses: canonical(addresses), workload: Arc::new(workload) })
}

fn sidecar(table: Spanned<SidecarTable>) -> Result<SidecarRule, Problem> {
    let at = table.span().start;
    let table = table.into_inner();
    if table.cgroup.is_none() && table.executable.is_none() {
        let problem = "it has neither cgroup nor executable, so it matches no process; write one or both";
        return Err((at, problem.to_owned()));
    }
    let SidecarTable { name, namespace, pod, cluster, service_account, trust_domain, node, labels, .. } = table;
    Ok(SidecarRule {
        cgroup: table.cgroup,
        executable: table.executable,
        role: table.role.map(|role| match role {
            RoleName::Sidecar => Role::Sidecar,
            RoleName::Tproxy => Role::TproxySidecar,
            RoleName::Gateway => Role::Gateway,
        }),
        addresses: canonical(table.addresses),
        workload: Workload { pod, namespace, name, cluster, service_account, trust_domain, labels, node },
    })
}

fn canonical(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    addresses.into_iter().map(|address| address.to_canonical()).collect()
}

/// Line and column, both from 1.
fn position(text: &str, at: usize) -> (usize, usize) {
    let before = &text[..text.floor_char_boundary(at)];
    let line_start = before.rfind('\n').map_or(0, |end| end + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// The key that a place in the text belongs to, with its table.
fn key(text: &str, at: usize) -> String {
    let at = text.floor_char_boundary(at);
    let line_end = text[at..].find('\n').map_or(text.len(), |end| at + end);
    let (mut table, mut key) = (None, None);
    for line in text[..line_end].lines().map(str::trim_start) {
        if let Some(name) = table_name(line) {
            (table, key) = (Some(name), None);
        } else if let Some((name, _)) = line.split_once('=').filter(|(name, _)| is_key(name.trim())) {
            key = Some(name.trim());
        }
    }
    match (table, key) {
        (Some(table), Some(key)) => format!("{table}.{key}"),
        (Some(one), None) | (None, Some(one)) => one.to_owned(),
        (None, None) => "file".to_owned(),
    }
}

/// The name in `[name]` or `[[name]]`.
fn table_name(line: &str) -> Option<&str> {
    let name = line.strip_prefix('[')?.trim_start_matches('[').split(']').next()?.trim();
    is_key(name).then_some(name)
}

fn is_key(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || "_-.".contains(c))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::catalogue;

    const EXAMPLE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/observer.example.toml"));

    fn parse(text: &str) -> Result<Settings, String> {
        Settings::parse(Path::new("o.toml"), text).map_err(|error| error.to_string())
    }

    /// The example with every commented key in force.
    fn uncommented() -> String {
        let lines =
            EXAMPLE.lines().map(|line| line.strip_prefix("#").filter(|rest| !rest.starts_with(' ')).unwrap_or(line));
        lines.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_example_loads_and_says_the_defaults() {
        let example = Config::resolve(&RunArgs::default(), parse(EXAMPLE).unwrap());
        assert_eq!(example, Config::resolve(&RunArgs::default(), Settings::default()));
        let in_force = parse(&uncommented()).unwrap();
        assert_eq!(in_force.listen, Some(DEFAULT_LISTEN));
        assert_eq!(in_force.interval, Some(DEFAULT_INTERVAL));
        assert_eq!(in_force.scrape_interval, Some(DEFAULT_SCRAPE_INTERVAL));
        assert_eq!(in_force.max_series, Some(DEFAULT_MAX_SERIES));
        assert_eq!(in_force.max_open_calls, Some(DEFAULT_MAX_OPEN_CALLS));
        assert_eq!(in_force.queue_bytes, Some(DEFAULT_QUEUE_BYTES));
        assert_eq!(in_force.wavefront_names, Some(Names::default()));
        assert_eq!(in_force.log, Some(LogLevel::default()));
        assert_eq!(in_force.sidecar_exe, ["envoy"]);
        assert_eq!(in_force.control_plane_exe, ComponentRule::control_plane());
        assert_eq!(in_force.scrape_proxies, Some(false));
        assert_eq!(in_force.proc_root.as_deref(), Some(Path::new("/proc")));
        assert_eq!((in_force.sidecars.len(), in_force.peers.services.len(), in_force.peers.workloads.len()), (1, 1, 1));
    }

    #[test]
    fn the_old_chains_set_up_loads_and_sends_its_names() {
        const CHAIN: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/wavefront.example.toml"));
        let config = Config::resolve(&RunArgs::default(), parse(CHAIN).unwrap());
        assert_eq!(config.emit.len(), 1);
        assert_eq!(config.wavefront.names, Names::Collector);
        assert_eq!(config.wavefront.tags["cluster"], "my-cluster");
        let documented = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/documented_names.txt"));
        for name in documented.lines() {
            let sent = name.replace('*', "bucket.p99");
            assert!(config.wavefront.filters.passes_name(&sent), "{name}");
        }
        assert!(!config.wavefront.filters.passes_name(catalogue::CPU_SECONDS.documented_name));
    }

    #[test]
    fn the_example_has_every_key() {
        // serde lists a table's keys when it meets one that it does not know.
        for (table, unknown) in [
            ("", "x = 1"),
            ("[wavefront]", "[wavefront]\nx = 1"),
            ("[[service]]", "[[service]]\nx = 1"),
            ("ports = ", "[[service]]\nhost = \"a.b\"\naddresses = []\nports = [{ x = 1 }]"),
            ("[[workload]]", "[[workload]]\nx = 1"),
            ("[[sidecar]]", "[[sidecar]]\nx = 1"),
        ] {
            let error = parse(unknown).unwrap_err();
            let expected = error.split_once("expected").unwrap().1;
            let keys: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
            assert!(keys.len() > 2, "{error}");
            let after = uncommented();
            let section = &after[after.find(table).unwrap()..];
            for key in keys {
                let forms = [format!("\n{key} = "), format!("{{ {key} = "), format!(", {key} = "), format!("[{key}]")];
                assert!(forms.iter().any(|form| section.contains(form)), "{table} {key}");
            }
        }
    }

    #[test]
    fn every_option_of_run_is_a_key() {
        let error = parse("x = 1").unwrap_err();
        let cli = <cli::Cli as clap::CommandFactory>::command();
        for argument in cli.find_subcommand("run").unwrap().get_arguments() {
            let key = argument.get_id().as_str();
            assert!(key == "config" || error.contains(&format!("`{key}`")), "{key}");
        }
    }

    #[test]
    fn an_option_counts_more_than_the_file() {
        let file = || parse("interval = \"20s\"\nsidecar_exe = [\"proxy\"]\nlog = \"warn\"").unwrap();
        let from_file = Config::resolve(&RunArgs::default(), file());
        assert_eq!((from_file.interval, from_file.log), (Duration::from_secs(20), LogLevel::Warn));
        assert_eq!(from_file.sidecar_exe, ["proxy"]);
        let node = NodeArgs { sidecar_exe: vec!["envoy2".to_owned()], ..NodeArgs::default() };
        let args = RunArgs { interval: Some(Duration::from_secs(5)), node, ..RunArgs::default() };
        let given = Config::resolve(&args, file());
        assert_eq!((given.interval, given.log), (Duration::from_secs(5), LogLevel::Warn));
        assert_eq!(given.sidecar_exe, ["envoy2"]);
    }

    #[test]
    fn errors_say_line_column_key_and_remedy() {
        for (text, place, expected) in [
            ("intervall = \"10s\"", "o.toml:1:1: intervall: ", "`interval`"),
            ("\ninterval = \"10\"", "o.toml:2:12: interval: ", "as in 10s"),
            ("listen = \"loopback\"", "o.toml:1:10: listen: ", "127.0.0.1:9469"),
            ("log = \"loud\"", "o.toml:1:7: log: ", "`trace`"),
            ("max_series = 0", "o.toml:1:14: max_series: ", "between 1 and 1000000"),
            ("max_open_calls = 0", "o.toml:1:18: max_open_calls: ", "between 1 and 2000000"),
            ("[wavefront]\ntags = { source = \"x\" }", "o.toml:2:8: wavefront.tags: ", "have a meaning already"),
            ("[wavefront]\ntag_include = [\"a[\"]", "o.toml:2:15: wavefront.tag_include: ", "[ is never closed"),
            ("queue_bytes = 1000", "o.toml:1:15: queue_bytes: ", "between 1048576 and 1099511627776"),
            ("tcp_ports = [\n  25,\n  70000,\n]", "o.toml:3:3: tcp_ports: ", "70000"),
            ("emit = [\"kafka:x\"]", "o.toml:1:8: emit: ", "wavefront+file:PATH"),
            ("cgroup_root = \"\"", "o.toml:1:15: cgroup_root: ", "a path is missing"),
            ("pin = \"\"", "o.toml:1:7: pin: ", "a path is missing"),
            ("control_plane_ca = \"\"", "o.toml:1:20: control_plane_ca: ", "a path is missing"),
            ("sidecar_exe = [\"a/b\"]", "o.toml:1:15: sidecar_exe: ", "as in envoy"),
            ("control_plane_exe = [\"a:x\"]", "o.toml:1:21: control_plane_exe: ", "as in pilot-discovery"),
            ("listen = ", "o.toml:1:", "listen"),
            (
                "[[service]]\nhost = \"reviews\"\naddresses = [\"10.0.0.1\"]",
                "o.toml:1:1: service: ",
                "add the key namespace",
            ),
            ("[[service]]\nhost = \"a.b\"", "o.toml:1:1: service: ", "missing field `addresses`"),
            ("[[service]]\nhost = \"a.b\"\naddresses = [\"x\"]", "o.toml:3:14: service.addresses: ", "IP address"),
            ("log = \"info\"\n[[sidecar]]\nname = \"x\"", "o.toml:2:1: sidecar: ", "neither cgroup nor executable"),
            ("[[workload]]\naddresses = []", "o.toml:1:1: workload: ", "addresses is empty"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(place) && error.contains(expected), "{text:?}: {error}");
        }
    }

    #[test]
    fn what_would_be_exposed_or_sent_twice_is_refused() {
        let load = |text: &str| Config::from_text(&RunArgs::default(), Path::new("o.toml"), text);
        for (text, expected) in [
            (
                "emit = [\"wavefront+http://p:1\", \"wavefront+http://p:1/\"]",
                "emit: wavefront+http://p:1/ is there twice",
            ),
            ("emit = [\"wavefront+http://p:1?a=b\", \"wavefront+http://p:1?a=c\"]", "a query makes no difference"),
            ("emit = [\"wavefront+http://p:1/a_b\", \"wavefront+http://p:1/a/b\"]", "one queue"),
            ("control_plane = [\"http://u:secret@a:1/x\", \"http://a:1/y\"]", "control_plane: a:1 is there twice"),
            ("control_plane = [\"http://a\", \"http://A:80/metrics\"]", "control_plane: a:80 is there twice"),
        ] {
            let error = load(text).unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains("secret"), "{error}");
        }
        load(
            "emit = [\"wavefront+http://p:1\", \"wavefront+http://p:2\"]\ncontrol_plane = [\"http://a\", \"http://b\"]",
        )
        .unwrap();
    }

    #[test]
    fn reports_are_a_second_apart_where_timestamps_are_seconds() {
        let interval = |text: &str| Config::resolve(&RunArgs::default(), parse(text).unwrap()).report_interval();
        assert_eq!(interval("interval = \"200ms\""), Duration::from_millis(200));
        assert_eq!(interval("interval = \"200ms\"\nemit = [\"wavefront+file:-\"]"), Duration::from_secs(1));
        assert_eq!(interval("interval = \"1h\"\nemit = [\"wavefront+file:-\"]"), Duration::from_hours(1));
    }

    #[test]
    fn an_unreadable_file_is_named() {
        let node = NodeArgs { config: Some("/nonexistent/o.toml".into()), ..NodeArgs::default() };
        let error = Config::load(&RunArgs { node, ..RunArgs::default() }).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/o.toml") && error.contains("--config"), "{error}");
    }

    #[test]
    fn a_wrong_target_is_explained_without_its_password() {
        for (text, said) in [
            ("otlp+http://collector:4318", "this version has no emitter"),
            ("wavefront+http://u:secret@p", "credentials"),
        ] {
            let args = RunArgs { emit: vec![text.parse()], ..RunArgs::default() };
            let error = Config::load(&args).unwrap_err().to_string();
            assert!(error.contains(said) && error.contains("wavefront+https://INSTANCE"), "{error}");
            assert!(error.contains("--emit") && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn services_derive_names_and_tcp_ports() {
        let settings = parse(
            "tcp_ports = [9000]\n[[service]]\nhost = \"db.shop.svc.cluster.local\"\naddresses = [\"::ffff:10.0.0.1\"]\n\
             ports = [{ port = 5432, target_port = 15432, protocol = \"tcp\" }, { port = 80 }]",
        )
        .unwrap();
        assert_eq!(settings.tcp_ports, [9000, 5432, 15432]);
        let service = &settings.peers.services[0];
        assert_eq!((service.name.as_str(), service.namespace.as_str()), ("db", "shop"));
        assert_eq!(service.addresses, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(service.ports[0], ServicePort { port: 5432, target: 15432 });
        assert_eq!(service.ports[1], ServicePort { port: 80, target: 80 });
    }

    #[test]
    fn services_that_disagree_on_a_port_are_refused() {
        let table = |host: &str, protocol: &str| {
            format!(
                "[[service]]\nhost = \"{host}\"\naddresses = [\"::1\"]\nports = [{{ port = 80, protocol = \"{protocol}\" }}]\n"
            )
        };
        let error = parse(&(table("a.x", "http") + &table("b.x", "tcp"))).unwrap_err();
        assert!(error.starts_with("o.toml:8:10: service.ports: port 80 of b.x") && error.contains("a.x"), "{error}");
        assert!(parse(&(table("a.x", "http") + &table("b.x", "auto"))).is_ok());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(listen|interval|\\[\\[service\\]\\]|=|\\[|\\]|\"|\n|é|1|x| ){0,30}", at in 0usize..80) {
            if let Err(error) = parse(&text) {
                prop_assert!(error.starts_with("o.toml:"), "{}", error);
            }
            let at = at.min(text.len());
            let (line, column) = position(&text, at);
            prop_assert!(line >= 1 && column >= 1 && !key(&text, at).is_empty());
        }
    }
}
