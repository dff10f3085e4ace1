//! The body of a scrape's response: for any input, compressed or not, the segmentation does not change the result,
//! which can be rendered, and compression does not change it.
//!
//! Input: a byte for the format, the compression and the size of the pieces, then the body.
#![no_main]

use std::io::Read as _;

use flate2::read::MultiGzDecoder;
use libfuzzer_sys::fuzz_target;
use observer::collect::scrape::{Body, ScrapeError};
use observer_model::{
    exposition::{Event, Format, Parser},
    identity::Instance,
    scraped::ScrapedExposition,
};

fuzz_target!(|input: &[u8]| {
    let Some((first, body)) = input.split_first() else { return };
    let format = if first & 1 == 0 { Format::Text } else { Format::OpenMetrics };
    let compressed = first & 2 != 0;
    let whole = read(format, compressed, body, body.len().max(1));
    let cut = read(format, compressed, body, 1 + usize::from(first >> 2));
    assert_eq!(shown(&whole), shown(&cut));
    if compressed {
        let mut plain = Vec::new();
        if MultiGzDecoder::new(body).read_to_end(&mut plain).is_ok() {
            assert_eq!(shown(&read(format, false, &plain, 1 << 16)), shown(&whole), "compressed it is another page");
        } else {
            assert!(whole.is_err(), "what is no gzip is no page");
        }
    }
    if let Ok(page) = &whole {
        write(page);
    }
});

fn read(format: Format, compressed: bool, body: &[u8], size: usize) -> Result<ScrapedExposition, ScrapeError> {
    let mut reader = Body::new(format, compressed, &Instance::LABELS);
    body.chunks(size).try_for_each(|piece| reader.take(piece))?;
    reader.finish()
}

/// Label sets are found by digests with a key of their own, but numbered in their order.
fn shown(outcome: &Result<ScrapedExposition, ScrapeError>) -> String {
    format!("{outcome:?}")
}

/// Writes every line as text 0.0.4: it parses as one sample with the value and without the target's labels.
fn write(page: &ScrapedExposition) {
    let mut text = String::new();
    let mut values = Vec::new();
    for family in page.families() {
        for line in page.samples(family) {
            text.push_str(&format!("{}{}{{{}}} {}\n", family.name, line.suffix.text(), line.labels, line.value));
            values.push(line.value.to_bits());
        }
    }
    let mut read = Vec::new();
    let mut each = |event: Event<'_>| match event {
        Event::Sample(sample) => {
            let own = sample.labels.iter().find(|(name, _)| Instance::LABELS.contains(&&*name.plain()));
            assert!(own.is_none(), "a label of the target's own: {own:?}");
            read.push(sample.value.to_bits());
        }
        other => panic!("{other:?} in {text:?}"),
    };
    let mut parser = Parser::new(Format::Text);
    parser.feed(text.as_bytes(), &mut each);
    parser.finish(&mut each);
    assert_eq!(read, values);
}
