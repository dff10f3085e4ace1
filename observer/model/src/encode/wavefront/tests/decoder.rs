//! A decoder of its own, written from the rules of the receivers' tokeniser and validation, taking the strictest of
//! each: whitespace parts tokens, `=` is a token, a backslash escapes only the quote that is open. It shares nothing
//! with the encoder.

use std::collections::BTreeMap;

/// What a line says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Point {
    pub(super) name: String,
    /// One value, or the centroids of a distribution.
    pub(super) value: Decoded,
    pub(super) seconds: u64,
    pub(super) source: String,
    pub(super) tags: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Decoded {
    Single(f64),
    /// Counts and means.
    Minute(Vec<(u32, f64)>),
}

impl Point {
    pub(super) fn single(&self) -> f64 {
        match self.value {
            Decoded::Single(value) => value,
            Decoded::Minute(_) => panic!("{} is a distribution", self.name),
        }
    }

    pub(super) fn is_delta(&self) -> bool {
        self.name.starts_with(['\u{2206}', '\u{394}'])
    }
}

/// A token, and whether it stood in quotes.
type Token = (String, bool);

pub(super) fn decode(line: &str) -> Result<Point, String> {
    if line.contains('\u{4}') || line.len() > 32 * 1024 {
        return Err("line refused whole".to_owned());
    }
    let mut tokens = tokens(line)?.into_iter().peekable();
    let minute = tokens.next_if_eq(&("!M".to_owned(), false)).is_some();
    let mut next = |what: &str| tokens.next().ok_or(format!("{what} is missing"));
    let (name, value, seconds) = if minute {
        let seconds = next("timestamp")?;
        let mut centroids = Vec::new();
        loop {
            match next("name")? {
                (hash, false) if hash == "#" => {
                    let count = number(next("count")?)?.parse::<i32>().map_err(|error| error.to_string())?;
                    let mean = number(next("mean")?)?.parse::<f64>().map_err(|error| error.to_string())?;
                    let count = u32::try_from(count).ok().filter(|count| *count > 0).ok_or("a count below one")?;
                    centroids.push((count, mean));
                }
                (name, _) => break (name, Decoded::Minute(centroids), seconds),
            }
        }
    } else {
        let (name, _) = next("name")?;
        let value = next("value")?;
        let value = number(value)?.parse().map_err(|error| format!("{error}"))?;
        (name, Decoded::Single(value), next("timestamp")?)
    };
    let bare = name.strip_prefix(['\u{2206}', '\u{394}']).unwrap_or(&name);
    if bare.is_empty() || name.encode_utf16().count() > 256 || !allowed(bare) || !bare.contains('.') {
        return Err(format!("name {name:?}"));
    }
    match &value {
        Decoded::Single(value) if bare.len() < name.len() && *value <= 0.0 => {
            return Err("a delta of nothing".to_owned());
        }
        Decoded::Minute(centroids) if centroids.is_empty() => return Err("an empty distribution".to_owned()),
        _ => {}
    }
    let seconds = number(seconds).ok().filter(|digits| digits.len() == 10).ok_or("timestamp")?;
    let (mut source, mut tags) = (None, BTreeMap::new());
    let mut previous = String::new();
    while let Ok((key, _)) = next("key") {
        if next("=")? != ("=".to_owned(), false) {
            return Err(format!("no = after {key:?}"));
        }
        let (value, _) = next("value")?;
        if value.trim().is_empty() || matches!(value.as_str(), "-" | "/") {
            return Err(format!("blank value of {key:?}"));
        }
        if key == "source" {
            source = Some(value);
            continue;
        }
        if key.is_empty() || key.len() > 64 || !allowed(&key) || matches!(key.as_str(), "host" | "tag") {
            return Err(format!("key {key:?}"));
        }
        if key.encode_utf16().count() + value.encode_utf16().count() > 254 {
            return Err(format!("tag {key:?} is too long"));
        }
        if key <= previous {
            return Err(format!("key {key:?} after {previous:?}"));
        }
        previous.clone_from(&key);
        tags.insert(key, value);
    }
    if tags.len() > 20 {
        return Err(format!("{} tags", tags.len()));
    }
    Ok(Point {
        name,
        value,
        seconds: seconds.parse().map_err(|error| format!("{seconds:?}: {error}"))?,
        source: source.filter(|own| own.len() <= 128 && allowed(own)).ok_or("source is missing")?,
        tags,
    })
}

fn tokens(line: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = line.chars().peekable();
    loop {
        while rest.next_if(|c| c.is_whitespace()).is_some() {}
        let Some(first) = rest.next() else { return Ok(tokens) };
        let mut token = String::new();
        match first {
            // What stands behind either is a token of its own.
            '=' | '#' => token.push(first),
            quote @ ('"' | '\'') => loop {
                match rest.next().ok_or("unmatched quote")? {
                    end if end == quote => break,
                    '\\' if rest.peek() == Some(&quote) => token.extend(rest.next()),
                    other => token.push(other),
                }
            },
            other => {
                token.push(other);
                while let Some(more) = rest.next_if(|c| !matches!(c, ' ' | '\t' | '=')) {
                    token.push(more);
                }
            }
        }
        tokens.push((token, matches!(first, '"' | '\'')));
    }
}

fn allowed(text: &str) -> bool {
    text.chars().all(|c| matches!(c, 'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_' | '.'))
}

/// An unquoted number without an exponent: what the narrowest known grammar takes.
fn number((text, quoted): Token) -> Result<String, String> {
    let plain = !quoted && text.chars().all(|c| matches!(c, '0'..='9' | '.' | '-'));
    if plain { Ok(text) } else { Err(format!("value {text:?}")) }
}
