//! Installs what this machine lacks: Debian packages, Cargo tools, and the programs that the tests run against. Every
//! version is pinned.
//!
//! Each need is checked for directly, which takes a fraction of a second, so no record of an installation can go stale.
//! As root on Debian the missing packages are installed; otherwise the task fails with the commands to run.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    exec::{cache, cargo, exec, output, root, say, timed, which},
    toolchain::{DEBIAN_TOOLCHAIN, LLVM, Route, Toolchain, rustup_commands},
};

const BPF_LINKER: &str = "0.13.0";
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// Formatting and lints, which rustup includes and Debian packages separately.
const CHECKS: [(&str, &str); 2] = [("cargo-fmt", "rustfmt-web"), ("cargo-clippy", "rust-web-clippy")];
const LINKER_LIBRARIES: [(&str, &str); 5] = [
    ("/usr/lib/llvm-22/lib/libLLVM.so", "llvm-22-dev"),
    ("/usr/lib/llvm-22/lib/libPolly.a", "libpolly-22-dev"),
    ("/usr/include/zlib.h", "zlib1g-dev"),
    ("/usr/include/zstd.h", "libzstd-dev"),
    ("g++", "g++"),
];
/// The mesh of the demo and the tests, third-party clients, a browser and a terminal.
const MESH: [(&str, &str); 12] = [
    ("ip", "iproute2"),
    ("iptables-legacy", "iptables"),
    ("python3", "python3"),
    ("ethtool", "ethtool"),
    ("curl", "curl"),
    ("wrk", "wrk"),
    ("h2load", "nghttp2-client"),
    ("nghttpd", "nghttp2-server"),
    ("nc", "netcat-openbsd"),
    ("openssl", "openssl"),
    ("chromium", "chromium"),
    ("tmux", "tmux"),
];
/// Builds `tests/peers`. Any Go from 1.19 on builds grpc-go.
const PEERS: [(&str, &str); 4] =
    [("make", "make"), ("go", "golang-go"), ("javac", "default-jdk-headless"), ("mvn", "maven")];
/// Real servers written in Go with metrics of their own; Prometheus and its tool also check the observer's.
const SERVERS: [(&str, &str); 3] = [("prometheus", "prometheus"), ("promtool", "prometheus"), ("etcd", "etcd-server")];
/// Emulates the machines of the kernel matrix, fetches kernels, lists a program's libraries, redirects connections.
const MACHINES: [(&str, &str); 6] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("apt-get", "apt"),
    ("dpkg-deb", "dpkg"),
    ("xz", "xz-utils"),
    ("ldd", "libc-bin"),
    ("iptables-legacy", "iptables"),
];
/// What a Kubernetes cluster is made of besides the Go programs that it builds itself.
const CLUSTER: [(&str, &str); 4] = [
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("nft", "nftables"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
];

/// Installs everything that any task needs.
pub(crate) fn everything() -> Result<()> {
    let toolchain = for_build(None)?;
    install(&CHECKS)?;
    install(&MESH)?;
    servers()?;
    peers("all")?;
    for_machines()?;
    CARGO_DENY.install()?;
    CARGO_CYCLONEDX.install()?;
    say(format!("set up: {}", toolchain.toolchain));
    Ok(())
}

/// Installs what the kernel matrix runs on.
pub(crate) fn for_machines() -> Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("the kernel matrix needs a machine with x86_64, as its kernels are for it");
    }
    install(&MACHINES)
}

/// Installs what a Kubernetes cluster is made of, and every tool besides.
pub(crate) fn for_cluster() -> Result<()> {
    everything()?;
    install(&CLUSTER)
}

/// Compiler and linker of the kernel object.
pub(crate) struct KernelTools {
    /// The compiler.
    pub(crate) toolchain: Toolchain,
    /// bpf-linker.
    pub(crate) linker: PathBuf,
}

/// Finds or installs the compiler and linker of the kernel object, by the wanted route if there is one.
pub(crate) fn for_build(wanted: Option<Route>) -> Result<KernelTools> {
    let toolchain = match Toolchain::find(wanted) {
        Ok(toolchain) => toolchain,
        Err(reasons) if wanted == Some(Route::Rustup) => bail!("{reasons}"),
        Err(reasons) => {
            say(format!("no compiler for the kernel object yet:\n{reasons}"));
            install(&DEBIAN_TOOLCHAIN).context(rustup_commands())?;
            Toolchain::find(wanted).map_err(anyhow::Error::msg)?
        }
    };
    Ok(KernelTools { toolchain, linker: bpf_linker()? })
}

/// Finds or fetches Envoy; returns its path.
pub(crate) fn envoy() -> Result<PathBuf> {
    peers("envoy")?;
    Ok(cache().join("envoy/envoy"))
}

/// Makes a target of `tests/peers/Makefile`.
fn peers(target: &str) -> Result<()> {
    install(&PEERS)?;
    let [cache, python] =
        [("CACHE", cache()), ("PYTHON", python()?)].map(|(name, path)| format!("{name}={}", path.display()));
    let mut make = Command::new("make");
    make.args(["--silent", "--no-print-directory", "--directory"]).arg(root().join("tests/peers"));
    exec(make.args([target, &cache, &python]))
}

/// Finds a Python that has pip.
fn python() -> Result<PathBuf> {
    let has_pip = |python: &PathBuf| output(Command::new(python).args(["-m", "pip", "--version"])).is_ok();
    if let Some(python) = which("python3").filter(has_pip) {
        return Ok(python);
    }
    let debian = PathBuf::from("/usr/bin/python3");
    if !has_pip(&debian) {
        packages(&["python3-pip"])?;
    }
    Ok(debian)
}

/// Fetches the servers that are not installed and unpacks them beside Envoy: an installed package would start its
/// service.
fn servers() -> Result<()> {
    let directory = cache().join("servers");
    let is_missing = |program: &str| which(program).is_none() && !directory.join("usr/bin").join(program).is_file();
    let mut missing: Vec<&str> =
        SERVERS.into_iter().filter(|(program, _)| is_missing(program)).map(|(_, package)| package).collect();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    ensure_apt(&names, &format!("apt-get update\n  apt-get install --yes --no-install-recommends {names}"))?;
    timed(&format!("fetching Debian packages {names} into {}", directory.display()), || {
        let work = directory.join("packages");
        fs::create_dir_all(&work).with_context(|| format!("{}: cannot create", work.display()))?;
        update_lists();
        exec(apt().arg("download").args(&missing).current_dir(&work))?;
        for package in fs::read_dir(&work)? {
            exec(Command::new("dpkg-deb").arg("--extract").arg(package?.path()).arg(&directory))?;
        }
        fs::remove_dir_all(work)?;
        Ok(())
    })
}

fn bpf_linker() -> Result<PathBuf> {
    let directory = cache().join("bpf-linker");
    let own = directory.join("bin/bpf-linker");
    let wanted = format!("bpf-linker {BPF_LINKER}");
    let right = |linker: &Path| {
        output(Command::new(linker).arg("--version")).is_ok_and(|version| version.trim().starts_with(&wanted))
    };
    if right(&own) {
        return Ok(own);
    }
    if let Some(linker) = which("bpf-linker").filter(|linker| right(linker)) {
        return Ok(linker);
    }
    install(&LINKER_LIBRARIES)?;
    cargo_install("bpf-linker", BPF_LINKER, &directory, |command| {
        command.args(["--no-default-features", "--features", &format!("llvm-{LLVM}")]).env("LLVM_PREFIX", LLVM_PREFIX)
    })?;
    Ok(own)
}

/// A subcommand of Cargo, as its release on crates.io.
pub(crate) struct CargoTool {
    name: &'static str,
    version: &'static str,
}

/// Checks licences, bans, sources and advisories of dependencies. MIT/Apache-2.0.
pub(crate) const CARGO_DENY: CargoTool = CargoTool { name: "cargo-deny", version: "0.20.2" };
/// Writes bills of materials. Apache-2.0.
pub(crate) const CARGO_CYCLONEDX: CargoTool = CargoTool { name: "cargo-cyclonedx", version: "0.5.9" };

impl CargoTool {
    /// Finds or builds it, without optimisation since it runs for seconds; returns its path.
    pub(crate) fn install(&self) -> Result<PathBuf> {
        let Self { name, version } = self;
        let directory = cache().join(name);
        let (program, stamp) = (directory.join("bin").join(name), directory.join("version"));
        if program.is_file() && fs::read_to_string(&stamp).is_ok_and(|installed| installed == *version) {
            return Ok(program);
        }
        cargo_install(name, version, &directory, |command| {
            command.args(["--no-default-features"]).envs([
                ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0"),
                ("CARGO_PROFILE_RELEASE_LTO", "off"),
                ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "256"),
            ])
        })?;
        fs::write(&stamp, version).with_context(|| format!("{}: cannot write", stamp.display()))?;
        Ok(program)
    }
}

fn cargo_install(
    name: &str,
    version: &str,
    into: &Path,
    configure: impl FnOnce(&mut Command) -> &mut Command,
) -> Result<()> {
    timed(&format!("building {name} {version} into {} (a minute or two)", into.display()), || {
        let mut command = cargo();
        // The repository's settings and target directory do not apply to it.
        command.current_dir("/").env_remove("CARGO_TARGET_DIR");
        command.args(["install", name, "--version", version, "--locked", "--force", "--root"]).arg(into);
        exec(configure(&mut command))
    })
}

/// Installs the missing packages; a need is a program by name or a file by path, with its Debian package.
fn install(needs: &[(&str, &'static str)]) -> Result<()> {
    let mut missing: Vec<&str> =
        needs.iter().filter(|(need, _)| which(need).is_none()).map(|(_, package)| *package).collect();
    missing.dedup();
    if missing.is_empty() { Ok(()) } else { packages(&missing) }
}

fn packages(names: &[&str]) -> Result<()> {
    let names = names.join(" ");
    let commands = format!("apt-get update\n  apt-get install --yes --no-install-recommends {names}");
    ensure_apt(&names, &commands)?;
    timed(&format!("installing Debian packages {names}"), || {
        update_lists();
        exec(apt().args(["install", "--yes", "--no-install-recommends"]).args(names.split(' ')))
    })
}

/// Fails unless packages can be installed here; the error has the commands for doing so.
fn ensure_apt(names: &str, commands: &str) -> Result<()> {
    let debian = Path::new("/usr/bin/apt-get").is_file();
    let root = fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
    if !debian || !root {
        let reason = if debian { "this is not root" } else { "this is not a Debian machine" };
        bail!("missing: {names}; {reason}, so install them yourself. On Debian, as root:\n  {commands}");
    }
    Ok(())
}

fn apt() -> Command {
    let mut command = Command::new("/usr/bin/apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-q", "-q", "-o", "DPkg::Lock::Timeout=300"]);
    command
}

/// Updates apt's lists. An unavailable third-party source is not an error as long as the packages can be installed.
pub(crate) fn update_lists() {
    if let Err(error) = exec(apt().arg("update")) {
        say(format!("{error}; going on with the package lists there are"));
    }
}
