//! Cheap processes that look like sidecars: the test program itself under a sidecar's executable name, with the
//! injector's environment, in its own cgroup. They make real connections to real applications, and report the bytes
//! sent and received.

use std::{
    env, fs,
    io::{self, BufRead, BufReader, ErrorKind, Read, Write, stdin},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitCode, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::{
    cgroup,
    counts::{Counts, Leg},
    mesh::{Mesh, Workload, link_or_copy},
};

/// First argument of a test program that is to be a stand-in.
const ROLE: &str = "stand-in";
/// Body of every answer, in bytes.
const BODY: usize = 100;
/// First response code that `statuses` requests.
const FIRST_STATUS: u64 = 400;

/// Plays a stand-in if this process was started as one; the first statement of a test program.
pub fn played() -> Option<ExitCode> {
    (env::args().nth(1).as_deref() == Some(ROLE)).then(|| match play() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("stand-in: {error:#}");
            ExitCode::FAILURE
        }
    })
}

/// Carries out one order per line, answers with the bytes sent and received, and ends with its input.
fn play() -> Result<()> {
    let mut held = Vec::new();
    for line in stdin().lines() {
        let line = line?;
        let words: Vec<u64> = line.split(' ').skip(1).map(str::parse).collect::<Result<_, _>>()?;
        let [port, number] = words[..] else { anyhow::bail!("{line:?} is no order") };
        let mut application = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, u16::try_from(port)?)))?;
        application.set_nodelay(true)?;
        let (sent, received) = match line.split(' ').next() {
            Some("ask") => ask(&mut application, (0..number).map(|_| format!("/bytes/{BODY}")), BODY)?,
            Some("statuses") => {
                ask(&mut application, (0..number).map(|status| format!("/status/{}", FIRST_STATUS + status)), 0)?
            }
            Some("echo") => echo(&mut application, usize::try_from(number)?)?,
            _ => (fill(&mut application)?, 0),
        };
        if line.starts_with("fill") {
            held.push(application);
        }
        println!("{sent} {received}");
    }
    Ok(())
}

/// Makes a request for each path on one connection; every answer has a body of `body` bytes.
fn ask(application: &mut TcpStream, paths: impl Iterator<Item = String>, body: usize) -> Result<(u64, u64)> {
    let mut answers = BufReader::new(application.try_clone()?);
    let (mut sent, mut received) = (0, 0);
    for path in paths {
        // In one piece: further pieces would wait for the first one's acknowledgement.
        let request = format!("GET {path} HTTP/1.1\r\nhost: app\r\n\r\n");
        application.write_all(request.as_bytes())?;
        sent += request.len() as u64;
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            ensure!(answers.read_line(&mut line)? > 0, "the application ended the connection");
            received += line.len() as u64;
        }
        answers.read_exact(&mut vec![0; body])?;
        received += body as u64;
    }
    Ok((sent, received))
}

/// Sends `length` bytes and receives them back.
fn echo(application: &mut TcpStream, length: usize) -> io::Result<(u64, u64)> {
    application.write_all(&vec![b'e'; length])?;
    application.read_exact(&mut vec![0; length])?;
    Ok((length as u64, length as u64))
}

/// Sends as much as the kernel buffers without a reader.
fn fill(application: &mut TcpStream) -> io::Result<u64> {
    application.set_nonblocking(true)?;
    let (bytes, mut sent) = ([b'f'; 4096], 0);
    loop {
        match application.write(&bytes) {
            Ok(length) => sent += length as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(sent),
            Err(error) => return Err(error),
        }
    }
}

/// The program and the cgroups of stand-ins.
pub struct Stand {
    program: PathBuf,
    cgroups: PathBuf,
}

impl Stand {
    /// Copies this program to a name that no other observer looks for.
    pub fn new(mesh: &Mesh) -> Result<Self> {
        let program = mesh.directory().join(format!("{}-stand-in", mesh.executable()));
        link_or_copy(&env::current_exe()?, &program)?;
        Ok(Self { program, cgroups: mesh.cgroup().join("stand-ins") })
    }

    /// Returns its executable name.
    pub fn name(&self) -> &str {
        self.program.file_name().and_then(|name| name.to_str()).expect("made of the mesh's name")
    }

    /// Returns the cgroup `place`, which it creates.
    pub fn cgroup(&self, place: &str) -> Result<PathBuf> {
        let cgroup = self.cgroups.join(place);
        fs::create_dir_all(&cgroup).with_context(|| format!("{} cannot be created", cgroup.display()))?;
        Ok(cgroup)
    }

    /// Starts the sidecar of the pod `name` in the cgroup `place`, in the network namespace of `on`.
    pub fn start(&self, name: &str, place: &str, on: &Workload) -> Result<StandIn> {
        let cgroup = self.cgroup(place)?;
        let mut command = Command::new(&self.program);
        command
            .arg(ROLE)
            .env_clear()
            .envs(environment(name, &format!("{name}-7c9f8-x0")))
            .env("INSTANCE_IP", on.ipv4.to_string());
        on.net.place(&mut command, &cgroup, None)?;
        Ok(StandIn { name: name.to_owned(), cgroup, process: Process::spawn(&mut command)? })
    }
}

/// Returns the environment that the injector gives to a sidecar of this workload and pod, without addresses.
pub fn environment(workload: &str, pod: &str) -> [(&'static str, String); 7] {
    [
        ("POD_NAME", pod.to_owned()),
        ("POD_NAMESPACE", "default".to_owned()),
        ("SERVICE_ACCOUNT", workload.to_owned()),
        ("ISTIO_META_CLUSTER_ID", "Kubernetes".to_owned()),
        ("ISTIO_META_WORKLOAD_NAME", workload.to_owned()),
        ("ISTIO_META_MESH_ID", "cluster.local".to_owned()),
        ("ISTIO_METAJSON_LABELS", format!(r#"{{"app":"{workload}","version":"v1"}}"#)),
    ]
}

/// A running stand-in; killed when dropped.
pub struct StandIn {
    name: String,
    cgroup: PathBuf,
    process: Process,
}

/// A process that carries out orders, one per line, and answers each with a line; killed when dropped.
pub struct Process {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Process {
    /// Starts it.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{} cannot be started", command.get_program().display()))?;
        let answers = BufReader::new(child.stdout.take().expect("piped above"));
        Ok(Self { child, answers })
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Gives it an order.
    pub fn order(&mut self, order: &str) -> Result<()> {
        writeln!(self.child.stdin.as_mut().expect("piped"), "{order}").context("a stand-in has ended")
    }

    /// Waits for its next answer; an empty one means that it has ended.
    pub fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl StandIn {
    /// Process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Returns its cgroup v2 directory.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Makes `requests` requests on one connection to the application at `port`, and adds them to the expected counts.
    pub fn ask(&mut self, port: u16, requests: u64, truth: &mut Counts) -> Result<()> {
        let (sent, received) = self.order("ask", port, requests)?;
        let counted = truth.of(&Leg::destination(&self.name), "200");
        counted.count += requests;
        counted.request_bytes += sent;
        counted.response_bytes += received;
        Ok(())
    }

    /// Requests `count` different response codes on one connection to the application at `port`.
    pub fn statuses(&mut self, port: u16, count: u16) -> Result<()> {
        self.order("statuses", port, count.into()).map(drop)
    }

    /// Has `bytes` bytes echoed on one connection to the application at `port`, and adds them to the expected counts.
    pub fn echo(&mut self, port: u16, bytes: u64, truth: &mut Counts) -> Result<()> {
        let transferred = self.order("echo", port, bytes)?;
        self.count(transferred, truth);
        Ok(())
    }

    /// Sends as much as the kernel buffers on a connection that stays open, and adds that to the expected counts.
    pub fn fill(&mut self, port: u16, truth: &mut Counts) -> Result<()> {
        let transferred = self.order("fill", port, 0)?;
        self.count(transferred, truth);
        Ok(())
    }

    fn count(&self, (sent, received): (u64, u64), truth: &mut Counts) {
        let counted = truth.connections.entry(Leg::destination(&self.name)).or_default();
        counted.opened += 1;
        counted.closed += 1;
        counted.received += sent;
        counted.sent += received;
    }

    fn order(&mut self, what: &str, port: u16, number: u64) -> Result<(u64, u64)> {
        self.process.order(&format!("{what} {port} {number}"))?;
        let answer = self.process.answer()?;
        let summary =
            answer.split_once(' ').and_then(|(sent, received)| Some((sent.parse().ok()?, received.parse().ok()?)));
        summary.with_context(|| format!("{} could not {what}; its message is above", self.name))
    }

    /// Closes its input and waits for its end.
    pub fn leave(&mut self) -> Result<()> {
        drop(self.process.child.stdin.take());
        let status = self.process.child.wait()?;
        ensure!(status.success(), "{} ended with {status}", self.name);
        Ok(())
    }

    /// Kills it.
    pub fn kill(&mut self) -> Result<()> {
        self.process.child.kill()?;
        self.process.child.wait().map(drop).context("a stand-in cannot be awaited")
    }

    /// Removes its cgroup with every process in it.
    pub fn remove_container(&mut self) -> Result<()> {
        cgroup::remove(&self.cgroup)?;
        self.process.child.wait().map(drop).context("a stand-in cannot be awaited")
    }
}
