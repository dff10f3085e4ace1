//! What a client asks for at `/metrics`: format, compression and families.

use std::io::Write as _;

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use observer_model::encode::{
    prometheus::{CHUNK, Format},
    selection::Selection,
};
use reqwest::Url;

/// The families that a query chooses.
#[must_use]
pub fn selection(query: Option<&str>) -> Selection {
    let query = query.map(|query| Url::parse(&format!("http://observer/?{query}")));
    query.and_then(Result::ok).map(|url| Selection::of(url.query_pairs())).unwrap_or_default()
}

/// The format that an `Accept` header asks for; text 0.0.4 without one, or if it names neither.
#[must_use]
pub fn format(accept: Option<&str>) -> Format {
    let mut best = (0.0, Format::Text);
    for (range, parameters, quality) in preferences(accept.unwrap_or_default()) {
        let version = parameters.iter().find_map(|(name, value)| (*name == "version").then_some(*value));
        let format = match (range.as_str(), version) {
            ("application/openmetrics-text", None | Some("1.0.0")) => Format::OpenMetrics,
            ("text/plain", None | Some("0.0.4")) | ("text/*" | "*/*", _) => Format::Text,
            _ => continue,
        };
        if quality > best.0 {
            best = (quality, format);
        }
    }
    best.1
}

/// Whether an `Accept-Encoding` header prefers gzip to none. Without a word, no compression is as welcome as `*`, or else less
/// than whatever is named [RFC 9110, section 12.5.3].
#[must_use]
pub fn accepts_gzip(accept_encoding: Option<&str>) -> bool {
    let (mut gzip, mut identity, mut any) = (None, None, None);
    for (coding, _, quality) in preferences(accept_encoding.unwrap_or_default()) {
        match coding.as_str() {
            "gzip" | "x-gzip" => gzip = Some(quality),
            "identity" => identity = Some(quality),
            "*" => any = Some(quality),
            _ => {}
        }
    }
    let gzip = gzip.or(any).unwrap_or(0.0);
    gzip > 0.0 && gzip >= identity.unwrap_or(0.0)
}

/// Items of a header with quality values: name in lower case, parameters, quality. A parameter's value may be quoted.
fn preferences(header: &str) -> impl Iterator<Item = (String, Vec<(&str, &str)>, f64)> {
    header.split(',').map(|item| {
        let mut parts = item.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default().to_ascii_lowercase();
        let parameters = parts.filter_map(|part| part.split_once('='));
        let parameters: Vec<_> = parameters.map(|(key, value)| (key.trim(), value.trim().trim_matches('"'))).collect();
        let quality = parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case("q"));
        let quality = quality.map_or(1.0, |(_, value)| value.parse().unwrap_or(0.0));
        (name, parameters, quality)
    })
}

/// A page compressed as it is read.
#[derive(Debug)]
pub struct Gzip<I> {
    pieces: I,
    encoder: Option<GzEncoder<Vec<u8>>>,
}

impl<I> Gzip<I> {
    /// Compresses `pieces`, favouring speed: these pages repeat themselves and shrink well at any level.
    #[must_use]
    pub fn new(pieces: I) -> Self {
        Self { pieces, encoder: Some(GzEncoder::new(Vec::new(), Compression::fast())) }
    }
}

impl<I: Iterator<Item = Bytes>> Iterator for Gzip<I> {
    type Item = Bytes;

    #[expect(clippy::expect_used, reason = "writing to memory does not fail")]
    fn next(&mut self) -> Option<Bytes> {
        let encoder = self.encoder.as_mut()?;
        for piece in self.pieces.by_ref() {
            encoder.write_all(&piece).expect("writing to memory does not fail");
            if encoder.get_ref().len() >= CHUNK / 4 {
                return Some(std::mem::take(encoder.get_mut()).into());
            }
        }
        let last = self.encoder.take()?.finish().expect("writing to memory does not fail");
        Some(last.into())
    }
}

#[cfg(test)]
mod tests {
    use observer_model::{encode::prometheus::Exposition, fixture};
    use std::io::Read as _;

    use super::*;

    #[test]
    fn compression_loses_nothing() {
        let [_, snapshot] = fixture::snapshots();
        let page = || Exposition::new(snapshot.clone(), Format::Text);
        let pieces: Vec<Bytes> = Gzip::new(page()).collect();
        let mut text = Vec::new();
        flate2::read::GzDecoder::new(pieces.concat().as_slice()).read_to_end(&mut text).unwrap();
        assert_eq!(text, page().collect::<Vec<_>>().concat());
    }

    #[test]
    fn the_format_follows_the_accept_header() {
        use Format::{OpenMetrics, Text};
        for (accept, format) in [
            (None, Text),
            (Some("*/*"), Text),
            (Some("application/json"), Text),
            (Some("application/openmetrics-text"), OpenMetrics),
            (Some("application/openmetrics-text; version=1.0.0; charset=utf-8"), OpenMetrics),
            (Some("application/openmetrics-text;version=2.0.0"), Text),
            (Some("application/openmetrics-text; version=\"1.0.0\""), OpenMetrics),
            (Some("text/plain; version=\"0.0.4\"; q=\"0.5\", application/openmetrics-text; q=0.4"), Text),
            (Some("application/openmetrics-text;version=1.0.0;q=0.3, text/plain;version=0.0.4;q=0.5"), Text),
            (Some("application/openmetrics-text;version=1.0.0;q=0"), Text),
            (
                Some(
                    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                     application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;q=0.4,\
                     text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                ),
                OpenMetrics,
            ),
        ] {
            assert_eq!(super::format(accept), format, "{accept:?}");
        }
    }

    #[test]
    fn gzip_is_used_only_where_it_is_accepted() {
        for (header, accepted) in [
            (None, false),
            (Some("gzip"), true),
            (Some("deflate, GZIP;q=0.5"), true),
            (Some("gzip;q=0"), false),
            (Some("*, gzip;q=0"), false),
            (Some("*"), true),
            (Some("identity"), false),
            (Some("identity;q=1, gzip;q=0.1"), false),
            (Some("gzip;q=0.1, identity;q=1"), false),
            (Some("identity;q=0.5, gzip;q=1.0"), true),
            (Some("identity;q=0, *"), true),
            (Some("gzip;q=\"0\""), false),
        ] {
            assert_eq!(accepts_gzip(header), accepted, "{header:?}");
        }
    }
}
