//! The line parser.

use memchr::memchr;

use super::{
    cursor::{Cursor, is_blank},
    event::{Event, Exemplar, Format, LINE_BYTES, MetricType, Part, Problem, Reason, Sample},
    text::{Labels, Span, Word, append_unescaped},
};

/// Parses one exposition.
#[derive(Debug)]
pub struct Parser {
    format: Format,
    /// Start of a line from earlier chunks.
    pub(super) partial: Vec<u8>,
    /// The line is too long: the rest of it is skipped.
    skipping: bool,
    line: u64,
    ended: bool,
    family: String,
    /// Whether the family's name needs no quotes.
    plain: bool,
    metric_type: MetricType,
    /// An unescaped name.
    name: String,
    spans: Vec<Span>,
}

impl Parser {
    /// Returns a parser of one exposition.
    #[must_use]
    pub fn new(format: Format) -> Self {
        Self {
            format,
            partial: Vec::new(),
            skipping: false,
            line: 0,
            ended: false,
            family: String::new(),
            plain: false,
            metric_type: MetricType::Unknown,
            name: String::new(),
            spans: Vec::new(),
        }
    }

    /// Parses the next chunk.
    pub fn feed(&mut self, mut chunk: &[u8], each: &mut impl FnMut(Event<'_>)) {
        if self.skipping || !self.partial.is_empty() {
            let Some(end) = memchr(b'\n', chunk) else { return self.buffer(chunk) };
            self.buffer(&chunk[..end]);
            chunk = &chunk[end + 1..];
            let line = std::mem::take(&mut self.partial);
            self.parse_line(&line, each);
            self.partial = line;
            self.partial.clear();
            self.skipping = false;
        }
        while let Some(end) = memchr(b'\n', chunk) {
            self.parse_line(&chunk[..end], each);
            chunk = &chunk[end + 1..];
        }
        self.buffer(chunk);
    }

    /// Ends the exposition.
    pub fn finish(mut self, each: &mut impl FnMut(Event<'_>)) {
        if self.skipping || !self.partial.is_empty() {
            self.line += 1;
            // The end mark is complete without its line feed.
            if self.partial.trim_ascii_end() == b"# EOF" {
                self.ended = true;
            } else {
                each(Event::Problem(Problem { line: self.line, reason: Reason::Unended }));
            }
        }
        if self.format == Format::OpenMetrics && !self.ended {
            each(Event::Problem(Problem { line: self.line, reason: Reason::NoEnd }));
        }
    }

    fn buffer(&mut self, chunk: &[u8]) {
        if self.partial.len() + chunk.len() > LINE_BYTES {
            self.skipping = true;
            self.partial.clear();
        } else if !self.skipping {
            self.partial.extend_from_slice(chunk);
        }
    }

    fn parse_line(&mut self, line: &[u8], each: &mut impl FnMut(Event<'_>)) {
        self.line += 1;
        if let Err(reason) = self.try_parse_line(line, each) {
            each(Event::Problem(Problem { line: self.line, reason }));
        }
    }

    fn try_parse_line(&mut self, line: &[u8], each: &mut impl FnMut(Event<'_>)) -> Result<(), Reason> {
        if self.skipping || line.len() > LINE_BYTES {
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

    /// Parses a comment; those without a keyword are ignored.
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
        let range = if quoted { cursor.quoted().ok_or(Reason::Name)? } else { cursor.name(b':') };
        let name = cursor.word(range);
        if name.raw.is_empty() || cursor.peek().is_some_and(|next| !is_blank(next)) {
            return Err(Reason::Name);
        }
        if self.family != name.raw || name.escaped {
            self.family.clear();
            append_unescaped(name.raw, &mut self.family);
            self.metric_type = MetricType::Unknown;
        }
        self.plain = !quoted;
        cursor.skip_blanks();
        let rest = cursor.rest();
        let family = self.family.as_str();
        each(match word {
            "HELP" => Event::Help { family, text: Word { raw: rest, escaped: rest.contains('\\') } },
            "UNIT" => Event::Unit { family, unit: rest.trim_end() },
            _ => {
                self.metric_type = metric_type(rest.trim_end()).ok_or(Reason::Type)?;
                Event::Type { family, metric_type: self.metric_type }
            }
        });
        Ok(())
    }

    fn sample(&mut self, mut cursor: Cursor<'_>, each: &mut impl FnMut(Event<'_>)) -> Result<(), Reason> {
        self.spans.clear();
        // Most samples begin with the name of the family just announced, which need not be scanned again.
        let known = if self.plain && cursor.rest().starts_with(&self.family) { self.family.len() } else { 0 };
        let mut name = cursor.name_after(known, b':');
        cursor.skip_blanks();
        if cursor.peek() == Some(b'{') {
            // A quoted name is inside the braces.
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
            append_unescaped(name.raw, &mut self.name);
            self.name.as_str()
        } else {
            name.raw
        };
        let (own, others) = self.spans.split_at(own);
        let (family, metric_type, part) =
            match name.strip_prefix(self.family.as_str()).and_then(|rest| part(self.metric_type, rest)) {
                Some(part) if !self.family.is_empty() => (self.family.as_str(), self.metric_type, part),
                _ => (name, MetricType::Unknown, Part::Value),
            };
        each(Event::Sample(Sample {
            family,
            name,
            metric_type,
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

fn metric_type(word: &str) -> Option<MetricType> {
    Some(match word {
        "counter" => MetricType::Counter,
        "gauge" => MetricType::Gauge,
        "histogram" => MetricType::Histogram,
        "summary" => MetricType::Summary,
        "gaugehistogram" => MetricType::GaugeHistogram,
        "stateset" => MetricType::StateSet,
        "info" => MetricType::Info,
        "untyped" | "unknown" => MetricType::Unknown,
        _ => return None,
    })
}

/// Returns what a suffix means behind the name of a family of this type.
fn part(metric_type: MetricType, suffix: &str) -> Option<Part> {
    Some(match (metric_type, suffix) {
        (_, "") | (MetricType::Counter, "_total") | (MetricType::Info, "_info") => Part::Value,
        (MetricType::Counter | MetricType::Histogram | MetricType::Summary, "_created") => Part::Created,
        (MetricType::Histogram | MetricType::GaugeHistogram, "_bucket") => Part::Bucket,
        (MetricType::Histogram | MetricType::Summary, "_sum") | (MetricType::GaugeHistogram, "_gsum") => Part::Sum,
        (MetricType::Histogram | MetricType::Summary, "_count") | (MetricType::GaugeHistogram, "_gcount") => {
            Part::Count
        }
        _ => return None,
    })
}
