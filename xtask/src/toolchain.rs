//! Finds the compiler of the kernel object.

use std::{fmt, path::Path, process::Command};

use clap::ValueEnum;

use crate::exec::{output, which};

/// Target of the kernel object.
pub(crate) const KERNEL_TARGET: &str = "bpfel-unknown-none";
/// Major version of the LLVM that bpf-linker is built with; it must not be older than the compiler's.
pub(crate) const LLVM: &str = "22";
/// The nightly the rustup route is tested with; its LLVM is the one bpf-linker is built with.
const NIGHTLY: &str = "nightly-2026-05-20";
const OLDEST: (u64, u64) = (1, 95);
/// Debian's compiler for web browsers, always recent, and the source of `core`.
pub(crate) const DEBIAN_TOOLCHAIN: [(&str, &str); 3] = [
    ("/usr/bin/rustc", "rustc-web"),
    ("/usr/bin/cargo", "cargo-web"),
    ("/usr/lib/rustlib/src/rust/library/core/src/lib.rs", "rust-web-src"),
];

/// Source of the kernel object's compiler.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Route {
    /// A rustup nightly with the component rust-src.
    Rustup,
    /// Debian's packages rustc-web, cargo-web and rust-web-src.
    Debian,
}

/// A compiler that can build for the kernel, and why it was chosen.
pub(crate) enum Toolchain {
    /// A rustup toolchain by name.
    Rustup {
        /// Name for `rustup run`.
        name: &'static str,
        version: Version,
    },
    /// Debian's, in /usr/bin.
    Debian {
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
    pub(crate) fn cargo(&self) -> Command {
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
    for (file, package) in DEBIAN_TOOLCHAIN {
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
    let newest = LLVM.parse().expect("a constant");
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
}
