//! The programs and privileges that the tests need; errors name the missing one.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result, bail, ensure};

use crate::cgroup;

/// Commands of the base system that the mesh is built with.
const COMMANDS: [&str; 6] =
    ["ip", "iptables-legacy", "iptables-legacy-restore", "ip6tables-legacy", "ip6tables-legacy-restore", "curl"];

/// The only file of `tests/peers/zipkin`.
const ZIPKIN_JAR: &str = "zipkin-server-3.5.1-slim.jar";

/// Checks the needs of a mesh: root, cgroup v2, commands, Envoy.
pub fn prerequisites() -> Result<()> {
    // SAFETY: no arguments, cannot fail.
    let user = unsafe { libc::geteuid() };
    ensure!(user == 0, "the mesh needs root (namespaces, iptables, cgroups), this is uid {user}: run as root");
    cgroup::root()?;
    for command in COMMANDS {
        require(command)?;
    }
    envoy().map(|_| ())
}

/// Returns the path of a command; an error if it is missing.
pub fn require(command: &str) -> Result<PathBuf> {
    env::var_os("PATH")
        .iter()
        .flat_map(env::split_paths)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .map(|directory| directory.join(command))
        .find(|path| path.is_file())
        .with_context(|| format!("the command `{command}` is missing: run `cargo xtask setup`"))
}

/// Returns the path of real Envoy, as `cargo xtask setup` installs it.
pub fn envoy() -> Result<PathBuf> {
    let path = cache().join("envoy/envoy");
    ensure!(path.is_file(), "{} is missing: run `cargo xtask setup`", path.display());
    Ok(path)
}

/// Returns a command that judges Wavefront lines on its standard input, one answer a line, with Wavefront's own
/// decoders.
pub fn wavefront_decoder() -> Result<Command> {
    let jars = cache().join("wavefront-decoder");
    ensure!(jars.is_dir(), "{} is missing: run `cargo xtask setup`", jars.display());
    let mut command = Command::new(require("java")?);
    command.arg("-cp").arg(jars.join("*")).arg(repository().join("tests/peers/wavefront-decoder/Decode.java"));
    Ok(command)
}

/// Returns a command that becomes a real Zipkin server with its storage in memory.
pub fn zipkin() -> Result<Command> {
    let jars = cache().join("zipkin");
    ensure!(jars.join(".complete").is_file(), "{} is missing: run `cargo xtask setup`", jars.display());
    let mut command = Command::new(require("java")?);
    command.args(["-Xmx192m", "-jar"]).arg(jars.join(ZIPKIN_JAR));
    Ok(command)
}

/// Returns a program written in Go that few tests need; builds it, which takes minutes, unless the cache has it.
pub fn built(program: &str) -> Result<PathBuf> {
    // Tests that run side by side need the same one.
    static BUILD: Mutex<()> = Mutex::new(());
    let _build = BUILD.lock().unwrap_or_else(PoisonError::into_inner);
    let mut make = Command::new(require("make")?);
    make.args(["--silent", "--no-print-directory", program, "--directory"]).arg(repository().join("tests/peers"));
    let status = make.arg(format!("CACHE={}", cache().display())).status().context("make")?;
    ensure!(status.success(), "{program} cannot be built; `make -C tests/peers {program}` shows why");
    Ok(cache().join(program).join(program))
}

/// Returns a real server written in Go: as `cargo xtask setup` unpacked it, or an installed one.
pub fn server(name: &str) -> Result<PathBuf> {
    let path = cache().join("servers/usr/bin").join(name);
    if path.is_file() { Ok(path) } else { require(name) }
}

/// Returns a program of the Kubernetes control plane, as `cargo xtask setup` builds it.
pub fn cluster(name: &str) -> Result<PathBuf> {
    let path = cache().join("cluster").join(name);
    ensure!(path.is_file(), "{} is missing: run `cargo xtask setup`", path.display());
    Ok(path)
}

/// Returns the release observer: `MESH_OBSERVER_BIN`, or where `cargo xtask build` puts it.
pub fn observer() -> Result<PathBuf> {
    let path = match env::var_os("MESH_OBSERVER_BIN") {
        Some(path) => PathBuf::from(path),
        None => repository().join("target/release/observer"),
    };
    if !path.is_file() {
        bail!("{} is missing: run `cargo xtask build`, or set MESH_OBSERVER_BIN", path.display());
    }
    Ok(path)
}

/// Returns the directory of installed tools: `MESH_OBSERVER_CACHE`, or `.cache` in the repository.
pub fn cache() -> PathBuf {
    env::var_os("MESH_OBSERVER_CACHE").map_or_else(|| repository().join(".cache"), PathBuf::from)
}

/// Returns the repository that this was built from.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies inside the repository")
}
