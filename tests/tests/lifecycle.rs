//! Sidecars and observer start, stop, restart and crash around connections.

use std::{
    fs,
    io::Write,
    net::TcpStream,
    process::{Command, ExitCode, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{
    apps::{http, raw::Connection, tcp},
    cases,
    counts::{Connections, Counts},
    envoy_access_log::EnvoyAccessLog,
    exposition::Exposition,
    mesh::{Family, Mesh, Protocol},
    net::finish,
    observer::Observer,
    pair::{Expected, Pair, SETTLE_TIMEOUT},
    replay::Replay,
    sidecar::{Options, Sidecar},
    third_party_program::ThirdPartyProgram,
    tools,
    wait::wait_until,
};

const BOTH: [Family; 2] = [Family::V4, Family::V6];

fn main() -> ExitCode {
    cases::run(
        || Ok(()),
        cases![
            attached_before_the_sidecars_start,
            attached_between_connections,
            attached_during_connections,
            sidecar_restarted,
            container_replaced,
            sidecar_killed_with_open_connections,
            cgroup_removed_under_load,
            observer_restarted_under_load,
            observer_killed_leaves_nothing,
            one_processor,
            two_processors,
            third_party_program_that_shares,
            third_party_program_that_does_not_share,
            two_sidecars_in_one_cgroup,
            process_of_that_name_that_is_no_sidecar,
            default_executable_name,
            a_thousand_slow_clients,
        ],
    )
}

fn attached_before_the_sidecars_start(_: &mut ()) -> Result<String> {
    let mut mesh = Mesh::new()?;
    let server = mesh.workload("server")?;
    let web = mesh.service("web", 80, &server, 8080, Protocol::Http)?;
    let _application = http::serve(&server, 8080)?;
    let mut observer = Observer::start(&mesh, 0, &[])?;
    let begun = Instant::now();
    let sidecar = Sidecar::start(&mesh, &server, Options::default())?;
    let ready = begun.elapsed();
    observer.wait_attached(1)?;
    let attached = begun.elapsed();
    ensure!(attached < Duration::from_secs(1) + ready, "attached {attached:?} after the start");
    let mut access_log = EnvoyAccessLog::new(&sidecar)?;
    let mut command = server.command("curl")?;
    command.args(["-sS", "-m", "5", "-o", "/dev/null", &web.url(Family::V4, "/bytes/5")]);
    finish(&mut command, "")?;
    let mut truth = Counts::default();
    let lines = access_log.settled(2, SETTLE_TIMEOUT)?;
    access_log.count(&lines, &mut truth);
    agree(&observer, &Counts::default(), &truth)?;
    observer.stop()?;
    Ok(format!("Envoy ready after {ready:?}, programs attached after {attached:?}"))
}

fn attached_between_connections(_: &mut ()) -> Result<String> {
    let mut pair = Pair::unobserved(Options::default(), Options::default())?;
    request_both(&pair)?;
    // The sidecars' own connections to each other and to the application stay open: nothing may come of them.
    pair.observe(2)?;
    let before = pair.begin()?;
    ensure!(before == Counts::default(), "counted before anything happened: {before}");
    let mut connection = Connection::open(&pair.client, pair.sniffed.address(Family::V4))?;
    connection.send("GET /bytes/10 HTTP/1.1\r\nhost: sniffed\r\n\r\n")?;
    connection.receive_response()?;
    // The client's leg is new; the server's may be an old one of its pool.
    let (truth, _) = pair.truth(&Expected::both(1))?;
    let mut source = truth.clone();
    source.requests.retain(|(leg, _), _| leg.reporter == "source");
    agree_at_source(&pair, &before, &source)?;
    Ok(source.to_string())
}

/// A preexisting connection is parsed from its next message boundary or not at all; it is reported, and never
/// estimated.
fn attached_during_connections(_: &mut ()) -> Result<String> {
    let mut pair = Pair::unobserved(Options::default(), Options::default())?;
    let echo = tcp::echo(&pair.server, pair.tcp.target_port)?;
    let mut old_http = Connection::open(&pair.client, pair.web.address(Family::V4))?;
    let mut old_tcp = Connection::open(&pair.client, pair.tcp.address(Family::V6))?;
    let ask = |connection: &mut Connection| -> Result<()> {
        connection.send("GET /bytes/10 HTTP/1.1\r\nhost: web\r\n\r\n")?;
        connection.receive_response().map(|_| ()).context("response")
    };
    ask(&mut old_http)?;
    old_tcp.send("before")?;
    old_tcp.receive(6)?;
    pair.observe(2)?;
    let before = pair.begin()?;
    for _ in 0..3 {
        ask(&mut old_http)?;
    }
    old_tcp.send("after")?;
    old_tcp.receive(5)?;
    drop((old_http, old_tcp));
    pair.truth(&Expected { source: 4, destination: 4 })?;
    let observer = pair.observer()?;
    sleep(Duration::from_millis(500));
    let seen = observer.counts()?.since(&before);
    for leg in [pair.source(), pair.destination()] {
        ensure!(seen.total(&leg) <= 3, "more requests than were made: {seen}");
        let connections = seen.connections.get(&leg).cloned().unwrap_or_default();
        ensure!(connections.opened == 0, "opened before the observer was there: {seen}");
        ensure!(connections.received <= 11 && connections.sent <= 11, "more bytes than there were: {seen}");
    }
    let preexisting = observer.own("mesh_observer_connections_total", &[("outcome", "preexisting")])?;
    ensure!(preexisting >= 2.0, "{preexisting} connections counted as preexisting");
    drop(echo);
    Ok(format!("{preexisting} preexisting; {seen}"))
}

fn sidecar_restarted(_: &mut ()) -> Result<String> {
    let mut pair = Pair::new()?;
    pair.check(Expected::both(2), request_both).context("before")?;
    for sidecar in &mut pair.sidecars {
        sidecar.stop()?;
        sidecar.start_again()?;
    }
    wait_attached(&mut pair, 2)?;
    pair.check(Expected::both(2), request_both).context("after")?;
    total_of(&pair, 4)
}

fn container_replaced(_: &mut ()) -> Result<String> {
    let mut pair = Pair::new()?;
    pair.check(Expected::both(2), request_both).context("before")?;
    let series = count_series(&pair)?;
    for sidecar in &mut pair.sidecars {
        sidecar.replace_container()?;
    }
    wait_attached(&mut pair, 2)?;
    pair.check(Expected::both(2), request_both).context("after")?;
    ensure!(count_series(&pair)? == series, "the series of the pod are not continued");
    total_of(&pair, 4)
}

/// A killed Envoy logs nothing: the test's own counts are expected.
fn sidecar_killed_with_open_connections(_: &mut ()) -> Result<String> {
    let mut pair = Pair::new()?;
    let echo = tcp::echo(&pair.server, pair.tcp.target_port)?;
    let before = pair.begin()?;
    let mut connections = Vec::new();
    for family in BOTH {
        let mut connection = Connection::open(&pair.client, pair.tcp.address(family))?;
        connection.send("alive")?;
        connection.receive(5)?;
        connections.push(connection);
    }
    pair.sidecars[0].kill()?;
    for connection in &mut connections {
        connection.drain()?;
    }
    // Until the application closes its end too, the kernel keeps the dead sidecar's end half open.
    drop(connections);
    let mut truth = Counts::default();
    for leg in [pair.source(), pair.destination()] {
        truth.connections.insert(leg, Connections { opened: 2, closed: 2, received: 10, sent: 10 });
    }
    let summary = pair.agree(&before, &truth);
    drop(echo);
    summary
}

fn cgroup_removed_under_load(_: &mut ()) -> Result<String> {
    let mut pair = Pair::new()?;
    pair.check(Expected::both(2), request_both).context("before")?;
    let mut load = start_load(&pair, 3)?;
    sleep(Duration::from_secs(1));
    pair.sidecars[1].remove_container()?;
    wait_attached(&mut pair, 1)?;
    load.kill()?;
    load.wait()?;
    let observer = pair.observer()?;
    let first = observer.counts()?;
    ensure!(first.total(&pair.destination()) > 2, "the last counts of the ended sidecar are gone: {first}");
    sleep(Duration::from_millis(500));
    ensure!(observer.counts()?.total(&pair.destination()) == first.total(&pair.destination()), "still counting");
    pair.sidecars[1].replace_container()?;
    wait_attached(&mut pair, 2)?;
    pair.check(Expected::both(2), request_both).context("after")
}

/// Stopping and starting costs Envoy nothing: no request fails.
fn observer_restarted_under_load(_: &mut ()) -> Result<String> {
    let mut pair = Pair::new()?;
    let load = start_load(&pair, 4)?;
    sleep(Duration::from_secs(1));
    pair.observer.take().context("it observed")?.stop()?;
    sleep(Duration::from_millis(300));
    pair.observe(2)?;
    let output = load.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && !said.contains("Socket errors") && !said.contains("Non-2xx"), "{said}");
    sleep(Duration::from_millis(300));
    // On the old connections of the load, nothing but whole requests with the right code.
    let seen = pair.observer()?.counts()?;
    let wrong: Vec<_> =
        seen.requests.keys().filter(|(_, outcome)| outcome.code != "200" && outcome.code != "0").collect();
    ensure!(wrong.is_empty(), "{wrong:?}");
    let mut connection = Connection::open(&pair.client, pair.plaintext.address(Family::V4))?;
    let before = pair.begin()?;
    connection.send("GET /bytes/10 HTTP/1.1\r\nhost: plaintext\r\n\r\n")?;
    connection.receive_response()?;
    drop(connection);
    let (truth, _) = pair.truth(&Expected { source: 1, destination: 0 })?;
    pair.agree(&before, &truth)
}

/// Without `--pin` nothing outlives the process, however it ends.
fn observer_killed_leaves_nothing(_: &mut ()) -> Result<String> {
    let mut pair = Pair::new()?;
    let witness = ThirdPartyProgram::attach(pair.sidecars[0].cgroup(), false)?;
    let during = witness.programs()?;
    ensure!(during > 1, "{during} programs on the cgroup");
    // Dropped without being asked to stop, it is killed.
    pair.observer = None;
    wait_until("nothing is left on the cgroup", SETTLE_TIMEOUT, || {
        let programs = witness.programs()?;
        ensure!(programs == 1, "{programs} programs, one of them the witness");
        Ok(())
    })?;
    request_both(&pair)?;
    Ok(format!("{during} programs while it ran, 1 (the witness) after"))
}

fn one_processor(_: &mut ()) -> Result<String> {
    on_processors("0")
}

fn two_processors(_: &mut ()) -> Result<String> {
    on_processors("0,1")
}

fn on_processors(list: &str) -> Result<String> {
    tools::require("taskset")?;
    let mut pair = Pair::new()?;
    for sidecar in &pair.sidecars {
        finish(Command::new("taskset").args(["-acp", list, &sidecar.pid().to_string()]), "")?;
    }
    pair.check(Expected::both(2000), |pair| {
        for family in BOTH {
            let mut command = pair.client.command("taskset")?;
            command.args(["-c", list, "h2load", "--h1", "-n1000", "-c8", "-m1", &pair.url(family, "/bytes/2000")]);
            let said = finish(&mut command, "")?;
            ensure!(said.contains("1000 succeeded"), "{said}");
        }
        Ok(())
    })
}

fn third_party_program_that_shares(_: &mut ()) -> Result<String> {
    let mut pair = Pair::unobserved(Options::default(), Options::default())?;
    let third_party = ThirdPartyProgram::attach(pair.sidecars[0].cgroup(), false)?;
    pair.observe(2)?;
    let summary = pair.check(Expected::both(2), request_both)?;
    pair.observer.take().context("it observed")?.stop()?;
    ensure!(third_party.programs()? == 1, "{} programs are left", third_party.programs()?);
    Ok(summary)
}

/// It is logged, the other sidecar is observed, and the third-party program is not touched.
fn third_party_program_that_does_not_share(_: &mut ()) -> Result<String> {
    let mut pair = Pair::unobserved(Options::default(), Options::default())?;
    let third_party = ThirdPartyProgram::attach(pair.sidecars[0].cgroup(), true)?;
    pair.observe(1)?;
    request_both(&pair)?;
    ensure!(third_party.programs()? == 1, "{} programs on their cgroup", third_party.programs()?);
    let observer = pair.observer()?;
    let unattached = observer.own("mesh_observer_sidecars_unattached", &[])?;
    ensure!(unattached == 1.0, "{unattached} sidecars said to be unattached");
    let cgroup = pair.sidecars[0].cgroup().display().to_string();
    let said = observer.log();
    let line = said
        .lines()
        .filter(|line| line.contains("WARN") || line.contains("ERROR"))
        .find(|line| line.contains(&cgroup) || line.contains(&pair.client.pod));
    let line = line.with_context(|| format!("nothing is said of the cgroup:\n{said}"))?;
    wait_until("the other sidecar is observed", SETTLE_TIMEOUT, || {
        let seen = observer.counts()?;
        ensure!(seen.total(&pair.destination()) == 2, "{seen}");
        Ok(())
    })?;
    ensure!(observer.counts()?.total(&pair.source()) == 0, "{}", observer.counts()?);
    Ok(line.to_owned())
}

fn two_sidecars_in_one_cgroup(_: &mut ()) -> Result<String> {
    let mut mesh = Mesh::new()?;
    let shared = mesh.cgroup().join("shared");
    fs::create_dir_all(&shared)?;
    let (one, other) = (mesh.workload("one")?, mesh.workload("other")?);
    let web = mesh.service("web", 80, &other, 8080, Protocol::Http)?;
    let _application = http::serve(&other, 8080)?;
    let options = Options { cgroup: Some(shared), ..Options::default() };
    let sidecars = [&one, &other]
        .into_iter()
        .map(|workload| Sidecar::start(&mesh, workload, options.clone()))
        .collect::<Result<Vec<_>>>()?;
    let mut access_logs = sidecars.iter().map(EnvoyAccessLog::new).collect::<Result<Vec<_>>>()?;
    let observer = Observer::start(&mesh, 2, &[])?;
    for family in BOTH {
        let mut command = one.command("curl")?;
        command.args(["-sS", "-m", "5", "-o", "/dev/null", &web.url(family, "/bytes/[1-5]")]);
        finish(&mut command, "")?;
    }
    let mut truth = Counts::default();
    for access_log in &mut access_logs {
        let lines = access_log.settled(10, SETTLE_TIMEOUT)?;
        access_log.count(&lines, &mut truth);
    }
    agree(&observer, &Counts::default(), &truth)?;
    observer.stop()?;
    Ok(truth.to_string())
}

/// `sleep` under the sidecars' name, in a pod's cgroup, without the injector's environment and without its ports.
fn process_of_that_name_that_is_no_sidecar(_: &mut ()) -> Result<String> {
    let mut pair = Pair::unobserved(Options::default(), Options::default())?;
    let program = pair.mesh.directory().join("other").join(pair.mesh.executable());
    fs::create_dir_all(program.parent().context("a directory")?)?;
    fs::copy(tools::require("sleep")?, &program)?;
    let mut command = pair.outside.command(&program.display().to_string())?;
    let mut impostor = command.arg("60").env_clear().spawn()?;
    pair.observe(2)?;
    let summary = pair.check(Expected::both(2), request_both);
    let check = Command::new(tools::observer()?)
        .args(["check", "--sidecar-exe", &pair.mesh.executable()])
        .stdin(Stdio::null())
        .output()?;
    impostor.kill()?;
    impostor.wait()?;
    let said = String::from_utf8_lossy(&check.stdout);
    ensure!(check.status.success(), "check: {}\n{said}", check.status);
    ensure!(said.contains(&impostor.id().to_string()), "check says nothing of process {}:\n{said}", impostor.id());
    summary
}

/// Nothing but `observer run`: Envoy is called `envoy`.
fn default_executable_name(_: &mut ()) -> Result<String> {
    let named = Options { executable: Some("envoy".to_owned()), ..Options::default() };
    let mut pair = Pair::unobserved(named.clone(), named)?;
    pair.observer = Some(Observer::start_with(pair.mesh.directory(), &pair.mesh.observer_tables(), 2, &[])?);
    pair.check(Expected::both(2), request_both)
}

/// Clients without a request, with half of one, or with a response of megabytes that they do not read, keep nobody from
/// `/metrics` and hold few expositions in memory, which are new ones every second.
fn a_thousand_slow_clients(_: &mut ()) -> Result<String> {
    const CLIENTS: usize = 1000;
    const PLANES: usize = 5;
    const SAMPLES: usize = 11_000;
    /// Limit: at most five expositions are sent at once; the rest is what 64 connections have buffered.
    const MOST_BYTES: u64 = 48 << 20;
    /// Limit: 64 of clients, the scrape of the test itself, and those to the control planes.
    const MOST_CONNECTIONS: usize = 64 + 1 + 2 * PLANES;
    let mesh = Mesh::new()?;
    let lines: String = (0..SAMPLES).map(|number| format!("pilot_x{{n=\"{number:060}\"}} {number}\n")).collect();
    let metrics =
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n{lines}", lines.len());
    let planes = (0..PLANES).map(|_| Replay::start_with(metrics.clone().into_bytes())).collect::<Result<Vec<_>>>()?;
    let urls: Vec<String> = planes.iter().map(Replay::url).collect();
    let pages = urls.iter().flat_map(|url| ["--control-plane", url]);
    let arguments: Vec<&str> = ["--scrape-interval", "2s"].into_iter().chain(pages).collect();
    let observer = Observer::start(&mesh, 0, &arguments)?;
    let up = |metrics: &Exposition| metrics.sum("mesh_observer_control_plane_up", &[]) == Some(PLANES as f64);
    observer.wait(Duration::from_secs(60), up)?;
    let resident = || -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", observer.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
    };
    for _ in 0..10 {
        observer.scrape()?;
    }
    let before = resident()?;
    open_files(2 * CLIENTS as u64)?;
    let asked = ["", "GET /metrics HTTP/1.1\r\nhost: ", "GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n"];
    let mut clients = Vec::new();
    let files = || Ok::<_, std::io::Error>(fs::read_dir(format!("/proc/{}/fd", observer.pid()))?.count());
    let files_before = files()?;
    let mut most = 0;
    for (number, half) in asked.into_iter().cycle().take(CLIENTS).enumerate() {
        let mut client = TcpStream::connect(observer.address())?;
        client.write_all(half.as_bytes())?;
        clients.push(client);
        if number % 50 == 49 {
            observer.own_families().with_context(|| format!("with {} slow clients", clients.len()))?;
            // Time for new expositions.
            sleep(Duration::from_millis(600));
            most = most.max(resident()?);
            let more = files()?.saturating_sub(files_before);
            ensure!(more <= MOST_CONNECTIONS, "{more} connections with {} clients", clients.len());
        }
    }
    let grown = most.saturating_sub(before);
    ensure!(grown <= MOST_BYTES, "{grown} bytes more with {CLIENTS} clients than with none");
    // An exposition may be as old as the collection interval.
    let closed =
        |metrics: &Exposition| metrics.sum("mesh_observer_scrape_connections_refused_total", &[]).unwrap_or_default();
    ensure!(lines.len() > 800_000, "{} bytes a page", lines.len());
    let metrics = observer
        .wait_own(SETTLE_TIMEOUT, |metrics| closed(metrics) >= 100.0)
        .context("too few were closed to make room; the others' time was up")?;
    let closed = closed(&metrics);
    drop(clients);
    observer.scrape()?;
    observer.stop()?;
    Ok(format!("{closed} closed, {} KiB more", grown >> 10))
}

/// Raises this program's limit of open files, if allowed.
fn open_files(wanted: u64) -> Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes the structure during the call.
    ensure!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0, "getrlimit");
    ensure!(limit.rlim_max >= wanted, "no more than {} files may be open here, {wanted} are needed", limit.rlim_max);
    limit.rlim_cur = limit.rlim_cur.max(wanted);
    // SAFETY: the kernel reads the structure during the call.
    ensure!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } == 0, "setrlimit");
    Ok(())
}

fn request_both(pair: &Pair) -> Result<()> {
    for family in BOTH {
        let code = pair.curl(&[&pair.url(family, "/bytes/10")])?;
        ensure!(code == "200", "{code}");
    }
    Ok(())
}

fn start_load(pair: &Pair, seconds: u32) -> Result<std::process::Child> {
    let mut command = pair.client.command("wrk")?;
    command.args(["-t1", "-c8", &format!("-d{seconds}s"), &pair.url(Family::V4, "/bytes/1024")]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("wrk")
}

fn wait_attached(pair: &mut Pair, sidecars: usize) -> Result<()> {
    pair.observer.as_mut().context("no observer")?.wait_attached(sidecars)
}

/// Returns the number of request series with both counts.
fn count_series(pair: &Pair) -> Result<usize> {
    let observer = pair.observer()?;
    Ok(observer.scrape()?.samples("istio_requests_total").count())
}

fn total_of(pair: &Pair, count: u64) -> Result<String> {
    let observer = pair.observer()?;
    let seen = observer.counts()?;
    ensure!(seen.total(&pair.source()) == count && seen.total(&pair.destination()) == count, "{seen}");
    Ok(seen.to_string())
}

fn agree(observer: &Observer, before: &Counts, truth: &Counts) -> Result<()> {
    wait_until("the observer counts like Envoy's access log", SETTLE_TIMEOUT, || {
        Ok(truth.differences(&observer.counts()?.since(before)).none()?)
    })
}

fn agree_at_source(pair: &Pair, before: &Counts, truth: &Counts) -> Result<()> {
    let observer = pair.observer()?;
    wait_until("the observer counts like Envoy's access log at source", SETTLE_TIMEOUT, || {
        let mut seen = observer.counts()?.since(before);
        seen.requests.retain(|(leg, _), _| leg.reporter == "source");
        Ok(truth.differences(&seen).none()?)
    })
}
