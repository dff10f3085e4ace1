//! istiod as `istioctl` installs it, and the images of Istio's programs. Envoy is an ordinary one without Istio's
//! filters, so no metrics of Istio exist here: the access log is what counts are compared with.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use harness::{net::finish, tools};
use serde_json::{Value, json};

use crate::{build, image::Image, kubectl, node::directory};

/// Address of istiod's Service: the cluster has no name server, so pods have it in their hosts file.
pub(crate) const ISTIOD: &str = "10.96.0.11";
const START_TIMEOUT: Duration = Duration::from_secs(180);

/// Fields of the access log: name and Envoy's command.
const LOG_FIELDS: [(&str, &str); 15] = [
    ("code", "%RESPONSE_CODE%"),
    ("flags", "%RESPONSE_FLAGS%"),
    ("protocol", "%PROTOCOL%"),
    ("type", "%REQ(CONTENT-TYPE)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("grpc", "%GRPC_STATUS_NUMBER%"),
    ("listener", "%DOWNSTREAM_DIRECT_LOCAL_ADDRESS%"),
    ("cluster", "%UPSTREAM_CLUSTER_RAW%"),
    ("upstream", "%UPSTREAM_HOST%"),
    ("downstream", "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%"),
    ("caller", "%DOWNSTREAM_PEER_URI_SAN%"),
    ("callee", "%UPSTREAM_PEER_URI_SAN%"),
    ("original", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("received", "%BYTES_RECEIVED%"),
    ("sent", "%BYTES_SENT%"),
];
/// Modules of iptables that the injected init container loads.
const MATCHES: [&str; 16] = [
    "owner",
    "REDIRECT",
    "tcp",
    "udp",
    "conntrack",
    "CT",
    "comment",
    "mark",
    "MARK",
    "connmark",
    "CONNMARK",
    "TPROXY",
    "socket",
    "NAT",
    "standard",
    "multiport",
];

/// Writes the images of pilot-agent with Envoy, and of istiod.
pub(crate) fn images() -> Result<[PathBuf; 2]> {
    let users = b"root:x:0:0::/:/x\nistio-proxy:x:1337:1337::/:/x\n";
    let program = build::ISTIO_PROGRAM.path();
    let mut proxy = Image::new(
        "docker.io/cluster/proxyv2:1",
        json!({"Entrypoint": ["/usr/local/bin/pilot-agent"], "Env": ["PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]}),
    );
    proxy.file(&program, "usr/local/bin/pilot-agent")?;
    let envoy = tools::envoy()?;
    proxy.file(&envoy, "usr/local/bin/envoy")?;
    proxy.file(
        &module()?.join("tools/packaging/common/envoy_bootstrap.json"),
        "var/lib/istio/envoy/envoy_bootstrap_tmpl.json",
    )?;
    let iptables = fs::canonicalize(tools::require("iptables-legacy")?)?;
    proxy.file(&iptables, "usr/sbin/xtables-legacy-multi")?;
    for family in ["iptables", "ip6tables"] {
        for action in ["", "-save", "-restore"] {
            for kind in ["", "-legacy"] {
                proxy.link(&format!("usr/sbin/{family}{kind}{action}"), "xtables-legacy-multi")?;
            }
        }
    }
    let modules = modules_of_iptables()?;
    for name in MATCHES {
        let file = modules.join(format!("libxt_{name}.so"));
        if file.is_file() {
            proxy.file(&file, file.to_string_lossy().trim_start_matches('/'))?;
        }
    }
    proxy.libraries(&[&envoy, &iptables])?;
    for writable in ["run", "tmp", "etc/istio", "var/run"] {
        proxy.directory(writable)?;
    }
    proxy.text("etc/passwd", users, 0o644)?;
    let mut pilot = Image::new(
        "docker.io/cluster/pilot:1",
        json!({"Entrypoint": ["/usr/local/bin/pilot-discovery"], "User": "1337:1337"}),
    );
    pilot.file(&program, "usr/local/bin/pilot-discovery")?;
    pilot.directory("tmp")?;
    pilot.text("etc/passwd", users, 0o644)?;
    let paths = ["proxyv2.tar", "pilot.tar"].map(|name| directory().join(name));
    proxy.write(&paths[0])?;
    pilot.write(&paths[1])?;
    Ok(paths)
}

/// Installs istiod and waits until it serves.
pub(crate) fn install() -> Result<()> {
    let overlay = directory().join("istio.json");
    fs::write(&overlay, overlay_text())?;
    let mut command = Command::new(build::ISTIO_PROGRAM.path());
    let manifest = finish(command.args(["manifest", "generate", "--filename"]).arg(&overlay), "")?;
    // kubectl reads YAML and writes JSON; the programs that are one here also log on standard output.
    let manifest: String = manifest.lines().filter(|line| !is_log(line)).map(|line| format!("{line}\n")).collect();
    // In a file: a pipe that kubectl still reads while its other one is full would block both.
    let file = directory().join("istio.yaml");
    fs::write(&file, manifest)?;
    let file = format!("--filename={}", file.display());
    let converted = kubectl::run(&["create", "--dry-run=client", "--validate=false", "--output=json", &file])?;
    let mut objects: Vec<Value> =
        serde_json::Deserializer::from_str(&converted).into_iter().collect::<Result<_, _>>().context("manifest")?;
    objects.retain(|object| object["kind"] != "HorizontalPodAutoscaler");
    for object in &mut objects {
        if object["kind"] == "Service" && object["metadata"]["name"] == "istiod" {
            object["spec"]["clusterIP"] = json!(ISTIOD);
        }
    }
    ensure!(!objects.is_empty(), "`istioctl manifest generate` gave no object");
    let (first, rest): (Vec<Value>, Vec<Value>) =
        objects.into_iter().partition(|object| object["kind"] == "CustomResourceDefinition");
    kubectl::apply(&[json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "istio-system"}})])?;
    kubectl::apply(&first)?;
    kubectl::apply(&rest)?;
    kubectl::rolled_out("istio-system", "deployment/istiod", START_TIMEOUT)
}

fn overlay_text() -> String {
    let format: serde_json::Map<String, Value> =
        LOG_FIELDS.iter().map(|(name, command)| ((*name).to_owned(), json!(command))).collect();
    json!({
        "apiVersion": "install.istio.io/v1alpha1",
        "kind": "IstioOperator",
        "spec": {
            "profile": "minimal",
            "hub": "docker.io/cluster",
            "tag": "1",
            "meshConfig": {
                "accessLogFile": "/dev/stdout",
                "accessLogEncoding": "JSON",
                "accessLogFormat": Value::Object(format).to_string(),
                "defaultConfig": {"proxyMetadata": {"ISTIO_META_DNS_CAPTURE": "true"}},
            },
            "components": {"pilot": {"k8s": {
                "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}},
                "env": [
                    // Filters that only Istio's own Envoy has.
                    {"name": "PILOT_ENABLE_METADATA_EXCHANGE", "value": "false"},
                    {"name": "PILOT_ENABLE_ALPN_FILTER", "value": "false"},
                ],
            }}},
            "values": {
                "telemetry": {"enabled": false},
                "global": {
                    "imagePullPolicy": "IfNotPresent",
                    "proxy": {"resources": {"requests": {"cpu": "10m", "memory": "64Mi"}}},
                },
            },
        },
    })
    .to_string()
}

/// Returns whether a line is not of the manifest but of a log: it starts with a date and time.
fn is_log(line: &str) -> bool {
    line.split('\t').next().is_some_and(|time| time.len() > 20 && time.starts_with("20") && time.ends_with('Z'))
}

/// Returns the directory of Istio's sources, from which the bootstrap's template comes; fetches them if only the binary
/// came from a cache.
pub(crate) fn module() -> Result<PathBuf> {
    let mut command = Command::new(build::go()?);
    command.current_dir(tools::repository().join("tests/cluster/go/istio"));
    let downloaded = finish(command.args(["mod", "download", "-json", "istio.io/istio"]), "")?;
    let downloaded: Value = serde_json::from_str(&downloaded)?;
    downloaded["Dir"].as_str().map(PathBuf::from).context("`go mod download` names no directory")
}

fn modules_of_iptables() -> Result<PathBuf> {
    let candidates = fs::read_dir("/usr/lib")?.flatten().map(|entry| entry.path().join("xtables"));
    candidates
        .chain([PathBuf::from("/usr/lib/xtables")])
        .find(|directory| Path::is_dir(directory))
        .context("the modules of iptables are missing: install Debian's iptables")
}
