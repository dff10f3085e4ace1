//! Envoy as the sidecar of a virtual machine, set up as in the mesh of the tests, with its access log as reference.

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

/// The server of the application's requests. Its port is not that of a sidecar's application: the address alone, a
/// loopback one, would not distinguish them.
const PEER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 15020);
/// Limits the time until Envoy reads a connection's first bytes, or writes its log.
const ENVOY_TIMEOUT: Duration = Duration::from_secs(60);

/// Makes traffic from and to the application through Envoy; the observer's counts must equal Envoy's log.
pub(crate) fn agree(before: &Objects) -> Result<()> {
    redirect(traffic::ORIGINAL_DESTINATION, traffic::OUTBOUND)?;
    redirect(traffic::REACHED, traffic::INBOUND)?;
    serve(traffic::REACHED)?;
    serve(PEER)?;
    let sidecar = start()?;
    let mut access_log = EnvoyAccessLog::new(&sidecar)?;
    let observer = Observer::start_with(Path::new("/tmp"), "", 1, &[])?;
    traffic::ask(traffic::ORIGINAL_DESTINATION.into()).context("from the application")?;
    traffic::ask(traffic::REACHED.into()).context("to the application")?;
    conclude(observer, &logged(&mut access_log)?, before)
}

fn start() -> Result<Sidecar> {
    let pod = |name: &str| Workload::alone(name, *PEER.ip(), Path::new("/sys/fs/cgroup").join(name));
    let workload = Arc::new(pod("sidecar")?);
    let peer = Service {
        name: "peer".to_owned(),
        ipv4: *traffic::ORIGINAL_DESTINATION.ip(),
        ipv6: traffic::ORIGINAL_DESTINATION.ip().to_ipv6_mapped(),
        port: traffic::ORIGINAL_DESTINATION.port(),
        target_port: PEER.port(),
        protocol: Protocol::Auto,
        mutual_tls: false,
        endpoint: Arc::new(pod("peer")?),
    };
    let directory = Path::new("/run").join(&workload.name);
    for directory in [&directory, &workload.container("istio-proxy")] {
        fs::create_dir_all(directory).with_context(|| format!("{} cannot be created", directory.display()))?;
    }
    let options = Options { concurrency: 1, sniffing_timeout: ENVOY_TIMEOUT, ..Options::default() };
    Sidecar::start_alone(&workload, options, directory, ENVOY.into(), &Authority::new()?, &[peer])
}

/// Returns the counts of Envoy's log. Envoy writes headers of its own, so that their bytes are its own; the rest is
/// known.
fn logged(access_log: &mut EnvoyAccessLog) -> Result<Counts> {
    let known = traffic::expected([Leg::source("sidecar"), Leg::destination("sidecar")]);
    let requests_by_kind = |counts: &Counts| -> BTreeMap<_, u64> {
        counts.requests.iter().map(|(kind, Requests { count, .. })| (kind.clone(), *count)).collect()
    };
    let requests: u64 = requests_by_kind(&known).values().sum();
    let connections: u64 = known.connections.values().map(|connections| connections.closed).sum();
    let lines = access_log.settled(usize::try_from(requests + connections)?, ENVOY_TIMEOUT)?;
    let mut logged = Counts::default();
    access_log.count(&lines, &mut logged);
    let is_known = requests_by_kind(&logged) == requests_by_kind(&known)
        && logged.connections == known.connections
        && logged.messages == known.messages;
    ensure!(is_known, "Envoy passed something else on: {logged}, instead of {known}");
    // In an emulated machine, durations are not comparable.
    logged.requests.values_mut().for_each(|requests| requests.duration_ms = None);
    println!("Envoy's log: {logged}");
    Ok(logged)
}
