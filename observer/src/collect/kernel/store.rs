//! What the observer remembers over a restart: one text in a pinned map ([`text`]).

pub mod text;

use std::{
    io::{self, Write},
    path::Path,
};

use super::Error;
use aya::maps::{HashMap, Map, MapData, MapError};
use aya_obj::generated::{BPF_F_NO_PREALLOC, bpf_map_type};
use text::{PAGE, Page, Pages, Text};

/// Pages of both generations; memory is taken as they are written.
const MOST_PAGES: u32 = 1 << 15;
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

/// The store; only one process at a time writes it ([`super::folder::Folder`]).
#[derive(Debug)]
pub struct Store(Text<HashMap<MapData, u64, Page>>);

impl Store {
    /// Opens the store pinned at `path`, or makes it; and what it holds, if anything.
    pub(super) fn open(path: &Path) -> Result<(Self, Option<Vec<u8>>), Error> {
        let map = match MapData::from_pin(path) {
            Ok(map) => map,
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => make(path)?,
            Err(error) => return Err(Error::state(path, error)),
        };
        let pages = HashMap::try_from(Map::HashMap(map)).map_err(|error| Error::state(path, error))?;
        let (text, read) = Text::open(pages).map_err(|error| Error::state(path, error))?;
        Ok((Self(text), read))
    }

    /// Replaces what it holds by what is written.
    ///
    /// # Errors
    /// It does not fit, or memory is short; what it held before stays.
    pub fn write(&mut self, text: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        self.0.write(text)
    }
}

fn make(path: &Path) -> Result<MapData, Error> {
    let kind = bpf_map_type::BPF_MAP_TYPE_HASH as u32;
    let sizes = (size_of::<u64>() as u32, PAGE as u32);
    let definition = aya_obj::Map::new_from_params(kind, sizes.0, sizes.1, MOST_PAGES, BPF_F_NO_PREALLOC);
    let map = MapData::create(definition, NAME, None).map_err(|error| Error::open(error.into()))?;
    map.pin(path).map_err(|error| Error::state(path, error))?;
    Ok(map)
}
