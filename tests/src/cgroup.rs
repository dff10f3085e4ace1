//! cgroup v2 directories of the mesh: one per container.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::wait::wait_until;

/// Returns the mount point of cgroup v2 (unified or hybrid hosts), from `/proc/self/mountinfo`.
pub fn root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo cannot be read")?;
    mounts
        .lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            after.starts_with("cgroup2 ").then(|| before.split(' ').nth(4))?
        })
        .next()
        .map(PathBuf::from)
        .context("cgroup v2 is not mounted: mount it (`mount -t cgroup2 none /sys/fs/cgroup`)")
}

/// A cgroup that is removed, with every process in and under it, when dropped.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes the directory, its parents included.
    pub fn create(path: PathBuf) -> Result<Self> {
        fs::create_dir_all(&path).with_context(|| format!("cgroup {} cannot be created", path.display()))?;
        Ok(Self { path })
    }

    /// Returns its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Kills every process in and under it and removes the directories.
    pub fn remove(&self) -> Result<()> {
        remove(&self.path)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("{error:#}");
        }
    }
}

/// Kills every process in and under `path` and removes the directories; absent is done already.
pub fn remove(path: &Path) -> Result<()> {
    if !path.is_dir() {
        return Ok(());
    }
    fs::write(path.join("cgroup.kill"), "1").with_context(|| format!("{} cannot be killed", path.display()))?;
    wait_until("a killed cgroup is empty", Duration::from_secs(5), || {
        let events = fs::read_to_string(path.join("cgroup.events"))?;
        ensure!(!events.contains("populated 1"), "cgroup {} still has processes", path.display());
        Ok(())
    })?;
    remove_directories(path)
}

fn remove_directories(path: &Path) -> Result<()> {
    for entry in fs::read_dir(path)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_directories(&entry.path())?;
        }
    }
    fs::remove_dir(path).with_context(|| format!("cgroup {} cannot be removed", path.display()))
}
