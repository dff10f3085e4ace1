//! The configuration: options override environment variables, which override the file, which overrides the defaults.
//!
//! [`Config`] is what the file deserialises into: a key is declared once, with the type that the daemon uses.

pub mod values;

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fs, io,
    net::IpAddr,
    num::NonZeroU16,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Deserializer, de};
use toml::Spanned;

use self::values::{
    Callers, DEFAULT_LISTEN, ExecutableName, Interval, KubernetesMode, ListenAddress, LogLevel, Parsed, TraceKinds,
    TracePaths, bounded, directories, directory, file, parsed, parsed_list, wavefront_names,
};
use crate::{
    cli::args::{NodeArgs, RunArgs},
    collect::scrape::{EndpointUrl, ScrapeOptions, ScrapeTarget},
    discovery::{DiscoveryConfig, Role, SidecarRule, Workload, component::ComponentRule},
    emit::{
        EmitTarget, TargetError,
        disk_queue::directory_name,
        options::{OtlpOptions, RemoteWriteOptions, ZipkinOptions},
        wavefront::{Names, Options, filter::Filters, glob::Glob, point_tag},
    },
    kernel::{self, Traces},
    model::workload_index::{ServiceEntry, ServicePort, StaticPeers, WorkloadEntry},
    serve::{Hosts, WebHost},
    system::host::{host_name, node_name},
};

/// More series would take over a gigabyte of kernel memory.
const MAX_SERIES: i64 = 1_000_000;
/// More open streams would take over half a gigabyte.
const MAX_OPEN_CALLS: i64 = 2_000_000;
/// A batch has at most half a mebibyte before it is compressed.
const MIN_QUEUE_BYTES: i64 = 1 << 20;
const MAX_QUEUE_BYTES: i64 = 1 << 40;

/// The keys of the configuration file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Address of /metrics, /healthz and /readyz.
    #[serde(deserialize_with = "parsed")]
    pub listen: ListenAddress,
    /// Web configuration file: TLS and users of these pages.
    #[serde(deserialize_with = "file")]
    pub web_config_file: Option<PathBuf>,
    /// Names under which they may be read.
    #[serde(deserialize_with = "parsed_list")]
    pub web_host: Vec<WebHost>,
    /// Interval of pushes and of their percentiles.
    #[serde(deserialize_with = "parsed")]
    pub interval: Interval,
    /// Interval of scrapes of each control-plane endpoint.
    #[serde(deserialize_with = "parsed")]
    pub scrape_interval: Interval,
    /// Where metrics are pushed.
    #[serde(deserialize_with = "parsed_list")]
    pub emit: Vec<EmitTarget>,
    /// Names of Wavefront metrics.
    #[serde(deserialize_with = "wavefront_names")]
    pub wavefront_names: Names,
    /// File with the API token of the Wavefront service.
    #[serde(deserialize_with = "file")]
    pub wavefront_token_file: Option<PathBuf>,
    /// File with the CA certificates that are trusted for pushes; the system's if absent.
    #[serde(deserialize_with = "file")]
    pub wavefront_ca_file: Option<PathBuf>,
    /// Directory of the disk queues.
    #[serde(deserialize_with = "directory")]
    pub queue_dir: Option<PathBuf>,
    /// Maximum bytes of one emitter's disk queue.
    #[serde(deserialize_with = "bounded::<_, _, MIN_QUEUE_BYTES, MAX_QUEUE_BYTES>")]
    pub queue_bytes: u64,
    /// Directory on bpffs where maps and links outlive the process.
    #[serde(deserialize_with = "directory")]
    pub pin: Option<PathBuf>,
    wavefront: WavefrontTable,
    /// Options of OTLP receivers.
    pub otlp: OtlpOptions,
    /// Options of receivers of Zipkin's spans.
    pub zipkin: ZipkinOptions,
    /// Options of receivers of remote write.
    pub remote_write: RemoteWriteOptions,
    /// How much is logged.
    pub log: LogLevel,
    /// Executable names of sidecars.
    #[serde(deserialize_with = "parsed_list")]
    pub sidecar_exe: Vec<ExecutableName>,
    /// Named /metrics endpoints of the control plane.
    #[serde(deserialize_with = "parsed_list")]
    pub control_plane: Vec<EndpointUrl>,
    /// File with the CA certificates that are trusted for those endpoints.
    #[serde(deserialize_with = "file")]
    pub control_plane_ca: Option<PathBuf>,
    /// Executables of the control plane.
    #[serde(deserialize_with = "parsed_list")]
    pub control_plane_exe: Vec<ComponentRule>,
    /// Whether the endpoints of sidecars, gateways and ztunnels are scraped too.
    pub scrape_proxies: bool,
    /// Whether callers at the destination leg are read.
    pub callers: Callers,
    /// Whether trace contexts of requests are read, for exemplars.
    pub traces: bool,
    /// What spans say of the paths of requests.
    pub trace_paths: TracePaths,
    /// Which ends of requests become spans.
    pub trace_kinds: TraceKinds,
    /// cgroup v2 directories that are always observed.
    #[serde(deserialize_with = "directories")]
    pub cgroup: Vec<PathBuf>,
    /// The proc file system.
    #[serde(deserialize_with = "directory")]
    proc_root: Option<PathBuf>,
    /// The cgroup v2 file system; found in mountinfo if absent.
    #[serde(deserialize_with = "directory")]
    pub cgroup_root: Option<PathBuf>,
    /// Whether names come from the Kubernetes API.
    pub kubernetes: KubernetesMode,
    /// File with the address of the Kubernetes API and the credentials for it; the pod's service account if absent.
    #[serde(deserialize_with = "file")]
    pub kubeconfig: Option<PathBuf>,
    /// Domain of the cluster; the resolver's, or `cluster.local`, if absent.
    pub cluster_domain: Option<String>,
    /// Maximum number of series.
    #[serde(deserialize_with = "bounded::<_, _, 1, MAX_SERIES>")]
    pub max_series: u32,
    /// Maximum number of open streams of HTTP/2 connections with more than 32 of them.
    #[serde(deserialize_with = "bounded::<_, _, 1, MAX_OPEN_CALLS>")]
    pub max_open_calls: u32,
    tcp_ports: Vec<NonZeroU16>,
    excluded_ports: Vec<NonZeroU16>,
    service: Vec<Service>,
    workload: Vec<WorkloadTable>,
    sidecar: Vec<SidecarTable>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: DEFAULT_LISTEN,
            web_config_file: None,
            web_host: Vec::new(),
            interval: Interval(Duration::from_secs(10)),
            scrape_interval: Interval(Duration::from_secs(10)),
            emit: Vec::new(),
            wavefront_names: Names::default(),
            wavefront_token_file: None,
            wavefront_ca_file: None,
            queue_dir: None,
            queue_bytes: 256 << 20,
            pin: None,
            wavefront: WavefrontTable::default(),
            otlp: OtlpOptions::default(),
            zipkin: ZipkinOptions::default(),
            remote_write: RemoteWriteOptions::default(),
            log: LogLevel::default(),
            sidecar_exe: vec![ExecutableName("envoy".to_owned())],
            control_plane: Vec::new(),
            control_plane_ca: None,
            control_plane_exe: ComponentRule::control_plane(),
            scrape_proxies: false,
            callers: Callers::Auto,
            traces: false,
            trace_paths: TracePaths::default(),
            trace_kinds: TraceKinds::default(),
            cgroup: Vec::new(),
            proc_root: None,
            cgroup_root: None,
            kubernetes: KubernetesMode::default(),
            kubeconfig: None,
            cluster_domain: None,
            max_series: 10_000,
            max_open_calls: 131_072,
            tcp_ports: Vec::new(),
            excluded_ports: Vec::new(),
            service: Vec::new(),
            workload: Vec::new(),
            sidecar: Vec::new(),
        }
    }
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
    /// An endpoint is invalid. It is not repeated, as it may hold a password.
    #[error("--control-plane: {0}")]
    ControlPlane(String),
    /// A target is invalid.
    #[error("--emit: {0}")]
    Emit(TargetError),
    /// Values are valid by themselves but not together.
    #[error("{0}")]
    Conflict(String),
    /// The file is invalid.
    #[error("{path}:{line}:{column}: {key}: {problem}; the annotated observer.example.toml has every key")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// The key, with its table.
        key: String,
        /// What is wrong, and what is expected.
        problem: String,
    },
}

impl Config {
    /// Reads the file that the options name, if any, and applies the options.
    ///
    /// # Errors
    /// The file cannot be read, or a value is invalid.
    pub fn load(args: &RunArgs) -> Result<Self, ConfigError> {
        if let Some(error) = args.node.control_plane.iter().find_map(|endpoint| endpoint.as_ref().err()) {
            return Err(ConfigError::ControlPlane(error.clone()));
        }
        if let Some(error) = args.emit.iter().find_map(|target| target.as_ref().err()) {
            return Err(ConfigError::Emit(error.clone()));
        }
        let Some(path) = &args.node.config else { return Self::default().overridden_by(args).consistent() };
        let text = fs::read_to_string(path).map_err(|reason| ConfigError::Unreadable { path: path.clone(), reason })?;
        Self::from_text(args, path, &text)
    }

    /// Loads a file with this text as [`Config::load`] does; `path` is for the errors.
    ///
    /// # Errors
    /// A value is invalid.
    pub fn from_text(args: &RunArgs, path: &Path, text: &str) -> Result<Self, ConfigError> {
        Self::parse(path, text)?.overridden_by(args).consistent()
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let parsed = toml::from_str::<Self>(text)
            .map_err(|error| (error.span().map_or(0, |span| span.start), error.message().to_owned()))
            .and_then(|config| config.declared_ports().map(|_| config));
        let mut config = parsed.map_err(|(at, problem)| {
            let (line, column) = position(text, at);
            ConfigError::Invalid { path: path.to_owned(), line, column, key: key(text, at), problem }
        })?;
        // Nothing could be found with an empty list.
        let defaults = Self::default();
        if config.sidecar_exe.is_empty() {
            config.sidecar_exe = defaults.sidecar_exe;
        }
        if config.control_plane_exe.is_empty() {
            config.control_plane_exe = defaults.control_plane_exe;
        }
        Ok(config)
    }

    fn overridden_by(mut self, args: &RunArgs) -> Self {
        let RunArgs {
            listen,
            web_config_file,
            web_host,
            interval,
            emit,
            wavefront_names,
            wavefront_token_file,
            wavefront_ca_file,
            otlp,
            zipkin,
            remote_write,
            queue_dir,
            pin,
            node,
        } = args.clone();
        let NodeArgs {
            config: _,
            log,
            sidecar_exe,
            cgroup,
            proc_root,
            cgroup_root,
            kubernetes,
            kubeconfig,
            scrape_interval,
            control_plane,
            control_plane_exe,
            scrape_proxies,
            callers,
            traces,
            trace_paths,
            trace_kinds,
        } = node;
        replace(&mut self.listen, listen);
        replace(&mut self.web_config_file, web_config_file.map(Some));
        replace_list(&mut self.web_host, web_host);
        replace(&mut self.interval, interval);
        replace_list(&mut self.emit, emit.into_iter().flatten().collect());
        replace(&mut self.wavefront_names, wavefront_names);
        replace(&mut self.wavefront_token_file, wavefront_token_file.map(Some));
        replace(&mut self.wavefront_ca_file, wavefront_ca_file.map(Some));
        self.otlp = otlp.or(&self.otlp);
        self.zipkin = zipkin.or(&self.zipkin);
        self.remote_write = remote_write.or(&self.remote_write);
        replace(&mut self.queue_dir, queue_dir.map(Some));
        replace(&mut self.pin, pin.map(Some));
        replace(&mut self.log, log);
        replace_list(&mut self.sidecar_exe, sidecar_exe);
        replace_list(&mut self.cgroup, cgroup);
        replace(&mut self.proc_root, proc_root.map(Some));
        replace(&mut self.cgroup_root, cgroup_root.map(Some));
        replace(&mut self.kubernetes, kubernetes);
        replace(&mut self.kubeconfig, kubeconfig.map(Some));
        replace(&mut self.scrape_interval, scrape_interval);
        replace_list(&mut self.control_plane, control_plane.into_iter().flatten().collect());
        replace_list(&mut self.control_plane_exe, control_plane_exe);
        replace(&mut self.scrape_proxies, scrape_proxies);
        replace(&mut self.callers, callers);
        replace(&mut self.traces, traces);
        replace(&mut self.trace_paths, trace_paths);
        replace(&mut self.trace_kinds, trace_kinds);
        self
    }

    /// Rejects values that are valid by themselves but not together.
    fn consistent(self) -> Result<Self, ConfigError> {
        if let Some(target) = repeated(&self.emit, |target| directory_name(&target.to_string())) {
            return Err(ConfigError::Conflict(format!(
                "emit: {target} is there twice (a query or options make no difference): each receiver has one name in the metrics and \
                 one queue; name it once"
            )));
        }
        if let Some(endpoint) = repeated(&self.control_plane, EndpointUrl::instance) {
            let instance = endpoint.instance();
            return Err(ConfigError::Conflict(format!(
                "control_plane: {instance} is there twice: its metrics would be exposed twice under the same labels; name \
                 one endpoint of it"
            )));
        }
        Ok(self)
    }

    /// Returns the interval of pushes: at least a second to Wavefront, whose timestamps are whole seconds, as the later of
    /// two points of a second replaces the earlier.
    #[must_use]
    pub fn push_interval(&self) -> Duration {
        let Interval(interval) = self.interval;
        let is_wavefront = |target: &EmitTarget| {
            use EmitTarget::{WavefrontFile, WavefrontHttp, WavefrontHttps};
            matches!(target, WavefrontFile(_) | WavefrontHttp(_) | WavefrontHttps(_))
        };
        if self.emit.iter().any(is_wavefront) { interval.max(Duration::from_secs(1)) } else { interval }
    }

    /// Returns the proc file system.
    #[must_use]
    pub fn proc_root(&self) -> &Path {
        self.proc_root.as_deref().unwrap_or(Path::new("/proc"))
    }

    /// Returns the names under which the pages may be read.
    #[must_use]
    pub fn hosts(&self) -> Hosts {
        Hosts::new(&self.web_host, [Some(node_name()), host_name()].into_iter().flatten())
    }

    /// Returns the options of Wavefront encoders.
    #[must_use]
    pub fn wavefront(&self) -> Options {
        Options { names: self.wavefront_names, ..self.wavefront.clone().into() }
    }

    /// Returns the options of discovery.
    #[must_use]
    pub fn discovery(&self) -> DiscoveryConfig {
        let ztunnel = self.scrape_proxies.then(ComponentRule::ztunnel);
        DiscoveryConfig {
            proc_root: self.proc_root().to_owned(),
            cgroup_root: self.cgroup_root.clone(),
            executables: self.sidecar_exe.iter().map(ToString::to_string).collect(),
            components: self.control_plane_exe.iter().cloned().chain(ztunnel).collect(),
            cgroups: self.cgroup.clone(),
            rules: self.sidecar.iter().map(|table| table.0.clone()).collect(),
        }
    }

    /// Returns the endpoints that the configuration names.
    pub fn named_targets(&self) -> impl Iterator<Item = ScrapeTarget> + use<'_> {
        let node = node_name();
        self.control_plane.iter().cloned().map(move |url| ScrapeTarget::named(url, &node))
    }

    /// Returns the options of scrapes.
    #[must_use]
    pub fn scraping(&self) -> ScrapeOptions {
        ScrapeOptions {
            interval: self.scrape_interval.0,
            ca_file: self.control_plane_ca.clone(),
            proc_root: self.proc_root().to_owned(),
        }
    }

    /// Returns the options of the kernel side.
    #[must_use]
    pub fn kernel(&self) -> kernel::KernelOptions {
        let numbers = |ports: &[NonZeroU16]| ports.iter().copied().map(NonZeroU16::get).collect::<Vec<_>>();
        // Conflicts were rejected when the file was parsed.
        let declared = self.declared_ports().unwrap_or_default();
        let of = |protocol| declared.iter().filter(move |(_, other)| **other == protocol).map(|(port, _)| *port);
        let mut tcp_ports = numbers(&self.tcp_ports);
        tcp_ports.extend(of(PortProtocol::Tcp).filter(|port| !self.tcp_ports.iter().any(|other| other.get() == *port)));
        kernel::KernelOptions {
            max_series: self.max_series,
            max_open_calls: self.max_open_calls,
            http_ports: of(PortProtocol::Http).filter(|port| !tcp_ports.contains(port)).collect(),
            tcp_ports,
            excluded_ports: numbers(&self.excluded_ports),
            callers: self.callers == Callers::Auto,
            traces: self.trace_reading(),
            proc_root: self.proc_root().to_owned(),
        }
    }

    /// Returns what of the trace contexts of requests is read: whoever wants spans has exemplars too.
    #[must_use]
    pub fn trace_reading(&self) -> Traces {
        if self.emit.iter().any(EmitTarget::is_of_spans) {
            if self.trace_paths == TracePaths::Off { Traces::Spans } else { Traces::Targets }
        } else if self.traces {
            Traces::Exemplars
        } else {
            Traces::Off
        }
    }

    /// Returns the services and workloads that are not on this node.
    #[must_use]
    pub fn peers(&self) -> StaticPeers {
        StaticPeers {
            services: self.service.iter().map(|service| service.entry.clone()).collect(),
            workloads: self.workload.iter().map(|workload| workload.0.clone()).collect(),
        }
    }

    /// Replaces the services and workloads by those of another configuration.
    pub fn set_peers(&mut self, other: &Self) {
        self.service.clone_from(&other.service);
        self.workload.clone_from(&other.workload);
    }

    /// Returns the protocols that services declare. The kernel programs know ports, not services, so two services cannot
    /// disagree; where one of them leaves it open, so does the port, unless the other declares TCP.
    fn declared_ports(&self) -> Result<BTreeMap<u16, PortProtocol>, Problem> {
        let mut declared: BTreeMap<u16, (PortProtocol, &str)> = BTreeMap::new();
        for Service { entry, ports } in &self.service {
            for port in ports {
                let Port { port: number, target_port, protocol } = port.get_ref();
                for number in [Some(*number), *target_port].into_iter().flatten().map(NonZeroU16::get) {
                    match declared.entry(number) {
                        Entry::Occupied(mut other) => match (other.get().0, *protocol) {
                            (PortProtocol::Http, PortProtocol::Tcp) | (PortProtocol::Tcp, PortProtocol::Http) => {
                                let problem = format!(
                                    "port {number} of {} is HTTP for one service and TCP for another ({}); the eBPF \
                                     programs distinguish ports, not services: write protocol = \"auto\" for both",
                                    entry.host,
                                    other.get().1
                                );
                                return Err((port.span().start, problem));
                            }
                            (PortProtocol::Http, PortProtocol::Auto) | (PortProtocol::Auto, PortProtocol::Tcp) => {
                                other.insert((*protocol, &entry.host));
                            }
                            _ => {}
                        },
                        Entry::Vacant(place) => {
                            place.insert((*protocol, &entry.host));
                        }
                    }
                }
            }
        }
        Ok(declared.into_iter().map(|(port, (protocol, _))| (port, protocol)).collect())
    }
}

/// A byte offset in the file, and what is wrong there.
type Problem = (usize, String);

fn replace<T>(value: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *value = given;
    }
}

fn replace_list<T>(value: &mut Vec<T>, given: Vec<T>) {
    if !given.is_empty() {
        *value = given;
    }
}

/// Returns the first element with the key of an earlier one.
fn repeated<T, K: Ord>(all: &[T], key: impl Fn(&T) -> K) -> Option<&T> {
    let mut seen = BTreeSet::new();
    all.iter().find(|one| !seen.insert(key(one)))
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WavefrontTable {
    #[serde(deserialize_with = "point_tags")]
    tags: BTreeMap<String, String>,
    #[serde(deserialize_with = "parsed_list")]
    metric_allow_list: Vec<Glob>,
    #[serde(deserialize_with = "parsed_list")]
    metric_deny_list: Vec<Glob>,
    #[serde(deserialize_with = "globs_by_key")]
    metric_tag_allow_list: Vec<(String, Vec<Glob>)>,
    #[serde(deserialize_with = "globs_by_key")]
    metric_tag_deny_list: Vec<(String, Vec<Glob>)>,
    #[serde(deserialize_with = "parsed_list")]
    tag_include: Vec<Glob>,
    #[serde(deserialize_with = "parsed_list")]
    tag_exclude: Vec<Glob>,
    delta_counters: bool,
    distributions: bool,
}

impl From<WavefrontTable> for Options {
    fn from(table: WavefrontTable) -> Self {
        Self {
            names: Names::default(),
            tags: table.tags,
            filters: Filters {
                metric_allow: table.metric_allow_list,
                metric_deny: table.metric_deny_list,
                metric_tag_allow: table.metric_tag_allow_list,
                metric_tag_deny: table.metric_tag_deny_list,
                tag_include: table.tag_include,
                tag_exclude: table.tag_exclude,
            },
            delta_counters: table.delta_counters,
            distributions: table.distributions,
        }
    }
}

fn point_tags<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    let tags = BTreeMap::<String, String>::deserialize(deserializer)?;
    tags.iter().map(|(key, value)| point_tag(key, value)).collect::<Result<_, _>>().map_err(de::Error::custom)
}

fn globs_by_key<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(String, Vec<Glob>)>, D::Error> {
    let table = BTreeMap::<String, Vec<Parsed<Glob>>>::deserialize(deserializer)?;
    Ok(table.into_iter().map(|(key, list)| (key, list.into_iter().map(|Parsed(glob)| glob).collect())).collect())
}

/// A service, and its ports as they are declared.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "ServiceTable")]
struct Service {
    entry: ServiceEntry,
    ports: Vec<Spanned<Port>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceTable {
    host: String,
    name: Option<String>,
    namespace: Option<String>,
    addresses: Vec<IpAddr>,
    #[serde(default)]
    ports: Vec<Spanned<Port>>,
    workload: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
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

impl TryFrom<ServiceTable> for Service {
    type Error = String;

    fn try_from(table: ServiceTable) -> Result<Self, String> {
        let ServiceTable { host, name, namespace, addresses, ports, workload } = table;
        let name = name.or_else(|| host.split('.').next().map(str::to_owned)).filter(|name| !name.is_empty());
        let namespace = namespace.or_else(|| host.split('.').nth(1).map(str::to_owned));
        let (Some(name), Some(namespace)) = (name, namespace) else {
            return Err(format!(
                "host {host:?} has no namespace; write it in full, e.g. reviews.default.svc.cluster.local, or add the key \
                 namespace"
            ));
        };
        let addresses =
            canonical(addresses).ok_or("addresses is empty; write the addresses that clients connect to")?;
        let service_port = |port: &Spanned<Port>| {
            let Port { port, target_port, .. } = port.get_ref();
            ServicePort { port: port.get(), target: target_port.unwrap_or(*port).get() }
        };
        let entry = ServiceEntry {
            name,
            namespace,
            addresses,
            ports: ports.iter().map(service_port).collect(),
            workload,
            host,
        };
        Ok(Self { entry, ports })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "WorkloadKeys")]
struct WorkloadTable(WorkloadEntry);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WorkloadKeys {
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

impl TryFrom<WorkloadKeys> for WorkloadTable {
    type Error = &'static str;

    fn try_from(keys: WorkloadKeys) -> Result<Self, &'static str> {
        let WorkloadKeys { addresses, name, namespace, pod, cluster, service_account, trust_domain, node, labels } =
            keys;
        let addresses = canonical(addresses);
        let addresses = addresses.ok_or("addresses is empty; write the addresses of the workload's instances")?;
        let workload = Workload { pod, namespace, name, cluster, service_account, trust_domain, labels, node };
        Ok(Self(WorkloadEntry { addresses, workload: Arc::new(workload) }))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "SidecarKeys")]
struct SidecarTable(SidecarRule);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SidecarKeys {
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

impl TryFrom<SidecarKeys> for SidecarTable {
    type Error = &'static str;

    fn try_from(keys: SidecarKeys) -> Result<Self, &'static str> {
        if keys.cgroup.is_none() && keys.executable.is_none() {
            return Err("it has neither cgroup nor executable, so it matches no process; write one or both");
        }
        let role = keys.role.map(|role| match role {
            RoleName::Sidecar => Role::Sidecar,
            RoleName::Tproxy => Role::TproxySidecar,
            RoleName::Gateway => Role::Gateway,
        });
        let SidecarKeys { cgroup, executable, addresses, name, namespace, pod, cluster, .. } = keys;
        let SidecarKeys { service_account, trust_domain, node, labels, .. } = keys;
        let workload = Workload { pod, namespace, name, cluster, service_account, trust_domain, labels, node };
        let addresses = canonical(addresses).unwrap_or_default();
        Ok(Self(SidecarRule { cgroup, executable, role, addresses, workload }))
    }
}

/// Converts IPv4-mapped addresses; `None` if there is no address.
fn canonical(addresses: Vec<IpAddr>) -> Option<Vec<IpAddr>> {
    (!addresses.is_empty()).then(|| addresses.into_iter().map(|address| address.to_canonical()).collect())
}

/// Returns line and column, both from 1.
fn position(text: &str, at: usize) -> (usize, usize) {
    let (before, _) = text.split_at(text.floor_char_boundary(at));
    let line = before.rsplit('\n').next().unwrap_or_default();
    (before.matches('\n').count() + 1, line.chars().count() + 1)
}

/// Returns the key at an offset, with its table.
fn key(text: &str, at: usize) -> String {
    let (before, after) = text.split_at(text.floor_char_boundary(at));
    let rest = after.split('\n').next().unwrap_or_default();
    let (text, _) = text.split_at(before.len() + rest.len());
    let (mut table, mut key) = (None, None);
    for line in text.lines().map(str::trim_start) {
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

/// Returns the name in `[name]` or `[[name]]`.
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

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("o.toml"), text).map_err(|error| error.to_string())
    }

    /// The example with every commented key in force.
    fn uncommented() -> String {
        let lines =
            EXAMPLE.lines().map(|line| line.strip_prefix("#").filter(|rest| !rest.starts_with(' ')).unwrap_or(line));
        lines.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_example_loads_and_says_the_defaults() {
        let defaults = Config::default();
        assert_eq!(parse(EXAMPLE).unwrap(), defaults);
        let uncommented = parse(&uncommented()).unwrap();
        let with_defaults = |config: Config| {
            let Config { listen, interval, scrape_interval, max_series, max_open_calls, queue_bytes, .. } = config;
            let Config {
                wavefront_names,
                log,
                sidecar_exe,
                control_plane_exe,
                scrape_proxies,
                callers,
                traces,
                trace_paths,
                trace_kinds,
                ..
            } = config;
            Config {
                listen,
                interval,
                scrape_interval,
                max_series,
                max_open_calls,
                queue_bytes,
                wavefront_names,
                log,
                sidecar_exe,
                control_plane_exe,
                scrape_proxies,
                callers,
                traces,
                trace_paths,
                trace_kinds,
                ..Config::default()
            }
        };
        assert_eq!(with_defaults(uncommented.clone()), defaults);
        assert_eq!(uncommented.proc_root(), Path::new("/proc"));
        assert_eq!((uncommented.sidecar.len(), uncommented.service.len(), uncommented.workload.len()), (1, 1, 1));
    }

    #[test]
    fn the_legacy_pipelines_setup_loads_and_sends_its_names() {
        const LEGACY: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/wavefront.example.toml"));
        let config = parse(LEGACY).unwrap();
        assert_eq!(config.emit.len(), 1);
        let wavefront = config.wavefront();
        assert_eq!(wavefront.names, Names::Collector);
        assert_eq!(wavefront.tags["cluster"], "my-cluster");
        let documented = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/documented_names.txt"));
        for name in documented.lines() {
            let sent = name.replace('*', "bucket.p99");
            assert!(wavefront.filters.passes_name(&sent), "{name}");
        }
        assert!(!wavefront.filters.passes_name(catalogue::CPU_SECONDS.documented_name));
    }

    #[test]
    fn the_example_has_every_key() {
        // serde lists a table's keys when it meets one that it does not know.
        for (table, unknown) in [
            ("", "x = 1"),
            ("[wavefront]", "[wavefront]\nx = 1"),
            ("[otlp]", "[otlp]\nx = 1"),
            ("[zipkin]", "[zipkin]\nx = 1"),
            ("[remote_write]", "[remote_write]\nx = 1"),
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
        let keys = |table: &str| parse(&format!("{table}x = 1")).unwrap_err();
        let tables = [
            ("", keys("")),
            ("otlp_", keys("[otlp]\n")),
            ("zipkin_", keys("[zipkin]\n")),
            ("remote_write_", keys("[remote_write]\n")),
        ];
        let is_key = |key: &str| {
            let own = |(prefix, keys): &(&str, String)| {
                key.strip_prefix(prefix).is_some_and(|key| keys.contains(&format!("`{key}`")))
            };
            tables.iter().any(own)
        };
        let cli = <crate::cli::args::Cli as clap::CommandFactory>::command();
        for argument in cli.find_subcommand("run").unwrap().get_arguments() {
            let key = argument.get_id().as_str();
            assert!(key == "config" || is_key(key), "{key}");
        }
    }

    #[test]
    fn an_empty_list_of_executables_is_the_default() {
        assert_eq!(parse("sidecar_exe = []\ncontrol_plane_exe = []").unwrap(), Config::default());
    }

    #[test]
    fn an_option_overrides_the_file() {
        let file = || parse("interval = \"20s\"\nsidecar_exe = [\"proxy\"]\nlog = \"warn\"").unwrap();
        let name = |name: &str| vec![ExecutableName(name.to_owned())];
        let from_file = file().overridden_by(&RunArgs::default());
        assert_eq!((from_file.interval.0, from_file.log), (Duration::from_secs(20), LogLevel::Warn));
        assert_eq!(from_file.sidecar_exe, name("proxy"));
        let node = NodeArgs { sidecar_exe: name("envoy2"), ..NodeArgs::default() };
        let args = RunArgs { interval: Some(Interval(Duration::from_secs(5))), node, ..RunArgs::default() };
        let given = file().overridden_by(&args);
        assert_eq!((given.interval.0, given.log), (Duration::from_secs(5), LogLevel::Warn));
        assert_eq!(given.sidecar_exe, name("envoy2"));
    }

    #[test]
    fn errors_have_line_column_key_and_remedy() {
        for (text, place, expected) in [
            ("intervall = \"10s\"", "o.toml:1:1: intervall: ", "`interval`"),
            ("\ninterval = \"10\"", "o.toml:2:12: interval: ", "e.g. 10s"),
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
            ("sidecar_exe = [\"a/b\"]", "o.toml:1:15: sidecar_exe: ", "e.g. envoy"),
            ("control_plane_exe = [\"a:x\"]", "o.toml:1:21: control_plane_exe: ", "e.g. pilot-discovery"),
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
            (
                "emit = [\"wavefront+http://p:1?a=b\", \"wavefront+http://p:1?a=c\"]",
                "a query or options make no difference",
            ),
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
    fn pushes_are_a_second_apart_where_timestamps_are_seconds() {
        let interval = |text: &str| parse(text).unwrap().push_interval();
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
        for (text, problem) in
            [("kafka://collector:9092", "this version has no emitter"), ("wavefront+http://u:secret@p", "credentials")]
        {
            let args = RunArgs { emit: vec![text.parse()], ..RunArgs::default() };
            let error = Config::load(&args).unwrap_err().to_string();
            assert!(error.contains(problem) && error.contains("wavefront+https://INSTANCE"), "{error}");
            assert!(error.contains("--emit") && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn services_derive_names_and_tcp_ports() {
        let config = parse(
            "tcp_ports = [9000]\n[[service]]\nhost = \"db.shop.svc.cluster.local\"\naddresses = [\"::ffff:10.0.0.1\"]\n\
             ports = [{ port = 5432, target_port = 15432, protocol = \"tcp\" }, { port = 80 }]",
        )
        .unwrap();
        assert_eq!(config.kernel().tcp_ports, [9000, 5432, 15432]);
        let service = &config.peers().services[0];
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
