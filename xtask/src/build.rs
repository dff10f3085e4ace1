//! Builds the kernel objects, without and with the reading of traces, and the observer that embeds both.
//!
//! A kernel object needs an unstable compiler with the source of `core` (`-Z build-std`), by one of two routes: a
//! rustup nightly with `rust-src`, or Debian's `rustc-web` with `RUSTC_BOOTSTRAP`. Cargo's own
//! fingerprints decide what is stale; the object is replaced only when its bytes differ, so an unchanged one rebuilds
//! nothing that embeds it.

use std::{
    env, fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    exec::{cargo, exec, root, say, target, timed},
    sbom, setup, tidy,
    toolchain::{KERNEL_TARGET, Route},
};

const RELEASED: &str = "observer-kernel.o";
/// Suffix of each kernel object, and its feature.
const KINDS: [(&str, &str); 2] = [("o", ""), ("traces.o", "traces")];
const OBJECT: &str = "bpfel-unknown-none/bpf/observer-kernel";

/// Options of `cargo xtask build`.
#[derive(clap::Args, Default)]
pub(crate) struct Options {
    /// Put log lines into the kernel programs, for development; the observer shows them in its own log.
    #[arg(long)]
    pub(crate) kernel_log: bool,
    /// Compile the kernel object by this route only, instead of the first that works.
    #[arg(long, value_enum)]
    pub(crate) toolchain: Option<Route>,
}

/// Builds kernel object and observer; returns the observer's path.
pub(crate) fn build(options: &Options) -> Result<PathBuf> {
    let object = kernel_object(options)?;
    timed("building the observer (release)", || {
        exec(cargo().args(["build", "--release", "--package", "observer"]).env("OBSERVER_KERNEL_OBJECT", object))
    })?;
    let observer = target().join("release/observer");
    sbom::write(&observer)?;
    let log = if options.kernel_log { ", with log lines in its kernel programs: for development only" } else { "" };
    say(format!("built {}{log}", observer.display()));
    Ok(observer)
}

/// Returns the observer that `MESH_OBSERVER_BIN` names, or builds one.
pub(crate) fn observer() -> Result<PathBuf> {
    env::var_os("MESH_OBSERVER_BIN").map_or_else(|| build(&Options::default()), |other| Ok(other.into()))
}

/// Builds, then becomes `observer run` with these arguments.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let observer = build(&Options::default())?;
    let error = Command::new(&observer).arg("run").args(arguments).exec();
    Err(error).with_context(|| format!("cannot start {}", observer.display()))
}

/// Builds the kernel objects; returns the path of the one without traces.
fn kernel_object(options: &Options) -> Result<PathBuf> {
    let tools = setup::for_build(options.toolchain)?;
    say(format!("kernel objects: by {}", tools.toolchain));
    let directory = target().join("bpf");
    let (name, log) = if options.kernel_log { ("observer-kernel-log.o", "kernel-log") } else { (RELEASED, "") };
    for (suffix, feature) in KINDS {
        let features = format!("{feature},{log}");
        let bytes = timed("building a kernel object", || compile(&tools, root(), &directory, &features))?;
        let object = directory.join(name).with_extension(suffix);
        let is_new = !fs::read(&object).is_ok_and(|old| old == bytes);
        if is_new {
            fs::write(&object, &bytes).with_context(|| format!("{}: cannot write", object.display()))?;
        }
        say(format!("{}: {}, {} bytes", object.display(), if is_new { "new" } else { "unchanged" }, bytes.len()));
    }
    Ok(directory.join(name))
}

/// Builds a kernel object from the sources at `root`, in the target directory `directory`.
fn compile(tools: &setup::KernelTools, root: &Path, directory: &Path, features: &str) -> Result<Vec<u8>> {
    let mut command = tools.toolchain.cargo();
    command
        .current_dir(root)
        .args(["build", "--locked", "--package", "observer-ebpf", "--bin", "observer-kernel", "--profile", "bpf"])
        .args(["--features", features, "-Z", "build-std=core", "--target", KERNEL_TARGET, "--target-dir"])
        .arg(directory)
        // Keeps paths of this machine out of the object.
        .args(["-Z", "trim-paths"])
        .env("CARGO_PROFILE_BPF_TRIM_PATHS", "all")
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(&tools.linker));
    exec(&mut command)?;
    let built = directory.join(OBJECT);
    fs::read(&built).with_context(|| format!("{}: cannot read", built.display()))
}

/// Builds the kernel objects again from a copy of the sources in another directory: every byte must be equal.
pub(crate) fn reproduce() -> Result<()> {
    let tools = setup::for_build(None)?;
    let directory = target().join("reproduced");
    let copy = directory.join("sources");
    if directory.exists() {
        fs::remove_dir_all(&directory).with_context(|| format!("{}: cannot remove", directory.display()))?;
    }
    for file in tidy::files()? {
        let to = copy.join(file.strip_prefix(root()).expect("found below the root"));
        fs::create_dir_all(to.parent().expect("below the copy"))?;
        fs::copy(&file, &to).with_context(|| format!("{}: cannot copy", file.display()))?;
    }
    for (suffix, feature) in KINDS {
        let place = directory.join("target");
        let again = timed("building a kernel object elsewhere", || compile(&tools, &copy, &place, feature))?;
        let object = target().join("bpf").join(RELEASED).with_extension(suffix);
        let first = fs::read(&object).with_context(|| format!("{}: cannot read", object.display()))?;
        let place = place.join(OBJECT);
        ensure!(first == again, "not reproducible: {} and {} differ", object.display(), place.display());
        say(format!("{}: the same {} bytes, built elsewhere", object.display(), again.len()));
    }
    Ok(())
}

/// Returns the flags of the kernel object. Instruction set v3 is a code generation option: as a linker argument it
/// collides with rustc's. The linker must not expand copies in order, since that replaces other copies and clears by
/// calls of a routine that goes byte by byte.
fn rustflags(linker: &Path) -> String {
    [
        format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH),
        format!("-Clinker={}", linker.display()),
        "-Ctarget-cpu=v3".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        "-Clink-arg=--disable-expand-memcpy-in-order".to_owned(),
    ]
    .join("\x1f")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linker_gets_no_cpu_argument() {
        let flags = rustflags(Path::new("/opt/bpf-linker"));
        assert!(flags.contains("-Clinker=/opt/bpf-linker\x1f-Ctarget-cpu=v3"), "{flags}");
        assert!(!flags.contains("--cpu"), "{flags}");
    }
}
