//! Label values and help text as both exposition formats write them.

use std::borrow::Cow;

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
        let (name, rest) = text.split_once("=\"")?;
        let mut end = 0;
        while let Some(at) = rest[end..].find(['"', '\\']) {
            end += at;
            if rest.as_bytes()[end] == b'"' {
                break;
            }
            end += 2;
        }
        let value = &rest[..end];
        text = rest[end + 1..].trim_start_matches(',');
        Some((name, unescape(value)))
    })
}
