//! The exposition parser: for any input it terminates, and the segmentation does not change the result.
//!
//! Input: a byte for the format and the size of the pieces, then the exposition.
#![no_main]

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use libfuzzer_sys::fuzz_target;
use observer_model::exposition::{Event, Format, Labels, Parser, Sample, SeriesSet};

fuzz_target!(|input: &[u8]| {
    let Some((first, page)) = input.split_first() else { return };
    let format = if first & 1 == 0 { Format::Text } else { Format::OpenMetrics };
    let whole = said(format, page, page.len().max(1));
    assert_eq!(whole, said(format, page, usize::from(first >> 1) + 1));
});

/// Returns a digest of each event: text would take most of the time, and which event differs is enough to look at the
/// input.
fn said(format: Format, page: &[u8], size: usize) -> Vec<u64> {
    let mut said = Vec::new();
    let mut seen = SeriesSet::default();
    let mut each = |event: Event<'_>| {
        let mut digest = DefaultHasher::new();
        std::mem::discriminant(&event).hash(&mut digest);
        match event {
            Event::Sample(sample) => {
                seen.insert(&sample).hash(&mut digest);
                hash_sample(&sample, &mut digest);
            }
            Event::Help { family, text } => (family, text.plain()).hash(&mut digest),
            Event::Type { family, metric_type } => (family, metric_type as u8).hash(&mut digest),
            Event::Unit { family, unit } => (family, unit).hash(&mut digest),
            Event::Problem(problem) => (problem.line, problem.reason).hash(&mut digest),
        }
        said.push(digest.finish());
    };
    let mut parser = Parser::new(format);
    page.chunks(size).for_each(|piece| parser.feed(piece, &mut each));
    parser.finish(&mut each);
    said
}

fn hash_sample(sample: &Sample<'_>, digest: &mut DefaultHasher) {
    assert!(sample.name.starts_with(sample.family));
    (sample.name, sample.family.len(), sample.metric_type as u8, sample.part as u8).hash(digest);
    (sample.value.to_bits(), sample.timestamp.map(f64::to_bits)).hash(digest);
    hash_labels(sample.labels, digest);
    if let Some(exemplar) = sample.exemplar {
        (exemplar.value.to_bits(), exemplar.timestamp.map(f64::to_bits)).hash(digest);
        hash_labels(exemplar.labels, digest);
    }
}

fn hash_labels(labels: Labels<'_>, digest: &mut DefaultHasher) {
    labels.iter().len().hash(digest);
    labels.iter().for_each(|(name, value)| (name.plain(), value.plain()).hash(digest));
}
