//! Callers of requests: the last element of `x-forwarded-client-cert`, in any segmentation, representation and company,
//! against an independent reading of it.

mod fixture;

use fixture::{
    Wire,
    client::{FormedField, Http1, Http2, WHOLE, representation, shape},
    cuts::cuts,
    frames::{END_STREAM, Shape, headers},
    xfcc::{NAME, Named, element, named, value},
};
use httlib_hpack::Encoder;
use observer_common::{
    CallerId, CallerKind,
    Direction::{Request, Response},
    health::Counter,
};
use observer_proto::{
    ConnLeg, caller,
    connection::flags::WITHOUT_CALLERS,
    pairing::{Pairing, Waiting},
};
use proptest::{collection::vec, prelude::*};

/// What the last finished request's series says of its caller.
fn found(wire: &Wire) -> Named {
    match wire.env.finished.last().expect("a request").caller {
        CallerId::NONE => Named::Nobody,
        CallerId::UNREADABLE => Named::Unreadable,
        CallerId(id) => {
            let caller = &wire.env.callers[usize::from(id) - 1];
            assert_eq!(caller.kind, CallerKind::CERTIFICATE);
            Named::Caller(caller.text[..caller.length as usize].to_vec())
        }
    }
}

fn http1(leg: ConnLeg) -> Http1<Named> {
    Http1::new(leg, |wire| found(wire))
}

fn http2(leg: ConnLeg) -> Http2<Named> {
    Http2::new(leg, |wire| found(wire))
}

/// A field that names the caller, and how it is represented.
fn field((value, flags): (String, u8)) -> FormedField {
    ((NAME.to_owned(), value), flags)
}

fn line(value: &str) -> String {
    format!("{NAME}: {value}\r\n")
}

/// Lines beside those that name the caller: near names, and long ones.
fn other_line() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("x-forwarded-client-cerr: a\r\n".to_owned()),
        Just("x-forwarded-for: 10.0.0.1\r\n".to_owned()),
        Just("x-forwarded-client-cert2: b,c\r\n".to_owned()),
        "x-[a-z]{0,30}: [ -~]{0,300}\r\n",
        Just("content-length: 0\r\n".to_owned()),
    ]
}

fn caller_line() -> impl Strategy<Value = (String, String)> {
    let names = prop_oneof![Just(NAME), Just("X-Forwarded-Client-Cert"), Just("X-FORWARDED-CLIENT-CERT")];
    (names, prop_oneof![Just(""), Just(" "), Just("\t ")], value())
        .prop_map(|(name, blanks, value)| (format!("{name}:{blanks}{value}\r\n"), value))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_request_of_http1_has_the_caller_of_its_last_line(
        requests in vec((vec(other_line(), 0..3), vec(caller_line(), 0..3), vec(other_line(), 0..3)), 1..8), cuts in cuts(),
    ) {
        let mut connection = http1(ConnLeg::DESTINATION);
        for (before, callers, behind) in requests {
            let expected = callers.last().map_or(Named::Nobody, |(_, value)| named(value.as_bytes()));
            let once = |lines: Vec<String>| lines.into_iter().filter(|line| !line.starts_with("content"));
            let lines: Vec<String> =
                once(before).chain(callers.into_iter().map(|(line, _)| line)).chain(once(behind)).collect();
            prop_assert_eq!(connection.ask(&lines.concat(), &cuts), expected, "{:?}", lines);
        }
    }

    #[test]
    fn every_request_of_http2_has_the_caller_of_its_last_field(
        requests in vec((vec((value(), representation()), 0..3), shape()), 1..12), cuts in cuts(),
    ) {
        let mut connection = http2(ConnLeg::DESTINATION);
        let mut unreadable = 0;
        for (values, shape) in requests {
            let expected = values.last().map_or(Named::Nobody, |(value, _)| named(value.as_bytes()));
            unreadable += u64::from(expected == Named::Unreadable);
            let fields: Vec<FormedField> = values.into_iter().map(field).collect();
            prop_assert_eq!(connection.ask(&fields, &shape, &cuts), expected, "{:?}", fields);
        }
        prop_assert_eq!(connection.wire.env.count_of(Counter::CallerUnreadable), unreadable);
        prop_assert_eq!(connection.wire.env.count_of(Counter::DesyncMalformed), 0);
    }

    /// A caller is never the wrong one, whatever is accepted, connected and closed in between.
    #[test]
    fn a_connection_is_paired_with_no_other_peer(events in vec((0..3u8, any::<prop::sample::Index>(), 0..3u8), 1..60)) {
        let mut waiting = Waiting(0);
        // Address and whether it is connected, of every peer since nothing was waiting.
        let mut open: Vec<(u8, bool)> = Vec::new();
        let mut first = 0;
        for (event, which, address) in events {
            match event {
                0 => {
                    if waiting == Waiting(0) {
                        first = address;
                        // Closed ones and those connected do not matter any more.
                        open.retain(|(_, is_connected)| !is_connected);
                        prop_assert!(open.is_empty(), "{:?} were forgotten", open);
                    }
                    waiting = waiting.accept(address == first);
                    open.push((address, false));
                }
                1 => {
                    let unconnected: Vec<usize> = (0..open.len()).filter(|&peer| !open[peer].1).collect();
                    if unconnected.is_empty() {
                        continue;
                    }
                    let peer = unconnected[which.index(unconnected.len())];
                    open[peer].1 = true;
                    let (pairing, next) = waiting.connect();
                    waiting = next;
                    prop_assert_ne!(pairing, Pairing::None);
                    if pairing == Pairing::Known {
                        prop_assert_eq!(first, open[peer].0);
                    }
                }
                _ if !open.is_empty() => {
                    let (_, _) = open.swap_remove(which.index(open.len()));
                    waiting = waiting.close();
                }
                _ => {}
            }
            if waiting == Waiting(0) {
                open.retain(|(_, is_connected)| !is_connected);
                prop_assert!(open.is_empty());
            }
        }
    }
}

#[test]
fn a_caller_is_looked_up_once_while_it_stays_the_same() {
    let mut connection = http1(ConnLeg::DESTINATION);
    let web = element("web", &"a1".repeat(32));
    for _ in 0..20 {
        assert_eq!(connection.ask(&line(&web), WHOLE), Named::Caller(web.clone().into()));
    }
    assert_eq!(connection.wire.env.caller_lookups, 1);
    // One that begins like it, and one that it begins like.
    for text in [web[..web.len() - 1].to_owned(), web.clone() + "x", web] {
        assert_eq!(connection.ask(&line(&text), WHOLE), Named::Caller(text.into()));
    }
    assert_eq!(connection.wire.env.callers.len(), 3);
}

#[test]
fn an_index_means_what_its_insertion_meant() {
    let mut connection = http2(ConnLeg::DESTINATION);
    let best = Encoder::BEST_FORMAT | Encoder::WITH_INDEXING;
    let callers = ["web", "mobile", "cron"].map(|account| element(account, &"b2".repeat(32)));
    for number in 0..300 {
        let text = &callers[number * 7 % 5 % 3];
        let found = connection.ask(&[field((text.clone(), best))], &Shape::default(), WHOLE);
        assert_eq!(found, Named::Caller(text.clone().into()));
    }
    assert!(connection.wire.env.caller_lookups < 150, "{} look-ups", connection.wire.env.caller_lookups);
    assert_eq!(connection.wire.env.callers.len(), 3);
}

#[test]
fn an_index_in_a_large_table_means_what_its_insertion_meant() {
    let mut connection = http2(ConnLeg::DESTINATION);
    let best = Encoder::BEST_FORMAT | Encoder::WITH_INDEXING;
    let mut size = Vec::new();
    connection.encoder.update_max_dynamic_size(65_536, &mut size).expect("a size");
    let callers = ["web", "mobile"].map(|account| element(account, &"c3".repeat(32)));
    for number in 0..400 {
        let text = callers[usize::from(number == 1 || number % 190 == 189)].clone();
        let block = [std::mem::take(&mut size), connection.block(&[field((text.clone(), best))])].concat();
        assert_eq!(connection.send(&block, &Shape::default(), WHOLE), Named::Caller(text.into()), "request {number}");
    }
    assert_eq!(connection.wire.env.caller_lookups, 2, "the rest was by index");
}

#[test]
fn what_the_application_itself_claims_is_not_read() {
    let claim = element("admin", &"d4".repeat(32));
    let mut source = http1(ConnLeg::SOURCE);
    assert_eq!(source.ask(&line(&claim), WHOLE), Named::Nobody);
    let mut off = http1(ConnLeg::DESTINATION);
    off.wire.c.flags |= WITHOUT_CALLERS;
    assert_eq!(off.ask(&line(&claim), WHOLE), Named::Nobody);
    let mut source = http2(ConnLeg::SOURCE);
    let found = source.ask(&[field((claim.clone(), Encoder::WITH_INDEXING))], &Shape::default(), WHOLE);
    assert_eq!(found, Named::Nobody);
    for env in [&off.wire.env, &source.wire.env] {
        assert!(env.caller_text.is_none() && env.callers.is_empty());
    }
}

#[test]
fn what_is_in_front_of_the_last_element_names_nobody() {
    let own = element("web", &"e5".repeat(32));
    for claim in ["URI=spiffe://liar", "By=x;URI=spiffe://liar,By=y", "\"a,b\"", ",,", "Subject=\"\\\",URI=z\""] {
        let mut connection = http1(ConnLeg::DESTINATION);
        let found = connection.ask(&line(&format!("{claim},{own}")), WHOLE);
        assert_eq!(found, Named::Caller(own.clone().into()), "{claim}");
    }
    // A quote that does not end swallows the comma, but is noticed.
    for claim in ["\"", "URI=\"x", "x=\"\\", "Subject=\"\\\""] {
        let mut connection = http1(ConnLeg::DESTINATION);
        let found = connection.ask(&line(&format!("{claim},{own}")), WHOLE);
        assert_eq!(found, Named::Unreadable, "{claim}");
        assert_eq!(connection.wire.env.count_of(Counter::CallerUnreadable), 1);
    }
}

#[test]
fn a_value_of_64_kib_takes_bounded_steps() {
    for (filler, expected) in [("a", false), (",", true), ("\\", false), ("\"", true), (" ", true)] {
        let own = element("web", &"f6".repeat(32));
        let huge = format!("{}{}{own}", filler.repeat(65_000), if filler == "a" { "" } else { "," });
        let expected = if expected || filler == "\\" { Named::Caller(own.into()) } else { Named::Unreadable };
        let mut connection = http1(ConnLeg::DESTINATION);
        assert_eq!(connection.ask(&line(&huge), WHOLE), expected, "of {filler}");
        assert!(connection.wire.env.steps < 20_000, "{} steps", connection.wire.env.steps);
        let mut connection = http2(ConnLeg::DESTINATION);
        let shape = Shape { fragments: vec![16_000; 5], ..Shape::default() };
        for huffman in [0, Encoder::HUFFMAN_VALUE] {
            let found = connection.ask(&[field((huge.clone(), huffman))], &shape, &[(1_448, 0, 0)]);
            assert_eq!(found, expected, "of {filler}, Huffman {huffman}");
        }
    }
}

#[test]
fn callers_without_room_are_counted_and_the_others_stay() {
    let mut connection = http1(ConnLeg::DESTINATION);
    connection.wire.env.max_callers = Some(3);
    for number in 0..2_000 {
        let text = element(&format!("sa-{number}"), &"07".repeat(32));
        let expected = if number < 3 { Named::Caller(text.clone().into()) } else { Named::Unreadable };
        assert_eq!(connection.ask(&line(&text), WHOLE), expected);
    }
    let known = element("sa-1", &"07".repeat(32));
    assert_eq!(connection.ask(&line(&known), WHOLE), Named::Caller(known.into()));
    assert_eq!(connection.wire.env.count_of(Counter::CallersFull), 1_997);
    assert_eq!(connection.wire.env.count_of(Counter::CallerUnreadable), 0);
}

#[test]
fn without_storage_callers_are_counted_as_without_room() {
    let own = element("web", &"18".repeat(32));
    let mut connection = http2(ConnLeg::DESTINATION);
    connection.wire.env.is_full = true;
    for _ in 0..3 {
        let found = connection.ask(
            &[field((own.clone(), Encoder::BEST_FORMAT | Encoder::WITH_INDEXING))],
            &Shape::default(),
            &[(100, 0, 0)],
        );
        assert_eq!(found, Named::Unreadable);
    }
    assert_eq!(connection.wire.env.count_of(Counter::CallersFull), 3);
}

#[test]
fn a_caller_that_was_inserted_before_the_attach_is_missed() {
    let own = element("web", &"29".repeat(32));
    let best = Encoder::BEST_FORMAT | Encoder::WITH_INDEXING;
    let mut connection = http2(ConnLeg::DESTINATION);
    connection.block(&[field((own.clone(), best))]);
    observer_proto::hpack::reset(&mut connection.wire.h.frames[Request].decoder);
    let block = connection.block(&[field((own.clone(), best))]);
    let from = connection.requests.len();
    connection.requests.extend(headers(1, END_STREAM, &block, &Shape::default()));
    connection.wire.deliver(Request, &connection.requests, from, connection.requests.len());
    let from = connection.responses.len();
    connection.responses.extend(headers(1, END_STREAM, &[0x88], &Shape::default()));
    connection.wire.deliver(Response, &connection.responses, from, connection.responses.len());
    assert_eq!(connection.wire.env.finished.last().map(|request| request.caller), Some(CallerId::MISSED));
    assert_eq!(connection.wire.env.count_of(Counter::CallerMissed), 1);
    // Once it is inserted again, it is known.
    connection.stream = 3;
    let again = connection.ask(&[field((own.clone(), Encoder::WITH_INDEXING))], &Shape::default(), WHOLE);
    assert_eq!(again, Named::Caller(own.into()));
}

#[test]
fn an_address_is_a_caller_of_its_own_kind() {
    let mut connection = http1(ConnLeg::DESTINATION);
    connection.ask(&line(&element("web", &"3a".repeat(32))), WHOLE);
    let address: [u8; 16] = std::array::from_fn(|byte| byte as u8 + 1);
    let env = &mut connection.wire.env;
    let mut text = *env.caller_text.clone().expect("a text");
    let id = caller::of_address(&mut text, env, &address);
    let found = env.callers[usize::from(id.0) - 1];
    assert_eq!((found.kind, &found.text[..found.length as usize]), (CallerKind::ADDRESS, &address[..]));
}
