//! What runs in the cluster: a shop in the mesh with one of every kind of workload, and clients outside of the mesh.

use std::{path::PathBuf, time::Duration};

use anyhow::Result;
use harness::tools::cache;
use serde_json::{Value, json};

use crate::{
    build,
    image::Image,
    istio::ISTIOD,
    kubectl,
    node::{address, directory},
};

/// Image of the applications.
const APP: &str = "docker.io/cluster/app:1";
const START_TIMEOUT: Duration = Duration::from_secs(180);
/// Name of the sidecar's container.
pub(crate) const SIDECAR: &str = "istio-proxy";
/// Host of the ServiceEntry, and the port that its server listens on in the second node's own network.
pub(crate) const EXTERNAL_HOST: &str = "api.example.com";

/// Ports of every Service: name, port, and the port that the application listens on.
const PORTS: [(&str, u16, u16); 5] = [
    ("http", 80, 8080),
    ("http2-api", 82, 8082),
    ("grpc", 7070, 7070),
    ("tcp-echo", 9000, 9000),
    ("tcp-web", 90, 9080),
];

/// Kind of a workload that makes pods.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Deployment,
    StatefulSet,
}

/// A workload of one pod.
struct Workload {
    kind: Kind,
    namespace: &'static str,
    name: &'static str,
    labels: &'static [(&'static str, &'static str)],
    account: &'static str,
    node: u8,
    annotations: &'static [(&'static str, &'static str)],
    is_server: bool,
    host_network: bool,
}

const PLAIN: Workload = Workload {
    kind: Kind::Deployment,
    namespace: "shop",
    name: "",
    labels: &[],
    account: "default",
    node: 1,
    annotations: &[],
    is_server: true,
    host_network: false,
};

const WORKLOADS: [Workload; 12] = [
    Workload {
        name: "client",
        labels: &[("app", "client"), ("version", "v1")],
        account: "client",
        is_server: false,
        ..PLAIN
    },
    Workload { name: "near", labels: &[("app", "near"), ("version", "v1")], account: "near", ..PLAIN },
    Workload { name: "server-v1", labels: &[("app", "server"), ("version", "v1")], account: "server", ..PLAIN },
    Workload {
        name: "server-v2",
        labels: &[("app", "server"), ("version", "v2")],
        account: "server",
        node: 2,
        ..PLAIN
    },
    Workload {
        name: "classic",
        labels: &[("app", "classic")],
        account: "classic",
        annotations: &[("sidecar.istio.io/nativeSidecar", "false")],
        ..PLAIN
    },
    // Two more workloads of one account: the certificate of either names both.
    Workload { name: "twin-a", labels: &[("app", "twin-a")], account: "twins", node: 2, is_server: false, ..PLAIN },
    Workload { name: "twin-b", labels: &[("app", "twin-b")], account: "twins", is_server: false, ..PLAIN },
    Workload {
        namespace: "bank",
        name: "ledger",
        labels: &[("app", "ledger"), ("app.kubernetes.io/name", "ledger-k8s"), ("version", "v9")],
        account: "ledger",
        node: 2,
        ..PLAIN
    },
    Workload { kind: Kind::StatefulSet, name: "db", labels: &[("app", "db")], node: 2, ..PLAIN },
    Workload { namespace: "outside", name: "plain", labels: &[("app", "plain")], node: 2, is_server: false, ..PLAIN },
    Workload { namespace: "outside", name: "legacy", labels: &[("app", "legacy"), ("version", "v0")], ..PLAIN },
    Workload { namespace: "outside", name: "host", labels: &[("app", "host")], node: 2, host_network: true, ..PLAIN },
];

/// Services: namespace, name, selector.
const SERVICES: [(&str, &str, &str); 7] = [
    ("shop", "near", "near"),
    ("shop", "server", "server"),
    ("shop", "classic", "classic"),
    ("shop", "db", "db"),
    ("bank", "ledger", "ledger"),
    ("outside", "legacy", "legacy"),
    ("shop", "empty", "nobody"),
];

/// Writes the applications' image.
pub(crate) fn image() -> Result<PathBuf> {
    let mut image = Image::new(APP, json!({"Entrypoint": ["/app"], "Cmd": ["wait"]}));
    image.file(&build::APP.path(), "app")?;
    image.file(&cache().join("grpc-go/peer"), "peer")?;
    let path = directory().join("app.tar");
    image.write(&path)?;
    Ok(path)
}

/// Creates all of it and waits until it runs.
pub(crate) fn start() -> Result<()> {
    let namespaces = [("shop", true), ("bank", true), ("outside", false)].map(|(name, injected)| {
        let labels = if injected { json!({"istio-injection": "enabled"}) } else { json!({}) };
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    });
    kubectl::apply(&namespaces)?;
    let mut objects: Vec<Value> = ["client", "near", "server", "classic", "twins"]
        .map(|name| account("shop", name))
        .into_iter()
        .chain([account("bank", "ledger")])
        .collect();
    objects.extend(SERVICES.map(|(namespace, name, selector)| service(namespace, name, selector)));
    objects.extend(WORKLOADS.iter().map(Workload::object));
    objects.extend(gateway());
    objects.push(external());
    kubectl::apply(&objects)?;
    for workload in &WORKLOADS {
        kubectl::rolled_out(workload.namespace, &workload.reference(), START_TIMEOUT)?;
    }
    kubectl::rolled_out("shop", "deployment/gateway", START_TIMEOUT)
}

/// Returns a CronJob that makes `requests` requests to a URL in each of its pods, which starts none by itself.
pub(crate) fn cron_job(requests: usize, url: &str) -> Value {
    let template = pod(
        &json!({"app": "nightly"}),
        &json!({}),
        "client",
        1,
        &[json!({"name": "app", "image": APP, "args": ["get", requests.to_string(), "http1", url]})],
        false,
    );
    let mut template = template;
    template["spec"]["restartPolicy"] = json!("Never");
    json!({
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": "nightly", "namespace": "shop"},
        "spec": {"schedule": "* * * * *", "suspend": true, "jobTemplate": {"spec": {"backoffLimit": 0, "template": template}}},
    })
}

impl Workload {
    fn reference(&self) -> String {
        let kind = if self.kind == Kind::Deployment { "deployment" } else { "statefulset" };
        format!("{kind}/{}", self.name)
    }

    fn object(&self) -> Value {
        let labels: Value = self.labels.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        let annotations = self.annotations.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        let mut containers = vec![json!({
            "name": "app",
            "image": APP,
            "args": [if self.is_server { "serve" } else { "wait" }],
        })];
        if self.is_server && !self.host_network {
            containers.push(json!({"name": "grpc", "image": APP, "command": ["/peer", "server", "7070"]}));
        }
        let template = pod(&labels, &annotations, self.account, self.node, &containers, self.host_network);
        let mut spec = json!({"replicas": 1, "selector": {"matchLabels": labels}, "template": template});
        if self.kind == Kind::StatefulSet {
            spec["serviceName"] = json!(self.name);
        }
        json!({
            "apiVersion": "apps/v1",
            "kind": if self.kind == Kind::Deployment { "Deployment" } else { "StatefulSet" },
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": spec,
        })
    }
}

fn pod(labels: &Value, annotations: &Value, account: &str, node: u8, containers: &[Value], host: bool) -> Value {
    json!({
        "metadata": {"labels": labels, "annotations": annotations},
        "spec": {
            "serviceAccountName": account,
            "nodeSelector": {"kubernetes.io/hostname": format!("n{node}")},
            "terminationGracePeriodSeconds": 1,
            "hostNetwork": host,
            "hostAliases": [{"ip": ISTIOD, "hostnames": ["istiod.istio-system.svc"]}],
            "containers": containers,
        },
    })
}

fn account(namespace: &str, name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}})
}

fn service(namespace: &str, name: &str, selector: &str) -> Value {
    let port = |(name, port, target): (&str, u16, u16)| json!({"name": name, "port": port, "targetPort": target});
    let mut spec = json!({"selector": {"app": selector}, "ports": PORTS.map(port)});
    if name == "db" {
        // The addresses of a headless Service are the pods', so its port is theirs, too, and no other Service's.
        spec["clusterIP"] = json!("None");
        spec["ports"] = json!([port(("http", 8090, 8090))]);
    }
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

/// Returns a gateway that sends everything to `ledger`.
fn gateway() -> [Value; 4] {
    let metadata = json!({"name": "gateway", "namespace": "shop"});
    let mut template = pod(
        &json!({"app": "gateway", "istio": "gateway"}),
        &json!({"inject.istio.io/templates": "gateway"}),
        "default",
        1,
        &[json!({"name": SIDECAR, "image": "auto", "imagePullPolicy": "IfNotPresent"})],
        false,
    );
    template["metadata"]["labels"]["sidecar.istio.io/inject"] = json!("true");
    [
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata,
            "spec": {"selector": {"matchLabels": {"app": "gateway"}}, "template": template},
        }),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": metadata,
            "spec": {"selector": {"app": "gateway"}, "ports": [{"name": "http", "port": 80, "targetPort": 8081}]},
        }),
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "Gateway", "metadata": metadata,
            "spec": {
                "selector": {"istio": "gateway"},
                "servers": [{"port": {"number": 8081, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}],
            },
        }),
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": metadata,
            "spec": {
                "hosts": ["*"],
                "gateways": ["gateway"],
                "http": [{"route": [{"destination": {"host": "ledger.bank.svc.cluster.local", "port": {"number": 80}}}]}],
            },
        }),
    ]
}

/// Returns a ServiceEntry whose server is the workload in the second node's own network.
fn external() -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
        "metadata": {"name": "external", "namespace": "shop"},
        "spec": {
            "hosts": [EXTERNAL_HOST],
            "addresses": ["240.0.0.7"],
            "ports": [{"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 8080}],
            "resolution": "STATIC",
            "location": "MESH_EXTERNAL",
            "endpoints": [{"address": address(2)}],
        },
    })
}
