//! Prometheus remote write 2.0, and what receivers of 1.0 get of it.
//!
//! A push has the series of `/metrics` in text 0.0.4, with the labels that a scrape adds: `job` and `instance`, unless the
//! series has them. A series that is gone gets a stale marker, so that queries do not extend it; all of them get one when
//! the observer stops. Batches are those of 2.0, in which each text is written once; [`version_1`] converts them.
//! Source: Prometheus remote write 2.0, `io/prometheus/write/v2/types.proto`.

mod ended;
mod labels;
mod request;
mod series;
mod version1;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use foldhash::quality::RandomState;

use self::{
    ended::{Ended, Sent},
    series::SeriesWriter,
};
pub use self::{
    request::split,
    version1::{Version1, version_1},
};
use super::{Batch, Encoder, words::words};
use crate::{Cursor, Labels, Snapshot};

/// Number of samples and size at which a batch is complete. Prometheus decodes up to 32 MiB, and 1.0 repeats each text.
const MAX_BATCH_SAMPLES: u64 = 5_000;
const MAX_BATCH_BYTES: usize = 1 << 20;
/// Value of the label `job`.
const JOB: &str = "mesh-observer";
/// Bits of the number that ends a series.
const STALE: u64 = 0x7ff0_0000_0000_0002;

/// How the histograms of requests are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Histograms {
    /// With Istio's buckets.
    #[default]
    Classic,
    /// With Istio's buckets, and beside them as native histograms, from the log-linear cells of the kernel.
    Native,
}

words!(Histograms: "classic or native", "classic" = Classic, "native" = Native);

/// Renders snapshots as requests of remote write 2.0.
#[derive(Debug)]
pub struct RemoteWriteEncoder {
    node: String,
    histograms: Histograms,
    hasher: RandomState,
    /// The snapshot that was sent last.
    sent: Option<Sent>,
}

impl RemoteWriteEncoder {
    /// Returns an encoder for one node; `node` is its name.
    #[must_use]
    pub fn new(node: &str, histograms: Histograms) -> Self {
        Self { node: node.to_owned(), histograms, hasher: RandomState::default(), sent: None }
    }

    fn batches(&self, at: SystemTime, parts: Vec<Part>) -> Box<dyn Iterator<Item = Batch> + Send> {
        Box::new(Batches {
            writer: SeriesWriter::new(&self.node, self.histograms, at),
            parts: parts.into_iter(),
            part: None,
        })
    }
}

impl Encoder for RemoteWriteEncoder {
    fn encode(&mut self, snapshot: Arc<Snapshot>) -> Box<dyn Iterator<Item = Batch> + Send + '_> {
        let now = Sent::new(snapshot.clone(), &self.hasher);
        let ended =
            self.sent.take().map(|sent| Part::new(sent.snapshot.clone(), Wanted::Ended(Ended::new(&sent, &now))));
        self.sent = Some(now);
        let at = snapshot.at;
        self.batches(at, ended.into_iter().chain([Part::new(snapshot, Wanted::All)]).collect())
    }

    fn end(&mut self) -> Box<dyn Iterator<Item = Batch> + Send + '_> {
        let Some(Sent { snapshot, .. }) = self.sent.take() else { return Box::new(std::iter::empty()) };
        // Later than the last sample.
        let at = snapshot.at + Duration::from_millis(1);
        self.batches(at, vec![Part::new(snapshot, Wanted::AllAsEnded)])
    }

    fn rejected(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    fn filtered(&self) -> u64 {
        0
    }
}

/// Points of one snapshot that are sent.
#[derive(Debug)]
struct Part {
    snapshot: Arc<Snapshot>,
    wanted: Wanted,
    family: usize,
    cursor: Cursor,
}

#[derive(Debug)]
enum Wanted {
    /// All, with their values.
    All,
    /// Those that the next snapshot does not have, as ended.
    Ended(Ended),
    /// All, as ended.
    AllAsEnded,
}

impl Part {
    fn new(snapshot: Arc<Snapshot>, wanted: Wanted) -> Self {
        Self { snapshot, wanted, family: 0, cursor: Cursor::default() }
    }

    /// Writes points until the batch is full; `false` at the end.
    fn write(&mut self, writer: &mut SeriesWriter) -> bool {
        let mut last = None;
        while let Some(family) = self.snapshot.family(self.family) {
            if matches!(&self.wanted, Wanted::Ended(ended) if ended.is_over(self.family)) {
                return false;
            }
            while let Some(point) = family.next(&mut self.cursor) {
                let (is_wanted, is_stale) = match &mut self.wanted {
                    Wanted::All => (true, false),
                    Wanted::Ended(ended) => (ended.next(self.family, &point), true),
                    Wanted::AllAsEnded => (true, true),
                };
                if !is_wanted {
                    continue;
                }
                if !last.is_some_and(|last: Labels<'_>| last.is_same(&point.labels)) {
                    writer.labels(&point.labels);
                    last = Some(point.labels);
                }
                writer.point(&family, &point, is_stale);
                if writer.is_full() {
                    return true;
                }
            }
            (self.family, self.cursor) = (self.family + 1, Cursor::default());
            writer.end_family();
        }
        false
    }
}

/// The batches of one push, rendered on demand.
struct Batches {
    writer: SeriesWriter,
    parts: std::vec::IntoIter<Part>,
    part: Option<Part>,
}

impl Iterator for Batches {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        loop {
            let Some(part) = self.part.as_mut() else {
                self.part = self.parts.next();
                if self.part.is_some() {
                    continue;
                }
                return self.writer.take();
            };
            if part.write(&mut self.writer) {
                return self.writer.take();
            }
            self.part = None;
        }
    }
}

#[cfg(test)]
mod tests;
