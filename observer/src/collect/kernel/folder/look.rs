//! What lies in a folder for pins, looked at without taking it or changing anything.

use std::{io, path::Path};

use rustix::fs::{Access, access};

use super::{Folder, FolderError, holder::holder, on_bpffs};

/// A folder that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The process that uses it now.
    pub holder: Option<String>,
    /// Attachments to cgroups.
    pub links: usize,
    /// Layouts of which maps are here.
    pub layouts: Vec<String>,
}

/// What is in it, or nothing if it is still to be made.
///
/// # Errors
/// It cannot be used; the message says why, and what to do.
pub fn look(path: &Path) -> Result<Option<Found>, FolderError> {
    let is_there = path.exists();
    let place = if is_there { path } else { path.parent().unwrap_or(path) };
    let (file, metadata) = match on_bpffs(place) {
        Err(FolderError::Io { reason, .. }) if reason.kind() == io::ErrorKind::NotFound => {
            return Err(FolderError::no_parent(path));
        }
        Err(FolderError::NotBpffs { .. }) => return Err(FolderError::NotBpffs { path: path.to_owned() }),
        opened => opened?,
    };
    access(place, Access::WRITE_OK).map_err(|errno| FolderError::io("cannot write to", place)(errno.into()))?;
    if !is_there {
        return Ok(None);
    }
    let folder = Folder { path: path.to_owned(), _file: file };
    folder.refuse_foreign()?;
    Ok(Some(Found { holder: holder(&metadata), links: folder.links()?.len(), layouts: folder.layouts()? }))
}
