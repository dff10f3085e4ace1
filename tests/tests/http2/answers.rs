//! Answers that ordinary servers do not send.

use std::{thread::sleep, time::Duration};

use anyhow::{Result, ensure};
use harness::{
    apps::{
        frames::{Block, Peer, data, flag, frame, headers, headers_in_pieces, kind, padded, reset},
        raw::Connection,
    },
    pair::{Expected, Pair},
};

use super::{BOTH, application, greet, introduce, talks};

const MILLISECOND: Duration = Duration::from_millis(1);
/// Error code NO_ERROR.
const NO_ERROR: u32 = 0;

/// Makes `requests` requests one after the other, and waits for each answer.
fn asks(pair: &mut Pair, requests: u32) -> Result<String> {
    talks(pair, usize::try_from(requests)?, |peer| {
        for stream in (0..requests).map(|number| 2 * number + 1) {
            peer.send(headers(stream, flag::END_STREAM, &Block::request("GET", "/")))?;
            peer.ended(stream)?;
        }
        Ok(())
    })
}

pub(super) fn answers_split_at_every_byte(pair: &mut Pair) -> Result<String> {
    let answer = |stream| {
        let head = Block::status(202).literal("content-type", "text/plain");
        [headers(stream, 0, &head), data(stream, flag::END_STREAM, "hello")].concat()
    };
    let length = answer(1).len();
    let _server = application(pair, &[], move |peer| {
        for at in (1..=length).cycle() {
            let stream = peer.request()?;
            let bytes = answer(stream);
            if at < length {
                peer.connection.send_pieces([&bytes[..at], &bytes[at..]], 2 * MILLISECOND)?;
            } else {
                peer.connection.send_pieces(bytes.chunks(1), MILLISECOND)?;
            }
        }
        Ok(())
    })?;
    asks(pair, u32::try_from(length)?)
}

/// Answers to thirty requests at once, their bodies interleaved.
pub(super) fn answers_in_one_segment(pair: &mut Pair) -> Result<String> {
    let _server = application(pair, &[], |peer| {
        greet(peer)?;
        loop {
            let streams = (0..30).map(|_| peer.request()).collect::<Result<Vec<_>, _>>()?;
            let heads = streams.iter().map(|stream| headers(*stream, 0, &Block::status(203)));
            let parts = streams.iter().rev().map(|stream| data(*stream, 0, "part "));
            let ends = streams.iter().map(|stream| data(*stream, flag::END_STREAM, "end"));
            peer.send(heads.chain(parts).chain(ends).collect::<Vec<_>>().concat())?;
        }
    })?;
    all_at_once(pair, 30)
}

pub(super) fn two_hundred_streams_at_once(pair: &mut Pair) -> Result<String> {
    let _server = application(pair, &[], |peer| {
        greet(peer)?;
        loop {
            let streams = (0..200).map(|_| peer.request()).collect::<Result<Vec<_>, _>>()?;
            for stream in streams.iter().rev() {
                let status = [200, 404, 500, 418][usize::try_from(stream / 2).expect("small") % 4];
                peer.send(
                    [headers(*stream, 0, &Block::status(status)), data(*stream, flag::END_STREAM, "x")].concat(),
                )?;
            }
        }
    })?;
    all_at_once(pair, 200)
}

fn all_at_once(pair: &mut Pair, requests: u32) -> Result<String> {
    talks(pair, 1 + usize::try_from(requests)?, |peer| {
        introduce(peer)?;
        let streams = (0..requests).map(|number| 2 * number + 3);
        let all = streams.clone().map(|stream| headers(stream, flag::END_STREAM, &Block::request("GET", "/")));
        peer.send(all.collect::<Vec<_>>().concat())?;
        for stream in streams {
            let state = peer.ended(stream)?;
            ensure!(state.ended, "stream {stream}: {state:?}");
        }
        Ok(())
    })
}

pub(super) fn statuses_without_a_body(pair: &mut Pair) -> Result<String> {
    let _server = application(pair, &[], |peer| {
        for status in [200, 204, 304, 301, 404, 500, 503].into_iter().cycle() {
            let stream = peer.request()?;
            peer.send(headers(stream, flag::END_STREAM, &Block::status(status)))?;
        }
        Ok(())
    })?;
    asks(pair, 7)
}

/// As many as fit the table, then each of them by index, the oldest first.
pub(super) fn statuses_in_the_dynamic_table(pair: &mut Pair) -> Result<String> {
    const FIT: u16 = 97;
    let _server = application(pair, &[], |peer| {
        for status in 400..400 + FIT {
            let stream = peer.request()?;
            peer.send(headers(
                stream,
                flag::END_STREAM,
                &Block::default().named_and_remembered(8, &status.to_string()),
            ))?;
        }
        for place in (0..usize::from(FIT)).rev().cycle() {
            let stream = peer.request()?;
            peer.send(headers(stream, flag::END_STREAM, &Block::default().indexed(62 + place)))?;
        }
        Ok(())
    })?;
    asks(pair, 2 * u32::from(FIT))?;
    Ok(format!("{FIT} statuses, each put in once and referred to"))
}

/// The application sets its table's size to 0, and back.
pub(super) fn statuses_after_a_new_table_size(pair: &mut Pair) -> Result<String> {
    let _server = application(pair, &[], |peer| {
        loop {
            for block in [
                Block::default().named_and_remembered(8, "201"),
                Block::default().indexed(62),
                Block::default().table_size(0).table_size(4096).named_and_remembered(8, "418"),
                Block::default().indexed(62),
                // Room for one entry only.
                Block::default().table_size(50).indexed(62),
                Block::default().named_and_remembered(8, "429"),
                Block::default().indexed(62),
                // A new name and a value of its own, and what it pushes out of the table.
                Block::default().named(8, "202").remembered("x", &"y".repeat(100)),
                Block::default().table_size(0).named_and_remembered(8, "226"),
                Block::default().table_size(4096).named(8, "203"),
            ] {
                let stream = peer.request()?;
                peer.send(headers(stream, flag::END_STREAM, &block))?;
            }
        }
    })?;
    asks(pair, 20)
}

pub(super) fn padded_answers(pair: &mut Pair) -> Result<String> {
    let _server = application(pair, &[], |peer| {
        for padding in [0, 1, 255].into_iter().cycle() {
            let stream = peer.request()?;
            let head = padded(Block::status(200).bytes(), padding);
            peer.send(frame(kind::HEADERS, flag::END_HEADERS | flag::PADDED, stream, head))?;
            peer.send(data(stream, flag::PADDED, padded("body", padding)))?;
            peer.send(data(stream, flag::PADDED | flag::END_STREAM, padded("", padding)))?;
        }
        Ok(())
    })?;
    asks(pair, 6)
}

pub(super) fn answer_headers_in_many_frames(pair: &mut Pair) -> Result<String> {
    let _server = application(pair, &[], |peer| {
        for length in [3, 5, 7, 16].into_iter().cycle() {
            let stream = peer.request()?;
            let block = Block::status(503).literal("x-a", "one").remembered("x-b", "two");
            let bytes = headers_in_pieces(stream, flag::END_STREAM, &block, length);
            peer.connection.send_pieces(bytes.chunks(length + 9), 2 * MILLISECOND)?;
        }
        Ok(())
    })?;
    asks(pair, 8)
}

pub(super) fn empty_data_ends_an_answer(pair: &mut Pair) -> Result<String> {
    let _server = application(pair, &[], |peer| {
        loop {
            let stream = peer.request()?;
            peer.send([headers(stream, 0, &Block::status(200)), data(stream, flag::END_STREAM, "")].concat())?;
            let stream = peer.request()?;
            peer.send([headers(stream, 0, &Block::status(200)), data(stream, 0, "x")].concat())?;
            sleep(20 * MILLISECOND);
            peer.send(data(stream, flag::END_STREAM, ""))?;
        }
    })?;
    asks(pair, 4)
}

pub(super) fn answer_trailers(pair: &mut Pair) -> Result<String> {
    let _server = application(pair, &[], |peer| {
        for number in 0.. {
            let stream = peer.request()?;
            let trailers = match number {
                0 => Block::default().remembered("x-sum", "0").remembered("x-end", "yes"),
                _ => Block::default().indexed(62).indexed(63),
            };
            peer.send([headers(stream, 0, &Block::status(200)), data(stream, 0, "body")].concat())?;
            peer.send(headers(stream, flag::END_STREAM, &trailers))?;
        }
        Ok(())
    })?;
    asks(pair, 4)
}

/// Interim headers are not an answer; their table entries stay.
pub(super) fn early_hints(pair: &mut Pair) -> Result<String> {
    let _server = application(pair, &[], |peer| {
        loop {
            let stream = peer.request()?;
            let hints = Block::default().named_and_remembered(8, "103").literal("link", "</style.css>; rel=preload");
            let again = Block::default().indexed(62);
            peer.send([headers(stream, 0, &hints), headers(stream, 0, &again)].concat())?;
            sleep(20 * MILLISECOND);
            peer.send([headers(stream, 0, &Block::status(206)), data(stream, flag::END_STREAM, "hinted")].concat())?;
        }
    })?;
    asks(pair, 3)
}

pub(super) fn expect_continue(pair: &mut Pair) -> Result<String> {
    let _server = application(pair, &[], |peer| {
        loop {
            let stream = peer.opened()?;
            peer.send(headers(stream, 0, &Block::status(100)))?;
            peer.ended(stream)?;
            peer.send(headers(stream, flag::END_STREAM, &Block::status(201)))?;
        }
    })?;
    talks(pair, 2, |peer| {
        for stream in [1, 3] {
            let request = Block::request("POST", "/").literal("expect", "100-continue");
            peer.send(headers(stream, 0, &request))?;
            while !peer.streams.contains_key(&stream) {
                peer.receive()?;
            }
            peer.send(data(stream, flag::END_STREAM, "body"))?;
            peer.ended(stream)?;
        }
        Ok(())
    })
}

/// The answer is complete and the rest of the request unwanted.
pub(super) fn answer_before_the_request_has_ended(pair: &mut Pair) -> Result<String> {
    let _server = application(pair, &[], |peer| {
        loop {
            let stream = peer.opened()?;
            while peer.streams[&stream].received < 100 {
                peer.receive()?;
            }
            peer.send([headers(stream, flag::END_STREAM, &Block::status(413)), reset(stream, NO_ERROR)].concat())?;
        }
    })?;
    talks(pair, 2, |peer| {
        for stream in [1, 3] {
            peer.send([headers(stream, 0, &Block::request("POST", "/")), data(stream, 0, [b'a'; 100])].concat())?;
            peer.ended(stream)?;
            sleep(20 * MILLISECOND);
        }
        Ok(())
    })
}

/// In headers or in trailers, by value, by name of the table, or whole from the table.
pub(super) fn grpc_statuses_in_every_form(pair: &mut Pair) -> Result<String> {
    let _server = application(pair, &[], grpc_answers)?;
    pair.check(Expected::both(4 * 9), |pair| {
        for family in BOTH {
            let mut connection = Connection::open(&pair.client, pair.http2.address(family))?;
            let mut peer = Peer::client(&mut connection, &[])?;
            for stream in (0..18).map(|number| 2 * number + 1) {
                let request = Block::request("POST", "/a.B/C").named(31, "application/grpc").literal("te", "trailers");
                let message = data(stream, flag::END_STREAM, [0, 0, 0, 0, 2, b'h', b'i']);
                peer.send([headers(stream, 0, &request), message].concat())?;
                peer.ended(stream)?;
            }
        }
        Ok(())
    })
}

fn grpc_answers(peer: &mut Peer<'_>) -> std::io::Result<()> {
    let grpc = |block: Block| block.named(31, "application/grpc");
    let ok = || grpc(Block::status(200));
    let only = |block: Block| (block, None);
    let then = |block: Block, trailers: Block| (block, Some(trailers));
    let start = Block::default;
    loop {
        for (block, trailers) in [
            only(ok().literal("grpc-status", "5")),
            only(ok().never_indexed("grpc-status", "16")),
            only(ok().remembered("grpc-status", "7").literal("grpc-message", "no")),
            // The name is at 62, with its value too.
            only(ok().indexed(62)),
            only(ok().named(62, "13")),
            then(ok(), start().named_and_remembered(62, "14")),
            then(ok(), start().indexed(62).literal("x-more", "1")),
            then(ok(), start().indexed(63)),
            // An HTTP error status without a gRPC status.
            then(grpc(Block::status(200)), start().literal("x-no-status", "here")),
        ] {
            let stream = peer.request()?;
            match trailers {
                None => peer.send(headers(stream, flag::END_STREAM, &block))?,
                Some(trailers) => {
                    let message = data(stream, 0, [0, 0, 0, 0, 1, b'a']);
                    peer.send(
                        [headers(stream, 0, &block), message, headers(stream, flag::END_STREAM, &trailers)].concat(),
                    )?;
                }
            }
        }
        // The table as it was at the beginning.
        let stream = peer.request()?;
        let fresh = grpc(start().table_size(0).table_size(4096).indexed(8)).literal("grpc-status", "0");
        peer.send(headers(stream, flag::END_STREAM, &fresh))?;
    }
}
