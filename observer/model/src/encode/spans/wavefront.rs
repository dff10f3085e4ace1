//! Wavefront's span lines.
//!
//! Form of a line: `"name" source="node" "key"="value" … milliseconds milliseconds`, quoted and cleaned as the lines of
//! [points](crate::encode::wavefront). Ids are UUIDs; those of spans, which have half the length, have zeros in front, as
//! a proxy writes those of Zipkin. A service derives metrics from spans by `application`, `service`, `cluster` and
//! `shard`, so that these are always there; the value for nothing is `none`.

use std::{collections::BTreeMap, fmt::Write as _, sync::Arc};

use super::microseconds;
use crate::{
    Snapshot,
    catalogue::span_tags,
    encode::{
        Batch, Encoder, Form,
        wavefront::{SetupError, check_source, tag_value, write_tag},
    },
    span::{Attribute, Span, SpanKind, is_known},
};

/// Size at which a batch is complete, without compression.
const MAX_BATCH_BYTES: usize = 512 * 1024;
/// Longest value of a span's tag, UTF-16 units; the rest is cut.
const MAX_VALUE_LENGTH: usize = 128;
/// Value of a tag that must be there.
const NONE: &str = "none";

/// Renders spans as lines.
#[derive(Debug)]
pub struct WavefrontSpanEncoder {
    source: String,
    /// Tags of every span; they replace those of the same name that do not identify it.
    tags: BTreeMap<String, String>,
}

impl WavefrontSpanEncoder {
    /// Returns an encoder for one node; `source` is its name, `tags` are those of every point.
    ///
    /// # Errors
    /// The name is not a valid source.
    pub fn new(tags: BTreeMap<String, String>, source: &str) -> Result<Self, SetupError> {
        check_source(source)?;
        Ok(Self { source: source.to_owned(), tags })
    }

    fn write_line(&self, text: &mut String, span: &Span) {
        let request = &span.request;
        // Writing to memory does not fail.
        let _ = write!(text, "\"{}\" source=\"{}\"", operation(span.name()), self.source);
        for (key, value) in self.tags(span) {
            if let Some(value) = tag_value(&value).and_then(|value| tag_value(shortened(&value))) {
                write_tag(text, key, &value);
            }
        }
        let _ = writeln!(text, " {} {}", microseconds(request.start) / 1_000, request.duration.as_millis());
    }

    /// Returns the tags of a span, sorted: at most 25 and those of every point, of the 50 that a span may have.
    fn tags<'a>(&'a self, span: &'a Span) -> BTreeMap<&'a str, String> {
        let mut tags = BTreeMap::new();
        span.attributes(|name, value| {
            // These are the cluster and the service.
            if name != span_tags::CLUSTER_ID && name != span_tags::CANONICAL_SERVICE {
                let text = match value {
                    Attribute::Text(text) => text.to_owned(),
                    Attribute::Integer(number) => number.to_string(),
                };
                tags.insert(name, text);
            }
        });
        let own = &**span.own();
        let or_none = |value: &str| if is_known(value) { value.to_owned() } else { NONE.to_owned() };
        tags.insert("application", or_none(&own.namespace));
        tags.insert("service", or_none(&own.canonical_service));
        tags.insert("cluster", or_none(&own.cluster));
        tags.insert("shard", NONE.to_owned());
        tags.insert("component", "mesh-observer".to_owned());
        tags.extend(self.tags.iter().map(|(key, value)| (key.as_str(), value.clone())));
        let kind = if span.kind == SpanKind::Client { "client" } else { "server" };
        tags.insert("span.kind", kind.to_owned());
        tags.insert("traceId", uuid(span.request.trace_id));
        tags.insert("spanId", uuid(span.id.into()));
        if span.request.parent_id != 0 {
            tags.insert("parent", uuid(span.request.parent_id.into()));
        }
        if span.error().is_some() {
            tags.insert("error", "true".to_owned());
        }
        tags
    }
}

/// Returns a span's name with none but the characters that one may have.
fn operation(name: &str) -> String {
    let is_valid = |own: char| own.is_ascii_alphanumeric() || "-_./,".contains(own);
    name.chars().map(|own| if is_valid(own) { own } else { '-' }).collect()
}

impl Encoder for WavefrontSpanEncoder {
    fn encode(&mut self, snapshot: Arc<Snapshot>) -> Box<dyn Iterator<Item = Batch> + Send + '_> {
        let mut next = 0;
        Box::new(std::iter::from_fn(move || {
            let (mut text, first) = (String::new(), next);
            while text.len() < MAX_BATCH_BYTES
                && let Some(span) = snapshot.spans.get(next)
            {
                self.write_line(&mut text, span);
                next += 1;
            }
            let points = (next - first) as u64;
            (points > 0).then(|| Batch { body: text.into(), points, form: Form::WavefrontSpans })
        }))
    }

    fn takes_spans(&self) -> bool {
        true
    }

    fn rejected(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    fn filtered(&self) -> u64 {
        0
    }
}

/// Returns an id in the form of a UUID.
fn uuid(id: u128) -> String {
    let digits = format!("{id:032x}");
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|range| digits.get(range).unwrap_or_default());
    parts.join("-")
}

/// Returns the longest beginning that a value may have.
fn shortened(value: &str) -> &str {
    let mut units = 0;
    let cut = value.char_indices().find(|(_, character)| {
        units += character.len_utf16();
        units > MAX_VALUE_LENGTH
    });
    cut.and_then(|(at, _)| value.get(..at)).unwrap_or(value)
}

#[cfg(test)]
mod tests;
