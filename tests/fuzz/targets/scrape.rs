//! The parser of scraped pages: whatever comes, it ends, and how the page is cut does not change what it says.
//!
//! Input: a byte for the format and the size of the pieces, then the page.
#![no_main]

use libfuzzer_sys::fuzz_target;

// The one file, without the daemon around it, which would have to be built with coverage too.
#[allow(dead_code, unreachable_pub, reason = "the module is public in its own crate")]
#[path = "../../../observer/src/collect/exposition.rs"]
mod exposition;

use exposition::{Event, Format, Labels, Parser, Seen};

fuzz_target!(|input: &[u8]| {
    let Some((first, page)) = input.split_first() else { return };
    let format = if first & 1 == 0 { Format::Text } else { Format::OpenMetrics };
    let whole = said(format, page, page.len().max(1));
    assert_eq!(whole, said(format, page, usize::from(first >> 1) + 1));
});

fn said(format: Format, page: &[u8], size: usize) -> Vec<String> {
    let mut said = Vec::new();
    let mut seen = Seen::default();
    let mut each = |event: Event<'_>| {
        said.push(match event {
            Event::Sample(sample) => {
                let new = seen.insert(&sample);
                let exemplar = sample.exemplar.map(|own| (labels(own.labels), own.value.to_bits(), own.timestamp));
                let figure = (sample.value.to_bits(), sample.timestamp, sample.kind, sample.part);
                assert!(sample.name.starts_with(sample.family));
                format!("{} {:?} {figure:?} {exemplar:?} {new}", sample.name, labels(sample.labels))
            }
            Event::Help { family, text } => format!("{family} {}", text.plain()),
            other => format!("{other:?}"),
        });
    };
    let mut parser = Parser::new(format);
    page.chunks(size).for_each(|piece| parser.feed(piece, &mut each));
    parser.finish(&mut each);
    said
}

fn labels(labels: Labels<'_>) -> Vec<(String, String)> {
    labels.iter().map(|(name, value)| (name.plain().into_owned(), value.plain().into_owned())).collect()
}
