//! Envoy as the sidecar of a virtual machine, set up as in the mesh of the tests: its access log says what is to be counted.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use harness::{
    counts::{Counts, Leg, Requests},
    envoy_access_log::EnvoyAccessLog,
    mesh::{Protocol, Service, Workload},
    observer::Observer,
    pki::Authority,
    sidecar::{Options, Sidecar},
};

use crate::{ENVOY, conclude, leaks::Objects, redirect, serve, traffic};

/// Who serves what the application dials. The port is one that is not a sidecar's application's: the address alone, a
/// loopback one, would be.
const PEER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 15020);
/// Longest that Envoy may take to read a connection's first bytes, or to write its log.
const ENVOY_TIMEOUT: Duration = Duration::from_secs(60);

/// Has the application dial and be dialled through Envoy; the observer is to count what Envoy's log says.
pub(crate) fn agree(before: &Objects) -> Result<()> {
    redirect(traffic::DIALLED, traffic::OUTBOUND)?;
    redirect(traffic::REACHED, traffic::INBOUND)?;
    serve(traffic::REACHED)?;
    serve(PEER)?;
    let sidecar = start()?;
    let mut access_log = EnvoyAccessLog::new(&sidecar)?;
    let observer = Observer::start_with(Path::new("/tmp"), "", 1, &[])?;
    traffic::ask(traffic::DIALLED.into()).context("from the application")?;
    traffic::ask(traffic::REACHED.into()).context("to the application")?;
    conclude(observer, &logged(&mut access_log)?, before)
}

fn start() -> Result<Sidecar> {
    let pod = |name: &str| Workload::alone(name, *PEER.ip(), Path::new("/sys/fs/cgroup").join(name));
    let workload = Arc::new(pod("sidecar")?);
    let peer = Service {
        name: "peer".to_owned(),
        ipv4: *traffic::DIALLED.ip(),
        ipv6: traffic::DIALLED.ip().to_ipv6_mapped(),
        port: traffic::DIALLED.port(),
        target_port: PEER.port(),
        protocol: Protocol::Auto,
        mutual_tls: false,
        endpoint: Arc::new(pod("peer")?),
    };
    let directory = Path::new("/run").join(&workload.name);
    for folder in [&directory, &workload.container("istio-proxy")] {
        fs::create_dir_all(folder).with_context(|| format!("{} cannot be created", folder.display()))?;
    }
    let options = Options { concurrency: 1, sniffing_timeout: ENVOY_TIMEOUT, ..Options::default() };
    Sidecar::start_alone(&workload, options, directory, ENVOY.into(), &Authority::new()?, &[peer])
}

/// What the log says of everything that was asked. Envoy's heads are its own, and so are their bytes; the rest is known.
fn logged(access_log: &mut EnvoyAccessLog) -> Result<Counts> {
    let known = traffic::expected([Leg::source("sidecar"), Leg::destination("sidecar")]);
    let requests_by_kind = |counts: &Counts| -> BTreeMap<_, u64> {
        counts.requests.iter().map(|(kind, Requests { count, .. })| (kind.clone(), *count)).collect()
    };
    let requests: u64 = requests_by_kind(&known).values().sum();
    let connections: u64 = known.connections.values().map(|connections| connections.closed).sum();
    let lines = access_log.settled(usize::try_from(requests + connections)?, ENVOY_TIMEOUT)?;
    let mut logged = Counts { messages: known.messages.clone(), ..Counts::default() };
    access_log.count(&lines, &mut logged);
    let is_known = requests_by_kind(&logged) == requests_by_kind(&known) && logged.connections == known.connections;
    ensure!(is_known, "Envoy passed something else on: {logged}, instead of {known}");
    // Emulated, either side is late by whatever the machine has to do.
    logged.requests.values_mut().for_each(|requests| requests.duration_ms = None);
    println!("Envoy's log: {logged}");
    Ok(logged)
}
