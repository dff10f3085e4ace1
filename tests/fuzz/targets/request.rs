//! A request of `/metrics`: the query, and the headers that select format and compression.
//!
//! Input: query, `Accept` and `Accept-Encoding`, with line feeds between.
#![no_main]

use libfuzzer_sys::fuzz_target;
use observer::serve::negotiation::{Coding, PageFormat, coding, format, selection};
use observer_model::encode::prometheus::Format;

/// Families of kinds that differ in their selection.
const NAMES: [&str; 4] = ["istio_requests_total", "istio_request_bytes", "pilot_xds", "a"];

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let mut parts = text.splitn(3, '\n');
    let [query, accept, encoding] = [(); 3].map(|()| parts.next());
    select(query);
    let format = format(accept);
    let said = accept.unwrap_or_default().to_ascii_lowercase();
    let name = match format {
        PageFormat::Lines(Format::Text) => "",
        PageFormat::Lines(Format::OpenMetrics) => "application/openmetrics-text",
        PageFormat::Protobuf => "application/vnd.google.protobuf",
    };
    assert!(said.contains(name), "{said:?}");
    let said = encoding.unwrap_or_default().to_ascii_lowercase();
    let coding = coding(encoding);
    assert!(coding == Coding::Identity || said.contains(coding.name()) || said.contains('*'), "{said:?}");
});

fn select(query: Option<&str>) {
    let selection = selection(query);
    let (mut wanted, mut asks) = ([false; NAMES.len()], false);
    for (key, value) in form(query.unwrap_or_default()) {
        if !matches!(&*key, "name[]" | "family") {
            continue;
        }
        asks = true;
        for (wanted, name) in wanted.iter_mut().zip(NAMES) {
            *wanted |= if key == "family" {
                is_like(&value.chars().collect::<Vec<_>>(), &name.chars().collect::<Vec<_>>())
            } else {
                ["", "_bucket", "_sum", "_count"].iter().any(|suffix| value == format!("{name}{suffix}"))
            };
        }
    }
    for (wanted, name) in wanted.into_iter().zip(NAMES) {
        assert_eq!(selection.contains(name), wanted || !asks, "{name} by {query:?}");
    }
}

/// Decodes the names and values of a query as a form encodes them, up to a fragment.
fn form(query: &str) -> Vec<(String, String)> {
    let query: String = query.chars().filter(|c| !matches!(c, '\t' | '\r' | '\n')).collect();
    let query = query.trim_end_matches(|c: char| c <= ' ').split('#').next().unwrap_or_default();
    let parts = query.split('&').filter(|part| !part.is_empty());
    parts
        .map(|part| part.split_once('=').unwrap_or((part, "")))
        .map(|(key, value)| (plain(key), plain(value)))
        .collect()
}

fn plain(text: &str) -> String {
    let (bytes, mut out, mut at) = (text.as_bytes(), Vec::new(), 0);
    while let Some(&byte) = bytes.get(at) {
        let hex = |at: usize| bytes.get(at).and_then(|digit| char::from(*digit).to_digit(16));
        match (byte, hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high << 4 | low) as u8);
                at += 2;
            }
            (b'+', ..) => out.push(b' '),
            _ => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Returns whether a name matches a pattern, one character at a time by all possible positions.
fn is_like(pattern: &[char], name: &[char]) -> bool {
    let mut fits = vec![false; name.len() + 1];
    fits[0] = true;
    for &wanted in pattern {
        if wanted == '*' {
            let first = fits.iter().position(|fit| *fit).unwrap_or(fits.len());
            fits[first..].fill(true);
        } else {
            for at in (0..name.len()).rev() {
                fits[at + 1] = fits[at] && name[at] == wanted;
            }
            fits[0] = false;
        }
    }
    fits[name.len()]
}
