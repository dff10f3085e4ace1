//! Exhausted limits: counts stay exact, or losses are counted; a limit is logged once, with the remedy, and
//! counting resumes by itself when there is room again.

use std::{
    env, fs,
    path::Path,
    process::{self, Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{
    apps::{http, raw::Server, tcp},
    cases,
    counts::{Connections, Counts, Leg, Requests},
    exposition::Exposition,
    memory_cgroup::MemoryCgroup,
    mesh::{Family, Mesh, Workload},
    net::{finish, run},
    observer::{Observer, counts},
    pair::Pair,
    sidecar::Options,
    stand_in::{Stand, StandIn, played},
    third_party_program::ThirdPartyProgram,
    tools,
};

const COUNT_TIMEOUT: Duration = Duration::from_secs(30);
const WEB: u16 = 8080;
const ECHO: u16 = 9000;
const LOSSES: &str = "mesh_observer_uncounted_total";

fn main() -> ExitCode {
    if let Some(code) = played() {
        return code;
    }
    cases::run(
        || Ok(()),
        cases![
            more_series_than_there_is_room_for,
            more_open_calls_than_there_is_room_for,
            no_option_memory_for_sockets,
            as_many_third_party_programs_as_the_kernel_allows,
            too_little_memory_to_start,
            a_full_disk_under_the_output_file,
        ],
    )
}

/// Totals stay exact, some of them without labels; and there is room again when sidecars have ended.
fn more_series_than_there_is_room_for(_: &mut ()) -> Result<String> {
    const ROOM: usize = 5;
    let fixture = Fixture::new()?;
    let mut observer = fixture.observe(&format!("max_series = {ROOM}\n"), 0)?;
    let mut truth = Counts::default();
    let mut sidecars = fixture.sidecars("crowd", 6)?;
    observer.wait_attached(sidecars.len())?;
    for sidecar in &mut sidecars {
        sidecar.ask(WEB, 4, &mut truth)?;
        sidecar.echo(ECHO, 300, &mut truth)?;
    }
    let (requests, connections) = sums(&truth);
    let metrics = observer.wait(COUNT_TIMEOUT, |metrics| {
        counts(metrics).is_ok_and(|seen| sums(&seen) == (requests.clone(), connections.clone()))
    })?;
    let seen = counts(&metrics)?;
    let apart = seen.requests.keys().filter(|(leg, _)| leg.reporter == "destination").count()
        + seen.connections.keys().filter(|leg| leg.reporter == "destination").count();
    ensure!(apart == ROOM, "{apart} series are held apart instead of {ROOM}: {seen}");
    for (key, counted) in seen.requests.iter().filter(|((leg, _), _)| leg.reporter == "destination") {
        ensure!(truth.requests[key].count == counted.count, "{seen}");
    }
    let overflowed = metrics.sum(LOSSES, &[("reason", "series_full")]).unwrap_or(0.0);
    ensure!(overflowed >= 1.0, "nothing is said to have overflowed");
    said_once(&observer, "raise max_series", "series_full")?;

    sidecars.iter_mut().try_for_each(StandIn::remove_container)?;
    observer.wait_own(COUNT_TIMEOUT, |metrics| metrics.sum("mesh_observer_series_in_use", &[]) == Some(0.0))?;
    let mut late = fixture.stand.start("late", "late", &fixture.pod)?;
    observer.wait_attached(1)?;
    let mut own = Counts::default();
    late.ask(WEB, 4, &mut own)?;
    let leg = Leg::destination("late");
    observer.wait(COUNT_TIMEOUT, |metrics| counts(metrics).is_ok_and(|seen| seen.total(&leg) == own.total(&leg)))?;
    observer.stop()?;
    Ok(format!("{apart} series apart, {overflowed} times none was free; {seen}"))
}

/// Each call is counted once: in Istio's families, or as one without room.
fn more_open_calls_than_there_is_room_for(_: &mut ()) -> Result<String> {
    const CALLS: u64 = 300;
    tools::require("h2load")?;
    let pair = Pair::unobserved(Options::default(), Options::default())?;
    let configuration = format!("max_open_calls = 8\n{}", pair.mesh.observer_tables());
    let executable = pair.mesh.executable();
    let observer = Observer::start_with(pair.mesh.directory(), &configuration, 2, &["--sidecar-exe", &executable])?;
    let mut command = pair.client.command("h2load")?;
    // All are open at once.
    command.args([&format!("-n{CALLS}"), "-c1", &format!("-m{CALLS}"), &pair.url(Family::V4, "/delay/500")]);
    let said = finish(&mut command, "")?;
    ensure!(said.contains(&format!("{CALLS} succeeded")), "{said}");
    let stream_map_full = |metrics: &Exposition| {
        metrics.sum("mesh_observer_requests_total", &[("outcome", "stream_map_full")]).unwrap_or(0.0)
    };
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let metrics = observer.wait(COUNT_TIMEOUT, |metrics| {
        counts(metrics).is_ok_and(|seen| {
            let (source, destination) = (seen.total(&pair.source()), seen.total(&pair.destination()));
            destination == CALLS && source as f64 + stream_map_full(metrics) == CALLS as f64
        })
    })?;
    let lost = stream_map_full(&metrics);
    ensure!(lost >= 1.0, "there was room for all of them");
    ensure!(metrics.sum("mesh_observer_parser_desyncs_total", &[]) == Some(0.0), "{}", observer.health()?);
    observer.wait_own(COUNT_TIMEOUT, |_| observer.log().contains("stream_map_full"))?;
    said_once(&observer, "raise max_open_calls", "stream_map_full")?;
    observer.stop()?;
    Ok(format!("no room for {lost} of {CALLS}"))
}

/// Each connection that is not counted is counted as lost, and the next one after there is room again is exact.
fn no_option_memory_for_sockets(_: &mut ()) -> Result<String> {
    const CONNECTIONS: u64 = 5;
    let fixture = Fixture::new()?;
    let mut observer = fixture.observe("", 0)?;
    let mut sidecar = fixture.stand.start("poor", "poor", &fixture.pod)?;
    observer.wait_attached(1)?;
    let mut uncounted = Counts::default();
    {
        let _poverty = OptionMemory::limit(&fixture.pod, 1024)?;
        for _ in 0..CONNECTIONS {
            sidecar.echo(ECHO, 100, &mut uncounted)?;
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    observer
        .wait_own(COUNT_TIMEOUT, |metrics| metrics.sum(LOSSES, &[("reason", "storage")]) == Some(CONNECTIONS as f64))?;
    ensure!(observer.counts()? == Counts::default(), "{}", observer.counts()?);
    said_once(&observer, "raise the sysctl net.core.optmem_max", "storage")?;
    let mut truth = Counts::default();
    sidecar.echo(ECHO, 100, &mut truth)?;
    observer.wait(COUNT_TIMEOUT, |metrics| counts(metrics).is_ok_and(|seen| truth.differences(&seen).is_empty()))?;
    observer.stop()?;
    Ok(format!("{CONNECTIONS} lost, then {truth}"))
}

/// It is logged once; the others are observed; and it is observed as soon as one of them is detached.
fn as_many_third_party_programs_as_the_kernel_allows(_: &mut ()) -> Result<String> {
    const MOST: usize = 64;
    let fixture = Fixture::new()?;
    let mut crowded = fixture.stand.start("crowded", "crowded", &fixture.pod)?;
    let mut free = fixture.stand.start("free", "free", &fixture.pod)?;
    let mut third_party =
        (0..MOST).map(|_| ThirdPartyProgram::attach(crowded.cgroup(), false)).collect::<Result<Vec<_>>>()?;
    let mut observer = fixture.observe("", 1)?;
    let unattached = observer.own("mesh_observer_sidecars_unattached", &[])?;
    ensure!(unattached == 1.0, "{unattached} sidecars said to be unattached");
    let (mut truth, mut unseen) = (Counts::default(), Counts::default());
    crowded.echo(ECHO, 100, &mut unseen)?;
    free.echo(ECHO, 100, &mut truth)?;
    observer.wait(COUNT_TIMEOUT, |metrics| counts(metrics).is_ok_and(|seen| truth.differences(&seen).is_empty()))?;
    ensure!(third_party[0].programs()? == MOST, "theirs were touched");

    third_party.pop();
    observer.wait_attached(2)?;
    crowded.echo(ECHO, 100, &mut truth)?;
    observer.wait(COUNT_TIMEOUT, |metrics| counts(metrics).is_ok_and(|seen| truth.differences(&seen).is_empty()))?;
    said_once(
        &observer,
        "64 programs of its kind are attached there, the most that the kernel allows",
        "bpftool cgroup tree",
    )?;
    observer.stop()?;
    Ok(truth.to_string())
}

/// A million series take gigabytes.
fn too_little_memory_to_start(_: &mut ()) -> Result<String> {
    let memory = MemoryCgroup::new(Some(512 << 20))?;
    let configuration = env::temp_dir().join(format!("mesh-limits-{}.toml", process::id()));
    fs::write(&configuration, "max_series = 1000000\n")?;
    let mut command = memory.command()?;
    let nobody = format!("nobody-{}", process::id());
    command.arg(tools::observer()?).args(["run", "--listen", "127.0.0.1:0", "--sidecar-exe", &nobody, "--config"]);
    command.arg(&configuration);
    let output = command.stdin(Stdio::null()).output()?;
    fs::remove_file(&configuration)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "the observer ended with {}: {said}", output.status);
    ensure!(said.contains("the memory limit of the observer's cgroup is too low"), "{said}");
    Ok(said.trim().to_owned())
}

/// Excess points are dropped and counted, no line is cut, and output resumes when there is room.
fn a_full_disk_under_the_output_file(_: &mut ()) -> Result<String> {
    let directory = env::temp_dir().join(format!("mesh-limits-{}", process::id()));
    let disk = directory.join("disk");
    fs::create_dir_all(&disk)?;
    // A private file system, which ends with the observer.
    let mut command = Command::new(tools::require("unshare")?);
    let mount = "mount -t tmpfs -o size=64k mesh-observer-test \"$0\" && exec \"$@\"";
    command.args(["--mount", "sh", "-c", mount]).arg(&disk).arg(tools::observer()?);
    let nobody = format!("nobody-{}", process::id());
    let file = disk.join("lines");
    let url = format!("wavefront+file:{}", file.display());
    let arguments = ["--interval", "200ms", "--sidecar-exe", &nobody, "--emit", &url];
    let observer = Observer::launch(&mut command, &directory, "", 0, &arguments)?;
    let dropped =
        |metrics: &Exposition| metrics.sum("mesh_observer_emitter_points_dropped_total", &[("reason", "write")]);
    observer.wait_own(COUNT_TIMEOUT, |metrics| dropped(metrics) > Some(0.0))?;
    run(
        "nsenter",
        &[
            "--mount",
            "--target",
            &observer.pid().to_string(),
            "mount",
            "-o",
            "remount,size=8m",
            &disk.display().to_string(),
        ],
    )?;
    observer.wait_own(COUNT_TIMEOUT, |_| observer.log().contains("sending again"))?;
    said_once(&observer, "No space left on device", "lines: ")?;
    let sent = "mesh_observer_emitter_points_sent_total";
    let metrics = observer.wait_own(COUNT_TIMEOUT, |metrics| metrics.sum(sent, &[]) > Some(0.0))?;
    let seen = format!("/proc/{}/root{}", observer.pid(), file.display());
    let text = fs::read_to_string(&seen).with_context(|| seen.clone())?;
    ensure!(text.ends_with('\n'), "the last line does not end");
    let cut = text.lines().find(|line| !line.starts_with('"') || !line.ends_with('"'));
    ensure!(cut.is_none(), "cut: {cut:?}");
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let lines = text.lines().count() as f64;
    ensure!(metrics.sum(sent, &[]) <= Some(lines), "{lines} lines, but {:?} points sent", metrics.sum(sent, &[]));
    let summary = format!("{lines} lines kept, {} points dropped", dropped(&metrics).unwrap_or(0.0));
    observer.stop()?;
    fs::remove_dir_all(&directory)?;
    Ok(summary)
}

/// Applications, and the source of sidecars.
struct Fixture {
    _servers: [Server; 2],
    stand: Stand,
    pod: std::sync::Arc<Workload>,
    mesh: Mesh,
}

impl Fixture {
    fn new() -> Result<Self> {
        let mut mesh = Mesh::new()?;
        let pod = mesh.workload("pod")?;
        Ok(Self { _servers: [http::serve(&pod, WEB)?, tcp::echo(&pod, ECHO)?], stand: Stand::new(&mesh)?, pod, mesh })
    }

    fn observe(&self, configuration: &str, sidecars: usize) -> Result<Observer> {
        let configuration = format!("tcp_ports = [{ECHO}]\n{configuration}");
        let arguments = ["--sidecar-exe", self.stand.name(), "--interval", "200ms"];
        Observer::start_with(self.mesh.directory(), &configuration, sidecars, &arguments)
    }

    fn sidecars(&self, name: &str, number: usize) -> Result<Vec<StandIn>> {
        let start = |number| self.stand.start(&format!("{name}-{number}"), &format!("{name}-{number}"), &self.pod);
        (0..number).map(start).collect()
    }
}

/// Returns all requests and all connections, whomever they are counted for.
fn sums(counts: &Counts) -> (Requests, Connections) {
    let requests = counts.requests.values().fold(Requests::default(), |sum, requests| Requests {
        count: sum.count + requests.count,
        request_bytes: sum.request_bytes + requests.request_bytes,
        response_bytes: sum.response_bytes + requests.response_bytes,
        ..sum
    });
    let connections = counts.connections.values().fold(Connections::default(), |sum, connections| Connections {
        opened: sum.opened + connections.opened,
        closed: sum.closed + connections.closed,
        received: sum.received + connections.received,
        sent: sum.sent + connections.sent,
    });
    (requests, connections)
}

/// Checks that the log has one line with this remedy and with its cause.
fn said_once(observer: &Observer, remedy: &str, about: &str) -> Result<()> {
    let log = observer.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(remedy)).collect();
    ensure!(
        lines.len() == 1 && lines[0].contains(about),
        "{remedy:?} of {about:?} is said {} times:\n{log}",
        lines.len()
    );
    Ok(())
}

/// The limit of option memory per socket, lowered until dropped: in the pod alone where the kernel allows that.
struct OptionMemory<'a> {
    pod: &'a Workload,
    before: String,
    everywhere: bool,
}

const OPTION_MEMORY: &str = "/proc/sys/net/core/optmem_max";

impl<'a> OptionMemory<'a> {
    fn limit(pod: &'a Workload, bytes: u32) -> Result<Self> {
        let everywhere = !pod.net.enter(|| Path::new(OPTION_MEMORY).exists())?;
        let mut limit = Self { pod, before: String::new(), everywhere };
        limit.before = limit.inside(|| fs::read_to_string(OPTION_MEMORY))?;
        limit.inside(|| fs::write(OPTION_MEMORY, bytes.to_string()))?;
        Ok(limit)
    }

    fn inside<T: Send>(&self, action: impl FnOnce() -> std::io::Result<T> + Send) -> Result<T> {
        let done = if self.everywhere { action() } else { self.pod.net.enter(action)? };
        done.context(OPTION_MEMORY)
    }
}

impl Drop for OptionMemory<'_> {
    fn drop(&mut self) {
        let before = self.before.clone();
        if let Err(error) = self.inside(|| fs::write(OPTION_MEMORY, before)) {
            eprintln!("{error:#}");
        }
    }
}
