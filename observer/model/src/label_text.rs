//! Label values and help text as both exposition formats write them.

use std::borrow::Cow;

use memchr::{memchr, memchr2};

use crate::exposition::unescape;

/// Appends `name="value"` to labels that begin at `start`.
pub(crate) fn push_label(text: &mut String, start: usize, name: &str, value: &str) {
    if text.len() > start {
        text.push(',');
    }
    text.push_str(name);
    text.push_str("=\"");
    push_escaped(text, value);
    text.push('"');
}

/// Appends a label value, escaped.
pub(crate) fn push_escaped(text: &mut String, value: &str) {
    escape(text, value, true);
}

/// Appends help text, escaped; OpenMetrics escapes quotes in it, text 0.0.4 does not.
pub(crate) fn push_help(text: &mut String, help: &str, escapes_quotes: bool) {
    escape(text, help, escapes_quotes);
}

fn escape(text: &mut String, value: &str, escapes_quotes: bool) {
    if !value.contains(['\\', '\n', '"']) {
        return text.push_str(value);
    }
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '"' if escapes_quotes => text.push_str("\\\""),
            _ => text.push(character),
        }
    }
}

/// Returns names and values of labels written by [`push_label`].
pub(crate) fn labels(mut text: &str) -> impl Iterator<Item = (&str, Cow<'_, str>)> {
    std::iter::from_fn(move || {
        // No name has an equals sign.
        let name_end = memchr(b'=', text.as_bytes())?;
        let (name, rest) = (&text[..name_end], text.get(name_end + 2..)?);
        let (mut end, mut has_escapes) = (0, false);
        while let Some(at) = memchr2(b'"', b'\\', &rest.as_bytes()[end..]) {
            end += at;
            if rest.as_bytes()[end] == b'"' {
                break;
            }
            has_escapes = true;
            end += 2;
        }
        let value = &rest[..end];
        text = rest[end + 1..].trim_start_matches(',');
        Some((name, if has_escapes { unescape(value) } else { Cow::Borrowed(value) }))
    })
}
