//! Options of the encoder.

use std::collections::BTreeMap;

use super::{filter::Filters, limits::MAX_TAGS};
use crate::labels::Label;

/// Naming scheme.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Names {
    /// `istio.request.bytes.p99.value`.
    #[default]
    Documented,
    /// `istio.request.bytes.bucket.p99.value`, buckets as rates, and eight labels, as the legacy pipeline of
    /// Prometheus, recording rules and collector sent them.
    Collector,
}

/// Encoder options.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Naming scheme.
    pub names: Names,
    /// Tags of every point, made by [`point_tag`]; they replace a label of the same name.
    pub tags: BTreeMap<String, String>,
    /// Filters of points and tags.
    pub filters: Filters,
    /// Sends counters as delta counters: the increase since the last push, under the name prefixed with ∆.
    pub delta_counters: bool,
    /// Also sends histograms as distributions of the last interval, which can be merged across nodes.
    pub distributions: bool,
}

/// Options under which points could not be sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// Invalid source.
    #[error(
        "{0:?} cannot be the source of Wavefront points: it needs 1 to 128 letters, digits, dots, dashes or underscores; \
         set the node's name"
    )]
    Source(String),
    /// Too many tags.
    #[error(
        "[wavefront] tags: {own} tags and {labels} labels are more than the {MAX_TAGS} that a point takes, so \
         that some would never be sent; leave tags out, leave labels out with tag_exclude, or send wavefront_names = \"collector\", which has 7"
    )]
    TooManyTags {
        /// Configured tags.
        own: usize,
        /// Labels of an Istio bucket, `le` included.
        labels: usize,
    },
}

impl Options {
    /// Refuses more tags than a point may have besides the labels of Istio's families that are sent.
    pub(super) fn check(&self, kept: &[Label]) -> Result<(), SetupError> {
        // `response_flags` is always `-`, which is not sent, and a tag replaces a label of its name.
        let is_sent = |label: &&Label| **label != Label::ResponseFlags && !self.tags.contains_key(label.name());
        let (own, labels) = (self.tags.len(), kept.iter().filter(is_sent).count() + 1);
        if own + labels > MAX_TAGS { Err(SetupError::TooManyTags { own, labels }) } else { Ok(()) }
    }
}
