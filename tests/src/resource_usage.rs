//! Resource usage of a process: memory, open files, BPF objects.

use std::{fmt, fs};

use anyhow::{Context, Result};

/// Resource usage at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResourceUsage {
    /// Anonymous resident memory: pages of files can be dropped and are shared.
    pub anonymous_bytes: u64,
    /// Open files of any kind.
    pub files: usize,
    /// BPF links among them.
    pub links: usize,
    /// BPF maps among them.
    pub maps: usize,
    /// Bytes of the maps by the kernel's account, without socket storage.
    pub map_bytes: u64,
}

impl ResourceUsage {
    /// Reads it for a process.
    pub fn of(pid: u32) -> Result<Self> {
        let process = format!("/proc/{pid}");
        let status = fs::read_to_string(format!("{process}/status")).context("the process's status")?;
        let kilobytes = number(&status, "RssAnon:").context("no RssAnon in the process's status")?;
        let mut held = Self { anonymous_bytes: kilobytes * 1024, files: 0, links: 0, maps: 0, map_bytes: 0 };
        for entry in fs::read_dir(format!("{process}/fdinfo")).context("the process's open files")?.flatten() {
            // A file may be closed while they are listed.
            let Ok(text) = fs::read_to_string(entry.path()) else { continue };
            held.files += 1;
            held.links += usize::from(text.contains("link_id:"));
            if text.contains("map_id:") {
                held.maps += 1;
                held.map_bytes += number(&text, "memlock:").unwrap_or(0);
            }
        }
        Ok(held)
    }
}

impl fmt::Display for ResourceUsage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { anonymous_bytes, files, links, maps, map_bytes } = self;
        write!(
            formatter,
            "{} kB of its own, {files} files, {links} links, {maps} maps of {} kB",
            anonymous_bytes / 1024,
            map_bytes / 1024
        )
    }
}

fn number(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key))?.split_whitespace().next()?.parse().ok()
}
