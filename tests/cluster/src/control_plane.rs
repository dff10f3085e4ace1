//! etcd and Kubernetes' control plane on the first node, and kubelet and kube-proxy on each.

use std::{fs, path::Path, time::Duration};

use anyhow::{Result, ensure};
use harness::{tools, wait::wait_until};

use crate::{
    build,
    certificates::Certificates,
    kubectl,
    node::{NODES, Node, SERVER, SERVICE_RANGE, address, node_name},
};

/// Limits the time until the API server answers and until the nodes are ready, on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(120);
const ETCD: &str = "http://127.0.0.1:2379";

/// Starts all of it and waits until the nodes are ready.
pub(crate) fn start(certificates: &Certificates) -> Result<()> {
    start_control_plane(certificates)?;
    for node in NODES.map(Node) {
        start_kubelet(certificates, node)?;
        start_proxy(certificates, node)?;
    }
    wait_until("every node is ready", START_TIMEOUT, || {
        let nodes = kubectl::get("nodes")?;
        let ready = nodes.iter().filter(|node| is_ready(node)).count();
        ensure!(ready == NODES.len(), "{ready} of {} are ready", NODES.len());
        Ok(())
    })
}

fn start_control_plane(certificates: &Certificates) -> Result<()> {
    let first = Node(NODES[0]);
    let data = first.directory().join("etcd");
    let peer = "http://127.0.0.1:2380";
    let etcd = [
        format!("--data-dir={}", data.display()),
        format!("--listen-client-urls={ETCD}"),
        format!("--advertise-client-urls={ETCD}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=default={peer}"),
        // Nothing here outlives a crash of the machine.
        "--unsafe-no-fsync".to_owned(),
    ];
    first.spawn("etcd", tools::server("etcd")?, &etcd)?;
    wait_until("etcd", START_TIMEOUT, || first.run("curl", &["-fsS", &format!("{ETCD}/health")]))?;
    let file = |name: &str| certificates.path(name).display().to_string();
    let apiserver = [
        format!("--etcd-servers={ETCD}"),
        format!("--advertise-address={}", address(first.0)),
        format!("--service-cluster-ip-range={SERVICE_RANGE}"),
        format!("--client-ca-file={}", file("ca.crt")),
        format!("--tls-cert-file={}", file("apiserver.crt")),
        format!("--tls-private-key-file={}", file("apiserver.key")),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
        format!("--service-account-key-file={}", file("accounts.pub")),
        format!("--service-account-signing-key-file={}", file("accounts.key")),
        format!("--kubelet-client-certificate={}", file("apiserver-kubelet.crt")),
        format!("--kubelet-client-key={}", file("apiserver-kubelet.key")),
        format!("--kubelet-certificate-authority={}", file("ca.crt")),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged=true".to_owned(),
        // Webhooks are called at the pod's address.
        "--enable-aggregator-routing=true".to_owned(),
    ];
    first.spawn("kube-apiserver", build::APISERVER.path(), &apiserver)?;
    wait_until(&format!("API server at {SERVER}"), START_TIMEOUT, || kubectl::run(&["get", "--raw", "/readyz"]))?;
    let controllers = [
        format!("--kubeconfig={}", file("controllers.kubeconfig")),
        format!("--service-account-private-key-file={}", file("accounts.key")),
        format!("--root-ca-file={}", file("ca.crt")),
        "--use-service-account-credentials=true".to_owned(),
        "--leader-elect=false".to_owned(),
        "--allocate-node-cidrs=false".to_owned(),
        "--controllers=*,-nodeipam,-cloud-node-lifecycle".to_owned(),
    ];
    spawn_kube(first, "kube-controller-manager", &controllers)?;
    let scheduler = [format!("--kubeconfig={}", file("scheduler.kubeconfig")), "--leader-elect=false".to_owned()];
    spawn_kube(first, "kube-scheduler", &scheduler)
}

fn start_kubelet(certificates: &Certificates, node: Node) -> Result<()> {
    let name = node_name(node.0);
    let file = |name: &str| certificates.path(name).display().to_string();
    let configuration = node.directory().join("kubelet.yaml");
    let text = format!(
        r#"apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {{anonymous: {{enabled: false}}, webhook: {{enabled: true}}, x509: {{clientCAFile: {authority:?}}}}}
authorization: {{mode: Webhook}}
tlsCertFile: {certificate:?}
tlsPrivateKeyFile: {key:?}
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
enforceNodeAllocatable: []
failSwapOn: false
failCgroupV1: false
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
makeIPTablesUtilChains: false
localStorageCapacityIsolation: false
readOnlyPort: 0
imageGCHighThresholdPercent: 100
evictionHard: {{memory.available: 50Mi, nodefs.available: "1%", imagefs.available: "1%"}}
"#,
        authority = file("ca.crt"),
        certificate = file(&format!("{name}.crt")),
        key = file(&format!("{name}.key")),
    );
    fs::write(&configuration, text)?;
    let arguments = [
        format!("--config={}", configuration.display()),
        format!("--kubeconfig={}", file(&format!("{name}.kubeconfig"))),
        format!("--hostname-override={name}"),
        format!("--node-ip={}", address(node.0)),
        "--root-dir=/var/lib/kubelet".to_owned(),
    ];
    spawn_kube(node, "kubelet", &arguments)
}

fn start_proxy(certificates: &Certificates, node: Node) -> Result<()> {
    let configuration = node.directory().join("proxy.yaml");
    let text = format!(
        r#"apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clientConnection: {{kubeconfig: {kubeconfig:?}}}
clusterCIDR: 10.244.0.0/16
hostnameOverride: {name}
conntrack: {{maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}
"#,
        kubeconfig = certificates.path("admin.kubeconfig"),
        name = node_name(node.0),
    );
    fs::write(&configuration, text)?;
    spawn_kube(node, "kube-proxy", &[format!("--config={}", configuration.display())])
}

/// Starts a program of the binary of many.
fn spawn_kube(node: Node, program: &str, arguments: &[String]) -> Result<()> {
    let arguments = [&[program.to_owned()], arguments].concat();
    node.spawn(program, build::KUBE.path(), &arguments).map(drop)
}

fn is_ready(node: &serde_json::Value) -> bool {
    let conditions = node.pointer("/status/conditions").and_then(serde_json::Value::as_array);
    conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
}

/// Returns the programs of Debian that a cluster is made of, with the file that each is known by.
pub(crate) fn prerequisites() -> Result<()> {
    tools::prerequisites()?;
    for command in ["containerd", "runc", "ctr", "nft", "nsenter", "nice", "sysctl", "ldd"] {
        tools::require(command)?;
    }
    for server in ["etcd", "prometheus"] {
        tools::server(server)?;
    }
    let bridge = Path::new("/usr/lib/cni/bridge");
    ensure!(bridge.is_file(), "{} is missing: install Debian's containernetworking-plugins", bridge.display());
    Ok(())
}
