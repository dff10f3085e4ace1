//! The folder on bpffs that `--pin` names: who holds it, and what lies where in it.
//!
//! ```text
//! DIR/state               what the observer remembers (`store`)
//! DIR/maps-HASH/NAME      the maps of one layout, by the layout's hash
//! DIR/links/CGROUP-NAME   what attaches a program to a cgroup, by the cgroup's id
//! ```
//! Names on bpffs must not contain a dot.

mod error;
mod holder;
mod look;

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

use super::sys;
pub use error::FolderError;
use holder::holder;
pub use look::{Found, look};

/// Source: kernel `include/uapi/linux/magic.h`.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
const STATE: &str = "state";
const LINKS: &str = "links";
const MAPS: &str = "maps-";

/// The folder, held by this process alone until it is dropped.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// Locked as long as it is open.
    _file: File,
}

/// A pinned attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PinnedLink {
    pub(super) cgroup_id: u64,
    pub(super) program: String,
    pub(super) path: PathBuf,
}

/// What was taken away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Attachments to cgroups.
    pub links: usize,
    /// Maps, what was remembered included.
    pub maps: usize,
}

impl Folder {
    /// Takes the folder for this process; makes it if its parent is on a bpffs.
    ///
    /// # Errors
    /// It cannot be used; the message says why, and what to do.
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        let is_new = match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(FolderError::no_parent(path));
            }
            Err(reason) => return Err(FolderError::io("cannot make", path)(reason)),
        };
        let taken = Self::lock(path);
        if is_new && taken.is_err() {
            // What was made for nothing; the reason counts more than whether it goes.
            let _ = fs::remove_dir(path);
        }
        let folder = taken?;
        folder.make(&folder.path.join(LINKS))?;
        Ok(folder)
    }

    /// Takes the folder if it is there.
    ///
    /// # Errors
    /// As [`Folder::open`].
    pub fn existing(path: &Path) -> Result<Option<Self>, FolderError> {
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            _ => Self::lock(path).map(Some),
        }
    }

    fn lock(path: &Path) -> Result<Self, FolderError> {
        let (file, metadata) = on_bpffs(path)?;
        match flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let holder = holder(&metadata).unwrap_or_else(|| "another process".to_owned());
                return Err(FolderError::Held { path: path.to_owned(), holder });
            }
            Err(errno) => return Err(FolderError::io("cannot lock", path)(errno.into())),
        }
        let folder = Self { path: path.to_owned(), _file: file };
        folder.refuse_foreign()?;
        Ok(folder)
    }

    fn refuse_foreign(&self) -> Result<(), FolderError> {
        let is_own = |name: &str| name == STATE || name == LINKS || name.starts_with(MAPS);
        match self.names(&self.path)?.into_iter().find(|name| !is_own(name)) {
            Some(what) => Err(FolderError::Foreign { path: self.path.clone(), what }),
            None => Ok(()),
        }
    }

    /// Where the observer's memory is pinned.
    pub(super) fn state(&self) -> PathBuf {
        self.path.join(STATE)
    }

    /// The folder of a layout's maps.
    pub(super) fn maps(&self, layout: &str) -> PathBuf {
        self.path.join(format!("{MAPS}{layout}"))
    }

    /// As [`Folder::maps`], made if it is not there.
    pub(super) fn make_maps(&self, layout: &str) -> Result<PathBuf, FolderError> {
        let maps = self.maps(layout);
        self.make(&maps)?;
        Ok(maps)
    }

    /// The layouts of which maps are here.
    pub(super) fn layouts(&self) -> Result<Vec<String>, FolderError> {
        let names = self.names(&self.path)?;
        Ok(names.iter().filter_map(|name| name.strip_prefix(MAPS)).map(str::to_owned).collect())
    }

    /// Removes the maps of a layout; those not there are gone already.
    pub(super) fn remove_maps(&self, layout: &str) -> Result<usize, FolderError> {
        self.remove_files_and_folder(&self.maps(layout), |_| {})
    }

    /// Where the attachment of a program to a cgroup is pinned.
    pub(super) fn link(&self, cgroup_id: u64, program: &str) -> PathBuf {
        self.path.join(LINKS).join(format!("{cgroup_id}-{program}"))
    }

    /// Every attachment that is pinned.
    pub(super) fn links(&self) -> Result<Vec<PinnedLink>, FolderError> {
        let links = self.path.join(LINKS);
        let pinned = |name: String| {
            let (cgroup_id, program) = name.split_once('-')?;
            let (cgroup_id, program) = (cgroup_id.parse().ok()?, program.to_owned());
            Some(PinnedLink { cgroup_id, program, path: links.join(&name) })
        };
        Ok(self.names(&links)?.into_iter().filter_map(pinned).collect())
    }

    /// Detaches every program and removes every map, and the folder itself.
    ///
    /// # Errors
    /// Something cannot be removed; what was removed before stays removed.
    pub fn remove(self) -> Result<Removed, FolderError> {
        let mut removed = Removed::default();
        removed.links += self.remove_files_and_folder(&self.path.join(LINKS), detach)?;
        for layout in self.layouts()? {
            removed.maps += self.remove_maps(&layout)?;
        }
        removed.maps += usize::from(gone(fs::remove_file(self.state())).map_err(self.io("cannot remove"))?);
        match fs::remove_dir(&self.path) {
            // The folder is where the bpffs is mounted.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            result => drop(gone(result).map_err(self.io("cannot remove"))?),
        }
        Ok(removed)
    }

    fn make(&self, path: &Path) -> Result<(), FolderError> {
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(self.io("cannot make a folder in")(error))
            }
            _ => Ok(()),
        }
    }

    /// How many files there were.
    fn remove_files_and_folder(&self, folder: &Path, before: impl Fn(&Path)) -> Result<usize, FolderError> {
        let names = self.names(folder)?;
        for name in &names {
            let path = folder.join(name);
            before(&path);
            gone(fs::remove_file(&path)).map_err(self.io("cannot remove what is in"))?;
        }
        gone(fs::remove_dir(folder)).map_err(self.io("cannot remove what is in"))?;
        Ok(names.len())
    }

    fn names(&self, folder: &Path) -> Result<Vec<String>, FolderError> {
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(self.io("cannot list"))?,
        };
        entries
            .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
            .collect::<Result<_, _>>()
            .map_err(self.io("cannot list"))
    }

    fn io(&self, what: &'static str) -> impl Fn(io::Error) -> FolderError {
        FolderError::io(what, &self.path)
    }
}

/// Opens a folder that must be on a bpffs.
fn on_bpffs(path: &Path) -> Result<(File, Metadata), FolderError> {
    let file = File::open(path).map_err(FolderError::io("cannot open", path))?;
    let system = fstatfs(&file).map_err(|errno| FolderError::io("cannot examine", path)(errno.into()))?;
    let metadata = file.metadata().map_err(FolderError::io("cannot examine", path))?;
    if system.f_type as u64 != BPF_FS_MAGIC || !metadata.is_dir() {
        return Err(FolderError::NotBpffs { path: path.to_owned() });
    }
    Ok((file, metadata))
}

/// Detaches what is pinned at `path` at once; when the last that knows a link lets it go, it would be a moment later.
pub(super) fn detach(path: &Path) {
    // It may be detached already, its cgroup being gone.
    let _ = sys::open(path).and_then(|link| sys::detach_link(link.as_fd()));
}

/// Whether it was there.
fn gone(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        result => result.map(|()| true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_on_another_file_system_is_refused_and_not_left_behind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pins");
        let error = Folder::open(&path).unwrap_err().to_string();
        assert!(error.contains("is not on a bpffs") && error.contains("mount -t bpf"), "{error}");
        assert!(!path.exists());
        let error = Folder::open(&path.join("deeper")).unwrap_err().to_string();
        assert!(error.contains("pins is not there"), "{error}");
        for (path, reason) in [(&path, "is not on a bpffs"), (&path.join("deeper"), "pins is not there")] {
            let error = look(path).unwrap_err().to_string();
            assert!(error.starts_with(&path.display().to_string()) && error.contains(reason), "{error}");
        }
        assert!(Folder::existing(&path).unwrap().is_none());
    }
}
