//! The daemon: startup errors, logs, signals and exit.

use std::{
    env, fs,
    fs::File,
    net::TcpListener,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{self, Command, ExitStatus, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use harness::{
    exposition::Exposition,
    observer::{Observer, get},
    replay::{Capture, Replay},
    tools,
    wavefront::{Act, Proxy},
};

const EVENT_TIMEOUT: Duration = Duration::from_secs(60);
/// Limits the time until exit, with a margin for a busy machine.
const END: Duration = Duration::from_secs(15);

#[test]
fn a_pipe_without_a_reader_does_not_delay_exit() -> Result<()> {
    let fixture = Fixture::new("pipe")?;
    let (full, _reader) = fixture.full_pipe()?;
    let mut observer =
        fixture.observe(&["--interval", "1s", "--emit", &format!("wavefront+file:{}", full.display())])?;
    observer.wait_own(EVENT_TIMEOUT, |metrics| {
        metrics.sum("mesh_observer_emitter_queued_pushes", &[]).is_some_and(|waiting| waiting > 0.0)
    })?;
    let asked = Instant::now();
    signal(&observer, libc::SIGTERM);
    let status = ended(&mut observer, END)?;
    ensure!(status.success(), "{status}: {}", observer.log());
    println!("ended {:?} after SIGTERM", asked.elapsed());
    ensure!(observer.log().contains("could not be sent before the end"), "{}", observer.log());
    fixture.end()
}

#[test]
fn a_second_signal_exits_immediately() -> Result<()> {
    let fixture = Fixture::new("twice")?;
    let proxy = Proxy::start(&[], Act::Hang)?;
    let mut observer = fixture.observe(&["--interval", "1s", "--emit", &proxy.url()])?;
    observer.wait(EVENT_TIMEOUT, |_| !proxy.requests().is_empty())?;
    signal(&observer, libc::SIGINT);
    while !observer.log().contains("stopping") {
        sleep(Duration::from_millis(10));
    }
    let asked = Instant::now();
    signal(&observer, libc::SIGTERM);
    ended(&mut observer, Duration::from_secs(2))?;
    println!("ended {:?} after the second signal", asked.elapsed());
    fixture.end()
}

#[test]
fn sighup_reloads_the_peers() -> Result<()> {
    let fixture = Fixture::new("hangup")?;
    let service = "[[service]]\nhost = \"a.b\"\naddresses = [\"10.0.0.1\"]\n";
    let file = fixture.directory.join("observer.toml");
    let observer = fixture.observe(&[])?;
    for (text, said) in [
        (service.to_owned(), "names 1 services and 0 workloads\n"),
        (format!("interval = \"20s\"\n{service}"), "what else has changed needs a restart"),
        ("interval = 20".to_owned(), "the configuration stays as it was"),
        (service.to_owned(), "names 1 services and 0 workloads\n"),
    ] {
        fs::write(&file, text)?;
        let before = observer.log().len();
        signal(&observer, libc::SIGHUP);
        let end = Instant::now() + EVENT_TIMEOUT;
        while !observer.log()[before..].contains(said) {
            ensure!(Instant::now() < end, "no {said:?} in {}", observer.log());
            sleep(Duration::from_millis(20));
        }
    }
    ensure!(get(observer.address(), "/readyz")?.0 == 200);
    observer.stop()?;
    fixture.end()
}

#[test]
fn any_retry_after_is_survived() -> Result<()> {
    let fixture = Fixture::new("pause")?;
    let queue = fixture.directory.join("queue").display().to_string();
    for (answer, arguments) in [
        ("429 Too Many Requests\r\nretry-after: 18446744073709551615", &[] as &[&str]),
        ("406 Not Acceptable\r\nretry-after: 10000000000000000000", &["--queue-dir", &queue]),
        ("503 Later\r\nretry-after: Fri, 31 Dec 9999 23:59:59 GMT", &["--queue-dir", &queue]),
    ] {
        let proxy = Proxy::start(&[], Act::Answer(answer))?;
        let observer = fixture.observe(&[&["--interval", "1s", "--emit", &proxy.url()], arguments].concat())?;
        let pushed = |metrics: &Exposition| {
            metrics.sum("mesh_observer_emitter_errors_total", &[("kind", "push_back")]).is_some_and(|count| count > 0.0)
        };
        observer.wait_own(EVENT_TIMEOUT, pushed)?;
        sleep(Duration::from_secs(1));
        ensure!(get(observer.address(), "/healthz")?.0 == 200, "{answer}: {}", observer.log());
        observer.stop()?;
    }
    fixture.end()
}

#[test]
fn invalid_usage_is_refused_before_loading() -> Result<()> {
    let fixture = Fixture::new("usage")?;
    let tags: Vec<String> = (0..22).map(|number| format!("t{number} = \"x\"")).collect();
    let tags = fixture.file("tags", &format!("[wavefront]\ntags = {{ {} }}\n", tags.join(", ")))?;
    let file = "wavefront+file:/dev/null";
    for (arguments, said) in [
        (vec!["--emit", "wavefront+https://x"], "it needs an API token"),
        (vec!["--emit", "wavefront+https://x", "--wavefront-token-file", "/nonexistent"], "token file /nonexistent"),
        (vec!["--emit", file, "--config", &tags], "[wavefront] tags: 22 tags"),
        (vec!["--emit", file, "--emit", file], "emit: wavefront+file:/dev/null is there twice"),
        (vec!["--control-plane", "http://a:1/x", "--control-plane", "http://a:1/y"], "a:1 is there twice"),
        (vec!["--listn", "127.0.0.1:1"], "'--listen'"),
    ] {
        let began = Instant::now();
        let output = Command::new(tools::observer()?).arg("run").args(&arguments).output()?;
        let log = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(2) && log.contains(said), "{arguments:?}: {}: {log}", output.status);
        ensure!(began.elapsed() < Duration::from_secs(2) && !log.contains("listening"), "{:?}: {log}", began.elapsed());
    }
    let output = Command::new(tools::observer()?).args(["run", "--listen", "192.0.2.1:1"]).output()?;
    let log = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1) && log.contains("no such address"), "{log}");
    fixture.end()
}

#[test]
fn check_reports_the_errors_of_run() -> Result<()> {
    let fixture = Fixture::new("check")?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let taken = format!("listen = \"{}\"\n", taken.local_addr()?);
    for (name, text, obstacle) in [
        ("address", "listen = \"192.0.2.1:9469\"\n", "no such address"),
        ("taken", &taken, "taken by another process"),
        ("token", "emit = [\"wavefront+https://x\"]\n", "it needs an API token"),
        ("queue", "emit = [\"wavefront+http://x\"]\nqueue_dir = \"/proc/queue\"\n", "queue directory /proc/queue"),
        ("authorities", "control_plane_ca = \"/nonexistent\"\n", "CA file /nonexistent"),
    ] {
        let output = check(&["--config", &fixture.file(name, text)?])?;
        let report = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.code() == Some(1) && report.contains(obstacle), "{name}: {}\n{report}", output.status);
        ensure!(report.contains("cannot work here"), "{report}");
    }
    let observer = fixture.observe(&[])?;
    let address = observer.address().to_string();
    let queue = fixture.directory.join("deep/queue").display().to_string();
    let output = check(&["--listen", &address, "--emit", "wavefront+http://x", "--queue-dir", &queue])?;
    let report = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && report.contains(&format!("an observer listens on {address} now")), "{report}");
    ensure!(!fixture.directory.join("deep").exists(), "looking has made something");
    observer.stop()?;
    fixture.end()
}

#[test]
fn it_says_what_it_does_and_takes_what_templates_write() -> Result<()> {
    let fixture = Fixture::new("words")?;
    let mut command = Command::new(tools::observer()?);
    command.envs([("OBSERVER_EMIT", ""), ("OBSERVER_PIN", ""), ("OBSERVER_LISTN", "x"), ("OBSERVER_LOG", "INFO")]);
    let observer = fixture.launch(&mut command, &["--emit", "wavefront+file:/dev/null"])?;
    let log = observer.log();
    let start = log.lines().find(|line| line.contains("mesh observer")).context("no line at the start")?;
    for said in [" on Linux ", ": 0 sidecars, 0 gateways", "emitters: wavefront+file:/dev/null", "observer.toml"] {
        ensure!(start.contains(said), "no {said:?}: {start}");
    }
    ensure!(log.contains("OBSERVER_LISTN has no effect"), "{log}");
    observer.stop()?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let mut named = Command::new(tools::observer()?).args(["run", "--listen", &port.to_string()]).spawn()?;
    let end = Instant::now() + EVENT_TIMEOUT;
    while !get(([127, 0, 0, 1], port).into(), "/readyz").is_ok_and(|(status, _)| status == 200) {
        ensure!(Instant::now() < end, "not on port {port}");
        sleep(Duration::from_millis(50));
    }
    named.kill()?;
    named.wait()?;
    let catalogue = Command::new(tools::observer()?).args(["catalogue", "--format", "tsv", "pilot_xds_p*"]).output()?;
    let catalogue = String::from_utf8(catalogue.stdout)?;
    ensure!(catalogue.lines().skip(1).all(|line| line.contains("pilot_xds_p")) && catalogue.lines().count() > 1);
    fixture.end()
}

/// Targets are scraped independently of the push interval, and labelled with the node.
#[test]
fn the_interval_is_that_of_reports_alone() -> Result<()> {
    let fixture = Fixture::new("interval")?;
    let plane = Replay::start(&Capture::named("1.25.3/16-one-left")?)?;
    let mut command = Command::new(tools::observer()?);
    command.env("NODE_NAME", "node-7");
    let observer = fixture.launch(&mut command, &["--interval", "1h", "--control-plane", &plane.url()])?;
    let instance = plane.instance();
    let labels = [("instance", instance.as_str()), ("scraper_node", "node-7")];
    let began = Instant::now();
    observer.wait(Duration::from_secs(20), |metrics| metrics.sum("pilot_services", &labels) == Some(16.0))?;
    let scrapes =
        |metrics: &Exposition| metrics.sum("mesh_observer_control_plane_scrapes_total", &labels).unwrap_or_default();
    observer.wait(Duration::from_secs(30), |metrics| scrapes(metrics) >= 2.0)?;
    println!("two scrapes within {:?}", began.elapsed());
    observer.stop()?;
    fixture.end()
}

fn check(arguments: &[&str]) -> Result<Output> {
    Command::new(tools::observer()?).arg("check").args(arguments).output().context("observer check")
}

fn signal(observer: &Observer, signal: i32) {
    // SAFETY: no pointers; the child is not yet reaped, so the id is its own.
    unsafe { libc::kill(observer.pid().cast_signed(), signal) };
}

fn ended(observer: &mut Observer, within: Duration) -> Result<ExitStatus> {
    let end = Instant::now() + within;
    loop {
        match observer.status()? {
            Some(status) if status.signal().is_some() => bail!("{status}: {}", observer.log()),
            Some(status) => return Ok(status),
            None => ensure!(Instant::now() < end, "it has not ended within {within:?}:\n{}", observer.log()),
        }
        sleep(Duration::from_millis(10));
    }
}

/// Observers of nobody.
struct Fixture {
    directory: PathBuf,
}

impl Fixture {
    fn new(name: &str) -> Result<Self> {
        let directory = env::temp_dir().join(format!("mesh-daemon-{}-{name}", process::id()));
        fs::create_dir_all(&directory)?;
        Ok(Self { directory })
    }

    fn observe(&self, arguments: &[&str]) -> Result<Observer> {
        self.launch(&mut Command::new(tools::observer()?), arguments)
    }

    fn launch(&self, command: &mut Command, arguments: &[&str]) -> Result<Observer> {
        let nobody = format!("nobody-{}", process::id());
        Observer::launch(command, &self.directory, "", 0, &[&["--sidecar-exe", &nobody], arguments].concat())
    }

    fn file(&self, name: &str, text: &str) -> Result<String> {
        let path = self.directory.join(name);
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    }

    /// Returns a pipe that takes no more, and what keeps it open.
    fn full_pipe(&self) -> Result<(PathBuf, File)> {
        let path = self.directory.join("pipe");
        let made = Command::new(tools::require("mkfifo")?).arg(&path).stdin(Stdio::null()).status()?;
        ensure!(made.success(), "mkfifo: {made}");
        let mut ends = File::options().read(true).write(true).open(&path)?;
        ensure!(ends.metadata()?.len() == 0);
        // This process holds both ends: it fills the pipe except for one byte, and never reads.
        std::io::Write::write_all(&mut ends, &vec![b'\n'; 65_535])?;
        Ok((path, ends))
    }

    fn end(self) -> Result<()> {
        Ok(fs::remove_dir_all(self.directory)?)
    }
}
