//! Requests that ordinary clients do not send.

use std::{thread::sleep, time::Duration};

use anyhow::{Result, ensure};
use harness::{
    apps::{
        frames::{
            Block, HEADER_TABLE_SIZE, Peer, data, flag, frame, headers, headers_in_pieces, kind, padded, settings,
        },
        raw::Connection,
    },
    pair::{Expected, Pair, without_durations},
};

use super::{BOTH, application, nghttpd, talks};

/// Setting: extended CONNECT (`:protocol`).
const ENABLE_CONNECT_PROTOCOL: u16 = 8;
const MILLISECOND: Duration = Duration::from_millis(1);

fn get() -> Block {
    Block::request("GET", "/small")
}

fn post() -> Block {
    Block::request("POST", "/small")
}

pub(super) fn padded_requests(pair: &mut Pair) -> Result<String> {
    let _server = nghttpd(pair, &[])?;
    talks(pair, 3, |peer| {
        for (stream, padding) in [(1, 0), (3, 1), (5, 255)] {
            let head = padded(post().bytes(), padding);
            peer.send(frame(kind::HEADERS, flag::END_HEADERS | flag::PADDED, stream, head))?;
            peer.send(data(stream, flag::PADDED, padded("body", padding)))?;
            peer.send(data(stream, flag::PADDED | flag::END_STREAM, padded("", padding)))?;
            peer.ended(stream)?;
        }
        Ok(())
    })
}

pub(super) fn requests_with_priority(pair: &mut Pair) -> Result<String> {
    let _server = nghttpd(pair, &[])?;
    talks(pair, 2, |peer| {
        let dependency = [0, 0, 0, 0, 15];
        let flags = flag::END_HEADERS | flag::END_STREAM | flag::PRIORITY;
        peer.send(frame(kind::HEADERS, flags, 1, [&dependency, get().bytes()].concat()))?;
        peer.ended(1)?;
        let both = padded([&dependency, get().bytes()].concat(), 9);
        peer.send(frame(kind::HEADERS, flags | flag::PADDED, 3, both))?;
        peer.ended(3)?;
        Ok(())
    })
}

pub(super) fn headers_in_many_frames(pair: &mut Pair) -> Result<String> {
    let _server = nghttpd(pair, &[])?;
    talks(pair, 3, |peer| {
        // The second piece of the first request is empty.
        let whole = get();
        peer.send(
            [
                frame(kind::HEADERS, flag::END_STREAM, 1, &whole.bytes()[..7]),
                frame(kind::CONTINUATION, 0, 1, ""),
                frame(kind::CONTINUATION, flag::END_HEADERS, 1, &whole.bytes()[7..]),
            ]
            .concat(),
        )?;
        peer.ended(1)?;
        peer.send(headers_in_pieces(3, flag::END_STREAM, &whole, 8))?;
        peer.ended(3)?;
        // One piece per segment.
        let pieces = headers_in_pieces(5, flag::END_STREAM, &whole, 6);
        peer.connection.send_pieces(pieces.chunks(15), 5 * MILLISECOND)?;
        peer.ended(5)?;
        Ok(())
    })
}

pub(super) fn headers_larger_than_a_frame(pair: &mut Pair) -> Result<String> {
    let _server = nghttpd(pair, &[])?;
    talks(pair, 2, |peer| {
        for stream in [1, 3] {
            let block = (0..40).fold(get(), |block, n| block.literal(&format!("x-filler-{n}"), &"y".repeat(500)));
            peer.send(headers_in_pieces(stream, flag::END_STREAM, &block, 16_000))?;
            peer.ended(stream)?;
        }
        Ok(())
    })
}

/// Envoy needs the preface in one piece; everything after it may arrive in any pieces.
pub(super) fn requests_split_at_every_byte(pair: &mut Pair) -> Result<String> {
    let _server = nghttpd(pair, &[])?;
    let request = |stream| [headers(stream, 0, &post()), data(stream, flag::END_STREAM, "hello")].concat();
    let length = request(1).len();
    talks(pair, length, |peer| {
        let mut stream = 1;
        for at in 1..length {
            let bytes = request(stream);
            peer.connection.send_pieces([&bytes[..at], &bytes[at..]], 2 * MILLISECOND)?;
            peer.ended(stream)?;
            stream += 2;
        }
        peer.connection.send_pieces(request(stream).chunks(1), MILLISECOND)?;
        peer.ended(stream)?;
        Ok(())
    })
}

pub(super) fn requests_in_one_segment(pair: &mut Pair) -> Result<String> {
    let _server = nghttpd(pair, &[])?;
    talks(pair, 40, |peer| {
        let streams = (0..40).map(|number| 2 * number + 1);
        let heads = streams.clone().map(|stream| headers(stream, 0, &post()));
        let bodies = streams.clone().rev().map(|stream| data(stream, flag::END_STREAM, "interleaved"));
        peer.send(heads.chain(bodies).collect::<Vec<_>>().concat())?;
        for stream in streams {
            peer.ended(stream)?;
        }
        Ok(())
    })
}

pub(super) fn empty_data_ends_a_request(pair: &mut Pair) -> Result<String> {
    let _server = nghttpd(pair, &[])?;
    talks(pair, 2, |peer| {
        peer.send([headers(1, 0, &get()), data(1, flag::END_STREAM, "")].concat())?;
        peer.ended(1)?;
        peer.send([headers(3, 0, &post()), data(3, 0, ""), data(3, 0, "x")].concat())?;
        sleep(20 * MILLISECOND);
        peer.send(data(3, flag::END_STREAM, ""))?;
        peer.ended(3)?;
        Ok(())
    })
}

pub(super) fn request_trailers(pair: &mut Pair) -> Result<String> {
    let _server = nghttpd(pair, &[])?;
    talks(pair, 3, |peer| {
        for stream in [1, 3, 5] {
            // Twice by value, then by the entries of the first two.
            let trailers = match stream {
                5 => Block::default().indexed(62),
                _ => Block::default().remembered("x-sum", "0"),
            };
            peer.send([headers(stream, 0, &post()), data(stream, 0, "body")].concat())?;
            peer.send(headers(stream, flag::END_STREAM, &trailers))?;
            peer.ended(stream)?;
        }
        Ok(())
    })
}

pub(super) fn never_indexed_fields(pair: &mut Pair) -> Result<String> {
    let _server = nghttpd(pair, &[])?;
    talks(pair, 2, |peer| {
        for stream in [1, 3] {
            let block = get().never_indexed("authorization", "secret").never_indexed("x-token", &"s".repeat(300));
            peer.send(headers(stream, flag::END_STREAM, &block))?;
            peer.ended(stream)?;
        }
        Ok(())
    })
}

/// The client's encoder sets its table's size to 0, and back.
pub(super) fn request_table_sizes(pair: &mut Pair) -> Result<String> {
    let _server = nghttpd(pair, &[])?;
    talks(pair, 4, |peer| {
        let remembered = |block: Block| block.remembered("content-type", "application/octet-stream");
        let pseudo = |block: Block| block.indexed(3).indexed(6).named(4, "/small").named(1, "http2");
        let start = Block::default;
        for (stream, block) in [
            (1, remembered(pseudo(start()))),
            (3, pseudo(start()).indexed(62)),
            (5, remembered(pseudo(start().table_size(0).table_size(4096)))),
            (7, pseudo(start().table_size(100)).indexed(62)),
        ] {
            peer.send(headers(stream, flag::END_STREAM, &block))?;
            let state = peer.ended(stream)?;
            ensure!(state.ended, "stream {stream}: {state:?}");
        }
        Ok(())
    })
}

/// The client announces other table sizes to the proxy's encoder, before and between its requests.
pub(super) fn response_table_sizes(pair: &mut Pair) -> Result<String> {
    let _server = application(pair, &[], |peer| {
        for number in 0.. {
            let stream = peer.request()?;
            let block = Block::status(200 + number % 150).literal("x-number", &number.to_string());
            peer.send(headers(stream, flag::END_STREAM, &block))?;
        }
        Ok(())
    })?;
    pair.check(Expected::both(2 * 4 * 160), |pair| {
        for (family, first) in BOTH.iter().flat_map(|family| [0, 8192].map(|first| (family, first))) {
            let mut connection = Connection::open(&pair.client, pair.http2.address(*family))?;
            let mut peer = Peer::client(&mut connection, &[(HEADER_TABLE_SIZE, first)])?;
            for stream in (0..320).map(|number| 2 * number + 1) {
                if stream == 321 {
                    peer.send([settings(&[(HEADER_TABLE_SIZE, 0)]), settings(&[(HEADER_TABLE_SIZE, 4096)])].concat())?;
                }
                peer.send(headers(stream, flag::END_STREAM, &get()))?;
                peer.ended(stream)?;
            }
        }
        Ok(())
    })?;
    Ok("150 statuses on each of four connections".to_owned())
}

/// PING, PRIORITY, SETTINGS, WINDOW_UPDATE and an unknown type, alone, inside a request, and beside one; some of
/// them also for the request's own stream.
pub(super) fn frames_that_are_no_requests(pair: &mut Pair) -> Result<String> {
    let _server = nghttpd(pair, &[])?;
    talks(pair, 2, |peer| {
        let others = [
            frame(kind::PING, 0, 0, [7; 8]),
            frame(kind::PRIORITY, 0, 9, [0, 0, 0, 0, 3]),
            settings(&[]),
            frame(kind::WINDOW_UPDATE, 0, 0, 1000_u32.to_be_bytes()),
            frame(0x5e, 0xff, 0, [9; 300]),
        ]
        .concat();
        peer.send(&others)?;
        for stream in [1, 3] {
            peer.send(
                [&headers(stream, 0, &post()), others.as_slice(), &data(stream, flag::END_STREAM, "x")].concat(),
            )?;
            peer.send(&others)?;
            peer.ended(stream)?;
        }
        Ok(())
    })
}

/// Istio recognises gRPC by `application/grpc`, also with a suffix after `+`.
pub(super) fn content_types(pair: &mut Pair) -> Result<String> {
    let _server = application(pair, &[], |peer| {
        loop {
            let stream = peer.request()?;
            let head = Block::status(200).named(31, "application/grpc");
            let trailers = Block::default().literal("grpc-status", "5");
            peer.send([headers(stream, 0, &head), headers(stream, flag::END_STREAM, &trailers)].concat())?;
        }
    })?;
    talks(pair, 12, |peer| {
        let types = [
            "application/grpc",
            "application/grpc+proto",
            "application/grpc-web",
            "application/grpc-web+proto",
            "application/grpcx",
            "text/plain",
        ];
        // Each by value and put into the table, then by what is in the table.
        for (number, name) in (0..).zip(types.iter().chain(types.iter().rev())) {
            let stream = 2 * number + 1;
            let block = match number {
                0..6 => post().named_and_remembered(31, name),
                repeated => post().indexed(62 + repeated - 6),
            };
            peer.send(headers(u32::try_from(stream)?, flag::END_STREAM, &block))?;
            peer.ended(u32::try_from(stream)?)?;
        }
        Ok(())
    })
}

/// A tunnel: its bytes count as the request's and the answer's.
pub(super) fn connect(pair: &mut Pair) -> Result<String> {
    tunnels(pair, &Block::default().named(2, "CONNECT").named(1, "http2:83"))
}

pub(super) fn extended_connect(pair: &mut Pair) -> Result<String> {
    tunnels(pair, &Block::request("CONNECT", "/chat").literal(":protocol", "websocket"))
}

fn tunnels(pair: &mut Pair, request: &Block) -> Result<String> {
    let _server = application(pair, &[(ENABLE_CONNECT_PROTOCOL, 1)], |peer| {
        loop {
            let stream = peer.opened()?;
            peer.send(headers(stream, 0, &Block::status(200)))?;
            peer.send(data(stream, 0, "welcome"))?;
            peer.ended(stream)?;
            peer.send(data(stream, flag::END_STREAM, "good bye"))?;
        }
    })?;
    super::talks(pair, 1, |peer| {
        peer.send(headers(1, 0, request))?;
        while peer.streams.get(&1).is_none_or(|state| state.received < 7) {
            peer.receive()?;
        }
        peer.send(data(1, 0, "anything\r\n\r\n"))?;
        peer.send(data(1, flag::END_STREAM, "PRI * HTTP/2.0"))?;
        let state = peer.ended(1)?;
        ensure!(state.ended && state.received == 15, "{state:?}");
        Ok(())
    })
}

/// Envoy removes the header and answers in HTTP/1.
pub(super) fn upgrade_to_h2c_is_not_made(pair: &mut Pair) -> Result<String> {
    let _server = nghttpd(pair, &[])?;
    pair.check(Expected::both(4), |pair| {
        for family in BOTH {
            let mut connection = Connection::open(&pair.client, pair.http2.address(family))?;
            connection.send(
                "GET /page HTTP/1.1\r\nhost: http2\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\n\
                 http2-settings: AAMAAABkAAQAAP__\r\n\r\n",
            )?;
            let answer = connection.receive_response()?;
            ensure!(answer.status == 200 && answer.body.len() == 5000, "{}", answer.head);
            connection.send("GET /small HTTP/1.1\r\nhost: http2\r\n\r\n")?;
            ensure!(connection.receive_response()?.body.len() == 10);
        }
        Ok(())
    })
}

/// The connection ends, and the request has no code and no bytes.
pub(super) fn header_block_that_cannot_be_decoded(pair: &mut Pair) -> Result<String> {
    let _server = nghttpd(pair, &[])?;
    let ask = |pair: &Pair| {
        for family in BOTH {
            let mut connection = Connection::open(&pair.client, pair.http2.address(family))?;
            let mut peer = Peer::client(&mut connection, &[])?;
            peer.send(headers(1, flag::END_STREAM, &get()))?;
            peer.ended(1)?;
            peer.send(headers(3, flag::END_STREAM, &get().indexed(100)))?;
            peer.connection.drain()?;
        }
        Ok(())
    };
    pair.check_with(Expected { source: 4, destination: 2 }, ask, &without_durations)
}
