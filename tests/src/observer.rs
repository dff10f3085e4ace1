//! The observer under test: the release binary, started as an operator starts it.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{self, Child, Command, ExitStatus, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    counts::{Counts, Leg, Messages, Outcome, Requests},
    exposition::{Exposition, Sample},
    mesh::Mesh,
    tools,
    wait::wait_until,
};

/// Limits the time until the observer is ready, or has ended. In an emulated machine the verifier alone takes a minute.
const START_STOP_TIMEOUT: Duration = Duration::from_secs(180);

/// A running `observer run`; killed when dropped without [`Observer::stop`].
#[derive(Debug)]
pub struct Observer {
    process: Child,
    address: SocketAddr,
    log: PathBuf,
}

impl Observer {
    /// Observes this mesh's sidecars only, with further command-line `arguments`, and waits until it is ready and
    /// attached to `sidecars` of them.
    pub fn start(mesh: &Mesh, sidecars: usize, arguments: &[&str]) -> Result<Self> {
        let executable = mesh.executable();
        let only = ["--sidecar-exe", executable.as_str()];
        let arguments = [only.as_slice(), arguments].concat();
        let observer = Self::start_with(mesh.directory(), &mesh.observer_tables(), sidecars, &arguments)?;
        // In a cgroup of the mesh, it is removed with the mesh if this run crashes.
        let cgroup = mesh.cgroup().join("observer");
        fs::create_dir_all(&cgroup)?;
        fs::write(cgroup.join("cgroup.procs"), observer.pid().to_string())?;
        Ok(observer)
    }

    /// Starts an observer with only `arguments` on the command line and a configuration file of this text.
    pub fn start_with(directory: &Path, configuration: &str, sidecars: usize, arguments: &[&str]) -> Result<Self> {
        Self::launch(&mut Command::new(tools::observer()?), directory, configuration, sidecars, arguments)
    }

    /// Observes no sidecar, and scrapes these pages of control planes once a second.
    pub fn start_scraping(directory: &Path, pages: &[String], arguments: &[&str]) -> Result<Self> {
        let nobody = format!("nobody-{}", process::id());
        let only = ["--scrape-interval", "1s", "--sidecar-exe", &nobody];
        let pages = pages.iter().flat_map(|url| ["--control-plane", url]);
        let arguments: Vec<&str> = only.into_iter().chain(pages).chain(arguments.iter().copied()).collect();
        Self::start_with(directory, "", 0, &arguments)
    }

    /// Starts an observer like [`Observer::start`], without one of the capabilities that root has; its name as
    /// setpriv(1) writes it.
    pub fn start_without(capability: &str, mesh: &Mesh, arguments: &[&str]) -> Result<Self> {
        let executable = mesh.executable();
        let arguments = [["--sidecar-exe", executable.as_str()].as_slice(), arguments].concat();
        Self::launch(&mut without(capability)?, mesh.directory(), &mesh.observer_tables(), 0, &arguments)
    }

    /// Starts an observer like [`Observer::start_with`], by a command that becomes the observer.
    pub fn launch(
        command: &mut Command,
        directory: &Path,
        configuration: &str,
        sidecars: usize,
        arguments: &[&str],
    ) -> Result<Self> {
        let address = free_port()?;
        let file = directory.join("observer.toml");
        fs::write(&file, configuration).with_context(|| format!("{}", file.display()))?;
        let log = directory.join(format!("observer-{}.log", address.port()));
        let process = command
            .args(["run", "--listen", &address.to_string(), "--config"])
            .arg(&file)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .with_context(|| format!("{} cannot be started", command.get_program().display()))?;
        let mut observer = Self { process, address, log };
        observer.wait_attached(sidecars)?;
        Ok(observer)
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Returns the address on which it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns its standard error so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until `sidecars` are observed, and no fewer or more.
    pub fn wait_attached(&mut self, sidecars: usize) -> Result<()> {
        let end = Instant::now() + START_STOP_TIMEOUT;
        loop {
            if let Some(status) = self.process.try_wait()? {
                bail!("the observer ended with {status}:\n{}", self.log());
            }
            let ready = get(self.address, "/readyz").is_ok_and(|(status, _)| status == 200);
            let seen = self.own_families().map(|exposition| attached(&exposition));
            match seen {
                Ok(seen) if ready && seen == sidecars => return Ok(()),
                seen if Instant::now() > end => bail!(
                    "after {START_STOP_TIMEOUT:?} the observer is {}ready and attached to {seen:?} sidecars instead of {sidecars}:\n{}",
                    if ready { "" } else { "not " },
                    self.log()
                ),
                _ => sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Scrapes `/metrics`.
    pub fn scrape(&self) -> Result<Exposition> {
        Exposition::parse(&self.page("/metrics")?)
    }

    /// Scrapes `/metrics` until `ready` accepts it, within `timeout`.
    pub fn wait(&self, patience: Duration, ready: impl Fn(&Exposition) -> bool) -> Result<Exposition> {
        self.wait_for(patience, || self.scrape(), ready)
    }

    fn wait_for(
        &self,
        patience: Duration,
        read: impl Fn() -> Result<Exposition>,
        ready: impl Fn(&Exposition) -> bool,
    ) -> Result<Exposition> {
        wait_until("the page is as wanted", patience, || {
            let page = read()?;
            ensure!(ready(&page), "it is not: {}", self.log());
            Ok(page)
        })
    }

    /// Returns its own families now, which are few however much it observes.
    pub fn own_families(&self) -> Result<Exposition> {
        Exposition::parse(&self.page("/metrics?family=mesh_observer_*")?)
    }

    /// Like [`Observer::wait`], for its own families only.
    pub fn wait_own(&self, patience: Duration, ready: impl Fn(&Exposition) -> bool) -> Result<Exposition> {
        self.wait_for(patience, || self.own_families(), ready)
    }

    /// Returns the counts of Istio's families. Buckets, most of a long exposition, are not read.
    pub fn counts(&self) -> Result<Counts> {
        let is_bucket = |line: &str| line.split('{').next().is_some_and(|name| name.ends_with("_bucket"));
        let page: String = self.page("/metrics")?.split_inclusive('\n').filter(|line| !is_bucket(line)).collect();
        counts(&Exposition::parse(&page)?)
    }

    fn page(&self, path: &str) -> Result<String> {
        let (status, body) = get(self.address, path)?;
        ensure!(status == 200, "{path} answered {status}: {body}");
        Ok(body)
    }

    /// Returns one of its own families, summed over series with these labels; 0 without such a series.
    pub fn own(&self, family: &str, labels: &[(&str, &str)]) -> Result<f64> {
        Ok(self.scrape()?.sum(family, labels).unwrap_or(0.0))
    }

    /// Returns the values other than 0 of its own families on connections, requests and losses.
    pub fn health(&self) -> Result<String> {
        let exposition = self.own_families()?;
        let mut said = Vec::new();
        for family in ["connections", "requests", "parser_desyncs", "uncounted", "audit_bytes"] {
            let name = format!("mesh_observer_{family}_total");
            for sample in exposition.samples(&name).filter(|sample| sample.value != 0.0) {
                said.push(format!("{family} {:?} {}", sample.labels, sample.value));
            }
        }
        Ok(said.join(", "))
    }

    /// Returns its exit status, if it has ended.
    pub fn status(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.process.try_wait()?)
    }

    /// Kills it.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait().map(drop).context("an observer that was killed")
    }

    /// Sends SIGTERM and waits for exit code 0.
    pub fn stop(mut self) -> Result<()> {
        // SAFETY: no pointers; the child is not yet reaped, so the id is its own.
        unsafe { libc::kill(self.process.id().cast_signed(), libc::SIGTERM) };
        let end = Instant::now() + START_STOP_TIMEOUT;
        while Instant::now() < end {
            if let Some(status) = self.process.try_wait()? {
                ensure!(status.success(), "the observer ended with {status}:\n{}", self.log());
                return Ok(());
            }
            sleep(Duration::from_millis(10));
        }
        bail!("the observer has not ended {START_STOP_TIMEOUT:?} after SIGTERM:\n{}", self.log())
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns the observer's program, to be run without one of the capabilities that root has.
pub fn without(capability: &str) -> Result<Command> {
    let mut command = Command::new(tools::require("setpriv")?);
    command.args(["--bounding-set", &format!("-{capability}"), "--"]).arg(tools::observer()?);
    Ok(command)
}

/// A running `observer snapshot` of Wavefront lines.
#[derive(Debug)]
pub struct Snapshot {
    process: Child,
    log: PathBuf,
}

/// Output of a snapshot.
#[derive(Debug)]
pub struct Lines(String);

impl Snapshot {
    /// Observes this mesh's sidecars for `length`; returns once it says that it is attached to `sidecars` of them.
    pub fn start(mesh: &Mesh, sidecars: usize, length: Duration) -> Result<Self> {
        let log = mesh.directory().join("snapshot.log");
        let file = mesh.directory().join("snapshot.toml");
        fs::write(&file, mesh.observer_tables()).with_context(|| format!("{}", file.display()))?;
        let process = Command::new(tools::observer()?)
            .args(["snapshot", "--for", &format!("{}ms", length.as_millis()), "--format", "wavefront", "--log", "info"])
            .args(["--sidecar-exe", &mesh.executable(), "--config"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?)
            .spawn()
            .context("observer snapshot")?;
        let snapshot = Self { process, log };
        wait_until("the snapshot is attached", START_STOP_TIMEOUT, || {
            let said = snapshot.said();
            let attached = said.matches(", attached in ").count();
            ensure!(attached == sidecars, "attached to {attached} sidecars instead of {sidecars}:\n{said}");
            Ok(())
        })?;
        Ok(snapshot)
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for its end, which must be with exit code 0.
    pub fn finish(self) -> Result<Lines> {
        let Self { process, log } = self;
        let output = process.wait_with_output()?;
        let said = fs::read_to_string(log)?;
        ensure!(output.status.success(), "observer snapshot ended with {}: {said}", output.status);
        Ok(Lines(String::from_utf8(output.stdout).context("Wavefront lines are UTF-8")?))
    }
}

impl Lines {
    /// Reads the file of an emitter `wavefront+file:PATH`.
    pub fn read(path: &Path) -> Result<Self> {
        fs::read_to_string(path).map(Self).with_context(|| path.display().to_string())
    }

    /// Returns a statistic of one reporter's only histogram of that documented name.
    pub fn statistic(&self, name: &str, statistic: &str, reporter: &str) -> Result<f64> {
        let beginning = format!("\"{name}.{statistic}.value\" ");
        let tag = format!("\"reporter\"=\"{reporter}\"");
        let mut found = self.0.lines().filter_map(|line| line.strip_prefix(&beginning).filter(|_| line.contains(&tag)));
        let line = found.next().with_context(|| format!("no {name}.{statistic} of {reporter} in:\n{}", self.0))?;
        ensure!(found.next().is_none(), "more than one {name}.{statistic} of {reporter}");
        line.split(' ').next().and_then(|value| value.parse().ok()).with_context(|| format!("no value in {line}"))
    }
}

/// Returns a plain GET: status and body.
pub fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nhost: {address}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8(answer).context("the answer is not UTF-8")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is not HTTP")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("the answer has no status")?;
    ensure!(!head.to_ascii_lowercase().contains("transfer-encoding"), "a chunked answer is not expected here");
    Ok((status, body.to_owned()))
}

/// Returns the counts of Istio's families in one scrape, by reporting workload.
pub fn counts(exposition: &Exposition) -> Result<Counts> {
    let mut counts = Counts::default();
    let unread = exposition
        .samples("mesh_observer_requests_total")
        .find(|sample| sample.label("outcome") == "unknown_status")
        .context("the observer does not expose the requests with an unknown status")?;
    counts.unknown = whole(unread)?;
    for sample in exposition.samples("istio_requests_total") {
        counts.of(&leg(sample), outcome(sample)).count += whole(sample)?;
    }
    type Field = fn(&mut Requests) -> &mut u64;
    let sums: [(&str, Field); 2] = [
        ("istio_request_bytes_sum", |requests| &mut requests.request_bytes),
        ("istio_response_bytes_sum", |requests| &mut requests.response_bytes),
    ];
    for (name, field) in sums {
        for sample in exposition.samples(name) {
            *field(counts.of(&leg(sample), outcome(sample))) += whole(sample)?;
        }
    }
    for sample in exposition.samples("istio_request_duration_milliseconds_sum") {
        let requests = counts.of(&leg(sample), outcome(sample));
        *requests.duration_ms.get_or_insert(0.0) += sample.value;
    }
    type Direction = fn(&mut Messages) -> &mut u64;
    let directions: [(&str, Direction); 2] = [
        ("istio_request_messages_total", |messages| &mut messages.requests),
        ("istio_response_messages_total", |messages| &mut messages.responses),
    ];
    for (name, direction) in directions {
        for sample in exposition.samples(name) {
            *direction(counts.messages.entry(leg(sample)).or_default()) += whole(sample)?;
        }
    }
    for (name, field) in [
        ("istio_tcp_connections_opened_total", 0),
        ("istio_tcp_connections_closed_total", 1),
        ("istio_tcp_received_bytes_total", 2),
        ("istio_tcp_sent_bytes_total", 3),
    ] {
        for sample in exposition.samples(name) {
            let connections = counts.connections.entry(leg(sample)).or_default();
            let fields =
                [&mut connections.opened, &mut connections.closed, &mut connections.received, &mut connections.sent];
            for (_, count) in fields.into_iter().enumerate().filter(|(index, _)| *index == field) {
                *count += whole(sample)?;
            }
        }
    }
    Ok(counts)
}

fn leg(sample: &Sample) -> Leg {
    let reporter = sample.label("reporter");
    Leg { reporter: reporter.to_owned(), workload: sample.label(&format!("{reporter}_workload")).to_owned() }
}

fn outcome(sample: &Sample) -> Outcome {
    Outcome {
        code: sample.label("response_code").to_owned(),
        grpc: sample.label("request_protocol") == "grpc",
        grpc_status: sample.label("grpc_response_status").to_owned(),
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be a whole number in range")]
fn whole(sample: &Sample) -> Result<u64> {
    ensure!(
        sample.value >= 0.0 && sample.value.fract() == 0.0 && sample.value < 9e15,
        "{}{:?} is not a count: {}",
        sample.name,
        sample.labels,
        sample.value
    );
    Ok(sample.value as u64)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small whole number")]
fn attached(exposition: &Exposition) -> usize {
    let [seen, unattached] = ["mesh_observer_sidecars", "mesh_observer_sidecars_unattached"]
        .map(|family| exposition.sum(family, &[]).unwrap_or(0.0));
    (seen - unattached) as usize
}

/// Returns an address on this machine's loopback that nobody listens on.
pub fn free_port() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on 127.0.0.1")?.local_addr()?)
}
