//! A bpffs for one case.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::net::run;

/// A mounted bpffs; unmounted with its pins when dropped.
#[derive(Debug)]
pub struct Bpffs(PathBuf);

impl Bpffs {
    /// Mounts it in a directory: a mesh's own, so that it is swept with the mesh if this run crashes.
    pub fn mount(directory: &Path) -> Result<Self> {
        let path = directory.join("bpffs");
        fs::create_dir_all(&path)?;
        run("mount", &["-t", "bpf", "bpf", &path.display().to_string()])?;
        Ok(Self(path))
    }

    /// Returns the mount point.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Remounts it read-only.
    pub fn make_read_only(&self) -> Result<()> {
        run("mount", &["-o", "remount,ro", &self.0.display().to_string()]).map(drop)
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.0) {
            eprintln!("{error:#}");
        }
    }
}

/// Unmounts every bpffs below a directory.
pub(crate) fn unmount_below(directory: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo cannot be read")?;
    let bpffs = mounts.lines().filter(|line| line.contains(" - bpf "));
    let places = bpffs.filter_map(|line| line.split(' ').nth(4)).map(Path::new);
    places.filter(|place| place.starts_with(directory)).try_for_each(unmount)
}

/// Unmounts lazily, since an observer may still use it.
fn unmount(path: &Path) -> Result<()> {
    run("umount", &["--lazy", &path.display().to_string()]).map(drop)
}
