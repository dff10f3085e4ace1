//! The observer's own CPU time, memory and file limit.

#![expect(unsafe_code, reason = "getrusage(2) and malloc_trim(3)")]

use std::{fs, time::Duration};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// CPU time and memory; `None` if they cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// User and system time.
    pub cpu: Option<Duration>,
    /// Resident memory.
    pub resident_bytes: Option<u64>,
}

/// Reads the usage.
#[must_use]
pub fn usage() -> Usage {
    let resident = fs::read_to_string("/proc/self/statm").ok().as_deref().and_then(resident_pages);
    Usage { cpu: cpu(), resident_bytes: resident.map(|pages| pages * procfs::page_size()) }
}

/// Returns free heap memory to the system, where the C library keeps it.
pub fn trim_heap() {
    // SAFETY: the argument is a number, and the allocator locks itself.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Raises the limit of open files to the maximum: each observed cgroup needs seven.
pub fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    // If it cannot be raised, sidecars that cannot be observed because of it are logged.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

fn cpu() -> Option<Duration> {
    // SAFETY: the structure is plain integers, and the call fills it.
    let usage = unsafe {
        let mut usage = std::mem::zeroed::<libc::rusage>();
        (libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) == 0).then_some(usage)
    }?;
    let time = |value: libc::timeval| Duration::new(value.tv_sec as u64, value.tv_usec as u32 * 1_000);
    Some(time(usage.ru_utime) + time(usage.ru_stime))
}

/// Second field of `/proc/PID/statm`, in pages (proc(5)).
fn resident_pages(statm: &str) -> Option<u64> {
    statm.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_the_second_field() {
        assert_eq!(resident_pages("1000 42 7 1 0 8 0\n"), Some(42));
        assert_eq!(resident_pages("x"), None);
    }

    #[test]
    fn this_process_uses_something() {
        let usage = usage();
        assert!(usage.cpu.is_some() && usage.resident_bytes.is_some_and(|bytes| bytes > 100_000));
    }
}
