//! One line and its grammar: what may stand in it, its limits, and the count of what breaks them.

use std::fmt::{Display, Write as _};

use crate::emit::Batch;

/// Longest metric name, source, tag key, key and value together in UTF-16 units; most tags: the service's defaults.
const NAME_LENGTH: usize = 256;
pub(super) const SOURCE_LENGTH: usize = 128;
const KEY_LENGTH: usize = 64;
const TAG_LENGTH: usize = 254;
const TAGS: usize = 20;
/// Longest line a proxy takes, bytes.
const LINE_LENGTH: usize = 32 * 1024;

/// Why a point is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    Name,
    TagKey,
    TagLength,
    TooManyTags,
    NotFinite,
    LineLength,
}

/// Every reason and the label value it is counted under.
pub(super) const REASONS: [(Reason, &str); 6] = [
    (Reason::Name, "name"),
    (Reason::TagKey, "tag_key"),
    (Reason::TagLength, "tag_length"),
    (Reason::TooManyTags, "too_many_tags"),
    (Reason::NotFinite, "not_finite"),
    (Reason::LineLength, "line_length"),
];

/// Tags of a point, ready to be written: sorted, with a gap where `le` belongs.
pub(super) struct Tags {
    before_le: String,
    after_le: String,
    count: usize,
    broken: Option<Reason>,
}

impl Tags {
    pub(super) fn new(labels: impl FnOnce(&mut dyn FnMut(&'static str, &str))) -> Self {
        let mut sorted: Vec<(&'static str, String)> = Vec::with_capacity(TAGS);
        labels(&mut |key, value| {
            let value = clean(value);
            if !matches!(value.as_str(), "" | "-" | "/") {
                sorted.push((key, value));
            }
        });
        sorted.sort_unstable();
        let mut tags = Self { before_le: String::new(), after_le: String::new(), count: sorted.len(), broken: None };
        for (key, value) in sorted {
            if !is_key(key) {
                tags.broken = Some(Reason::TagKey);
            } else if key.len() + value.encode_utf16().count() > TAG_LENGTH {
                tags.broken = Some(Reason::TagLength);
            }
            let text = if key < "le" { &mut tags.before_le } else { &mut tags.after_le };
            let _ = write!(text, " \"{key}\"=\"{}\"", value.replace('"', "\\\""));
        }
        tags
    }
}

/// A tag value that every decoder reads alike, not yet escaped.
fn clean(value: &str) -> String {
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

fn is_key(key: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !key.is_empty() && key.len() <= KEY_LENGTH && key.bytes().all(allowed) && !matches!(key, "source" | "host")
}

fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !name.is_empty() && name.len() <= NAME_LENGTH && name.bytes().all(allowed)
}

/// Lines being gathered for a batch.
pub(super) struct Writer<'a> {
    pub(super) text: String,
    pub(super) points: u64,
    /// Timestamp and source.
    pub(super) ending: String,
    pub(super) rejected: &'a mut [u64; REASONS.len()],
}

impl Writer<'_> {
    pub(super) fn real(&mut self, name: &str, value: f64, tags: &Tags, le: Option<&str>) {
        if value.is_finite() {
            self.line(name, &value, tags, le);
        } else {
            self.reject(Reason::NotFinite);
        }
    }

    pub(super) fn line(&mut self, name: &str, value: &dyn Display, tags: &Tags, le: Option<&str>) {
        if let Some(reason) = tags.broken {
            return self.reject(reason);
        }
        if !is_name(name) {
            return self.reject(Reason::Name);
        }
        if tags.count + usize::from(le.is_some()) > TAGS {
            return self.reject(Reason::TooManyTags);
        }
        let start = self.text.len();
        let _ = write!(self.text, "\"{name}\" {value}{}{}", self.ending, tags.before_le);
        if let Some(le) = le {
            let _ = write!(self.text, " \"le\"=\"{le}\"");
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
        let index = REASONS.iter().position(|(known, _)| *known == reason).expect("every reason is listed");
        self.rejected[index] += 1;
    }

    pub(super) fn take(&mut self) -> Option<Batch> {
        let points = std::mem::take(&mut self.points);
        (points > 0).then(|| Batch { text: std::mem::take(&mut self.text).into(), points })
    }
}
