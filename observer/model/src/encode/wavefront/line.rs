//! Grammar and limits of one line, and counts of the points that violate them.

use std::{
    collections::HashMap,
    fmt::{self, Write as _},
    time::{SystemTime, UNIX_EPOCH},
};

use super::{filter::Filters, limits::*, options::Options};
use crate::{
    catalogue::Origin,
    encode::{
        Batch, Form,
        delta::{Deltas, NoRoom},
    },
};

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

/// Every reason and its label value.
pub(super) const REASONS: [(Reason, &str); 7] = [
    (Reason::Name, "name"),
    (Reason::TagKey, "tag_key"),
    (Reason::TagLength, "tag_length"),
    (Reason::TooManyTags, "too_many_tags"),
    (Reason::NotFinite, "not_finite"),
    (Reason::LineLength, "line_length"),
    (Reason::TooManySeries, "too_many_series"),
];

/// Below this, doubles represent every whole number.
const WHOLE: f64 = 9_007_199_254_740_992.0;

/// A value, written without an exponent.
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
            // Most are whole, and formatted much faster as integers.
            Self::Real(value) if value.fract() == 0.0 && value.is_sign_positive() && *value < WHOLE => {
                (*value as u64).fmt(formatter)
            }
            Self::Real(value) => value.fmt(formatter),
        }
    }
}

/// Formatted tags of a point: sorted, split where `le` is inserted.
#[derive(Debug)]
pub(super) struct Tags {
    before_le: String,
    after_le: String,
    count: usize,
    broken: Option<Reason>,
    /// Keys and values for the tag filters, if there are any.
    unfiltered: Vec<(String, String)>,
}

impl Tags {
    pub(super) fn new(options: &Options, labels: impl FnOnce(&mut dyn FnMut(&str, &str))) -> Self {
        let mut sorted: Vec<(String, String)> = Vec::with_capacity(MAX_TAGS);
        labels(&mut |key, value| {
            if let Some(value) = tag_value(value) {
                sorted.push((key.to_owned(), value.into()));
            }
        });
        let unfiltered = if options.filters.filters_tags() { sorted.clone() } else { Vec::new() };
        if options.filters.drops_tags() {
            sorted.retain(|(key, _)| key == "le" || options.filters.keeps_tag(key));
        }
        for (key, _) in &mut sorted {
            // A proxy would do the same, and the charts query it.
            if key == "tag" {
                key.insert(0, '_');
            }
        }
        sorted.retain(|(key, _)| !options.tags.contains_key(key));
        sorted.extend(options.tags.iter().map(|(key, value)| (key.clone(), value.clone())));
        sorted.sort_unstable();
        let mut tags =
            Self { before_le: String::new(), after_le: String::new(), count: sorted.len(), broken: None, unfiltered };
        for (key, value) in sorted {
            tags.broken = tags.broken.or_else(|| broken_tag(&key, &value));
            let text = if key.as_str() < "le" { &mut tags.before_le } else { &mut tags.after_le };
            write_tag(text, &key, &value);
        }
        tags
    }

    /// Returns all tags as text.
    pub(super) fn text(&self) -> String {
        format!("{}{}", self.before_le, self.after_le)
    }
}

/// Returns a tag for every point, as it is sent.
///
/// # Errors
/// It cannot be one.
pub fn point_tag(key: &str, value: &str) -> Result<(String, String), String> {
    let value = clean(value);
    if !is_key(key) || matches!(key, "le" | "tag") {
        return Err(format!(
            "{key:?} cannot be a tag: it needs 1 to {MAX_KEY_LENGTH} letters, digits, dots, dashes or underscores, and source, \
             host, le and tag have a meaning already"
        ));
    }
    if is_blank(&value) {
        return Err(format!("the tag {key:?} has no value; write one, or leave the tag out"));
    }
    if broken_tag(key, &value).is_some() {
        return Err(format!("the tag {key:?} is longer than {MAX_TAG_LENGTH} characters, key and value together"));
    }
    Ok((key.to_owned(), value))
}

/// Returns a tag value that can be sent, not yet escaped; `None` if it is blank.
pub(in crate::encode) fn tag_value(value: &str) -> Option<Box<str>> {
    Some(clean(value)).filter(|value| !is_blank(value)).map(String::into_boxed_str)
}

/// Appends a tag.
pub(in crate::encode) fn write_tag(text: &mut String, key: &str, value: &str) {
    text.push_str(" \"");
    text.push_str(key);
    text.push_str("\"=\"");
    for (number, part) in value.split('"').enumerate() {
        text.push_str(if number == 0 { "" } else { "\\\"" });
        text.push_str(part);
    }
    text.push('"');
}

/// Returns a tag value that every decoder reads equally, not yet escaped.
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
            // End of transmission makes a proxy reject the line; other control characters are replaced as well.
            control if control.is_control() => cleaned.push(' '),
            _ => cleaned.push(character),
        }
    }
    // A backslash before the closing quote would escape it.
    cleaned.trim_start().trim_end_matches(|end: char| end == '\\' || end.is_whitespace()).to_owned()
}

fn is_blank(value: &str) -> bool {
    matches!(value, "" | "-" | "/")
}

fn broken_tag(key: &str, value: &str) -> Option<Reason> {
    if !is_key(key) {
        Some(Reason::TagKey)
    } else if key.len() + value.encode_utf16().count() > MAX_TAG_LENGTH {
        Some(Reason::TagLength)
    } else {
        None
    }
}

fn is_key(key: &str) -> bool {
    !key.is_empty() && key.len() <= MAX_KEY_LENGTH && is_plain(key) && !matches!(key, "source" | "host")
}

fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// State shared by the writers of all pushes.
#[derive(Debug, Default)]
pub(super) struct WriterState {
    pub(super) rejected: [u64; REASONS.len()],
    /// Points held back by the filters.
    pub(super) filtered: u64,
    /// Cached filter results by name.
    passes: HashMap<String, bool>,
    pub(super) deltas: Deltas,
}

impl WriterState {
    /// Returns whether a name passes the filters. Scraped names are untrusted: few are cached, and none that is too
    /// long.
    fn passes_name(&mut self, name: &str, filters: &Filters) -> bool {
        if let Some(passes) = self.passes.get(name) {
            return *passes;
        }
        let passes = filters.passes_name(name);
        if name.len() <= MAX_NAME_LENGTH {
            if self.passes.len() >= MAX_CACHED_NAMES {
                self.passes.clear();
            }
            self.passes.insert(name.to_owned(), passes);
        }
        passes
    }
}

/// Writes the lines of a batch.
pub(super) struct Writer<'a> {
    options: &'a Options,
    source: &'a str,
    at: SystemTime,
    state: &'a mut WriterState,
    /// Time and source of every point.
    origin: String,
    text: String,
    points: u64,
}

impl<'a> Writer<'a> {
    pub(super) fn new(options: &'a Options, source: &'a str, at: SystemTime, state: &'a mut WriterState) -> Self {
        let origin = format!(" {} source=\"{source}\"", seconds(at));
        Self { options, source, at, state, origin, text: String::new(), points: 0 }
    }

    /// Writes a counter: its total, or its increase.
    pub(super) fn counter(&mut self, name: &str, total: Number, tags: &Tags, origin: Origin, created: SystemTime) {
        if !self.options.delta_counters {
            return self.line(name, total, tags, None);
        }
        if self.accepts(name, DELTA_PREFIX.chars().count(), total.real(), tags, None) {
            let series = (name, &*tags.before_le, &*tags.after_le);
            match self.state.deltas.increase(series, total.real(), origin, created, self.at) {
                Ok(Some(increase)) if increase.by > 0.0 => {
                    self.point(DELTA_PREFIX, name, Number::Real(increase.by), tags, None)
                }
                Ok(_) => {}
                Err(NoRoom) => self.reject(Reason::TooManySeries),
            }
        }
    }

    pub(super) fn line(&mut self, name: &str, value: Number, tags: &Tags, le: Option<&str>) {
        if self.accepts(name, 0, value.real(), tags, le) {
            self.point("", name, value, tags, le);
        }
    }

    /// Writes a distribution: values of the last interval, ascending, each with its count.
    pub(super) fn distribution(&mut self, name: &str, centroids: &[(f64, u64)], tags: &Tags) {
        if centroids.is_empty() || !self.accepts(name, 0, 0.0, tags, None) {
            return;
        }
        let start = self.text.len();
        let _ = write!(self.text, "!M {}", seconds(self.at));
        for (mean, count) in centroids {
            let mut left = *count;
            while left > 0 {
                let part = left.min(MAX_CENTROID_COUNT);
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

    /// Returns whether a point may be sent; counts it if not.
    fn accepts(&mut self, name: &str, prefix: usize, value: f64, tags: &Tags, le: Option<&str>) -> bool {
        if !self.passes(name, tags, le) {
            self.state.filtered += 1;
            return false;
        }
        let broken = if name.is_empty() || name.len() + prefix > MAX_NAME_LENGTH || !is_plain(name) {
            Some(Reason::Name)
        } else if tags.count + usize::from(le.is_some()) > MAX_TAGS {
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
        let named = !filters.filters_names() || self.state.passes_name(name, filters);
        let unfiltered = tags.unfiltered.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        named && (!filters.filters_tags() || filters.passes_tags(unfiltered.chain(le.map(|le| ("le", le)))))
    }

    fn end(&mut self, start: usize, tags: &Tags, le: Option<&str>) {
        self.text.push_str(&tags.before_le);
        if let Some(le) = le {
            write_tag(&mut self.text, "le", le);
        }
        self.text.push_str(&tags.after_le);
        self.text.push('\n');
        if self.text.len() - start > MAX_LINE_LENGTH {
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
        self.points < MAX_BATCH_POINTS && self.text.len() < MAX_BATCH_BYTES
    }

    pub(super) fn take(&mut self, form: Form) -> Option<Batch> {
        let points = std::mem::take(&mut self.points);
        (points > 0).then(|| Batch { body: std::mem::take(&mut self.text).into(), points, form })
    }

    /// Ends a push.
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
        for number in 0..3 * MAX_CACHED_NAMES {
            assert!(state.passes_name(&format!("a{number}"), &filters));
            assert!(!state.passes_name(&format!("b{number}"), &filters));
        }
        assert!(state.passes.len() <= MAX_CACHED_NAMES);
        let kept = state.passes.len();
        assert!(state.passes_name(&"a".repeat(MAX_NAME_LENGTH + 1), &filters) && state.passes.len() == kept);
    }
}
