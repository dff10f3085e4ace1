//! The observer in the cluster, and what its pages say.

use std::{
    collections::BTreeMap,
    env,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use harness::{exposition::Exposition, istio_labels::LABELS, net::finish, tools};

use crate::{
    expectation::{Bytes, Labels, REPORTERS},
    kubectl,
    node::{NODES, Node, address, directory},
};

/// Name of the release and of its namespace.
const NAME: &str = "mesh-observer";
/// Name of the image in the chart, as containerd writes it out.
const IMAGE: &str = "docker.io/library/mesh-observer:0.1.0";
const ROLLOUT_TIMEOUT: Duration = Duration::from_secs(180);
/// Counters that are compared, by whether they count requests or connections.
const COUNTED: [&str; 2] = ["istio_requests_total", "istio_tcp_connections_opened_total"];

/// Bytes of TCP connections: received from clients, and sent to them.
const BYTES: [&str; 2] = ["istio_tcp_received_bytes_total", "istio_tcp_sent_bytes_total"];

/// Series by reporter and labels, with their values.
pub(crate) type Series = BTreeMap<(String, Labels), f64>;

/// Writes the image as a user does.
pub(crate) fn image() -> Result<PathBuf> {
    let path = directory().join("observer.tar");
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(tools::repository()).env("MESH_OBSERVER_BIN", tools::observer()?);
    finish(command.args(["xtask", "image", "--name", IMAGE, "--output"]).arg(&path), "")?;
    Ok(path)
}

/// Installs it as docs/install.md says.
pub(crate) fn install() -> Result<()> {
    kubectl::run(&["create", "namespace", NAME])?;
    kubectl::run(&["label", "namespace", NAME, "pod-security.kubernetes.io/enforce=privileged"])?;
    helm(&["install"], &[])
}

/// Replaces every node's observer by an upgrade, and waits until the new ones are ready.
pub(crate) fn upgrade() -> Result<()> {
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    helm(&["upgrade", "--reuse-values"], &[&format!("--set-string=podAnnotations.upgraded={time}")])
}

fn helm(action: &[&str], options: &[&str]) -> Result<()> {
    let chart = tools::repository().join("deploy/helm/mesh-observer");
    let mut command = Node(NODES[0]).command(tools::built("helm")?)?;
    command.args(action).arg(format!("--kubeconfig={}", kubectl::configuration().display()));
    finish(command.args(["--namespace", NAME, NAME]).arg(chart).args(options), "")?;
    kubectl::rolled_out(NAME, "daemonset/mesh-observer", ROLLOUT_TIMEOUT)
}

/// Everything that both nodes' observers have counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counted {
    pub(crate) series: Series,
    pub(crate) bytes: Bytes,
}

/// Returns both nodes' counts.
pub(crate) fn counted() -> Result<Counted> {
    let Counted { series: mut all, mut bytes } = Counted::default();
    for node in NODES {
        let page = page(Node(node))?;
        for reporter in REPORTERS {
            for (way, family) in BYTES.iter().enumerate() {
                let more: f64 = page.sum(family, &[("reporter", reporter)]).unwrap_or_default();
                bytes.entry(reporter).or_default()[way] += more;
            }
        }
        for sample in COUNTED.into_iter().flat_map(|name| page.samples(name)) {
            let value = |name: &&'static str| Some((*name, sample.label(name).to_owned()));
            let labels: Labels =
                LABELS.iter().filter_map(value).filter(|(_, value)| !value.is_empty() && value != "unknown").collect();
            *all.entry((sample.label("reporter").to_owned(), labels)).or_default() += sample.value;
        }
    }
    Ok(Counted { series: all, bytes })
}

/// Returns one node's page.
pub(crate) fn page(node: Node) -> Result<Exposition> {
    let url = format!("http://{}:9469/metrics", address(node.0));
    let text = node.run(Path::new("curl"), &["-fsS", "--max-time", "10", &url])?;
    Exposition::parse(&text).with_context(|| url)
}
