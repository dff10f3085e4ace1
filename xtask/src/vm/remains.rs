//! What is left in the kernel: programs, maps and links by their ids.

use std::{collections::BTreeSet, io, time::Duration};

use anyhow::{Result, ensure};
use harness::wait::wait_until;

/// Kinds of objects with the command that gives the next id [linux/bpf.h].
const KINDS: [(&str, libc::c_long); 3] = [("program", 11), ("map", 12), ("link", 31)];
/// The kernel frees them after a grace period.
const PATIENCE: Duration = Duration::from_secs(20);

/// Kinds and ids.
pub(super) type Objects = BTreeSet<(&'static str, u32)>;

/// Everything there is now.
pub(super) fn of_bpf() -> Result<Objects> {
    let mut found = BTreeSet::new();
    for (kind, command) in KINDS {
        // start_id, next_id, open_flags
        let mut attribute = [0_u32; 3];
        loop {
            // SAFETY: the kernel reads and writes within the given length.
            let result =
                unsafe { libc::syscall(libc::SYS_bpf, command, attribute.as_mut_ptr(), size_of_val(&attribute)) };
            if result < 0 {
                let error = io::Error::last_os_error();
                ensure!(error.raw_os_error() == Some(libc::ENOENT), "{kind}s cannot be listed: {error}");
                break;
            }
            found.insert((kind, attribute[1]));
            attribute[0] = attribute[1];
        }
    }
    Ok(found)
}

/// Waits until nothing is there that was not there `before`.
pub(super) fn gone(before: &Objects) -> Result<()> {
    wait_until("nothing is left behind in the kernel", PATIENCE, || {
        let now = of_bpf()?;
        let left: Vec<_> = now.difference(before).collect();
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
}
