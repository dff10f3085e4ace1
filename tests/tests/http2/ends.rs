//! Streams and connections that end before their last byte.

use std::{
    cell::RefCell,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{
    apps::{
        frames::{Block, CANCEL, Peer, data, flag, go_away, headers, reset},
        raw::Connection,
    },
    mesh::Family,
    pair::{Expected, Pair, SETTLE_TIMEOUT, without_durations},
    wait::wait_until,
};

use super::{BOTH, application, greet, introduce, nghttpd, talks, talks_with};

const INTERNAL_ERROR: u32 = 2;
const REFUSED_STREAM: u32 = 7;
/// Enough for everything to arrive.
const A_WHILE: Duration = Duration::from_millis(150);

fn get() -> Block {
    Block::request("GET", "/small")
}

/// Never answers.
fn silent(peer: &mut Peer<'_>) -> std::io::Result<()> {
    loop {
        peer.receive()?;
    }
}

/// Sends headers and a few bytes, and no end.
fn endless(peer: &mut Peer<'_>) -> std::io::Result<()> {
    loop {
        let stream = peer.request()?;
        peer.send([headers(stream, 0, &Block::status(200)), data(stream, 0, "0123456789")].concat())?;
    }
}

pub(super) fn client_resets_before_the_answer(pair: &mut Pair) -> Result<String> {
    let _server = application(pair, &[], silent)?;
    talks(pair, 2, |peer| {
        for stream in [1, 3] {
            peer.send(headers(stream, flag::END_STREAM, &get()))?;
            sleep(A_WHILE);
            peer.send(reset(stream, CANCEL))?;
        }
        sleep(A_WHILE);
        Ok(())
    })
}

pub(super) fn client_resets_inside_the_answer(pair: &mut Pair) -> Result<String> {
    let _server = application(pair, &[], endless)?;
    let talk = |peer: &mut Peer<'_>| {
        for stream in [1, 3] {
            peer.send(headers(stream, flag::END_STREAM, &get()))?;
            while peer.streams.get(&stream).is_none_or(|state| state.received < 10) {
                peer.receive()?;
            }
            peer.send(reset(stream, CANCEL))?;
        }
        sleep(A_WHILE);
        Ok(())
    };
    talks(pair, 2, talk)
}

pub(super) fn client_resets_inside_its_request(pair: &mut Pair) -> Result<String> {
    let _server = application(pair, &[], silent)?;
    talks(pair, 2, |peer| {
        for stream in [1, 3] {
            peer.send([headers(stream, 0, &Block::request("POST", "/")), data(stream, 0, "the beginning")].concat())?;
            sleep(A_WHILE);
            peer.send(reset(stream, CANCEL))?;
        }
        sleep(A_WHILE);
        Ok(())
    })
}

/// The stream is over for both ends: there is nothing left to reset.
pub(super) fn client_resets_after_the_answer(pair: &mut Pair) -> Result<String> {
    let _server = nghttpd(pair, &[])?;
    talks(pair, 2, |peer| {
        for stream in [1, 3] {
            peer.send(headers(stream, flag::END_STREAM, &get()))?;
            peer.ended(stream)?;
            peer.send(reset(stream, CANCEL))?;
        }
        Ok(())
    })
}

/// The client refuses new streams of the server, of which there are none, and waits for the answers to its own.
pub(super) fn client_goes_away(pair: &mut Pair) -> Result<String> {
    let _server = nghttpd(pair, &[])?;
    talks(pair, 2, |peer| {
        let requests = [1, 3].map(|stream| headers(stream, flag::END_STREAM, &get()));
        peer.send([requests.concat(), go_away(0)].concat())?;
        for stream in [1, 3] {
            peer.ended(stream)?;
        }
        Ok(())
    })
}

pub(super) fn client_ends_before_the_answer(pair: &mut Pair) -> Result<String> {
    let _server = application(pair, &[], silent)?;
    talks(pair, 3, |peer| {
        for stream in [1, 3, 5] {
            peer.send(headers(stream, flag::END_STREAM, &get()))?;
        }
        sleep(A_WHILE);
        Ok(())
    })
}

pub(super) fn client_resets_the_connection(pair: &mut Pair) -> Result<String> {
    let _server = application(pair, &[], silent)?;
    pair.check(Expected::both(6), |pair| {
        for family in BOTH {
            let mut connection = Connection::open(&pair.client, pair.http2.address(family))?;
            let mut peer = Peer::client(&mut connection, &[])?;
            for stream in [1, 3, 5] {
                peer.send(headers(stream, flag::END_STREAM, &get()))?;
            }
            sleep(A_WHILE);
            connection.reset();
        }
        Ok(())
    })
}

/// Each is counted, and the end costs at most what a packet may: the median, since a processor may be busy elsewhere.
pub(super) fn many_open_calls_end_at_once(pair: &mut Pair) -> Result<String> {
    const CONNECTIONS: usize = 11;
    const CALLS: u32 = 100;
    let _server = application(pair, &[], silent)?;
    let times = RefCell::new(Vec::new());
    let counted = pair.check(Expected::both(CONNECTIONS * CALLS as usize), |pair| {
        for _ in 0..CONNECTIONS {
            let mut connection = Connection::open(&pair.client, pair.http2.address(Family::V4))?;
            let mut peer = Peer::client(&mut connection, &[])?;
            let all = (0..CALLS).map(|number| headers(2 * number + 1, flag::END_STREAM, &get()));
            peer.send(all.collect::<Vec<_>>().concat())?;
            sleep(A_WHILE);
            let begin = Instant::now();
            connection.reset();
            times.borrow_mut().push(begin.elapsed());
        }
        Ok(())
    })?;
    let mut times = times.into_inner();
    times.sort_unstable();
    let median = times[CONNECTIONS / 2];
    ensure!(median < Duration::from_millis(1), "a reset with {CALLS} calls open takes {median:?}");
    Ok(format!("{counted}; a reset takes {median:?}"))
}

/// The client keeps sending after an answer that was complete before the request: bytes that the proxy still meters
/// count.
pub(super) fn application_answers_and_reads_on(pair: &mut Pair) -> Result<String> {
    let _server = application(pair, &[], |peer| {
        loop {
            let stream = peer.opened()?;
            peer.send(headers(stream, flag::END_STREAM, &Block::status(413)))?;
            peer.ended(stream)?;
        }
    })?;
    talks_with(
        pair,
        Expected::both(2),
        |peer| {
            peer.send(headers(1, 0, &Block::request("POST", "/")))?;
            peer.send(data(1, 0, [b'a'; 10_000]))?;
            peer.ended(1)?;
            // A frame that crosses the proxy's own end of the stream is metered or not, as it happens.
            sleep(A_WHILE);
            for _ in 0..30 {
                peer.send(data(1, 0, [b'a'; 10_000]))?;
            }
            peer.send(data(1, flag::END_STREAM, "end"))?;
            sleep(A_WHILE);
            Ok(())
        },
        // The log's last byte is the answer's, and the stream ends later.
        &without_durations,
    )
}

pub(super) fn application_resets_the_stream_before_its_answer(pair: &mut Pair) -> Result<String> {
    let _server = application(pair, &[], |peer| {
        loop {
            let stream = peer.request()?;
            peer.send(reset(stream, INTERNAL_ERROR))?;
        }
    })?;
    asks(pair)
}

pub(super) fn application_resets_the_stream_inside_its_answer(pair: &mut Pair) -> Result<String> {
    let _server = application(pair, &[], |peer| {
        loop {
            let stream = peer.request()?;
            peer.send([headers(stream, 0, &Block::status(200)), data(stream, 0, "0123456789")].concat())?;
            sleep(A_WHILE);
            peer.send(reset(stream, INTERNAL_ERROR))?;
        }
    })?;
    asks(pair)
}

pub(super) fn application_refuses_the_stream(pair: &mut Pair) -> Result<String> {
    let _server = application(pair, &[], |peer| {
        loop {
            let stream = peer.request()?;
            peer.send(reset(stream, REFUSED_STREAM))?;
        }
    })?;
    asks(pair)
}

/// Every answer is the last on its connection.
pub(super) fn application_goes_away_after_its_answer(pair: &mut Pair) -> Result<String> {
    let _server = application(pair, &[], |peer| {
        let stream = peer.request()?;
        let answer = [headers(stream, 0, &Block::status(200)), data(stream, flag::END_STREAM, "last")].concat();
        peer.send([go_away(stream), answer].concat())?;
        peer.connection.drain().map(|_| ())
    })?;
    asks(pair)
}

/// Of three streams the first is answered, the others are above the last stream of GOAWAY.
pub(super) fn application_goes_away_before_later_streams(pair: &mut Pair) -> Result<String> {
    let _server = application(pair, &[], |peer| {
        greet(peer)?;
        let first = peer.request()?;
        peer.request()?;
        peer.request()?;
        peer.send(go_away(first))?;
        sleep(A_WHILE);
        peer.send(headers(first, flag::END_STREAM, &Block::status(200)))?;
        peer.connection.drain().map(|_| ())
    })?;
    at_once(pair)
}

pub(super) fn application_ends_without_a_word(pair: &mut Pair) -> Result<String> {
    let _server = application(pair, &[], |peer| {
        greet(peer)?;
        for _ in 0..3 {
            peer.request()?;
        }
        Ok(())
    })?;
    at_once(pair)
}

/// Connections that are older than the observer. Codes are exact if they are in the static table, literal, or added to
/// the table since; a code that refers to an older entry of the table is unknown.
pub(super) fn preexisting(pair: &mut Pair) -> Result<String> {
    let answers = |number: u32| match number % 5 {
        0 => Block::status(418),
        1 => Block::default().indexed(8),
        2 => Block::default().named_and_remembered(8, "429"),
        3 => Block::default().indexed(62),
        _ => Block::default().named_and_remembered(8, "299").remembered("x-a", "b"),
    };
    let _server = application(pair, &[], move |peer| {
        for number in 0.. {
            let stream = peer.request()?;
            peer.send([headers(stream, 0, &answers(number)), data(stream, flag::END_STREAM, "late")].concat())?;
        }
        Ok(())
    })?;
    pair.observer.take().context("it observed")?.stop()?;
    let mut connection = Connection::open(&pair.client, pair.http2.address(Family::V4))?;
    let mut peer = Peer::client(&mut connection, &[])?;
    let mut streams = (0..).map(|number| 2 * number + 1);
    let mut ask = |peer: &mut Peer<'_>, requests| -> Result<()> {
        for stream in streams.by_ref().take(requests) {
            peer.send(headers(stream, flag::END_STREAM, &get().remembered("x-stream", &stream.to_string())))?;
            ensure!(peer.ended(stream)?.ended);
        }
        Ok(())
    };
    ask(&mut peer, 5)?;
    pair.observe(2)?;
    let before = pair.begin()?;
    ask(&mut peer, 50)?;
    let (truth, _) = pair.truth(&Expected::both(50))?;
    let observer = pair.observer()?;
    wait_until("every request with its bytes", SETTLE_TIMEOUT, || {
        let seen = observer.counts()?.since(&before);
        let (source, destination) = (pair.source(), pair.destination());
        let mut answered = truth.requests.keys().filter(|(leg, _)| *leg == destination);
        let exact = answered.all(|(leg, code)| seen.count(leg, code.clone()) == truth.count(leg, code.clone()));
        ensure!(
            exact && seen.all(&source) == truth.all(&source),
            "the observer has {seen}\n    the access log has {truth}\n    {}",
            observer.health()?
        );
        Ok(seen.to_string())
    })
}

/// Two requests, one after the other.
fn asks(pair: &mut Pair) -> Result<String> {
    talks(pair, 2, |peer| {
        for stream in [1, 3] {
            peer.send(headers(stream, flag::END_STREAM, &get()))?;
            peer.ended(stream)?;
        }
        Ok(())
    })
}

/// Three requests at once.
fn at_once(pair: &mut Pair) -> Result<String> {
    talks(pair, 4, |peer| {
        introduce(peer)?;
        peer.send([3, 5, 7].map(|stream| headers(stream, flag::END_STREAM, &get())).concat())?;
        for stream in [3, 5, 7] {
            peer.ended(stream)?;
        }
        Ok(())
    })
}
