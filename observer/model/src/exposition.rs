//! A metrics page as it arrives: Prometheus text 0.0.4 and OpenMetrics 1.0, without copying and in bounded memory.
//!
//! [`Parser::feed`] takes the page in pieces of any size and hands on what each line says; only a line that two pieces
//! share is put together first. What cannot be read is a [`Problem`] with its line and reason, and costs that line alone.
//!
//! Where exporters differ from the letter of the formats and the meaning is certain, it is taken: CRLF, blanks between
//! tokens, families without `HELP` or `TYPE`, counters with and without `_total`. A last line that does not end is never
//! taken, since its number may be cut.

use std::{
    borrow::Cow,
    collections::HashSet,
    hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState},
};

use memchr::{memchr, memchr2};

/// Longest line, bytes.
pub const LINE_BYTES: usize = 64 * 1024;
/// Most labels of one sample.
pub const LABELS: usize = 128;

/// Which of the two formats a page is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text 0.0.4: timestamps in milliseconds, no end mark.
    Text,
    /// OpenMetrics 1.0: timestamps in seconds, exemplars, `# UNIT`, `# EOF`.
    OpenMetrics,
}

/// Type of a family, both formats together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts of values by upper bound.
    Histogram,
    /// Quantiles made by the exporter.
    Summary,
    /// A histogram that may fall.
    GaugeHistogram,
    /// One of several states.
    StateSet,
    /// Facts in labels.
    Info,
    /// `untyped`, `unknown` or not said.
    #[default]
    Unknown,
}

/// Which part of its family's figure a sample is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The figure itself, or one quantile of a summary.
    Value,
    /// `_created`: when the figure was 0.
    Created,
    /// `_bucket`: values up to the bound in the label `le`.
    Bucket,
    /// `_sum` or `_gsum`.
    Sum,
    /// `_count` or `_gcount`.
    Count,
}

/// What a line says.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// `# HELP`.
    Help {
        /// The family.
        family: &'a str,
        /// For people.
        text: Word<'a>,
    },
    /// `# TYPE`.
    Type {
        /// The family.
        family: &'a str,
        /// Its type.
        kind: Kind,
    },
    /// `# UNIT`, OpenMetrics only.
    Unit {
        /// The family.
        family: &'a str,
        /// Its unit.
        unit: &'a str,
    },
    /// A figure.
    Sample(Sample<'a>),
    /// A line that says nothing that can be read.
    Problem(Problem),
}

/// A line that could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Which line, from 1.
    pub line: u64,
    /// Why.
    pub reason: Reason,
}

/// Why a line could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// Longer than [`LINE_BYTES`].
    TooLong,
    /// Not UTF-8.
    NotUtf8,
    /// No metric name where one belongs.
    Name,
    /// A label without name, `=`, quotes or separator.
    Label,
    /// The same label twice.
    LabelTwice,
    /// More labels than [`LABELS`].
    TooManyLabels,
    /// No number where the value belongs.
    Value,
    /// No number where the timestamp belongs, or something behind it.
    Timestamp,
    /// An exemplar that cannot be read.
    Exemplar,
    /// A type that neither format has.
    Type,
    /// Something behind `# EOF`.
    AfterEnd,
    /// The page ends inside a line.
    Unended,
    /// OpenMetrics without `# EOF`: the page was cut.
    NoEnd,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 13] = [
        Self::TooLong,
        Self::NotUtf8,
        Self::Name,
        Self::Label,
        Self::LabelTwice,
        Self::TooManyLabels,
        Self::Value,
        Self::Timestamp,
        Self::Exemplar,
        Self::Type,
        Self::AfterEnd,
        Self::Unended,
        Self::NoEnd,
    ];

    /// Label value it is counted under.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::TooLong => "line_too_long",
            Self::NotUtf8 => "not_utf8",
            Self::Name => "name",
            Self::Label => "label",
            Self::LabelTwice => "label_twice",
            Self::TooManyLabels => "too_many_labels",
            Self::Value => "value",
            Self::Timestamp => "timestamp",
            Self::Exemplar => "exemplar",
            Self::Type => "type",
            Self::AfterEnd => "after_end",
            Self::Unended => "unended",
            Self::NoEnd => "no_end",
        }
    }
}

/// Text as it stands on the page.
#[derive(Clone, Copy, Debug)]
pub struct Word<'a> {
    raw: &'a str,
    escaped: bool,
}

impl<'a> Word<'a> {
    /// The text meant: `\\`, `\n` and `\"` replaced, any other backslash kept.
    #[must_use]
    pub fn plain(self) -> Cow<'a, str> {
        if self.escaped { plain(self.raw) } else { Cow::Borrowed(self.raw) }
    }
}

/// The text meant by what stands between quotes: `\\`, `\n` and `\"` replaced, any other backslash kept.
#[must_use]
pub fn plain(raw: &str) -> Cow<'_, str> {
    if !raw.contains('\\') {
        return Cow::Borrowed(raw);
    }
    let mut plain = String::with_capacity(raw.len());
    unescape(raw, &mut plain);
    Cow::Owned(plain)
}

fn unescape(mut raw: &str, plain: &mut String) {
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

/// One figure.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// Name of the family it belongs to: that of the last `TYPE` or `HELP` where it fits, else its own.
    pub family: &'a str,
    /// Name on the line, suffix included.
    pub name: &'a str,
    /// Type of the family.
    pub kind: Kind,
    /// Part of the family's figure.
    pub part: Part,
    /// Labels, in the order they came.
    pub labels: Labels<'a>,
    /// The value.
    pub value: f64,
    /// Seconds since 1970, where the page says it.
    pub timestamp: Option<f64>,
    /// One of the values behind the figure, with its labels.
    pub exemplar: Option<Exemplar<'a>>,
}

/// An exemplar (OpenMetrics).
#[derive(Clone, Copy, Debug)]
pub struct Exemplar<'a> {
    /// Labels, often a trace.
    pub labels: Labels<'a>,
    /// The value.
    pub value: f64,
    /// Seconds since 1970, where the page says it.
    pub timestamp: Option<f64>,
}

/// Labels of one line.
#[derive(Clone, Copy, Debug)]
pub struct Labels<'a> {
    line: &'a str,
    spans: &'a [Span],
}

/// Places in a line, in bytes.
#[derive(Clone, Copy, Debug)]
struct Span {
    name: Place,
    value: Place,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    start: u32,
    end: u32,
    escaped: bool,
}

impl<'a> Labels<'a> {
    /// Names and values.
    pub fn iter(self) -> impl ExactSizeIterator<Item = (Word<'a>, Word<'a>)> {
        self.spans.iter().map(move |span| (self.word(span.name), self.word(span.value)))
    }

    fn word(self, place: Place) -> Word<'a> {
        Word { raw: &self.line[place.start as usize..place.end as usize], escaped: place.escaped }
    }
}

/// Reads one page.
#[derive(Debug)]
pub struct Parser {
    format: Format,
    /// A line that began in an earlier piece.
    begun: Vec<u8>,
    /// The line is too long: what follows up to its end is passed over.
    passing_over: bool,
    line: u64,
    ended: bool,
    family: String,
    /// The family's name needs no quotes.
    plain: bool,
    kind: Kind,
    /// A name that had escapes.
    name: String,
    spans: Vec<Span>,
}

impl Parser {
    /// A parser of one page.
    #[must_use]
    pub fn new(format: Format) -> Self {
        Self {
            format,
            begun: Vec::new(),
            passing_over: false,
            line: 0,
            ended: false,
            family: String::new(),
            plain: false,
            kind: Kind::Unknown,
            name: String::new(),
            spans: Vec::new(),
        }
    }

    /// Takes the next piece.
    pub fn feed(&mut self, mut piece: &[u8], each: &mut impl FnMut(Event<'_>)) {
        if self.passing_over || !self.begun.is_empty() {
            let Some(end) = memchr(b'\n', piece) else { return self.keep(piece) };
            self.keep(&piece[..end]);
            piece = &piece[end + 1..];
            let line = std::mem::take(&mut self.begun);
            self.read(&line, each);
            self.begun = line;
            self.begun.clear();
            self.passing_over = false;
        }
        while let Some(end) = memchr(b'\n', piece) {
            self.read(&piece[..end], each);
            piece = &piece[end + 1..];
        }
        self.keep(piece);
    }

    /// Ends the page.
    pub fn finish(mut self, each: &mut impl FnMut(Event<'_>)) {
        if self.passing_over || !self.begun.is_empty() {
            self.line += 1;
            // The end mark says the same with and without its line feed.
            if self.begun.trim_ascii_end() == b"# EOF" {
                self.ended = true;
            } else {
                each(Event::Problem(Problem { line: self.line, reason: Reason::Unended }));
            }
        }
        if self.format == Format::OpenMetrics && !self.ended {
            each(Event::Problem(Problem { line: self.line, reason: Reason::NoEnd }));
        }
    }

    fn keep(&mut self, piece: &[u8]) {
        if self.begun.len() + piece.len() > LINE_BYTES {
            self.passing_over = true;
            self.begun.clear();
        } else if !self.passing_over {
            self.begun.extend_from_slice(piece);
        }
    }

    fn read(&mut self, line: &[u8], each: &mut impl FnMut(Event<'_>)) {
        self.line += 1;
        if let Err(reason) = self.try_read(line, each) {
            each(Event::Problem(Problem { line: self.line, reason }));
        }
    }

    fn try_read(&mut self, line: &[u8], each: &mut impl FnMut(Event<'_>)) -> Result<(), Reason> {
        if self.passing_over || line.len() > LINE_BYTES {
            return Err(Reason::TooLong);
        }
        let line = std::str::from_utf8(line).map_err(|_| Reason::NotUtf8)?;
        let line = line.strip_suffix('\r').unwrap_or(line);
        let mut cursor = Cursor { line, at: 0 };
        cursor.skip_blanks();
        match cursor.peek() {
            None => Ok(()),
            _ if self.ended => Err(Reason::AfterEnd),
            Some(b'#') => self.comment(cursor, each),
            Some(_) => self.sample(cursor, each),
        }
    }

    /// Comments without one of the known words say nothing.
    fn comment(&mut self, mut cursor: Cursor<'_>, each: &mut impl FnMut(Event<'_>)) -> Result<(), Reason> {
        cursor.at += 1;
        cursor.skip_blanks();
        let word = cursor.token();
        if self.format == Format::OpenMetrics && word == "EOF" {
            self.ended = true;
            return Ok(());
        }
        let about_unit = word == "UNIT" && self.format == Format::OpenMetrics;
        if !matches!(word, "HELP" | "TYPE") && !about_unit {
            return Ok(());
        }
        cursor.skip_blanks();
        let quoted = cursor.peek() == Some(b'"');
        let place = if quoted { cursor.quoted().ok_or(Reason::Name)? } else { cursor.name(b':') };
        let name = cursor.word(place);
        if name.raw.is_empty() || cursor.peek().is_some_and(|next| !is_blank(next)) {
            return Err(Reason::Name);
        }
        if self.family != name.raw || name.escaped {
            self.family.clear();
            unescape(name.raw, &mut self.family);
            self.kind = Kind::Unknown;
        }
        self.plain = !quoted;
        cursor.skip_blanks();
        let rest = cursor.rest();
        let family = self.family.as_str();
        each(match word {
            "HELP" => Event::Help { family, text: Word { raw: rest, escaped: rest.contains('\\') } },
            "UNIT" => Event::Unit { family, unit: rest.trim_end() },
            _ => {
                self.kind = kind(rest.trim_end()).ok_or(Reason::Type)?;
                Event::Type { family, kind: self.kind }
            }
        });
        Ok(())
    }

    fn sample(&mut self, mut cursor: Cursor<'_>, each: &mut impl FnMut(Event<'_>)) -> Result<(), Reason> {
        self.spans.clear();
        // Most samples begin with the name of the family just announced, which is not looked at again byte by byte.
        let known = if self.plain && cursor.rest().starts_with(&self.family) { self.family.len() } else { 0 };
        let mut name = cursor.name_after(known, b':');
        cursor.skip_blanks();
        if cursor.peek() == Some(b'{') {
            // A name in quotes stands among the labels.
            let quoted = cursor.labels(&mut self.spans)?;
            match quoted {
                Some(quoted) if name.start == name.end => name = quoted,
                Some(_) => return Err(Reason::Name),
                None => {}
            }
        }
        if name.start == name.end {
            return Err(Reason::Name);
        }
        let own = self.spans.len();
        let value = cursor.number(Reason::Value)?;
        let timestamp = cursor.timestamp(self.format)?;
        let exemplar = match cursor.peek() {
            Some(b'#') if self.format == Format::OpenMetrics => Some(cursor.exemplar(&mut self.spans)?),
            Some(_) => return Err(Reason::Timestamp),
            None => None,
        };
        let line = cursor.line;
        let name = cursor.word(name);
        let name = if name.escaped {
            self.name.clear();
            unescape(name.raw, &mut self.name);
            self.name.as_str()
        } else {
            name.raw
        };
        let (own, others) = self.spans.split_at(own);
        let (family, kind, part) = match name.strip_prefix(self.family.as_str()).and_then(|rest| part(self.kind, rest))
        {
            Some(part) if !self.family.is_empty() => (self.family.as_str(), self.kind, part),
            _ => (name, Kind::Unknown, Part::Value),
        };
        each(Event::Sample(Sample {
            family,
            name,
            kind,
            part,
            labels: Labels { line, spans: own },
            value,
            timestamp,
            exemplar: exemplar.map(|(value, timestamp)| Exemplar {
                labels: Labels { line, spans: others },
                value,
                timestamp,
            }),
        }));
        Ok(())
    }
}

fn kind(word: &str) -> Option<Kind> {
    Some(match word {
        "counter" => Kind::Counter,
        "gauge" => Kind::Gauge,
        "histogram" => Kind::Histogram,
        "summary" => Kind::Summary,
        "gaugehistogram" => Kind::GaugeHistogram,
        "stateset" => Kind::StateSet,
        "info" => Kind::Info,
        "untyped" | "unknown" => Kind::Unknown,
        _ => return None,
    })
}

/// What a suffix means behind the name of a family of this kind.
fn part(kind: Kind, suffix: &str) -> Option<Part> {
    Some(match (kind, suffix) {
        (_, "") | (Kind::Counter, "_total") | (Kind::Info, "_info") => Part::Value,
        (Kind::Counter | Kind::Histogram | Kind::Summary, "_created") => Part::Created,
        (Kind::Histogram | Kind::GaugeHistogram, "_bucket") => Part::Bucket,
        (Kind::Histogram | Kind::Summary, "_sum") | (Kind::GaugeHistogram, "_gsum") => Part::Sum,
        (Kind::Histogram | Kind::Summary, "_count") | (Kind::GaugeHistogram, "_gcount") => Part::Count,
        _ => return None,
    })
}

/// Bytes of names, the colon apart.
const NAME: [bool; 256] = {
    let mut names = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        names[byte] = (byte as u8).is_ascii_alphanumeric() || byte as u8 == b'_';
        byte += 1;
    }
    names
};

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// A place in a line.
#[derive(Clone, Copy)]
struct Cursor<'a> {
    line: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn peek(&self) -> Option<u8> {
        self.line.as_bytes().get(self.at).copied()
    }

    fn rest(&self) -> &'a str {
        &self.line[self.at..]
    }

    fn skip_blanks(&mut self) {
        while self.peek().is_some_and(is_blank) {
            self.at += 1;
        }
    }

    fn word(&self, place: Place) -> Word<'a> {
        Word { raw: &self.line[place.start as usize..place.end as usize], escaped: place.escaped }
    }

    #[expect(clippy::cast_possible_truncation, reason = "lines are far shorter than 4 GiB")]
    fn place(start: usize, end: usize, escaped: bool) -> Place {
        Place { start: start as u32, end: end as u32, escaped }
    }

    /// Up to the next blank.
    fn token(&mut self) -> &'a str {
        let rest = self.rest();
        let token = &rest[..memchr2(b' ', b'\t', rest.as_bytes()).unwrap_or(rest.len())];
        self.at += token.len();
        token
    }

    /// A name without quotes, empty if there is none. `more` is allowed beside letters, digits and the underscore.
    fn name(&mut self, more: u8) -> Place {
        self.name_after(0, more)
    }

    /// The same where the first `known` bytes are known to be a name.
    fn name_after(&mut self, known: usize, more: u8) -> Place {
        let start = self.at;
        self.at += known;
        if known > 0 || !self.peek().is_some_and(|first| first.is_ascii_digit()) {
            while self.peek().is_some_and(|byte| NAME[usize::from(byte)] || byte == more) {
                self.at += 1;
            }
        }
        Self::place(start, self.at, false)
    }

    /// Text in quotes, from the opening one on.
    fn quoted(&mut self) -> Option<Place> {
        let start = self.at + 1;
        let bytes = self.line.as_bytes();
        let mut at = start;
        let mut escaped = false;
        loop {
            at += memchr2(b'"', b'\\', &bytes[at..])?;
            if bytes[at] == b'"' {
                self.at = at + 1;
                return Some(Self::place(start, at, escaped));
            }
            escaped = true;
            // A backslash may stand before the last character of a broken line.
            at = (at + 2).min(bytes.len());
        }
    }

    /// `{…}`; returns the metric's name if it stands inside.
    fn labels(&mut self, spans: &mut Vec<Span>) -> Result<Option<Place>, Reason> {
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

    fn check_label(&self, name: Place, before: &[Span]) -> Result<(), Reason> {
        if before.len() >= LABELS {
            return Err(Reason::TooManyLabels);
        }
        let name = self.word(name);
        let same = |other: Word<'_>| {
            if name.escaped || other.escaped { name.plain() == other.plain() } else { name.raw == other.raw }
        };
        if before.iter().any(|span| same(self.word(span.name))) { Err(Reason::LabelTwice) } else { Ok(()) }
    }

    fn number(&mut self, reason: Reason) -> Result<f64, Reason> {
        self.skip_blanks();
        number(self.token()).ok_or(reason)
    }

    fn timestamp(&mut self, format: Format) -> Result<Option<f64>, Reason> {
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

    fn exemplar(&mut self, spans: &mut Vec<Span>) -> Result<(f64, Option<f64>), Reason> {
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

/// A number as both formats write it. Most are short and whole.
#[expect(clippy::cast_precision_loss, reason = "fifteen digits fit in 53 bits")]
fn number(token: &str) -> Option<f64> {
    if (1..=15).contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(token.bytes().fold(0_u64, |number, digit| number * 10 + u64::from(digit - b'0')) as f64);
    }
    token.parse().ok()
}

/// Finds series that come twice, by a 64-bit digest of name and labels in any order.
#[derive(Debug)]
pub struct Seen {
    seed: u64,
    digests: HashSet<u64, BuildHasherDefault<AsItIs>>,
}

impl Default for Seen {
    fn default() -> Self {
        // The seed differs from process to process, so that nobody can prepare two series with one digest.
        Self { seed: RandomState::new().hash_one(0), digests: HashSet::default() }
    }
}

impl Seen {
    /// Whether the series is new.
    pub fn insert(&mut self, sample: &Sample<'_>) -> bool {
        self.insert_as(sample.name, sample.labels.iter().map(|(name, value)| (name.plain(), value.plain())))
    }

    /// Whether a series of this name and these labels is new. A label with an empty value is none, as Prometheus has it.
    pub fn insert_as(&mut self, name: &str, labels: impl Iterator<Item = (impl AsRef<str>, impl AsRef<str>)>) -> bool {
        let mut digest = fold(self.seed, name.as_bytes());
        for (name, value) in labels {
            let (name, value) = (name.as_ref(), value.as_ref());
            if !value.is_empty() {
                digest = digest.wrapping_add(fold(fold(!self.seed, name.as_bytes()), value.as_bytes()));
            }
        }
        self.digests.insert(digest)
    }

    /// Forgets everything, as before another page.
    pub fn clear(&mut self) {
        self.digests.clear();
    }
}

/// Eight bytes a step, each mixed by one wide multiplication.
fn fold(seed: u64, bytes: &[u8]) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |state: u64, word: u64| {
        let wide = u128::from(state ^ word) * u128::from(ODD);
        #[expect(clippy::cast_possible_truncation, reason = "both halves are used")]
        let folded = wide as u64 ^ (wide >> 64) as u64;
        folded.wrapping_add(ODD)
    };
    let (words, rest) = bytes.as_chunks::<8>();
    let state = words.iter().fold(mix(seed, bytes.len() as u64), |state, word| mix(state, u64::from_le_bytes(*word)));
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    mix(mix(state, u64::from_le_bytes(last)), seed)
}

/// A digest is as good as its hash.
#[derive(Debug, Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn write(&mut self, _bytes: &[u8]) {
        unreachable!("only digests are hashed");
    }

    fn write_u64(&mut self, digest: u64) {
        self.0 = digest;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Pairs = Vec<(String, String)>;

    /// A sample with everything owned.
    #[derive(Clone, Debug, PartialEq)]
    struct Owned {
        family: String,
        name: String,
        kind: Kind,
        part: Part,
        labels: Pairs,
        value: f64,
        timestamp: Option<f64>,
        exemplar: Option<(Pairs, f64, Option<f64>)>,
    }

    #[derive(Debug, Default, PartialEq)]
    struct Page {
        samples: Vec<Owned>,
        heads: Vec<String>,
        problems: Vec<Problem>,
    }

    fn owned(labels: Labels<'_>) -> Pairs {
        labels.iter().map(|(name, value)| (name.plain().into_owned(), value.plain().into_owned())).collect()
    }

    fn read_in(format: Format, pieces: &[&[u8]]) -> Page {
        let mut page = Page::default();
        let mut each = |event: Event<'_>| match event {
            Event::Sample(sample) => page.samples.push(Owned {
                family: sample.family.to_owned(),
                name: sample.name.to_owned(),
                kind: sample.kind,
                part: sample.part,
                labels: owned(sample.labels),
                value: sample.value,
                timestamp: sample.timestamp,
                exemplar: sample.exemplar.map(|own| (owned(own.labels), own.value, own.timestamp)),
            }),
            Event::Help { family, text } => page.heads.push(format!("{family} help {}", text.plain())),
            Event::Type { family, kind } => page.heads.push(format!("{family} {kind:?}")),
            Event::Unit { family, unit } => page.heads.push(format!("{family} unit {unit}")),
            Event::Problem(problem) => page.problems.push(problem),
        };
        let mut parser = Parser::new(format);
        pieces.iter().for_each(|piece| parser.feed(piece, &mut each));
        parser.finish(&mut each);
        page
    }

    fn text(page: &str) -> Page {
        read_in(Format::Text, &[page.as_bytes()])
    }

    fn open_metrics(page: &str) -> Page {
        read_in(Format::OpenMetrics, &[page.as_bytes()])
    }

    fn only(page: Page) -> Owned {
        assert_eq!((page.problems.as_slice(), page.samples.len()), (&[][..], 1), "{page:?}");
        page.samples.into_iter().next().unwrap()
    }

    fn reason(page: &Page) -> Reason {
        assert_eq!((page.samples.len(), page.problems.len()), (0, 1), "{page:?}");
        page.problems[0].reason
    }

    #[test]
    fn a_family_with_help_type_labels_and_escapes() {
        let page = text(concat!(
            "# HELP a_total what\\\\ it\\n is\n# TYPE a_total counter\n",
            "a_total{x=\"1\\\"\\\\\\n,}\",y=\"é\"} 3 1700000000500\n",
        ));
        assert_eq!(page.heads, ["a_total help what\\ it\n is", "a_total Counter"]);
        let sample = only(page);
        assert_eq!((sample.family.as_str(), sample.kind, sample.part), ("a_total", Kind::Counter, Part::Value));
        assert_eq!(sample.labels, [("x".to_owned(), "1\"\\\n,}".to_owned()), ("y".to_owned(), "é".to_owned())]);
        assert_eq!((sample.value, sample.timestamp), (3.0, Some(1_700_000_000.5)));
    }

    #[test]
    fn parts_of_histograms_summaries_and_counters_of_both_spellings() {
        let page = text(concat!(
            "# TYPE h histogram\nh_bucket{le=\"+Inf\"} 1\nh_sum 2\nh_count 1\n",
            "# TYPE s summary\ns{quantile=\"0.5\"} 1\ns_sum 1\ns_count 1\n",
            "# TYPE c counter\nc 1\nc_total 2\nc_created 3\n# TYPE g gauge\ng 1\ng_count 1\n",
        ));
        let parts: Vec<_> = page.samples.iter().map(|own| (own.family.as_str(), own.part)).collect();
        let histogram = [("h", Part::Bucket), ("h", Part::Sum), ("h", Part::Count)];
        let summary = [("s", Part::Value), ("s", Part::Sum), ("s", Part::Count)];
        let counter = [("c", Part::Value), ("c", Part::Value), ("c", Part::Created)];
        // A gauge has no count: that is a family of its own.
        let gauge = [("g", Part::Value), ("g_count", Part::Value)];
        assert_eq!(parts, [&histogram[..], &summary, &counter, &gauge].concat());
        assert_eq!(page.samples.last().map(|own| own.kind), Some(Kind::Unknown));
    }

    #[test]
    fn open_metrics_units_exemplars_and_created() {
        let page = open_metrics(concat!(
            "# TYPE h_seconds histogram\n# UNIT h_seconds seconds\n# HELP h_seconds a \\\"b\\\"\n",
            "h_seconds_bucket{le=\"1.0\"} 1 # {trace_id=\"a}\\\"\"} 0.5 1.5\nh_seconds_created 1.25\n",
            "# TYPE i info\ni_info{a=\"b\"} 1\n# TYPE g gaugehistogram\ng_gcount 1\ng_gsum 1\n# EOF\n",
        ));
        assert_eq!(page.problems, []);
        assert!(page.heads.contains(&"h_seconds unit seconds".to_owned()));
        let exemplar = (vec![("trace_id".to_owned(), "a}\"".to_owned())], 0.5, Some(1.5));
        assert_eq!(page.samples[0].exemplar, Some(exemplar));
        let parts: Vec<_> = page.samples.iter().map(|own| own.part).collect();
        assert_eq!(parts, [Part::Bucket, Part::Created, Part::Value, Part::Count, Part::Sum]);
    }

    #[test]
    fn names_in_quotes_hold_any_text() {
        let page = text("# TYPE \"my.name\" gauge\n{\"my.name\",\"a b\"=\"1\",c=\"2\"} 4\n{\"q\\\"\"} 5\n");
        assert_eq!(page.heads, ["my.name Gauge"]);
        assert_eq!((page.samples[0].family.as_str(), page.samples[0].kind), ("my.name", Kind::Gauge));
        assert_eq!(page.samples[0].labels[0].0, "a b");
        assert_eq!(page.samples[1].name, "q\"");
        assert_eq!(reason(&text("a{\"b\"} 1\n")), Reason::Name);
        assert_eq!(reason(&text("{x=\"1\",\"b\"} 1\n")), Reason::Label);
        assert_eq!(reason(&text("# TYPE \"a.b\" gauge\na.b 1\n")), Reason::Value);
    }

    #[test]
    fn numbers_blanks_and_line_ends() {
        for (line, value) in [
            ("a 1", 1.0),
            ("a +Inf", f64::INFINITY),
            ("a -Inf", f64::NEG_INFINITY),
            ("a 9.223372036854776e+18", 9.223_372_036_854_776e18),
            ("a\t-0.5\t", -0.5),
            ("  a {x = \"1\" , } 2", 2.0),
            ("a 123456789012345678", 123_456_789_012_345_680.0),
            ("a{} 7\r", 7.0),
        ] {
            assert_eq!(only(text(&format!("\n# a comment\n{line}\n"))).value, value, "{line}");
        }
        assert!(only(text("a NaN\n")).value.is_nan());
    }

    #[test]
    fn a_broken_line_costs_itself_alone_and_is_named() {
        let page = text("a 1\nb x\n# TYPE c what\n\u{e9} 1\nd{a=\"1\",a=\"2\"} 1\ne 2\n");
        assert_eq!(page.samples.len(), 2);
        let found: Vec<_> = page.problems.iter().map(|problem| (problem.line, problem.reason)).collect();
        assert_eq!(found, [(2, Reason::Value), (3, Reason::Type), (4, Reason::Name), (5, Reason::LabelTwice)]);
        for (line, expected) in [
            ("a", Reason::Value),
            ("a{x} 1", Reason::Label),
            ("a{x=1} 1", Reason::Label),
            ("a{x=\"1} 1", Reason::Label),
            ("a{x=\"1\\", Reason::Label),
            ("a{x=\"1\" y=\"2\"} 1", Reason::Label),
            ("a{=\"1\"} 1", Reason::Label),
            ("a 1 x", Reason::Timestamp),
            ("a 1 2 3", Reason::Timestamp),
            ("a 1 # {} 1", Reason::Timestamp),
            ("1a 1", Reason::Name),
            ("{} 1", Reason::Name),
            ("# TYPE", Reason::Name),
            ("<html>", Reason::Name),
        ] {
            assert_eq!(reason(&text(&format!("{line}\n"))), expected, "{line}");
        }
        assert_eq!(reason(&read_in(Format::Text, &[b"a{x=\"\xff\"} 1\n"])), Reason::NotUtf8);
        let many = (0..=LABELS).map(|number| format!("l{number}=\"\",")).collect::<String>();
        assert_eq!(reason(&text(&format!("a{{{many}}} 1\n"))), Reason::TooManyLabels);
        assert_eq!(reason(&open_metrics("a 1 # {x} 1\n# EOF\n")), Reason::Exemplar);
    }

    #[test]
    fn a_page_that_was_cut_says_so() {
        assert_eq!(reason(&text("a 12")), Reason::Unended);
        assert_eq!(open_metrics("a 1\n").problems[0].reason, Reason::NoEnd);
        assert_eq!(open_metrics("a 1\n# EOF").problems, []);
        assert_eq!(reason(&open_metrics("# EOF\na 1\n")), Reason::AfterEnd);
        assert_eq!(text("a 1\n# EOF\nb 1\n").samples.len(), 2);
    }

    #[test]
    fn a_line_without_end_takes_no_memory() {
        let mut parser = Parser::new(Format::Text);
        let mut problems = Vec::new();
        let mut samples = 0;
        let mut each = |event: Event<'_>| match event {
            Event::Problem(problem) => problems.push(problem),
            Event::Sample(_) => samples += 1,
            _ => {}
        };
        parser.feed(b"a 1\nb{x=\"", &mut each);
        for _ in 0..100 {
            parser.feed(&[b'x'; LINE_BYTES / 2], &mut each);
            assert!(parser.begun.capacity() <= 2 * LINE_BYTES);
        }
        parser.feed(b"\"} 1\nc 1\n", &mut each);
        parser.finish(&mut each);
        assert_eq!(samples, 2);
        assert_eq!(problems, [Problem { line: 2, reason: Reason::TooLong }]);
        let long = format!("a{{x=\"{}\"}} 1\n", "x".repeat(LINE_BYTES));
        assert_eq!(reason(&text(&long)), Reason::TooLong);
    }

    #[test]
    fn series_that_come_twice_are_seen_in_any_order_of_labels() {
        let mut seen = Seen::default();
        let mut new = Vec::new();
        let mut parser = Parser::new(Format::Text);
        let page =
            "a{x=\"1\",y=\"2\"} 1\na{y=\"2\",x=\"1\"} 2\na{x=\"2\",y=\"1\"} 1\na{x=\"1\",y=\"2\",z=\"\"} 1\nb 1\na 1\n";
        parser.feed(page.as_bytes(), &mut |event| {
            if let Event::Sample(sample) = event {
                new.push(seen.insert(&sample));
            }
        });
        assert_eq!(new, [true, false, true, false, true, true]);
    }

    /// A valid line, and what it says.
    fn sample() -> impl Strategy<Value = (String, Owned)> {
        let name = "[a-zA-Z_:][a-zA-Z0-9_:]{0,8}";
        let labels = proptest::collection::btree_map("[a-zA-Z_][a-zA-Z0-9_]{0,5}", any::<String>(), 0..5);
        let value =
            prop_oneof![any::<f64>(), any::<u32>().prop_map(f64::from)].prop_filter("NaN", |value| !value.is_nan());
        (name, labels, value, any::<Option<i32>>()).prop_map(|(name, labels, value, timestamp)| {
            let escape = |text: &str| text.replace('\\', "\\\\").replace('\n', "\\n").replace('"', "\\\"");
            let inside: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
            let ending = timestamp.map(|milliseconds| format!(" {milliseconds}")).unwrap_or_default();
            let line = format!("{name}{{{}}} {value}{ending}\n", inside.join(","));
            let owned = Owned {
                family: name.clone(),
                name,
                kind: Kind::Unknown,
                part: Part::Value,
                labels: labels.into_iter().collect(),
                value,
                timestamp: timestamp.map(|milliseconds| f64::from(milliseconds) / 1_000.0),
                exemplar: None,
            };
            (line, owned)
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_however_it_is_cut(lines in proptest::collection::vec(sample(), 0..6), size in 1_usize..40) {
            let page: String = lines.iter().map(|(line, _)| line.as_str()).collect();
            let pieces: Vec<_> = page.as_bytes().chunks(size).collect();
            let read = read_in(Format::Text, &pieces);
            prop_assert_eq!(&read.problems, &[]);
            let expected: Vec<_> = lines.into_iter().map(|(_, sample)| sample).collect();
            prop_assert_eq!(read.samples, expected);
        }

        #[test]
        fn anything_ends_and_reads_the_same_in_pieces(page in "([a#{}\"\\\\=, \n0-9.]|TYPE|HELP|# EOF|counter){0,80}", size in 1_usize..9, open: bool) {
            let format = if open { Format::OpenMetrics } else { Format::Text };
            let whole = read_in(format, &[page.as_bytes()]);
            let pieces: Vec<_> = page.as_bytes().chunks(size).collect();
            prop_assert_eq!(whole, read_in(format, &pieces));
        }
    }
}
