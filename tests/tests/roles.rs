//! Roles: evidence for sidecars and gateways, sockets with moved ports, and the identity that a process
//! gets.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::PathBuf,
    process::{Command, ExitCode},
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{
    apps::{
        http,
        raw::{Connection, DATA_WITH_THE_ACK, Server},
        tcp,
    },
    cases,
    counts::Counts,
    envoy::GATEWAY_PLAIN,
    envoy_access_log::EnvoyAccessLog,
    mesh::{Family, Mesh, Protocol, Service, Workload},
    net::finish,
    observer::Observer,
    pair::{Expected, Pair, SETTLE_TIMEOUT},
    redirect::Interception,
    sidecar::{Kind, NodeId, Options, Ports, Sidecar},
    tools,
    wait::wait_until,
};

const BOTH: [Family; 2] = [Family::V4, Family::V6];
/// Ports of listeners that are not Istio's defaults.
const MOVED: Ports = Ports { outbound: 15101, inbound: 15106 };

fn main() -> ExitCode {
    cases::run(
        || Ok(()),
        cases![
            gateways_by_any_evidence,
            sidecars_by_any_evidence,
            a_waypoint_is_recognised,
            contradictions_are_logged,
            moved_listeners,
            moved_listeners_with_tproxy,
            listeners_of_the_applications_own,
            a_cgroup_shared_with_others,
            executables_by_other_names,
            moved_to_another_cgroup,
            another_pods_name,
            principals_are_of_connections_with_mutual_tls,
        ],
    )
}

/// A server with a sidecar, and proxies in front of it.
struct Fixture {
    observer: Option<Observer>,
    access_logs: Vec<EnvoyAccessLog>,
    sidecars: Vec<Sidecar>,
    server: Arc<Workload>,
    web: Service,
    visitor: Arc<Workload>,
    _application: Server,
    mesh: Mesh,
}

impl Fixture {
    fn new() -> Result<Self> {
        let mut mesh = Mesh::new()?;
        let (server, visitor) = (mesh.workload("server")?, mesh.workload("visitor")?);
        let web = mesh.service("web", 80, &server, 8080, Protocol::Http)?;
        let _application = http::serve(&server, 8080)?;
        let (sidecars, access_logs) = Default::default();
        let mut fixture = Self { observer: None, access_logs, sidecars, server, web, visitor, _application, mesh };
        let server = Arc::clone(&fixture.server);
        fixture.add(&server, Options::default())?;
        Ok(fixture)
    }

    fn start(&mut self, name: &str, options: Options) -> Result<Arc<Workload>> {
        let workload = self.mesh.workload(name)?;
        self.add(&workload, options)?;
        Ok(workload)
    }

    fn add(&mut self, workload: &Arc<Workload>, options: Options) -> Result<()> {
        let sidecar = Sidecar::start(&self.mesh, workload, options)?;
        self.access_logs.push(EnvoyAccessLog::new(&sidecar)?);
        self.sidecars.push(sidecar);
        Ok(())
    }

    fn observe(&mut self, sidecars: usize) -> Result<()> {
        self.observer = Some(Observer::start(&self.mesh, sidecars, &[])?);
        Ok(())
    }

    fn observer(&self) -> Result<&Observer> {
        self.observer.as_ref().context("observed before")
    }

    /// Makes traffic and compares with all logs, which have this many lines each.
    fn check(&mut self, lines: &[usize], traffic: impl FnOnce(&Self) -> Result<()>) -> Result<String> {
        for access_log in &mut self.access_logs {
            access_log.skip()?;
        }
        let before = self.observer()?.counts()?;
        traffic(self).context("traffic")?;
        let mut truth = Counts::default();
        for (access_log, count) in self.access_logs.iter_mut().zip(lines) {
            let found = access_log.settled(*count, SETTLE_TIMEOUT)?;
            access_log.count(&found, &mut truth);
        }
        wait_until("the observer counts like Envoy's access log", SETTLE_TIMEOUT, || {
            Ok(truth.differences(&self.observer()?.counts()?.since(&before)).none()?)
        })?;
        Ok(truth.to_string())
    }

    /// Makes a request through each gateway.
    fn visit(&self, gateways: &[Arc<Workload>]) -> Result<()> {
        for (gateway, family) in gateways.iter().flat_map(|gateway| BOTH.map(|family| (gateway, family))) {
            let mut command = self.visitor.command("curl")?;
            command.args(["-sS", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", "-H", "host: web"]);
            let listener = std::net::SocketAddr::new(gateway.ip(family), GATEWAY_PLAIN);
            let code = finish(command.arg(format!("http://{listener}/bytes/10")), "")?;
            ensure!(code == "200", "{code} through {}", gateway.name);
        }
        Ok(())
    }

    /// Makes a request of an application.
    fn ask(&self, workload: &Workload) -> Result<()> {
        for family in BOTH {
            let mut command = workload.command("curl")?;
            command.args(["-sS", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}"]);
            let code = finish(command.arg(self.web.url(family, "/bytes/10")), "")?;
            ensure!(code == "200", "{code} for {}", workload.name);
        }
        Ok(())
    }

    /// The output of `observer check`.
    fn said(&self) -> Result<String> {
        let mut command = Command::new(tools::observer()?);
        finish(command.args(["check", "--sidecar-exe", &self.mesh.executable()]), "")
    }
}

/// Proxies of one role, each with one kind of evidence: bootstrap, command line, pilot-agent, listeners.
fn evidences(kind: Kind, role: &'static str, interception: Interception) -> [(&'static str, Options); 4] {
    let plain = Options { kind, interception, ..Options::default() };
    [
        ("edge-a", plain.clone()),
        ("edge-b", Options { node_id: NodeId::CommandLine, ..plain.clone() }),
        ("edge-c", Options { node_id: NodeId::Nowhere, agent: Some(role), ..plain.clone() }),
        ("edge-d", Options { node_id: NodeId::Nowhere, ..plain }),
    ]
}

/// Gateways have a sidecar's environment.
fn gateways_by_any_evidence(_: &mut ()) -> Result<String> {
    let mut fixture = Fixture::new()?;
    let mut gateways = Vec::new();
    for (name, options) in evidences(Kind::Gateway, "router", Interception::None) {
        gateways.push(fixture.start(name, options)?);
    }
    fixture.observe(5)?;
    let summary = fixture.check(&[8, 2, 2, 2, 2], |fixture| fixture.visit(&gateways))?;
    let said = fixture.said()?;
    for part in [
        "Sidecars (1)",
        "Gateways (4)",
        "because: the node id of its bootstrap says router",
        "because: its node type (--service-node) says router",
        "because: pilot-agent's command line says router",
        "listens on 8080 and 8081 and 8443 and on neither 15001 nor 15006",
    ] {
        ensure!(said.contains(part), "{part:?} is not said:\n{said}");
    }
    // One that starts while it is observed listens only later.
    fixture.sidecars[4].kill()?;
    fixture.sidecars[4].start_again()?;
    fixture.observer.as_mut().context("observed before")?.wait_attached(5)?;
    let gateway = [("role", "gateway")];
    fixture
        .observer()?
        .wait_own(SETTLE_TIMEOUT, |metrics| metrics.sum("mesh_observer_sidecars", &gateway) == Some(4.0))?;
    fixture.check(&[2, 0, 0, 0, 2], |fixture| fixture.visit(&gateways[3..]))?;
    Ok(summary)
}

fn sidecars_by_any_evidence(_: &mut ()) -> Result<String> {
    let mut fixture = Fixture::new()?;
    let mut clients = Vec::new();
    for (name, options) in evidences(Kind::Sidecar, "sidecar", Interception::Redirect) {
        clients.push(fixture.start(name, options)?);
    }
    fixture.observe(5)?;
    let summary =
        fixture.check(&[8, 2, 2, 2, 2], |fixture| clients.iter().try_for_each(|client| fixture.ask(client)))?;
    let said = fixture.said()?;
    for part in [
        "Sidecars (5)",
        "because: the node id of its bootstrap says sidecar",
        "because: its node type (--service-node) says sidecar",
        "because: pilot-agent's command line says sidecar",
        "more of the injector's; listens on 15001 and 15006",
    ] {
        ensure!(said.contains(part), "{part:?} is not said:\n{said}");
    }
    Ok(summary)
}

fn a_waypoint_is_recognised(_: &mut ()) -> Result<String> {
    let mut fixture = Fixture::new()?;
    let options = Options { kind: Kind::Waypoint, interception: Interception::None, ..Options::default() };
    fixture.start("waypoint", options)?;
    fixture.observe(1)?;
    let reason = "it is a waypoint: what it takes (HBONE, port 15008) and what it passes on is encrypted";
    let said = fixture.said()?;
    ensure!(said.contains("Not observed (1)") && said.contains(reason), "{said}");
    // Once a candidate is old enough to be judged.
    wait_until("it is said in the log", SETTLE_TIMEOUT, || {
        let log = fixture.observer()?.log();
        ensure!(log.contains(reason), "{log}");
        Ok(())
    })?;
    Ok("said in the log and by check".to_owned())
}

fn contradictions_are_logged(_: &mut ()) -> Result<String> {
    let mut fixture = Fixture::new()?;
    let gateway = fixture.start("edge", Options { agent: Some("sidecar"), ..Options::gateway() })?;
    fixture.observe(2)?;
    let problem = "is taken for a gateway, although pilot-agent's command line says sidecar";
    let said = fixture.said()?;
    ensure!(said.contains(problem), "{said}");
    wait_until("it is said in the log", SETTLE_TIMEOUT, || {
        let log = fixture.observer()?.log();
        ensure!(log.contains(problem), "{log}");
        Ok(())
    })?;
    fixture.check(&[2, 2], |fixture| fixture.visit(&[gateway]))
}

fn moved_listeners(_: &mut ()) -> Result<String> {
    moved(Interception::Redirect)
}

fn moved_listeners_with_tproxy(_: &mut ()) -> Result<String> {
    moved(Interception::Tproxy)
}

/// `meshConfig.proxyListenPort` and `proxyInboundListenPort`.
fn moved(interception: Interception) -> Result<String> {
    let options = Options { ports: MOVED, interception, ..Options::default() };
    let mut pair = Pair::with(options.clone(), options)?;
    let echo = tcp::echo(&pair.server, pair.tcp.target_port)?;
    let summary = pair.check(Expected::both(16), |pair| {
        for family in BOTH {
            let codes = pair.curl(&[&pair.url(family, "/{bytes/10,status/404,chunked/3000,vanish}")])?;
            ensure!(codes == "200\n404\n200\n503", "{codes}");
            ensure!(pair.curl(&[&pair.sniffed.url(family, "/bytes/2")])? == "200");
            for bytes in [100, 3000] {
                let mut connection = Connection::open(&pair.client, pair.tcp.address(family))?;
                connection.send(vec![5; bytes])?;
                connection.receive(bytes)?;
                connection.finish_sending()?;
                connection.drain()?;
            }
            // Handshake data arrives before the original destination is read.
            let mut connection =
                Connection::open_with(&pair.client, pair.web.address(family), &[DATA_WITH_THE_ACK], None)?;
            connection.send("GET /bytes/8 HTTP/1.1\r\nhost: web\r\n\r\n")?;
            ensure!(connection.receive_response()?.status == 200);
        }
        Ok(())
    })?;
    drop(echo);
    let observer = pair.observer()?;
    let metrics = observer.scrape()?;
    let mutual = [("reporter", "destination"), ("connection_security_policy", "mutual_tls")];
    let [mutual, all] = [&mutual[..], &mutual[..1]].map(|labels| metrics.sum("istio_requests_total", labels));
    ensure!(mutual == all && all == Some(12.0), "{mutual:?} of {all:?} with mutual TLS");
    let named = [("reporter", "source"), ("destination_service_name", "web")];
    ensure!(metrics.sum("istio_requests_total", &named) == Some(10.0), "the original destinations are not known");
    Ok(summary)
}

/// Listeners at loopback addresses, which nothing is redirected to: HTTP/1, HTTP/2 and TCP.
fn listeners_of_the_applications_own(_: &mut ()) -> Result<String> {
    let listeners = [(9080, "web"), (9081, "tcp"), (9083, "http2")];
    let own_listeners = listeners.map(|(port, name)| (port, name.to_owned())).to_vec();
    let mut pair = Pair::with(Options { own_listeners, ..Options::default() }, Options::default())?;
    let echo = tcp::echo(&pair.server, pair.tcp.target_port)?;
    let summary = pair.check(Expected::both(14), |pair| {
        for host in ["127.0.0.1", "[::1]"] {
            let codes = pair.curl(&[&format!("http://{host}:9080/{{bytes/10,status/404,chunked/3000}}")])?;
            ensure!(codes == "200\n404\n200", "{codes}");
            let address: std::net::SocketAddr = format!("{host}:9081").parse()?;
            let mut connection = Connection::open(&pair.client, address)?;
            connection.send([7; 500])?;
            connection.receive(500)?;
            connection.finish_sending()?;
            connection.drain()?;
            let mut connection =
                Connection::open_with(&pair.client, format!("{host}:9080").parse()?, &[DATA_WITH_THE_ACK], None)?;
            connection.send("GET /bytes/8 HTTP/1.1\r\nhost: web\r\n\r\n")?;
            ensure!(connection.receive_response()?.status == 200);
            // Nothing listens behind it: Envoy itself answers, over HTTP/2.
            ensure!(pair.curl(&["--http2-prior-knowledge", &format!("http://{host}:9083/")])? == "503");
            // Beside them, redirected connections.
            let family = if host.starts_with('[') { Family::V6 } else { Family::V4 };
            ensure!(pair.curl(&[&pair.url(family, "/bytes/3")])? == "200");
        }
        Ok(())
    })?;
    drop(echo);
    let observer = pair.observer()?;
    let metrics = observer.scrape()?;
    let unknown = [("reporter", "source"), ("destination_service", "unknown"), ("source_principal", "unknown")];
    ensure!(metrics.sum("istio_requests_total", &unknown) == Some(10.0), "who answers there is not known");
    Ok(summary)
}

/// Another program in the sidecar's cgroup, which may accept connections too: those from the same pod that are not
/// known to be the sidecar's are counted as lost, and redirected ones are exact.
fn a_cgroup_shared_with_others(_: &mut ()) -> Result<String> {
    let own_listeners = vec![(9080, "web".to_owned())];
    let options = Options { own_listeners, ports: MOVED, ..Options::default() };
    let mut pair = Pair::unobserved(options, Options::default())?;
    let mut other = pair.sidecars[0].agent_command("sleep")?.arg("600").spawn().context("sleep")?;
    pair.observe(2)?;
    let lost = |pair: &Pair| -> Result<f64> {
        let observer = pair.observer()?;
        observer.own("mesh_observer_uncounted_total", &[("reason", "shared_cgroup")])
    };
    let summary = pair.check_with(
        Expected { source: 6, destination: 6 },
        |pair| {
            for family in BOTH {
                ensure!(pair.curl(&[&pair.url(family, "/{bytes/3,status/404}")])? == "200\n404");
                let host = if family == Family::V6 { "[::1]" } else { "127.0.0.1" };
                ensure!(pair.curl(&[&format!("http://{host}:9080/status/418")])? == "418");
            }
            Ok(())
        },
        // The log of the client's sidecar has those too.
        &|truth| truth.requests.retain(|(leg, outcome), _| leg.reporter != "source" || outcome.code != "418"),
    );
    other.kill()?;
    other.wait()?;
    let lost = lost(&pair)?;
    ensure!(lost == 2.0, "{lost} connections lost to others in the cgroup");
    summary
}

/// A symbolic link, a wrapper's name, a dynamic loader.
fn executables_by_other_names(_: &mut ()) -> Result<String> {
    let mut fixture = Fixture::new()?;
    let name = fixture.mesh.executable();
    let program = fixture.mesh.directory().join(&name);
    let linked = fixture.mesh.directory().join("linked");
    fs::create_dir_all(&linked)?;
    fs::hard_link(&program, linked.join("engine-1.40"))?;
    symlink("engine-1.40", linked.join(&name))?;
    let loader = ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"].map(PathBuf::from);
    let loader = loader.into_iter().find(|path| path.exists()).context("a dynamic loader")?;
    let mut clients = Vec::new();
    for (workload, options) in [
        ("linked", Options { executable: Some(name.clone()), ..Options::default() }),
        ("wrapped", Options { executable: Some(format!(".{name}-wrapped")), ..Options::default() }),
        ("loaded", Options { loader: Some(loader), ..Options::default() }),
    ] {
        clients.push(fixture.start(workload, options)?);
    }
    for (sidecar, expected) in fixture.sidecars[1..].iter().zip(["engine-1.40", "-wrapped", "ld-linux"]) {
        let executable = fs::read_link(format!("/proc/{}/exe", sidecar.pid()))?;
        ensure!(executable.to_string_lossy().contains(expected), "{} is {executable:?}", sidecar.workload().name);
    }
    fixture.observe(4)?;
    fixture.check(&[6, 2, 2, 2], |fixture| clients.iter().try_for_each(|client| fixture.ask(client)))
}

/// Open sockets stay in the cgroup where they were created, and so do those that they accept: for longer than programs
/// stay attached for a sidecar that has ended.
fn moved_to_another_cgroup(_: &mut ()) -> Result<String> {
    const LINGER: Duration = Duration::from_secs(75);
    let mut pair = Pair::new()?;
    let both = |pair: &Pair| -> Result<()> {
        BOTH.iter().try_for_each(|family| {
            ensure!(pair.curl(&[&pair.url(*family, "/bytes/10")])? == "200");
            Ok(())
        })
    };
    pair.check(Expected::both(2), both)?;
    for sidecar in &mut pair.sidecars {
        sidecar.move_to("elsewhere")?;
    }
    let observer = pair.observer()?;
    let moved = Instant::now();
    wait_until("it is attached where they are now", 3 * SETTLE_TIMEOUT, || {
        let log = observer.log();
        ensure!(log.matches("elsewhere, attached in").count() == 2, "{log}");
        Ok(())
    })?;
    let summary = pair.check(Expected::both(2), both)?;
    sleep((LINGER + Duration::from_secs(15)).saturating_sub(moved.elapsed()));
    // Connections between the sidecars may have been kept, those of applications are new.
    pair.check(Expected::both(2), both)?;
    Ok(summary)
}

/// Two pods by their cgroups, one of which claims to be the other.
fn another_pods_name(_: &mut ()) -> Result<String> {
    let mut fixture = Fixture::new()?;
    let pod = |fixture: &Fixture, digit: char| -> io::Result<PathBuf> {
        let [short, middle, long] = [8, 4, 12].map(|length| digit.to_string().repeat(length));
        let uid = format!("{short}-{middle}-{middle}-{middle}-{long}");
        let path = fixture.mesh.cgroup().join(format!("kubepods/burstable/pod{uid}/{}", digit.to_string().repeat(64)));
        fs::create_dir_all(&path)?;
        Ok(path)
    };
    let cgroups = [pod(&fixture, '1')?, pod(&fixture, '2')?];
    let [first, second] = cgroups;
    let victim = fixture.start("victim", Options { cgroup: Some(first), ..Options::default() })?;
    fixture.observe(2)?;
    let claimed = Some(Arc::clone(&victim));
    let impostor = fixture.start("impostor", Options { cgroup: Some(second), claimed, ..Options::default() })?;
    fixture.observer.as_mut().context("observed before")?.wait_attached(3)?;
    fixture.ask(&victim)?;
    fixture.ask(&impostor)?;
    let of = |name: &'static str| [("reporter", "source"), ("source_workload", name)];
    let total = |metrics: &harness::exposition::Exposition, name| metrics.sum("istio_requests_total", &of(name));
    let metrics = fixture.observer()?.wait(SETTLE_TIMEOUT, |metrics| total(metrics, "unknown") == Some(2.0))?;
    ensure!(total(&metrics, "victim") == Some(2.0), "{:?} requests of the victim", total(&metrics, "victim"));
    let problem = format!("says that it is in pod {}/{}", victim.namespace, victim.pod);
    let said = fixture.said()?;
    ensure!(said.contains(&problem), "{said}");
    Ok("2 requests each, under the victim's name and under none".to_owned())
}

/// At the source: for calls to a service's name, not for those to a pod's address or to a port without a service.
fn principals_are_of_connections_with_mutual_tls(_: &mut ()) -> Result<String> {
    let options = Options { passthrough_http_ports: vec![8080, 7070], ..Options::default() };
    let mut pair = Pair::with(options, Options::default())?;
    let other = http::serve(&pair.server, 7070)?;
    pair.check(Expected::both(6), |pair| {
        for family in BOTH {
            ensure!(pair.curl(&[&pair.url(family, "/bytes/1")])? == "200");
            for port in [8080, 7070] {
                let address = std::net::SocketAddr::new(pair.server.ip(family), port);
                ensure!(pair.curl(&[&format!("http://{address}/bytes/2")])? == "200");
            }
        }
        Ok(())
    })?;
    drop(other);
    let observer = pair.observer()?;
    let metrics = observer.scrape()?;
    let total = |labels: &[(&str, &str)]| metrics.sum("istio_requests_total", labels).unwrap_or(0.0);
    let (client, server) = (pair.client.spiffe(), pair.server.spiffe());
    for (labels, expected) in [
        (
            [("reporter", "source"), ("source_principal", client.as_str()), ("destination_principal", server.as_str())],
            2.0,
        ),
        ([("reporter", "source"), ("source_principal", "unknown"), ("destination_principal", "unknown")], 4.0),
    ] {
        ensure!(total(&labels) == expected, "{} instead of {expected} with {labels:?}", total(&labels));
    }
    Ok("2 with principals, 4 without".to_owned())
}
