//! The owner of the lock on a directory, from `/proc/locks` [proc_locks(5)].

use std::{
    fs::{self, Metadata},
    os::linux::fs::MetadataExt,
};

/// Returns the process that holds the lock, if any.
pub(crate) fn lock_owner(directory: &Metadata) -> Option<String> {
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let device = directory.st_dev();
    let file = format!("{:02x}:{:02x}:{}", libc::major(device), libc::minor(device), directory.st_ino());
    pid_of_lock(&locks, &file).map(|pid| format!("process {pid}"))
}

fn pid_of_lock<'a>(locks: &'a str, file: &str) -> Option<&'a str> {
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let held = fields.get(1) == Some(&"FLOCK") && fields.get(5) == Some(&file);
        // 0 stands for a process of another namespace.
        fields.get(4).copied().filter(|pid| held && *pid != "0")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_of_a_lock_is_found() {
        let locks = "1: FLOCK  ADVISORY  WRITE 23061 00:27:1561158 0 EOF\n2: POSIX  ADVISORY  WRITE 7 00:27:5 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 9 00:27:6 0 EOF\n3: FLOCK  ADVISORY  WRITE 0 00:27:8 0 EOF\n";
        assert_eq!(pid_of_lock(locks, "00:27:1561158"), Some("23061"));
        for other in ["00:27:5", "00:27:6", "00:27:7", "00:27:8"] {
            assert_eq!(pid_of_lock(locks, other), None, "{other}");
        }
    }
}
