//! The directory on bpffs that `--pin` names: its lock and its contents.
//!
//! ```text
//! DIR/state               the persisted state (`state_map`)
//! DIR/maps-HASH/NAME      the maps of one layout, by its ABI hash
//! DIR/links/CGROUP-NAME   a program's link to a cgroup, by the cgroup's id
//! ```
//! Names on bpffs must not contain a dot.

pub mod error;
pub mod lock_owner;

use std::{
    fs::{self, DirBuilder, File, Metadata},
    io,
    os::{fd::AsFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, flock, fstatfs},
    io::Errno,
};

use self::{error::PinDirError, lock_owner::lock_owner};
use crate::kernel::sys;

/// Source: kernel `include/uapi/linux/magic.h`.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
const STATE: &str = "state";
const LINKS: &str = "links";
const MAPS: &str = "maps-";

/// The directory, locked by this process until dropped.
#[derive(Debug)]
pub struct PinDir {
    pub(super) path: PathBuf,
    /// Holds the lock while open.
    pub(super) _file: File,
}

/// A pinned link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PinnedLink {
    pub(crate) cgroup_id: u64,
    pub(crate) program: String,
    pub(crate) path: PathBuf,
}

/// Numbers of removed pins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Links to cgroups.
    pub links: usize,
    /// Maps, including the persisted state.
    pub maps: usize,
}

impl PinDir {
    /// Locks the directory; creates it if its parent is on a bpffs.
    ///
    /// # Errors
    /// It cannot be used; the message has the reason and the remedy.
    pub fn open(path: &Path) -> Result<Self, PinDirError> {
        let is_new = match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(PinDirError::no_parent(path));
            }
            Err(reason) => return Err(PinDirError::io("cannot create", path)(reason)),
        };
        let locked = Self::lock(path);
        if is_new && locked.is_err() {
            // The error matters more than whether the new directory can be removed.
            let _ = fs::remove_dir(path);
        }
        let directory = locked?;
        directory.create(&directory.path.join(LINKS))?;
        Ok(directory)
    }

    /// Locks the directory; `None` if it does not exist.
    ///
    /// # Errors
    /// As [`PinDir::open`].
    pub fn open_existing(path: &Path) -> Result<Option<Self>, PinDirError> {
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            _ => Self::lock(path).map(Some),
        }
    }

    fn lock(path: &Path) -> Result<Self, PinDirError> {
        let (file, metadata) = on_bpffs(path)?;
        match flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let owner = lock_owner(&metadata).unwrap_or_else(|| "another process".to_owned());
                return Err(PinDirError::Locked { path: path.to_owned(), owner });
            }
            Err(errno) => return Err(PinDirError::io("cannot lock", path)(errno.into())),
        }
        let directory = Self { path: path.to_owned(), _file: file };
        directory.refuse_foreign_files()?;
        Ok(directory)
    }

    pub(crate) fn refuse_foreign_files(&self) -> Result<(), PinDirError> {
        let is_own = |name: &str| name == STATE || name == LINKS || name.starts_with(MAPS);
        match self.names(&self.path)?.into_iter().find(|name| !is_own(name)) {
            Some(what) => Err(PinDirError::Foreign { path: self.path.clone(), what }),
            None => Ok(()),
        }
    }

    /// Returns the path of the persisted state.
    pub(crate) fn state(&self) -> PathBuf {
        self.path.join(STATE)
    }

    /// Returns the directory of the maps with this ABI hash.
    pub(crate) fn maps(&self, abi_hash: &str) -> PathBuf {
        self.path.join(format!("{MAPS}{abi_hash}"))
    }

    /// Returns [`PinDir::maps`], created if it does not exist.
    pub(crate) fn make_maps_dir(&self, abi_hash: &str) -> Result<PathBuf, PinDirError> {
        let maps = self.maps(abi_hash);
        self.create(&maps)?;
        Ok(maps)
    }

    /// Returns the ABI hashes of the maps in the directory.
    pub(crate) fn abi_hashes(&self) -> Result<Vec<String>, PinDirError> {
        let names = self.names(&self.path)?;
        Ok(names.iter().filter_map(|name| name.strip_prefix(MAPS)).map(str::to_owned).collect())
    }

    /// Removes the maps with this ABI hash, if they exist.
    pub(crate) fn remove_maps(&self, abi_hash: &str) -> Result<usize, PinDirError> {
        self.remove_dir(&self.maps(abi_hash), |_| {})
    }

    /// Returns the path of a program's link to a cgroup.
    pub(crate) fn link(&self, cgroup_id: u64, program: &str) -> PathBuf {
        self.path.join(LINKS).join(format!("{cgroup_id}-{program}"))
    }

    /// Returns every pinned link.
    pub(crate) fn links(&self) -> Result<Vec<PinnedLink>, PinDirError> {
        let links = self.path.join(LINKS);
        let pinned = |name: String| {
            let (cgroup_id, program) = name.split_once('-')?;
            let (cgroup_id, program) = (cgroup_id.parse().ok()?, program.to_owned());
            Some(PinnedLink { cgroup_id, program, path: links.join(&name) })
        };
        Ok(self.names(&links)?.into_iter().filter_map(pinned).collect())
    }

    /// Detaches every program, and removes every map and the directory itself.
    ///
    /// # Errors
    /// A file cannot be removed; those before it stay removed.
    pub fn remove(self) -> Result<Removed, PinDirError> {
        let mut removed = Removed::default();
        removed.links += self.remove_dir(&self.path.join(LINKS), detach)?;
        for abi_hash in self.abi_hashes()? {
            removed.maps += self.remove_maps(&abi_hash)?;
        }
        removed.maps += usize::from(gone(fs::remove_file(self.state())).map_err(self.io("cannot remove"))?);
        match fs::remove_dir(&self.path) {
            // The directory is the mount point of the bpffs.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            result => drop(gone(result).map_err(self.io("cannot remove"))?),
        }
        Ok(removed)
    }

    fn create(&self, path: &Path) -> Result<(), PinDirError> {
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(self.io("cannot create a directory in")(error))
            }
            _ => Ok(()),
        }
    }

    /// Returns the number of files.
    fn remove_dir(&self, directory: &Path, before: impl Fn(&Path)) -> Result<usize, PinDirError> {
        let names = self.names(directory)?;
        for name in &names {
            let path = directory.join(name);
            before(&path);
            gone(fs::remove_file(&path)).map_err(self.io("cannot remove what is in"))?;
        }
        gone(fs::remove_dir(directory)).map_err(self.io("cannot remove what is in"))?;
        Ok(names.len())
    }

    fn names(&self, directory: &Path) -> Result<Vec<String>, PinDirError> {
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(self.io("cannot list"))?,
        };
        entries
            .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
            .collect::<Result<_, _>>()
            .map_err(self.io("cannot list"))
    }

    fn io(&self, what: &'static str) -> impl Fn(io::Error) -> PinDirError {
        PinDirError::io(what, &self.path)
    }
}

/// Opens a directory on a bpffs.
pub(crate) fn on_bpffs(path: &Path) -> Result<(File, Metadata), PinDirError> {
    let file = File::open(path).map_err(PinDirError::io("cannot open", path))?;
    let system = fstatfs(&file).map_err(|errno| PinDirError::io("cannot examine", path)(errno.into()))?;
    let metadata = file.metadata().map_err(PinDirError::io("cannot examine", path))?;
    if system.f_type as u64 != BPF_FS_MAGIC || !metadata.is_dir() {
        return Err(PinDirError::NotBpffs { path: path.to_owned() });
    }
    Ok((file, metadata))
}

/// Detaches the link pinned at `path` at once, rather than a moment after its last reference is dropped.
fn detach(path: &Path) {
    // It is detached already if its cgroup was removed.
    let _ = sys::open(path).and_then(|link| sys::detach_link(link.as_fd()));
}

/// Whether it existed.
fn gone(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        result => result.map(|()| true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::persist::inspect::inspect;

    #[test]
    fn a_directory_on_another_file_system_is_refused_and_not_left_behind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pins");
        let error = PinDir::open(&path).unwrap_err().to_string();
        assert!(error.contains("is not on a bpffs") && error.contains("mount -t bpf"), "{error}");
        assert!(!path.exists());
        let error = PinDir::open(&path.join("deeper")).unwrap_err().to_string();
        assert!(error.contains("pins does not exist"), "{error}");
        for (path, reason) in [(&path, "is not on a bpffs"), (&path.join("deeper"), "pins does not exist")] {
            let error = inspect(path).unwrap_err().to_string();
            assert!(error.starts_with(&path.display().to_string()) && error.contains(reason), "{error}");
        }
        assert!(PinDir::open_existing(&path).unwrap().is_none());
    }
}
