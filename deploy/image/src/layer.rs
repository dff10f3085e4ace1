//! The image's only layer: a tar archive whose bytes depend on nothing but the files.

use std::{collections::BTreeSet, path::Path};

use anyhow::Result;
use tar::{Builder, EntryType, Header};

use crate::contents::{File, Files};

/// Returns the files and their directories as a tar archive. `modified` is in seconds since 1970.
pub(crate) fn write(files: &Files, modified: u64) -> Result<Vec<u8>> {
    let mut archive = Builder::new(Vec::new());
    let parents = |place| Path::new(place).ancestors().skip(1).filter(|path| !path.as_os_str().is_empty());
    let directories: BTreeSet<&Path> = files.keys().flat_map(parents).collect();
    for directory in directories {
        let mut header = header(EntryType::Directory, 0o755, 0, modified);
        archive.append_data(&mut header, format!("{}/", directory.display()), &[][..])?;
    }
    for (place, File { bytes, mode }) in files {
        let mut header = header(EntryType::Regular, *mode, u64::try_from(bytes.len())?, modified);
        archive.append_data(&mut header, place, &bytes[..])?;
    }
    Ok(archive.into_inner()?)
}

/// Returns the header of an entry that belongs to root.
pub(crate) fn header(kind: EntryType, mode: u32, size: u64, modified: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(modified);
    header.set_uid(0);
    header.set_gid(0);
    header
}
