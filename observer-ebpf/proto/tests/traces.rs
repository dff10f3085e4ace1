//! Trace contexts of requests, in any segmentation, representation and company, against an independent reading of them.

mod fixture;

use fixture::{
    Wire,
    client::{Http1, Http2, RESPONSE, WHOLE, representation, shape},
    cuts::cuts,
    frames::Shape,
    trace_headers::{Context, headers, sampled},
};
use httlib_hpack::Encoder;
use observer_common::{
    Direction::{Request, Response},
    health::Counter,
};
use observer_proto::ConnLeg;
use proptest::{collection::vec, prelude::*};

/// The context of the last finished request, which is taken as the programs do.
fn found(wire: &mut Wire) -> Context {
    let request = *wire.env.finished.last().expect("a request");
    let context = wire.env.traces.remove(&request.trace.get()?).expect("what is sampled is kept").exemplar;
    let [high, low] = context.trace_id;
    Some((u128::from(high) << 64 | u128::from(low), context.span_id))
}

fn http1(leg: ConnLeg) -> Http1<Context> {
    Http1::new(leg, found)
}

fn http2(leg: ConnLeg) -> Http2<Context> {
    Http2::new(leg, found)
}

/// Lines beside those of a context: near names, and long ones.
fn other_line() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("tracestate: a=b,c=d\r\n".to_owned()),
        Just("traceparents: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n".to_owned()),
        Just("b3x: 1\r\n".to_owned()),
        Just("x-b3-parentspanid: 00f067aa0ba902b7\r\n".to_owned()),
        Just("transfer: x\r\n".to_owned()),
        "x-[a-z]{0,30}: [ -~]{0,300}\r\n",
    ]
}

fn name_case(name: &str, style: u8) -> String {
    match style {
        0 => name.to_owned(),
        1 => name.to_ascii_uppercase(),
        _ => name.split('-').map(|word| word[..1].to_ascii_uppercase() + &word[1..]).collect::<Vec<_>>().join("-"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_request_of_http1_has_the_context_of_its_header(
        requests in vec((headers(), vec(other_line(), 0..4), 0..3u8, prop_oneof![Just(""), Just(" "), Just(" \t ")]), 1..8),
        cuts in cuts(),
    ) {
        let mut connection = http1(ConnLeg::SOURCE);
        for (headers, others, style, blanks) in requests {
            let mut lines = String::new();
            for (number, (name, value)) in headers.iter().enumerate() {
                lines.push_str(others.get(number).map_or("", String::as_str));
                lines.push_str(&format!("{}:{blanks}{value}\r\n", name_case(name, style)));
            }
            prop_assert_eq!(connection.ask(&lines, &cuts), sampled(&headers), "{}", lines);
        }
        prop_assert!(connection.wire.env.traces.is_empty());
    }

    #[test]
    fn every_request_of_http2_has_the_context_of_its_block(
        pool in vec(headers(), 1..4),
        requests in vec((any::<prop::sample::Index>(), representation(), shape()), 1..14), cuts in cuts(),
    ) {
        let mut connection = http2(ConnLeg::DESTINATION);
        for (which, representation, shape) in requests {
            // The same headers come again, so that they are sent as indices.
            let headers = which.get(&pool);
            let fields: Vec<_> = headers.iter().map(|header| (header.clone(), representation)).collect();
            prop_assert_eq!(connection.ask(&fields, &shape, &cuts), sampled(headers), "{:?}", fields);
        }
        prop_assert!(connection.wire.env.traces.is_empty());
        prop_assert_eq!(connection.wire.env.count_of(Counter::DesyncMalformed), 0);
        prop_assert_eq!(connection.wire.env.count_of(Counter::TraceMissed), 0);
    }
}

const TRACE: u128 = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;

fn traceparent(span: u64, flags: u8) -> (String, String) {
    ("traceparent".to_owned(), format!("00-{TRACE:032x}-{span:016x}-{flags:02x}"))
}

#[test]
fn each_form_is_read() {
    let span = 0x00f0_67aa_0ba9_02b7;
    let multi = |trace: &str| format!("X-B3-TraceId: {trace}\r\nX-B3-SpanId: {span:016x}\r\nX-B3-Sampled: 1\r\n");
    let low = TRACE & u128::from(u64::MAX);
    for (lines, expected) in [
        (format!("traceparent: 00-{TRACE:032x}-{span:016x}-01\r\n"), Some((TRACE, span))),
        (format!("traceparent: 00-{TRACE:032x}-{span:016x}-00\r\n"), None),
        (format!("b3: {TRACE:032x}-{span:016x}-1-05e3ac9a4f6e3b90\r\n"), Some((TRACE, span))),
        (format!("b3: {low:016x}-{span:016x}-d\r\n"), Some((low, span))),
        (format!("b3: {TRACE:032x}-{span:016x}\r\n"), None),
        ("b3: 0\r\n".to_owned(), None),
        (multi(&format!("{TRACE:032x}")), Some((TRACE, span))),
        (multi(&format!("{low:016x}")), Some((low, span))),
        (multi("x"), None),
    ] {
        assert_eq!(http1(ConnLeg::SOURCE).ask(&lines, WHOLE), expected, "{lines}");
    }
}

#[test]
fn nothing_is_read_behind_a_value() {
    let mut connection = http2(ConnLeg::SOURCE);
    let single = |state: &str| ("b3".to_owned(), format!("{TRACE:032x}-{:016x}{state}", 7));
    for form in [0, Encoder::HUFFMAN_VALUE] {
        for (state, is_sampled) in [("-1", true), ("-", false), ("", false), ("-d", true), ("-", false)] {
            let found = connection.ask(&[(single(state), form)], &Shape::default(), WHOLE);
            assert_eq!(found, is_sampled.then_some((TRACE, 7)), "{state:?} {form}");
        }
    }
}

/// The code of a long text may be short.
#[test]
fn a_value_is_too_long_by_its_text() {
    let mut connection = http2(ConnLeg::SOURCE);
    for form in [0, Encoder::HUFFMAN_VALUE] {
        for length in [0, 28, 29, 60] {
            let value = format!("{TRACE:032x}-{:016x}-1{}", 7, "a".repeat(length));
            let expected = (value.len() <= 80).then_some((TRACE, 7));
            let found = connection.ask(&[(("b3".to_owned(), value), form)], &Shape::default(), WHOLE);
            assert_eq!(found, expected, "{length} {form}");
        }
    }
}

#[test]
fn requests_without_a_context_take_no_storage() {
    let mut http1 = self::http1(ConnLeg::SOURCE);
    assert_eq!(http1.ask("x-request-id: 1\r\nbaggage: a\r\ntracestate: a=b\r\n", WHOLE), None);
    let mut http2 = self::http2(ConnLeg::SOURCE);
    assert_eq!(http2.ask(&[], &Shape::default(), WHOLE), None);
    for env in [&http1.wire.env, &http2.wire.env] {
        assert!(env.trace_text.is_none() && env.trace_table.is_none());
    }
}

#[test]
fn an_index_means_what_its_insertion_meant() {
    let mut connection = http2(ConnLeg::DESTINATION);
    let best = Encoder::BEST_FORMAT | Encoder::WITH_INDEXING;
    for number in 0..300 {
        let span = number * 7 % 5 + 1;
        let found = connection.ask(&[(traceparent(span, 1), best)], &Shape::default(), WHOLE);
        assert_eq!(found, Some((TRACE, span)));
    }
    assert!(connection.requests.len() < 300 * 60, "{} bytes: the values were sent again", connection.requests.len());
}

#[test]
fn an_index_beyond_the_ring_is_missed_and_counted() {
    let mut connection = http2(ConnLeg::DESTINATION);
    let best = Encoder::BEST_FORMAT | Encoder::WITH_INDEXING;
    let mut size = Vec::new();
    connection.encoder.update_max_dynamic_size(65_536, &mut size).expect("a size");
    for number in 0..200 {
        let fields = if matches!(number, 0 | 199) { vec![(traceparent(9, 1), best)] } else { Vec::new() };
        let block = [std::mem::take(&mut size), connection.block(&fields)].concat();
        let expected = (number == 0).then_some((TRACE, 9));
        assert_eq!(connection.send(&block, &Shape::default(), WHOLE), expected, "request {number}");
    }
    assert_eq!(connection.wire.env.count_of(Counter::TraceMissed), 1);
    // A literal whose name is that far back is read.
    let block = connection.block(&[(traceparent(10, 1), Encoder::WITH_INDEXING)]);
    assert_eq!(connection.send(&block, &Shape::default(), WHOLE), Some((TRACE, 10)));
}

#[test]
fn without_storage_contexts_are_counted_as_without_room() {
    let mut http1 = self::http1(ConnLeg::SOURCE);
    http1.wire.env.is_full = true;
    let (name, value) = traceparent(1, 1);
    assert_eq!(http1.ask(&format!("{name}: {value}\r\n"), WHOLE), None);
    let mut http2 = self::http2(ConnLeg::SOURCE);
    http2.wire.env.is_full = true;
    let found = http2.ask(&[(traceparent(1, 1), Encoder::WITH_INDEXING)], &Shape::default(), &[(10, 0, 0)]);
    assert_eq!(found, None);
    for env in [&http1.wire.env, &http2.wire.env] {
        assert_eq!(env.count_of(Counter::TracesFull), 1);
    }
}

#[test]
fn pipelined_requests_have_their_own_contexts() {
    let mut connection = http1(ConnLeg::SOURCE);
    let mut requests = String::new();
    for span in 1..=20 {
        let (name, value) = traceparent(span, u8::from(span % 3 != 0));
        requests.push_str(&format!("GET / HTTP/1.1\r\n{name}: {value}\r\n\r\n"));
    }
    connection.wire.deliver(Request, requests.as_bytes(), 0, requests.len());
    let mut responses = Vec::new();
    for span in 1..=20 {
        let from = responses.len();
        responses.extend(RESPONSE);
        connection.wire.deliver(Response, &responses, from, responses.len());
        assert_eq!(found(&mut connection.wire), (span % 3 != 0).then_some((TRACE, span)));
    }
}

#[test]
fn what_is_not_sampled_is_not_decoded() {
    let mut connection = http2(ConnLeg::SOURCE);
    for (flags, is_decoded) in [(0, false), (1, true), (2, true), (0x10, true)] {
        connection.ask(&[(traceparent(1, 1), Encoder::HUFFMAN_VALUE)], &Shape::default(), WHOLE);
        connection.wire.env.trace_text.as_mut().expect("a text").text = [0; 18];
        let found = connection.ask(&[(traceparent(0xfedc, flags), Encoder::HUFFMAN_VALUE)], &Shape::default(), WHOLE);
        assert_eq!(found, (flags == 1).then_some((TRACE, 0xfedc)));
        let text = connection.wire.env.trace_text.as_ref().expect("a text");
        assert_eq!(text.text != [0; 18], is_decoded, "flags {flags}");
    }
}
