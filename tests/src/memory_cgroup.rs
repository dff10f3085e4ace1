//! A cgroup that accounts for memory, that of the kernel included.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{self, Command},
};

use anyhow::{Context, Result};

use crate::{
    cgroup::{self, Cgroup},
    tools,
};

/// Of version 2 where that has the controller, else of version 1; removed when dropped.
#[derive(Debug)]
pub struct MemoryCgroup {
    path: PathBuf,
    version_2: Option<Cgroup>,
}

impl MemoryCgroup {
    /// Creates it, with a limit in bytes if there is one.
    pub fn new(limit: Option<u64>) -> Result<Self> {
        let name = format!("mesh-observer-memory-{}", process::id());
        let root = cgroup::root()?;
        let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        let memory = if controllers.split_whitespace().any(|it| it == "memory") {
            fs::write(root.join("cgroup.subtree_control"), "+memory").context("cgroup.subtree_control")?;
            let cgroup = Cgroup::create(root.join(name))?;
            Self { path: cgroup.path().to_owned(), version_2: Some(cgroup) }
        } else {
            let path = Path::new("/sys/fs/cgroup/memory").join(name);
            fs::create_dir(&path).with_context(|| format!("no memory controller: {}", path.display()))?;
            Self { path, version_2: None }
        };
        if let Some(limit) = limit {
            let file = memory.path.join(memory.file("memory.max", "memory.limit_in_bytes"));
            fs::write(&file, limit.to_string()).with_context(|| format!("{} cannot be set", file.display()))?;
        }
        Ok(memory)
    }

    /// Returns a command that becomes the one behind it, in this cgroup.
    pub fn command(&self) -> Result<Command> {
        let mut command = Command::new(tools::require("sh")?);
        command.args(["-c", "echo $$ > \"$0\"/cgroup.procs && exec \"$@\""]).arg(&self.path);
        Ok(command)
    }

    /// Returns the most bytes that were ever charged to it.
    pub fn peak(&self) -> Result<u64> {
        let file = self.path.join(self.file("memory.peak", "memory.max_usage_in_bytes"));
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        text.trim().parse().with_context(|| format!("{}: {text}", file.display()))
    }

    fn file(&self, version_2: &'static str, version_1: &'static str) -> &'static str {
        if self.version_2.is_some() { version_2 } else { version_1 }
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        // That of version 2 goes by itself.
        if self.version_2.is_none()
            && let Err(error) = fs::remove_dir(&self.path)
        {
            eprintln!("{}: {error}", self.path.display());
        }
    }
}
