//! Situations: who calls whom and how, with counts that are known beforehand.

use std::time::SystemTime;

use anyhow::{Context as _, Result, ensure};

use crate::{facts::Facts, kubectl, workloads};

/// Requests or connections of each situation.
pub(crate) const NUMBER: usize = 20;

/// How a client calls.
#[derive(Clone, Copy)]
pub(crate) enum Call {
    /// HTTP of this version (`http1`, `http2`) to a URL.
    Http(&'static str, &'static str),
    /// Unary calls of gRPC to an address.
    Grpc(&'static str),
    /// TCP connections to an address.
    Tcp(&'static str),
    /// A CronJob's pod over HTTP/1.1.
    Cron(&'static str),
}

/// A situation. `{service:NAME}` and `{pod:NAME}` in addresses are those of the namespace/NAME.
#[derive(Clone, Copy)]
pub(crate) struct Situation {
    pub(crate) name: &'static str,
    /// Namespace and workload of the client; of a CronJob none runs before.
    client: (&'static str, &'static str),
    call: Call,
}

/// All of them, in the order in which they run.
pub(crate) const SITUATIONS: [Situation; 21] = [
    at("HTTP/1.1, one node", "client", Call::Http("http1", "http://near/")),
    at("HTTP/1.1, two nodes", "client", Call::Http("http1", "http://ledger.bank/")),
    at("HTTP/2", "client", Call::Http("http2", "http://ledger.bank:82/")),
    at("status 404", "client", Call::Http("http1", "http://near/status/404")),
    at("gRPC", "client", Call::Grpc("ledger.bank:7070")),
    at("TCP", "client", Call::Tcp("ledger.bank:9000")),
    at("TCP, one node", "client", Call::Tcp("near:9000")),
    at("canary", "client", Call::Http("http1", "http://server/")),
    at("headless", "client", Call::Http("http1", "http://db:8090/")),
    at("classic sidecar", "client", Call::Http("http1", "http://classic/")),
    at("from classic", "classic", Call::Http("http1", "http://near/")),
    at("from StatefulSet", "db", Call::Http("http1", "http://near/")),
    at("from CronJob", "", Call::Cron("http://near/")),
    at("shared account", "twin-a", Call::Http("http1", "http://near/")),
    at("port tcp-web", "client", Call::Http("http1", "http://near:90/")),
    at("pod's address", "client", Call::Http("http1", "http://{pod:shop/near}:8080/")),
    at("ServiceEntry", "client", Call::Http("http1", "http://api.example.com/")),
    at("no endpoint", "client", Call::Http("http1", "http://empty/")),
    Situation {
        name: "gateway",
        client: ("outside", "plain"),
        call: Call::Http("http1", "http://{service:shop/gateway}/"),
    },
    Situation {
        name: "plaintext, pod",
        client: ("outside", "plain"),
        call: Call::Http("http1", "http://{service:shop/near}/"),
    },
    Situation {
        name: "plaintext, host",
        client: ("outside", "host"),
        call: Call::Http("http1", "http://{service:shop/near}/"),
    },
];

/// Traffic of which every label of both ends can be known, and nothing else: of every protocol, with failures, and in
/// plaintext from a client to a server that nobody else calls, and to a server without a sidecar.
pub(crate) const NAMED: [Situation; 10] = [
    SITUATIONS[0],
    SITUATIONS[1],
    SITUATIONS[3],
    SITUATIONS[4],
    SITUATIONS[5],
    SITUATIONS[6],
    at("status 503", "client", Call::Http("http1", "http://near/status/503")),
    Situation {
        name: "plaintext alone",
        client: ("outside", "plain"),
        call: Call::Http("http1", "http://{service:shop/classic}/"),
    },
    Situation { name: "plaintext TCP", client: ("outside", "plain"), call: Call::Tcp("{service:shop/classic}:9000") },
    at("to plaintext", "client", Call::Http("http1", "http://legacy.outside/")),
];

const fn at(name: &'static str, client: &'static str, call: Call) -> Situation {
    Situation { name, client: ("shop", client), call }
}

impl Situation {
    /// Makes the calls; an error unless all were answered.
    pub(crate) fn run(&self, facts: &Facts) -> Result<()> {
        self.attempt(facts).with_context(|| format!("the situation {:?}", self.name))
    }

    fn attempt(&self, facts: &Facts) -> Result<()> {
        let number = NUMBER.to_string();
        match self.call {
            Call::Http(version, url) => self.exec(&["/app", "get", &number, version, &resolved(url, facts)?]).map(drop),
            Call::Grpc(address) => {
                let told = self.exec(&["/peer", "client", &resolved(address, facts)?, "unary", &number, "10"])?;
                ensure!(told.contains(&format!("\"calls\":{NUMBER}")), "the client says {told}");
                Ok(())
            }
            Call::Tcp(address) => self.exec(&["/app", "echo", &number, &resolved(address, facts)?, "1000"]).map(drop),
            Call::Cron(url) => run_cron_job(url),
        }
    }

    fn exec(&self, command: &[&str]) -> Result<String> {
        let (namespace, workload) = self.client;
        let kind = if workload == "db" { "statefulset" } else { "deployment" };
        let client = format!("{kind}/{workload}");
        let arguments = ["-n", namespace, "exec", &client, "-c", "app", "--"];
        kubectl::run(&[arguments.as_slice(), command].concat())
    }
}

/// Lets one pod of a CronJob make the calls, in a job that is named as the schedule's are: by minutes since 1970.
fn run_cron_job(url: &str) -> Result<()> {
    kubectl::apply(&[workloads::cron_job(NUMBER, url)])?;
    let minutes = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs() / 60;
    let job = format!("nightly-{minutes}");
    kubectl::run(&["-n", "shop", "delete", "job", &job, "--ignore-not-found"])?;
    kubectl::run(&["-n", "shop", "create", "job", &job, "--from=cronjob/nightly"])?;
    kubectl::run(&["-n", "shop", "wait", "--for=condition=complete", &format!("job/{job}"), "--timeout=60s"]).map(drop)
}

/// Replaces `{service:NAMESPACE/NAME}` and `{pod:NAMESPACE/WORKLOAD}` by their addresses.
fn resolved(text: &str, facts: &Facts) -> Result<String> {
    let Some((before, rest)) = text.split_once('{') else { return Ok(text.to_owned()) };
    let (inside, after) = rest.split_once('}').context("a brace is not closed")?;
    let (kind, name) = inside.split_once(':').context("kind:NAMESPACE/NAME")?;
    let (namespace, name) = name.split_once('/').context("NAMESPACE/NAME")?;
    let address = if kind == "service" {
        let found = facts.services.iter().find(|service| service.namespace == namespace && service.name == name);
        found.map(|service| service.address.clone())
    } else {
        facts.pod_of(namespace, name).map(|pod| pod.address.clone())
    };
    Ok(format!("{before}{}{after}", address.with_context(|| format!("{kind} {namespace}/{name} has no address"))?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workloads::EXTERNAL_HOST;

    #[test]
    fn the_external_host_is_the_service_entrys() {
        let hosts = SITUATIONS
            .iter()
            .filter(|situation| matches!(situation.call, Call::Http(_, url) if url.contains(EXTERNAL_HOST)));
        assert_eq!(hosts.count(), 1);
    }
}
