//! Arrays in the memory of this process, where programs go on changing them: neither a system call nor a copy per element.
//!
//! Programs change a counter by an atomic addition to its word, and each word is loaded once and whole: a value is never
//! torn. The words of an element are loaded one after another, so that part of what is added to several of them may be
//! missing until the next reading. The same holds for elements that the kernel copies: its lookups in arrays lock nothing,
//! and copy the very memory that is mapped here.

#![expect(unsafe_code, reason = "mmap(2)")]

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd, AsRawFd},
    ptr::{self, NonNull},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use aya::{
    Pod,
    maps::{Array, Map, MapError},
};

/// The first elements of an array with `BPF_F_MMAPABLE`, until dropped: they count as resident memory while mapped, though
/// the map has them anyway.
pub(super) struct Mapped<V> {
    start: NonNull<AtomicU64>,
    elements: usize,
    values: PhantomData<V>,
}

impl<V: Pod> Mapped<V> {
    /// Words per element; the kernel aligns elements to words, too.
    const WORDS: usize = {
        assert!(size_of::<V>().is_multiple_of(8), "elements are read word by word");
        size_of::<V>() / 8
    };

    /// Maps the first `elements` of an array of `V`, or all if it has fewer.
    pub(super) fn new(map: &Map, elements: u32) -> Result<Self, MapError> {
        // Checks the sizes.
        let array = Array::<_, V>::try_from(map)?;
        let Map::Array(map) = map else { return Err(MapError::InvalidMapType { map_type: 0 }) };
        let elements = elements.min(array.len()) as usize;
        if elements == 0 {
            return Ok(Self { start: NonNull::dangling(), elements, values: PhantomData });
        }
        let (length, fd) = (elements * size_of::<V>(), map.fd().as_fd().as_raw_fd());
        // SAFETY: a new mapping, wherever the kernel has room for it.
        let start = unsafe { libc::mmap(ptr::null_mut(), length, libc::PROT_READ, libc::MAP_SHARED, fd, 0) };
        match NonNull::new(start) {
            Some(start) if start.as_ptr() != libc::MAP_FAILED => {
                Ok(Self { start: start.cast(), elements, values: PhantomData })
            }
            _ => Err(MapError::IoError(io::Error::last_os_error())),
        }
    }

    /// Returns the words of an element, each of which may change at any time; `None` if it is not mapped.
    pub(super) fn words(&self, index: u32) -> Option<&[AtomicU64]> {
        let index = Some(index as usize).filter(|index| *index < self.elements)?;
        // SAFETY: within the mapping, which lasts as long as `self`, is aligned to pages, and can be read. Other writers are
        // programs and system calls; words are only loaded, as memory that cannot be written allows.
        Some(unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(index * Self::WORDS), Self::WORDS) })
    }

    /// Copies an element; `None` if it is not mapped.
    pub(super) fn get(&self, index: u32) -> Option<V> {
        let words = self.words(index)?;
        let mut value = std::mem::MaybeUninit::<V>::uninit();
        for (at, word) in words.iter().enumerate() {
            // SAFETY: `V` consists of as many words, and may be aligned to less.
            unsafe { value.as_mut_ptr().cast::<u64>().add(at).write_unaligned(word.load(Relaxed)) };
        }
        // SAFETY: every word was written, and every bit pattern is valid for plain data.
        Some(unsafe { value.assume_init() })
    }
}

impl<V> Drop for Mapped<V> {
    fn drop(&mut self) {
        if self.elements > 0 {
            // SAFETY: the mapping that was made, to which no reference is left.
            unsafe { libc::munmap(self.start.as_ptr().cast(), self.elements * size_of::<V>()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aya::maps::MapData;
    use aya_obj::generated::{BPF_F_MMAPABLE, bpf_map_type::BPF_MAP_TYPE_ARRAY};

    /// Three elements of two words; `None` without the privilege to make any map.
    fn array(flags: u32) -> Option<Map> {
        let definition = aya_obj::Map::new_from_params(BPF_MAP_TYPE_ARRAY as u32, 4, 16, 3, flags);
        match MapData::create(definition, "words", None) {
            Ok(map) => Some(Map::from_map_data(map).unwrap()),
            Err(MapError::CreateError { io_error, .. }) if io_error.kind() == io::ErrorKind::PermissionDenied => None,
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn elements_change_under_the_mapping_and_others_are_not_there() {
        let Some(mut map) = array(BPF_F_MMAPABLE) else { return };
        let mapped = Mapped::<[u64; 2]>::new(&map, 2).unwrap();
        assert_eq!((mapped.get(1), mapped.get(2)), (Some([0, 0]), None));
        let mut elements = Array::<_, [u64; 2]>::try_from(&mut map).unwrap();
        elements.set(1, [5, u64::MAX], 0).unwrap();
        elements.set(2, [6, 7], 0).unwrap();
        assert_eq!((mapped.get(0), mapped.get(1)), (Some([0, 0]), Some([5, u64::MAX])));
        assert_eq!(mapped.words(1).unwrap()[0].load(Relaxed), 5);
        let all = Mapped::<[u64; 2]>::new(&map, u32::MAX).unwrap();
        assert_eq!((all.get(2), all.get(3)), (Some([6, 7]), None));
        assert_eq!(Mapped::<[u64; 2]>::new(&map, 0).unwrap().get(0), None);
    }

    #[test]
    fn arrays_without_the_flag_or_of_other_values_are_refused() {
        let (Some(plain), Some(mappable)) = (array(0), array(BPF_F_MMAPABLE)) else { return };
        assert!(Mapped::<[u64; 2]>::new(&plain, 1).is_err());
        assert!(Mapped::<u64>::new(&mappable, 1).is_err());
    }
}
