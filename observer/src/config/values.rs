//! Values that options, environment variables and the configuration file have in common: validated newtypes, each parsed from
//! a string.

use std::{
    fmt::{self, Display},
    net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs},
    ops::RangeInclusive,
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use serde::{Deserialize, Deserializer, de};

use crate::{emit::wavefront::Names, model::span::SpanKind};

/// Address that is served unless another is given.
pub const DEFAULT_LISTEN: ListenAddress = ListenAddress(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9469));
const INTERVALS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_hours(1);

/// Whether callers at the destination leg are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Callers {
    /// Where the kernel programs can.
    #[default]
    Auto,
    /// Never: their labels are unknown.
    Off,
}

/// What spans say of the paths of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TracePaths {
    /// Paths without their query.
    #[default]
    Full,
    /// The same, with `{id}` in place of segments that are ids.
    Masked,
    /// Nothing: neither paths nor methods are read.
    Off,
}

/// Which ends of requests become spans.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TraceKinds {
    /// Both.
    #[default]
    All,
    /// The callers'.
    Client,
    /// The applications': of use beside the spans of sidecars that trace by themselves.
    Server,
}

impl TraceKinds {
    /// Returns whether spans of a kind are sent.
    #[must_use]
    pub fn has(self, kind: SpanKind) -> bool {
        match self {
            Self::All => true,
            Self::Client => kind == SpanKind::Client,
            Self::Server => kind == SpanKind::Server,
        }
    }
}

/// How much is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Errors.
    Error,
    /// Also warnings.
    Warn,
    /// Also state changes.
    #[default]
    Info,
    /// Also reasons.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// Returns the name in options and in the configuration file.
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

/// Whether names come from the Kubernetes API.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KubernetesMode {
    /// If there are credentials.
    #[default]
    Auto,
    /// Never.
    Off,
}

/// A value that its text does not stand for; the message has an example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid(String);

impl Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Invalid {}

/// A duration from 100ms to 1h, e.g. `500ms`, `10s`, `1m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval(pub Duration);

impl FromStr for Interval {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let invalid =
            || Invalid(format!("invalid duration {text:?}: expected an integer and a unit (ms, s, m, h), e.g. 10s"));
        let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(invalid)?;
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| invalid())?;
        let milliseconds: u64 = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(invalid()),
        };
        let duration = number.checked_mul(milliseconds).map(Duration::from_millis).ok_or_else(invalid)?;
        if INTERVALS.contains(&duration) {
            Ok(Self(duration))
        } else {
            Err(Invalid(format!("invalid duration {text:?}: expected a value between 100ms and 1h")))
        }
    }
}

impl Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_millis() {
            whole if whole % 1000 == 0 => write!(f, "{}s", whole / 1000),
            milliseconds => write!(f, "{milliseconds}ms"),
        }
    }
}

/// An address to listen on: `ADDRESS:PORT`, `NAME:PORT`, `PORT` (on loopback) or `:PORT` (on every IPv4 address). Of a name's
/// addresses the first IPv4 one is used, or else the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenAddress(pub SocketAddr);

impl FromStr for ListenAddress {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if let Ok(address) = text.parse() {
            return Ok(Self(address));
        }
        let invalid = |problem: &str| {
            Invalid(format!(
                "invalid address {text:?}: {problem}; expected an address and a port, e.g. 127.0.0.1:9469 or [::1]:9469, or \
                 :9469 for every address"
            ))
        };
        let (host, port) = text.rsplit_once(':').unwrap_or(("127.0.0.1", text));
        let port: u16 = port.parse().map_err(|_| invalid("it has no port"))?;
        if host.is_empty() {
            return Ok(Self((Ipv4Addr::UNSPECIFIED, port).into()));
        }
        let found = (host, port).to_socket_addrs();
        let found: Vec<SocketAddr> =
            found.map_err(|error| invalid(&format!("the name does not resolve ({error})")))?.collect();
        let best = found.iter().find(|address| address.is_ipv4()).or(found.first());
        best.copied().map(Self).ok_or_else(|| invalid("the name does not resolve"))
    }
}

impl Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The file name of an executable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecutableName(pub String);

impl FromStr for ExecutableName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.is_empty() || text.contains('/') {
            return Err(Invalid(format!(
                "invalid file name {text:?}: expected the last component of the executable's path, e.g. envoy"
            )));
        }
        Ok(Self(text.to_owned()))
    }
}

impl Display for ExecutableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Parses a boolean as templates write it.
///
/// # Errors
/// The text is not one of the accepted words.
pub fn boolean(text: &str) -> Result<bool, Invalid> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Ok(true),
        "false" | "no" | "off" | "0" => Ok(false),
        _ => Err(Invalid(format!("invalid value {text:?}: expected true or false"))),
    }
}

/// Parses names of Wavefront metrics.
///
/// # Errors
/// The text is not one of the accepted words.
pub fn parse_wavefront_names(text: &str) -> Result<Names, Invalid> {
    match text {
        "documented" => Ok(Names::Documented),
        "collector" => Ok(Names::Collector),
        _ => Err(Invalid(format!("invalid value {text:?}: expected documented or collector"))),
    }
}

/// A value that is parsed from a string of the file.
pub(super) struct Parsed<T>(pub(super) T);

impl<'de, T: FromStr<Err: Display>> Deserialize<'de> for Parsed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map(Self).map_err(de::Error::custom)
    }
}

/// Deserialises a value from a string.
pub(super) fn parsed<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(deserializer: D) -> Result<T, D::Error> {
    Parsed::deserialize(deserializer).map(|Parsed(value)| value)
}

/// Deserialises a list of values from strings.
pub(super) fn parsed_list<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    Ok(Vec::<Parsed<T>>::deserialize(deserializer)?.into_iter().map(|Parsed(value)| value).collect())
}

/// Deserialises the path of a file.
pub(super) fn file<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Err(de::Error::custom("a path is missing; write a file, or leave the key out"));
    }
    Ok(Some(text.into()))
}

struct Directory(PathBuf);

impl<'de> Deserialize<'de> for Directory {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() {
            return Err(de::Error::custom("a path is missing; write a directory, or leave the key out"));
        }
        Ok(Self(text.into()))
    }
}

/// Deserialises the path of a directory.
pub(super) fn directory<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    Directory::deserialize(deserializer).map(|Directory(path)| Some(path))
}

/// Deserialises paths of directories.
pub(super) fn directories<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PathBuf>, D::Error> {
    Ok(Vec::<Directory>::deserialize(deserializer)?.into_iter().map(|Directory(path)| path).collect())
}

/// Deserialises names of Wavefront metrics.
pub(super) fn wavefront_names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Names, D::Error> {
    parse_wavefront_names(&String::deserialize(deserializer)?).map_err(de::Error::custom)
}

/// Deserialises an integer within bounds.
pub(super) fn bounded<'de, D: Deserializer<'de>, T: TryFrom<i64>, const MIN: i64, const MAX: i64>(
    deserializer: D,
) -> Result<T, D::Error> {
    let number = i64::deserialize(deserializer)?;
    let value = Some(number).filter(|number| (MIN..=MAX).contains(number)).and_then(|number| number.try_into().ok());
    value.ok_or_else(|| de::Error::custom(format!("{number} is not between {MIN} and {MAX}")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_are_parsed_as_people_write_them() {
        for (text, address) in [
            ("192.0.2.1:80", "192.0.2.1:80"),
            ("[::1]:80", "[::1]:80"),
            ("9469", "127.0.0.1:9469"),
            (":9469", "0.0.0.0:9469"),
            ("localhost:9469", "127.0.0.1:9469"),
        ] {
            assert_eq!(text.parse(), Ok(ListenAddress(address.parse().unwrap())), "{text}");
        }
        for text in ["", ":", "x", "1.2.3.4", "70000", ":70000", "::1"] {
            assert!(text.parse::<ListenAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_parsed_and_shown() {
        for (text, milliseconds) in [("500ms", 500), ("10s", 10_000), ("1m", 60_000), ("1h", 3_600_000)] {
            let interval: Interval = text.parse().unwrap();
            assert_eq!(interval, Interval(Duration::from_millis(milliseconds)));
            assert_eq!(interval.to_string().parse(), Ok(interval));
        }
        for text in
            ["", "s", "10", "-1s", "1.5s", "1d", "10 s", "99999999999999999999s", "18446744073709551615h", "99ms"]
        {
            assert!(text.parse::<Interval>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_duration_is_within_bounds(text in "[0-9]{0,20}(ms|s|m|h|.)") {
            if let Ok(Interval(duration)) = text.parse() {
                prop_assert!(INTERVALS.contains(&duration));
            }
        }
    }
}
