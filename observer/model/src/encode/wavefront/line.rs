//! One line and its grammar: what may stand in it, its limits, and the count of what breaks them.

use std::{
    collections::HashMap,
    fmt::{self, Write as _},
    time::{SystemTime, UNIX_EPOCH},
};

use super::{
    Options,
    delta::{Deltas, NoRoom},
};
use crate::{
    catalogue::Origin,
    encode::{Batch, Form, wavefront::filter::Filters},
};

/// Longest metric name, source, tag key, key and value together in UTF-16 units; most tags: the service's defaults.
const NAME_LENGTH: usize = 256;
pub(super) const SOURCE_LENGTH: usize = 128;
const KEY_LENGTH: usize = 64;
const TAG_LENGTH: usize = 254;
pub(super) const TAGS: usize = 20;
/// Longest line a proxy takes, bytes.
const LINE_LENGTH: usize = 32 * 1024;
/// WavefrontEncoder in one batch at most, the default of Wavefront's own senders.
const BATCH_POINTS: u64 = 10_000;
/// Bytes at which a batch is full; a proxy takes 16 MiB.
const BATCH_BYTES: usize = 512 * 1024;
/// Begins the name of a delta counter.
const DELTA: &str = "\u{2206}";
/// Most centroids of a distribution, the cap that the service itself sets where it sets one.
pub(super) const CENTROIDS: usize = 100;
/// A centroid's count is a 32-bit number of Java's.
const CENTROID_COUNT: u64 = i32::MAX as u64;

/// Names whose filters' verdict is remembered: more than istiod and Envoy have.
const REMEMBERED_NAMES: usize = 4096;

/// Why a point is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    Name,
    TagKey,
    TagLength,
    TooManyTags,
    NotFinite,
    LineLength,
    TooManySeries,
}

/// Every reason and the label value it is counted under.
pub(super) const REASONS: [(Reason, &str); 7] = [
    (Reason::Name, "name"),
    (Reason::TagKey, "tag_key"),
    (Reason::TagLength, "tag_length"),
    (Reason::TooManyTags, "too_many_tags"),
    (Reason::NotFinite, "not_finite"),
    (Reason::LineLength, "line_length"),
    (Reason::TooManySeries, "too_many_series"),
];

/// Below this, doubles hold every whole number.
const WHOLE: f64 = 9_007_199_254_740_992.0;

/// A value as it is written: without an exponent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Number {
    Integer(u64),
    Real(f64),
}

impl Number {
    #[expect(clippy::cast_precision_loss, reason = "the receiver's values are doubles")]
    pub(super) fn real(self) -> f64 {
        match self {
            Self::Integer(value) => value as f64,
            Self::Real(value) => value,
        }
    }

    pub(super) fn plus(self, other: Self) -> Self {
        match (self, other) {
            (Self::Integer(own), Self::Integer(other)) => Self::Integer(own.saturating_add(other)),
            _ => Self::Real(self.real() + other.real()),
        }
    }
}

impl fmt::Display for Number {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(value) => value.fmt(formatter),
            // Most are whole, and written much faster as such.
            Self::Real(value) if value.fract() == 0.0 && value.is_sign_positive() && *value < WHOLE => {
                (*value as u64).fmt(formatter)
            }
            Self::Real(value) => value.fmt(formatter),
        }
    }
}

/// Tags of a point, ready to be written: sorted, with a gap where `le` belongs.
#[derive(Debug)]
pub(super) struct Tags {
    before_le: String,
    after_le: String,
    count: usize,
    broken: Option<Reason>,
    /// What the tag filters ask, where there are any.
    asked: Vec<(String, String)>,
}

impl Tags {
    pub(super) fn new(options: &Options, labels: impl FnOnce(&mut dyn FnMut(&str, &str))) -> Self {
        let mut sorted: Vec<(String, String)> = Vec::with_capacity(TAGS);
        labels(&mut |key, value| {
            if let Some(value) = tag_value(value) {
                sorted.push((key.to_owned(), value.into()));
            }
        });
        let asked = if options.filters.asks_for_tags() { sorted.clone() } else { Vec::new() };
        if options.filters.drops_tags() {
            sorted.retain(|(key, _)| key == "le" || options.filters.keeps_tag(key));
        }
        for (key, _) in &mut sorted {
            // A proxy would do the same, and the charts ask for it.
            if key == "tag" {
                key.insert(0, '_');
            }
        }
        sorted.retain(|(key, _)| !options.tags.contains_key(key));
        sorted.extend(options.tags.iter().map(|(key, value)| (key.clone(), value.clone())));
        sorted.sort_unstable();
        let mut tags =
            Self { before_le: String::new(), after_le: String::new(), count: sorted.len(), broken: None, asked };
        for (key, value) in sorted {
            tags.broken = tags.broken.or_else(|| broken_tag(&key, &value));
            let text = if key.as_str() < "le" { &mut tags.before_le } else { &mut tags.after_le };
            write_tag(text, &key, &value);
        }
        tags
    }

    /// All of them.
    pub(super) fn text(&self) -> String {
        format!("{}{}", self.before_le, self.after_le)
    }
}

/// A tag for every point, as it is sent.
///
/// # Errors
/// It cannot be one.
pub fn point_tag(key: &str, value: &str) -> Result<(String, String), String> {
    let value = clean(value);
    if !is_key(key) || matches!(key, "le" | "tag") {
        return Err(format!(
            "{key:?} cannot be a tag: it needs 1 to {KEY_LENGTH} letters, digits, dots, dashes or underscores, and source, \
             host, le and tag have a meaning already"
        ));
    }
    if is_blank(&value) {
        return Err(format!("the tag {key:?} has no value; write one, or leave the tag out"));
    }
    if broken_tag(key, &value).is_some() {
        return Err(format!("the tag {key:?} is longer than {TAG_LENGTH} characters, key and value together"));
    }
    Ok((key.to_owned(), value))
}

/// A tag value that can be sent, not yet escaped; `None` if nothing of it is left.
pub(super) fn tag_value(value: &str) -> Option<Box<str>> {
    Some(clean(value)).filter(|value| !is_blank(value)).map(String::into_boxed_str)
}

fn write_tag(text: &mut String, key: &str, value: &str) {
    text.push_str(" \"");
    text.push_str(key);
    text.push_str("\"=\"");
    for (number, part) in value.split('"').enumerate() {
        text.push_str(if number == 0 { "" } else { "\\\"" });
        text.push_str(part);
    }
    text.push('"');
}

/// A tag value that every decoder reads alike, not yet escaped.
fn clean(value: &str) -> String {
    let is_clean = |byte: u8| byte.is_ascii_graphic() && byte != b'\\';
    if value.bytes().all(is_clean) {
        return value.to_owned();
    }
    let mut cleaned = String::with_capacity(value.len());
    for character in value.chars() {
        match character {
            '\n' => cleaned.push_str("\\n"),
            '\r' => cleaned.push_str("\\r"),
            // End of transmission makes a proxy reject the line; the others have no business in it either.
            control if control.is_control() => cleaned.push(' '),
            _ => cleaned.push(character),
        }
    }
    // A backslash before the closing quote would swallow it.
    cleaned.trim_start().trim_end_matches(|end: char| end == '\\' || end.is_whitespace()).to_owned()
}

fn is_blank(value: &str) -> bool {
    matches!(value, "" | "-" | "/")
}

fn broken_tag(key: &str, value: &str) -> Option<Reason> {
    if !is_key(key) {
        Some(Reason::TagKey)
    } else if key.len() + value.encode_utf16().count() > TAG_LENGTH {
        Some(Reason::TagLength)
    } else {
        None
    }
}

fn is_key(key: &str) -> bool {
    !key.is_empty() && key.len() <= KEY_LENGTH && is_plain(key) && !matches!(key, "source" | "host")
}

fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// What the writers of all reports have in common.
#[derive(Debug, Default)]
pub(super) struct WriterState {
    pub(super) rejected: [u64; REASONS.len()],
    /// Points that the filters keep back.
    pub(super) filtered: u64,
    /// What the filters say of each name.
    passes: HashMap<String, bool>,
    pub(super) deltas: Deltas,
}

impl WriterState {
    /// What the filters say of a name. Others choose names, on the pages that are scraped: so few are remembered, and none that
    /// is too long to be sent.
    fn passes_name(&mut self, name: &str, filters: &Filters) -> bool {
        if let Some(passes) = self.passes.get(name) {
            return *passes;
        }
        let passes = filters.passes_name(name);
        if name.len() <= NAME_LENGTH {
            if self.passes.len() >= REMEMBERED_NAMES {
                self.passes.clear();
            }
            self.passes.insert(name.to_owned(), passes);
        }
        passes
    }
}

/// WavefrontEncoder being gathered for a batch.
pub(super) struct Writer<'a> {
    options: &'a Options,
    source: &'a str,
    at: SystemTime,
    state: &'a mut WriterState,
    /// Time and source, as every point has them.
    origin: String,
    text: String,
    points: u64,
}

impl<'a> Writer<'a> {
    pub(super) fn new(options: &'a Options, source: &'a str, at: SystemTime, state: &'a mut WriterState) -> Self {
        let origin = format!(" {} source=\"{source}\"", seconds(at));
        Self { options, source, at, state, origin, text: String::new(), points: 0 }
    }

    /// A total that only grows: as it is, or as its increase.
    pub(super) fn counter(&mut self, name: &str, total: Number, tags: &Tags, origin: Origin, created: SystemTime) {
        if !self.options.delta_counters {
            return self.line(name, total, tags, None);
        }
        if self.admits(name, DELTA.chars().count(), total.real(), tags, None) {
            let series = (name, &*tags.before_le, &*tags.after_le);
            match self.state.deltas.increase(series, total.real(), origin, created, self.at) {
                Ok(Some(increase)) if increase > 0.0 => self.point(DELTA, name, Number::Real(increase), tags, None),
                Ok(_) => {}
                Err(NoRoom) => self.reject(Reason::TooManySeries),
            }
        }
    }

    pub(super) fn line(&mut self, name: &str, value: Number, tags: &Tags, le: Option<&str>) {
        if self.admits(name, 0, value.real(), tags, le) {
            self.point("", name, value, tags, le);
        }
    }

    /// Values of the last interval, ascending, each with its count.
    pub(super) fn distribution(&mut self, name: &str, centroids: &[(f64, u64)], tags: &Tags) {
        if centroids.is_empty() || !self.admits(name, 0, 0.0, tags, None) {
            return;
        }
        let start = self.text.len();
        let _ = write!(self.text, "!M {}", seconds(self.at));
        for (mean, count) in centroids {
            let mut left = *count;
            while left > 0 {
                let part = left.min(CENTROID_COUNT);
                let _ = write!(self.text, " #{part} {mean}");
                left -= part;
            }
        }
        let _ = write!(self.text, " \"{name}\" source=\"{}\"", self.source);
        self.end(start, tags, None);
    }

    fn point(&mut self, prefix: &str, name: &str, value: Number, tags: &Tags, le: Option<&str>) {
        let start = self.text.len();
        for part in ["\"", prefix, name, "\" "] {
            self.text.push_str(part);
        }
        let _ = write!(self.text, "{value}");
        self.text.push_str(&self.origin);
        self.end(start, tags, le);
    }

    /// Whether a point may be sent; if not, it is counted.
    fn admits(&mut self, name: &str, prefix: usize, value: f64, tags: &Tags, le: Option<&str>) -> bool {
        if !self.passes(name, tags, le) {
            self.state.filtered += 1;
            return false;
        }
        let broken = if name.is_empty() || name.len() + prefix > NAME_LENGTH || !is_plain(name) {
            Some(Reason::Name)
        } else if tags.count + usize::from(le.is_some()) > TAGS {
            Some(Reason::TooManyTags)
        } else if !value.is_finite() {
            Some(Reason::NotFinite)
        } else {
            tags.broken.or_else(|| broken_tag("le", le?))
        };
        broken.inspect(|reason| self.reject(*reason)).is_none()
    }

    fn passes(&mut self, name: &str, tags: &Tags, le: Option<&str>) -> bool {
        let filters = &self.options.filters;
        let named = !filters.asks_for_names() || self.state.passes_name(name, filters);
        let asked = tags.asked.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        named && (!filters.asks_for_tags() || filters.passes_tags(asked.chain(le.map(|le| ("le", le)))))
    }

    fn end(&mut self, start: usize, tags: &Tags, le: Option<&str>) {
        self.text.push_str(&tags.before_le);
        if let Some(le) = le {
            write_tag(&mut self.text, "le", le);
        }
        self.text.push_str(&tags.after_le);
        self.text.push('\n');
        if self.text.len() - start > LINE_LENGTH {
            self.text.truncate(start);
            return self.reject(Reason::LineLength);
        }
        self.points += 1;
    }

    fn reject(&mut self, reason: Reason) {
        for ((known, _), count) in REASONS.iter().zip(&mut self.state.rejected) {
            *count += u64::from(*known == reason);
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.points < BATCH_POINTS && self.text.len() < BATCH_BYTES
    }

    pub(super) fn take(&mut self, form: Form) -> Option<Batch> {
        let points = std::mem::take(&mut self.points);
        (points > 0).then(|| Batch { text: std::mem::take(&mut self.text).into(), points, form })
    }

    /// Ends a report.
    pub(super) fn finish(&mut self) {
        self.state.deltas.end(self.at);
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_others_choose_take_bounded_memory() {
        let filters = Filters { metric_allow: vec!["a*".parse().unwrap()], ..Filters::default() };
        let mut state = WriterState::default();
        for number in 0..3 * REMEMBERED_NAMES {
            assert!(state.passes_name(&format!("a{number}"), &filters));
            assert!(!state.passes_name(&format!("b{number}"), &filters));
        }
        assert!(state.passes.len() <= REMEMBERED_NAMES);
        let kept = state.passes.len();
        assert!(state.passes_name(&"a".repeat(NAME_LENGTH + 1), &filters) && state.passes.len() == kept);
    }
}
