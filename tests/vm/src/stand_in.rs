//! A stand-in for a proxy: this program under Envoy's name, with the injector's environment, in its
//! own cgroup.

use std::{
    fs,
    io::{self, stdin},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use harness::stand_in::{Process, environment};

use crate::traffic;

/// Role of a stand-in.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Part {
    /// A gateway: serves clients at its listener.
    Serve,
    /// A sidecar: calls its application, and accepts redirected connections.
    Ask,
}

/// Arguments of a stand-in.
#[derive(clap::Args)]
pub(crate) struct Options {
    part: Part,
    /// Configuration file with Envoy's option; the observer reads it.
    #[arg(short = 'c')]
    _configuration: PathBuf,
}

/// Plays its role until its input ends.
pub(crate) fn run(options: &Options) -> Result<()> {
    if let Part::Serve = options.part {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, traffic::LISTENER))?;
        thread::spawn(move || traffic::serve(&listener));
        println!("done");
    }
    let mut outbound = None;
    for line in stdin().lines() {
        line?;
        if outbound.is_none() {
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, traffic::OUTBOUND))?;
            outbound = Some(thread::spawn(move || take(&listener)));
        }
        traffic::ask(SocketAddr::from((Ipv4Addr::LOCALHOST, traffic::APPLICATION)))?;
        println!("done");
    }
    Ok(())
}

/// Accepts redirected connections as a sidecar does: reads the original destination, and serves only those to
/// [`traffic::ORIGINAL_DESTINATION`].
fn take(listener: &TcpListener) {
    for connection in listener.incoming().map_while(Result::ok) {
        match original_destination(&connection) {
            Ok(traffic::ORIGINAL_DESTINATION) => traffic::serve_one(connection),
            other => eprintln!("a connection that was to go elsewhere: {other:?}"),
        }
    }
}

fn original_destination(connection: &TcpStream) -> io::Result<SocketAddrV4> {
    // SAFETY: all-zero is a valid value.
    let mut address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    let mut length = size_of_val(&address) as libc::socklen_t;
    let (pointer, fd) = ((&raw mut address).cast(), connection.as_raw_fd());
    // SAFETY: the kernel writes within the given length.
    let result = unsafe { libc::getsockopt(fd, libc::SOL_IP, libc::SO_ORIGINAL_DST, pointer, &raw mut length) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(SocketAddrV4::new(u32::from_be(address.sin_addr.s_addr).into(), u16::from_be(address.sin_port)))
}

/// A running stand-in; killed when dropped.
pub(crate) struct StandIn(Process);

impl StandIn {
    /// Starts the workload's proxy.
    pub(crate) fn start(workload: &str, kind: &str, part: &str) -> Result<Self> {
        let program = Path::new("/run").join(workload).join("envoy");
        let cgroup = Path::new("/sys/fs/cgroup").join(workload);
        for directory in [program.parent().context("a directory")?, &cgroup] {
            fs::create_dir_all(directory).with_context(|| format!("{} cannot be created", directory.display()))?;
        }
        fs::copy(std::env::current_exe()?, &program)?;
        let configuration = program.with_file_name("envoy-rev.json");
        let id = format!("{kind}~10.0.0.1~{workload}-0.default~default.svc.cluster.local");
        fs::write(&configuration, format!(r#"{{"node":{{"id":"{id}"}}}}"#))?;
        let mut command = Command::new(&program);
        command.args(["stand-in", part, "-c"]).arg(&configuration);
        let process = Process::spawn(command.env_clear().envs(environment(workload, &format!("{workload}-0"))))?;
        // Before it has opened a socket: it waits for its first order.
        fs::write(cgroup.join("cgroup.procs"), process.id().to_string())?;
        Ok(Self(process))
    }

    /// Orders it to call its application, and waits until it has.
    pub(crate) fn ask(&mut self) -> Result<()> {
        self.0.order("")?;
        self.answer()
    }

    /// Waits until it has carried out an order.
    pub(crate) fn answer(&mut self) -> Result<()> {
        ensure!(self.0.answer()? == "done", "a stand-in has failed; its message is above");
        Ok(())
    }
}
