//! Why a folder for pins cannot be used.

use std::{
    io,
    path::{Path, PathBuf},
};

/// Why a folder for pins cannot be used, with the remedy.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// Another file system.
    #[error(
        "{path} is not on a bpffs: name a folder on one, as in /sys/fs/bpf/mesh-observer (`mount -t bpf bpf /sys/fs/bpf` \
         makes it, a container needs the host's)"
    )]
    NotBpffs {
        /// The folder.
        path: PathBuf,
    },
    /// Its parent is not there.
    #[error("{path} cannot be made, since {parent} is not there: make that first, or name a folder right on a bpffs")]
    NoParent {
        /// The folder.
        path: PathBuf,
        /// What is missing.
        parent: PathBuf,
    },
    /// Something is in it that no observer put there.
    #[error(
        "{path} holds {what}, which is not the observer's: name a folder that is the observer's alone; nothing was touched"
    )]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// Another observer uses it.
    #[error("{path} is in use by {holder}: stop it first, or name another folder")]
    Held {
        /// The folder.
        path: PathBuf,
        /// Which process.
        holder: String,
    },
    /// Anything else.
    #[error(
        "{what} {path}: {reason}; the folder must be writable for this user (root, or the owner of a bpffs mounted for it)"
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

impl FolderError {
    pub(super) fn no_parent(path: &Path) -> Self {
        Self::NoParent { path: path.to_owned(), parent: path.parent().unwrap_or(path).to_owned() }
    }

    pub(super) fn io(what: &'static str, path: &Path) -> impl Fn(io::Error) -> Self {
        let path = path.to_owned();
        move |reason| Self::Io { what, path: path.clone(), reason }
    }
}
