//! What a client asks for at `/metrics`: format, compression and families.

use std::io::{self, Write as _};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use observer_model::encode::{
    prometheus::{CHUNK, Format},
    protobuf,
    selection::Selection,
};
use reqwest::Url;

/// Window of zstd: 128 KiB hold some hundred label sets, and keep a response's encoder below a megabyte.
const ZSTD_WINDOW_LOG: u32 = 17;

/// The families that a query chooses.
#[must_use]
pub fn selection(query: Option<&str>) -> Selection {
    let query = query.map(|query| Url::parse(&format!("http://observer/?{query}")));
    query.and_then(Result::ok).map(|url| Selection::of(url.query_pairs())).unwrap_or_default()
}

/// A format of `/metrics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageFormat {
    /// One of lines.
    Lines(Format),
    /// Delimited protobuf messages, with native histograms.
    Protobuf,
}

impl PageFormat {
    /// Returns the `Content-Type`.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Lines(format) => format.content_type(),
            Self::Protobuf => protobuf::CONTENT_TYPE,
        }
    }
}

/// The format that an `Accept` header asks for; text 0.0.4 without one, or if it names none of them.
#[must_use]
pub fn format(accept: Option<&str>) -> PageFormat {
    let mut best = (0.0, PageFormat::Lines(Format::Text));
    for (range, parameters, quality) in preferences(accept.unwrap_or_default()) {
        let parameter = |wanted: &str| {
            parameters.iter().find_map(|(name, value)| name.eq_ignore_ascii_case(wanted).then_some(*value))
        };
        let format = match (range.as_str(), parameter("version")) {
            ("application/openmetrics-text", None | Some("1.0.0")) => PageFormat::Lines(Format::OpenMetrics),
            ("text/plain", None | Some("0.0.4")) | ("text/*" | "*/*", _) => PageFormat::Lines(Format::Text),
            ("application/vnd.google.protobuf", _)
                if parameter("proto") == Some("io.prometheus.client.MetricFamily")
                    && parameter("encoding") == Some("delimited") =>
            {
                PageFormat::Protobuf
            }
            _ => continue,
        };
        if quality > best.0 {
            best = (quality, format);
        }
    }
    best.1
}

/// A compression of responses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// None.
    Identity,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

impl Coding {
    /// Returns the value of `Content-Encoding`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

/// The compression that an `Accept-Encoding` header prefers; of equals the one that costs least CPU. Without a word, no
/// compression is as welcome as `*`, or else less than whatever is named [RFC 9110, section 12.5.3].
#[must_use]
pub fn coding(accept_encoding: Option<&str>) -> Coding {
    let (mut gzip, mut zstd, mut identity, mut any) = (None, None, None, None);
    for (coding, _, quality) in preferences(accept_encoding.unwrap_or_default()) {
        match coding.as_str() {
            "gzip" | "x-gzip" => gzip = Some(quality),
            "zstd" => zstd = Some(quality),
            "identity" => identity = Some(quality),
            "*" => any = Some(quality),
            _ => {}
        }
    }
    let mut best = (identity.unwrap_or(0.0), Coding::Identity);
    for (coding, quality) in [(Coding::Gzip, gzip), (Coding::Zstd, zstd)] {
        let quality = quality.or(any).unwrap_or(0.0);
        if quality > 0.0 && quality >= best.0 {
            best = (quality, coding);
        }
    }
    best.1
}

/// Items of a header with quality values: name in lower case, parameters, quality. A parameter's value may be quoted.
fn preferences(header: &str) -> impl Iterator<Item = (String, Vec<(&str, &str)>, f64)> {
    split(header, b',').map(|item| {
        let mut parts = split(item, b';').map(str::trim);
        let name = parts.next().unwrap_or_default().to_ascii_lowercase();
        let parameters = parts.filter_map(|part| part.split_once('='));
        let parameters: Vec<_> = parameters.map(|(key, value)| (key.trim(), value.trim().trim_matches('"'))).collect();
        let quality = parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case("q"));
        let quality = quality.map_or(1.0, |(_, value)| value.parse().unwrap_or(0.0));
        (name, parameters, if (0.0..=1.0).contains(&quality) { quality } else { 0.0 })
    })
}

/// Splits at `separator` outside of quoted strings, in which a backslash escapes [RFC 9110, section 5.6.4].
fn split(text: &str, separator: u8) -> impl Iterator<Item = &str> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    let mut start = 0;
    let ends = text.bytes().enumerate().filter(move |&(_, byte)| {
        let is_end = byte == separator && !is_quoted;
        is_quoted ^= byte == b'"' && !is_escaped;
        is_escaped = is_quoted && byte == b'\\' && !is_escaped;
        is_end
    });
    ends.map(|(end, _)| end).chain([text.len()]).map(move |end| {
        let item = text.get(start..end).unwrap_or_default();
        start = end + 1;
        item
    })
}

/// A page compressed as it is read.
pub struct Compressed<I> {
    pieces: I,
    encoder: Option<Encoder>,
}

/// Both favour speed: these pages repeat themselves and shrink well at any level.
enum Encoder {
    Gzip(GzEncoder<Vec<u8>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
}

impl Encoder {
    fn zstd() -> io::Result<Self> {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1)?;
        encoder.window_log(ZSTD_WINDOW_LOG)?;
        Ok(Self::Zstd(encoder))
    }

    fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        match self {
            Self::Gzip(encoder) => encoder.write_all(piece),
            Self::Zstd(encoder) => encoder.write_all(piece),
        }
    }

    fn compressed(&mut self) -> &mut Vec<u8> {
        match self {
            Self::Gzip(encoder) => encoder.get_mut(),
            Self::Zstd(encoder) => encoder.get_mut(),
        }
    }

    fn finish(self) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<I> Compressed<I> {
    /// Compresses `pieces` with gzip.
    #[must_use]
    pub fn gzip(pieces: I) -> Self {
        Self { pieces, encoder: Some(Encoder::Gzip(GzEncoder::new(Vec::new(), Compression::fast()))) }
    }

    /// Compresses `pieces` with zstd.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn zstd(pieces: I) -> io::Result<Self> {
        Ok(Self { pieces, encoder: Some(Encoder::zstd()?) })
    }
}

impl<I: Iterator<Item = Bytes>> Iterator for Compressed<I> {
    type Item = Bytes;

    #[expect(clippy::expect_used, reason = "writing to memory does not fail")]
    fn next(&mut self) -> Option<Bytes> {
        let encoder = self.encoder.as_mut()?;
        for piece in self.pieces.by_ref() {
            encoder.write(&piece).expect("writing to memory does not fail");
            if encoder.compressed().len() >= CHUNK / 4 {
                return Some(std::mem::take(encoder.compressed()).into());
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
        let expected = page().collect::<Vec<_>>().concat();
        let pieces: Vec<Bytes> = Compressed::gzip(page()).collect();
        let mut text = Vec::new();
        flate2::read::GzDecoder::new(pieces.concat().as_slice()).read_to_end(&mut text).unwrap();
        assert_eq!(text, expected);
        let pieces: Vec<Bytes> = Compressed::zstd(page()).unwrap().collect();
        assert_eq!(zstd::decode_all(pieces.concat().as_slice()).unwrap(), expected);
        assert!(pieces.concat().len() < expected.len() / 5);
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
            assert_eq!(super::format(accept), PageFormat::Lines(format), "{accept:?}");
        }
        let protobuf = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";
        assert_eq!(super::format(Some(&format!("{protobuf},text/plain;q=0.5"))), PageFormat::Protobuf);
        assert_eq!(super::format(Some(&format!("{protobuf};q=0.4,text/plain;q=0.5"))), PageFormat::Lines(Text));
        let compact = protobuf.replace("delimited", "compact-text");
        assert_eq!(super::format(Some(&compact)), PageFormat::Lines(Text));
    }

    #[test]
    fn the_compression_is_the_preferred_one() {
        use Coding::{Gzip, Identity, Zstd};
        for (header, expected) in [
            (None, Identity),
            (Some("gzip"), Gzip),
            (Some("deflate, GZIP;q=0.5"), Gzip),
            (Some("gzip;q=0"), Identity),
            (Some("*, gzip;q=0"), Zstd),
            (Some("*, zstd;q=0"), Gzip),
            (Some("*"), Zstd),
            (Some("gzip, zstd"), Zstd),
            (Some("gzip;q=1.0, zstd;q=0.9"), Gzip),
            (Some("gzip;q=0.5, zstd;q=0.9"), Zstd),
            (Some("identity"), Identity),
            (Some("identity;q=1, gzip;q=0.1"), Identity),
            (Some("gzip;q=0.1, identity;q=1"), Identity),
            (Some("identity;q=0.5, gzip;q=1.0"), Gzip),
            (Some("identity;q=0, *"), Zstd),
            (Some("gzip;q=\"0\""), Identity),
            (Some("gzip;q=nan"), Identity),
            (Some("gzip;q=7"), Identity),
        ] {
            assert_eq!(coding(header), expected, "{header:?}");
        }
    }

    #[test]
    fn a_quoted_value_may_hold_what_separates() {
        let header = "text/plain; note=\"a, application/openmetrics-text; q=1 \\\" ,\"; q=0.4, application/openmetrics-text; q=0.3";
        assert_eq!(super::format(Some(header)), PageFormat::Lines(Format::Text));
        assert_eq!(
            preferences(header).map(|(name, _, quality)| (name, quality)).collect::<Vec<_>>(),
            [("text/plain".to_owned(), 0.4), ("application/openmetrics-text".to_owned(), 0.3)]
        );
    }
}
