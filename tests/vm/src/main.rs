//! The first process of a virtual machine: mounts file systems, runs the observer on traffic, and reports the result on
//! the console. The machine's whole system is this program, the observer and, in one machine, Envoy.

mod envoy;
mod leaks;
mod stand_in;
mod traffic;

use std::{
    ffi::CStr,
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket},
    os::fd::AsRawFd as _,
    path::Path,
    process::{Command, ExitCode},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser as _;
use harness::{
    console::exit,
    counts::{Counts, Leg},
    observer::Observer,
    wait::wait_until,
};

use crate::{
    leaks::{Objects, objects, wait_for_none},
    stand_in::StandIn,
};

/// The observer in the machine.
const OBSERVER: &str = "/observer";
/// Envoy in a machine that has it, under the name that the observer looks for.
const ENVOY: &str = "/envoy";
const IPTABLES: &str = "/iptables";
/// Directory with the modules of each kernel, in a directory of its name, whose names are their places in the order.
const MODULES: &str = "/modules";

/// Begins the line that reports success to `cargo xtask vm`.
const VERDICT: &str = "verdict:";
/// Limits the time until counts appear.
const COUNT_TIMEOUT: Duration = Duration::from_secs(30);
/// Half of the verifier's instruction limit, as a margin for later kernels.
const BUDGET: u32 = 500_000;
/// The observer's error where it refuses: the features that it probed, by loading a program for each.
const MISSING: &str = "lacks bpf_loop and atomics that return a value,";

/// A task of the machine's first process, for one kernel of the matrix; or the role of a proxy.
#[derive(clap::Parser)]
enum Task {
    /// Checks that the observer counts the traffic of stand-ins.
    Observe { kernel: String },
    /// Checks that the observer counts what Envoy logs as a sidecar.
    Envoy { kernel: String },
    /// Checks that the observer refuses to start, and names the reason.
    Refuse { kernel: String },
    /// Plays a proxy.
    StandIn(stand_in::Options),
}

fn main() -> ExitCode {
    exit(match Task::parse() {
        Task::Observe { kernel } => first_process(|| observe(&kernel, stand_ins)),
        Task::Envoy { kernel } => first_process(|| observe(&kernel, envoy::agree)),
        Task::Refuse { .. } => first_process(refuse),
        Task::StandIn(options) => stand_in::run(&options),
    })
}

/// Runs the task and switches the machine off.
fn first_process(task: impl FnOnce() -> Result<String>) -> Result<()> {
    ensure!(std::process::id() == 1, "this is not the first process of a machine, and would switch this one off");
    match prepare().and_then(|()| task()) {
        Ok(said) => println!("{VERDICT} {said}"),
        Err(error) => println!("failed: {error:#}"),
    }
    // SAFETY: no pointers.
    let result = unsafe { libc::reboot(libc::RB_POWER_OFF) };
    ensure!(result == 0, "the machine cannot be switched off: {}", std::io::Error::last_os_error());
    Ok(())
}

fn prepare() -> Result<()> {
    mount(c"proc", c"/proc")?;
    mount(c"sysfs", c"/sys")?;
    mount(c"securityfs", c"/sys/kernel/security")?;
    mount(c"cgroup2", c"/sys/fs/cgroup")?;
    // The kernel has created the console's device only.
    mount(c"devtmpfs", c"/dev")?;
    loopback_up()?;
    // SAFETY: nothing else of this process runs yet.
    unsafe { std::env::set_var("MESH_OBSERVER_BIN", OBSERVER) };
    let lockdown = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    println!("lockdown: {}", lockdown.trim());
    Ok(())
}

fn mount(kind: &CStr, place: &CStr) -> Result<()> {
    // SAFETY: strings that end with zero; no data.
    let result = unsafe { libc::mount(kind.as_ptr(), place.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
    let error = std::io::Error::last_os_error();
    // Some kernels mount the devices by themselves.
    let there = error.raw_os_error() == Some(libc::EBUSY);
    if result == 0 || there { Ok(()) } else { Err(error).with_context(|| format!("{place:?} cannot be mounted")) }
}

fn loopback_up() -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // SAFETY: all-zero is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *place = byte.cast_signed();
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP)?;
    // SAFETY: the kernel reads the request, which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    ensure!(result == 0, "the loopback cannot be brought up: {}", std::io::Error::last_os_error());
    Ok(())
}

/// Runs the observer, which must count exactly and leave nothing; returns the verifier's instruction counts.
fn observe(kernel: &str, work: fn(&Objects) -> Result<()>) -> Result<String> {
    load_modules(kernel)?;
    let before = objects()?;
    let verified = check()?;
    work(&before)?;
    Ok(verified)
}

/// Loads the kernel modules that iptables needs.
fn load_modules(kernel: &str) -> Result<()> {
    let directory = Path::new(MODULES).join(kernel);
    let mut modules: Vec<_> = fs::read_dir(&directory)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    modules.sort();
    for module in modules {
        let file = File::open(&module)?;
        // SAFETY: no parameters, a string that ends with zero.
        let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
        let error = std::io::Error::last_os_error();
        ensure!(result == 0, "module {} of {kernel}'s cannot be loaded: {error}", module.display());
    }
    Ok(())
}

/// Redirects connections to an address to a port of the sidecar, except those of the sidecar to its application.
pub(crate) fn redirect(address: SocketAddrV4, port: u16) -> Result<()> {
    let status = Command::new(IPTABLES)
        .args(["-t", "nat", "-A", "OUTPUT", "-p", "tcp", "!", "-s", "127.0.0.6", "-d", &address.ip().to_string()])
        .args(["-j", "REDIRECT", "--to-ports", &port.to_string()])
        .status()
        .context("iptables cannot be started")?;
    ensure!(status.success(), "iptables ended with {status}");
    Ok(())
}

fn stand_ins(before: &Objects) -> Result<()> {
    redirect(traffic::ORIGINAL_DESTINATION, traffic::OUTBOUND)?;
    serve(SocketAddrV4::new(Ipv4Addr::LOCALHOST, traffic::APPLICATION))?;
    let mut gateway = StandIn::start("gateway", "router", "serve")?;
    gateway.answer()?;
    let mut sidecar = StandIn::start("sidecar", "sidecar", "ask")?;
    let observer = Observer::start_with(Path::new("/tmp"), "", 2, &[])?;
    sidecar.ask()?;
    traffic::ask(SocketAddr::from((Ipv4Addr::LOCALHOST, traffic::LISTENER)))?;
    traffic::ask(traffic::ORIGINAL_DESTINATION.into())?;
    let legs = [Leg::source("gateway"), Leg::source("sidecar"), Leg::destination("sidecar")];
    conclude(observer, &traffic::expected(legs), before)
}

/// Serves connections at `address` until the end.
pub(crate) fn serve(address: SocketAddrV4) -> Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("{address} cannot be listened at"))?;
    thread::spawn(move || traffic::serve(&listener));
    Ok(())
}

/// Waits until the observer's counts are as expected, and stops it while the sidecars still run; nothing may be left.
pub(crate) fn conclude(observer: Observer, truth: &Counts, before: &Objects) -> Result<()> {
    agree(&observer, truth).with_context(|| observer.health().unwrap_or_default())?;
    observer.stop()?;
    wait_for_none(before)
}

/// Runs `observer check` with every program whole; returns the verifier's instruction counts of the largest programs.
fn check() -> Result<String> {
    let output = Command::new(OBSERVER).args(["check", "--emit", "otlp-traces+http://127.0.0.1:1"]).output()?;
    let page = String::from_utf8(output.stdout)?;
    println!("{page}");
    ensure!(output.status.success(), "observer check says that the observer cannot work here");
    let programs = page.lines().filter_map(|line| {
        let mut words = line.trim().strip_prefix("ok ")?.split_whitespace();
        let name = words.next()?.strip_prefix("mesh_")?;
        let instructions: u32 = words.next()?.parse().ok()?;
        Some((name, instructions))
    });
    let mut said = Vec::new();
    for (name, instructions) in programs {
        ensure!(instructions <= BUDGET, "{name}: {instructions} instructions verified, more than {BUDGET}");
        if name.contains("gress") {
            said.push(format!("{name} {instructions}"));
        }
    }
    Ok(said.join(", "))
}

fn agree(observer: &Observer, truth: &Counts) -> Result<()> {
    wait_until("the counts are the expected counts", COUNT_TIMEOUT, || {
        Ok(truth.differences(&observer.counts()?).none()?)
    })
}

fn refuse() -> Result<String> {
    let before = objects()?;
    let check = Command::new(OBSERVER).arg("check").output()?;
    println!("{}", String::from_utf8_lossy(&check.stdout));
    ensure!(check.status.code() == Some(1), "observer check ended with {}", check.status);
    let run = Command::new(OBSERVER).args(["run", "--log", "error"]).output()?;
    let said = String::from_utf8(run.stderr)?;
    println!("{said}");
    ensure!(run.status.code() == Some(1), "observer run ended with {}", run.status);
    let sentences: Vec<&str> = said.lines().filter(|line| !line.is_empty()).collect();
    let [sentence] = sentences[..] else { anyhow::bail!("{} lines instead of one", sentences.len()) };
    ensure!(sentence.contains(MISSING), "it does not say that this kernel {MISSING}");
    wait_for_none(&before)?;
    Ok(sentence.to_owned())
}
