//! A process that the observer takes for a proxy: this program under Envoy's name, with the injector's environment, in a
//! cgroup of its own.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _, stdin},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use harness::stand_in::environment;

use super::traffic;

/// What a stand-in does.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Part {
    /// As a gateway: serves clients at its door.
    Serve,
    /// As a sidecar: calls its application.
    Ask,
}

/// What a stand-in takes.
#[derive(clap::Args)]
pub(crate) struct Options {
    part: Part,
    /// As Envoy has it; the observer reads it.
    #[arg(long)]
    service_node: String,
}

/// Plays its part until its input ends.
pub(crate) fn run(options: &Options) -> Result<()> {
    if let Part::Serve = options.part {
        let door = TcpListener::bind((Ipv4Addr::LOCALHOST, traffic::DOOR))?;
        thread::spawn(move || traffic::serve(&door));
        println!("done");
    }
    for line in stdin().lines() {
        line?;
        traffic::ask(SocketAddr::from((Ipv4Addr::LOCALHOST, traffic::APPLICATION)))?;
        println!("done");
    }
    Ok(())
}

/// A running stand-in; killed when dropped.
pub(super) struct StandIn {
    process: Child,
    answers: BufReader<ChildStdout>,
}

impl StandIn {
    /// Starts the workload's proxy.
    pub(super) fn start(workload: &str, kind: &str, part: &str) -> Result<Self> {
        let program = Path::new("/run").join(workload).join("envoy");
        let cgroup = Path::new("/sys/fs/cgroup").join(workload);
        for folder in [program.parent().context("a folder")?, &cgroup] {
            fs::create_dir_all(folder).with_context(|| format!("{} cannot be created", folder.display()))?;
        }
        fs::copy(std::env::current_exe()?, &program)?;
        let mut process = Command::new(&program)
            .args(["vm-stand-in", part, "--service-node"])
            .arg(format!("{kind}~10.0.0.1~{workload}-0.default~default.svc.cluster.local"))
            .env_clear()
            .envs(environment(workload, &format!("{workload}-0")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{} cannot be started", program.display()))?;
        // Before it has opened a socket: it waits for its first line or has said nothing yet.
        fs::write(cgroup.join("cgroup.procs"), process.id().to_string())?;
        let answers = BufReader::new(process.stdout.take().expect("piped above"));
        Ok(Self { process, answers })
    }

    /// Has it call its application, and waits for the end.
    pub(super) fn ask(&mut self) -> Result<()> {
        writeln!(self.process.stdin.as_mut().expect("piped")).context("a stand-in has ended")?;
        self.answer()
    }

    /// Waits until it has done something.
    pub(super) fn answer(&mut self) -> Result<()> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        ensure!(line.trim() == "done", "a stand-in has failed; its message is above");
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
