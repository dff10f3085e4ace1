//! Istio's iptables rules, as its `istio-iptables` writes them (DNS capture off).

use anyhow::Result;

use crate::net::{Namespace, finish, run};

/// uid and gid of Istio's proxies.
pub const PROXY_USER: u32 = 1337;

/// The ports that connections are redirected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// The application's (`meshConfig.proxyListenPort`).
    pub outbound: u16,
    /// Its peers' (`meshConfig.proxyInboundListenPort`).
    pub inbound: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self { outbound: 15001, inbound: 15006 }
    }
}

/// How inbound traffic reaches the sidecar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Interception {
    /// nat REDIRECT to 15006 (Istio's default).
    #[default]
    Redirect,
    /// mangle TPROXY to 15006: the sidecar keeps the original addresses.
    Tproxy,
    /// No rules (gateways).
    None,
}

/// Ports, besides Istio's own, that bypass the sidecar.
#[derive(Clone, Debug, Default)]
pub struct Exclusions {
    /// Inbound destination ports.
    pub inbound: Vec<u16>,
    /// Outbound destination ports.
    pub outbound: Vec<u16>,
}

/// Ports that Istio never redirects inbound: Envoy's metrics, health, merged metrics.
const STATUS_PORTS: [u16; 3] = [15090, 15021, 15020];

/// Installs the rules in `namespace`, for IPv4 and IPv6.
pub fn install(namespace: &Namespace, interception: Interception, ports: Ports, exclusions: &Exclusions) -> Result<()> {
    if interception == Interception::None {
        return Ok(());
    }
    // pilot-agent and Envoy both bind ::6; unlike 127.0.0.6 it is not a loopback address by itself.
    namespace.batch("addr add ::6/128 dev lo nodad")?;
    if interception == Interception::Tproxy {
        for family in ["-4", "-6"] {
            for line in ["rule add fwmark 1337 lookup 133", "route add local default dev lo table 133"] {
                let words: Vec<&str> =
                    ["-netns", namespace.name(), family].into_iter().chain(line.split(' ')).collect();
                run("ip", &words)?;
            }
        }
    }
    for family in [&IPV4, &IPV6] {
        let rules = nat(family, interception, ports, exclusions)
            + &(if interception == Interception::Tproxy { mangle(family, ports, exclusions) } else { String::new() });
        let mut command = std::process::Command::new("ip");
        command.args(["netns", "exec", namespace.name(), family.command]);
        finish(&mut command, &rules)?;
    }
    Ok(())
}

struct Family {
    command: &'static str,
    magic: &'static str,
    loopback: &'static str,
}

const IPV4: Family = Family { command: "iptables-legacy-restore", magic: "127.0.0.6/32", loopback: "127.0.0.1/32" };
const IPV6: Family = Family { command: "ip6tables-legacy-restore", magic: "::6/128", loopback: "::1/128" };

fn nat(family: &Family, interception: Interception, ports: Ports, exclusions: &Exclusions) -> String {
    let Family { magic, loopback, .. } = family;
    let Ports { outbound, inbound } = ports;
    let mut rules = format!(
        "*nat\n:ISTIO_INBOUND - [0:0]\n:ISTIO_REDIRECT - [0:0]\n:ISTIO_IN_REDIRECT - [0:0]\n:ISTIO_OUTPUT - [0:0]\n\
         -A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports {outbound}\n\
         -A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports {inbound}\n",
    );
    if interception == Interception::Redirect {
        rules += "-A PREROUTING -p tcp -j ISTIO_INBOUND\n-A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN\n";
        for port in STATUS_PORTS.iter().chain(&exclusions.inbound) {
            rules += &format!("-A ISTIO_INBOUND -p tcp --dport {port} -j RETURN\n");
        }
        rules += "-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT\n";
    }
    if interception == Interception::Tproxy {
        // Traffic from the sidecar to the application with the client's address must not return to the sidecar.
        rules += "-A OUTPUT -p tcp -o lo -m mark --mark 1337 -j RETURN\n";
    }
    rules += "-A OUTPUT -p tcp -j ISTIO_OUTPUT\n";
    for port in &exclusions.outbound {
        rules += &format!("-A ISTIO_OUTPUT -p tcp --dport {port} -j RETURN\n");
    }
    rules += &format!("-A ISTIO_OUTPUT -o lo -s {magic} -j RETURN\n");
    for owner in ["uid", "gid"] {
        let owner = format!("--{owner}-owner {PROXY_USER}");
        rules += &format!(
            "-A ISTIO_OUTPUT -o lo ! -d {loopback} -p tcp ! --dport 15008 -m owner {owner} -j ISTIO_IN_REDIRECT\n\
             -A ISTIO_OUTPUT -o lo -m owner ! {owner} -j RETURN\n\
             -A ISTIO_OUTPUT -m owner {owner} -j RETURN\n"
        );
    }
    rules + &format!("-A ISTIO_OUTPUT -d {loopback} -j RETURN\n-A ISTIO_OUTPUT -j ISTIO_REDIRECT\nCOMMIT\n")
}

fn mangle(family: &Family, ports: Ports, exclusions: &Exclusions) -> String {
    let Family { magic, loopback, .. } = family;
    let inbound = ports.inbound;
    let mut rules = String::from(
        "*mangle\n:ISTIO_INBOUND - [0:0]\n:ISTIO_DIVERT - [0:0]\n:ISTIO_TPROXY - [0:0]\n\
         -A ISTIO_DIVERT -j MARK --set-mark 1337\n\
         -A ISTIO_DIVERT -j ACCEPT\n\
         -A PREROUTING -p tcp -j ISTIO_INBOUND\n\
         -A PREROUTING -p tcp -m mark --mark 1337 -j CONNMARK --save-mark\n\
         -A OUTPUT -p tcp -o lo -m mark --mark 1337 -j RETURN\n",
    );
    for owner in ["uid", "gid"] {
        rules += &format!(
            "-A OUTPUT ! -d {loopback} -p tcp -o lo -m owner --{owner}-owner {PROXY_USER} -j MARK --set-mark 1338\n"
        );
    }
    rules += &format!(
        "-A OUTPUT -p tcp -m connmark --mark 1337 -j CONNMARK --restore-mark\n\
         -A ISTIO_TPROXY ! -d {loopback} -p tcp -j TPROXY --tproxy-mark 1337/0xffffffff --on-port {inbound}\n\
         -A ISTIO_INBOUND -p tcp -m mark --mark 1337 -j RETURN\n\
         -A ISTIO_INBOUND -p tcp -s {magic} -i lo -j RETURN\n\
         -A ISTIO_INBOUND -p tcp -i lo -m mark ! --mark 1338 -j RETURN\n"
    );
    for port in STATUS_PORTS.iter().chain(&exclusions.inbound) {
        rules += &format!("-A ISTIO_INBOUND -p tcp --dport {port} -j RETURN\n");
    }
    rules
        + "-A ISTIO_INBOUND -p tcp -m conntrack --ctstate RELATED,ESTABLISHED -j ISTIO_DIVERT\n\
           -A ISTIO_INBOUND -p tcp -j ISTIO_TPROXY\nCOMMIT\n"
}
