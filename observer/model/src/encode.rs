//! Encoders: a snapshot as text, in one format each.

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

pub mod prometheus;
pub mod selection;
pub mod wavefront;

use std::sync::Arc;

use bytes::Bytes;

use crate::Snapshot;

/// Part of a report, as one send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Lines, each ended by a line feed.
    pub text: Bytes,
    /// Points, one a line.
    pub points: u64,
    /// What the lines are.
    pub form: Form,
}

/// What lines are: some receivers have a door for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One value each.
    Points,
    /// Many values each.
    Distributions,
}

impl Batch {
    /// Two halves, cut between lines; `None` if there is only one.
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

/// Turns reports into batches.
pub trait Encoder: Send + 'static {
    /// The batches of one report, made as they are asked for.
    fn encode(&mut self, snapshot: Arc<Snapshot>) -> Box<dyn Iterator<Item = Batch> + Send + '_>;

    /// Points that broke the format's rules so far, by reason.
    fn rejected(&self) -> Vec<(&'static str, u64)>;

    /// Points that the configured filters kept back so far.
    fn filtered(&self) -> u64;
}
