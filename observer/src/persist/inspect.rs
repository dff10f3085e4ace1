//! Inspects a pin directory without locking or changing it.

use std::{io, path::Path};

use rustix::fs::{Access, access};

use super::pin_dir::{PinDir, error::PinDirError, lock_owner::lock_owner, on_bpffs};

/// Contents of a directory that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// The process that uses it now.
    pub lock_owner: Option<String>,
    /// Number of links to cgroups.
    pub links: usize,
    /// ABI hashes of the maps.
    pub abi_hashes: Vec<String>,
}

/// Returns the contents; `None` if the directory does not exist yet.
///
/// # Errors
/// It cannot be used; the message has the reason and the remedy.
pub fn inspect(path: &Path) -> Result<Option<Contents>, PinDirError> {
    let is_there = path.exists();
    let place = if is_there { path } else { path.parent().unwrap_or(path) };
    let (file, metadata) = match on_bpffs(place) {
        Err(PinDirError::Io { reason, .. }) if reason.kind() == io::ErrorKind::NotFound => {
            return Err(PinDirError::no_parent(path));
        }
        Err(PinDirError::NotBpffs { .. }) => return Err(PinDirError::NotBpffs { path: path.to_owned() }),
        opened => opened?,
    };
    access(place, Access::WRITE_OK).map_err(|errno| PinDirError::io("cannot write to", place)(errno.into()))?;
    if !is_there {
        return Ok(None);
    }
    let directory = PinDir { path: path.to_owned(), _file: file };
    directory.refuse_foreign_files()?;
    Ok(Some(Contents {
        lock_owner: lock_owner(&metadata),
        links: directory.links()?.len(),
        abi_hashes: directory.abi_hashes()?,
    }))
}
