//! One scraped exposition, stored compactly: every label set once, 16 bytes per sample.
//!
//! Families are named as in text 0.0.4, whatever the source format. Labels are stored in the form both formats write
//! (`a="b",c="d"`); those that the target sets itself are prefixed with `exported_`, as Prometheus does. Timestamps,
//! exemplars and `_created` are dropped.

mod validate;

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher, RandomState},
};

use crate::{
    exposition::{Event, Format, Labels, MetricType, Parser, Part, Reason, Sample, SeriesSet},
    identity::Instance,
    label_text::push_label,
};

/// Most samples of one exposition.
pub const MAX_SAMPLES: usize = 200_000;
/// Prometheus's prefix for labels that the target sets itself.
const EXPORTED: &str = "exported_";
/// Most distinct upper bounds of one exposition's histograms.
const MAX_BOUNDS: usize = 10_000;

const _: () = assert!(size_of::<StoredSample>() == 16);

/// The result of one scrape.
#[derive(Clone, Debug, Default)]
pub struct ScrapedExposition {
    families: Vec<ScrapedFamily>,
    /// Text of all label sets, and the offset of each; the last offset is the end.
    labels: String,
    sets: Vec<u32>,
    bounds: Vec<Box<str>>,
    /// Number of samples.
    pub samples: u64,
    /// Skipped lines, by reason.
    pub skipped: BTreeMap<&'static str, u64>,
}

/// A family of one exposition.
#[derive(Clone, Debug)]
pub struct ScrapedFamily {
    /// Name as in text 0.0.4.
    pub name: Box<str>,
    /// Counter, gauge, histogram, summary or unknown.
    pub metric_type: MetricType,
    /// Help text; may be empty.
    pub help: Box<str>,
    /// Unit, if given.
    pub unit: Box<str>,
    samples: Vec<StoredSample>,
}

/// Which sample of a family: the suffix of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suffix {
    /// The value itself, or a quantile of a summary.
    None,
    /// One bucket of a histogram.
    Bucket,
    /// Sum of the values.
    Sum,
    /// Number of values.
    Count,
}

impl Suffix {
    /// All suffixes.
    pub const ALL: [Self; 4] = [Self::None, Self::Bucket, Self::Sum, Self::Count];

    /// Returns the suffix as written.
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
struct StoredSample {
    value: f64,
    set: u32,
    bound: u16,
    suffix: Suffix,
}

/// One sample of a family.
#[derive(Clone, Copy, Debug)]
pub struct ScrapedSample<'a> {
    /// Which sample.
    pub suffix: Suffix,
    /// Labels without `le`, escaped, without braces; may be empty.
    pub labels: &'a str,
    /// Upper bound of a bucket.
    pub bound: Option<&'a str>,
    /// The value.
    pub value: f64,
}

impl ScrapedExposition {
    /// Parses a complete exposition of a target that sets [`Instance::LABELS`].
    ///
    /// # Errors
    /// It exceeds [`MAX_SAMPLES`] or the limit of upper bounds.
    pub fn parse(format: Format, text: &str) -> Result<Self, LimitExceeded> {
        let mut builder = ExpositionBuilder::new(&Instance::LABELS);
        let mut outcome = Ok(());
        let mut each = |event: Event<'_>| {
            if outcome.is_ok() {
                outcome = builder.record(&event);
            }
        };
        let mut parser = Parser::new(format);
        parser.feed(text.as_bytes(), &mut each);
        parser.finish(&mut each);
        outcome.map(|()| builder.finish())
    }
}

impl ScrapedExposition {
    /// Returns the families in their order of appearance.
    #[must_use]
    pub fn families(&self) -> &[ScrapedFamily] {
        &self.families
    }

    /// Returns the family of this name.
    #[must_use]
    pub fn family(&self, name: &str) -> Option<&ScrapedFamily> {
        self.families.iter().find(|family| *family.name == *name)
    }

    /// Returns the samples of one of its families.
    pub fn samples<'a>(&'a self, family: &'a ScrapedFamily) -> impl ExactSizeIterator<Item = ScrapedSample<'a>> {
        family.samples.iter().map(|sample| self.sample(sample))
    }

    /// StoredSample `index` of one of its families.
    #[must_use]
    pub fn get<'a>(&'a self, family: &'a ScrapedFamily, index: usize) -> Option<ScrapedSample<'a>> {
        family.samples.get(index).map(|sample| self.sample(sample))
    }

    /// Returns the text of a label set.
    fn set(&self, set: u32) -> Option<&str> {
        let set = set as usize;
        Some(&self.labels[*self.sets.get(set)? as usize..*self.sets.get(set + 1)? as usize])
    }

    fn sample(&self, sample: &StoredSample) -> ScrapedSample<'_> {
        ScrapedSample {
            suffix: sample.suffix,
            labels: self.set(sample.set).expect("every sample has its label set"),
            bound: (sample.suffix == Suffix::Bucket).then(|| &*self.bounds[usize::from(sample.bound)]),
            value: sample.value,
        }
    }
}

/// More samples than [`MAX_SAMPLES`], or more upper bounds than are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the exposition has more samples or more upper bounds than are kept")]
pub struct LimitExceeded;

/// Builds an exposition from the parser's events.
#[derive(Debug)]
pub struct ExpositionBuilder {
    exposition: ScrapedExposition,
    /// Names of labels that the target sets.
    reserved: &'static [&'static str],
    seen: SeriesSet,
    by_name: HashMap<Box<str>, usize>,
    /// Label sets by the digest of their text, so that each is kept once.
    sets: HashMap<u64, u32>,
    digests: RandomState,
    bounds: HashMap<Box<str>, u16>,
    last_bound: Option<u16>,
    last_set: u32,
    header: FamilyHeader,
    text: String,
}

/// Help and unit of the family announced last.
#[derive(Debug, Default)]
struct FamilyHeader {
    family: String,
    help: String,
    unit: String,
}

impl ExpositionBuilder {
    /// Returns an empty exposition of a target that sets labels of these names.
    #[must_use]
    pub fn new(reserved: &'static [&'static str]) -> Self {
        Self {
            exposition: ScrapedExposition { sets: vec![0], ..ScrapedExposition::default() },
            reserved,
            seen: SeriesSet::default(),
            by_name: HashMap::new(),
            sets: HashMap::new(),
            digests: RandomState::new(),
            bounds: HashMap::new(),
            last_bound: None,
            last_set: 0,
            header: FamilyHeader::default(),
            text: String::new(),
        }
    }

    /// Adds one event.
    ///
    /// # Errors
    /// The exposition exceeds a limit.
    pub fn record(&mut self, event: &Event<'_>) -> Result<(), LimitExceeded> {
        match event {
            Event::Help { family, text } => self.header.of(family).help = text.plain().into_owned(),
            Event::Unit { family, unit } => self.header.of(family).unit = (*unit).to_owned(),
            Event::Type { family, .. } => drop(self.header.of(family)),
            Event::Sample(sample) => return self.sample(sample),
            Event::Problem(problem) => self.skip(problem.reason.as_str()),
        }
        Ok(())
    }

    fn skip(&mut self, reason: &'static str) {
        *self.exposition.skipped.entry(reason).or_default() += 1;
    }

    fn sample(&mut self, sample: &Sample<'_>) -> Result<(), LimitExceeded> {
        let (metric_type, suffix) = match (sample.metric_type, sample.part) {
            (MetricType::Counter | MetricType::Histogram | MetricType::Summary, Part::Created) => return Ok(()),
            (MetricType::Histogram, Part::Bucket) => (MetricType::Histogram, Suffix::Bucket),
            (metric_type @ (MetricType::Histogram | MetricType::Summary), Part::Sum) => (metric_type, Suffix::Sum),
            (metric_type @ (MetricType::Histogram | MetricType::Summary), Part::Count) => (metric_type, Suffix::Count),
            (metric_type @ (MetricType::Counter | MetricType::Gauge | MetricType::Summary), _) => {
                (metric_type, Suffix::None)
            }
            (MetricType::Info | MetricType::StateSet, _) => (MetricType::Gauge, Suffix::None),
            (MetricType::Histogram | MetricType::GaugeHistogram | MetricType::Unknown, _) => {
                (MetricType::Unknown, Suffix::None)
            }
        };
        let renamed = renamed(sample.labels, self.reserved);
        let renamed = renamed.as_deref();
        if renamed.is_some_and(has_twins) {
            self.skip(Reason::LabelTwice.as_str());
            return Ok(());
        }
        if !self.is_new(sample, renamed) {
            self.skip("duplicate");
            return Ok(());
        }
        self.exposition.samples += 1;
        if self.exposition.samples > MAX_SAMPLES as u64 {
            return Err(LimitExceeded);
        }
        let bound = if suffix == Suffix::Bucket { self.bound(sample.labels)? } else { 0 };
        let set = self.labels(sample.labels, renamed, suffix == Suffix::Bucket);
        let name = if matches!(metric_type, MetricType::Histogram | MetricType::Summary) {
            sample.family
        } else {
            sample.name
        };
        let family = self.family(name, metric_type, sample.family);
        self.exposition.families[family].samples.push(StoredSample { value: sample.value, set, bound, suffix });
        Ok(())
    }

    /// Returns the index of a family; one that reappears later is continued.
    fn family(&mut self, name: &str, metric_type: MetricType, announced: &str) -> usize {
        if let Some(last) = self.exposition.families.last().filter(|last| *last.name == *name) {
            debug_assert_eq!(self.by_name.get(&last.name), Some(&(self.exposition.families.len() - 1)));
            return self.exposition.families.len() - 1;
        }
        let name = legacy(name);
        if let Some(&known) = self.by_name.get(&*name) {
            return known;
        }
        let (help, unit) = if self.header.family == announced {
            (self.header.help.as_str(), self.header.unit.as_str())
        } else {
            ("", "")
        };
        let (name, index) = (Box::<str>::from(&*name), self.exposition.families.len());
        self.by_name.insert(name.clone(), index);
        self.exposition.families.push(ScrapedFamily {
            name,
            metric_type,
            help: help.into(),
            unit: unit.into(),
            samples: Vec::new(),
        });
        index
    }

    fn bound(&mut self, labels: Labels<'_>) -> Result<u16, LimitExceeded> {
        let bound = labels.iter().find(|(name, _)| name.plain() == "le").map(|(_, bound)| bound.plain());
        let bound = bound.unwrap_or_default();
        // OpenMetrics allows one spelling only.
        let bound = if bound.parse() == Ok(f64::INFINITY) { Cow::Borrowed("+Inf") } else { bound };
        // Buckets repeat the same bounds in the same order.
        let next = self.last_bound.map_or(0, |last| last + 1);
        if self.exposition.bounds.get(usize::from(next)).is_some_and(|expected| **expected == *bound) {
            self.last_bound = Some(next);
            return Ok(next);
        }
        if let Some(&known) = self.bounds.get(&*bound) {
            self.last_bound = Some(known);
            return Ok(known);
        }
        let index = self.exposition.bounds.len();
        let number = u16::try_from(index).ok().filter(|_| index < MAX_BOUNDS).ok_or(LimitExceeded)?;
        self.bounds.insert(bound.as_ref().into(), number);
        self.last_bound = Some(number);
        self.exposition.bounds.push(bound.as_ref().into());
        Ok(number)
    }

    /// Returns whether the series is new under the names it is written with.
    fn is_new(&mut self, sample: &Sample<'_>, renamed: Option<&[String]>) -> bool {
        let name = legacy(sample.name);
        let labels = sample.labels.iter();
        match renamed {
            None => self.seen.insert_as(&name, labels.map(|(name, value)| (name.plain(), value.plain()))),
            Some(names) => self.seen.insert_as(&name, names.iter().zip(labels.map(|(_, value)| value.plain()))),
        }
    }

    /// Returns the number of this label set.
    fn labels(&mut self, labels: Labels<'_>, renamed: Option<&[String]>, without_bound: bool) -> u32 {
        self.text.clear();
        for (number, (name, value)) in labels.iter().enumerate() {
            let name = name.plain();
            if without_bound && name == "le" {
                continue;
            }
            push_label(&mut self.text, 0, renamed.map_or(&*name, |names| &names[number]), &value.plain());
        }
        // The samples of a histogram are adjacent.
        if self.exposition.set(self.last_set).is_some_and(|last| last == self.text) {
            return self.last_set;
        }
        let Self { exposition, sets, text, .. } = self;
        self.last_set = *sets.entry(self.digests.hash_one(&*text)).or_insert_with(|| {
            exposition.labels.push_str(text);
            #[expect(clippy::cast_possible_truncation, reason = "an exposition is far shorter than 4 GiB")]
            exposition.sets.push(exposition.labels.len() as u32);
            exposition.sets.len() as u32 - 2
        });
        self.last_set
    }

    /// Returns the exposition without spare capacity.
    #[must_use]
    pub fn finish(self) -> ScrapedExposition {
        let mut exposition = self.exposition;
        validate::remove_invalid(&mut exposition);
        exposition.labels.shrink_to_fit();
        exposition.sets.shrink_to_fit();
        exposition.families.shrink_to_fit();
        exposition.families.iter_mut().for_each(|family| family.samples.shrink_to_fit());
        exposition
    }
}

impl FamilyHeader {
    /// Returns the header of this family, emptied if it was another's.
    fn of(&mut self, family: &str) -> &mut Self {
        if self.family != family {
            *self = Self { family: family.to_owned(), ..Self::default() };
        }
        self
    }
}

/// Returns the names under which labels are written; `None` if all keep theirs. A reserved name gets the prefix,
/// repeated until it is unique.
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

/// Returns whether two labels would be written under one name.
fn has_twins(names: &[String]) -> bool {
    names.iter().enumerate().any(|(number, name)| names[..number].contains(name))
}

/// Returns a metric name that every parser accepts: letters, digits, underscores and colons, the rest as underscores.
fn legacy(name: &str) -> Cow<'_, str> {
    simple(name, |c| c == ':')
}

/// Returns the same for a label, which has no colons.
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

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn exposition(format: Format, text: &str) -> ScrapedExposition {
        ScrapedExposition::parse(format, text).unwrap()
    }

    pub(super) fn said(exposition: &ScrapedExposition) -> Vec<String> {
        let samples = exposition.families().iter().flat_map(|family| {
            exposition.samples(family).map(|sample| {
                let bound = sample.bound.map(|bound| format!(" le {bound}")).unwrap_or_default();
                format!(
                    "{:?} {}{} {}{bound} {}",
                    family.metric_type,
                    family.name,
                    sample.suffix.text(),
                    sample.labels,
                    sample.value
                )
            })
        });
        samples.collect()
    }

    #[test]
    fn a_page_is_kept_by_family_with_every_label_set_once() {
        let exposition = exposition(
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
        assert_eq!(said(&exposition), expected);
        assert_eq!(exposition.labels, "a=\"1\"exported_instance=\"x\\\"\"");
        assert_eq!(
            (&*exposition.families()[0].help, &*exposition.families()[1].help, exposition.samples),
            ("what", "", 6)
        );
    }

    #[test]
    fn open_metrics_becomes_what_text_would_say() {
        let exposition = exposition(
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
        assert_eq!(said(&exposition), expected);
        assert_eq!(&*exposition.families()[0].help, "requests");
    }

    #[test]
    fn what_is_passed_over_is_counted() {
        let exposition = exposition(Format::Text, "a 1\na 2\nb x\nc 1\na{x=\"\"} 1\nb{y=\"1\"} 7\n");
        assert_eq!(said(&exposition), ["Unknown a  1", "Unknown c  1", "Unknown b y=\"1\" 7"]);
        assert_eq!(exposition.skipped, BTreeMap::from([("duplicate", 2), ("value", 1)]));
    }

    #[test]
    fn names_of_any_text_become_names_that_every_reader_takes() {
        let exposition = exposition(Format::Text, "{\"my.name\",\"a b\"=\"1\"} 4\n{\"my.name\",\"1\"=\"1\"} 5\n");
        assert_eq!(said(&exposition), ["Unknown my_name a_b=\"1\" 4", "Unknown my_name _1=\"1\" 5"]);
    }

    #[test]
    fn what_would_be_written_twice_is_passed_over() {
        let samples = [
            "a{\"x.y\"=\"1\",x_y=\"2\"} 1\n",
            "a{\"x.y\"=\"1\"} 2\na{x_y=\"1\"} 3\n{\"a:b\",\"x:y\"=\"1\"} 4\n",
            "{\"b.c\"} 5\nb_c 6\n",
            "d{instance=\"1\",exported_instance=\"2\"} 7\nd{exported_instance=\"2\",exported_exported_instance=\"1\"} 8\n",
        ];
        let exposition = exposition(Format::Text, &samples.concat());
        let expected = [
            "Unknown a x_y=\"1\" 2",
            "Unknown a:b x_y=\"1\" 4",
            "Unknown b_c  5",
            "Unknown d exported_exported_instance=\"1\",exported_instance=\"2\" 7",
        ];
        assert_eq!(said(&exposition), expected);
        assert_eq!(exposition.skipped, BTreeMap::from([("label_twice", 1), ("duplicate", 3)]));
    }

    #[test]
    fn a_page_of_too_many_samples_is_refused() {
        let mut builder = ExpositionBuilder::new(&[]);
        let mut outcome = Ok(());
        let text: String = (0..=MAX_SAMPLES).map(|number| format!("a{{n=\"{number}\"}} 1\n")).collect();
        Parser::new(Format::Text).feed(text.as_bytes(), &mut |event| outcome = builder.record(&event));
        assert_eq!(outcome, Err(LimitExceeded));
    }
}
