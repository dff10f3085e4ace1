//! Text and labels as they are on a line, borrowed.

use std::borrow::Cow;

use memchr::memchr;

/// Text as written on the line.
#[derive(Clone, Copy, Debug)]
pub struct Word<'a> {
    pub(super) raw: &'a str,
    pub(super) escaped: bool,
}

impl<'a> Word<'a> {
    /// Returns the text unescaped: `\\`, `\n` and `\"` replaced, any other backslash kept.
    #[must_use]
    pub fn plain(self) -> Cow<'a, str> {
        if self.escaped { unescape(self.raw) } else { Cow::Borrowed(self.raw) }
    }
}

/// Returns quoted text unescaped: `\\`, `\n` and `\"` replaced, any other backslash kept.
pub(crate) fn unescape(raw: &str) -> Cow<'_, str> {
    if !raw.contains('\\') {
        return Cow::Borrowed(raw);
    }
    let mut plain = String::with_capacity(raw.len());
    append_unescaped(raw, &mut plain);
    Cow::Owned(plain)
}

pub(super) fn append_unescaped(mut raw: &str, plain: &mut String) {
    while let Some(at) = memchr(b'\\', raw.as_bytes()) {
        plain.push_str(&raw[..at]);
        let (meant, taken) = match raw.as_bytes().get(at + 1) {
            Some(b'n') => ('\n', 2),
            Some(b'\\') => ('\\', 2),
            Some(b'"') => ('"', 2),
            _ => ('\\', 1),
        };
        plain.push(meant);
        raw = &raw[at + taken..];
    }
    plain.push_str(raw);
}

/// Labels of one line.
#[derive(Clone, Copy, Debug)]
pub struct Labels<'a> {
    pub(super) line: &'a str,
    pub(super) spans: &'a [Span],
}

/// Name and value of a label, as byte ranges of a line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) name: TextRange,
    pub(super) value: TextRange,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct TextRange {
    pub(super) start: u32,
    pub(super) end: u32,
    pub(super) escaped: bool,
}

impl<'a> Labels<'a> {
    /// Returns names and values.
    pub fn iter(self) -> impl ExactSizeIterator<Item = (Word<'a>, Word<'a>)> {
        self.spans.iter().map(move |span| (self.word(span.name), self.word(span.value)))
    }

    fn word(self, range: TextRange) -> Word<'a> {
        Word { raw: &self.line[range.start as usize..range.end as usize], escaped: range.escaped }
    }
}
