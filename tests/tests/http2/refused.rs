//! Messages that Envoy refuses: its own answers, and its counts.

use anyhow::{Context, Result};
use harness::{
    apps::{
        frames::{Block, Peer, data, flag, frame, headers, kind},
        raw::Connection,
    },
    mesh::Family,
    pair::{Expected, Pair, without_durations},
};

use super::{application, nghttpd};

const PUSH_PROMISE: u8 = 5;

/// An error, and the frames of a stream with it.
type Bent = (&'static str, fn(u32) -> Vec<u8>);

fn ok() -> Block {
    Block::status(200)
}

fn get() -> Block {
    Block::request("GET", "/small")
}

fn whole(stream: u32, block: Block) -> Vec<u8> {
    headers(stream, flag::END_STREAM, &block)
}

/// Returns a block with so many fields.
fn fields(first: Block, others: usize) -> Block {
    (0..others).fold(first, |block, number| block.literal(&format!("x-{number}"), "v"))
}

const ANSWERS: &[Bent] = &[
    ("connection", |s| whole(s, ok().literal("connection", "close"))),
    ("a capital letter", |s| whole(s, ok().literal("X-Upper-Case", "v"))),
    ("transfer-encoding", |s| whole(s, ok().named(57, "chunked"))),
    ("keep-alive", |s| whole(s, ok().remembered("keep-alive", "timeout=5"))),
    ("proxy-connection", |s| whole(s, ok().literal("proxy-connection", "close"))),
    ("upgrade", |s| whole(s, ok().literal("upgrade", "h2c"))),
    ("no status", |s| whole(s, Block::default().literal("x-a", "v"))),
    ("two statuses", |s| whole(s, ok().named(8, "404"))),
    ("status behind a field", |s| whole(s, Block::default().literal("x-a", "v").named(8, "200"))),
    ("a name with a colon", |s| whole(s, ok().literal(":foo", "v"))),
    ("data first", |s| [data(s, 0, "x"), whole(s, ok())].concat()),
    ("data only", |s| data(s, flag::END_STREAM, "x")),
    ("101 fields", |s| whole(s, fields(ok(), 100))),
    ("status 20", |s| whole(s, Block::status(20))),
    ("status 2000", |s| whole(s, Block::status(2000))),
    ("status abc", |s| whole(s, Block::default().named(8, "abc"))),
    ("status 099", |s| whole(s, Block::default().named(8, "099"))),
    ("an empty status", |s| whole(s, Block::default().named(8, ""))),
    ("an empty name", |s| whole(s, ok().literal("", "v"))),
    ("a name with a space", |s| whole(s, ok().literal("x y", "v"))),
    ("an even stream", |s| [whole(2, ok()), whole(s, ok())].concat()),
    ("a stream that nobody has begun", |s| [whole(s + 2, ok()), whole(s, ok())].concat()),
    ("headers of no stream", |s| [whole(0, ok()), whole(s, ok())].concat()),
    ("trailers with a status", |s| [headers(s, 0, &ok()), whole(s, ok())].concat()),
    ("settings of five bytes", |s| [frame(kind::SETTINGS, 0, 0, [0; 5]), whole(s, ok())].concat()),
    ("a ping of seven bytes", |s| [frame(kind::PING, 0, 0, [0; 7]), whole(s, ok())].concat()),
    ("a promise", |s| [frame(PUSH_PROMISE, flag::END_HEADERS, s, [0, 0, 0, 2, 0x82]), whole(s, ok())].concat()),
    ("an index of nothing", |s| whole(s, ok().indexed(100))),
    ("an interim answer that ends", |s| whole(s, Block::status(103))),
    ("another protocol", |s| whole(s, Block::status(101))),
    ("a table size behind a field", |s| whole(s, ok().table_size(4096))),
];

/// Each on a connection of its own.
pub(super) fn answers_that_are_refused(pair: &mut Pair) -> Result<String> {
    for &(what, answer) in ANSWERS {
        let _server = application(pair, &[], move |peer| {
            loop {
                let stream = peer.request()?;
                peer.send(answer(stream))?;
            }
        })?;
        let ask = |pair: &Pair| {
            let mut connection = Connection::open(&pair.client, pair.http2.address(Family::V4))?;
            let mut peer = Peer::client(&mut connection, &[])?;
            peer.send(whole(1, get()))?;
            peer.ended(1)?;
            Ok(())
        };
        pair.check_with(Expected::both(1), ask, &without_durations).context(what)?;
    }
    Ok(format!("{} kinds", ANSWERS.len()))
}

const REQUESTS: &[Bent] = &[
    ("connection", |s| whole(s, get().literal("connection", "close"))),
    ("a capital letter", |s| whole(s, get().literal("X-Upper-Case", "v"))),
    ("transfer-encoding", |s| whole(s, get().named(57, "chunked"))),
    ("an empty name", |s| whole(s, get().literal("", "v"))),
    ("an index of nothing", |s| whole(s, get().indexed(100))),
    ("101 fields", |s| whole(s, fields(get(), 97))),
];

/// No request reaches the application.
pub(super) fn requests_that_are_refused(pair: &mut Pair) -> Result<String> {
    let _server = nghttpd(pair, &[])?;
    for &(what, request) in REQUESTS {
        let ask = |pair: &Pair| {
            let mut connection = Connection::open(&pair.client, pair.http2.address(Family::V4))?;
            let mut peer = Peer::client(&mut connection, &[])?;
            peer.send(request(1))?;
            // A reset, or the connection's end.
            peer.ended(1).map_or(Ok(()), |_| Ok(()))
        };
        let expected = Expected { source: 1, destination: 0 };
        pair.check_with(expected, ask, &without_durations).context(what)?;
    }
    Ok(format!("{} kinds", REQUESTS.len()))
}
