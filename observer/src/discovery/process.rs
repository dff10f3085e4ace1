//! Classifies Envoy processes by evidence. Pure. The environment is the injector's [istio `injection-template.yaml`],
//! which pilot-agent passes on to Envoy.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
};

use super::{
    ProcessId, Role, SidecarRule, Workload, pod_labels,
    proc_files::{Executable, MAX_NAME_BYTES, Sockets},
};

/// Envoy's port for redirected outbound connections [istio `pkg/config/constants`].
pub const OUTBOUND_PORT: u16 = 15001;
/// Envoy's port for redirected inbound connections.
pub const INBOUND_PORT: u16 = 15006;
/// Ports that every Istio proxy may listen on, whatever its role: administration, debugging, HBONE, status, health,
/// DNS, metrics [istio.io, application requirements].
const PROXY_PORTS: [u16; 7] = [15000, 15004, 15008, 15020, 15021, 15053, 15090];
/// Maximum number of ports listed in a message.
const MAX_LISTED_PORTS: usize = 4;
/// Message about waypoints.
const WAYPOINT: &str = "it is a waypoint: what it takes (HBONE, port 15008) and what it passes on is encrypted on every \
    connection, so that none of its requests can be seen; its own metrics can be scraped, by --control-plane \
    http://ADDRESS:15020/stats/prometheus";

/// Everything known of a candidate.
#[derive(Clone, Debug)]
pub struct ProcessFacts {
    /// Which process.
    pub process: ProcessId,
    /// Its executable.
    pub executable: Executable,
    /// Selected variables of its environment ([`max_value_bytes`]); `None` if it cannot be read.
    pub environment: Option<BTreeMap<String, String>>,
    /// `sidecar`, `router`, … in the node id of its `--service-node`.
    pub node_type: Option<String>,
    /// The type in the node id of its bootstrap configuration.
    pub bootstrap: Option<String>,
    /// The role of the pilot-agent that is its parent or in its cgroup.
    pub agent: Option<String>,
    /// Its listening sockets; `None` if they cannot be read.
    pub listening: Option<Sockets>,
    /// cgroup v2 path as in `/proc/PID/cgroup`.
    pub cgroup: String,
}

/// The classification of a candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Classification {
    /// It is observed.
    Observed {
        /// Its role.
        role: Role,
        /// The evidence.
        evidence: String,
        /// Whether the classification cannot change any more.
        is_final: bool,
    },
    /// It is not observed, for this reason.
    Refused(String),
}

/// Returns the maximum size of an environment variable; `None` if it is not used.
pub fn max_value_bytes(name: &str) -> Option<usize> {
    match name {
        "ISTIO_METAJSON_LABELS" => Some(pod_labels::MAX_BYTES),
        "POD_NAME"
        | "POD_NAMESPACE"
        | "INSTANCE_IP"
        | "INSTANCE_IPS"
        | "POD_IP"
        | "SERVICE_ACCOUNT"
        | "TRUST_DOMAIN"
        | "NODE_NAME"
        | "METRICS_LOCALHOST_ACCESS_ONLY"
        | "ISTIO_META_CLUSTER_ID"
        | "ISTIO_META_INTERCEPTION_MODE"
        | "ISTIO_META_MESH_ID"
        | "ISTIO_META_NODE_NAME"
        | "ISTIO_META_OWNER"
        | "ISTIO_META_WORKLOAD_NAME" => Some(MAX_NAME_BYTES),
        _ => None,
    }
}

impl ProcessFacts {
    /// Returns the matching rule of the configuration file, if any.
    pub fn rule<'a>(&self, rules: &'a [SidecarRule]) -> Option<&'a SidecarRule> {
        rules.iter().find(|rule| {
            let cgroup = rule.cgroup.as_deref().is_none_or(|cgroup| cgroup == Path::new(&self.cgroup));
            let executable = rule.executable.is_none() || rule.executable == self.executable.path;
            cgroup && executable && (rule.cgroup.is_some() || rule.executable.is_some())
        })
    }

    /// Returns a variable of its environment.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.environment.as_ref()?.get(name).map(String::as_str)
    }

    /// Describes the variables that only Istio's injector sets.
    fn injected_by(&self) -> Option<String> {
        let names: Vec<&str> = self
            .environment
            .as_ref()?
            .keys()
            .map(String::as_str)
            .filter(|name| name.starts_with("ISTIO_META"))
            .collect();
        let (first, others) = names.split_first()?;
        Some(match others.len() {
            0 => format!("environment {first}"),
            others => format!("environment {first} and {others} more of the injector's"),
        })
    }
}

/// A role stated by a source.
struct RoleClaim<'a> {
    /// `sidecar`, `router`, …
    role: &'a str,
    /// Description of the source.
    source: &'static str,
}

impl RoleClaim<'_> {
    fn is_gateway(&self) -> bool {
        matches!(self.role, "router" | "ingress")
    }

    fn agrees_with(&self, other: &Self) -> bool {
        self.role == other.role || self.is_gateway() && other.is_gateway()
    }
}

impl ProcessFacts {
    /// Returns the stated roles, strongest first: later arguments of Envoy override earlier ones, and pilot-agent
    /// starts Envoy.
    fn claims(&self) -> impl Iterator<Item = RoleClaim<'_>> {
        let sources = [
            (&self.node_type, "its node type (--service-node)"),
            (&self.bootstrap, "the node id of its bootstrap"),
            (&self.agent, "pilot-agent's command line"),
        ];
        sources.into_iter().filter_map(|(role, source)| Some(RoleClaim { role: role.as_deref()?, source }))
    }

    fn interception_mode(&self) -> Option<&str> {
        self.variable("ISTIO_META_INTERCEPTION_MODE")
    }

    /// Returns the ports for redirected connections that it listens on.
    fn redirected(&self) -> Vec<u16> {
        let ports = self.listening.iter().flat_map(|sockets| &sockets.listeners).map(|listener| listener.port);
        sorted(ports.filter(|port| [OUTBOUND_PORT, INBOUND_PORT].contains(port)))
    }

    /// Returns its own ports that are reachable from outside and that not every proxy has.
    fn own_ports(&self) -> Vec<u16> {
        let own = self.listening.iter().filter(|sockets| sockets.own).flat_map(|sockets| &sockets.listeners);
        let open = own.filter(|listener| !listener.address.is_loopback()).map(|listener| listener.port);
        sorted(open.filter(|port| !PROXY_PORTS.contains(port)))
    }

    /// Whether it has started to listen; `true` if that is not known.
    fn has_started_listening(&self) -> bool {
        self.listening.as_ref().is_none_or(|sockets| !sockets.listeners.is_empty())
    }
}

/// Classifies by evidence, strongest first: the configuration file; the node id on the command line, then in the
/// bootstrap; the role of its pilot-agent; listeners on Istio's ports; the injector's environment. Gateways have the
/// latter too: a proxy with nothing else is a gateway once it listens on other ports but not on those.
pub fn classify(facts: &ProcessFacts, rule: Option<&SidecarRule>) -> Classification {
    let sidecar = if facts.interception_mode() == Some("TPROXY") { Role::TproxySidecar } else { Role::Sidecar };
    if let Some(role) = rule.and_then(|rule| rule.role) {
        let evidence = "[[sidecar]] of the configuration file".to_owned();
        return Classification::Observed { role, evidence, is_final: true };
    }
    if let Some(claim) = facts.claims().next() {
        let evidence = format!("{} says {}", claim.source, claim.role);
        let role = match claim.role {
            "sidecar" => sidecar,
            _ if claim.is_gateway() => Role::Gateway,
            "waypoint" => return Classification::Refused(format!("{WAYPOINT} ({evidence})")),
            _ => return Classification::Refused(format!("{evidence}, which is neither sidecar nor gateway")),
        };
        return Classification::Observed { role, evidence, is_final: facts.has_started_listening() };
    }
    let (injected, redirected) = (facts.injected_by(), facts.redirected());
    if !redirected.is_empty() {
        let own = facts.listening.as_ref().is_some_and(|sockets| sockets.own);
        let who = if own { "listens" } else { "its network namespace listens" };
        let evidence = injected.into_iter().chain([format!("{who} on {}", list_ports(&redirected))]);
        let evidence = evidence.collect::<Vec<_>>().join("; ");
        return Classification::Observed { role: sidecar, evidence, is_final: true };
    }
    if let Some(evidence) = injected {
        let own_ports = facts.own_ports();
        if own_ports.is_empty() || facts.interception_mode() == Some("NONE") {
            return Classification::Observed { role: sidecar, evidence, is_final: facts.listening.is_none() };
        }
        let evidence = format!("{evidence}; listens on {} and on neither 15001 nor 15006", list_ports(&own_ports));
        return Classification::Observed { role: Role::Gateway, evidence, is_final: false };
    }
    Classification::Refused(
        match (&facts.listening, &facts.environment) {
            (None, _) => {
                "neither its environment nor its listening sockets may be read; give the observer CAP_SYS_PTRACE"
            }
            (Some(_), None) => {
                "its environment may not be read and it listens on neither 15001 nor 15006; give the observer \
                 CAP_SYS_PTRACE"
            }
            (Some(_), Some(_)) => {
                "neither sidecar nor gateway: no node id of Istio's, no pilot-agent, no injector's environment \
                 (ISTIO_META_…), no listener on 15001 or 15006; if it is one, say so by [[sidecar]] in the configuration file"
            }
        }
        .to_owned(),
    )
}

/// Returns warnings about an observed process.
pub fn warnings(facts: &ProcessFacts, rule: Option<&SidecarRule>, role: Role) -> Vec<String> {
    let pid = facts.process.pid;
    let mut warnings = Vec::new();
    if rule.is_none_or(|rule| rule.role.is_none()) {
        warnings
            .extend(contradiction(facts, role).map(|it| format!("process {pid} is taken for a {role}, although {it}")));
    }
    if facts.interception_mode() == Some("NONE") && role != Role::Gateway {
        warnings.push(format!(
            "process {pid}: interception mode NONE: nothing is redirected to it; of its application's connections those are \
             counted that go to its listeners at loopback addresses"
        ));
    }
    if facts.cgroup == "/" {
        warnings.push(format!(
            "process {pid} is in the root cgroup, which holds every process without one of its own: start the sidecar in its \
             own cgroup (a container or a systemd unit does)"
        ));
    }
    warnings
}

/// Returns evidence against the role.
fn contradiction(facts: &ProcessFacts, role: Role) -> Option<String> {
    let first = facts.claims().next()?;
    if let Some(other) = facts.claims().find(|other| !other.agrees_with(&first)) {
        return Some(format!("{} says {} (but {} says {})", other.source, other.role, first.source, first.role));
    }
    let redirected = facts.redirected();
    let own = facts.listening.as_ref().is_some_and(|sockets| sockets.own);
    (role == Role::Gateway && own && !redirected.is_empty())
        .then(|| format!("it listens on {}", list_ports(&redirected)))
}

fn sorted(ports: impl Iterator<Item = u16>) -> Vec<u16> {
    ports.collect::<BTreeSet<u16>>().into_iter().collect()
}

/// Lists ports for a message.
fn list_ports(ports: &[u16]) -> String {
    let shown: Vec<String> = ports.iter().take(MAX_LISTED_PORTS).map(u16::to_string).collect();
    let more = if ports.len() > MAX_LISTED_PORTS { ", …" } else { "" };
    shown.join(" and ") + more
}

/// Returns identity and addresses: the rule's, or else the environment's. `mounted_labels` is called if the environment
/// has no labels.
pub fn identity(
    facts: &ProcessFacts,
    rule: Option<&SidecarRule>,
    mounted_labels: impl FnOnce() -> Option<BTreeMap<String, String>>,
) -> (Workload, Vec<IpAddr>) {
    let own = |name: &str| facts.variable(name).map(str::to_owned);
    let labels = own("ISTIO_METAJSON_LABELS").and_then(|json| pod_labels::from_json(&json)).or_else(mounted_labels);
    let labels = labels.unwrap_or_default();
    let environment = Workload {
        pod: own("POD_NAME"),
        namespace: own("POD_NAMESPACE"),
        name: own("ISTIO_META_WORKLOAD_NAME").or_else(|| labels.get("service.istio.io/workload-name").cloned()),
        cluster: own("ISTIO_META_CLUSTER_ID"),
        service_account: own("SERVICE_ACCOUNT"),
        trust_domain: own("TRUST_DOMAIN"),
        labels,
        node: own("ISTIO_META_NODE_NAME").or_else(|| own("NODE_NAME")),
    };
    let addresses = addresses(&["INSTANCE_IP", "INSTANCE_IPS", "POD_IP"].map(own));
    match rule {
        None => (environment, addresses),
        Some(rule) => (
            merged(&rule.workload, environment),
            if rule.addresses.is_empty() { addresses } else { rule.addresses.clone() },
        ),
    }
}

/// Returns the claimed addresses that the process's network namespace has, as those are harder to forge; all of the
/// namespace if none is claimed, and all that are claimed if those of the namespace are unknown.
pub fn own_addresses(claimed: Vec<IpAddr>, there: Vec<IpAddr>) -> Vec<IpAddr> {
    match (claimed.is_empty(), there.is_empty()) {
        (true, _) => there,
        (_, true) => claimed,
        _ => claimed.into_iter().filter(|address| there.contains(address)).collect(),
    }
}

fn merged(rule: &Workload, environment: Workload) -> Workload {
    let rule = rule.clone();
    Workload {
        pod: rule.pod.or(environment.pod),
        namespace: rule.namespace.or(environment.namespace),
        name: rule.name.or(environment.name),
        cluster: rule.cluster.or(environment.cluster),
        service_account: rule.service_account.or(environment.service_account),
        trust_domain: rule.trust_domain.or(environment.trust_domain),
        labels: environment.labels.into_iter().chain(rule.labels).collect(),
        node: rule.node.or(environment.node),
    }
}

/// Parses addresses from lists, without duplicates.
fn addresses(lists: &[Option<String>]) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for text in lists.iter().flatten().flat_map(|list| list.split(',')) {
        if let Ok(address) = text.trim().parse::<IpAddr>().map(|address| address.to_canonical())
            && !addresses.contains(&address)
        {
            addresses.push(address);
        }
    }
    addresses
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::discovery::proc_files::Listener;

    fn facts(environment: &[(&str, &str)], node_type: Option<&str>, ports: &[u16]) -> ProcessFacts {
        let variables = environment.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
        ProcessFacts {
            process: ProcessId { pid: 7, start_time: 1 },
            executable: Executable { name: "envoy".to_owned(), path: Some("/usr/local/bin/envoy".into()) },
            environment: Some(variables.collect()),
            node_type: node_type.map(str::to_owned),
            bootstrap: None,
            agent: None,
            listening: Some(sockets(&ports.iter().map(|&port| ("0.0.0.0", port)).collect::<Vec<_>>(), true)),
            cgroup: "/pods/a".to_owned(),
        }
    }

    fn sockets(listeners: &[(&str, u16)], own: bool) -> Sockets {
        let listener = |&(address, port): &(&str, u16)| Listener { address: address.parse().unwrap(), port, inode: 1 };
        Sockets { listeners: listeners.iter().map(listener).collect(), own }
    }

    /// Role, evidence, and whether they are final.
    fn verdict(facts: &ProcessFacts) -> Option<(Role, String, bool)> {
        match classify(facts, None) {
            Classification::Observed { role, evidence, is_final } => Some((role, evidence, is_final)),
            Classification::Refused(_) => None,
        }
    }

    const NAME: (&str, &str) = ("ISTIO_META_WORKLOAD_NAME", "reviews");
    const POD: (&str, &str) = ("POD_NAME", "reviews-1");
    const TPROXY: (&str, &str) = ("ISTIO_META_INTERCEPTION_MODE", "TPROXY");
    const REDIRECT: (&str, &str) = ("ISTIO_META_INTERCEPTION_MODE", "REDIRECT");

    #[test]
    fn decides_by_evidence() {
        use Role::*;
        let command = |role: &str| format!("its node type (--service-node) says {role}");
        let environment = |role| Some((role, "environment ISTIO_META_WORKLOAD_NAME".to_owned()));
        for (facts, expected) in [
            (facts(&[POD, NAME], Some("sidecar"), &[]), Some((Sidecar, command("sidecar")))),
            (facts(&[POD, TPROXY], Some("sidecar"), &[]), Some((TproxySidecar, command("sidecar")))),
            (facts(&[POD, NAME], Some("router"), &[]), Some((Gateway, command("router")))),
            (facts(&[POD, NAME], Some("router"), &[15006]), Some((Gateway, command("router")))),
            (facts(&[POD, NAME], Some("waypoint"), &[]), None),
            (facts(&[POD, NAME], Some("agentgateway"), &[]), None),
            (facts(&[NAME], None, &[]), environment(Sidecar)),
            (
                facts(&[NAME, TPROXY], None, &[]),
                Some((
                    TproxySidecar,
                    "environment ISTIO_META_INTERCEPTION_MODE and 1 more of the injector's".to_owned(),
                )),
            ),
            (facts(&[], None, &[15001, 15006]), Some((Sidecar, "listens on 15001 and 15006".to_owned()))),
            (facts(&[], None, &[15006]), Some((Sidecar, "listens on 15006".to_owned()))),
            // Other products run Envoy in pods too.
            (facts(&[POD, ("POD_NAMESPACE", "contour")], None, &[8080]), None),
            (facts(&[], None, &[]), None),
        ] {
            assert_eq!(verdict(&facts).map(|(role, evidence, _)| (role, evidence)), expected, "{facts:?}");
        }
    }

    #[test]
    fn a_gateway_has_a_sidecars_environment_and_is_known_by_the_rest() {
        let (router, sidecar) = (Some("router".to_owned()), Some("sidecar".to_owned()));
        for interception in [REDIRECT, TPROXY] {
            let plain = facts(&[POD, NAME, interception], None, &[]);
            let of = |facts: ProcessFacts| verdict(&facts).map(|(role, ..)| role);
            let claims = ProcessFacts { bootstrap: router.clone(), ..plain.clone() };
            assert_eq!(of(claims.clone()), Some(Role::Gateway));
            assert_eq!(of(ProcessFacts { agent: router.clone(), ..plain.clone() }), Some(Role::Gateway));
            // The stronger evidence counts.
            assert_eq!(of(ProcessFacts { agent: sidecar.clone(), ..claims.clone() }), Some(Role::Gateway));
            assert_ne!(of(ProcessFacts { node_type: sidecar.clone(), ..claims.clone() }), Some(Role::Gateway));
        }
    }

    #[test]
    fn what_listens_decides_where_nothing_else_does_and_may_be_learned_later() {
        let listens = |listeners: &[(&str, u16)]| ProcessFacts {
            listening: Some(sockets(listeners, true)),
            ..facts(&[POD, NAME, REDIRECT], None, &[])
        };
        let every = [("127.0.0.1", 15000), ("0.0.0.0", 15021), ("0.0.0.0", 15090)];
        for (facts, role, is_final) in [
            (listens(&[]), Role::Sidecar, false),
            (listens(&every), Role::Sidecar, false),
            (listens(&[&every[..], &[("0.0.0.0", 15001), ("0.0.0.0", 15006)]].concat()), Role::Sidecar, true),
            (listens(&[&every[..], &[("0.0.0.0", 8080)]].concat()), Role::Gateway, false),
            // A listener for its own application.
            (listens(&[&every[..], &[("127.0.0.1", 9080)]].concat()), Role::Sidecar, false),
        ] {
            let (found, evidence, settled) = verdict(&facts).unwrap();
            assert_eq!((found, settled), (role, is_final), "{evidence}");
        }
        let mut none = listens(&[("0.0.0.0", 9080)]);
        none.environment.as_mut().unwrap().insert(REDIRECT.0.to_owned(), "NONE".to_owned());
        assert_eq!(verdict(&none).unwrap().0, Role::Sidecar);
        // Those of the namespace may be its application's.
        let mut others = listens(&[("0.0.0.0", 8080)]);
        others.listening.as_mut().unwrap().own = false;
        assert_eq!(verdict(&others).unwrap().0, Role::Sidecar);
        // A claim that what it listens on may still contradict.
        let young = ProcessFacts { bootstrap: Some("router".to_owned()), ..listens(&[]) };
        assert!(!verdict(&young).unwrap().2);
    }

    #[test]
    fn a_waypoint_is_recognised_and_it_is_said_what_can_be_seen_of_it() {
        let bare = facts(&[POD, NAME], None, &[15008]);
        let waypoint = || Some("waypoint".to_owned());
        for facts in [
            ProcessFacts { node_type: waypoint(), ..bare.clone() },
            ProcessFacts { bootstrap: waypoint(), ..bare.clone() },
            ProcessFacts { agent: waypoint(), ..bare.clone() },
        ] {
            let Classification::Refused(reason) = classify(&facts, None) else { panic!("{facts:?}") };
            for part in ["it is a waypoint", "encrypted", "--control-plane", "says waypoint"] {
                assert!(reason.contains(part), "{reason}");
            }
        }
    }

    #[test]
    fn contradictions_are_said() {
        let mut facts = facts(&[POD, NAME], Some("router"), &[8080]);
        assert_eq!(warnings(&facts, None, Role::Gateway), [""; 0]);
        facts.bootstrap = Some("ingress".to_owned());
        assert_eq!(warnings(&facts, None, Role::Gateway), [""; 0]);
        facts.agent = Some("sidecar".to_owned());
        let found = warnings(&facts, None, Role::Gateway);
        assert!(
            found[0].contains("taken for a gateway, although pilot-agent's command line says sidecar"),
            "{found:?}"
        );
        let rule = SidecarRule { role: Some(Role::Gateway), ..SidecarRule::default() };
        assert_eq!(warnings(&facts, Some(&rule), Role::Gateway), [""; 0]);
        facts.agent = None;
        facts.listening = Some(sockets(&[("0.0.0.0", 15006)], true));
        let found = warnings(&facts, None, Role::Gateway);
        assert!(found[0].contains("although it listens on 15006"), "{found:?}");
    }

    #[test]
    fn says_which_right_is_missing() {
        let mut facts = facts(&[], None, &[]);
        facts.environment = None;
        assert!(matches!(classify(&facts, None), Classification::Refused(reason) if reason.contains("CAP_SYS_PTRACE")));
        facts.listening = None;
        assert!(matches!(classify(&facts, None), Classification::Refused(reason) if reason.contains("CAP_SYS_PTRACE")));
        facts.listening = Some(sockets(&[("0.0.0.0", 15001)], false));
        assert!(
            matches!(classify(&facts, None), Classification::Observed { evidence, .. } if evidence.starts_with("its network"))
        );
    }

    #[test]
    fn the_configuration_decides_first_and_fills_in() {
        let facts = facts(&[("INSTANCE_IP", "10.0.0.1"), ("POD_NAMESPACE", "old")], None, &[]);
        let rules = [
            SidecarRule { cgroup: Some("/pods/b".into()), ..SidecarRule::default() },
            SidecarRule { cgroup: Some("/pods/a".into()), executable: Some("/else".into()), ..SidecarRule::default() },
            SidecarRule {
                executable: Some("/usr/local/bin/envoy".into()),
                role: Some(Role::Gateway),
                workload: Workload { namespace: Some("new".to_owned()), ..Workload::default() },
                ..SidecarRule::default()
            },
        ];
        let rule = facts.rule(&rules);
        assert_eq!(rule, Some(&rules[2]));
        assert!(matches!(classify(&facts, rule), Classification::Observed { role: Role::Gateway, .. }));
        let (workload, addresses) = identity(&facts, rule, || None);
        assert_eq!(workload.namespace.as_deref(), Some("new"));
        assert_eq!(addresses, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn reads_the_injectors_identity() {
        let facts = facts(
            &[
                ("POD_NAME", "reviews-1"),
                ("POD_NAMESPACE", "default"),
                ("INSTANCE_IP", "10.0.0.1"),
                ("INSTANCE_IPS", "10.0.0.1,fd00::1, nonsense"),
                ("SERVICE_ACCOUNT", "bookinfo"),
                ("TRUST_DOMAIN", "cluster.local"),
                ("NODE_NAME", "n2"),
                ("ISTIO_META_NODE_NAME", "n1"),
                ("ISTIO_META_CLUSTER_ID", "Kubernetes"),
                ("ISTIO_META_WORKLOAD_NAME", "reviews"),
                ("ISTIO_METAJSON_LABELS", r#"{"app":"reviews"}"#),
            ],
            None,
            &[],
        );
        let (workload, addresses) = identity(&facts, None, || panic!("the environment has labels"));
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            workload,
            Workload {
                pod: some("reviews-1"),
                namespace: some("default"),
                name: some("reviews"),
                cluster: some("Kubernetes"),
                service_account: some("bookinfo"),
                trust_domain: some("cluster.local"),
                labels: [("app".to_owned(), "reviews".to_owned())].into(),
                node: some("n1"),
            }
        );
        assert_eq!(addresses, ["10.0.0.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
    }

    #[test]
    fn addresses_are_those_that_it_has() {
        let list = |text: &str| -> Vec<IpAddr> { text.split_whitespace().map(|it| it.parse().unwrap()).collect() };
        for (claimed, there, expected) in [
            ("10.0.0.1 fd00::1", "10.0.0.1 fd00::1 192.168.0.1", "10.0.0.1 fd00::1"),
            ("10.0.0.9", "10.0.0.1", ""),
            ("", "10.0.0.1", "10.0.0.1"),
            ("10.0.0.1", "", "10.0.0.1"),
        ] {
            assert_eq!(own_addresses(list(claimed), list(there)), list(expected), "{claimed}");
        }
    }

    #[test]
    fn labels_come_from_the_mounted_file_otherwise() {
        let label =
            |value: &str| Some(BTreeMap::from([("service.istio.io/workload-name".to_owned(), value.to_owned())]));
        let (workload, _) = identity(&facts(&[], None, &[]), None, || label("mounted"));
        assert_eq!(workload.name.as_deref(), Some("mounted"));
    }

    #[test]
    fn warns_of_what_cannot_be_counted() {
        let mut facts = facts(&[("ISTIO_META_INTERCEPTION_MODE", "NONE")], None, &[]);
        assert!(warnings(&facts, None, Role::Sidecar)[0].contains("NONE"));
        facts.environment = None;
        assert_eq!(warnings(&facts, None, Role::Sidecar), [""; 0]);
        facts.cgroup = "/".to_owned();
        assert!(warnings(&facts, None, Role::Sidecar)[0].contains("root cgroup"));
    }

    proptest! {
        #[test]
        fn any_address_list_is_read(first in "[0-9a-f.:, ]{0,20}", all in ".{0,40}") {
            let found = addresses(&[Some(first), Some(all)]);
            prop_assert!(found.iter().all(|address| *address == address.to_canonical()));
        }
    }
}
