//! Labels of the caller at the destination leg, against the peer that Envoy's access log has.

use std::{collections::BTreeMap, process::ExitCode, thread::sleep, time::Duration};

use anyhow::{Context, Result, ensure};
use harness::{
    bpffs::Bpffs,
    cases,
    mesh::{Family, Workload},
    observer::Observer,
    pair::SETTLE_TIMEOUT,
    two_clients::{BOTH, FORGED_REQUESTS, HTTP1_REQUESTS, PLAINTEXT_REQUESTS, SIDECARS, TwoClients, curl},
    wait::wait_until,
};

/// Longer than the time after its end in which the last requests of a connection are counted.
const LONG_AFTER: Duration = Duration::from_secs(6);
const UNKNOWN: &str = "unknown";

/// Requests, or TCP connections opened, by workload, namespace, principal and security policy.
type Callers = BTreeMap<[String; 4], u64>;

fn main() -> ExitCode {
    cases::run(
        Fixture::new,
        cases![
            plaintext_alone,
            pooled_requests,
            forged_headers,
            plaintext_beside_mutual_tls,
            tcp_connections,
            older_than_the_observer,
            before_the_observer_was_replaced
        ],
    )
}

/// The clients, and an observer that knows them by their sidecars, and the one without by its configuration.
struct Fixture {
    observer: Option<Observer>,
    scene: TwoClients,
}

impl Fixture {
    fn new() -> Result<Self> {
        let mut fixture = Self { observer: None, scene: TwoClients::new()? };
        fixture.observe(true, &[])?;
        Ok(fixture)
    }

    /// Starts an observer, instead of the one before.
    fn observe(&mut self, knows_outside: bool, arguments: &[&str]) -> Result<()> {
        self.observer.take().map_or(Ok(()), Observer::stop)?;
        let mesh = &self.scene.mesh;
        let mut tables = mesh.observer_tables();
        if knows_outside {
            let Workload { name, namespace, ipv4, ipv6, .. } = &*self.scene.outside;
            tables += &format!(
                "[[workload]]\nname = \"{name}\"\nnamespace = \"{namespace}\"\naddresses = [\"{ipv4}\", \"{ipv6}\"]\n\
                 service_account = \"{name}\"\n"
            );
        }
        let executable = mesh.executable();
        let arguments = [&["--sidecar-exe", executable.as_str()], arguments].concat();
        self.observer = Some(Observer::start_with(mesh.directory(), &tables, SIDECARS, &arguments)?);
        Ok(())
    }

    /// Has the clients in turn make one request each, `number` in all, with this status.
    fn request(&self, number: usize, status: u16) -> Result<()> {
        for client in self.scene.clients.iter().cycle().take(number) {
            let url = self.scene.web.url(Family::V4, &format!("/status/{status}"));
            ensure!(curl(client, &[&url])? == format!("{status}\n"));
        }
        Ok(())
    }

    fn counted(&self, family: &str) -> Result<Callers> {
        let exposition = self.observer.as_ref().context("no observer")?.scrape()?;
        let mut counted = Callers::new();
        let is_own = |label: &str| label == self.scene.server.name;
        for sample in exposition.samples(family) {
            if sample.label("reporter") == "destination" && is_own(sample.label("destination_workload")) {
                let labels = ["source_workload", "source_workload_namespace", "source_principal"];
                let [workload, namespace, principal] = labels.map(|label| sample.label(label).to_owned());
                let policy = sample.label("connection_security_policy").to_owned();
                *counted.entry([workload, namespace, principal, policy]).or_default() += sample.value as u64;
            }
        }
        Ok(counted)
    }

    /// Has `expected` requests made, and compares: each has the principal of the access log and the workload that `name`
    /// gives for it.
    fn check(
        &mut self,
        expected: usize,
        name: impl Fn(&Self, &str) -> [String; 2],
        traffic: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<String> {
        self.scene.log.settled(0, SETTLE_TIMEOUT)?;
        let mut truth = self.counted("istio_requests_total")?;
        traffic(self)?;
        let lines = self.scene.log.settled(expected, SETTLE_TIMEOUT)?;
        let ended: Vec<_> = lines.iter().filter(|line| line.is_end()).collect();
        ensure!(ended.len() == expected, "{} requests in the log", ended.len());
        for line in ended {
            // Envoy writes a dash where there is no peer certificate.
            let peer = line.text("peer").trim_start_matches('-');
            let [workload, namespace] = name(self, peer);
            let (principal, policy) = if peer.is_empty() { (UNKNOWN, "none") } else { (peer, "mutual_tls") };
            *truth.entry([workload, namespace, principal.to_owned(), policy.to_owned()]).or_default() += 1;
        }
        wait_until("callers are those of the access log", SETTLE_TIMEOUT, || {
            let counted = self.counted("istio_requests_total")?;
            ensure!(counted == truth, "{counted:?} instead of {truth:?}");
            Ok(())
        })?;
        Ok(format!("{truth:?}"))
    }

    /// Returns workload and namespace of a client by its principal; of the one without a sidecar where there is none.
    fn client(&self, principal: &str) -> [String; 2] {
        let all = self.scene.clients.iter().map(|client| (client.spiffe(), client));
        let outside = [String::new(), self.scene.outside.spiffe()].map(|identity| (identity, &self.scene.outside));
        let found = all.chain(outside).find(|(identity, _)| identity == principal);
        let unknown = || [UNKNOWN.to_owned(), "default".to_owned()];
        found.map_or_else(unknown, |(_, client)| [client.name.clone(), client.namespace.clone()])
    }
}

/// Nobody else is connected to the port.
fn plaintext_alone(f: &mut Fixture) -> Result<String> {
    f.check(PLAINTEXT_REQUESTS, Fixture::client, |f| f.scene.request_in_plaintext())
}

/// Both clients' requests share the connections to the application, over HTTP/1 and HTTP/2.
fn pooled_requests(f: &mut Fixture) -> Result<String> {
    let server = f.scene.serve_http2()?;
    let summary = f.check(HTTP1_REQUESTS + 200, Fixture::client, |f| {
        f.scene.request_over_http1()?;
        f.scene.request_over_http2(5, 20)
    });
    drop(server);
    summary
}

/// The header names the account, and no connected pod has it.
fn forged_headers(f: &mut Fixture) -> Result<String> {
    f.check(FORGED_REQUESTS, Fixture::client, |f| f.scene.forge())
}

/// The sidecar has been seen to write the header, so that one without it is of the client without a sidecar. Its policy
/// is told by the connections, of which those with mutual TLS have been silent.
fn plaintext_beside_mutual_tls(f: &mut Fixture) -> Result<String> {
    f.check(2 + PLAINTEXT_REQUESTS, Fixture::client, |f| {
        f.request(2, 200)?;
        sleep(Duration::from_millis(300));
        f.scene.request_in_plaintext()
    })
}

/// One at a time, a connection's peer is the only one that can be.
fn tcp_connections(f: &mut Fixture) -> Result<String> {
    let mut truth = Callers::new();
    for client in f.scene.clients.iter().cycle().take(6) {
        for family in BOTH {
            f.scene.echo(client, family)?;
            let [workload, namespace] = f.client(&client.spiffe());
            *truth.entry([workload, namespace, client.spiffe(), "mutual_tls".to_owned()]).or_default() += 1;
        }
    }
    for family in ["istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total"] {
        wait_until("connections are of who opened them", SETTLE_TIMEOUT, || {
            let counted = f.counted(family)?;
            ensure!(counted == truth, "{family}: {counted:?} instead of {truth:?}");
            Ok(())
        })?;
    }
    Ok(format!("{truth:?}"))
}

/// Connections between the sidecars are older than the observer: their peers are read from the network namespace.
fn older_than_the_observer(f: &mut Fixture) -> Result<String> {
    f.request(2, 200)?;
    f.observe(true, &[])?;
    f.check(8, Fixture::client, |f| f.request(8, 200))
}

/// The programs remember a client that had left long before the observer was replaced, and whose address the next one
/// does not know: it has sent nothing of what that one finds.
fn before_the_observer_was_replaced(f: &mut Fixture) -> Result<String> {
    let bpffs = Bpffs::mount(f.scene.mesh.directory())?;
    let pins = bpffs.path().join("pins").display().to_string();
    f.observe(true, &["--pin", &pins])?;
    f.check(3, Fixture::client, |f| {
        f.scene.request_with_certificate("outside", "")?;
        f.request(2, 200)
    })?;
    sleep(LONG_AFTER);
    // New series, so that the state is of now.
    f.check(2, Fixture::client, |f| f.request(2, 202))?;
    let summary = f.check(8, Fixture::client, |f| {
        f.observer.take().map_or(Ok(()), Observer::stop)?;
        f.request(8, 404)?;
        f.observe(false, &["--pin", &pins])
    });
    f.observer = None;
    drop(bpffs);
    summary
}
