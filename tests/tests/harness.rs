//! The harness itself: a mesh with real Envoy, without the observer.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{
    apps::{http, raw::Connection, tcp},
    cgroup,
    counts::{Counts, Leg},
    envoy_access_log::EnvoyAccessLog,
    mesh::{Family, Mesh, Protocol},
    net::{finish, run},
    sidecar::{Options, Sidecar},
};

const LOG_TIMEOUT: Duration = Duration::from_secs(5);

#[test]
fn client_and_server_over_mutual_tls_and_plaintext() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let (client, server, bare) = (mesh.workload("client")?, mesh.workload("server")?, mesh.workload("bare")?);
    let web = mesh.service("web", 80, &server, 8080, Protocol::Http)?;
    let any = mesh.service("any", 81, &server, 8081, Protocol::Auto)?;
    let echo = mesh.service("echo", 9000, &server, 9000, Protocol::Tcp)?;
    let plain = mesh.plaintext_service("plain", 80, &bare, 8080, Protocol::Http)?;
    let _servers = [http::serve(&server, 8080)?, http::serve(&server, 8081)?, http::serve(&bare, 8080)?];
    let _echo = tcp::echo(&server, 9000)?;
    let begun = std::time::Instant::now();
    let sidecars =
        [Sidecar::start(&mesh, &client, Options::default())?, Sidecar::start(&mesh, &server, Options::default())?];
    println!("two sidecars started in {:?}", begun.elapsed());
    let [mut at_client, mut at_server] = [EnvoyAccessLog::new(&sidecars[0])?, EnvoyAccessLog::new(&sidecars[1])?];
    let curl = |at_client: &mut EnvoyAccessLog,
                at_server: &mut EnvoyAccessLog,
                url: &str|
     -> Result<(String, Counts, String)> {
        let mut command = client.command("curl")?;
        command.args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "-m", "5", url]);
        let code = finish(&mut command, "")?;
        let mut counts = Counts::default();
        let lines = at_client.settled(1, LOG_TIMEOUT)?;
        at_client.count(&lines, &mut counts);
        ensure!(lines.iter().filter(|line| line.is_end()).count() == 1, "one line at the client: {lines:?}");
        let lines = at_server.settled(0, LOG_TIMEOUT)?;
        at_server.count(&lines, &mut counts);
        let peer = lines.last().map(|line| line.text("peer").to_owned()).unwrap_or_default();
        Ok((code, counts, peer))
    };
    let (source, destination) = (Leg::source("client"), Leg::destination("server"));
    for family in [Family::V4, Family::V6] {
        for service in [&web, &any] {
            let (code, counts, peer) = curl(&mut at_client, &mut at_server, &service.url(family, "/status/404"))?;
            ensure!(code == "404", "{family:?} {} answered {code}", service.name);
            ensure!(counts.count(&source, "404") == 1 && counts.count(&destination, "404") == 1, "{counts}");
            ensure!(peer == client.spiffe(), "{family:?}: peer {peer:?}");
        }
        let (code, counts, _) = curl(&mut at_client, &mut at_server, &plain.url(family, "/"))?;
        ensure!(code == "200" && counts.total(&source) == 1 && counts.total(&destination) == 0, "{code} {counts}");

        let mut connection = Connection::open(&client, echo.address(family))?;
        connection.send("ping")?;
        ensure!(connection.receive(4)? == b"ping", "echo over {family:?}");
        connection.finish_sending()?;
        connection.drain()?;
        drop(connection);
        let mut counts = Counts::default();
        for (access_log, name) in [(&mut at_client, "client"), (&mut at_server, "server")] {
            let lines = access_log.settled(1, LOG_TIMEOUT).context(name)?;
            access_log.count(&lines, &mut counts);
        }
        for leg in [&source, &destination] {
            let found = counts.connections.get(leg).with_context(|| format!("{leg}: {counts}"))?;
            ensure!((found.opened, found.closed, found.received, found.sent) == (1, 1, 4, 4), "{counts}");
        }
    }
    // Plaintext from outside the mesh, to the pod's own address.
    let mut command = bare.command("curl")?;
    command.args(["-sS", "-m", "5", &format!("http://{}:8080/bytes/3", server.ipv4), "-o", "/dev/null"]);
    finish(&mut command, "")?;
    let lines = at_server.settled(1, LOG_TIMEOUT)?;
    ensure!(lines[0].text("peer").is_empty() && lines[0].code() == "200", "{lines:?}");
    // Sidecars are user 1337 in a cgroup of their own.
    let status = fs::read_to_string(format!("/proc/{}/status", sidecars[0].pid()))?;
    ensure!(status.contains("Uid:\t1337\t1337\t1337\t1337"), "{status}");
    let processes = fs::read_to_string(sidecars[0].cgroup().join("cgroup.procs"))?;
    ensure!(processes.trim() == sidecars[0].pid().to_string(), "{processes}");
    Ok(())
}

#[test]
fn nothing_is_left_behind() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let name = mesh.name().to_owned();
    let client = mesh.workload("client")?;
    mesh.service("web", 80, &client, 8080, Protocol::Http)?;
    let mut sidecar = Sidecar::start(&mesh, &client, Options::default())?;
    sidecar.stop()?;
    sidecar.start_again()?;
    sidecar.replace_container()?;
    let pid = sidecar.pid();
    drop(client);
    drop(sidecar);
    drop(mesh);
    let left = run("ip", &["netns", "list"])?;
    ensure!(!left.contains(&format!("{name}-")), "{left}");
    ensure!(!cgroup::root()?.join("mesh-observer-test").join(&name).exists(), "cgroup of {name}");
    ensure!(!fs::exists(format!("/proc/{pid}"))?, "process {pid}");
    Ok(())
}

/// Set in the process that is to crash.
const CRASH: &str = "MESH_OBSERVER_TEST_CRASH";

/// The part of [`a_crash_is_swept`] that is started as a process of its own and killed; nothing without its variable.
#[test]
fn crashes() -> Result<()> {
    if env::var_os(CRASH).is_none() {
        return Ok(());
    }
    let mut mesh = Mesh::new()?;
    let client = mesh.workload("client")?;
    let _sidecar = Sidecar::start(&mesh, &client, Options::default())?;
    println!("{CRASH} {}", mesh.name());
    loop {
        sleep(Duration::from_secs(1));
    }
}

#[test]
fn a_crash_is_swept() -> Result<()> {
    let mut child = Command::new(env::current_exe()?)
        .args(["--exact", "crashes", "--nocapture"])
        .env(CRASH, "1")
        .stdout(Stdio::piped())
        .spawn()?;
    let output = BufReader::new(child.stdout.take().context("piped")?);
    let name = output
        .lines()
        .map_while(Result::ok)
        .find_map(|line| line.split_once(CRASH).map(|(_, name)| name.trim().to_owned()))
        .context("the child has made no mesh")?;
    let directory = cgroup::root()?.join("mesh-observer-test").join(&name);
    ensure!(directory.exists() && run("ip", &["netns", "list"])?.contains(&format!("{name}-client")), "{name}");
    let swept = Mesh::sweep()?;
    ensure!(!swept.contains(&name) && directory.exists(), "swept while its owner lived: {swept:?}");
    child.kill()?;
    child.wait()?;
    // Another test's start may sweep it first.
    Mesh::sweep()?;
    ensure!(!directory.exists(), "cgroup of {name}");
    ensure!(!run("ip", &["netns", "list"])?.contains(&format!("{name}-")), "namespaces of {name}");
    Ok(())
}
