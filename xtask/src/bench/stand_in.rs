//! Cheap processes that look like sidecars: this program under a sidecar's executable name, with the injector's
//! environment, in a cgroup of its own. They make real connections to a real application.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _, stdin},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use harness::{
    mesh::{Mesh, Workload},
    stand_in::environment,
};

/// First status that a stand-in asks its application for.
const FIRST_STATUS: u16 = 400;

/// What a stand-in takes.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Port of the application at 127.0.0.1.
    port: u16,
}

/// Reads a number of statuses a line, asks the application for each of them on one connection a line, and ends with its
/// input.
pub(crate) fn run(options: &Options) -> Result<()> {
    for line in stdin().lines() {
        let statuses: u16 = line?.trim().parse().context("a number of statuses")?;
        let mut application = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, options.port)))?;
        let mut answers = BufReader::new(application.try_clone()?);
        for status in FIRST_STATUS..FIRST_STATUS + statuses {
            // In one piece: further pieces would wait for the first one's acknowledgement.
            application.write_all(format!("GET /status/{status} HTTP/1.1\r\nhost: app\r\n\r\n").as_bytes())?;
            read_head(&mut answers)?;
        }
        println!("done");
    }
    Ok(())
}

fn read_head(answers: &mut BufReader<TcpStream>) -> Result<()> {
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        ensure!(answers.read_line(&mut line)? > 0, "the application ended the connection");
    }
    Ok(())
}

/// Where stand-ins come from.
pub(super) struct Stand {
    program: PathBuf,
    name: String,
    cgroups: PathBuf,
}

impl Stand {
    /// Puts the program there under a name that no other observer looks for.
    pub(super) fn new(mesh: &Mesh) -> Result<Self> {
        let name = format!("{}-stand-in", mesh.executable());
        let program = mesh.directory().join(&name);
        let own = std::env::current_exe().context("own executable")?;
        fs::copy(&own, &program).with_context(|| format!("{} cannot be copied", own.display()))?;
        Ok(Self { program, name, cgroups: mesh.cgroup().join("stand-ins") })
    }

    /// Its executable name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// An empty cgroup for the stand-in of this number.
    pub(super) fn cgroup(&self, number: u8) -> Result<PathBuf> {
        let cgroup = self.cgroups.join(number.to_string());
        fs::create_dir_all(&cgroup).with_context(|| format!("{} cannot be created", cgroup.display()))?;
        Ok(cgroup)
    }

    /// Starts it there, in the network namespace of `on`.
    pub(super) fn start(&self, number: u8, on: &Workload, port: u16) -> Result<StandIn> {
        let cgroup = self.cgroup(number)?;
        let name = format!("stand-in-{number}");
        let mut command = Command::new(&self.program);
        command
            .args(["stand-in", &port.to_string()])
            .env_clear()
            .envs(environment(&name, &format!("{name}-7c9f8-x0")))
            .env("INSTANCE_IP", Ipv4Addr::new(10, 78, 0, number).to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        on.net.place(&mut command, &cgroup, None)?;
        let mut process = command.spawn().with_context(|| format!("{} cannot be started", self.program.display()))?;
        let answers = BufReader::new(process.stdout.take().expect("piped above"));
        Ok(StandIn { process, answers })
    }
}

/// A running stand-in; killed when dropped.
pub(super) struct StandIn {
    process: Child,
    answers: BufReader<ChildStdout>,
}

impl StandIn {
    /// Has it ask its application for so many different statuses, and waits for that.
    pub(super) fn ask(&mut self, statuses: u16) -> Result<()> {
        let mut line = String::new();
        writeln!(self.process.stdin.as_mut().expect("piped"), "{statuses}").context("a stand-in has ended")?;
        self.answers.read_line(&mut line)?;
        ensure!(line.trim() == "done", "a stand-in could not ask its application; its message is above");
        Ok(())
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        // An error here means that it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
