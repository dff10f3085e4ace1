//! What a request asks for: its method and its path, without the query.

use observer_common::{LineForm, Method, RequestLine};
use observer_proto::huffman;

/// What a request asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// Method; empty if it is not known.
    pub method: String,
    /// Path without its query, with `…` at its end where the rest was not kept; empty if it is not known.
    pub path: String,
}

/// In place of a path's segment that is an id.
const MASK: &str = "{id}";
/// Longest segment that may be a word.
const MAX_WORD: usize = 32;
/// Shortest segment that is an id if it has a digit: `v1` and `oauth2` are none.
const MIN_MIXED_ID: usize = 8;

impl Target {
    /// Returns what the kernel has kept of a request.
    #[must_use]
    pub fn of(line: &RequestLine) -> Self {
        let bytes: Vec<u8> = line.text.iter().flat_map(|word| word.to_le_bytes()).collect();
        let kept = &bytes[..bytes.len().min(line.length as usize)];
        let is_cut = kept.len() < line.length as usize;
        match line.form {
            LineForm::LINE => {
                let mut words = kept.split(|byte| *byte == b' ');
                let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
                let is_whole = words.next().is_some() || !is_cut;
                Self { method: text(method), path: path(target, !is_whole) }
            }
            LineForm::PATH => Self { method: name(line.method), path: path(kept, is_cut) },
            LineForm::CODED_PATH => Self { method: name(line.method), path: path(&decoded(kept), is_cut) },
            _ => Self { method: name(line.method), path: String::new() },
        }
    }

    /// Replaces the segments that are ids.
    pub fn mask(&mut self) {
        let segments: Vec<&str> = self.path.split('/').map(|own| if is_id(own) { MASK } else { own }).collect();
        self.path = segments.join("/");
    }
}

fn name(method: Method) -> String {
    let named = usize::from(method.0).checked_sub(1).and_then(|index| Method::NAMES.get(index));
    named.copied().unwrap_or_default().to_owned()
}

/// Decodes the beginning of a Huffman code.
fn decoded(coded: &[u8]) -> Vec<u8> {
    let (mut state, mut decoded) = (0, Vec::new());
    for bits in coded.iter().flat_map(|byte| [byte >> 4, byte & 0xf]) {
        state = huffman::next(state, bits.into());
        if state & huffman::FAILS != 0 {
            break;
        }
        if state & huffman::HAS_SYMBOL != 0 {
            decoded.push((state >> 8) as u8);
        }
    }
    decoded
}

/// Returns the path of a request target (section 3.2 of RFC 9112).
fn path(target: &[u8], is_cut: bool) -> String {
    let mut own = text(target);
    if let Some((_, behind)) = own.split_once("://") {
        own = behind.find('/').map_or("/", |at| &behind[at..]).to_owned();
    }
    if let Some(end) = own.find(['?', '#']) {
        own.truncate(end);
    } else if is_cut && !own.is_empty() {
        own.push('…');
    }
    // That of CONNECT is an authority.
    if own.starts_with('/') || own == "*" { own } else { String::new() }
}

/// Returns bytes as text that can be shown.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .map(|own| if own.is_control() { char::REPLACEMENT_CHARACTER } else { own })
        .collect()
}

fn is_id(segment: &str) -> bool {
    let digits = segment.bytes().filter(u8::is_ascii_digit).count();
    digits > 0 && (digits == segment.len() || segment.len() >= MIN_MIXED_ID)
        || segment.len() > MAX_WORD
        || segment.contains(['@', '%', ':', '='])
}

#[cfg(test)]
mod tests {
    use observer_common::LINE_WORDS;
    use proptest::prelude::*;

    use super::*;

    fn line(text: &[u8], form: LineForm, method: Method) -> RequestLine {
        let mut bytes = [0; LINE_WORDS * 8];
        let kept = text.len().min(bytes.len());
        bytes[..kept].copy_from_slice(&text[..kept]);
        let mut words = [0; LINE_WORDS];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().unwrap());
        }
        RequestLine { text: words, length: text.len() as u32, form, method }
    }

    fn target(text: &str) -> (String, String) {
        let Target { method, path } = Target::of(&line(text.as_bytes(), LineForm::LINE, Method::UNKNOWN));
        (method, path)
    }

    #[test]
    fn request_lines_have_a_method_and_a_path() {
        let long = format!("GET /{} HTTP/1.1", "a".repeat(200));
        for (text, method, path) in [
            ("GET / HTTP/1.1", "GET", "/"),
            ("PUT /a/b?secret=1 HTTP/1.1", "PUT", "/a/b"),
            ("GET http://host:80/a#b HTTP/1.1", "GET", "/a"),
            ("GET http://host HTTP/1.1", "GET", "/"),
            ("OPTIONS * HTTP/1.1", "OPTIONS", "*"),
            ("CONNECT host:443 HTTP/1.1", "CONNECT", ""),
            ("M-SEARCH /\u{7f}\u{1b}[0m HTTP/1.1", "M-SEARCH", "/\u{fffd}\u{fffd}[0m"),
            ("GET", "GET", ""),
            (&long, "GET", &format!("/{}…", "a".repeat(115))),
        ] {
            assert_eq!(target(text), (method.to_owned(), path.to_owned()), "{text}");
        }
    }

    #[test]
    fn paths_of_http2_may_be_coded() {
        // RFC 7541, section C.4.1: `www.example.com`; here with a slash, 011000, in front would need other bits.
        let sample = b"\x62\x75\x4c\x3f";
        let target = Target::of(&line(sample, LineForm::CODED_PATH, Method(2)));
        assert!(target.path.starts_with('/'), "{target:?}");
        assert_eq!(target.method, "GET");
        let target = Target::of(&line(b"/a?b", LineForm::PATH, Method::OTHER));
        assert_eq!(target, Target { method: String::new(), path: "/a".into() });
        assert_eq!(Target::of(&line(b"/a", LineForm::NONE, Method(1))).path, "");
    }

    #[test]
    fn ids_are_masked() {
        for (path, masked) in [
            ("/users/1234/orders/77", "/users/{id}/orders/{id}"),
            ("/api/v1/oauth2/", "/api/v1/oauth2/"),
            ("/files/4bf92f3577b34da6", "/files/{id}"),
            ("/d/4bf92f35-77b3-4da6-a3ce-929d0e0e4736/x", "/d/{id}/x"),
            ("/mail/a@b.c", "/mail/{id}"),
            ("/bookstore.Catalog/GetBook", "/bookstore.Catalog/GetBook"),
            ("", ""),
        ] {
            let mut target = Target { method: String::new(), path: path.into() };
            target.mask();
            assert_eq!(target.path, masked);
        }
    }

    proptest! {
        #[test]
        fn whatever_was_sent_has_no_query_and_no_control_characters(
            text in proptest::collection::vec(any::<u8>(), 0..200), form in 0..6_u16, method in any::<u16>(),
        ) {
            let mut target = Target::of(&line(&text, LineForm(form), Method(method)));
            prop_assert!(!target.path.contains(['?', '#']) && !target.path.chars().any(char::is_control));
            prop_assert!(target.path.len() < 1000 && target.method.len() < 1000);
            target.mask();
        }
    }
}
