//! Batches that wait on disk until the receiver accepts them, one file each, oldest first.
//!
//! A file is written under a temporary name and renamed, so that it is never read half-written. It is not synced: it is to
//! outlive the process, not a power failure. A batch that was being sent when the observer was killed is sent again.

use std::{
    collections::VecDeque,
    fmt::Display,
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use flate2::read::GzDecoder;
use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::transport::gzip;
use crate::model::encode::{Batch, Form};

/// End of a batch's file name, after its number, its points and the word for its form.
const EXTENSION: &str = "gz";
/// Maximum size of a batch, decompressed: far more than any that is written here.
const MAX_BATCH_BYTES: u64 = 8 << 20;
/// Upper bound of points and numbers in file names: sums of them do not overflow.
const MAX_NUMBER: u64 = u64::MAX >> 20;
/// Number of the first batch: parts of the oldest one take lower numbers.
const FIRST_NUMBER: u64 = 1 << 20;
/// The file being written.
const TEMPORARY: &str = "unfinished";
/// Locked by the observer that uses the directory.
const LOCK: &str = "lock";

/// A directory of batches. It is created, and the batches of an earlier run are found, at its first use.
#[derive(Debug)]
pub struct DiskQueue {
    directory: PathBuf,
    limit_bytes: u64,
    opened: Option<Opened>,
}

#[derive(Debug)]
struct Opened {
    /// Holds the lock while open.
    _lock: File,
    waiting: VecDeque<Entry>,
    next_number: u64,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    name: String,
    points: u64,
    form: Form,
    bytes: u64,
}

/// Why the directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("queue directory {directory}: {problem}; batches wait in memory meanwhile (--queue-dir)")]
pub struct DiskQueueError {
    directory: PathBuf,
    problem: String,
}

impl DiskQueueError {
    /// There is no directory, or work on it was aborted.
    pub(super) fn absent() -> Self {
        Self { directory: PathBuf::new(), problem: "there is none".to_owned() }
    }
}

/// Batches that wait on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Points.
    pub points: u64,
    /// Bytes of the files.
    pub bytes: u64,
}

/// The oldest batch.
#[derive(Debug, PartialEq, Eq)]
pub enum Oldest {
    /// No batch waits.
    None,
    /// The batch.
    Batch(Batch),
    /// It cannot be read; this many points are lost.
    Unreadable(u64),
}

impl DiskQueue {
    /// Creates a queue in `directory` of at most `limit_bytes` on disk.
    #[must_use]
    pub fn new(directory: PathBuf, limit_bytes: u64) -> Self {
        Self { directory, limit_bytes, opened: None }
    }

    /// Returns the sizes of all batches.
    ///
    /// # Errors
    /// The directory cannot be used.
    pub fn waiting(&mut self) -> Result<Waiting, DiskQueueError> {
        let waiting = &self.open()?.waiting;
        Ok(Waiting {
            points: waiting.iter().map(|entry| entry.points).sum(),
            bytes: waiting.iter().map(|entry| entry.bytes).sum(),
        })
    }

    /// Appends a batch. Returns how many points were dropped to make room: the oldest, or its own.
    ///
    /// # Errors
    /// It cannot be written; nothing was dropped.
    pub fn push(&mut self, batch: &Batch) -> Result<u64, DiskQueueError> {
        let packed = gzip(&batch.body);
        if packed.len() as u64 > self.limit_bytes {
            return Ok(batch.points);
        }
        let number = self.open()?.next_number;
        let entry = self.write(number, batch, &packed)?;
        let opened = self.open()?;
        opened.next_number += 1;
        opened.waiting.push_back(entry);
        let mut dropped = 0;
        while self.waiting()?.bytes > self.limit_bytes {
            dropped += self.remove_oldest();
        }
        Ok(dropped)
    }

    /// Puts parts of the oldest batch in its place, the last of them first: behind newer ones, their receiver would refuse
    /// them as out of order.
    ///
    /// # Errors
    /// They cannot be written; the oldest batch stays.
    pub fn replace_oldest(&mut self, parts: &[Batch]) -> Result<(), DiskQueueError> {
        let oldest = self.open()?.waiting.front().map_or(FIRST_NUMBER, |entry| entry.number);
        let mut entries = Vec::new();
        for (below, part) in (1..).zip(parts) {
            let number = oldest.checked_sub(below).ok_or_else(|| self.error(&"no number is free"))?;
            entries.push(self.write(number, part, &gzip(&part.body))?);
        }
        self.remove_oldest();
        let waiting = &mut self.open()?.waiting;
        entries.into_iter().for_each(|entry| waiting.push_front(entry));
        Ok(())
    }

    fn write(&self, number: u64, batch: &Batch, packed: &[u8]) -> Result<Entry, DiskQueueError> {
        let name = file_name(number, batch);
        let (unfinished, finished) = (self.directory.join(TEMPORARY), self.directory.join(&name));
        let written = fs::write(&unfinished, packed).and_then(|()| fs::rename(&unfinished, finished));
        if let Err(error) = written {
            // On a full disk the partial file would take space from smaller batches.
            let _ = fs::remove_file(unfinished);
            return Err(self.error(&error));
        }
        Ok(Entry { number, name, points: batch.points, form: batch.form, bytes: packed.len() as u64 })
    }

    /// Reads the oldest batch; it stays.
    ///
    /// # Errors
    /// The directory cannot be used.
    pub fn oldest(&mut self) -> Result<Oldest, DiskQueueError> {
        let Some(entry) = self.open()?.waiting.front() else { return Ok(Oldest::None) };
        let (name, points, form) = (entry.name.clone(), entry.points, entry.form);
        let mut body = Vec::new();
        let read = File::open(self.directory.join(name))
            .and_then(|file| GzDecoder::new(file).take(MAX_BATCH_BYTES + 1).read_to_end(&mut body));
        Ok(match read {
            Ok(_) if body.len() as u64 <= MAX_BATCH_BYTES => Oldest::Batch(Batch { body: body.into(), points, form }),
            _ => Oldest::Unreadable(points),
        })
    }

    /// Removes the oldest batch; returns its points.
    pub fn remove_oldest(&mut self) -> u64 {
        let Some(entry) = self.opened.as_mut().and_then(|opened| opened.waiting.pop_front()) else { return 0 };
        // One that cannot be removed is sent again after a restart.
        let _ = fs::remove_file(self.directory.join(&entry.name));
        entry.points
    }

    fn open(&mut self) -> Result<&mut Opened, DiskQueueError> {
        let opened = match self.opened.take() {
            Some(opened) => opened,
            None => Opened::find(&self.directory).map_err(|error| self.error(&error))?,
        };
        Ok(self.opened.insert(opened))
    }

    fn error(&self, problem: &dyn Display) -> DiskQueueError {
        DiskQueueError { directory: self.directory.clone(), problem: problem.to_string() }
    }
}

impl Opened {
    fn find(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        // Do not follow a symbolic link, and do not write while another observer holds the lock.
        let mut options = File::options();
        let mut lock = options
            .create(true)
            .truncate(false)
            .write(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(directory.join(LOCK))?;
        lock.try_lock().map_err(|_| io::Error::other("another observer uses it"))?;
        lock.set_len(0)?;
        writeln!(lock, "{}", std::process::id())?;
        let mut waiting = Vec::new();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some((number, points, form)) = parse(&name) {
                waiting.push(Entry { number, name, points, form, bytes: entry.metadata()?.len() });
            }
        }
        waiting.sort_unstable_by_key(|entry| entry.number);
        let next_number = waiting.last().map_or(FIRST_NUMBER, |entry| entry.number + 1);
        Ok(Self { _lock: lock, waiting: waiting.into(), next_number })
    }
}

fn file_name(number: u64, batch: &Batch) -> String {
    format!("{number:020}.{}.{}.{EXTENSION}", batch.points, batch.form.word())
}

/// Parses number, points and form from a file name.
fn parse(name: &str) -> Option<(u64, u64, Form)> {
    let mut parts = name.split('.');
    let mut number = || parts.next()?.parse().ok().filter(|number| *number <= MAX_NUMBER);
    let (number, points) = (number()?, number()?);
    let word = parts.next()?;
    let form = Form::ALL.into_iter().find(|form| form.word() == word)?;
    (parts.next() == Some(EXTENSION) && parts.next().is_none()).then_some((number, points, form))
}

/// Whether another observer uses the directory now. Nothing is created or changed.
///
/// # Errors
/// It cannot be used: it or its nearest existing ancestor is not a directory, or not writable.
pub fn is_in_use(directory: &Path) -> Result<bool, DiskQueueError> {
    let error =
        |problem: &dyn Display| DiskQueueError { directory: directory.to_owned(), problem: problem.to_string() };
    let present = directory.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    if !present.is_dir() {
        return Err(error(&format!("{} is not a directory", present.display())));
    }
    accessat(CWD, present, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS).map_err(|reason| {
        error(&format!("{} may not be written to: {}", present.display(), io::Error::from(reason)))
    })?;
    let lock = File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(directory.join(LOCK));
    Ok(lock.is_ok_and(|lock| lock.try_lock().is_err()))
}

/// Returns the names of directories in `parent` that hold batches and are not among `used`: those of former receivers.
#[must_use]
pub fn orphans(parent: &Path, used: &[String]) -> Vec<String> {
    let holds_batches = |directory: &Path| {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name()).any(|name| parse(&name.to_string_lossy()).is_some())
    };
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let mut orphans: Vec<String> = entries
        .filter(|entry| holds_batches(&entry.path()))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| !used.contains(name))
        .collect();
    orphans.sort_unstable();
    orphans
}

/// Converts a text to a directory name.
#[must_use]
pub fn directory_name(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '.') { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(text: &str) -> Batch {
        Batch { body: text.to_owned().into(), points: text.lines().count() as u64, form: Form::Points }
    }

    #[test]
    fn batches_come_back_in_order_also_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("deep/down");
        let mut queue = DiskQueue::new(place.clone(), 1 << 20);
        assert_eq!(queue.waiting().unwrap(), Waiting::default());
        assert_eq!(queue.oldest().unwrap(), Oldest::None);
        let distribution = Batch { form: Form::Distributions, ..batch("d\n") };
        for batch in [&batch("a\nb\n"), &batch("c\n"), &distribution] {
            assert_eq!(queue.push(batch).unwrap(), 0);
        }
        assert_eq!(queue.oldest().unwrap(), Oldest::Batch(batch("a\nb\n")));
        assert_eq!(queue.remove_oldest(), 2);
        drop(queue);
        fs::write(place.join(TEMPORARY), "half").unwrap();
        fs::write(place.join("note.txt"), "not ours").unwrap();
        let mut queue = DiskQueue::new(place, 1 << 20);
        assert_eq!(queue.waiting().unwrap().points, 2);
        queue.push(&batch("e\n")).unwrap();
        let rest = std::iter::from_fn(|| match queue.oldest().unwrap() {
            Oldest::Batch(batch) => Some((batch, queue.remove_oldest())),
            _ => None,
        });
        assert_eq!(rest.collect::<Vec<_>>(), [(batch("c\n"), 1), (distribution, 1), (batch("e\n"), 1)]);
    }

    #[test]
    fn the_oldest_go_when_there_is_no_room() {
        let directory = tempfile::tempdir().unwrap();
        let one = batch("a\nb\n");
        let size = gzip(&one.body).len() as u64;
        let mut queue = DiskQueue::new(directory.path().to_owned(), 2 * size);
        assert_eq!([1, 2, 3].map(|_| queue.push(&one).unwrap()), [0, 0, 2]);
        assert_eq!(queue.waiting().unwrap(), Waiting { points: 4, bytes: 2 * size });
        let mut queue = DiskQueue::new(directory.path().join("other"), size - 1);
        assert_eq!(queue.push(&one).unwrap(), 2);
        assert_eq!(queue.waiting().unwrap(), Waiting::default());
    }

    #[test]
    fn what_cannot_be_read_is_known_by_its_points() {
        let directory = tempfile::tempdir().unwrap();
        let mut queue = DiskQueue::new(directory.path().to_owned(), 1 << 20);
        queue.push(&batch("a\nb\n")).unwrap();
        fs::write(directory.path().join(&queue.opened.as_ref().unwrap().waiting[0].name), "garbage").unwrap();
        assert_eq!(queue.oldest().unwrap(), Oldest::Unreadable(2));
        // A megabyte may hold a thousand.
        let bomb = gzip("x".repeat(MAX_BATCH_BYTES as usize + 1).as_bytes());
        assert!(bomb.len() < 100_000);
        fs::write(directory.path().join(&queue.opened.as_ref().unwrap().waiting[0].name), bomb).unwrap();
        assert_eq!(queue.oldest().unwrap(), Oldest::Unreadable(2));
    }

    #[test]
    fn a_file_of_a_name_that_no_batch_has_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        for name in [format!("{}.1.points.gz", u64::MAX), format!("1.{}.points.gz", u64::MAX), "1.1.x.gz".to_owned()] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        let mut queue = DiskQueue::new(directory.path().to_owned(), 1 << 20);
        queue.push(&batch("a\n")).unwrap();
        assert_eq!(queue.waiting().unwrap().points, 1);
        assert_eq!(queue.oldest().unwrap(), Oldest::Batch(batch("a\n")));
    }

    #[test]
    fn parts_take_the_place_of_the_oldest_also_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let mut queue = DiskQueue::new(directory.path().to_owned(), 1 << 20);
        for text in ["a\nb\nc\n", "d\n"] {
            queue.push(&batch(text)).unwrap();
        }
        // Alike in all but their content.
        queue.replace_oldest(&[batch("c\n"), batch("b\n")]).unwrap();
        assert_eq!(queue.waiting().unwrap().points, 3);
        assert_eq!(queue.oldest().unwrap(), Oldest::Batch(batch("b\n")));
        drop(queue);
        let mut queue = DiskQueue::new(directory.path().to_owned(), 1 << 20);
        for text in ["b\n", "c\n", "d\n"] {
            assert_eq!(queue.oldest().unwrap(), Oldest::Batch(batch(text)));
            queue.remove_oldest();
        }
        assert_eq!(queue.oldest().unwrap(), Oldest::None);
    }

    #[test]
    fn a_directory_that_cannot_be_used_is_named_and_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("taken");
        fs::write(&place, "a file").unwrap();
        let mut queue = DiskQueue::new(place.clone(), 1 << 20);
        let error = queue.push(&batch("a\n")).unwrap_err().to_string();
        assert!(error.contains(place.to_str().unwrap()) && error.contains("--queue-dir"), "{error}");
        fs::remove_file(&place).unwrap();
        assert_eq!(queue.push(&batch("a\n")).unwrap(), 0);
        let error = DiskQueue::new(place, 1 << 20).push(&batch("a\n")).unwrap_err().to_string();
        assert!(error.contains("another observer uses it"), "{error}");
    }

    #[test]
    fn what_waits_for_a_receiver_that_is_not_named_any_more_is_found() {
        let directory = tempfile::tempdir().unwrap();
        assert!(orphans(&directory.path().join("none"), &[]).is_empty());
        for name in ["old", "used"] {
            DiskQueue::new(directory.path().join(name), 1 << 20).push(&batch("a\n")).unwrap();
        }
        fs::create_dir(directory.path().join("others")).unwrap();
        fs::write(directory.path().join("others/file"), "").unwrap();
        assert_eq!(orphans(directory.path(), &["used".to_owned()]), ["old"]);
    }

    #[test]
    fn looking_says_who_uses_a_directory_and_what_is_in_the_way_and_makes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("deep/down");
        assert!(!is_in_use(&place).unwrap() && !directory.path().join("deep").exists());
        let mut queue = DiskQueue::new(place.clone(), 1 << 20);
        queue.waiting().unwrap();
        assert!(is_in_use(&place).unwrap());
        drop(queue);
        assert!(!is_in_use(&place).unwrap());
        let file = place.join("file");
        fs::write(&file, "").unwrap();
        let error = is_in_use(&file.join("below")).unwrap_err().to_string();
        assert!(error.contains("is not a directory") && error.contains("--queue-dir"), "{error}");
    }

    #[test]
    fn a_lock_that_is_a_link_leads_nowhere() {
        let directory = tempfile::tempdir().unwrap();
        let victim = directory.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        let place = directory.path().join("queue");
        fs::create_dir(&place).unwrap();
        std::os::unix::fs::symlink(&victim, place.join(LOCK)).unwrap();
        assert!(DiskQueue::new(place, 1 << 20).push(&batch("a\n")).is_err());
        assert_eq!(fs::read_to_string(victim).unwrap(), "precious");
    }

    #[test]
    fn a_target_makes_one_name() {
        assert_eq!(directory_name("wavefront+http://a:2878/x"), "wavefront_http___a_2878_x");
    }
}
