//! Which labels a request or connection must have, by the sidecar's log and the API's objects, and where the observer
//! may say `unknown` instead.

use std::collections::BTreeMap;

use harness::istio_labels::HTTP_ONLY;

use crate::{
    access_log::Line,
    facts::{Facts, Pod},
};

/// Labels by name; one that is empty or absent is `unknown`.
pub(crate) type Labels = BTreeMap<&'static str, String>;

/// Reporters: of outbound lines, and of inbound ones.
pub(crate) const REPORTERS: [&str; 2] = ["source", "destination"];
/// Labels of the caller that only its pod has.
const CALLER: &[&str] = &[
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_app",
    "source_version",
    "source_cluster",
];
/// Labels in which the two workloads behind the canary's Service differ.
const CANARY: &[&str] = &["destination_workload", "destination_version", "destination_canonical_revision"];
const CALLEE: &[&str] = &[
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_cluster",
];
const SERVICE: &[&str] = &["destination_service", "destination_service_name", "destination_service_namespace"];
const FLAGS: &[&str] = &["response_flags"];
const NAMESPACE: &[&str] = &["source_workload_namespace"];

/// Where `unknown` is right although the truth is known to the API: situation, reporter, labels, reason. Everywhere
/// else it is a failure.
pub(crate) const MAY_BE_UNKNOWN: &[(&str, &str, &[&str], &str)] = &[
    ("canary", "source", CANARY, "several workloads stand behind the Service, and differ in it"),
    (
        "from CronJob",
        "destination",
        CALLER,
        "another pod of its account is connected, and may have renewed its certificate",
    ),
    ("shared account", "destination", CALLER, "several workloads share the service account"),
    ("plaintext, pod", "destination", CALLER, "no certificate, and pods of several workloads are connected"),
    ("plaintext, pod", "destination", NAMESPACE, "no certificate, and pods of several workloads are connected"),
    ("pod's address", "source", CALLEE, "no Service leads there, so Istio has no endpoint's metadata either"),
    ("pod's address", "source", SERVICE, "no Service leads there"),
    ("gateway", "source", CALLEE, "sockets do not show where a gateway routes"),
    ("gateway", "source", SERVICE, "sockets do not show where a gateway routes"),
    ("gateway", "source", &["source_principal"], "nor whether by mutual TLS"),
    ("no endpoint", "source", FLAGS, "flags of Envoy are not on the wire"),
];

/// Returns the value that Istio gives a label without a known one.
pub(crate) fn unknown(label: &str) -> &'static str {
    match label {
        "source_canonical_revision" | "destination_canonical_revision" => "latest",
        "response_flags" => "-",
        _ => "unknown",
    }
}

/// Returns why a label may be unknown there.
pub(crate) fn reason(situation: &str, reporter: &str, label: &str) -> Option<&'static str> {
    MAY_BE_UNKNOWN
        .iter()
        .find(|(at, by, labels, _)| *at == situation && *by == reporter && labels.contains(&label))
        .map(|(.., reason)| *reason)
}

/// Bytes of TCP connections that each reporter's sidecars received from clients, and sent to them.
pub(crate) type Bytes = BTreeMap<&'static str, [f64; 2]>;

/// Returns the bytes of the connections in these lines.
pub(crate) fn bytes(lines: &[Line]) -> Bytes {
    let mut bytes = Bytes::from(REPORTERS.map(|reporter| (reporter, [0.0; 2])));
    for line in lines.iter().filter(|line| !line.is_http()) {
        let reporter = REPORTERS[usize::from(!line.is_outbound())];
        let [received, sent] = bytes.entry(reporter).or_default();
        *received += line.number("received");
        *sent += line.number("sent");
    }
    bytes
}

/// What a line says: reporter and labels.
pub(crate) fn of(line: &Line, facts: &Facts) -> Option<(&'static str, Labels)> {
    let own = facts.pods.iter().find(|pod| pod.uid == line.pod)?;
    let mut labels = Labels::new();
    let reporter = REPORTERS[usize::from(!line.is_outbound())];
    match line.is_outbound() {
        true => outbound(&mut labels, own, line, facts),
        false => inbound(&mut labels, own, line, facts),
    }
    protocol(&mut labels, line);
    labels.retain(|_, value| !value.is_empty() && value != "unknown");
    Some((reporter, labels))
}

fn outbound(labels: &mut Labels, own: &Pod, line: &Line, facts: &Facts) {
    workload(labels, "source", Some(own), true);
    // Of the connection to the server: without a certificate of the server, the client showed none.
    if !line.text("callee").is_empty() {
        labels.insert("source_principal", own.principal());
    }
    let callee = facts.pod_at(&line.host("upstream"));
    workload(labels, "destination", callee, false);
    labels.insert("destination_principal", line.text("callee"));
    let cluster = line.text("cluster");
    match cluster.splitn(4, '|').collect::<Vec<_>>().as_slice() {
        ["outbound", _, _, host] => {
            service(labels, facts, host);
        }
        _ if cluster == "PassthroughCluster" => {
            labels.insert("destination_service", line.text("authority"));
            labels.insert("destination_service_name", cluster);
            // Without a Service, Istio takes the peer's.
            if let Some(callee) = callee {
                labels.insert("destination_service_namespace", callee.namespace.clone());
            }
        }
        _ => {}
    }
}

fn inbound(labels: &mut Labels, own: &Pod, line: &Line, facts: &Facts) {
    let caller = line.text("caller");
    let pod = facts.pod_at(&line.host("downstream"));
    workload(labels, "source", pod, false);
    workload(labels, "destination", Some(own), true);
    if caller.is_empty() {
        labels.insert("connection_security_policy", "none".to_owned());
    } else {
        labels.insert("connection_security_policy", "mutual_tls".to_owned());
        labels.insert("source_principal", caller);
        labels.insert("destination_principal", own.principal());
    }
    let target = line.text("cluster").split('|').nth(1).and_then(|port| port.parse().ok());
    match target.and_then(|target| facts.service_of(own, target)) {
        Some(found) => service(labels, facts, &found.host),
        None => {
            labels.insert("destination_service", own.canonical_service().to_owned());
            labels.insert("destination_service_name", "InboundPassthroughCluster".to_owned());
            labels.insert("destination_service_namespace", own.namespace.clone());
        }
    }
}

/// Adds a pod's labels; Istio looks at fewer of them for the sidecar's own pod than for its peer.
fn workload(labels: &mut Labels, side: &str, pod: Option<&Pod>, is_own: bool) {
    let Some(pod) = pod else { return };
    let is_destination = side == "destination";
    let mut set = |source: &'static str, destination: &'static str, value: &str| {
        labels.insert(if is_destination { destination } else { source }, value.to_owned());
    };
    set("source_workload", "destination_workload", &pod.workload);
    set("source_workload_namespace", "destination_workload_namespace", &pod.namespace);
    set("source_canonical_service", "destination_canonical_service", pod.canonical_service());
    set("source_canonical_revision", "destination_canonical_revision", pod.canonical_revision());
    set("source_cluster", "destination_cluster", "Kubernetes");
    let (app, version): (&[&str], &[&str]) = if is_own {
        (&["app"], &["version"])
    } else {
        (&["app.kubernetes.io/name", "app"], &["app.kubernetes.io/version", "version"])
    };
    set("source_app", "destination_app", pod.label(app).unwrap_or_default());
    set("source_version", "destination_version", pod.label(version).unwrap_or_default());
}

fn service(labels: &mut Labels, facts: &Facts, host: &str) {
    labels.insert("destination_service", host.to_owned());
    if let Some(service) = facts.service(host) {
        labels.insert("destination_service_name", service.name.clone());
        labels.insert("destination_service_namespace", service.namespace.clone());
    }
}

fn protocol(labels: &mut Labels, line: &Line) {
    labels.insert("response_flags", line.text("flags"));
    if !line.is_http() {
        labels.insert("request_protocol", "tcp".to_owned());
        for name in HTTP_ONLY {
            labels.remove(name);
        }
        return;
    }
    let is_grpc = line.text("type").starts_with("application/grpc");
    labels.insert("request_protocol", if is_grpc { "grpc" } else { "http" }.to_owned());
    labels.insert("response_code", line.text("code"));
    if is_grpc {
        labels.insert("grpc_response_status", line.text("grpc"));
    }
}
