//! Programs, maps and links that are left in the kernel, by their ids.

use std::{collections::BTreeSet, io, time::Duration};

use anyhow::{Result, ensure};
use harness::{bpf, wait::wait_until};

/// Kinds of objects with the command that returns the next id [linux/bpf.h].
const KINDS: [(&str, libc::c_long); 3] = [("program", 11), ("map", 12), ("link", 31)];
/// The kernel frees objects after a grace period.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(20);

/// Kinds and ids.
pub(crate) type Objects = BTreeSet<(&'static str, u32)>;

/// Returns every object that exists now.
pub(crate) fn objects() -> Result<Objects> {
    let mut found = BTreeSet::new();
    for (kind, command) in KINDS {
        let mut id = 0;
        loop {
            // start_id and next_id, two numbers of 32 bits
            let mut attributes = [u64::from(id), 0];
            if let Err(error) = bpf::call(command, &mut attributes) {
                ensure!(error.kind() == io::ErrorKind::NotFound, "{kind}s cannot be listed: {error}");
                break;
            }
            id = u32::try_from(attributes[0] >> 32)?;
            found.insert((kind, id));
        }
    }
    Ok(found)
}

/// Waits until no object exists that did not exist `before`.
pub(crate) fn wait_for_none(before: &Objects) -> Result<()> {
    wait_until("nothing is left in the kernel", RELEASE_TIMEOUT, || {
        let now = objects()?;
        let left: Vec<_> = now.difference(before).collect();
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
}
