//! What one scrape said, held compactly: every label set once, a line in 16 bytes. Pure.
//!
//! Families are named as in text 0.0.4, whatever they came in. Labels are kept in the form in which both formats write
//! them (`a="b",c="d"`), ready to be written again; those that the target itself is labelled with get `exported_` in
//! front, as Prometheus does it. Timestamps, exemplars and `_created` are left out.

mod sound;

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher, RandomState},
};

use crate::exposition::{Event, Format, Kind, Labels, Parser, Part, Reason, Sample, Seen};
use crate::reading::Instance;

/// Most samples of one page.
pub const SAMPLES: usize = 200_000;
/// What Prometheus puts before labels that would be the target's.
const EXPORTED: &str = "exported_";
/// Most different upper bounds in one page's histograms.
const BOUNDS: usize = 10_000;

const _: () = assert!(size_of::<Line>() == 16);

/// One scrape.
#[derive(Clone, Debug, Default)]
pub struct Page {
    families: Vec<PageFamily>,
    /// The text of every label set, and where each begins; the last one is where they end.
    labels: String,
    sets: Vec<u32>,
    bounds: Vec<Box<str>>,
    /// Samples on the page.
    pub samples: u64,
    /// Lines passed over, by reason.
    pub skipped: BTreeMap<&'static str, u64>,
}

/// A family of one page.
#[derive(Clone, Debug)]
pub struct PageFamily {
    /// Name as in text 0.0.4.
    pub name: Box<str>,
    /// Counter, gauge, histogram, summary or unknown.
    pub kind: Kind,
    /// For people; may be empty.
    pub help: Box<str>,
    /// Unit, where the page says it.
    pub unit: Box<str>,
    lines: Vec<Line>,
}

/// Which line of a family: what is appended to its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suffix {
    /// The figure itself, or a quantile of a summary.
    None,
    /// One bucket of a histogram.
    Bucket,
    /// Sum of the values.
    Sum,
    /// Number of values.
    Count,
}

impl Suffix {
    /// As it is written.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Bucket => "_bucket",
            Self::Sum => "_sum",
            Self::Count => "_count",
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Line {
    value: f64,
    set: u32,
    bound: u16,
    suffix: Suffix,
}

/// One line of a family.
#[derive(Clone, Copy, Debug)]
pub struct PageLine<'a> {
    /// Which line.
    pub suffix: Suffix,
    /// Labels but `le`, escaped, without braces; may be empty.
    pub labels: &'a str,
    /// Upper bound of a bucket.
    pub bound: Option<&'a str>,
    /// The value.
    pub value: f64,
}

impl Page {
    /// What a page says that is there as a whole, of a target that has its own [`Instance::LABELS`].
    ///
    /// # Errors
    /// It has more than is kept of a page.
    pub fn read(format: Format, text: &str) -> Result<Self, TooMuch> {
        let mut builder = Builder::new(&Instance::LABELS);
        let mut outcome = Ok(());
        let mut each = |event: Event<'_>| {
            if outcome.is_ok() {
                outcome = builder.take(&event);
            }
        };
        let mut parser = Parser::new(format);
        parser.feed(text.as_bytes(), &mut each);
        parser.finish(&mut each);
        outcome.map(|()| builder.finish())
    }
}

impl Page {
    /// Its families, in the order they came.
    #[must_use]
    pub fn families(&self) -> &[PageFamily] {
        &self.families
    }

    /// The lines of one of its families.
    pub fn lines<'a>(&'a self, family: &'a PageFamily) -> impl ExactSizeIterator<Item = PageLine<'a>> {
        family.lines.iter().map(|line| self.line(line))
    }

    /// Line `index` of one of its families.
    #[must_use]
    pub fn get<'a>(&'a self, family: &'a PageFamily, index: usize) -> Option<PageLine<'a>> {
        family.lines.get(index).map(|line| self.line(line))
    }

    /// The text of a label set.
    fn set(&self, set: u32) -> Option<&str> {
        let set = set as usize;
        Some(&self.labels[*self.sets.get(set)? as usize..*self.sets.get(set + 1)? as usize])
    }

    fn line(&self, line: &Line) -> PageLine<'_> {
        PageLine {
            suffix: line.suffix,
            labels: self.set(line.set).expect("every line has its label set"),
            bound: (line.suffix == Suffix::Bucket).then(|| &*self.bounds[usize::from(line.bound)]),
            value: line.value,
        }
    }
}

/// More samples than [`SAMPLES`], or more bounds than a page may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the page has more samples or more upper bounds than are kept")]
pub struct TooMuch;

/// Gathers a page from what its lines say.
#[derive(Debug)]
pub struct Builder {
    page: Page,
    /// Names of labels that the target itself has.
    reserved: &'static [&'static str],
    seen: Seen,
    by_name: HashMap<Box<str>, usize>,
    /// Label sets by the digest of their text, so that each is kept once.
    sets: HashMap<u64, u32>,
    digests: RandomState,
    bounds: HashMap<Box<str>, u16>,
    last_bound: Option<u16>,
    last_set: u32,
    head: Head,
    text: String,
}

/// What was last said of a family.
#[derive(Debug, Default)]
struct Head {
    family: String,
    help: String,
    unit: String,
}

impl Builder {
    /// An empty page of a target that has labels of these names.
    #[must_use]
    pub fn new(reserved: &'static [&'static str]) -> Self {
        Self {
            page: Page { sets: vec![0], ..Page::default() },
            reserved,
            seen: Seen::default(),
            by_name: HashMap::new(),
            sets: HashMap::new(),
            digests: RandomState::new(),
            bounds: HashMap::new(),
            last_bound: None,
            last_set: 0,
            head: Head::default(),
            text: String::new(),
        }
    }

    /// Takes what a line says.
    ///
    /// # Errors
    /// The page has more than is kept.
    pub fn take(&mut self, event: &Event<'_>) -> Result<(), TooMuch> {
        match event {
            Event::Help { family, text } => self.head.of(family).help = text.plain().into_owned(),
            Event::Unit { family, unit } => self.head.of(family).unit = (*unit).to_owned(),
            Event::Type { family, .. } => drop(self.head.of(family)),
            Event::Sample(sample) => return self.sample(sample),
            Event::Problem(problem) => self.skip(problem.reason.word()),
        }
        Ok(())
    }

    fn skip(&mut self, reason: &'static str) {
        *self.page.skipped.entry(reason).or_default() += 1;
    }

    fn sample(&mut self, sample: &Sample<'_>) -> Result<(), TooMuch> {
        let (kind, suffix) = match (sample.kind, sample.part) {
            (Kind::Counter | Kind::Histogram | Kind::Summary, Part::Created) => return Ok(()),
            (Kind::Histogram, Part::Bucket) => (Kind::Histogram, Suffix::Bucket),
            (kind @ (Kind::Histogram | Kind::Summary), Part::Sum) => (kind, Suffix::Sum),
            (kind @ (Kind::Histogram | Kind::Summary), Part::Count) => (kind, Suffix::Count),
            (kind @ (Kind::Counter | Kind::Gauge | Kind::Summary), _) => (kind, Suffix::None),
            (Kind::Info | Kind::StateSet, _) => (Kind::Gauge, Suffix::None),
            (Kind::Histogram | Kind::GaugeHistogram | Kind::Unknown, _) => (Kind::Unknown, Suffix::None),
        };
        let renamed = renamed(sample.labels, self.reserved);
        let renamed = renamed.as_deref();
        if renamed.is_some_and(has_twins) {
            self.skip(Reason::LabelTwice.word());
            return Ok(());
        }
        if !self.is_new(sample, renamed) {
            self.skip("duplicate");
            return Ok(());
        }
        self.page.samples += 1;
        if self.page.samples > SAMPLES as u64 {
            return Err(TooMuch);
        }
        let bound = if suffix == Suffix::Bucket { self.bound(sample.labels)? } else { 0 };
        let set = self.labels(sample.labels, renamed, suffix == Suffix::Bucket);
        let name = if matches!(kind, Kind::Histogram | Kind::Summary) { sample.family } else { sample.name };
        let family = self.family(name, kind, sample.family);
        self.page.families[family].lines.push(Line { value: sample.value, set, bound, suffix });
        Ok(())
    }

    /// A family that comes back later on the page is continued.
    fn family(&mut self, name: &str, kind: Kind, announced: &str) -> usize {
        if let Some(last) = self.page.families.last().filter(|last| *last.name == *name) {
            debug_assert_eq!(self.by_name.get(&last.name), Some(&(self.page.families.len() - 1)));
            return self.page.families.len() - 1;
        }
        let name = legacy(name);
        if let Some(&known) = self.by_name.get(&*name) {
            return known;
        }
        let (help, unit) =
            if self.head.family == announced { (self.head.help.as_str(), self.head.unit.as_str()) } else { ("", "") };
        let (name, index) = (Box::<str>::from(&*name), self.page.families.len());
        self.by_name.insert(name.clone(), index);
        self.page.families.push(PageFamily { name, kind, help: help.into(), unit: unit.into(), lines: Vec::new() });
        index
    }

    fn bound(&mut self, labels: Labels<'_>) -> Result<u16, TooMuch> {
        let bound = labels.iter().find(|(name, _)| name.plain() == "le").map(|(_, bound)| bound.plain());
        let bound = bound.unwrap_or_default();
        // OpenMetrics has one spelling of it.
        let bound = if bound.parse() == Ok(f64::INFINITY) { Cow::Borrowed("+Inf") } else { bound };
        // Buckets come in the order of their bounds, again and again.
        let next = self.last_bound.map_or(0, |last| last + 1);
        if self.page.bounds.get(usize::from(next)).is_some_and(|expected| **expected == *bound) {
            self.last_bound = Some(next);
            return Ok(next);
        }
        if let Some(&known) = self.bounds.get(&*bound) {
            self.last_bound = Some(known);
            return Ok(known);
        }
        let index = self.page.bounds.len();
        let number = u16::try_from(index).ok().filter(|_| index < BOUNDS).ok_or(TooMuch)?;
        self.bounds.insert(bound.as_ref().into(), number);
        self.last_bound = Some(number);
        self.page.bounds.push(bound.as_ref().into());
        Ok(number)
    }

    /// Whether it is another series than those before, as they are written.
    fn is_new(&mut self, sample: &Sample<'_>, renamed: Option<&[String]>) -> bool {
        let name = legacy(sample.name);
        let labels = sample.labels.iter();
        match renamed {
            None => self.seen.insert_as(&name, labels.map(|(name, value)| (name.plain(), value.plain()))),
            Some(names) => self.seen.insert_as(&name, names.iter().zip(labels.map(|(_, value)| value.plain()))),
        }
    }

    /// The number of this label set.
    fn labels(&mut self, labels: Labels<'_>, renamed: Option<&[String]>, without_bound: bool) -> u32 {
        self.text.clear();
        for (number, (name, value)) in labels.iter().enumerate() {
            let name = name.plain();
            if without_bound && name == "le" {
                continue;
            }
            if !self.text.is_empty() {
                self.text.push(',');
            }
            self.text.push_str(renamed.map_or(&*name, |names| &names[number]));
            self.text.push_str("=\"");
            escape(&value.plain(), &mut self.text);
            self.text.push('"');
        }
        // The lines of a histogram follow each other.
        if self.page.set(self.last_set).is_some_and(|last| last == self.text) {
            return self.last_set;
        }
        let Self { page, sets, text, .. } = self;
        self.last_set = *sets.entry(self.digests.hash_one(&*text)).or_insert_with(|| {
            page.labels.push_str(text);
            #[expect(clippy::cast_possible_truncation, reason = "a page is far shorter than 4 GiB")]
            page.sets.push(page.labels.len() as u32);
            page.sets.len() as u32 - 2
        });
        self.last_set
    }

    /// The page, in no more memory than it needs.
    #[must_use]
    pub fn finish(self) -> Page {
        let mut page = self.page;
        sound::keep(&mut page);
        page.labels.shrink_to_fit();
        page.sets.shrink_to_fit();
        page.families.shrink_to_fit();
        page.families.iter_mut().for_each(|family| family.lines.shrink_to_fit());
        page
    }
}

impl Head {
    /// What is said of this family; what was said of another is forgotten.
    fn of(&mut self, family: &str) -> &mut Self {
        if self.family != family {
            *self = Self { family: family.to_owned(), ..Self::default() };
        }
        self
    }
}

/// What labels are called when they are written; `None` if each is called what it is called here. One that would be taken for
/// the target's own gets the prefix, as often as makes it another than all others.
fn renamed(labels: Labels<'_>, reserved: &[&str]) -> Option<Vec<String>> {
    let keeps = |name: &str| !reserved.contains(&name) && matches!(legacy_label(name), Cow::Borrowed(_));
    if labels.iter().all(|(name, _)| keeps(&name.plain())) {
        return None;
    }
    let mut names: Vec<String> = labels.iter().map(|(name, _)| legacy_label(&name.plain()).into_owned()).collect();
    for number in 0..names.len() {
        if reserved.contains(&names[number].as_str()) {
            let mut name = format!("{EXPORTED}{}", names[number]);
            while names.contains(&name) {
                name.insert_str(0, EXPORTED);
            }
            names[number] = name;
        }
    }
    Some(names)
}

/// Whether two labels would be written under one name.
fn has_twins(names: &[String]) -> bool {
    names.iter().enumerate().any(|(number, name)| names[..number].contains(name))
}

/// A metric's name that every reader takes: letters, digits, underscores and colons, the rest as underscores.
fn legacy(name: &str) -> Cow<'_, str> {
    simple(name, |c| c == ':')
}

/// The same of a label, which has no colons.
fn legacy_label(name: &str) -> Cow<'_, str> {
    simple(name, |_| false)
}

fn simple(name: &str, more: impl Fn(char) -> bool) -> Cow<'_, str> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || more(c);
    if name.chars().all(allowed) && !name.starts_with(|c: char| c.is_ascii_digit()) {
        return Cow::Borrowed(name);
    }
    let first = name.starts_with(|c: char| c.is_ascii_digit()).then_some('_');
    Cow::Owned(first.into_iter().chain(name.chars().map(|c| if allowed(c) { c } else { '_' })).collect())
}

/// Appends text as both formats write it between quotes.
pub fn escape(value: &str, text: &mut String) {
    if !value.contains(['\\', '\n', '"']) {
        return text.push_str(value);
    }
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '"' => text.push_str("\\\""),
            _ => text.push(character),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn page(format: Format, text: &str) -> Page {
        Page::read(format, text).unwrap()
    }

    pub(super) fn said(page: &Page) -> Vec<String> {
        let lines = page.families().iter().flat_map(|family| {
            page.lines(family).map(|line| {
                let bound = line.bound.map(|bound| format!(" le {bound}")).unwrap_or_default();
                format!("{:?} {}{} {}{bound} {}", family.kind, family.name, line.suffix.text(), line.labels, line.value)
            })
        });
        lines.collect()
    }

    #[test]
    fn a_page_is_kept_by_family_with_every_label_set_once() {
        let page = page(
            Format::Text,
            concat!(
                "# HELP h what\n# TYPE h histogram\nh_bucket{a=\"1\",le=\"1\"} 1\nh_bucket{le=\"+Inf\",a=\"1\"} 2\n",
                "h_sum{a=\"1\"} 3\nh_count{a=\"1\"} 2\n# TYPE c counter\nc{a=\"1\"} 4\nc{instance=\"x\\\"\"} 5\n",
            ),
        );
        let expected = [
            "Histogram h_bucket a=\"1\" le 1 1",
            "Histogram h_bucket a=\"1\" le +Inf 2",
            "Histogram h_sum a=\"1\" 3",
            "Histogram h_count a=\"1\" 2",
            "Counter c a=\"1\" 4",
            "Counter c exported_instance=\"x\\\"\" 5",
        ];
        assert_eq!(said(&page), expected);
        assert_eq!(page.labels, "a=\"1\"exported_instance=\"x\\\"\"");
        assert_eq!((&*page.families()[0].help, &*page.families()[1].help, page.samples), ("what", "", 6));
    }

    #[test]
    fn open_metrics_becomes_what_text_would_say() {
        let page = page(
            Format::OpenMetrics,
            concat!(
                "# TYPE c counter\n# UNIT c \n# HELP c requests\nc_total 1 # {t=\"1\"} 1\nc_created 5\n",
                "# TYPE i info\ni_info{v=\"1\"} 1\n# TYPE s stateset\ns{s=\"on\"} 1\n# TYPE g gaugehistogram\n",
                "g_bucket{le=\"1.0\"} 1\ng_gsum 1\n# TYPE u unknown\nu 1\n# EOF\n",
            ),
        );
        let expected = [
            "Counter c_total  1",
            "Gauge i_info v=\"1\" 1",
            "Gauge s s=\"on\" 1",
            "Unknown g_bucket le=\"1.0\" 1",
            "Unknown g_gsum  1",
            "Unknown u  1",
        ];
        assert_eq!(said(&page), expected);
        assert_eq!(&*page.families()[0].help, "requests");
    }

    #[test]
    fn what_is_passed_over_is_counted() {
        let page = page(Format::Text, "a 1\na 2\nb x\nc 1\na{x=\"\"} 1\nb{y=\"1\"} 7\n");
        assert_eq!(said(&page), ["Unknown a  1", "Unknown c  1", "Unknown b y=\"1\" 7"]);
        assert_eq!(page.skipped, BTreeMap::from([("duplicate", 2), ("value", 1)]));
    }

    #[test]
    fn names_of_any_text_become_names_that_every_reader_takes() {
        let page = page(Format::Text, "{\"my.name\",\"a b\"=\"1\"} 4\n{\"my.name\",\"1\"=\"1\"} 5\n");
        assert_eq!(said(&page), ["Unknown my_name a_b=\"1\" 4", "Unknown my_name _1=\"1\" 5"]);
    }

    #[test]
    fn what_would_be_written_twice_is_passed_over() {
        let lines = [
            "a{\"x.y\"=\"1\",x_y=\"2\"} 1\n",
            "a{\"x.y\"=\"1\"} 2\na{x_y=\"1\"} 3\n{\"a:b\",\"x:y\"=\"1\"} 4\n",
            "{\"b.c\"} 5\nb_c 6\n",
            "d{instance=\"1\",exported_instance=\"2\"} 7\nd{exported_instance=\"2\",exported_exported_instance=\"1\"} 8\n",
        ];
        let page = page(Format::Text, &lines.concat());
        let expected = [
            "Unknown a x_y=\"1\" 2",
            "Unknown a:b x_y=\"1\" 4",
            "Unknown b_c  5",
            "Unknown d exported_exported_instance=\"1\",exported_instance=\"2\" 7",
        ];
        assert_eq!(said(&page), expected);
        assert_eq!(page.skipped, BTreeMap::from([("label_twice", 1), ("duplicate", 3)]));
    }

    #[test]
    fn a_page_of_too_many_samples_is_refused() {
        let mut builder = Builder::new(&[]);
        let mut outcome = Ok(());
        let text: String = (0..=SAMPLES).map(|number| format!("a{{n=\"{number}\"}} 1\n")).collect();
        Parser::new(Format::Text).feed(text.as_bytes(), &mut |event| outcome = builder.take(&event));
        assert_eq!(outcome, Err(TooMuch));
    }
}
