//! The kernel's HTTP/1 reading against an independent parser: any stream of messages, cut, repeated and overlapped in
//! any way, yields the same requests.

mod fixture;

use fixture::{
    Wire,
    cuts::{Cuts, cuts, deliver},
    exchange,
};
use observer_common::{Direction, health::Counter};
use observer_proto::{
    ConnLeg, ConnProtocol,
    connection::flags::{DECLARED_HTTP, GATEWAY},
    http1,
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
        if field("transfer-encoding").is_some_and(|v| v.trim().eq_ignore_ascii_case("chunked")) {
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
                "Transfer-Encoding:\t Chunked  ",
                "TRANSFER-ENCODING:  chunked",
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
            let reply = if status == 204 { b"\r\n\r\n"[2..].to_vec() } else { reply };
            let cut = if status == 204 {
                2
            } else if bodiless {
                reply.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4
            } else {
                reply.len()
            };
            response.extend(&reply[..cut]);
            Pair { request, response, status }
        },
    )
}

fn check(pairs: &[Pair], depth: usize, request_cuts: &Cuts, response_cuts: &Cuts) -> Result<(), TestCaseError> {
    let requests: Vec<u8> = pairs.iter().flat_map(|p| p.request.clone()).collect();
    let responses: Vec<u8> = pairs.iter().flat_map(|p| p.response.clone()).collect();
    let mut wire = Wire::new(ConnLeg::DESTINATION);
    wire.c.flags |= DECLARED_HTTP;
    let (mut sent, mut answered) = (0, 0);
    for batch in pairs.chunks(depth) {
        let asked = sent + batch.iter().map(|p| p.request.len()).sum::<usize>();
        deliver(&mut wire, Direction::Request, &requests, sent, asked, request_cuts);
        sent = asked;
        let replied = answered + batch.iter().map(|p| p.response.len()).sum::<usize>();
        deliver(&mut wire, Direction::Response, &responses, answered, replied, response_cuts);
        answered = replied;
    }
    wire.end(Direction::Response, false);
    wire.close();
    prop_assert_eq!(wire.env.finished.len(), pairs.len(), "counts {:?}", wire.env.counts);
    for (pair, finished) in pairs.iter().zip(&wire.env.finished) {
        let (request, _) = oracle(&pair.request, None);
        let blank = pair.request.iter().take_while(|b| b"\r\n".contains(b)).count();
        let (response, status) = oracle(&pair.response, Some(&pair.request[blank..]));
        prop_assert_eq!(status, pair.status);
        prop_assert_eq!(finished.status, status);
        // The meter counts empty lines before the request line with the request.
        prop_assert_eq!(finished.bytes[Direction::Request] as usize, request);
        prop_assert_eq!(finished.bytes[Direction::Response] as usize, response);
        prop_assert!(finished.outcome == Counter::RequestOk as u16);
    }
    prop_assert_eq!(wire.c.flows[Direction::Request].seen_bytes as usize, requests.len());
    prop_assert_eq!(wire.c.flows[Direction::Response].seen_bytes as usize, responses.len());
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
        let mut wire = Wire::new(ConnLeg::SOURCE);
        let requests = if http { [b"GET / HTTP/1.1\r\n".to_vec(), requests].concat() } else { requests };
        let responses = if http { [b"HTTP/1.1 200 OK\r\n".to_vec(), responses].concat() } else { responses };
        deliver(&mut wire, Direction::Request, &requests, 0, requests.len(), &cuts);
        deliver(&mut wire, Direction::Response, &responses, 0, responses.len(), &cuts);
        wire.close();
        prop_assert!(wire.env.steps <= 20 * (requests.len() + responses.len() + 100) as u64 * 3);
    }

    #[test]
    fn a_segment_that_comes_late_costs_no_request_or_is_counted(
        pairs in vec(pair(), 1..5), cuts in cuts(), late in any::<prop::sample::Index>(), ahead in 1..5usize,
        crowded in any::<bool>(),
    ) {
        let requests: Vec<u8> = pairs.iter().flat_map(|p| p.request.clone()).collect();
        let responses: Vec<u8> = pairs.iter().flat_map(|p| p.response.clone()).collect();
        let mut wire = Wire::new(ConnLeg::DESTINATION);
        wire.c.flags |= DECLARED_HTTP;
        wire.env.no_buffers = crowded;
        wire.deliver(Direction::Request, &requests, 0, requests.len());
        let from = late.index(responses.len());
        let to = (from + cuts[0].0).min(responses.len());
        deliver(&mut wire, Direction::Response, &responses, 0, from, &cuts);
        let mut end = to;
        for &(length, ..) in cuts.iter().cycle().take(ahead) {
            let next = (end + length).min(responses.len());
            if next > end {
                wire.deliver(Direction::Response, &responses, end, next);
            }
            end = next;
        }
        wire.deliver(Direction::Response, &responses, from, to);
        deliver(&mut wire, Direction::Response, &responses, end, responses.len(), &cuts);
        wire.close();
        let losses = wire.env.count_of(Counter::DesyncGap);
        prop_assert!(losses <= u64::from(crowded));
        prop_assert!(wire.env.buffers.is_empty());
        if losses == 0 {
            let codes: Vec<u16> = wire.env.finished.iter().map(|f| f.status).collect();
            let expected: Vec<u16> = pairs.iter().map(|p| p.status).collect();
            prop_assert_eq!(codes, expected, "{:?}", wire.env.counts);
            let bytes: u64 = wire.env.finished.iter().map(|f| f.bytes[Direction::Response]).sum();
            prop_assert_eq!(bytes as usize, responses.len());
        } else {
            let counted = wire.env.finished.len() as u64 + wire.env.count_of(Counter::RequestDesync);
            prop_assert_eq!(counted, pairs.len() as u64, "{:?}", wire.env.counts);
        }
    }
}

#[track_caller]
fn requests(wire: &Wire) -> Vec<(u16, u64, u64, bool)> {
    wire.env
        .finished
        .iter()
        .map(|f| {
            (
                f.status,
                f.bytes[Direction::Request],
                f.bytes[Direction::Response],
                f.outcome == Counter::RequestEndedEarly as u16,
            )
        })
        .collect()
}

const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn a_folded_header_is_one_header() {
    let request = b"POST / HTTP/1.1\r\nContent-Length:\r\n 5\r\n\r\nhello";
    let response = b"HTTP/1.1 200 OK\r\nTransfer-Encoding:\r\n\tchunked\r\n\r\n1\r\nx\r\n0\r\n\r\n";
    assert_eq!(requests(&exchange(request, response)), [(200, request.len() as u64, response.len() as u64, false)]);
}

#[test]
fn a_body_until_close_ends_with_the_fin() {
    let mut wire = exchange(GET, b"HTTP/1.0 200 OK\r\n\r\nsome bytes");
    assert!(wire.env.finished.is_empty());
    wire.end(Direction::Response, false);
    wire.close();
    assert_eq!(requests(&wire), [(200, GET.len() as u64, 29, false)]);
}

#[test]
fn a_tunnel_is_one_request_until_the_close() {
    let request = b"GET /ws HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let response = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    let mut wire = exchange(request, response);
    let both = [&request[..], b"client bytes"].concat();
    wire.deliver(Direction::Request, &both, request.len(), both.len());
    let both = [&response[..], b"server"].concat();
    wire.deliver(Direction::Response, &both, response.len(), both.len());
    wire.end(Direction::Response, false);
    wire.close();
    assert_eq!(requests(&wire), [(101, request.len() as u64 + 12, response.len() as u64 + 6, false)]);
}

#[test]
fn a_refused_upgrade_leaves_http_going_on() {
    let upgrade = b"GET /ws HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let refused = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let mut wire = exchange(upgrade, refused);
    let both = [&upgrade[..], GET].concat();
    wire.deliver(Direction::Request, &both, upgrade.len(), both.len());
    let both = [&refused[..], refused].concat();
    wire.deliver(Direction::Response, &both, refused.len(), both.len());
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
    for (leg, ended_by, expected) in [
        (ConnLeg::SOURCE, Direction::Request, 0),
        (ConnLeg::SOURCE, Direction::Response, 0),
        (ConnLeg::DESTINATION, Direction::Response, 503),
        (ConnLeg::DESTINATION, Direction::Request, 0),
    ] {
        let mut wire = Wire::new(leg);
        wire.deliver(Direction::Request, GET, 0, GET.len());
        wire.end(ended_by, false);
        wire.close();
        assert_eq!(requests(&wire), [(expected, GET.len() as u64, 0, true)], "leg {leg:?} ended by {ended_by:?}");
    }
    let mut wire = exchange(GET, b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfive.");
    wire.end(Direction::Response, true);
    wire.close();
    assert_eq!(requests(&wire), [(200, GET.len() as u64, 44, true)]);
}

#[test]
fn an_answer_before_the_request_is_complete_waits_for_its_end() {
    let request = b"POST / HTTP/1.1\r\nContent-Length: 6\r\n\r\nabcdef";
    let response = b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n";
    let expected = |sent: usize| [(413, sent as u64, response.len() as u64, false)];
    // The application reads on: the whole body is the request's.
    let mut wire = exchange(&request[..request.len() - 3], response);
    assert_eq!(requests(&wire), []);
    wire.deliver(Direction::Request, request, request.len() - 3, request.len());
    assert_eq!(requests(&wire), expected(request.len()));
    let both = [&request[..], GET].concat();
    wire.deliver(Direction::Request, &both, request.len(), both.len());
    let both = [&response[..], response].concat();
    wire.deliver(Direction::Response, &both, response.len(), both.len());
    assert_eq!(requests(&wire).len(), 2);
    // The connection ends first: what was sent is.
    let mut wire = exchange(&request[..request.len() - 3], response);
    wire.end(Direction::Response, false);
    wire.close();
    assert_eq!(requests(&wire), expected(request.len() - 3));
    // At the source Envoy closes the connection where it has not read the whole.
    let response = b"HTTP/1.1 413 Too Large\r\nconnection: close\r\nContent-Length: 0\r\n\r\n";
    let mut wire = Wire::new(ConnLeg::SOURCE);
    wire.deliver(Direction::Request, request, 0, request.len() - 3);
    wire.deliver(Direction::Response, response, 0, response.len());
    wire.deliver(Direction::Request, request, request.len() - 3, request.len());
    wire.close();
    assert_eq!(requests(&wire), [(413, request.len() as u64 - 3, response.len() as u64, false)]);
}

#[test]
fn a_pipelined_request_begins_with_the_end_of_the_answer_before_it() {
    let response = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let mut wire = exchange(&[GET, GET, GET].concat(), b"");
    let responses = [&response[..], response, response].concat();
    for number in 0..3 {
        wire.env.clock += 1_000_000;
        wire.deliver(Direction::Response, &responses, number * response.len(), (number + 1) * response.len());
    }
    let durations: Vec<u64> = wire.env.finished.iter().map(|finished| finished.duration_ns / 1_000_000).collect();
    assert_eq!(durations, [1, 1, 1]);
}

#[test]
fn segments_that_overtake_a_header_are_passed_over_once_it_came() {
    let response = [&b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n"[..], &[b'x'; 400]].concat();
    for order in [[1, 2, 0, 3], [2, 1, 0, 3], [3, 1, 0, 2], [1, 3, 2, 0], [3, 2, 1, 0]] {
        let mut wire = exchange(GET, b"");
        for part in order {
            wire.deliver(Direction::Response, &response, part * 110, ((part + 1) * 110).min(response.len()));
        }
        assert_eq!(requests(&wire), [(200, GET.len() as u64, 440, false)], "{order:?}: {:?}", wire.env.counts);
    }
}

/// What Envoy's http_inspector takes for HTTP/1, and what for TCP.
const FIRST_LINES: [(&[u8], bool); 52] = [
    (b"GET / HTTP/1.1\r\n", true),
    (b"QUERY /s HTTP/1.1\r\n", true),
    (b"LIST / HTTP/1.1\r\n", true),
    (b"get / HTTP/1.1\r\n", true),
    (b"FOO-BAR / HTTP/1.1\r\n", true),
    (b"M-SEARCH * HTTP/1.1\r\n", true),
    (b"G!#$%&'*+-.^_`|~T / HTTP/1.1\r\n", true),
    (b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA / HTTP/1.1\r\n", true),
    (b"GET / HTTP/2.0\r\n", true),
    (b"GET / HTTP/1.2\r\n", true),
    (b"GET / HTTP/0.9\r\n", true),
    (b"GET / HTTP/1.0\r\n", true),
    (b"GET /\r\n", true),
    (b"GET /\n", true),
    (b"USER /x\n", true),
    (b"INFO http://x\n", true),
    (b"PRI * HTTP/1.1\r\n", true),
    (b"OPTIONS * HTTP/1.1\r\n", true),
    (b"GET http://b/x HTTP/1.1\r\n", true),
    (b"GET ftp://x HTTP/1.1\r\n", true),
    (b"CONNECT a:443 HTTP/1.1\r\n", true),
    (b"GET  /  HTTP/1.1\r\n", true),
    (b"GET\t/\tHTTP/1.1\r\n", true),
    (b"GET / \tHTTP/1.1\t\r\n", true),
    (b"GET / HTTP/1.1 \r\n", true),
    (b"GET / HTTP/1.1\n", true),
    (b"GET /?q=\"<>\\^`{|} HTTP/1.1\r\n", true),
    (b"\r\nGET / HTTP/1.1\r\n", false),
    (b"\nGET / HTTP/1.1\r\n", false),
    (b" GET / HTTP/1.1\r\n", false),
    (b"GET /a b HTTP/1.1\r\n", false),
    (b"GET / HTTP/1.1 x\r\n", false),
    (b"GET / HTTP/1.10\r\n", false),
    (b"GET / HTTP/11\r\n", false),
    (b"GET / http/1.1\r\n", false),
    (b"GET / HTTPS/1.1\r\n", false),
    (b"GET foo HTTP/1.1\r\n", false),
    (b"GET a:80 HTTP/1.1\r\n", false),
    (b"GET 1http://x HTTP/1.1\r\n", false),
    (b"GET ?x HTTP/1.1\r\n", false),
    (b"G(T / HTTP/1.1\r\n", false),
    (b"G@T / HTTP/1.1\r\n", false),
    (b"HELO\r\n", false),
    (b"STATUS\n", false),
    (b"EHLO mail.example now\r\n", false),
    (b"MAIL FROM:<a@b>\r\n", false),
    (b"SET a b\r\n", false),
    (b"OPTIONS rtsp://h/x RTSP/1.0\r\n", false),
    (b"OPTIONS sip:u@h SIP/2.0\r\n", false),
    (b"*1\r\n$4\r\nPING\r\n", false),
    (b"\x16\x03\x01\x00\x05hello", false),
    (b"\x01\x02\x03 what is this\r\n", false),
];

#[test]
fn the_first_line_decides_as_envoy_decides() {
    for (line, http) in FIRST_LINES {
        // Cut in two, the same must come out.
        for cut in [0, 1, 3, line.len() / 2, line.len() - 1] {
            if cut > 3 && line.starts_with(b"PRI ") {
                // As much of the preface is taken for the preface.
                continue;
            }
            let mut wire = Wire::new(ConnLeg::DESTINATION);
            if cut != 0 {
                wire.deliver(Direction::Request, line, 0, cut);
            }
            wire.deliver(Direction::Request, line, cut, line.len());
            let expected = if http { ConnProtocol::HTTP1 } else { ConnProtocol::TCP };
            assert_eq!(wire.c.protocol, expected, "\"{}\" cut at {cut}", line.escape_ascii());
            wire.close();
            if !http {
                assert_eq!((wire.env.opened, wire.env.closed), (1, 1), "{}", line.escape_ascii());
                assert_eq!(wire.env.bytes, [line.len() as u64, 0]);
            }
        }
    }
}

#[test]
fn a_long_first_line_is_judged_by_its_head() {
    let long = [b"GET /".as_slice(), &[b'a'; 9_000], b" HTTP/1.1\r\nHost: a\r\n\r\n"].concat();
    let response = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let mut wire = Wire::new(ConnLeg::DESTINATION);
    for from in (0..long.len()).step_by(1_000) {
        wire.deliver(Direction::Request, &long, from, (from + 1_000).min(long.len()));
    }
    wire.deliver(Direction::Response, response, 0, response.len());
    assert_eq!(requests(&wire), [(200, long.len() as u64, response.len() as u64, false)]);
}

#[test]
fn where_the_client_leaves_it_open_the_server_decides() {
    // Nothing decides: TCP, as soon as somebody says anything else, or in the end.
    for first in [&b"G"[..], b"DELETE ", b"GET / HTTP/1.1", b"hello"] {
        let mut wire = Wire::new(ConnLeg::SOURCE);
        wire.deliver(Direction::Request, first, 0, first.len());
        wire.close();
        assert_eq!((wire.env.opened, wire.env.closed), (1, 1), "{}", first.escape_ascii());
        assert_eq!((wire.env.bytes, wire.env.finished.len()), ([first.len() as u64, 0], 0));
        let mut wire = exchange(first, b"answer");
        assert_eq!(
            (wire.c.protocol, wire.env.bytes[Direction::Response]),
            (ConnProtocol::TCP, 6),
            "{}",
            first.escape_ascii()
        );
        wire.close();
        assert_eq!((wire.env.opened, wire.env.closed, wire.env.bytes), (1, 1, [first.len() as u64, 6]));
    }
    let mut wire = Wire::new(ConnLeg::SOURCE);
    wire.deliver(Direction::Response, b"220 mail\r\n", 0, 10);
    wire.deliver(Direction::Request, b"GET / HTTP/1.1\r\n\r\n", 0, 18);
    wire.close();
    assert_eq!(wire.env.bytes, [18, 10]);
    // A request line, but the answer is none: so was the port.
    let mut wire = Wire::new(ConnLeg::SOURCE);
    wire.deliver(Direction::Request, GET, 0, GET.len());
    wire.deliver(Direction::Response, b"ICY 200 OK\r\n\r\n", 0, 14);
    wire.close();
    assert_eq!((wire.env.opened, wire.env.closed, wire.env.bytes), (1, 1, [GET.len() as u64, 14]));
    assert_eq!(requests(&wire), []);
}

/// Envoy's own answer to what it could not read.
const REFUSAL: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 11\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\nBad Request";

#[test]
fn a_malformed_request_ends_with_the_answer_that_refuses_it() {
    for request in [
        &b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello"[..],
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5, 5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0x5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5.0\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: \r\n\r\nhello",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length : 5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n 0\r\n\r\nhelloworld",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999999999999\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: \r\n\r\nhello",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding : chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked;q=1\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n\r\nhello\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\nhello\n0\n\n",
        b"LIST / HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nx y: z\r\n\r\n",
    ] {
        for declared in [0, DECLARED_HTTP] {
            let mut wire = Wire::new(ConnLeg::SOURCE);
            wire.c.flags |= declared;
            wire.deliver(Direction::Request, request, 0, request.len());
            wire.deliver(Direction::Response, REFUSAL, 0, REFUSAL.len());
            // What comes behind it nobody reads.
            let more = [request, GET].concat();
            wire.deliver(Direction::Request, &more, request.len(), more.len());
            wire.close();
            let expected = [(400, request.len() as u64, REFUSAL.len() as u64, false)];
            assert_eq!(requests(&wire), expected, "{}: {:?}", request.escape_ascii(), wire.env.counts);
            assert_eq!(wire.env.count_of(Counter::DesyncMalformed), 0);
        }
    }
}

#[test]
fn what_is_no_request_line_is_one_where_the_answer_says_so() {
    for (first, declared) in [
        (&b"hello world\r\n\r\n"[..], true),
        (b"\x16\x03\x01\x00\x05hello", true),
        (b"\x01\x02\x03 what\r\n\r\n", true),
        (b"GET / http/1.1\r\nhost: a\r\n\r\n", true),
        (b"\r\n\r\n\x01\r\n", true),
        (b"hello world\r\n\r\n", false),
        (b"\x01\x02\x03 what\r\n\r\n", false),
    ] {
        let mut wire = Wire::new(ConnLeg::SOURCE);
        if declared {
            wire.c.flags |= DECLARED_HTTP;
        }
        wire.deliver(Direction::Request, first, 0, first.len());
        wire.deliver(Direction::Response, REFUSAL, 0, REFUSAL.len());
        wire.close();
        let expected = [(400, first.len() as u64, REFUSAL.len() as u64, false)];
        assert_eq!(requests(&wire), expected, "{}: {:?}", first.escape_ascii(), wire.env.counts);
    }
    // Another's refusal is TCP.
    let other = b"HTTP/1.1 400 Bad Request\r\nServer: nginx\r\nConnection: close\r\n\r\n";
    let mut wire = Wire::new(ConnLeg::SOURCE);
    wire.deliver(Direction::Request, b"hello world\r\n\r\n", 0, 15);
    wire.deliver(Direction::Response, other, 0, other.len());
    wire.close();
    assert_eq!((wire.env.opened, wire.env.bytes), (1, [15, other.len() as u64]));
}

#[test]
fn a_malformed_answer_is_a_bad_gateway_with_all_its_bytes() {
    for (answer, code) in ANSWERS {
        let mut wire = exchange(GET, answer);
        wire.end(Direction::Response, false);
        wire.close();
        let early = requests(&wire).first().is_some_and(|request| request.3);
        let expected = [(*code, GET.len() as u64, answer.len() as u64, early)];
        assert_eq!(requests(&wire), expected, "{}: {:?}", answer.escape_ascii(), wire.env.counts);
        // The next one is read as if nothing had been.
        let mut wire = exchange(GET, answer);
        if wire.env.finished.len() == 1 {
            let ok = b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n";
            let (asked, answered) = ([GET, GET].concat(), [answer, ok.as_slice()].concat());
            wire.deliver(Direction::Request, &asked, GET.len(), asked.len());
            wire.deliver(Direction::Response, &answered, answer.len(), answered.len());
            let expected = (201, GET.len() as u64, ok.len() as u64, false);
            assert_eq!(requests(&wire).last(), Some(&expected), "{}: {:?}", answer.escape_ascii(), wire.env.counts);
        }
    }
}

/// Answers of an application, and the code that Envoy's log has.
const ANSWERS: &[(&[u8], u16)] = &[
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 502),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nhello", 502),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 502),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: identity\r\n\r\nhello", 502),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: \r\n\r\nhello", 502),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n0\r\n\r\n", 200),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n", 502),
    (b"HTTP/1.1 204 No\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 502),
    (b"HTTP/1.1 204 No\r\ncontent-length: 5\r\n\r\nhello", 502),
    (b"HTTP/1.1 204 No\r\ncontent-length: 0\r\n\r\n", 204),
    (b"HTTP/1.1 304 No\r\ncontent-length: 5\r\n\r\nhello", 304),
    (b"HTTP/1.1 304 No\r\ntransfer-encoding: chunked\r\n\r\n", 304),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello", 502),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\n\r\nhello", 502),
    (b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\nhello", 502),
    (b"HTTP/1.1 200 OK\r\ncontent-length: nine\r\n\r\n", 502),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 5 \r\n\r\nhello", 200),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 00000000000000000000000005\r\n\r\nhello", 200),
    (b"HTTP/1.1 200 OK\r\ncontent-length : 5\r\n\r\nhello", 502),
    (b"ICY 200 OK\r\nx: y\r\n\r\nhello", 502),
    (b"HTTP/2.0 200 OK\r\ncontent-length: 5\r\n\r\nhello", 200),
    (b"HTTP/1.2 200 OK\r\ncontent-length: 5\r\n\r\nhello", 200),
    (b"http/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", 502),
    (b"HTTP/1.10 200 OK\r\ncontent-length: 5\r\n\r\nhello", 502),
    (b"HTTP 200 OK\r\ncontent-length: 5\r\n\r\nhello", 502),
    (b"HTTP/1.1 20 OK\r\ncontent-length: 5\r\n\r\nhello", 502),
    (b"HTTP/1.1 099 OK\r\ncontent-length: 5\r\n\r\nhello", 502),
    (b"HTTP/1.1 2x0 OK\r\ncontent-length: 5\r\n\r\nhello", 502),
    (b"HTTP/1.1 200OK\r\ncontent-length: 5\r\n\r\nhello", 502),
    (b"HTTP/1.1 200\r\ncontent-length: 5\r\n\r\nhello", 200),
    (b"HTTP/1.1  200  OK\r\ncontent-length: 5\r\n\r\nhello", 200),
    (b"HTTP/1.1\t200\tOK\r\ncontent-length: 5\r\n\r\nhello", 200),
    (b"HTTP/1.1 999 Odd\r\ncontent-length: 5\r\n\r\nhello", 999),
    (b"\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", 502),
    (b" HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", 502),
    (b"\x15\x03\x03\x00\x02\x02\x28", 502),
    (b"hello", 502),
    (b"Hello\r\n\r\n", 502),
    (b"{\"a\":1}", 502),
    (b"\0\0\0\x04\0\0\0\0\0", 502),
    (b"HTTP/1.1 101 S\r\n\r\n", 101),
    (b"HTTP/1.1 101 S\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n", 101),
    (b"HTTP/1.1 101 S\r\ncontent-length: 3\r\n\r\nabc", 502),
    (b"HTTP/1.1 100 C\r\ncontent-length: 3\r\n\r\n", 502),
    (b"HTTP/1.1 100 C\r\ncontent-length: 0\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 200),
    // Surplus bytes.
    (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello world", 200),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nhello", 200),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", 200),
    // Cut off.
    (b"", 503),
    (b"H", 502),
    (b"HTTP/1.1 200 OK\r\n", 502),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n", 502),
    (b"HTTP/1.1 204 No\r\n", 502),
    (b"HTTP/1.1 100 C\r\n\r\n", 503),
    (b"HTTP/1.1 100 C\r\n\r\nHTTP/1.1 2", 502),
    (b"HTTP/1.1 103 C\r\n\r\nHTTP/1.1 200 OK\r\nx: y", 502),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel", 200),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5", 200),
    // Chunks.
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0000000000000005\r\nhello\r\n0\r\n\r\n", 200),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n00000000000000000000000000005\r\nhello\r\n0\r\n\r\n", 200),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5 ;a\r\nhello\r\n00\r\nx: y\r\n z\r\n\r\n", 200),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n", 200),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel\r\n0\r\n\r\n", 200),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\nhello", 200),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n7FFFFFFFFFFFFFFF\r\nhello", 200),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5,\r\nhello\r\n0\r\n\r\n", 200),
];

#[test]
fn a_request_that_closes_is_the_last_one() {
    let response = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    for (head, last) in [
        ("HTTP/1.1\r\nconnection: close\r\n", true),
        ("HTTP/1.1\r\nConnection: Close\r\n", true),
        ("HTTP/1.1\r\nconnection: keep-alive, close\r\n", true),
        ("HTTP/1.1\r\nconnection: close\r\nconnection: keep-alive\r\n", true),
        ("HTTP/1.1\r\nconnection: foo,bar , close\r\n", true),
        ("HTTP/1.0\r\n", true),
        ("HTTP/1.1\r\nconnection: closed\r\n", false),
        ("HTTP/1.1\r\nconnection: upgrade\r\n", false),
        ("HTTP/1.0\r\nconnection: keep-alive\r\n", false),
        ("HTTP/1.0\r\nconnection: Keep-Alive, Upgrade\r\n", false),
    ] {
        let first = format!("GET / {head}host: a\r\n\r\n");
        let both = [first.as_bytes(), GET].concat();
        let mut wire = Wire::new(ConnLeg::SOURCE);
        wire.deliver(Direction::Request, &both, 0, both.len());
        wire.deliver(Direction::Response, response, 0, response.len());
        wire.close();
        assert_eq!(requests(&wire), [(200, both.len() as u64, response.len() as u64, false)], "{head:?}");
        assert_eq!(wire.env.count_of(Counter::RequestAbandoned), u64::from(!last), "{head:?}");
    }
}

#[test]
fn only_a_true_upgrade_opens_a_tunnel() {
    let response = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    for (head, tunnel) in [
        ("upgrade: h2c\r\n", false),
        ("connection: upgrade\r\nupgrade: h2c\r\n", false),
        ("connection: upgrade\r\nupgrade: H2C \r\n", false),
        ("upgrade: websocket\r\n", false),
        ("connection: upgrade\r\n", false),
        ("connection: xupgrade\r\nupgrade: websocket\r\n", false),
        ("connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n", true),
        ("connection: upgrade\r\nupgrade: h2c, websocket\r\n", true),
        ("connection: upgrade\r\nupgrade: TLS/1.2\r\n", true),
    ] {
        let first = format!("GET / HTTP/1.1\r\nhost: a\r\n{head}\r\n");
        let both = [first.as_bytes(), GET].concat();
        let mut wire = exchange(&both, &[&response[..], response].concat());
        wire.end(Direction::Response, false);
        wire.close();
        let (all, size) = (both.len() as u64, response.len() as u64);
        if tunnel {
            assert_eq!(requests(&wire), [(200, all, 2 * size, false)], "{head:?}");
        } else {
            let expected = [(200, first.len() as u64, size, false), (200, GET.len() as u64, size, false)];
            assert_eq!(requests(&wire), expected, "{head:?}");
        }
    }
}

#[test]
fn a_client_that_leaves_after_an_interim_answer_has_its_code() {
    let interim = b"HTTP/1.1 103 Early Hints\r\n\r\n";
    let mut wire = Wire::new(ConnLeg::SOURCE);
    wire.deliver(Direction::Request, GET, 0, GET.len());
    wire.deliver(Direction::Response, interim, 0, interim.len());
    wire.end(Direction::Request, false);
    wire.close();
    assert_eq!(requests(&wire), [(103, GET.len() as u64, interim.len() as u64, true)]);
}

#[test]
fn an_empty_line_begins_a_request() {
    let mut wire = Wire::new(ConnLeg::SOURCE);
    let response = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    wire.deliver(Direction::Request, GET, 0, GET.len());
    wire.deliver(Direction::Response, response, 0, response.len());
    let more = [GET, b"\r\n"].concat();
    wire.deliver(Direction::Request, &more, GET.len(), more.len());
    wire.end(Direction::Request, false);
    wire.close();
    assert_eq!(requests(&wire), [(200, GET.len() as u64, response.len() as u64, false), (0, 2, 0, true)]);
}

#[test]
fn a_proxy_protocol_header_is_of_no_request() {
    let v1 = [
        "PROXY TCP4 192.0.2.7 198.18.0.14 40000 80\r\n",
        "PROXY TCP6 2001:db8::1 2001:db8::2 65535 65535\r\n",
        "PROXY UNKNOWN\r\n",
        "PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n",
    ]
    .map(|line| line.as_bytes().to_vec());
    let v2 = |command: u8, family: u8, rest: &[u8]| {
        let length = (rest.len() as u16).to_be_bytes();
        [b"\r\n\r\n\0\r\nQUIT\n".as_slice(), &[0x20 | command, family], &length, rest].concat()
    };
    let v2 = [
        v2(1, 0x11, &[10; 12]),
        v2(1, 0x21, &[10; 36]),
        v2(1, 0x31, &[10; 216]),
        v2(0, 0, &[]),
        v2(0, 0, &[10; 40]),
        v2(1, 0x11, &[&[10; 12][..], &[3, 0, 4, 1, 2, 3, 4], &[10; 600]].concat()),
    ];
    let response = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    for header in v1.iter().chain(&v2) {
        let all = [header.as_slice(), GET].concat();
        for cut in 0..all.len() {
            let mut wire = Wire::new(ConnLeg::SOURCE);
            wire.c.flags |= GATEWAY;
            if cut != 0 {
                wire.deliver(Direction::Request, &all, 0, cut);
            }
            wire.deliver(Direction::Request, &all, cut, all.len());
            wire.deliver(Direction::Response, response, 0, response.len());
            let expected = [(200, GET.len() as u64, response.len() as u64, false)];
            assert_eq!(requests(&wire), expected, "{} cut at {cut}: {:?}", header.escape_ascii(), wire.env.counts);
        }
        // What begins as one, elsewhere and here.
        let mut wire = Wire::new(ConnLeg::SOURCE);
        wire.c.flags |= GATEWAY;
        let all = [header.as_slice(), b"\x16\x03\x01\x02\0\x01"].concat();
        wire.deliver(Direction::Request, &all, 0, all.len());
        assert_eq!(wire.env.count_of(Counter::ConnectionEncrypted), 1, "{}", header.escape_ascii());
    }
    let mut wire = Wire::new(ConnLeg::SOURCE);
    wire.c.flags |= GATEWAY;
    let patch = b"PROXY / HTTP/1.1\r\nhost: a\r\n\r\n";
    wire.deliver(Direction::Request, &patch[..3], 0, 3);
    assert_eq!(wire.c.tail, 0);
}

#[test]
fn grpc_over_http1_is_grpc() {
    use observer_common::{GRPC_NONE, Protocol};
    let call = |kind: &str| {
        format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-type: {kind}\r\ncontent-length: 5\r\n\r\n\0\0\0\0\0")
    };
    let head = |status: &str| format!("HTTP/1.1 200 OK\r\nGrpc-Status: {status}\r\ncontent-length: 0\r\n\r\n");
    let trailer = |status: &str| {
        format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\ngrpc-status:{status}\r\nx: y\r\n\r\n")
    };
    for (kind, grpc) in [
        ("application/grpc", true),
        ("application/grpc+proto", true),
        ("application/grpc ", true),
        ("application/grpc-web", false),
        ("application/grpcx", false),
        ("text/plain", false),
        ("application/json; x=application/grpc", false),
    ] {
        for (answer, status) in [
            (head("5"), 5),
            (head("05"), 5),
            (head(" 0 "), 0),
            (head("9999"), 9999),
            (head("40103"), 40103),
            (trailer("7"), 7),
            (trailer(" 16"), 16),
            ("HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n".to_owned(), GRPC_NONE),
        ] {
            let wire = exchange(call(kind).as_bytes(), answer.as_bytes());
            let [finished] = wire.env.finished[..] else { panic!("{kind} {answer}: {:?}", wire.env.counts) };
            let protocol = if grpc { Protocol::GRPC } else { Protocol::HTTP };
            let status = if grpc { status } else { GRPC_NONE };
            assert_eq!((finished.protocol, finished.grpc_status), (protocol, status), "{kind}: {answer}");
        }
    }
    // An application that breaks the protocol, or leaves.
    for answer in [&b"ICY\r\n\r\n"[..], b""] {
        let mut wire = exchange(call("application/grpc").as_bytes(), answer);
        wire.end(Direction::Response, false);
        wire.close();
        let finished = wire.env.finished[0];
        assert_eq!((finished.status, finished.grpc_status), (200, 14), "{}", answer.escape_ascii());
    }
}

#[test]
fn an_answer_that_nothing_was_asked_for_is_a_loss_and_no_tcp() {
    let response = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let mut wire = exchange(b"", response);
    assert_eq!(
        (wire.c.protocol, wire.env.count_of(Counter::DesyncUnexpected), wire.env.opened),
        (ConnProtocol::HTTP1, 1, 0)
    );
    // Once both are seen, they are counted.
    wire.deliver(Direction::Request, GET, 0, GET.len());
    let both = [response, &response[..]].concat();
    wire.deliver(Direction::Response, &both, response.len(), both.len());
    assert_eq!(requests(&wire), [(200, GET.len() as u64, response.len() as u64, false)]);
}

#[test]
fn http2_is_recognised_and_counted_as_neither() {
    let mut wire = exchange(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0\0\0\x04\0\0\0\0\0");
    wire.close();
    assert_eq!(wire.env.count_of(Counter::ConnectionHttp2), 1);
    assert_eq!((wire.env.opened, wire.env.bytes, wire.env.finished.len()), (0, [0, 0], 0));
}

#[test]
fn a_large_body_costs_no_more_than_a_small_one() {
    let steps = |length: u64| {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").into_bytes();
        let mut wire = exchange(GET, &head);
        let before = wire.env.steps;
        let mut left = length;
        let mut packets = 0;
        let body = vec![b'x'; 65_000];
        let mut seq = wire.base[Direction::Response].wrapping_add(head.len() as u32);
        while left > 0 {
            let part = left.min(65_000) as usize;
            wire.env.packet = body[..part].to_vec();
            http1::on_payload(&mut wire.c, &mut wire.env, Direction::Response, seq, 0, part as u32);
            seq = seq.wrapping_add(part as u32);
            left -= part as u64;
            packets += 1;
        }
        assert_eq!(requests(&wire), [(200, GET.len() as u64, head.len() as u64 + length, false)]);
        (wire.env.steps - before) / packets
    };
    assert!(steps(1 << 30) <= steps(1_000));
}

#[test]
fn sync_is_found_again_at_the_next_request() {
    let mut wire = Wire::new(ConnLeg::SOURCE);
    let odd = b"HTTP/1.1 200 OK\r\nContent-Length: nine\r\n\r\n";
    wire.c.flags |= DECLARED_HTTP;
    wire.deliver(Direction::Request, GET, 0, GET.len());
    wire.deliver(Direction::Response, odd, 0, odd.len());
    assert_eq!(wire.env.count_of(Counter::DesyncMalformed), 1);
    assert_eq!(wire.env.count_of(Counter::RequestDesync), 1);
    let both = [GET, GET].concat();
    wire.deliver(Direction::Request, &both, GET.len(), both.len());
    let answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
    let responses = [odd, &answer[..]].concat();
    wire.deliver(Direction::Response, &responses, odd.len(), responses.len());
    assert_eq!(requests(&wire), [(404, GET.len() as u64, answer.len() as u64, false)]);
}
