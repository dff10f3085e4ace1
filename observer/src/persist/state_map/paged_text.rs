//! A text in pages, replaced whole.
//!
//! The pages of a text have a generation, which becomes valid once the header names it. The header is one page, which is
//! replaced atomically: a process killed while writing leaves the previous text.

use std::io::{self, Write};

use flate2::Crc;

/// Bytes of a page: with the kernel's overhead per element just under 4 KiB.
pub const PAGE: usize = 4000;
/// Key of the header; a page's key is its generation and its number.
const HEADER: u64 = u64::MAX;
/// Begins the header, and identifies its layout.
const MAGIC: [u8; 8] = *b"meshobs1";

/// A page.
pub type Page = [u8; PAGE];

/// Storage of pages.
pub trait Pages {
    /// Returns the page of this key, if there is one.
    ///
    /// # Errors
    /// It cannot be read.
    fn get(&self, key: u64) -> io::Result<Option<Page>>;
    /// Replaces the page of this key.
    ///
    /// # Errors
    /// It cannot be written; the previous one stays.
    fn set(&mut self, key: u64, page: &Page) -> io::Result<()>;
    /// Removes the page of this key, if there is one.
    ///
    /// # Errors
    /// It cannot be removed.
    fn remove(&mut self, key: u64) -> io::Result<()>;
    /// Returns every key.
    ///
    /// # Errors
    /// They cannot be listed.
    fn keys(&self) -> io::Result<Vec<u64>>;
}

/// A text in pages.
#[derive(Debug)]
pub struct PagedText<P> {
    pages: P,
    generation: u32,
}

impl<P: Pages> PagedText<P> {
    /// Reads the text, if any, and removes pages left by an unfinished write.
    ///
    /// # Errors
    /// The pages cannot be read or are corrupt; then nothing is removed.
    pub fn open(pages: P) -> io::Result<(Self, Option<Vec<u8>>)> {
        let mut text = Self { pages, generation: 0 };
        let header = text.pages.get(HEADER)?.map(|page| Header::decode(&page)).transpose()?;
        let read = header.as_ref().map(|header| text.read(header)).transpose()?;
        text.generation = header.map_or(0, |header| header.generation);
        text.remove_stale_pages()?;
        Ok((text, read))
    }

    fn read(&self, header: &Header) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        let length = header.length as usize;
        for number in 0..length.div_ceil(PAGE) {
            let page = self.pages.get(key(header.generation, number))?.ok_or_else(corrupt)?;
            text.extend(page.iter().take(length - number * PAGE));
        }
        if checksum(&text) == header.checksum { Ok(text) } else { Err(corrupt()) }
    }

    /// Replaces the text by what the function writes; it is never in memory whole.
    ///
    /// # Errors
    /// A page cannot be written; the previous text stays.
    pub fn write(&mut self, text: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        let generation = self.generation.wrapping_add(1) & GENERATIONS;
        let mut writer = Writer::new(&mut self.pages, generation);
        match text(&mut writer).and_then(|()| writer.finish()) {
            Ok(header) => self.pages.set(HEADER, &header.encode())?,
            Err(error) => {
                self.remove_stale_pages()?;
                return Err(error);
            }
        }
        self.generation = generation;
        self.remove_stale_pages()
    }

    /// Removes the pages of other generations.
    fn remove_stale_pages(&mut self) -> io::Result<()> {
        for key in self.pages.keys()? {
            if key != HEADER && key >> 32 != u64::from(self.generation) {
                self.pages.remove(key)?;
            }
        }
        Ok(())
    }
}

/// Splits what is written into pages.
struct Writer<'a, P> {
    pages: &'a mut P,
    generation: u32,
    /// Pages written.
    number: usize,
    page: Page,
    filled: usize,
    checksum: Crc,
}

impl<'a, P: Pages> Writer<'a, P> {
    fn new(pages: &'a mut P, generation: u32) -> Self {
        Self { pages, generation, number: 0, page: [0; PAGE], filled: 0, checksum: Crc::new() }
    }

    fn flush_page(&mut self) -> io::Result<()> {
        self.pages.set(key(self.generation, self.number), &self.page)?;
        self.number += 1;
        self.filled = 0;
        Ok(())
    }

    fn finish(mut self) -> io::Result<Header> {
        let length = (self.number * PAGE + self.filled) as u64;
        if self.filled > 0 {
            self.page.iter_mut().skip(self.filled).for_each(|byte| *byte = 0);
            self.flush_page()?;
        }
        Ok(Header { generation: self.generation, length, checksum: self.checksum.sum() })
    }
}

impl<P: Pages> Write for Writer<'_, P> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        if self.filled == PAGE {
            self.flush_page()?;
        }
        let mut free = self.page.get_mut(self.filled..).unwrap_or_default();
        let written = free.write(text)?;
        self.checksum.update(text.get(..written).unwrap_or_default());
        self.filled += written;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Keeps page keys distinct from the header's.
const GENERATIONS: u32 = u32::MAX >> 1;

fn key(generation: u32, number: usize) -> u64 {
    u64::from(generation) << 32 | number as u64
}

fn checksum(text: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(text);
    crc.sum()
}

fn corrupt() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "its pages are corrupt")
}

#[derive(Debug, PartialEq, Eq)]
struct Header {
    generation: u32,
    length: u64,
    checksum: u32,
}

impl Header {
    fn encode(&self) -> Page {
        let mut page = [0; PAGE];
        page[..8].copy_from_slice(&MAGIC);
        page[8..16].copy_from_slice(&self.length.to_le_bytes());
        page[16..20].copy_from_slice(&self.generation.to_le_bytes());
        page[20..24].copy_from_slice(&self.checksum.to_le_bytes());
        page
    }

    fn decode(page: &Page) -> io::Result<Self> {
        let field =
            |at: usize| page.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_le_bytes(*bytes));
        if !page.starts_with(&MAGIC) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it has an unknown format"));
        }
        let length = u64::from(field(12)) << 32 | u64::from(field(8));
        Ok(Self { generation: field(16), length, checksum: field(20) })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Takes so many writes, and then its writer is killed.
    #[derive(Clone, Default)]
    struct Mortal {
        pages: BTreeMap<u64, Page>,
        writes: usize,
    }

    impl Mortal {
        fn live(&mut self) -> io::Result<()> {
            self.writes = self.writes.checked_sub(1).ok_or(io::ErrorKind::StorageFull)?;
            Ok(())
        }
    }

    impl Pages for Mortal {
        fn get(&self, key: u64) -> io::Result<Option<Page>> {
            Ok(self.pages.get(&key).copied())
        }
        fn set(&mut self, key: u64, page: &Page) -> io::Result<()> {
            self.live()?;
            self.pages.insert(key, *page);
            Ok(())
        }
        fn remove(&mut self, key: u64) -> io::Result<()> {
            self.live()?;
            self.pages.remove(&key);
            Ok(())
        }
        fn keys(&self) -> io::Result<Vec<u64>> {
            Ok(self.pages.keys().copied().collect())
        }
    }

    fn reopened(text: &PagedText<Mortal>) -> (PagedText<Mortal>, Option<Vec<u8>>) {
        let pages = Mortal { writes: usize::MAX, ..text.pages.clone() };
        PagedText::open(pages).unwrap()
    }

    fn texts() -> impl Strategy<Value = Vec<u8>> {
        let length = prop_oneof![Just(0), Just(PAGE), Just(2 * PAGE), 0..4 * PAGE];
        length.prop_flat_map(|length| proptest::collection::vec(any::<u8>(), length))
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(texts in proptest::collection::vec(texts(), 1..5)) {
            let (mut text, none) = PagedText::open(Mortal { writes: usize::MAX, ..Mortal::default() }).unwrap();
            prop_assert_eq!(none, None);
            for written in texts {
                text.write(|page| page.write_all(&written)).unwrap();
                prop_assert_eq!(text.pages.pages.len(), 1 + written.len().div_ceil(PAGE));
                let (again, read) = reopened(&text);
                prop_assert_eq!(read, Some(written));
                text = again;
            }
        }

        #[test]
        fn killed_at_any_instant_one_of_both_texts_is_there_whole(before in texts(), after in texts()) {
            let (mut text, _) = PagedText::open(Mortal { writes: usize::MAX, ..Mortal::default() }).unwrap();
            text.write(|page| page.write_all(&before)).unwrap();
            for writes in 0.. {
                let pages = Mortal { writes, ..text.pages.clone() };
                let mut dying = PagedText { pages, generation: text.generation };
                let done = dying.write(|page| page.write_all(&after)).is_ok();
                let (again, read) = reopened(&dying);
                let read = read.unwrap();
                let whole = if done { read == after } else { read == before || read == after };
                prop_assert!(whole);
                prop_assert_eq!(again.pages.pages.len(), 1 + read.len().div_ceil(PAGE), "a page is left behind");
                if done {
                    break;
                }
            }
        }
    }

    #[test]
    fn what_is_no_longer_whole_is_not_read() {
        let (mut text, _) = PagedText::open(Mortal { writes: usize::MAX, ..Mortal::default() }).unwrap();
        text.write(|page| page.write_all(&[7; 3 * PAGE])).unwrap();
        let mut changed = text.pages.clone();
        changed.pages.get_mut(&key(1, 1)).unwrap()[5] ^= 1;
        assert!(PagedText::open(changed).is_err());
        let mut short = text.pages.clone();
        short.pages.remove(&key(1, 2));
        assert!(PagedText::open(short).is_err());
        text.pages.pages.get_mut(&HEADER).unwrap()[0] ^= 1;
        assert!(PagedText::open(text.pages).is_err());
    }
}
