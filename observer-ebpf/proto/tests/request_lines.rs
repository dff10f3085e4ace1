//! What sampled requests ask for, in any segmentation and representation.

mod fixture;

use fixture::{
    Wire,
    client::{Http2, RESPONSE, WHOLE, representation, shape},
    cuts::{cuts, deliver},
    frames::Shape,
};
use httlib_hpack::{Decoder, Encoder};
use observer_common::{
    Direction::{Request, Response},
    LineForm, Method, RequestLine,
    health::Counter,
};
use observer_proto::ConnLeg;
use proptest::{collection::vec, prelude::*};

/// Bytes that are kept.
const KEPT: usize = 120;
const METHODS: [&str; 8] = Method::NAMES;

/// Returns what the last finished request asked for, if it was sampled.
fn asked(wire: &mut Wire) -> Option<RequestLine> {
    let request = *wire.env.finished.last().expect("a request");
    Some(wire.env.traces.remove(&request.trace.get()?).expect("what is sampled is kept").line)
}

fn kept(line: &RequestLine) -> Vec<u8> {
    let bytes: Vec<u8> = line.text.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes[..KEPT.min(line.length as usize)].to_vec()
}

/// Returns the path of a request of HTTP/2, decoded by another decoder; `None` if there is none, or only its beginning.
fn path(line: &RequestLine) -> Option<String> {
    let text = kept(line);
    if line.form == LineForm::PATH {
        return (line.length as usize <= KEPT).then(|| String::from_utf8(text).expect("text"));
    }
    if line.form == LineForm::NONE || line.length as usize > KEPT {
        return None;
    }
    // A literal field with the name `:path`, Huffman coded.
    let mut block = [vec![0x04, 0x80 | u8::try_from(text.len()).expect("short")], text].concat();
    let mut fields = Vec::new();
    Decoder::default().decode(&mut block, &mut fields).expect("a field");
    Some(String::from_utf8(fields.remove(0).1).expect("text"))
}

fn context(is_sampled: bool) -> (String, String) {
    let flags = u8::from(is_sampled);
    ("traceparent".to_owned(), format!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{flags:02x}"))
}

fn http2() -> Http2<Option<RequestLine>> {
    let mut connection = Http2::new(ConnLeg::SOURCE, asked);
    connection.wire.env.reads_lines = true;
    connection
}

/// Returns the header block of a request.
fn block(
    connection: &mut Http2<Option<RequestLine>>,
    method: (&str, u8),
    path: (&str, u8),
    is_sampled: bool,
) -> Vec<u8> {
    let mut block = Vec::new();
    let (name, value) = context(is_sampled);
    for (name, value, flags) in [
        (":method", method.0, method.1),
        (":path", path.0, path.1),
        (&name, &value, Encoder::BEST_FORMAT | Encoder::WITH_INDEXING),
    ] {
        let field = (name.as_bytes().to_vec(), value.as_bytes().to_vec(), flags);
        connection.encoder.encode(field, &mut block).expect("a field");
    }
    block
}

fn paths() -> impl Strategy<Value = String> {
    prop_oneof![Just("/".to_owned()), Just("/index.html".to_owned()), "/[ -~]{0,40}", "/[ -~]{0,300}"]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_sampled_request_of_http1_has_its_line(
        requests in vec((0..METHODS.len(), "/[!-~]{0,200}", any::<bool>()), 1..8), cuts in cuts(),
    ) {
        let mut wire = Wire::new(ConnLeg::SOURCE);
        wire.env.reads_lines = true;
        let (mut sent, mut answered) = (Vec::new(), Vec::new());
        for (method, path, is_sampled) in requests {
            // A tunnel begins behind it.
            let method = if METHODS[method] == "CONNECT" { "GET" } else { METHODS[method] };
            let (name, value) = context(is_sampled);
            let line = format!("{method} {path} HTTP/1.1");
            let from = sent.len();
            sent.extend(format!("{line}\r\nhost: a\r\n{name}: {value}\r\n\r\n").as_bytes());
            deliver(&mut wire, Request, &sent, from, sent.len(), &cuts);
            let from = answered.len();
            answered.extend(RESPONSE);
            wire.deliver(Response, &answered, from, answered.len());
            let found = asked(&mut wire);
            prop_assert_eq!(found.is_some(), is_sampled);
            if let Some(found) = found {
                prop_assert_eq!(found.form, LineForm::LINE);
                let kept = kept(&found);
                // Of a long line that comes in pieces there may be less than has room.
                prop_assert!(line.as_bytes().starts_with(&kept) && kept.len() >= line.len().min(100), "{line:?} {kept:?}");
            }
        }
    }

    #[test]
    fn every_sampled_request_of_http2_has_its_method_and_path(
        pool in vec(paths(), 1..5),
        requests in vec(
            (0..METHODS.len(), any::<prop::sample::Index>(), representation(), representation(), any::<bool>(), shape()),
            1..14,
        ),
        cuts in cuts(),
    ) {
        let mut connection = http2();
        for (method, which, how, how_path, is_sampled, shape) in requests {
            // A tunnel, which this client does not end.
            let method = if METHODS[method] == "CONNECT" { 0 } else { method };
            let expected = which.get(&pool);
            let block = block(&mut connection, (METHODS[method], how), (expected, how_path), is_sampled);
            let found = connection.send(&block, &shape, &cuts);
            prop_assert_eq!(found.is_some(), is_sampled);
            if let Some(line) = found {
                prop_assert_eq!(line.method, Method(method as u16 + 1), "{} {:?}", METHODS[method], line);
                match path(&line) {
                    Some(path) => prop_assert_eq!(&path, expected),
                    None => prop_assert!(line.length as usize > KEPT, "{line:?}"),
                }
            }
        }
        prop_assert_eq!(connection.wire.env.count_of(Counter::DesyncMalformed), 0);
    }
}

#[test]
fn other_methods_are_others() {
    let mut connection = http2();
    for method in ["PURGE", "get", "GETT", "PROPFINDER"] {
        for flags in [0, Encoder::HUFFMAN_VALUE] {
            let block = block(&mut connection, (method, flags), ("/", 0), true);
            let line = connection.send(&block, &Shape::default(), WHOLE).expect("sampled");
            assert_eq!((line.method, path(&line).as_deref()), (Method::OTHER, Some("/")), "{method}");
        }
    }
}

#[test]
fn a_path_whose_place_another_has_taken_is_not_known() {
    let mut connection = http2();
    let best = Encoder::BEST_FORMAT | Encoder::WITH_INDEXING;
    let count = 40;
    for path in ["/first".to_owned()].into_iter().chain((1..=count).map(|number| format!("/{number}"))) {
        let block = block(&mut connection, ("GET", best), (&path, best), true);
        connection.send(&block, &Shape::default(), WHOLE).expect("sampled");
    }
    // Indices of insertions: the first path, the context behind it, and the other paths.
    for (back, expected) in [(count + 1, None), (0, Some("/40")), (31, Some("/9")), (32, None)] {
        let block = [0x82, 0xbe + back, 0xbe + count];
        let line = connection.send(&block, &Shape::default(), WHOLE).expect("sampled");
        assert_eq!(path(&line).as_deref(), expected, "{back} back");
    }
}

#[test]
fn nothing_is_kept_unless_it_is_asked_for() {
    let mut connection = http2();
    connection.wire.env.reads_lines = false;
    let block = block(&mut connection, ("GET", 0), ("/secret", 0), true);
    let line = connection.send(&block, &Shape::default(), WHOLE).expect("sampled");
    assert_eq!((line.form, line.length), (LineForm::NONE, 0));
    assert!(connection.wire.env.line_table.is_none());
}
