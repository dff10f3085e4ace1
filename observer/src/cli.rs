//! The command line: a contract that scripts rely on. Defaults are stated here for people and applied in `config`, so that
//! a value in the configuration file counts where neither option nor environment variable is given.

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr, ToSocketAddrs},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Deserialize;

use crate::{
    collect::control_plane::PageUrl,
    config::DEFAULT_LISTEN,
    discovery::component::ComponentRule,
    emit::{Target, TargetError, wavefront::Names},
};

/// Shortest and longest interval.
const INTERVALS: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_hours(1);

/// Node-level observer for Istio: counts the sidecars' traffic in the kernel and emits Istio's metrics.
#[derive(Debug, Parser)]
#[command(name = "observer", version, max_term_width = 120)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Observe this node until stopped
    Run(RunArgs),
    /// Say what this kernel, these privileges, this node and these options of `run` allow; exit code 1 if `run` could not work
    Check(RunArgs),
    /// Print every family: names, type, unit, labels, where it comes from, and which releases of Istio report it
    Catalogue {
        /// Only families whose name in Prometheus or Wavefront is like this; * is any text
        #[arg(value_name = "PATTERN")]
        patterns: Vec<String>,
        /// How to print it
        #[arg(long, value_enum, default_value_t)]
        format: CatalogueFormat,
        /// Only Istio's families, and whether a running observer has data of each now, or why it has none
        #[arg(long)]
        live: bool,
        /// Where that observer listens
        #[arg(long, value_name = "ADDR:PORT", env = "OBSERVER_LISTEN", default_value_t = DEFAULT_LISTEN,
            value_parser = listen_address)]
        listen: SocketAddr,
    },
    /// Remove what `run --pin DIR` left behind: programs, maps and the folder
    Detach {
        /// The folder on bpffs
        #[arg(long, value_name = "DIR", env = "OBSERVER_PIN")]
        pin: PathBuf,
    },
    /// Observe for a while, print once and exit
    Snapshot(SnapshotArgs),
}

/// Options of `observer run`.
#[derive(Clone, Debug, Default, Args)]
pub struct RunArgs {
    /// Where to serve /metrics, /healthz and /readyz: an address or name and a port, a port alone (on 127.0.0.1), or :PORT
    /// (on every IPv4 address) [default: 127.0.0.1:9469]
    #[arg(long, value_name = "ADDR:PORT", env = "OBSERVER_LISTEN", value_parser = listen_address)]
    pub listen: Option<SocketAddr>,
    /// Time between two reports to the emitters, and the time that their percentiles are over, 100ms to 1h, as in 500ms,
    /// 10s, 1m; to Wavefront 1s at least [default: 10s]
    #[arg(long, value_name = "DURATION", env = "OBSERVER_INTERVAL", value_parser = interval)]
    pub interval: Option<Duration>,
    /// Time between two scrapes of each metrics page of the control plane, 100ms to 1h [default: 10s]
    #[arg(long, value_name = "DURATION", env = "OBSERVER_SCRAPE_INTERVAL", value_parser = interval)]
    pub scrape_interval: Option<Duration>,
    /// Where to send reports; may be repeated: wavefront+http://HOST:PORT[/PATH] (a proxy), wavefront+https://INSTANCE
    /// (the service itself) or wavefront+file:PATH (- for standard output)
    #[arg(long, value_name = "URL", env = "OBSERVER_EMIT", value_delimiter = ',', value_parser = emit_target,
        hide_env_values = true)]
    pub emit: Vec<Result<Target, TargetError>>,
    /// Names of Wavefront metrics: as documented, or as the old chain of collectors sent them [default: documented]
    #[arg(long, value_name = "documented|collector", env = "OBSERVER_WAVEFRONT_NAMES", value_parser = wavefront_names)]
    pub wavefront_names: Option<Names>,
    /// File with the API token for wavefront+https://; read anew for every report
    #[arg(long, value_name = "FILE", env = "OBSERVER_WAVEFRONT_TOKEN_FILE")]
    pub wavefront_token_file: Option<PathBuf>,
    /// File with the authorities (PEM) that wavefront+https:// trusts [default: the system's]
    #[arg(long, value_name = "FILE", env = "OBSERVER_WAVEFRONT_CA_FILE")]
    pub wavefront_ca_file: Option<PathBuf>,
    /// Directory where reports wait for a Wavefront receiver that does not take them, across restarts; its size is the
    /// configuration's queue_bytes [default: they wait in memory only]
    #[arg(long, value_name = "DIR", env = "OBSERVER_QUEUE_DIR")]
    pub queue_dir: Option<PathBuf>,
    /// Folder on bpffs, as /sys/fs/bpf/mesh-observer, where counts outlive the process: stopping, killing and upgrading the
    /// observer then loses none [default: nothing outlives the process]
    #[arg(long, value_name = "DIR", env = "OBSERVER_PIN")]
    pub pin: Option<PathBuf>,
    /// Where and what to observe.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// Options that say where and what to observe.
#[derive(Clone, Debug, Default, Args)]
pub struct NodeArgs {
    /// Configuration file (TOML); options and environment variables count more than it
    #[arg(long, value_name = "FILE", env = "OBSERVER_CONFIG")]
    pub config: Option<PathBuf>,
    /// Executable name of sidecars; may be repeated [default: envoy]
    #[arg(long, value_name = "NAME", env = "OBSERVER_SIDECAR_EXE", value_delimiter = ',', value_parser = executable_name)]
    pub sidecar_exe: Vec<String>,
    /// Metrics page of a control-plane process, as http://istiod.istio-system:15014 (path /metrics if none is given); may be
    /// repeated
    #[arg(long, value_name = "URL", env = "OBSERVER_CONTROL_PLANE", value_delimiter = ',', value_parser = control_plane,
        hide_env_values = true)]
    pub control_plane: Vec<Result<PageUrl, String>>,
    /// Executable of a control-plane process, with the port of its metrics page where its sockets do not tell; may be
    /// repeated [default: pilot-discovery, galley, istio_ca, mixs]
    #[arg(long, value_name = "NAME[:PORT]", env = "OBSERVER_CONTROL_PLANE_EXE", value_delimiter = ',')]
    pub control_plane_exe: Vec<ComponentRule>,
    /// Also read the metrics pages of sidecars, gateways and ztunnels [default: false]
    #[arg(long, value_name = "true|false", env = "OBSERVER_SCRAPE_PROXIES", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", value_parser = boolean)]
    pub scrape_proxies: Option<bool>,
    /// cgroup v2 directory to observe even if no sidecar is recognised in it; may be repeated
    #[arg(long, value_name = "PATH", env = "OBSERVER_CGROUP", value_delimiter = ',')]
    pub cgroup: Vec<PathBuf>,
    /// The host's proc file system [default: /proc]
    #[arg(long, value_name = "PATH", env = "OBSERVER_PROC_ROOT")]
    pub proc_root: Option<PathBuf>,
    /// The host's cgroup v2 file system [default: found in mountinfo]
    #[arg(long, value_name = "PATH", env = "OBSERVER_CGROUP_ROOT")]
    pub cgroup_root: Option<PathBuf>,
    /// How much to log on standard error; RUST_LOG counts more [default: info]
    #[arg(long, value_name = "LEVEL", env = "OBSERVER_LOG", value_enum, ignore_case = true)]
    pub log: Option<LogLevel>,
}

/// Options of `observer snapshot`.
#[derive(Clone, Debug, Args)]
pub struct SnapshotArgs {
    /// How long to observe, 100ms to 1h
    #[arg(long = "for", value_name = "DURATION", default_value = "10s", value_parser = interval)]
    pub length: Duration,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    pub format: SnapshotFormat,
    /// Names of Wavefront metrics [default: documented]
    #[arg(long, value_name = "documented|collector", env = "OBSERVER_WAVEFRONT_NAMES", value_parser = wavefront_names)]
    pub wavefront_names: Option<Names>,
    /// Where and what to observe.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// How the catalogue is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum CatalogueFormat {
    /// Aligned columns, for people.
    #[default]
    Table,
    /// One array of objects.
    Json,
    /// Tab-separated, with a header line.
    Tsv,
}

/// How a snapshot is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SnapshotFormat {
    /// Prometheus text 0.0.4.
    #[default]
    Prometheus,
    /// Wavefront lines.
    Wavefront,
    /// One JSON document.
    Json,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What failed.
    Error,
    /// And what is odd.
    Warn,
    /// And what changed.
    #[default]
    Info,
    /// And why.
    Debug,
    /// And everything else.
    Trace,
}

impl LogLevel {
    /// As the options and the configuration file spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// A duration within bounds, as `500ms`, `10s`, `1m` or `1h`.
///
/// # Errors
/// Says what is wrong and what is accepted.
pub fn interval(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration; write a whole number and ms, s, m or h, as in 10s");
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let milliseconds: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    let duration = number.checked_mul(milliseconds).map(Duration::from_millis).ok_or_else(wrong)?;
    if INTERVALS.contains(&duration) { Ok(duration) } else { Err(format!("{text} is not between 100ms and 1h")) }
}

/// An address to listen on: `ADDRESS:PORT`, `NAME:PORT`, `PORT` (on loopback) or `:PORT` (on every IPv4 address). Of a name's
/// addresses the first of IPv4 is taken, or else the first.
///
/// # Errors
/// Says what is wrong and what is accepted.
pub fn listen_address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let wrong = |problem: &str| {
        format!(
            "{text:?} {problem}; write an address and a port, as in 127.0.0.1:9469 or [::1]:9469, or :9469 for every address"
        )
    };
    let (host, port) = text.rsplit_once(':').unwrap_or(("127.0.0.1", text));
    let port: u16 = port.parse().map_err(|_| wrong("has no port"))?;
    if host.is_empty() {
        return Ok((Ipv4Addr::UNSPECIFIED, port).into());
    }
    let found: Vec<SocketAddr> =
        (host, port).to_socket_addrs().map_err(|error| wrong(&format!("names no address ({error})")))?.collect();
    let best = found.iter().find(|address| address.is_ipv4()).or(found.first());
    best.copied().ok_or_else(|| wrong("names no address"))
}

/// Yes or no, in the words that templates use.
///
/// # Errors
/// Says what is accepted.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Ok(true),
        "false" | "no" | "off" | "0" => Ok(false),
        _ => Err(format!("{text:?} is neither true nor false")),
    }
}

/// The file name of an executable.
///
/// # Errors
/// It is empty or a path.
pub fn executable_name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains('/') {
        return Err(format!("{text:?} is no file name; write the last part of the executable's path, as in envoy"));
    }
    Ok(text.to_owned())
}

/// A metrics page. What is wrong with it is told later and not by the command line's parser, which would repeat the text
/// and the password that may be in it.
///
/// # Errors
/// None.
pub fn control_plane(text: &str) -> Result<Result<PageUrl, String>, Infallible> {
    Ok(text.parse())
}

/// Where reports go. What is wrong with it is told later, for the same reason.
///
/// # Errors
/// None.
pub fn emit_target(text: &str) -> Result<Result<Target, TargetError>, Infallible> {
    Ok(text.parse())
}

/// Which Wavefront names are sent.
///
/// # Errors
/// Lists the accepted ones.
pub fn wavefront_names(text: &str) -> Result<Names, String> {
    match text {
        "documented" => Ok(Names::Documented),
        "collector" => Ok(Names::Collector),
        _ => Err(format!("{text:?} is no set of names; write documented or collector")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn parses_every_option() {
        let line = "observer run --listen 0.0.0.0:9000 --interval 1m --scrape-interval 30s --emit wavefront+file:- --emit \
                    wavefront+http://proxy:2878 --wavefront-names collector --wavefront-token-file /t --wavefront-ca-file /c --queue-dir /q --pin /p --config c.toml --sidecar-exe envoy \
                    --sidecar-exe pilot --control-plane http://istiod:15014 --control-plane-exe etcd:2379 --scrape-proxies --cgroup /a --proc-root /host/proc --cgroup-root /host/cgroup --log debug";
        let Command::Run(args) = Cli::try_parse_from(line.split_whitespace()).unwrap().command else { panic!("run") };
        assert_eq!(args.interval, Some(Duration::from_mins(1)));
        assert_eq!(args.scrape_interval, Some(Duration::from_secs(30)));
        assert_eq!(args.emit.len(), 2);
        assert_eq!(args.wavefront_token_file, Some("/t".into()));
        assert_eq!(args.wavefront_ca_file, Some("/c".into()));
        assert_eq!(args.queue_dir, Some("/q".into()));
        assert_eq!(args.pin, Some("/p".into()));
        assert_eq!(args.node.sidecar_exe, ["envoy", "pilot"]);
        assert_eq!(args.node.control_plane, [Ok("http://istiod:15014/metrics".parse().unwrap())]);
        assert_eq!(args.node.control_plane_exe, ["etcd:2379".parse().unwrap()]);
        assert_eq!(args.node.scrape_proxies, Some(true));
        assert_eq!(args.node.log, Some(LogLevel::Debug));
    }

    #[test]
    fn wrong_usage_says_what_is_right() {
        for (line, expected) in [
            ("run --interval 10", "as in 10s"),
            ("run --interval 2h", "between 100ms and 1h"),
            ("run --intervall 10s", "a similar argument exists: '--interval'"),
            ("rum", "a similar subcommand exists: 'run'"),
            ("run --listen 127.0.0.1", "has no port"),
            ("run --listen no-such-host.invalid:80", "names no address"),
            ("run --scrape-proxies=maybe", "neither true nor false"),
            ("check --listen x", "has no port"),
            ("run --wavefront-names old", "documented or collector"),
            ("run --sidecar-exe /usr/bin/envoy", "as in envoy"),
            ("run --sidecar-exe=", "as in envoy"),
            ("run --control-plane-exe galley:0", "as in pilot-discovery"),
            ("run --cgroup=", "a value is required"),
            ("snapshot --pin /x", "unexpected argument"),
            ("snapshot --for 0s", "between 100ms and 1h"),
            ("catalogue --format yaml", "table, json, tsv"),
            ("snapshot --format yaml", "prometheus, wavefront, json"),
        ] {
            let error = Cli::try_parse_from(["observer"].into_iter().chain(line.split_whitespace())).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains(expected), "{line}: {error}");
        }
    }

    #[test]
    fn addresses_are_taken_as_people_write_them() {
        for (text, address) in [
            ("192.0.2.1:80", "192.0.2.1:80"),
            ("[::1]:80", "[::1]:80"),
            ("9469", "127.0.0.1:9469"),
            (":9469", "0.0.0.0:9469"),
            ("localhost:9469", "127.0.0.1:9469"),
        ] {
            assert_eq!(listen_address(text), Ok(address.parse().unwrap()), "{text}");
        }
        for text in ["", ":", "x", "1.2.3.4", "70000", ":70000", "::1"] {
            assert!(listen_address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn booleans_and_levels_are_taken_as_templates_write_them() {
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

    #[test]
    fn reads_durations() {
        for (text, milliseconds) in [("500ms", 500), ("10s", 10_000), ("1m", 60_000), ("1h", 3_600_000)] {
            assert_eq!(interval(text), Ok(Duration::from_millis(milliseconds)));
        }
        for text in
            ["", "s", "10", "-1s", "1.5s", "1d", "10 s", "99999999999999999999s", "18446744073709551615h", "99ms"]
        {
            assert!(interval(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_duration_is_within_bounds(text in "[0-9]{0,20}(ms|s|m|h|.)") {
            if let Ok(duration) = interval(&text) {
                prop_assert!(INTERVALS.contains(&duration));
            }
        }
    }
}
