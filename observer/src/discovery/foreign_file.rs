//! Reads a file of an untrusted process: confined to a directory, only regular files, and with a timeout. The process
//! may itself serve the file system (FUSE), in which even a lookup may block forever.

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};

use super::proc_files::descriptor_path;

/// Timeout of a read.
const READ_TIMEOUT: Duration = Duration::from_millis(250);
/// Maximum number of reads in progress, including those that have timed out.
const MAX_READERS: usize = 4;
const STACK_BYTES: usize = 128 << 10;

static READERS: AtomicUsize = AtomicUsize::new(0);

/// What a path is relative to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// The process's root: absolute paths and links begin here.
    Root,
    /// A directory that the path must not leave.
    Directory,
}

/// Reads at most `max_bytes` bytes of the file at `path`, relative to `directory`.
///
/// # Errors
/// There is no such file, it is not a regular file, it lies elsewhere, or reading timed out.
pub fn read(directory: &Path, base: Base, path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    if READERS.fetch_add(1, Ordering::Relaxed) >= MAX_READERS {
        READERS.fetch_sub(1, Ordering::Relaxed);
        return Err(io::Error::new(io::ErrorKind::WouldBlock, "files before it are still being read"));
    }
    let (answer, answered) = mpsc::channel();
    let (directory, path) = (directory.to_owned(), path.to_owned());
    let work = move || {
        let content = read_now(&directory, base, &path, max_bytes);
        READERS.fetch_sub(1, Ordering::Relaxed);
        // The receiver is gone after a timeout.
        let _ = answer.send(content);
    };
    let started = thread::Builder::new().name("foreign-file".to_owned()).stack_size(STACK_BYTES).spawn(work);
    if let Err(error) = started {
        READERS.fetch_sub(1, Ordering::Relaxed);
        return Err(error);
    }
    answered.recv_timeout(READ_TIMEOUT).map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

fn read_now(directory: &Path, base: Base, path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let directory =
        rustix::fs::openat(CWD, directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let within = if base == Base::Root { ResolveFlags::IN_ROOT } else { ResolveFlags::BENEATH };
    // Only a path is opened: opening a device may have effects.
    let found = rustix::fs::openat2(
        directory,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        within | ResolveFlags::NO_MAGICLINKS,
    )?;
    if FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(descriptor_path(&found))?;
    let mut content = Vec::new();
    file.take(max_bytes).read_to_end(&mut content)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn read_at(root: &Path, path: &str) -> io::Result<Vec<u8>> {
        read(root, Base::Root, Path::new(path), 8)
    }

    #[test]
    fn reads_so_much_and_no_more() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("file"), "0123456789").unwrap();
        assert_eq!(read_at(root.path(), "/file").unwrap(), b"01234567");
        assert_eq!(read(root.path(), Base::Directory, Path::new("file"), 99).unwrap(), b"0123456789");
    }

    #[test]
    fn links_are_the_processs_own() {
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::NamedTempFile::new().unwrap());
        fs::write(outside.path(), "outside").unwrap();
        fs::write(root.path().join("inside"), "inside").unwrap();
        symlink("/inside", root.path().join("link")).unwrap();
        symlink(outside.path(), root.path().join("escape")).unwrap();
        symlink("../../../../../../../../etc/passwd", root.path().join("climb")).unwrap();
        assert_eq!(read_at(root.path(), "link").unwrap(), b"inside");
        for name in ["escape", "climb"] {
            assert!(read_at(root.path(), name).is_err(), "{name}");
            assert!(read(root.path(), Base::Directory, Path::new(name), 9).is_err(), "{name}");
        }
        assert!(read(root.path(), Base::Directory, outside.path(), 9).is_err());
    }

    #[test]
    fn what_is_no_file_is_not_opened() {
        let root = tempfile::tempdir().unwrap();
        rustix::fs::mknodat(CWD, root.path().join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        fs::create_dir(root.path().join("directory")).unwrap();
        for name in ["fifo", "directory"] {
            assert_eq!(read_at(root.path(), name).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name}");
        }
        assert_eq!(read_at(root.path(), "absent").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
