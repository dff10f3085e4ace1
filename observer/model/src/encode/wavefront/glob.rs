//! Patterns of names and values: `*` is any run of characters, dots included, `?` any one, `[a-z]` one of these,
//! `[!a-z]` any other, `{one,other}` either; `\` escapes the next character.

use std::{iter::Peekable, str::Chars, str::FromStr};

/// Most alternatives of a pattern: `{a,b}` has two, `{a,b}{c,d}` four.
const MAX_ALTERNATIVES: usize = 1024;
/// Deepest nesting of braces.
const MAX_DEPTH: usize = 8;

/// A pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob(Vec<Vec<Token>>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Literal(char),
    Any,
    Run,
    Class { negated: bool, ranges: Vec<(char, char)> },
}

impl Glob {
    /// Returns whether the pattern matches the whole of `text`.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        let text: Vec<char> = text.chars().collect();
        self.0.iter().any(|tokens| matches(tokens, &text))
    }
}

/// After a mismatch the last run is extended by one character, which is optimal.
fn matches(tokens: &[Token], text: &[char]) -> bool {
    let (mut token, mut at) = (0, 0);
    let mut run: Option<(usize, usize)> = None;
    while let Some(&character) = text.get(at) {
        match tokens.get(token) {
            Some(Token::Run) => {
                run = Some((token + 1, at));
                token += 1;
            }
            Some(one) if one.is(character) => (token, at) = (token + 1, at + 1),
            _ => {
                let Some((after, taken)) = run else { return false };
                (token, at) = (after, taken + 1);
                run = Some((after, taken + 1));
            }
        }
    }
    tokens.iter().skip(token).all(|rest| *rest == Token::Run)
}

impl Token {
    fn is(&self, character: char) -> bool {
        match self {
            Self::Literal(own) => *own == character,
            Self::Any => true,
            Self::Run => false,
            Self::Class { negated, ranges } => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&character)) != *negated
            }
        }
    }
}

impl FromStr for Glob {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut rest = text.chars().peekable();
        let alternatives = sequence(&mut rest, 0).map_err(|problem| format!("pattern {text:?}: {problem}"))?;
        Ok(Self(alternatives))
    }
}

/// Reads up to the end, or up to what ends an alternative within braces.
fn sequence(rest: &mut Peekable<Chars<'_>>, depth: usize) -> Result<Vec<Vec<Token>>, String> {
    if depth > MAX_DEPTH {
        return Err(format!("more than {MAX_DEPTH} braces within each other"));
    }
    let mut alternatives = vec![Vec::new()];
    while let Some(character) = rest.next_if(|character| depth == 0 || !matches!(character, ',' | '}')) {
        let token = match character {
            '{' => {
                alternatives = product(&alternatives, &braces(rest, depth)?)?;
                continue;
            }
            '*' => Token::Run,
            '?' => Token::Any,
            '[' => class(rest)?,
            '\\' => Token::Literal(rest.next().ok_or("\\ has nothing behind it")?),
            other => Token::Literal(other),
        };
        alternatives.iter_mut().for_each(|tokens| tokens.push(token.clone()));
    }
    Ok(alternatives)
}

fn braces(rest: &mut Peekable<Chars<'_>>, depth: usize) -> Result<Vec<Vec<Token>>, String> {
    let mut alternatives = Vec::new();
    loop {
        alternatives.extend(sequence(rest, depth + 1)?);
        match rest.next() {
            Some('}') => return Ok(alternatives),
            Some(_) => {}
            None => return Err("{ is never closed".to_owned()),
        }
    }
}

fn product(before: &[Vec<Token>], after: &[Vec<Token>]) -> Result<Vec<Vec<Token>>, String> {
    if before.len() * after.len() > MAX_ALTERNATIVES {
        return Err(format!("its braces give more than {MAX_ALTERNATIVES} alternatives"));
    }
    Ok(before.iter().flat_map(|first| after.iter().map(|second| [&first[..], second].concat())).collect())
}

fn class(rest: &mut Peekable<Chars<'_>>) -> Result<Token, String> {
    let member = |rest: &mut Peekable<Chars<'_>>| match rest.next() {
        Some('\\') => rest.next(),
        other => other,
    };
    let negated = rest.next_if_eq(&'!').is_some();
    let mut ranges = Vec::new();
    loop {
        if rest.next_if_eq(&']').is_some() {
            break;
        }
        let low = member(rest).ok_or("[ is never closed")?;
        let high = match rest.next_if_eq(&'-') {
            Some(_) => member(rest).ok_or("[ is never closed")?,
            None => low,
        };
        ranges.push((low, high));
    }
    if ranges.is_empty() { Err("[] names no character".to_owned()) } else { Ok(Token::Class { negated, ranges }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matches(pattern: &str, text: &str) -> bool {
        pattern.parse::<Glob>().unwrap().matches(text)
    }

    #[test]
    fn patterns_match_as_the_collector_did() {
        for (pattern, text, expected) in [
            ("pilot.*", "pilot.xds.pushes.value", true),
            ("*seconds.count*", "a.seconds.count.value", true),
            ("foo", "foobar", false),
            ("foo*", "foo", true),
            ("*", "", true),
            ("", "", true),
            ("", "x", false),
            ("?", "é", true),
            ("?", "", false),
            ("a.[bc].d", "a.c.d", true),
            ("a.[!b-d].e", "a.c.e", false),
            ("a.[!b-d].e", "a.x.e", true),
            ("[\\]]", "]", true),
            ("{pilot,go}.*", "go.goroutines.value", true),
            ("{pilot,go}.*", "galley.x", false),
            ("a{,b{c,d}}e", "ae", true),
            ("a{,b{c,d}}e", "abde", true),
            ("a{,b{c,d}}e", "abe", false),
            ("a,b", "a,b", true),
            ("\\*", "*", true),
            ("\\*", "x", false),
            ("*a*b", "xaxxab", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern:?} {text:?}");
        }
    }

    #[test]
    fn wrong_patterns_are_explained() {
        for (pattern, said) in [
            ("a[b", "never closed"),
            ("a{b", "never closed"),
            ("a[]", "names no character"),
            ("a\\", "nothing behind"),
            (&"{a,b}".repeat(11), "alternatives"),
            (&"{".repeat(20), "within each other"),
        ] {
            let error = pattern.parse::<Glob>().unwrap_err();
            assert!(error.contains(said) && error.contains("pattern"), "{error}");
        }
    }

    /// The definition itself, at exponential cost.
    fn plainly(pattern: &[char], text: &[char]) -> bool {
        match (pattern.first(), text.first()) {
            (None, None) => true,
            (Some('*'), _) => plainly(&pattern[1..], text) || (!text.is_empty() && plainly(pattern, &text[1..])),
            (Some('?'), Some(_)) => plainly(&pattern[1..], &text[1..]),
            (Some(own), Some(other)) => own == other && plainly(&pattern[1..], &text[1..]),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn runs_match_by_their_definition(pattern in "[ab*?.]{0,8}", text in "[ab.]{0,8}") {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(matches(&pattern, &text), plainly(&chars(&pattern), &chars(&text)));
        }

        #[test]
        fn any_pattern_is_read_or_refused(pattern in "[ab*?\\[\\]{},!\\\\-]{0,24}", text in "[ab,]{0,12}") {
            if let Ok(glob) = pattern.parse::<Glob>() {
                let _ = glob.matches(&text);
            }
        }
    }
}
