//! Encoders: each renders the [families](crate::Family) of a snapshot in one format.

#![cfg_attr(
    not(test),
    deny(
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::unreachable,
        clippy::unwrap_used
    )
)]

pub mod json;
pub mod prometheus;
pub mod selection;
pub mod wavefront;

use std::sync::Arc;

use bytes::Bytes;

use crate::Snapshot;

/// Part of a push, sent in one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Lines, each terminated by a line feed.
    pub text: Bytes,
    /// Number of points, one per line.
    pub points: u64,
    /// Content of the lines.
    pub form: Form,
}

/// Content of lines; some receivers have an endpoint for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One value per line.
    Points,
    /// Many values per line.
    Distributions,
}

impl Batch {
    /// Splits the batch in half between lines; `None` if it has only one.
    #[must_use]
    pub fn split(&self) -> Option<(Self, Self)> {
        let middle = self.text.len() / 2;
        let (one, other) = self.text.split_at(middle);
        let before = one.iter().rposition(|byte| *byte == b'\n');
        let after = || other.iter().position(|byte| *byte == b'\n').map(|at| middle + at);
        let cut = before.or_else(after)? + 1;
        let half = |text: Bytes| {
            let points = text.iter().filter(|byte| **byte == b'\n').count() as u64;
            Self { text, points, form: self.form }
        };
        (cut < self.text.len()).then(|| (half(self.text.slice(..cut)), half(self.text.slice(cut..))))
    }
}

/// Renders snapshots as batches.
pub trait Encoder: Send + 'static {
    /// Returns the batches of one push, rendered on demand.
    fn encode(&mut self, snapshot: Arc<Snapshot>) -> Box<dyn Iterator<Item = Batch> + Send + '_>;

    /// Returns how many points broke the format's rules so far, by reason.
    fn rejected(&self) -> Vec<(&'static str, u64)>;

    /// Returns how many points the configured filters held back so far.
    fn filtered(&self) -> u64;
}
