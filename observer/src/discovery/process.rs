//! What a process is to the mesh, by the facts: pure. The environment is the injector's [istio `injection-template.yaml`],
//! which pilot-agent hands on to Envoy.

use std::{collections::BTreeMap, net::IpAddr, path::Path};

use super::{
    ProcessId, Role, SidecarRule, Workload, pod_labels,
    proc_files::{Executable, Listening, MOST_NAME},
};

/// Envoy's port for redirected outbound connections [istio `pkg/config/constants`].
pub const OUTBOUND_PORT: u16 = 15001;
/// Envoy's port for redirected inbound connections.
pub const INBOUND_PORT: u16 = 15006;

/// Everything known of a candidate.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Which process.
    pub process: ProcessId,
    /// Its program.
    pub executable: Executable,
    /// Its environment, those variables that are [`wanted`]; `None` if it may not be read.
    pub environment: Option<BTreeMap<String, String>>,
    /// `sidecar`, `router`, … of its `--service-node`.
    pub node_type: Option<String>,
    /// Which of 15001 and 15006 it listens on; `None` if that was not needed or may not be read.
    pub listening: Option<Listening>,
    /// cgroup v2 path as in `/proc/PID/cgroup`.
    pub cgroup: String,
}

/// What the facts make of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is observed.
    Observed {
        /// As what.
        role: Role,
        /// Because of what.
        evidence: String,
    },
    /// It is not, for this reason.
    Refused(String),
}

/// How many bytes a variable of the environment may have; none if it does not matter here, and is not kept.
pub fn wanted(name: &str) -> Option<usize> {
    match name {
        "ISTIO_METAJSON_LABELS" => Some(pod_labels::MOST_BYTES),
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
        | "ISTIO_META_WORKLOAD_NAME" => Some(MOST_NAME),
        _ => None,
    }
}

impl Facts {
    /// Whether the rest says nothing, so that its listening ports must decide.
    pub fn need_listeners(&self, rule: Option<&SidecarRule>) -> bool {
        rule.is_none_or(|rule| rule.role.is_none()) && self.node_type.is_none() && self.injected_by().is_none()
    }

    /// The rule of the configuration file for this process, if any.
    pub fn rule<'a>(&self, rules: &'a [SidecarRule]) -> Option<&'a SidecarRule> {
        rules.iter().find(|rule| {
            let cgroup = rule.cgroup.as_deref().is_none_or(|cgroup| cgroup == Path::new(&self.cgroup));
            let executable = rule.executable.is_none() || rule.executable == self.executable.path;
            cgroup && executable && (rule.cgroup.is_some() || rule.executable.is_some())
        })
    }

    /// A variable of its environment.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.environment.as_ref()?.get(name).map(String::as_str)
    }

    /// The variables that only Istio's injector sets, for people to read.
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

/// Decides by evidence, strongest first: the configuration file, the node type on the command line, the injector's
/// environment, listeners on Istio's ports.
pub fn decide(facts: &Facts, rule: Option<&SidecarRule>) -> Verdict {
    let observed = |role, evidence: String| Verdict::Observed { role, evidence };
    let tproxy = facts.variable("ISTIO_META_INTERCEPTION_MODE") == Some("TPROXY");
    let sidecar = if tproxy { Role::TproxySidecar } else { Role::Sidecar };
    if let Some(role) = rule.and_then(|rule| rule.role) {
        return observed(role, "[[sidecar]] of the configuration file".to_owned());
    }
    match facts.node_type.as_deref() {
        Some(node @ ("router" | "ingress")) => return observed(Role::Gateway, format!("node type {node}")),
        Some("sidecar") => return observed(sidecar, "node type sidecar".to_owned()),
        Some(node) => return Verdict::Refused(format!("its node type {node} is neither sidecar nor gateway")),
        None => {}
    }
    if let Some(evidence) = facts.injected_by() {
        return observed(sidecar, evidence);
    }
    match &facts.listening {
        Some(Listening { ports, own }) if !ports.is_empty() => {
            let ports = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(" and ");
            let who = if *own { "listens" } else { "its network namespace listens" };
            observed(sidecar, format!("{who} on {ports}"))
        }
        Some(_) if facts.environment.is_none() => Verdict::Refused(
            "its environment may not be read and it listens on neither 15001 nor 15006; give the observer CAP_SYS_PTRACE"
                .to_owned(),
        ),
        Some(_) => Verdict::Refused(
            "neither sidecar nor gateway: no injector's environment (ISTIO_META_…), no node type sidecar or router, no \
             listener on 15001 or 15006; if it is one, say so by [[sidecar]] in the configuration file"
                .to_owned(),
        ),
        None => Verdict::Refused(
            "neither its environment nor its listening sockets may be read; give the observer CAP_SYS_PTRACE".to_owned(),
        ),
    }
}

/// What is odd about an observed process, if anything.
pub fn warning(facts: &Facts, role: Role) -> Option<String> {
    let pid = facts.process.pid;
    if facts.variable("ISTIO_META_INTERCEPTION_MODE") == Some("NONE") && role != Role::Gateway {
        return Some(format!(
            "process {pid}: interception mode NONE: nothing is redirected to it, so its outbound connections cannot be told \
             apart and are not counted"
        ));
    }
    if facts.cgroup == "/" {
        return Some(format!(
            "process {pid} is in the root cgroup, which holds every process without one of its own: start the sidecar in its \
             own cgroup (a container or a systemd unit does)"
        ));
    }
    None
}

/// Identity and addresses: the rule's, else the environment's. `mounted_labels` is asked where the environment has none.
pub fn identity(
    facts: &Facts,
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

/// The addresses of all lists, each once.
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

    fn facts(environment: &[(&str, &str)], node_type: Option<&str>, ports: &[u16]) -> Facts {
        let variables = environment.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
        Facts {
            process: ProcessId { pid: 7, start_time: 1 },
            executable: Executable { name: "envoy".to_owned(), path: Some("/usr/local/bin/envoy".into()) },
            environment: Some(variables.collect()),
            node_type: node_type.map(str::to_owned),
            listening: Some(Listening { ports: ports.iter().copied().collect(), own: true }),
            cgroup: "/pods/a".to_owned(),
        }
    }

    #[test]
    fn decides_by_evidence() {
        use Role::*;
        let tproxy = ("ISTIO_META_INTERCEPTION_MODE", "TPROXY");
        let name = ("ISTIO_META_WORKLOAD_NAME", "reviews");
        let pod = ("POD_NAME", "reviews-1");
        for (facts, expected) in [
            (facts(&[pod, name], Some("sidecar"), &[]), Some((Sidecar, "node type sidecar"))),
            (facts(&[pod, tproxy], Some("sidecar"), &[]), Some((TproxySidecar, "node type sidecar"))),
            (facts(&[pod, name], Some("router"), &[]), Some((Gateway, "node type router"))),
            (facts(&[pod, name], Some("router"), &[15006]), Some((Gateway, "node type router"))),
            (facts(&[pod, name], Some("waypoint"), &[]), None),
            (facts(&[name], None, &[]), Some((Sidecar, "environment ISTIO_META_WORKLOAD_NAME"))),
            (
                facts(&[name, tproxy], None, &[]),
                Some((TproxySidecar, "environment ISTIO_META_INTERCEPTION_MODE and 1 more of the injector's")),
            ),
            (facts(&[], None, &[15001, 15006]), Some((Sidecar, "listens on 15001 and 15006"))),
            (facts(&[], None, &[15006]), Some((Sidecar, "listens on 15006"))),
            // Other products run Envoy in pods too.
            (facts(&[pod, ("POD_NAMESPACE", "contour")], None, &[]), None),
            (facts(&[], None, &[]), None),
        ] {
            let expected = expected.map(|(role, evidence)| (role, evidence.to_owned()));
            let verdict = match decide(&facts, None) {
                Verdict::Observed { role, evidence } => Some((role, evidence)),
                Verdict::Refused(_) => None,
            };
            assert_eq!(verdict, expected, "{facts:?}");
        }
    }

    #[test]
    fn says_which_right_is_missing() {
        let mut facts = facts(&[], None, &[]);
        facts.environment = None;
        assert!(matches!(decide(&facts, None), Verdict::Refused(reason) if reason.contains("CAP_SYS_PTRACE")));
        facts.listening = None;
        assert!(matches!(decide(&facts, None), Verdict::Refused(reason) if reason.contains("CAP_SYS_PTRACE")));
        facts.listening = Some(Listening { ports: [15001].into(), own: false });
        assert!(
            matches!(decide(&facts, None), Verdict::Observed { evidence, .. } if evidence.starts_with("its network"))
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
        assert!(!facts.need_listeners(rule));
        assert!(matches!(decide(&facts, rule), Verdict::Observed { role: Role::Gateway, .. }));
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
    fn labels_come_from_the_mounted_file_otherwise() {
        let label =
            |value: &str| Some(BTreeMap::from([("service.istio.io/workload-name".to_owned(), value.to_owned())]));
        let (workload, _) = identity(&facts(&[], None, &[]), None, || label("mounted"));
        assert_eq!(workload.name.as_deref(), Some("mounted"));
    }

    #[test]
    fn warns_of_what_cannot_be_counted() {
        let mut facts = facts(&[("ISTIO_META_INTERCEPTION_MODE", "NONE")], None, &[]);
        assert!(warning(&facts, Role::Sidecar).unwrap().contains("NONE"));
        facts.environment = None;
        assert_eq!(warning(&facts, Role::Sidecar), None);
        facts.cgroup = "/".to_owned();
        assert!(warning(&facts, Role::Sidecar).unwrap().contains("root cgroup"));
    }

    proptest! {
        #[test]
        fn any_address_list_is_read(first in "[0-9a-f.:, ]{0,20}", all in ".{0,40}") {
            let found = addresses(&[Some(first), Some(all)]);
            prop_assert!(found.iter().all(|address| *address == address.to_canonical()));
        }
    }
}
