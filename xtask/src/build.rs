//! Builds the kernel object and the observer that embeds it.
//!
//! The kernel object needs an unstable compiler with the source of `core` (`-Z build-std`), by one of two routes: a
//! rustup nightly with `rust-src`, or Debian's `rustc-web` with `RUSTC_BOOTSTRAP`. Cargo's own
//! fingerprints decide what is stale; the object is replaced only when its bytes differ, so an unchanged one rebuilds
//! nothing that embeds it.

use std::{
    env, fmt, fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;

use crate::{
    exec::{cargo, exec, output, root, say, target, timed, which},
    sbom, setup, tidy,
};

/// The nightly the rustup route is tested with; its LLVM is the one bpf-linker is built with.
const NIGHTLY: &str = "nightly-2026-05-20";
const OLDEST: (u64, u64) = (1, 95);
/// Target of the kernel object.
pub(crate) const KERNEL_TARGET: &str = "bpfel-unknown-none";
const RELEASED: &str = "observer-kernel.o";
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

/// Source of the kernel object's compiler.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Route {
    /// A rustup nightly with the component rust-src.
    Rustup,
    /// Debian's packages rustc-web, cargo-web and rust-web-src.
    Debian,
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

/// Builds the kernel object; returns its path.
fn kernel_object(options: &Options) -> Result<PathBuf> {
    let tools = setup::for_build(options.toolchain)?;
    say(format!("kernel object: by {}", tools.toolchain));
    let directory = target().join("bpf");
    let bytes = timed("building the kernel object", || compile(&tools, root(), &directory, options.kernel_log))?;
    let name = if options.kernel_log { "observer-kernel-log.o" } else { RELEASED };
    let object = directory.join(name);
    if fs::read(&object).is_ok_and(|old| old == bytes) {
        say(format!("kernel object: unchanged, {} bytes", bytes.len()));
    } else {
        fs::write(&object, &bytes).with_context(|| format!("{}: cannot write", object.display()))?;
        say(format!("kernel object: new, {} bytes in {}", bytes.len(), object.display()));
    }
    Ok(object)
}

/// Builds the kernel object from the sources at `root`, in the target directory `directory`.
fn compile(tools: &setup::KernelTools, root: &Path, directory: &Path, kernel_log: bool) -> Result<Vec<u8>> {
    let mut command = tools.toolchain.cargo();
    command
        .current_dir(root)
        .args(["build", "--locked", "--package", "observer-ebpf", "--bin", "observer-kernel", "--profile", "bpf"])
        .args(["-Z", "build-std=core", "--target", KERNEL_TARGET, "--target-dir"])
        .arg(directory)
        // Keeps paths of this machine out of the object.
        .args(["-Z", "trim-paths"])
        .env("CARGO_PROFILE_BPF_TRIM_PATHS", "all")
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(&tools.linker));
    if kernel_log {
        command.args(["--features", "kernel-log"]);
    }
    exec(&mut command)?;
    let built = directory.join(OBJECT);
    fs::read(&built).with_context(|| format!("{}: cannot read", built.display()))
}

/// Builds the kernel object again from a copy of the sources in another directory: every byte must be equal.
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
    let again =
        timed("building the kernel object elsewhere", || compile(&tools, &copy, &directory.join("target"), false))?;
    let object = target().join("bpf").join(RELEASED);
    let first = fs::read(&object).with_context(|| format!("{}: cannot read", object.display()))?;
    ensure!(
        first == again,
        "the kernel object is not reproducible: {} and {} differ ({} and {} bytes)",
        object.display(),
        directory.join("target").join(OBJECT).display(),
        first.len(),
        again.len()
    );
    say(format!("kernel object: the same {} bytes, built elsewhere", again.len()));
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

/// A compiler that can build for the kernel, and why it was chosen.
pub(crate) enum Toolchain {
    /// A rustup toolchain by name.
    Rustup {
        /// Name for `rustup run`.
        name: &'static str,
        /// Version of the compiler.
        version: Version,
    },
    /// Debian's, in /usr/bin.
    Debian {
        /// Version of the compiler.
        version: Version,
        /// Reason for not using rustup.
        because: String,
    },
}

impl Toolchain {
    /// Returns the first route that works, or why none does.
    pub(crate) fn find(wanted: Option<Route>) -> Result<Self, String> {
        let rustup = match wanted {
            Some(Route::Debian) => Err("it was asked for".to_owned()),
            _ => rustup(),
        };
        let because = match rustup {
            Ok(toolchain) => return Ok(toolchain),
            Err(because) if wanted == Some(Route::Rustup) => return Err(format!("{because}\n{}", rustup_commands())),
            Err(because) => because,
        };
        match debian() {
            Ok(version) => Ok(Self::Debian { version, because }),
            Err(reason) => Err(format!("  rustup: {because}\n  Debian: {reason}")),
        }
    }

    /// Returns a cargo command of this toolchain, free of what the toolchain that runs us left in the environment.
    fn cargo(&self) -> Command {
        let mut command = match self {
            Self::Rustup { name, .. } => {
                let mut command = Command::new("rustup");
                command.args(["run", name, "cargo"]);
                command
            }
            Self::Debian { .. } => {
                let mut command = Command::new("/usr/bin/cargo");
                // Keeps rustup's shims from replacing the compiler.
                command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("RUSTC_BOOTSTRAP", "1");
                command
            }
        };
        for variable in ["CARGO", "RUSTC", "RUSTDOC", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTUP_TOOLCHAIN"] {
            command.env_remove(variable);
        }
        command.env_remove("LD_LIBRARY_PATH");
        if matches!(self, Self::Debian { .. }) {
            command.env("RUSTC", "/usr/bin/rustc");
        }
        command
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rustup { name, version } => {
                write!(f, "rustup's {name} ({version}), because it is there with rust-src")
            }
            Self::Debian { version, because } => write!(f, "Debian's rustc-web ({version}), because {because}"),
        }
    }
}

/// Returns the commands for the rustup route.
pub(crate) fn rustup_commands() -> String {
    format!("for the rustup route:\n  rustup toolchain install {NIGHTLY} --profile minimal --component rust-src")
}

fn rustup() -> Result<Toolchain, String> {
    if which("rustup").is_none() {
        return Err("there is no rustup".to_owned());
    }
    let mut reasons = Vec::new();
    for name in [NIGHTLY, "nightly"] {
        match rustup_toolchain(name) {
            Ok(version) => return Ok(Toolchain::Rustup { name, version }),
            Err(reason) => reasons.push(format!("rustup's {name} {reason}")),
        }
    }
    Err(reasons.join(" and "))
}

fn rustup_toolchain(name: &str) -> Result<Version, String> {
    let rustc = |arguments: &[&str]| {
        let mut command = Command::new("rustup");
        command.env_remove("RUSTUP_TOOLCHAIN").env("RUSTUP_AUTO_INSTALL", "0");
        output(command.args(["run", name, "rustc"]).args(arguments))
    };
    let sysroot = rustc(&["--print", "sysroot"]).map_err(|_| "is not installed")?;
    if !Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/src/lib.rs").is_file() {
        return Err("lacks rust-src".to_owned());
    }
    usable(&rustc(&["--version", "--verbose"]).map_err(|error| format!("does not run: {error:#}"))?)
}

fn debian() -> Result<Version, String> {
    for (file, package) in setup::DEBIAN_TOOLCHAIN {
        if !Path::new(file).is_file() {
            return Err(format!("{file} is missing (package {package})"));
        }
    }
    let version = output(Command::new("/usr/bin/rustc").args(["--version", "--verbose"]).env_remove("LD_LIBRARY_PATH"));
    usable(&version.map_err(|error| format!("{error:#}"))?)
}

fn usable(verbose: &str) -> Result<Version, String> {
    let found = rustc_version::version_meta_for(verbose).map_err(|error| format!("has an unknown version: {error}"))?;
    let version = Version { release: found.semver, llvm: found.llvm_version.map_or(0, |llvm| llvm.major) };
    let newest = setup::LLVM.parse().expect("a constant");
    if (version.release.major, version.release.minor) < OLDEST {
        return Err(format!("is too old ({version}); 1.95 is needed"));
    }
    if version.llvm > newest {
        return Err(format!("is too new ({version}); bpf-linker is built with LLVM {newest} and reads none newer"));
    }
    Ok(version)
}

/// Versions in the output of `rustc --version --verbose`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Version {
    release: rustc_version::Version,
    llvm: u64,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, LLVM {}", self.release, self.llvm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verbose(release: &str, llvm: &str) -> String {
        format!(
            "rustc {release}\nbinary: rustc\ncommit-hash: a\ncommit-date: 2026-05-20\nhost: x\nrelease: {release}\nLLVM version: {llvm}\n"
        )
    }

    #[test]
    fn versions_are_read() {
        let version = usable(&verbose("1.97.0-nightly", "22.1.4")).expect("the pinned nightly");
        assert_eq!(version.to_string(), "1.97.0-nightly, LLVM 22");
    }

    #[test]
    fn too_old_and_too_new_are_refused_with_the_reason() {
        assert_eq!(usable(&verbose("1.85.0", "19.1.0")), Err("is too old (1.85.0, LLVM 19); 1.95 is needed".into()));
        let error = usable(&verbose("1.99.0", "23.1.0")).expect_err("LLVM 23 bitcode");
        assert!(error.starts_with("is too new"), "{error}");
        assert!(usable("nonsense").is_err());
    }

    #[test]
    fn the_linker_gets_no_cpu_argument() {
        let flags = rustflags(Path::new("/opt/bpf-linker"));
        assert!(flags.contains("-Clinker=/opt/bpf-linker\x1f-Ctarget-cpu=v3"), "{flags}");
        assert!(!flags.contains("--cpu"), "{flags}");
    }
}
