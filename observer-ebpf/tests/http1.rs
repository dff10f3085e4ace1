//! The kernel's HTTP/1 reading against an independent parser: any stream of messages, cut, repeated and overlapped in
//! any way, yields the same requests.

mod bed;

use bed::{Wire, exchange};
use observer_ebpf::{
    health::Counter,
    socket::{DESTINATION, HTTP1, REQUEST, RESPONSE, SOURCE},
};
use proptest::{collection::vec, prelude::*};

/// One request and its response as text, with what an independent reading makes of them.
#[derive(Clone)]
struct Pair {
    request: Vec<u8>,
    response: Vec<u8>,
    status: u16,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\"{}\" -> \"{}\"", self.request.escape_ascii(), self.response.escape_ascii())
    }
}

/// Where the first message of `bytes` ends and what its status is, by httparse.
fn oracle(bytes: &[u8], request: Option<&[u8]>) -> (usize, u16) {
    let mut at = 0;
    loop {
        while bytes[at..].starts_with(b"\r\n") {
            at += 2;
        }
        let mut headers = [httparse::EMPTY_HEADER; 256];
        let (head, status, fields) = if request.is_none() {
            let mut parsed = httparse::Request::new(&mut headers);
            let head = parsed.parse(&bytes[at..]).expect("valid request").unwrap();
            (head, 0, parsed.headers.to_vec())
        } else {
            let mut parsed = httparse::Response::new(&mut headers);
            let head = httparse::ParserConfig::default()
                .allow_obsolete_multiline_headers_in_responses(true)
                .parse_response(&mut parsed, &bytes[at..])
                .expect("valid response")
                .unwrap();
            (head, parsed.code.unwrap(), parsed.headers.to_vec())
        };
        at += head;
        if request.is_some() && (100..200).contains(&status) {
            continue;
        }
        let field = |name: &str| {
            fields.iter().find(|f| f.name.eq_ignore_ascii_case(name)).map(|f| String::from_utf8_lossy(f.value))
        };
        let bodiless = request.is_some_and(|r| r.starts_with(b"HEAD ")) || status == 204 || status == 304;
        if bodiless {
            return (at, status);
        }
        if field("transfer-encoding").is_some_and(|v| v.trim().ends_with("chunked")) {
            loop {
                let (line, size) = httparse::parse_chunk_size(&bytes[at..]).expect("valid chunk").unwrap();
                at += line;
                if size == 0 {
                    while !bytes[at..].starts_with(b"\r\n") {
                        at += bytes[at..].windows(2).position(|w| w == b"\r\n").unwrap() + 2;
                    }
                    return (at + 2, status);
                }
                at += size as usize + 2;
            }
        }
        return (at + field("content-length").map_or(0, |v| v.trim().parse::<usize>().unwrap()), status);
    }
}

fn framing(allow_body: bool) -> impl Strategy<Value = Vec<u8>> {
    let length = (vec(any::<u8>(), 0..600), 0..4usize).prop_map(|(body, style)| {
        let name = ["Content-Length", "content-length", "CONTENT-LENGTH", "Content-length"][style];
        let space = ["", " ", "  ", "\t "][style];
        let mut text = format!("{name}:{space}{}\r\n\r\n", body.len()).into_bytes();
        text.extend(body);
        text
    });
    let chunk = (vec(any::<u8>(), 1..300), "(;[a-z]{1,8}(=\"[a-z ]{0,200}\")?)?", any::<bool>());
    let chunked = (vec(chunk, 0..6), vec("X-[A-Z]{1,6}: [a-z]{0,40}\r\n", 0..3), 0..4usize, any::<bool>()).prop_map(
        |(chunks, trailers, style, both)| {
            let coding = [
                "Transfer-Encoding: chunked",
                "transfer-encoding:chunked",
                "Transfer-Encoding: gzip, chunked  ",
                "Transfer-Encoding: gzip,chunked",
            ][style];
            let mut text = format!("{coding}\r\n{}\r\n", if both { "X-Pad: 1\r\n" } else { "" }).into_bytes();
            for (data, extension, upper) in chunks {
                let size = if upper { format!("{:X}", data.len()) } else { format!("{:04x}", data.len()) };
                text.extend(format!("{size}{extension}\r\n").into_bytes());
                text.extend(data);
                text.extend(b"\r\n");
            }
            text.extend(b"0\r\n");
            text.extend(trailers.concat().into_bytes());
            text.extend(b"\r\n");
            text
        },
    );
    let none = Just(b"Content-Length: 0\r\n\r\n".to_vec());
    if allow_body { prop_oneof![length, chunked, none].boxed() } else { none.boxed() }
}

fn noise() -> impl Strategy<Value = String> {
    let short = "[A-Za-z][A-Za-z-]{0,15}x: [ -~]{0,60}\r\n";
    let long = "X-Long-[a-z]{1,4}: [a-z]{200,700}\r\n";
    let near = prop_oneof![
        Just("Content-Type: text/plain\r\n".to_owned()),
        Just("Content-Length-Not: 7\r\n".to_owned()),
        Just("Transfer-Encodings: chunked\r\n".to_owned()),
        Just("X-Content-Length: 9\r\n".to_owned()),
        Just("Upgraded: no\r\n".to_owned()),
    ];
    vec(prop_oneof![6 => short.prop_map(|s| s.to_string()), 1 => long.prop_map(|s| s.to_string()), 2 => near], 0..8)
        .prop_map(|lines| lines.concat())
}

fn pair() -> impl Strategy<Value = Pair> {
    let method = prop_oneof![Just("GET"), Just("POST"), Just("HEAD"), Just("PUT"), Just("OPTIONS"), Just("DELETE")];
    let status = prop_oneof![Just(200u16), Just(204), Just(304), Just(404), Just(503), 200..600u16];
    let interim = prop_oneof![
        4 => Just(""),
        1 => Just("HTTP/1.1 100 Continue\r\n\r\n"),
        1 => Just("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"),
    ];
    let target = prop_oneof![8 => "/[a-z0-9/?=&]{0,60}", 1 => "/[a-z]{100,900}"];
    let request = (method, target, noise(), framing(true), noise(), 0..3usize, any::<bool>());
    let response = (status, "[A-Za-z ]{0,30}", noise(), framing(true), interim, any::<bool>());
    (request, response).prop_map(
        |((method, target, before, body, _, blank, old), (status, reason, head, reply, interim, _))| {
            let version = if old { "1.0" } else { "1.1" };
            let mut request =
                format!("{}{method} {target} HTTP/{version}\r\n{before}", "\r\n".repeat(blank)).into_bytes();
            request.extend(body);
            let mut response = format!("{interim}HTTP/1.1 {status} {reason}\r\n{head}").into_bytes();
            let bodiless = method == "HEAD" || status == 204 || status == 304;
            let cut = if bodiless { reply.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4 } else { reply.len() };
            response.extend(&reply[..cut]);
            Pair { request, response, status }
        },
    )
}

/// Cuts of a stream: lengths, how far each segment reaches back, and how often it is repeated.
type Cuts = Vec<(usize, usize, usize)>;

fn cuts() -> impl Strategy<Value = Cuts> {
    vec(
        (prop_oneof![1..20usize, 1..400usize, Just(1)], prop_oneof![3 => Just(0usize), 1 => 1..50usize], 0..3usize),
        1..80,
    )
}

/// Delivers `stream[from..to]` cut as told; starts over with the cuts when they are used up.
fn deliver(wire: &mut Wire, direction: usize, stream: &[u8], from: usize, to: usize, cuts: &Cuts) {
    let mut at = from;
    for &(length, back, repeats) in cuts.iter().cycle() {
        if at == to {
            return;
        }
        let end = (at + length).min(to);
        for _ in 0..=repeats {
            wire.deliver(direction, stream, at.saturating_sub(back), end);
        }
        at = end;
    }
}

fn check(pairs: &[Pair], depth: usize, request_cuts: &Cuts, response_cuts: &Cuts) -> Result<(), TestCaseError> {
    let requests: Vec<u8> = pairs.iter().flat_map(|p| p.request.clone()).collect();
    let responses: Vec<u8> = pairs.iter().flat_map(|p| p.response.clone()).collect();
    let mut wire = Wire::new(DESTINATION);
    let (mut sent, mut answered) = (0, 0);
    for batch in pairs.chunks(depth) {
        let asked = sent + batch.iter().map(|p| p.request.len()).sum::<usize>();
        deliver(&mut wire, REQUEST, &requests, sent, asked, request_cuts);
        sent = asked;
        let replied = answered + batch.iter().map(|p| p.response.len()).sum::<usize>();
        deliver(&mut wire, RESPONSE, &responses, answered, replied, response_cuts);
        answered = replied;
    }
    wire.end(RESPONSE, false);
    wire.close();
    prop_assert_eq!(wire.bed.finished.len(), pairs.len(), "counts {:?}", wire.bed.counts);
    for (pair, finished) in pairs.iter().zip(&wire.bed.finished) {
        let (request, _) = oracle(&pair.request, None);
        let blank = pair.request.iter().take_while(|b| b"\r\n".contains(b)).count();
        let (response, status) = oracle(&pair.response, Some(&pair.request[blank..]));
        prop_assert_eq!(status, pair.status);
        prop_assert_eq!(finished.status, status);
        // The meter counts empty lines before the request line with the request.
        prop_assert_eq!(finished.bytes[REQUEST] as usize, request);
        prop_assert_eq!(finished.bytes[RESPONSE] as usize, response);
        prop_assert!(finished.outcome == Counter::RequestOk as u16);
    }
    prop_assert_eq!(wire.c.streams[REQUEST].seen as usize, requests.len());
    prop_assert_eq!(wire.c.streams[RESPONSE].seen as usize, responses.len());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_segmentation_yields_the_same_requests(
        pairs in vec(pair(), 1..6), depth in 1..6usize, request_cuts in cuts(), response_cuts in cuts(),
    ) {
        check(&pairs, depth, &request_cuts, &response_cuts)?;
    }

    #[test]
    fn any_bytes_end_without_panic_or_endless_loop(
        requests in vec(any::<u8>(), 0..2_000), responses in vec(any::<u8>(), 0..2_000), http in any::<bool>(), cuts in cuts(),
    ) {
        let mut wire = Wire::new(SOURCE);
        let requests = if http { [b"GET / HTTP/1.1\r\n".to_vec(), requests].concat() } else { requests };
        let responses = if http { [b"HTTP/1.1 200 OK\r\n".to_vec(), responses].concat() } else { responses };
        deliver(&mut wire, REQUEST, &requests, 0, requests.len(), &cuts);
        deliver(&mut wire, RESPONSE, &responses, 0, responses.len(), &cuts);
        wire.close();
        prop_assert!(wire.bed.turns <= 20 * (requests.len() + responses.len() + 100) as u64 * 3);
    }

    #[test]
    fn a_segment_that_comes_late_costs_no_request_or_is_counted(
        pairs in vec(pair(), 1..5), cuts in cuts(), late in any::<prop::sample::Index>(), ahead in 1..5usize,
        crowded in any::<bool>(),
    ) {
        let requests: Vec<u8> = pairs.iter().flat_map(|p| p.request.clone()).collect();
        let responses: Vec<u8> = pairs.iter().flat_map(|p| p.response.clone()).collect();
        let mut wire = Wire::new(DESTINATION);
        wire.bed.crowded = crowded;
        wire.deliver(REQUEST, &requests, 0, requests.len());
        let from = late.index(responses.len());
        let to = (from + cuts[0].0).min(responses.len());
        deliver(&mut wire, RESPONSE, &responses, 0, from, &cuts);
        let mut end = to;
        for &(length, ..) in cuts.iter().cycle().take(ahead) {
            let next = (end + length).min(responses.len());
            if next > end {
                wire.deliver(RESPONSE, &responses, end, next);
            }
            end = next;
        }
        wire.deliver(RESPONSE, &responses, from, to);
        deliver(&mut wire, RESPONSE, &responses, end, responses.len(), &cuts);
        wire.close();
        let losses = wire.bed.count_of(Counter::SyncGap);
        prop_assert!(losses <= u64::from(crowded));
        prop_assert!(wire.bed.places.is_empty());
        if losses == 0 {
            let codes: Vec<u16> = wire.bed.finished.iter().map(|f| f.status).collect();
            let expected: Vec<u16> = pairs.iter().map(|p| p.status).collect();
            prop_assert_eq!(codes, expected, "{:?}", wire.bed.counts);
            let bytes: u64 = wire.bed.finished.iter().map(|f| f.bytes[RESPONSE]).sum();
            prop_assert_eq!(bytes as usize, responses.len());
        } else {
            let counted = wire.bed.finished.len() as u64 + wire.bed.count_of(Counter::RequestLostSync);
            prop_assert_eq!(counted, pairs.len() as u64, "{:?}", wire.bed.counts);
        }
    }
}

#[track_caller]
fn requests(wire: &Wire) -> Vec<(u16, u64, u64, bool)> {
    wire.bed
        .finished
        .iter()
        .map(|f| (f.status, f.bytes[REQUEST], f.bytes[RESPONSE], f.outcome == Counter::RequestEndedEarly as u16))
        .collect()
}

const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn a_folded_header_is_one_header() {
    let request = b"POST / HTTP/1.1\r\nContent-Length:\r\n 5\r\n\r\nhello";
    let response = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip,\r\n\tchunked\r\n\r\n1\r\nx\r\n0\r\n\r\n";
    assert_eq!(requests(&exchange(request, response)), [(200, request.len() as u64, response.len() as u64, false)]);
}

#[test]
fn chunked_wins_over_content_length() {
    let response = b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n";
    let wire = exchange(&[GET, GET].concat(), &[&response[..], response].concat());
    assert_eq!(requests(&wire), [(200, GET.len() as u64, response.len() as u64, false); 2]);
}

#[test]
fn a_body_until_close_ends_with_the_fin() {
    let mut wire = exchange(GET, b"HTTP/1.0 200 OK\r\n\r\nsome bytes");
    assert!(wire.bed.finished.is_empty());
    wire.end(RESPONSE, false);
    wire.close();
    assert_eq!(requests(&wire), [(200, GET.len() as u64, 29, false)]);
}

#[test]
fn a_tunnel_is_one_request_until_the_close() {
    let request = b"GET /ws HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let response = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n";
    let mut wire = exchange(request, response);
    let both = [&request[..], b"client bytes"].concat();
    wire.deliver(REQUEST, &both, request.len(), both.len());
    let both = [&response[..], b"server"].concat();
    wire.deliver(RESPONSE, &both, response.len(), both.len());
    wire.end(RESPONSE, false);
    wire.close();
    assert_eq!(requests(&wire), [(101, request.len() as u64 + 12, response.len() as u64 + 6, false)]);
}

#[test]
fn a_refused_upgrade_leaves_http_going_on() {
    let upgrade = b"GET /ws HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let refused = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let mut wire = exchange(upgrade, refused);
    let both = [&upgrade[..], GET].concat();
    wire.deliver(REQUEST, &both, upgrade.len(), both.len());
    let both = [&refused[..], refused].concat();
    wire.deliver(RESPONSE, &both, refused.len(), both.len());
    let expected = |request: usize| (200, request as u64, refused.len() as u64, false);
    assert_eq!(requests(&wire), [expected(upgrade.len()), expected(GET.len())]);
}

#[test]
fn a_connect_tunnel_needs_a_2xx() {
    let connect = b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n";
    let mut wire = exchange(connect, b"HTTP/1.1 200 OK\r\n\r\ntunnelled");
    wire.close();
    assert_eq!(requests(&wire), [(200, connect.len() as u64, 28, false)]);
    let refused = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno";
    assert_eq!(requests(&exchange(connect, refused)), [(403, connect.len() as u64, refused.len() as u64, false)]);
}

#[test]
fn an_early_end_has_the_code_of_who_ended_it() {
    for (leg, ended_by, expected) in
        [(SOURCE, REQUEST, 0), (SOURCE, RESPONSE, 0), (DESTINATION, RESPONSE, 503), (DESTINATION, REQUEST, 0)]
    {
        let mut wire = Wire::new(leg);
        wire.deliver(REQUEST, GET, 0, GET.len());
        wire.end(ended_by, false);
        wire.close();
        assert_eq!(requests(&wire), [(expected, GET.len() as u64, 0, true)], "leg {leg} ended by {ended_by}");
    }
    let mut wire = exchange(GET, b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfive.");
    wire.end(RESPONSE, true);
    wire.close();
    assert_eq!(requests(&wire), [(200, GET.len() as u64, 44, true)]);
}

#[test]
fn an_answer_before_the_request_is_complete_counts_what_was_sent() {
    let request = b"POST / HTTP/1.1\r\nContent-Length: 6\r\n\r\nabcdef";
    let response = b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n";
    let mut wire = exchange(&request[..request.len() - 3], response);
    let expected = [(413, request.len() as u64 - 3, response.len() as u64, false)];
    assert_eq!(requests(&wire), expected);
    wire.deliver(REQUEST, request, request.len() - 3, request.len());
    wire.close();
    assert_eq!(requests(&wire), expected);
}

#[test]
fn segments_that_overtake_a_header_are_passed_over_once_it_came() {
    let response = [&b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n"[..], &[b'x'; 400]].concat();
    for order in [[1, 2, 0, 3], [2, 1, 0, 3], [3, 1, 0, 2], [1, 3, 2, 0], [3, 2, 1, 0]] {
        let mut wire = exchange(GET, b"");
        for part in order {
            wire.deliver(RESPONSE, &response, part * 110, ((part + 1) * 110).min(response.len()));
        }
        assert_eq!(requests(&wire), [(200, GET.len() as u64, 440, false)], "{order:?}: {:?}", wire.bed.counts);
    }
}

#[test]
fn what_is_not_http_is_tcp_from_its_first_byte() {
    for first in
        [&b"\x16\x03\x01hello"[..], b"hello world\n", b"GET\n", b"GETX / HTTP/1.1\r\n\r\n", b"get / HTTP/1.1\r\n\r\n"]
    {
        let mut wire = exchange(first, b"answer");
        wire.close();
        assert_eq!((wire.bed.opened, wire.bed.closed), (1, 1), "{first:?}");
        assert_eq!(wire.bed.bytes, [first.len() as u64, 6], "{first:?}");
    }
    let mut wire = Wire::new(SOURCE);
    wire.deliver(RESPONSE, b"220 mail\r\n", 0, 10);
    wire.deliver(REQUEST, b"GET / HTTP/1.1\r\n\r\n", 0, 18);
    wire.close();
    assert_eq!(wire.bed.bytes, [18, 10]);
}

#[test]
fn an_answer_that_nothing_was_asked_for_is_a_loss_and_no_tcp() {
    let response = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let mut wire = exchange(b"", response);
    assert_eq!((wire.c.protocol, wire.bed.count_of(Counter::SyncUnasked), wire.bed.opened), (HTTP1, 1, 0));
    // Once both are seen, they are counted.
    wire.deliver(REQUEST, GET, 0, GET.len());
    let both = [response, &response[..]].concat();
    wire.deliver(RESPONSE, &both, response.len(), both.len());
    assert_eq!(requests(&wire), [(200, GET.len() as u64, response.len() as u64, false)]);
}

#[test]
fn http2_is_recognised_and_counted_as_neither() {
    let mut wire = exchange(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0\0\0\x04\0\0\0\0\0");
    wire.close();
    assert_eq!(wire.bed.count_of(Counter::ConnectionHttp2), 1);
    assert_eq!((wire.bed.opened, wire.bed.bytes, wire.bed.finished.len()), (0, [0, 0], 0));
}

#[test]
fn a_large_body_costs_no_more_than_a_small_one() {
    let turns = |length: u64| {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").into_bytes();
        let mut wire = exchange(GET, &head);
        let before = wire.bed.turns;
        let mut left = length;
        let mut packets = 0;
        let body = vec![b'x'; 65_000];
        let mut seq = wire.base[RESPONSE].wrapping_add(head.len() as u32);
        while left > 0 {
            let part = left.min(65_000) as usize;
            wire.bed.packet = body[..part].to_vec();
            observer_ebpf::socket::payload(&mut wire.c, &mut wire.bed, RESPONSE, seq, 0, part as u32);
            seq = seq.wrapping_add(part as u32);
            left -= part as u64;
            packets += 1;
        }
        assert_eq!(requests(&wire), [(200, GET.len() as u64, head.len() as u64 + length, false)]);
        (wire.bed.turns - before) / packets
    };
    assert!(turns(1 << 30) <= turns(1_000));
}

#[test]
fn sync_is_found_again_at_the_next_request() {
    let mut wire = exchange(GET, b"HTTP/1.1 200 OK\r\nContent-Length: nine\r\n\r\n");
    assert_eq!(wire.bed.count_of(Counter::SyncMalformed), 1);
    assert_eq!(wire.bed.count_of(Counter::RequestLostSync), 1);
    let both = [GET, GET].concat();
    wire.deliver(REQUEST, &both, GET.len(), both.len());
    let answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
    let responses = [&b"HTTP/1.1 200 OK\r\nContent-Length: nine\r\n\r\n"[..], answer].concat();
    wire.deliver(RESPONSE, &responses, responses.len() - answer.len(), responses.len());
    assert_eq!(requests(&wire), [(404, GET.len() as u64, answer.len() as u64, false)]);
}
