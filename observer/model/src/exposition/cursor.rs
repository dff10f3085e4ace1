//! Tokens of one line.

use memchr::memchr2;

use super::{
    event::{Format, LABELS, Reason},
    text::{Span, TextRange, Word},
};

/// Bytes of names, without the colon.
const NAME: [bool; 256] = {
    let mut names = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        names[byte] = (byte as u8).is_ascii_alphanumeric() || byte as u8 == b'_';
        byte += 1;
    }
    names
};

pub(super) fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// Position in a line.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'a> {
    pub(super) line: &'a str,
    pub(super) at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn peek(&self) -> Option<u8> {
        self.line.as_bytes().get(self.at).copied()
    }

    pub(super) fn rest(&self) -> &'a str {
        &self.line[self.at..]
    }

    pub(super) fn skip_blanks(&mut self) {
        while self.peek().is_some_and(is_blank) {
            self.at += 1;
        }
    }

    pub(super) fn word(&self, range: TextRange) -> Word<'a> {
        Word { raw: &self.line[range.start as usize..range.end as usize], escaped: range.escaped }
    }

    #[expect(clippy::cast_possible_truncation, reason = "lines are far shorter than 4 GiB")]
    fn range(start: usize, end: usize, escaped: bool) -> TextRange {
        TextRange { start: start as u32, end: end as u32, escaped }
    }

    /// Returns the text up to the next blank.
    pub(super) fn token(&mut self) -> &'a str {
        let rest = self.rest();
        let token = &rest[..memchr2(b' ', b'\t', rest.as_bytes()).unwrap_or(rest.len())];
        self.at += token.len();
        token
    }

    /// Returns an unquoted name, empty if there is none. `more` is allowed besides letters, digits and the underscore.
    pub(super) fn name(&mut self, more: u8) -> TextRange {
        self.name_after(0, more)
    }

    /// Returns the same where the first `known` bytes are known to be a name.
    pub(super) fn name_after(&mut self, known: usize, more: u8) -> TextRange {
        let start = self.at;
        self.at += known;
        if known > 0 || !self.peek().is_some_and(|first| first.is_ascii_digit()) {
            while self.peek().is_some_and(|byte| NAME[usize::from(byte)] || byte == more) {
                self.at += 1;
            }
        }
        Self::range(start, self.at, false)
    }

    /// Returns the text between quotes.
    pub(super) fn quoted(&mut self) -> Option<TextRange> {
        let start = self.at + 1;
        let bytes = self.line.as_bytes();
        let mut at = start;
        let mut escaped = false;
        loop {
            at += memchr2(b'"', b'\\', &bytes[at..])?;
            if bytes[at] == b'"' {
                self.at = at + 1;
                return Some(Self::range(start, at, escaped));
            }
            escaped = true;
            // A backslash may be the last character of a broken line.
            at = (at + 2).min(bytes.len());
        }
    }

    /// Parses `{…}` and returns the metric's name if it is inside.
    pub(super) fn labels(&mut self, spans: &mut Vec<Span>) -> Result<Option<TextRange>, Reason> {
        self.at += 1;
        let first = spans.len();
        let mut metric = None;
        loop {
            self.skip_blanks();
            let name = match self.peek() {
                Some(b'}') => break,
                Some(b'"') => self.quoted().ok_or(Reason::Label)?,
                _ => self.name(b'_'),
            };
            if name.start == name.end {
                return Err(Reason::Label);
            }
            self.skip_blanks();
            if self.peek() == Some(b'=') {
                self.at += 1;
                self.skip_blanks();
                if self.peek() != Some(b'"') {
                    return Err(Reason::Label);
                }
                let value = self.quoted().ok_or(Reason::Label)?;
                self.check_label(name, &spans[first..])?;
                spans.push(Span { name, value });
            } else if self.line.as_bytes()[name.start as usize - 1] == b'"' && metric.is_none() && spans.len() == first
            {
                metric = Some(name);
            } else {
                return Err(Reason::Label);
            }
            self.skip_blanks();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {}
                _ => return Err(Reason::Label),
            }
        }
        self.at += 1;
        Ok(metric)
    }

    pub(super) fn check_label(&self, name: TextRange, before: &[Span]) -> Result<(), Reason> {
        if before.len() >= LABELS {
            return Err(Reason::TooManyLabels);
        }
        let name = self.word(name);
        let same = |other: Word<'_>| {
            if name.escaped || other.escaped { name.plain() == other.plain() } else { name.raw == other.raw }
        };
        if before.iter().any(|span| same(self.word(span.name))) { Err(Reason::LabelTwice) } else { Ok(()) }
    }

    pub(super) fn number(&mut self, reason: Reason) -> Result<f64, Reason> {
        self.skip_blanks();
        number(self.token()).ok_or(reason)
    }

    pub(super) fn timestamp(&mut self, format: Format) -> Result<Option<f64>, Reason> {
        self.skip_blanks();
        if matches!(self.peek(), None | Some(b'#')) {
            return Ok(None);
        }
        let token = self.token();
        self.skip_blanks();
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of any year at hand fit in 53 bits")]
        let seconds = match format {
            Format::Text => token.parse::<i64>().ok().map(|milliseconds| milliseconds as f64 / 1_000.0),
            Format::OpenMetrics => number(token).filter(|seconds| seconds.is_finite()),
        };
        seconds.map(Some).ok_or(Reason::Timestamp)
    }

    pub(super) fn exemplar(&mut self, spans: &mut Vec<Span>) -> Result<(f64, Option<f64>), Reason> {
        self.at += 1;
        self.skip_blanks();
        if self.peek() != Some(b'{') || self.labels(spans).map_err(|_| Reason::Exemplar)?.is_some() {
            return Err(Reason::Exemplar);
        }
        let value = self.number(Reason::Exemplar)?;
        let timestamp = self.timestamp(Format::OpenMetrics).map_err(|_| Reason::Exemplar)?;
        if self.peek().is_some() { Err(Reason::Exemplar) } else { Ok((value, timestamp)) }
    }
}

/// Parses a number of either format. Most are short and whole.
#[expect(clippy::cast_precision_loss, reason = "fifteen digits fit in 53 bits")]
fn number(token: &str) -> Option<f64> {
    if (1..=15).contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(token.bytes().fold(0_u64, |number, digit| number * 10 + u64::from(digit - b'0')) as f64);
    }
    token.parse().ok()
}
