//! Limits of the receivers and of the encoder.

// Lengths of metric name, source, tag key, and of key and value together in UTF-16 units; number of tags: the service's
// defaults.
pub(super) const MAX_NAME_LENGTH: usize = 256;
pub(super) const MAX_SOURCE_LENGTH: usize = 128;
pub(super) const MAX_KEY_LENGTH: usize = 64;
pub(super) const MAX_TAG_LENGTH: usize = 254;
pub(super) const MAX_TAGS: usize = 20;
/// Longest line a proxy accepts, bytes.
pub(super) const MAX_LINE_LENGTH: usize = 32 * 1024;
/// Lines per batch, the default of Wavefront's own senders.
pub(super) const MAX_BATCH_POINTS: u64 = 10_000;
/// Bytes at which a batch is full; a proxy accepts 16 MiB.
pub(super) const MAX_BATCH_BYTES: usize = 512 * 1024;
/// Prefix of a delta counter's name.
pub(super) const DELTA_PREFIX: &str = "\u{2206}";
/// Centroids of a distribution, the service's own cap where it sets one.
pub(super) const MAX_CENTROIDS: usize = 100;
/// A centroid's count is a Java `int`.
pub(super) const MAX_CENTROID_COUNT: u64 = i32::MAX as u64;

/// Names whose filter result is cached: more than istiod and Envoy have.
pub(super) const MAX_CACHED_NAMES: usize = 4096;
