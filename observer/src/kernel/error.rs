//! Errors of the kernel side, each with its remedy.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::persist::pin_dir::error::PinDirError;
use aya::{EbpfError, maps::MapError, programs::ProgramError};

/// Why the kernel side does not work.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Built without the kernel object.
    #[error("this build has no kernel object: build it with `cargo xtask build`")]
    NoObject,
    /// Not allowed.
    #[error(
        "{what}: not permitted: run as root or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN; if they are held, a security \
         module or kernel lockdown forbids BPF (see `observer check`)"
    )]
    Privilege {
        /// The operation.
        what: String,
    },
    /// Required features are missing.
    #[error("this kernel lacks {features}, which Linux has since 5.17: the observer cannot run on it")]
    Unsupported {
        /// The features, joined by "and".
        features: String,
    },
    /// The kernel is out of memory.
    #[error(
        "{what}: no memory: the memory limit of the observer's cgroup is too low (memory.max), or the node is short of it; \
         raise the limit, or lower max_series"
    )]
    Memory {
        /// The operation.
        what: String,
    },
    /// The kernel refused a map.
    #[error("cannot create map {name}: {reason}; the kernel lacks the features of Linux 5.17")]
    CreateMap {
        /// Map.
        name: String,
        /// Why.
        reason: io::Error,
    },
    /// The object cannot be made ready for this kernel.
    #[error(
        "cannot prepare the eBPF programs, which need the features of Linux 5.17 (bpf_loop, atomics that return a value)"
    )]
    Open(#[source] EbpfError),
    /// The kernel refused a program.
    #[error(
        "the kernel rejects program {name}: {reason}; it needs the features of Linux 5.17 (bpf_loop, atomics that return a \
         value) and CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN"
    )]
    Load {
        /// Program.
        name: &'static str,
        /// The verifier's rejection, or the error.
        reason: String,
    },
    /// A map or program is not in the object.
    #[error("{name} is not in the kernel object: it was built from other sources; build again")]
    Missing {
        /// Map or program.
        name: &'static str,
    },
    /// A map cannot be read or written.
    #[error("map {name}")]
    Map {
        /// Map.
        name: &'static str,
        /// Why.
        #[source]
        source: MapError,
    },
    /// The pin directory cannot be used.
    #[error("--pin: {0}")]
    PinDir(PinDirError),
    /// The persisted state cannot be used.
    #[error(
        "--pin: the persisted state in {path} cannot be used: {reason}; start the build that wrote it, or discard it \
         with `observer detach --pin DIR`"
    )]
    State {
        /// The pinned map.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A pinned map cannot be used.
    #[error("--pin: map {path} cannot be used: {reason}; discard all that is pinned with `observer detach --pin DIR`")]
    PinnedMap {
        /// The map, or the directory of maps.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A link cannot be pinned or replaced.
    #[error("--pin: {path}: {reason}; discard all that is pinned with `observer detach --pin DIR`")]
    PinnedLink {
        /// The link.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The cgroup directory cannot be opened.
    #[error("cannot open cgroup {path}")]
    Cgroup {
        /// Directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another program is attached exclusively.
    #[error(
        "cannot attach {name} to {path}: a program is attached there or to a parent cgroup exclusively (attached \
         without BPF_F_ALLOW_MULTI); find it with `bpftool cgroup tree`. Nothing of it was touched"
    )]
    Exclusive {
        /// Program.
        name: &'static str,
        /// Directory.
        path: PathBuf,
    },
    /// The kernel's limit of programs is reached.
    #[error(
        "cannot attach {name} to {path}: 64 programs of its kind are attached there, the most that the kernel allows; find them \
         with `bpftool cgroup tree`, and detach what is not needed. It is tried again until it succeeds"
    )]
    TooManyPrograms {
        /// Program.
        name: &'static str,
        /// Directory.
        path: PathBuf,
    },
    /// The limit of open files is reached.
    #[error(
        "cannot attach {name} to {path}: too many open files; each cgroup takes seven: raise the limit (`ulimit -n`, \
         LimitNOFILE=). It is tried again until it succeeds"
    )]
    TooManyFiles {
        /// Program.
        name: &'static str,
        /// Directory.
        path: PathBuf,
    },
    /// The path is not a cgroup v2 directory.
    #[error("cannot attach to {path}: it is not a cgroup v2 directory")]
    NoCgroup {
        /// Directory.
        path: PathBuf,
    },
    /// Any other failure to attach.
    #[error("cannot attach {name} to {path}")]
    Attach {
        /// Program.
        name: &'static str,
        /// Directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl From<PinDirError> for KernelError {
    /// Its text is part of this one's: as a `source` it would be printed twice.
    fn from(error: PinDirError) -> Self {
        Self::PinDir(error)
    }
}

impl KernelError {
    /// Returns the error that the persisted state cannot be used.
    pub fn state(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self::State { path: path.to_owned(), reason: reason.to_string() }
    }

    /// Returns the error that a pinned link cannot be used.
    pub(super) fn link(path: &Path, error: io::Error) -> Self {
        Self::PinnedLink { path: path.to_owned(), reason: error.to_string() }
    }

    pub(crate) fn open(source: EbpfError) -> Self {
        match source {
            EbpfError::MapError(MapError::CreateError { name, io_error }) => match io_error.raw_os_error() {
                Some(libc::EPERM) => Self::Privilege { what: format!("cannot create map {name}") },
                Some(libc::ENOMEM) => Self::Memory { what: format!("cannot create map {name}") },
                _ => Self::CreateMap { name, reason: io_error },
            },
            source => Self::Open(source),
        }
    }

    pub(super) fn load(name: &'static str, source: ProgramError) -> Self {
        match source {
            ProgramError::LoadError { io_error, verifier_log } => {
                let log = verifier_log.to_string();
                if io_error.raw_os_error() == Some(libc::ENOMEM) {
                    return Self::Memory { what: format!("cannot load program {name}") };
                }
                if io_error.raw_os_error() == Some(libc::EPERM) && log.trim().is_empty() {
                    return Self::Privilege { what: format!("cannot load program {name}") };
                }
                let reason =
                    rejection(&log).map_or_else(|| io_error.to_string(), |line| format!("{line} ({io_error})"));
                tracing::debug!(program = name, %log, "verifier log");
                Self::Load { name, reason }
            }
            source => Self::Load { name, reason: source.to_string() },
        }
    }

    pub(super) fn map(name: &'static str, source: MapError) -> Self {
        Self::Map { name, source }
    }

    pub(super) fn attach(name: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.raw_os_error() {
            Some(libc::EPERM) => Self::Exclusive { name, path },
            Some(libc::E2BIG) => Self::TooManyPrograms { name, path },
            Some(libc::EMFILE | libc::ENFILE) => Self::TooManyFiles { name, path },
            Some(libc::EBADF | libc::ENOTDIR | libc::EINVAL) => Self::NoCgroup { path },
            _ => Self::Attach { name, path, source },
        }
    }
}

/// Returns the last line of the verifier log that is not a statistic.
fn rejection(log: &str) -> Option<&str> {
    const STATISTICS: [&str; 3] = ["verification time ", "stack depth ", "processed "];
    // One line per function, since Linux 7.
    let is_of_function = |line: &str| line.starts_with("subprog ") && line.contains(" insns_self ");
    log.lines().rev().find(|line| {
        !line.is_empty() && !STATISTICS.iter().any(|begin| line.starts_with(begin)) && !is_of_function(line)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_is_what_comes_before_the_statistics() {
        let log = "139: (b7) r1 = 0\nR0 tried to add from different maps\nverification time 27867 usec\nstack depth 8+8\n\
                   processed 1455 insns (limit 1000000)\n\n";
        assert_eq!(rejection(log), Some("R0 tried to add from different maps"));
        assert_eq!(rejection("\n"), None);
    }

    #[test]
    fn the_verdict_is_found_before_the_statistics_of_functions() {
        let log = "BPF program is too large. Processed 1000001 insn\nverification time 1870 usec\n\
                   subprog 0 (main) static insns_self 2280 insns_total 4188987 stack 80\nprocessed 1000001 insns\n";
        assert_eq!(rejection(log), Some("BPF program is too large. Processed 1000001 insn"));
    }
}
