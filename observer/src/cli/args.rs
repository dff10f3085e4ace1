//! The commands and their options: a contract that scripts rely on. `Config` applies the defaults, so
//! that the configuration file has effect where neither option nor environment variable is given.

use std::{convert::Infallible, ops::RangeInclusive, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use observer_top::Column;

use super::{await_daemon_set::DaemonSetName, own_pages::ReaderArgs, top::api::ObserverUrl};
use crate::{
    collect::scrape::EndpointUrl,
    config::values::{
        Callers, DEFAULT_LISTEN, ExecutableName, Interval, Invalid, KubernetesMode, ListenAddress, LogLevel,
        TraceKinds, TracePaths, boolean, parse_wavefront_names,
    },
    discovery::component::ComponentRule,
    emit::{
        EmitTarget, TargetError,
        options::{OtlpOptions, RemoteWriteOptions, ZipkinOptions},
        wavefront::Names,
    },
    serve::WebHost,
};

const OUTPUT: &str = "Output";
const WAVEFRONT: &str = "Wavefront";
const DISCOVERY: &str = "Discovery";
const SCRAPING: &str = "Control-plane metrics";
const KUBERNETES: &str = "Kubernetes";

const READING_INTERVALS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(30);

/// Node-level observer for Istio: counts the sidecars' traffic in the kernel and emits Istio's metrics
#[derive(Debug, Parser)]
#[command(name = "observer", version, max_term_width = 120)]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Observe this node until stopped
    Run(RunArgs),
    /// Report what this kernel, these privileges, this node and these options of `run` allow; exit code 1 if `run` cannot work
    Check(CheckArgs),
    /// Print every metric family: names, type, unit, labels, origin, and the Istio releases that report it
    Catalogue(CatalogueArgs),
    /// Remove what `run --pin DIR` left behind: programs, maps and the directory
    Detach(DetachArgs),
    /// Wait until every pod of a Kubernetes DaemonSet is ready; in a pod whose service account may get it
    AwaitDaemonSet(AwaitArgs),
    /// Observe for a while, print once and exit
    Snapshot(SnapshotArgs),
    /// Show who calls whom on this node, live in a terminal; press ? there for its keys
    Top(TopArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page (roff)
    Man,
}

/// Options of `observer run`.
#[derive(Clone, Debug, Default, Args)]
pub struct RunArgs {
    /// Where to serve /metrics, /healthz and /readyz: an address or name and a port, a port alone (on 127.0.0.1), or :PORT
    /// (on every IPv4 address)
    #[arg(long, value_name = "ADDR:PORT", env = "OBSERVER_LISTEN", help_heading = OUTPUT)]
    pub listen: Option<ListenAddress>,
    /// Web configuration file (YAML, as Prometheus and its exporters have): TLS, client certificates, users and headers of
    /// these pages; read again every 5 s [default: plain HTTP for everybody]
    #[arg(long, value_name = "FILE", env = "OBSERVER_WEB_CONFIG_FILE", help_heading = OUTPUT)]
    pub web_config_file: Option<PathBuf>,
    /// Name under which these pages may be read over plain HTTP without users; may be repeated, * allows every name
    /// [default: IP addresses, localhost and this node's name, which are always allowed]
    #[arg(long, value_name = "NAME", env = "OBSERVER_WEB_HOST", value_delimiter = ',', help_heading = OUTPUT)]
    pub web_host: Vec<WebHost>,
    /// Interval of pushes to the emitters and of their percentiles, 100ms to 1h, e.g. 500ms, 10s, 1m; to Wavefront at
    /// least 1s
    #[arg(long, value_name = "DURATION", env = "OBSERVER_INTERVAL", help_heading = OUTPUT)]
    pub interval: Option<Interval>,
    /// Where to push metrics; may be repeated: otlp+http://HOST:4318, otlp+https://HOST, otlp+grpc://HOST:4317 or
    /// otlp+grpcs://HOST (an OpenTelemetry collector), remote-write+http://HOST:9090 or remote-write+https://HOST
    /// (Prometheus and others), wavefront+http://HOST:PORT[/PATH] (a proxy), wavefront+https://INSTANCE (the service itself)
    /// or wavefront+file:PATH (- for standard output). Where to push sampled requests as spans: otlp-traces+http://HOST:4318
    /// and so on, zipkin+http://HOST:9411 or zipkin+https://HOST, wavefront-traces+http://HOST:PORT or
    /// wavefront-traces+https://INSTANCE. Options of one receiver: #KEY=VALUE&… behind the URL
    #[arg(long, value_name = "URL", env = "OBSERVER_EMIT", value_delimiter = ',', value_parser = emit_target,
        hide_env_values = true, help_heading = OUTPUT)]
    pub emit: Vec<Result<EmitTarget, TargetError>>,
    /// Directory where pushes wait while a receiver does not accept them, also across restarts; the
    /// configuration key queue_bytes limits it [default: they wait in memory]
    #[arg(long, value_name = "DIR", env = "OBSERVER_QUEUE_DIR", help_heading = OUTPUT)]
    pub queue_dir: Option<PathBuf>,
    /// Names of Wavefront metrics: as documented, or as the legacy collector pipeline sent them
    #[arg(long, value_name = "documented|collector", env = "OBSERVER_WAVEFRONT_NAMES", value_parser = parse_wavefront_names,
        help_heading = WAVEFRONT)]
    pub wavefront_names: Option<Names>,
    /// File with the API token for wavefront+https:// and wavefront-traces+https://; read again for every push
    #[arg(long, value_name = "FILE", env = "OBSERVER_WAVEFRONT_TOKEN_FILE", help_heading = WAVEFRONT)]
    pub wavefront_token_file: Option<PathBuf>,
    /// File with the CA certificates (PEM) that those trust [default: the system's]
    #[arg(long, value_name = "FILE", env = "OBSERVER_WAVEFRONT_CA_FILE", help_heading = WAVEFRONT)]
    pub wavefront_ca_file: Option<PathBuf>,
    /// Options of OTLP receivers.
    #[command(flatten)]
    pub otlp: OtlpOptions,
    /// Options of receivers of Zipkin's spans.
    #[command(flatten)]
    pub zipkin: ZipkinOptions,
    /// Options of receivers of remote write.
    #[command(flatten)]
    pub remote_write: RemoteWriteOptions,
    /// Directory on bpffs, e.g. /sys/fs/bpf/mesh-observer, where counts outlive the process: stopping, killing or upgrading
    /// the observer then loses none [default: nothing outlives the process]
    #[arg(long, value_name = "DIR", env = "OBSERVER_PIN")]
    pub pin: Option<PathBuf>,
    /// Where and what to observe.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// Options of where and what to observe.
#[derive(Clone, Debug, Default, Args)]
pub struct NodeArgs {
    /// Configuration file (TOML); overridden by options and environment variables
    #[arg(long, value_name = "FILE", env = "OBSERVER_CONFIG")]
    pub config: Option<PathBuf>,
    /// How much to log on standard error; overridden by RUST_LOG
    #[arg(long, value_name = "LEVEL", env = "OBSERVER_LOG", value_enum, ignore_case = true)]
    pub log: Option<LogLevel>,
    /// Executable name of sidecars; may be repeated
    #[arg(long, value_name = "NAME", env = "OBSERVER_SIDECAR_EXE", value_delimiter = ',', help_heading = DISCOVERY)]
    pub sidecar_exe: Vec<ExecutableName>,
    /// cgroup v2 directory to observe even if no sidecar is recognised in it; may be repeated
    #[arg(long, value_name = "PATH", env = "OBSERVER_CGROUP", value_delimiter = ',', help_heading = DISCOVERY)]
    pub cgroup: Vec<PathBuf>,
    /// The host's proc file system
    #[arg(long, value_name = "PATH", env = "OBSERVER_PROC_ROOT", help_heading = DISCOVERY)]
    pub proc_root: Option<PathBuf>,
    /// The host's cgroup v2 file system [default: found in mountinfo]
    #[arg(long, value_name = "PATH", env = "OBSERVER_CGROUP_ROOT", help_heading = DISCOVERY)]
    pub cgroup_root: Option<PathBuf>,
    /// Whether requests name their caller at the destination [default: auto]
    #[arg(long, value_name = "auto|off", env = "OBSERVER_CALLERS", value_enum, ignore_case = true, hide_possible_values = true,
        help_heading = DISCOVERY)]
    pub callers: Option<Callers>,
    /// Read the trace contexts of requests (traceparent, b3, x-b3-*), so that duration buckets have the last sampled request
    /// as their exemplar
    #[arg(long, value_name = "true|false", env = "OBSERVER_TRACES", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", value_parser = boolean, help_heading = DISCOVERY)]
    pub traces: Option<bool>,
    /// What spans say of the paths of requests: all but the query, the same with {id} for segments that are ids, or
    /// nothing [default: full]
    #[arg(long, value_name = "full|masked|off", env = "OBSERVER_TRACE_PATHS", value_enum, ignore_case = true,
        hide_possible_values = true, help_heading = DISCOVERY)]
    pub trace_paths: Option<TracePaths>,
    /// Which spans of a request are sent: of caller and application, or of one of them; server where the sidecars send
    /// spans themselves [default: all]
    #[arg(long, value_name = "all|client|server", env = "OBSERVER_TRACE_KINDS", value_enum, ignore_case = true,
        hide_possible_values = true, help_heading = DISCOVERY)]
    pub trace_kinds: Option<TraceKinds>,
    /// Whether names come from the Kubernetes API: auto uses the pod's service account, or --kubeconfig, if there is one
    #[arg(long, value_name = "auto|off", env = "OBSERVER_KUBERNETES", value_enum, ignore_case = true,
        help_heading = KUBERNETES)]
    pub kubernetes: Option<KubernetesMode>,
    /// File with the address of the Kubernetes API and the credentials for it [default: the pod's service account]
    #[arg(long, value_name = "FILE", env = "OBSERVER_KUBECONFIG", help_heading = KUBERNETES)]
    pub kubeconfig: Option<PathBuf>,
    /// Interval of scrapes of each /metrics endpoint of the control plane, 100ms to 1h
    #[arg(long, value_name = "DURATION", env = "OBSERVER_SCRAPE_INTERVAL", help_heading = SCRAPING)]
    pub scrape_interval: Option<Interval>,
    /// /metrics endpoint of a control-plane process, e.g. http://istiod.istio-system:15014 (path /metrics if none is given);
    /// may be repeated
    #[arg(long, value_name = "URL", env = "OBSERVER_CONTROL_PLANE", value_delimiter = ',', value_parser = control_plane,
        hide_env_values = true, help_heading = SCRAPING)]
    pub control_plane: Vec<Result<EndpointUrl, String>>,
    /// Executable of a control-plane process, with the port of its /metrics endpoint if its sockets are ambiguous; may be
    /// repeated
    #[arg(long, value_name = "NAME[:PORT]", env = "OBSERVER_CONTROL_PLANE_EXE", value_delimiter = ',',
        help_heading = SCRAPING)]
    pub control_plane_exe: Vec<ComponentRule>,
    /// Also scrape the /metrics endpoints of sidecars, gateways and ztunnels
    #[arg(long, value_name = "true|false", env = "OBSERVER_SCRAPE_PROXIES", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", value_parser = boolean, help_heading = SCRAPING)]
    pub scrape_proxies: Option<bool>,
}

/// Options of `observer check`.
#[derive(Clone, Debug, Default, Args)]
pub struct CheckArgs {
    /// Options of `observer run`.
    #[command(flatten)]
    pub run: RunArgs,
    /// How the observer that runs is read.
    #[command(flatten)]
    pub reader: ReaderArgs,
}

/// Options of `observer detach`.
#[derive(Clone, Debug, Args)]
pub struct DetachArgs {
    /// The directory on bpffs
    #[arg(long, value_name = "DIR", env = "OBSERVER_PIN")]
    pub pin: PathBuf,
    /// How long to wait for an observer that still uses it, 100ms to 1h [default: not at all]
    #[arg(long, value_name = "DURATION")]
    pub wait: Option<Interval>,
    /// Go on running until stopped, as a pod of a DaemonSet must
    #[arg(long)]
    pub stay: bool,
}

/// Options of `observer await-daemon-set`.
#[derive(Clone, Debug, Args)]
pub struct AwaitArgs {
    /// Namespace and name of the DaemonSet
    #[arg(value_name = "NAMESPACE/NAME")]
    pub daemon_set: DaemonSetName,
    /// How long to wait, 100ms to 1h
    #[arg(long = "for", value_name = "DURATION", default_value = "4m")]
    pub timeout: Interval,
}

/// Options of `observer catalogue`.
#[derive(Clone, Debug, Args)]
pub struct CatalogueArgs {
    /// Only families whose Prometheus or Wavefront name matches; * matches any text
    #[arg(value_name = "PATTERN")]
    pub patterns: Vec<String>,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    pub format: CatalogueFormat,
    /// Only Istio's families, and whether a running observer has data of each, or why it has none
    #[arg(long)]
    pub live: bool,
    /// Where that observer listens
    #[arg(long, value_name = "ADDR:PORT", env = "OBSERVER_LISTEN", default_value_t = DEFAULT_LISTEN)]
    pub listen: ListenAddress,
    /// Web configuration file of that observer; if it has TLS, only the certificate in it is accepted
    #[arg(long, value_name = "FILE", env = "OBSERVER_WEB_CONFIG_FILE")]
    pub web_config_file: Option<PathBuf>,
    /// How it is read.
    #[command(flatten)]
    pub reader: ReaderArgs,
}

/// Options of `observer snapshot`.
#[derive(Clone, Debug, Args)]
pub struct SnapshotArgs {
    /// How long to observe, 100ms to 1h
    #[arg(long = "for", value_name = "DURATION", default_value = "10s")]
    pub length: Interval,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    pub format: SnapshotFormat,
    /// Names of Wavefront metrics
    #[arg(long, value_name = "documented|collector", env = "OBSERVER_WAVEFRONT_NAMES", value_parser = parse_wavefront_names,
        help_heading = WAVEFRONT)]
    pub wavefront_names: Option<Names>,
    /// Where and what to observe.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// Options of `observer top`.
#[derive(Clone, Debug, Args)]
pub struct TopArgs {
    /// Where the observer serves: http://HOST:PORT or https://HOST:PORT, with USER:PASSWORD@ before the host if it has users
    /// [default: http://127.0.0.1:9469; if none answers there, and with root's privileges, this command observes the node
    /// by itself]
    #[arg(long, value_name = "URL", env = "OBSERVER_URL", hide_env_values = true, value_parser = observer_url)]
    pub url: Option<Result<ObserverUrl, String>>,
    /// File with the CA certificates (PEM) that https:// trusts [default: the system's]
    #[arg(long, value_name = "FILE", env = "OBSERVER_URL_CA_FILE")]
    pub url_ca_file: Option<PathBuf>,
    /// Time between readings, 1s to 30s
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = reading_interval)]
    pub interval: Interval,
    /// Column by which calls are sorted: from, to, protocol, rate (requests per second), errors, p50, p90, p95, p99, bytes
    /// or total
    #[arg(long, value_name = "COLUMN", default_value_t = Column::Rate)]
    pub sort: Column,
    /// Only calls of which a name, the protocol or a host has this text [default: all]
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub filter: String,
    /// Print once, after two readings, and exit
    #[arg(long)]
    pub once: bool,
    /// Observe, and serve on the socket that is the standard input: what this command starts to observe by itself
    #[arg(long, hide = true)]
    pub observe_only: bool,
    /// Where and what to observe by itself.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// Formats of the catalogue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum CatalogueFormat {
    /// Aligned columns.
    #[default]
    Table,
    /// An array of objects.
    Json,
    /// Tab-separated, with a header line.
    Tsv,
}

/// Formats of a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SnapshotFormat {
    /// Prometheus text 0.0.4.
    #[default]
    Prometheus,
    /// Wavefront lines.
    Wavefront,
    /// A JSON document.
    Json,
}

/// Parses an endpoint. An error is reported later, not by the command line's parser, which would repeat the text and with it
/// a password.
fn control_plane(text: &str) -> Result<Result<EndpointUrl, String>, Infallible> {
    Ok(text.parse())
}

/// Parses an observer's address. An error is reported later, for the same reason.
fn observer_url(text: &str) -> Result<Result<ObserverUrl, String>, Infallible> {
    Ok(text.parse())
}

/// Parses the time between readings: an observer reads once per second, and forgets a minute after the last reading.
fn reading_interval(text: &str) -> Result<Interval, String> {
    let interval: Interval = text.parse().map_err(|error: Invalid| error.to_string())?;
    if READING_INTERVALS.contains(&interval.0) {
        return Ok(interval);
    }
    Err(format!("invalid duration {text:?}: expected a value between 1s and 30s"))
}

/// Parses a target. An error is reported later, for the same reason.
fn emit_target(text: &str) -> Result<Result<EmitTarget, TargetError>, Infallible> {
    Ok(text.parse())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn parses_every_option() {
        let line = "observer run --listen 0.0.0.0:9000 --web-config-file /w --web-host a --web-host b.c --interval 1m --scrape-interval 30s --emit wavefront+file:- --emit \
                    wavefront+http://proxy:2878 --wavefront-names collector --wavefront-token-file /t --wavefront-ca-file /c --queue-dir /q --pin /p --config c.toml --sidecar-exe envoy \
                    --sidecar-exe pilot --control-plane http://istiod:15014 --control-plane-exe etcd:2379 --scrape-proxies --kubernetes off --kubeconfig /k --cgroup /a --callers off --traces --trace-paths masked --trace-kinds server --proc-root /host/proc --cgroup-root /host/cgroup --log debug";
        let Command::Run(args) = Cli::try_parse_from(line.split_whitespace()).unwrap().command else { panic!("run") };
        assert_eq!(args.interval, Some(Interval(Duration::from_mins(1))));
        assert_eq!(args.node.scrape_interval, Some(Interval(Duration::from_secs(30))));
        assert_eq!(args.emit.len(), 2);
        assert_eq!(args.wavefront_token_file, Some("/t".into()));
        assert_eq!(args.wavefront_ca_file, Some("/c".into()));
        assert_eq!(args.queue_dir, Some("/q".into()));
        assert_eq!(args.web_config_file, Some("/w".into()));
        assert_eq!(args.web_host, ["a".parse().unwrap(), "b.c".parse().unwrap()]);
        assert_eq!(args.pin, Some("/p".into()));
        let names: Vec<_> = args.node.sidecar_exe.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["envoy", "pilot"]);
        assert_eq!(args.node.control_plane, [Ok("http://istiod:15014/metrics".parse().unwrap())]);
        assert_eq!(args.node.control_plane_exe, ["etcd:2379".parse().unwrap()]);
        assert_eq!(args.node.scrape_proxies, Some(true));
        assert_eq!((args.node.kubernetes, args.node.kubeconfig), (Some(KubernetesMode::Off), Some("/k".into())));
        assert_eq!(args.node.log, Some(LogLevel::Debug));
        assert_eq!(args.node.callers, Some(Callers::Off));
        assert_eq!((args.node.traces, args.node.trace_paths), (Some(true), Some(TracePaths::Masked)));
        assert_eq!(args.node.trace_kinds, Some(TraceKinds::Server));
    }

    #[test]
    fn wrong_usage_is_explained() {
        for (line, expected) in [
            ("run --interval 10", "e.g. 10s"),
            ("run --interval 2h", "between 100ms and 1h"),
            ("run --intervall 10s", "a similar argument exists: '--interval'"),
            ("rum", "a similar subcommand exists: 'run'"),
            ("run --listen 127.0.0.1", "it has no port"),
            ("run --listen no-such-host.invalid:80", "the name does not resolve"),
            ("run --scrape-proxies=maybe", "expected true or false"),
            ("run --callers on", "auto, off"),
            ("check --listen x", "it has no port"),
            ("run --wavefront-names old", "documented or collector"),
            ("run --sidecar-exe /usr/bin/envoy", "e.g. envoy"),
            ("run --sidecar-exe=", "e.g. envoy"),
            ("run --control-plane-exe galley:0", "e.g. pilot-discovery"),
            ("run --cgroup=", "a value is required"),
            ("run --web-host http://a", "e.g. node-1.example.com"),
            ("snapshot --pin /x", "unexpected argument"),
            ("snapshot --for 0s", "between 100ms and 1h"),
            ("detach --pin /x --wait 1", "e.g. 10s"),
            ("await-daemon-set observer", "expected NAMESPACE/NAME"),
            ("await-daemon-set a/../b", "expected NAMESPACE/NAME"),
            ("catalogue --format yaml", "table, json, tsv"),
            ("snapshot --format yaml", "prometheus, wavefront, json"),
            ("top --interval 100ms", "between 1s and 30s"),
            ("top --interval 1", "e.g. 10s"),
            ("top --sort latency", "one of from, to, protocol, rate"),
        ] {
            let error = Cli::try_parse_from(["observer"].into_iter().chain(line.split_whitespace())).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains(expected), "{line}: {error}");
        }
    }

    #[test]
    fn booleans_and_levels_are_parsed_as_templates_write_them() {
        for (text, value) in [("1", true), ("YES", true), ("true", true), ("0", false), ("off", false), ("No", false)] {
            let arguments = ["observer", "run", &format!("--scrape-proxies={text}"), "--log", "INFO"];
            let Command::Run(args) = Cli::try_parse_from(arguments).unwrap().command else { panic!("run") };
            assert_eq!((args.node.scrape_proxies, args.node.log), (Some(value), Some(LogLevel::Info)), "{text}");
        }
    }

    #[test]
    fn every_run_option_has_an_environment_variable_and_help() {
        let cli = Cli::command();
        for argument in cli.find_subcommand("run").unwrap().get_arguments() {
            let long = argument.get_long().unwrap();
            let variable = format!("OBSERVER_{}", long.replace('-', "_").to_uppercase());
            assert_eq!(argument.get_env().unwrap().to_str().unwrap(), variable);
            assert!(argument.get_help().is_some(), "{long}");
        }
    }
}
