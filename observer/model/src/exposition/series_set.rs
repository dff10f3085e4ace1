//! Detects duplicate series.

use std::{
    collections::HashSet,
    hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState},
};

use super::event::Sample;

/// Set of series, by a 64-bit digest of name and labels in any order.
#[derive(Debug)]
pub struct SeriesSet {
    seed: u64,
    digests: HashSet<u64, BuildHasherDefault<IdentityHasher>>,
}

impl Default for SeriesSet {
    fn default() -> Self {
        // The seed is random, so that an exporter cannot prepare two series with one digest.
        Self { seed: RandomState::new().hash_one(0), digests: HashSet::default() }
    }
}

impl SeriesSet {
    /// Adds a series and returns whether it is new.
    pub fn insert(&mut self, sample: &Sample<'_>) -> bool {
        self.insert_as(sample.name, sample.labels.iter().map(|(name, value)| (name.plain(), value.plain())))
    }

    /// Adds a series by name and labels, and returns whether it is new. An empty label counts as absent, as in
    /// Prometheus.
    pub fn insert_as(&mut self, name: &str, labels: impl Iterator<Item = (impl AsRef<str>, impl AsRef<str>)>) -> bool {
        let mut digest = fold(self.seed, name.as_bytes());
        for (name, value) in labels {
            let (name, value) = (name.as_ref(), value.as_ref());
            if !value.is_empty() {
                digest = digest.wrapping_add(fold(fold(!self.seed, name.as_bytes()), value.as_bytes()));
            }
        }
        self.digests.insert(digest)
    }

    /// Clears the set before another exposition.
    pub fn clear(&mut self) {
        self.digests.clear();
    }
}

/// Digests eight bytes per step, each by one wide multiplication.
fn fold(seed: u64, bytes: &[u8]) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |state: u64, word: u64| {
        let wide = u128::from(state ^ word) * u128::from(ODD);
        #[expect(clippy::cast_possible_truncation, reason = "both halves are used")]
        let folded = wide as u64 ^ (wide >> 64) as u64;
        folded.wrapping_add(ODD)
    };
    let (words, rest) = bytes.as_chunks::<8>();
    let state = words.iter().fold(mix(seed, bytes.len() as u64), |state, word| mix(state, u64::from_le_bytes(*word)));
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    mix(mix(state, u64::from_le_bytes(last)), seed)
}

/// Uses a digest as its own hash.
#[derive(Debug, Default)]
struct IdentityHasher(u64);

impl Hasher for IdentityHasher {
    fn write(&mut self, _bytes: &[u8]) {
        unreachable!("only digests are hashed");
    }

    fn write_u64(&mut self, digest: u64) {
        self.0 = digest;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
