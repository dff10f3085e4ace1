//! The map that holds the persisted state as one text ([`paged_text`]).

pub mod paged_text;

use std::{
    io::{self, Write},
    path::Path,
};

use self::paged_text::{PAGE, Page, PagedText, Pages};
use crate::kernel::error::KernelError;
use aya::maps::{HashMap, Map, MapData, MapError};
use aya_obj::generated::{BPF_F_NO_PREALLOC, bpf_map_type};

/// Pages of both generations; allocated as they are written.
const MAX_PAGES: u32 = 1 << 15;
const NAME: &str = "mesh_state";

impl Pages for HashMap<MapData, u64, Page> {
    fn get(&self, key: u64) -> io::Result<Option<Page>> {
        match HashMap::get(self, &key, 0) {
            Err(MapError::KeyNotFound) => Ok(None),
            page => page.map(Some).map_err(io::Error::other),
        }
    }

    fn set(&mut self, key: u64, page: &Page) -> io::Result<()> {
        self.insert(key, page, 0).map_err(io::Error::other)
    }

    fn remove(&mut self, key: u64) -> io::Result<()> {
        match HashMap::remove(self, &key) {
            Err(MapError::KeyNotFound) => Ok(()),
            result => result.map_err(io::Error::other),
        }
    }

    fn keys(&self) -> io::Result<Vec<u64>> {
        HashMap::keys(self).collect::<Result<_, _>>().map_err(io::Error::other)
    }
}

/// The map; one process at a time writes it ([`PinDir`](super::pin_dir::PinDir)).
#[derive(Debug)]
pub struct StateMap(PagedText<HashMap<MapData, u64, Page>>);

impl StateMap {
    /// Opens the map pinned at `path`, or creates it; returns its text, if any.
    pub(super) fn open(path: &Path) -> Result<(Self, Option<Vec<u8>>), KernelError> {
        let map = match MapData::from_pin(path) {
            Ok(map) => map,
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => create(path)?,
            Err(error) => return Err(KernelError::state(path, error)),
        };
        let pages = HashMap::try_from(Map::HashMap(map)).map_err(|error| KernelError::state(path, error))?;
        let (text, read) = PagedText::open(pages).map_err(|error| KernelError::state(path, error))?;
        Ok((Self(text), read))
    }

    /// Replaces the text by what the function writes.
    ///
    /// # Errors
    /// The text does not fit, or memory is short; the previous text stays.
    pub fn write(&mut self, text: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        self.0.write(text)
    }
}

fn create(path: &Path) -> Result<MapData, KernelError> {
    let kind = bpf_map_type::BPF_MAP_TYPE_HASH as u32;
    let sizes = (size_of::<u64>() as u32, PAGE as u32);
    let definition = aya_obj::Map::new_from_params(kind, sizes.0, sizes.1, MAX_PAGES, BPF_F_NO_PREALLOC);
    let map = MapData::create(definition, NAME, None).map_err(|error| KernelError::open(error.into()))?;
    map.pin(path).map_err(|error| KernelError::state(path, error))?;
    Ok(map)
}
