//! Istio's processes other than Envoy, and their /metrics endpoints. Decisions are pure.

use std::{
    fmt::{self, Display},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

pub use observer_model::identity::{Component, InsideOnly, MetricsEndpoint};

use super::proc_files::Sockets;

/// Port of the control plane's /metrics endpoint [istio `pkg/config/constants`, Helm charts since 1.1].
pub const MONITORING_PORT: u16 = 15014;
/// Executables of the control plane and component names: istiod, and its predecessors before 1.5.
const APPS: [(&str, &str); 4] =
    [("pilot-discovery", "istiod"), ("galley", "galley"), ("istio_ca", "citadel"), ("mixs", "mixer")];

/// A component's executable, as `NAME` or `NAME:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComponentRule {
    /// File name of the executable.
    pub executable: String,
    /// Port of its /metrics endpoint; found by its sockets if absent.
    pub port: Option<u16>,
}

impl ComponentRule {
    /// Returns the control plane's executables.
    #[must_use]
    pub fn control_plane() -> Vec<Self> {
        APPS.map(|(executable, _)| Self { executable: executable.to_owned(), port: None }).into()
    }

    /// Returns the node proxy of ambient mode, whose endpoint is on port 15020 [ztunnel `ARCHITECTURE.md`].
    #[must_use]
    pub fn ztunnel() -> Self {
        Self { executable: "ztunnel".to_owned(), port: Some(15020) }
    }

    /// Returns the component name: the executable's own name if it is not one of Istio's.
    #[must_use]
    pub fn app(&self) -> &str {
        APPS.iter().find(|(executable, _)| *executable == self.executable).map_or(&self.executable, |(_, app)| app)
    }
}

impl Display for ComponentRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.executable),
            None => f.write_str(&self.executable),
        }
    }
}

impl FromStr for ComponentRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("invalid executable {text:?}: expected its file name, e.g. pilot-discovery or galley:15014");
        let (executable, port) = match text.rsplit_once(':') {
            Some((executable, port)) => {
                (executable, Some(port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?))
            }
            None => (text, None),
        };
        if executable.is_empty() || executable.contains('/') {
            return Err(wrong());
        }
        Ok(Self { executable: executable.to_owned(), port })
    }
}

/// Inputs for locating an endpoint.
#[derive(Clone, Debug)]
pub struct Context {
    /// Its listening sockets; `None` if they cannot be read.
    pub sockets: Option<Sockets>,
    /// Configured port.
    pub configured: Option<u16>,
    /// Port on its own command line.
    pub argument: Option<u16>,
    /// Its own addresses, the best first, without loopback.
    pub addresses: Vec<IpAddr>,
    /// Whether it refuses all but local callers.
    pub local_only: bool,
    /// Whether the observer is in the same network namespace.
    pub same_namespace: bool,
}

/// Locates the endpoint.
///
/// # Errors
/// The error names what is missing.
pub fn endpoint(context: &Context) -> Result<MetricsEndpoint, String> {
    let Some(sockets) = &context.sockets else {
        return Err("its listening sockets may not be read; give the observer CAP_SYS_PTRACE".to_owned());
    };
    let Port { number: port, evidence, is_guess } = port(context, sockets)?;
    let bound = || sockets.listeners.iter().filter(|listener| listener.port == port).map(|listener| listener.address);
    let everywhere = bound().find(IpAddr::is_unspecified);
    let bound_outside = bound().find(|address| !address.is_unspecified() && !address.is_loopback());
    let outside = bound_outside.or_else(|| own_address(everywhere?, &context.addresses));
    let loopback = bound().find(IpAddr::is_loopback).or_else(|| everywhere.map(|all| loopback(all, outside)));
    let (address, reason) = match (outside, loopback) {
        (Some(_), Some(loopback)) if context.local_only => (loopback, Some(InsideOnly::Refusing)),
        (Some(outside), _) => (outside, None),
        (None, Some(loopback)) if everywhere.is_some() => (loopback, Some(InsideOnly::NoAddress)),
        (None, Some(loopback)) => (loopback, Some(InsideOnly::Loopback)),
        (None, None) => return Err(format!("nothing listens on {port}")),
    };
    let own = outside.or_else(|| context.addresses.first().copied()).unwrap_or(address);
    Ok(MetricsEndpoint {
        instance: SocketAddr::new(own, port),
        address: SocketAddr::new(address, port),
        inside_only: reason.filter(|_| !context.same_namespace),
        inside: (!context.same_namespace).then(|| SocketAddr::new(loopback.unwrap_or(address), port)),
        evidence,
        is_guess,
    })
}

struct Port {
    number: u16,
    evidence: String,
    is_guess: bool,
}

/// Returns the first known port that is listened on, or else the only port.
fn port(context: &Context, sockets: &Sockets) -> Result<Port, String> {
    let who = if sockets.own { "listens" } else { "its network namespace listens" };
    let named = [
        (context.configured, " as configured"),
        (context.argument, " as its command line says"),
        (Some(MONITORING_PORT), ""),
    ];
    for (port, why) in named {
        if let Some(number) = port.filter(|port| sockets.listeners.iter().any(|listener| listener.port == *port)) {
            return Ok(Port { number, evidence: format!("{who} on {number}{why}"), is_guess: false });
        }
    }
    let mut ports: Vec<u16> = sockets.listeners.iter().map(|listener| listener.port).collect();
    ports.sort_unstable();
    ports.dedup();
    match ports[..] {
        _ if !sockets.own => {
            Err(format!("its sockets cannot be distinguished from others' and nothing listens on {MONITORING_PORT}"))
        }
        [] => Err("it listens on no port".to_owned()),
        [number] => Ok(Port { number, evidence: format!("{who} on {number} only"), is_guess: true }),
        [..] => {
            let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
            Err(format!(
                "it listens on {}, none of them known for it: name one by --control-plane-exe NAME:PORT",
                ports.join(", ")
            ))
        }
    }
}

/// Returns the first of `addresses` that reaches a socket bound to `everywhere`. Go binds to `::` for both families.
fn own_address(everywhere: IpAddr, addresses: &[IpAddr]) -> Option<IpAddr> {
    addresses.iter().copied().find(|address| everywhere.is_ipv6() || address.is_ipv4())
}

fn loopback(everywhere: IpAddr, outside: Option<IpAddr>) -> IpAddr {
    let ipv6 = everywhere.is_ipv6() && outside.is_some_and(|address| address.is_ipv6());
    if ipv6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::proc_files::Listener;

    fn context(listening: &[&str]) -> Context {
        let listener = |(inode, text): (usize, &&str)| {
            let address: SocketAddr = text.parse().unwrap();
            Listener { address: address.ip(), port: address.port(), inode: inode as u64 }
        };
        Context {
            sockets: Some(Sockets { listeners: listening.iter().enumerate().map(listener).collect(), own: true }),
            configured: None,
            argument: None,
            addresses: vec!["10.1.0.9".parse().unwrap(), "fd00::9".parse().unwrap()],
            local_only: false,
            same_namespace: false,
        }
    }

    fn found(context: &Context) -> (String, String, Option<InsideOnly>) {
        let endpoint = endpoint(context).unwrap();
        (endpoint.instance.to_string(), endpoint.address.to_string(), endpoint.inside_only)
    }

    #[test]
    fn takes_the_port_that_is_named_and_listened_on() {
        let istiod = ["[::]:15010", "[::]:15012", "[::]:15014", "127.0.0.1:9876"];
        assert_eq!(found(&context(&istiod)).1, "10.1.0.9:15014");
        let mut named = context(&istiod);
        named.argument = Some(15010);
        assert_eq!(found(&named).1, "10.1.0.9:15010");
        named.configured = Some(15012);
        let endpoint = endpoint(&named).unwrap();
        assert_eq!((endpoint.address.port(), endpoint.evidence.as_str()), (15012, "listens on 15012 as configured"));
        named.configured = Some(1);
        assert_eq!(found(&named).1, "10.1.0.9:15010", "nothing listens on port 1");
        assert_eq!(found(&context(&["0.0.0.0:9090"])).1, "10.1.0.9:9090");
    }

    #[test]
    fn says_why_there_is_no_page() {
        let reason = |context: &Context| endpoint(context).unwrap_err();
        assert!(reason(&context(&[])).contains("listens on no port"));
        let many = reason(&context(&["0.0.0.0:2380", "0.0.0.0:2379"]));
        assert!(many.contains("2379, 2380") && many.contains("NAME:PORT"), "{many}");
        let mut hidden = context(&["0.0.0.0:9090"]);
        hidden.sockets.as_mut().unwrap().own = false;
        assert!(reason(&hidden).contains("cannot be distinguished"));
        hidden.sockets = None;
        assert!(reason(&hidden).contains("CAP_SYS_PTRACE"));
    }

    #[test]
    fn takes_the_address_that_is_the_instances_own() {
        let named = |listening: &[&str], addresses: &[&str]| {
            let mut context = context(listening);
            context.addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
            found(&context)
        };
        let both = ["fd00::9", "10.1.0.9"];
        assert_eq!(named(&["0.0.0.0:15014"], &both).1, "10.1.0.9:15014", "no IPv6");
        assert_eq!(named(&["[::]:15014"], &both).1, "[fd00::9]:15014");
        assert_eq!(named(&["127.0.0.1:15014", "10.7.7.7:15014"], &both).1, "10.7.7.7:15014");
        let inside = |instance: &str, address: &str, reason| (instance.to_owned(), address.to_owned(), Some(reason));
        let loopback = InsideOnly::Loopback;
        assert_eq!(named(&["127.0.0.1:15014"], &both), inside("[fd00::9]:15014", "127.0.0.1:15014", loopback));
        assert_eq!(named(&["[::1]:15014"], &[]), inside("[::1]:15014", "[::1]:15014", loopback));
        let alone = inside("127.0.0.1:15014", "127.0.0.1:15014", InsideOnly::NoAddress);
        assert_eq!(named(&["[::]:15014"], &[]), alone);
    }

    #[test]
    fn from_inside_it_is_on_loopback_if_it_listens_there() {
        let inside = |listening: &[&str]| endpoint(&context(listening)).unwrap().inside.unwrap().to_string();
        assert_eq!(inside(&["[::]:15014"]), "127.0.0.1:15014");
        assert_eq!(inside(&["10.7.7.7:15014", "[::1]:15014"]), "[::1]:15014");
        assert_eq!(inside(&["10.7.7.7:15014"]), "10.7.7.7:15014");
    }

    #[test]
    fn a_page_for_local_callers_is_read_locally() {
        let mut refusing = context(&["[::]:15014"]);
        refusing.local_only = true;
        let expected = |inside| ("10.1.0.9:15014".to_owned(), "127.0.0.1:15014".to_owned(), inside);
        assert_eq!(found(&refusing), expected(Some(InsideOnly::Refusing)));
        refusing.same_namespace = true;
        assert_eq!(found(&refusing), expected(None));
        assert_eq!(endpoint(&refusing).unwrap().inside, None, "there is no other namespace to enter");
        let mut local = context(&["127.0.0.1:15014"]);
        local.same_namespace = true;
        assert_eq!(found(&local).2, None, "the observer's own loopback");
    }

    #[test]
    fn reads_executables_with_and_without_a_port() {
        let rule = |text: &str| text.parse::<ComponentRule>();
        assert_eq!(rule("pilot-discovery").unwrap().app(), "istiod");
        let etcd = rule("etcd:2379").unwrap();
        assert_eq!((etcd.app(), etcd.executable.as_str(), etcd.port), ("etcd", "etcd", Some(2379)));
        for wrong in ["", "/usr/bin/mixs", "mixs:", "mixs:0", "mixs:70000", ":15014"] {
            assert!(rule(wrong).unwrap_err().contains("e.g. pilot-discovery"), "{wrong}");
        }
    }
}
