//! Series and samples of points.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{
    Histograms, MAX_BATCH_BYTES, MAX_BATCH_SAMPLES, STALE,
    labels::LabelReferences,
    request::{
        BOUND_SYMBOL, EXEMPLARS, HELP, HISTOGRAMS, LABELS, METADATA, NAME_SYMBOL, RequestBuilder, SAMPLES, Symbols,
        UNIT,
    },
};
use crate::{
    Family, HistogramView, Labels, Point, Value,
    encode::{
        Batch,
        native_histogram::FieldNumbers,
        wire::{put_bytes, put_double, put_length, put_uint, put_varint, varint_size},
    },
    exemplar::Exemplar,
    exposition::MetricType,
    scraped::Suffix,
};

/// Fields of `Histogram`.
const COUNT: u32 = 1;
const SUM: u32 = 3;
const BUCKETS: FieldNumbers = FieldNumbers { schema: 4, zero_threshold: 5, zero_count: 6, spans: 11, deltas: 12 };
const TIMESTAMP: u32 = 15;
const START_TIMESTAMP: u32 = 17;

/// Writes points as series with one sample each.
#[derive(Debug)]
pub(super) struct SeriesWriter {
    node: String,
    histograms: Histograms,
    /// Milliseconds since 1970.
    at: u64,
    request: RequestBuilder,
    labels: LabelReferences,
    /// The family that is being written, once it has a point in this request.
    family: Option<FamilyReferences>,
    /// References of the current series to its name and to its bound, encoded.
    own: Vec<u8>,
    /// The current native histogram, encoded.
    native: Vec<u8>,
}

/// What all series of a family have in common.
#[derive(Debug)]
struct FamilyReferences {
    metadata: Vec<u8>,
    name: String,
    /// References to the name with each suffix, of those that were written.
    names: [Option<u32>; Suffix::ALL.len()],
}

/// What all series of a point have in common.
#[derive(Clone, Copy)]
struct Common {
    is_stale: bool,
    /// When the total was 0, milliseconds since 1970.
    created: Option<u64>,
}

impl SeriesWriter {
    pub(super) fn new(node: &str, histograms: Histograms, at: SystemTime) -> Self {
        Self {
            node: node.to_owned(),
            histograms,
            at: milliseconds(at),
            request: RequestBuilder::new(),
            labels: LabelReferences::default(),
            family: None,
            own: Vec::new(),
            native: Vec::new(),
        }
    }

    /// Sets the labels of the next points.
    pub(super) fn labels(&mut self, labels: &Labels<'_>) {
        self.labels.encode(labels, &self.node, &mut self.request.symbols);
    }

    /// Writes all series of a point; ended ones if `is_stale`.
    pub(super) fn point(&mut self, family: &Family<'_>, point: &Point<'_>, is_stale: bool) {
        let symbols = &mut self.request.symbols;
        self.family.get_or_insert_with(|| FamilyReferences::new(family, symbols));
        let has_start = matches!(family.metric_type(), MetricType::Counter | MetricType::Histogram) && !is_stale;
        let created = point.created.filter(|_| has_start).map(|created| milliseconds(created).min(self.at));
        let common = Common { is_stale, created };
        match point.value {
            #[expect(clippy::cast_precision_loss, reason = "samples are doubles")]
            Value::Integer(value) => self.sample(Suffix::None, None, value as f64, common, None),
            Value::Real(value) => self.sample(Suffix::None, None, value, common, None),
            Value::Sample { suffix, bound, value } => self.sample(suffix, bound, value, common, None),
            #[expect(clippy::cast_precision_loss, reason = "samples are doubles")]
            Value::Histogram(histogram) => {
                for (bucket, (bound, count)) in histogram.buckets().enumerate() {
                    let exemplar = histogram.exemplar(bucket).filter(|_| !is_stale);
                    self.sample(Suffix::Bucket, Some(bound), count as f64, common, exemplar);
                }
                self.sample(Suffix::Sum, None, histogram.sum(), common, None);
                self.sample(Suffix::Count, None, histogram.count() as f64, common, None);
                if self.histograms == Histograms::Native {
                    self.native(&histogram, common);
                }
            }
        }
    }

    /// Ends a family: the next point is of another one.
    pub(super) fn end_family(&mut self) {
        self.family = None;
    }

    /// Returns whether the batch is complete.
    pub(super) fn is_full(&self) -> bool {
        self.request.samples >= MAX_BATCH_SAMPLES || self.request.size() >= MAX_BATCH_BYTES
    }

    /// Returns the batch, and begins another one; `None` without samples.
    pub(super) fn take(&mut self) -> Option<Batch> {
        // References are those of one request.
        self.family = None;
        self.labels.clear();
        self.request.take()
    }

    fn sample(&mut self, suffix: Suffix, bound: Option<&str>, value: f64, common: Common, exemplar: Option<&Exemplar>) {
        let at = self.at;
        let exemplar = exemplar.map(|exemplar| encoded(exemplar, &mut self.request.symbols)).unwrap_or_default();
        let value = if common.is_stale { f64::from_bits(STALE) } else { value };
        let integer = |value: u64| 1 + varint_size(value);
        let length = 9 + integer(at) + common.created.map_or(0, integer);
        let exemplars = if exemplar.is_empty() { 0 } else { field_size(exemplar.len()) };
        self.series(suffix, bound, field_size(length) + exemplars, |out| {
            put_length(out, SAMPLES, length);
            put_double(out, 1, value);
            put_uint(out, 2, at);
            if let Some(created) = common.created {
                put_uint(out, 3, created);
            }
            if !exemplar.is_empty() {
                put_bytes(out, EXEMPLARS, &exemplar);
            }
        });
    }

    /// Writes the histogram's cells, if they are known. The end of a series is a histogram whose sum is no number, also
    /// where the cells were not known.
    fn native(&mut self, histogram: &HistogramView<'_>, common: Common) {
        let native = if common.is_stale { None } else { histogram.native() };
        if native.is_none() && !(common.is_stale && histogram.has_cells()) {
            return;
        }
        let mut out = std::mem::take(&mut self.native);
        out.clear();
        put_uint(&mut out, COUNT, native.as_ref().map_or(0, |native| native.count));
        put_double(&mut out, SUM, if common.is_stale { f64::from_bits(STALE) } else { histogram.sum() });
        native.iter().for_each(|native| native.write(&mut out, BUCKETS));
        put_uint(&mut out, TIMESTAMP, self.at);
        common.created.iter().for_each(|created| put_uint(&mut out, START_TIMESTAMP, *created));
        self.series(Suffix::None, None, field_size(out.len()), |series| put_bytes(series, HISTOGRAMS, &out));
        self.native = out;
    }

    /// Writes a series with a sample of this length, keys and exemplar included, which `write` writes.
    fn series(&mut self, suffix: Suffix, bound: Option<&str>, sample: usize, write: impl FnOnce(&mut Vec<u8>)) {
        let Self { request, labels, family: Some(family), own, .. } = self else { return };
        own.clear();
        put_varint(own, NAME_SYMBOL.into());
        put_varint(own, family.name(suffix, &mut request.symbols).into());
        let name_end = own.len();
        if let Some(bound) = bound {
            put_varint(own, BOUND_SYMBOL.into());
            put_varint(own, request.symbols.get(bound).into());
        }
        let (name, bound) = own.split_at(name_end);
        let [before, between, behind] = labels.encoded();
        let parts: [&[u8]; 5] = [before, name, between, bound, behind];
        let labels = parts.iter().map(|part| part.len()).sum();
        // Lengths are known beforehand, so nothing is moved: there are millions of series.
        request.add(field_size(labels) + sample + field_size(family.metadata.len()), |out| {
            put_length(out, LABELS, labels);
            parts.iter().for_each(|part| out.extend_from_slice(part));
            write(out);
            put_bytes(out, METADATA, &family.metadata);
        });
    }
}

impl FamilyReferences {
    fn new(family: &Family<'_>, symbols: &mut Symbols) -> Self {
        let metric_type = match family.metric_type() {
            MetricType::Counter => 1,
            MetricType::Gauge => 2,
            MetricType::Histogram => 3,
            MetricType::GaugeHistogram => 4,
            MetricType::Summary => 5,
            MetricType::Info => 6,
            MetricType::StateSet => 7,
            MetricType::Unknown => 0,
        };
        let mut metadata = Vec::with_capacity(12);
        put_uint(&mut metadata, 1, metric_type);
        put_uint(&mut metadata, HELP, symbols.get(family.help()).into());
        put_uint(&mut metadata, UNIT, symbols.get(family.unit()).into());
        Self { metadata, name: family.name().to_owned(), names: [None; Suffix::ALL.len()] }
    }

    /// Returns the reference to the name with this suffix.
    fn name(&mut self, suffix: Suffix, symbols: &mut Symbols) -> u32 {
        let Self { name, names, .. } = self;
        let mut symbol = || symbols.get(&format!("{name}{}", suffix.text()));
        match names.get_mut(suffix as usize) {
            Some(known) => *known.get_or_insert_with(symbol),
            None => symbol(),
        }
    }
}

/// Returns `Exemplar`.
fn encoded(exemplar: &Exemplar, symbols: &mut Symbols) -> Vec<u8> {
    let (mut bytes, mut labels) = (Vec::new(), Vec::new());
    for (name, value) in [("span_id", exemplar.span_text()), ("trace_id", exemplar.trace_text())] {
        put_varint(&mut labels, symbols.get(name).into());
        put_varint(&mut labels, symbols.get(&value).into());
    }
    put_bytes(&mut bytes, LABELS, &labels);
    put_double(&mut bytes, 2, exemplar.milliseconds());
    put_uint(&mut bytes, 3, milliseconds(exemplar.at));
    bytes
}

/// Returns the size of a field of this length, whose number is below 16.
const fn field_size(length: usize) -> usize {
    1 + varint_size(length as u64) + length
}

/// Returns milliseconds since 1970.
fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
