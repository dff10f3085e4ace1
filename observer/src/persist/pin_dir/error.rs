//! Why a directory for pins cannot be used.

use std::{
    io,
    path::{Path, PathBuf},
};

/// Why a directory for pins cannot be used, with the remedy.
#[derive(Debug, thiserror::Error)]
pub enum PinDirError {
    /// Another file system.
    #[error(
        "{path} is not on a bpffs: name a directory on one, e.g. /sys/fs/bpf/mesh-observer (`mount -t bpf bpf /sys/fs/bpf` \
         makes it, a container needs the host's)"
    )]
    NotBpffs {
        /// The directory.
        path: PathBuf,
    },
    /// Its parent is not there.
    #[error(
        "{path} cannot be created, since {parent} does not exist: create that first, or name a directory right on a bpffs"
    )]
    NoParent {
        /// The directory.
        path: PathBuf,
        /// What is missing.
        parent: PathBuf,
    },
    /// Something is in it that no observer put there.
    #[error(
        "{path} holds {what}, which is not the observer's: name a directory that only the observer uses; nothing was changed"
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// Another observer uses it.
    #[error("{path} is in use by {owner}: stop it first, or name another directory")]
    Locked {
        /// The directory.
        path: PathBuf,
        /// Which process.
        owner: String,
    },
    /// Anything else.
    #[error(
        "{what} {path}: {reason}; the directory must be writable for this user (root, or the owner of a bpffs mounted for it)"
    )]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        reason: io::Error,
    },
}

impl PinDirError {
    pub(crate) fn no_parent(path: &Path) -> Self {
        Self::NoParent { path: path.to_owned(), parent: path.parent().unwrap_or(path).to_owned() }
    }

    pub(crate) fn io(what: &'static str, path: &Path) -> impl Fn(io::Error) -> Self {
        let path = path.to_owned();
        move |reason| Self::Io { what, path: path.clone(), reason }
    }
}
