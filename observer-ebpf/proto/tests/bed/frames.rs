//! HTTP/2 frames written by hand: what well-behaved libraries do not send.

use std::collections::HashMap;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PADDED: u8 = 8;
pub(crate) const HAS_PRIORITY: u8 = 0x20;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// One frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame");
    [&length.to_be_bytes()[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// How a block or data is framed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shape {
    /// Padding, and whether there is any.
    pub(crate) padding: Option<u8>,
    /// HEADERS tell a priority.
    pub(crate) priority: bool,
    /// Lengths of the fragments of a block; the last takes the rest.
    pub(crate) fragments: Vec<usize>,
}

impl Shape {
    fn padded(&self, payload: &[u8]) -> (u8, Vec<u8>) {
        match self.padding {
            Some(padding) => (PADDED, [&[padding], payload, &vec![0; padding.into()]].concat()),
            None => (0, payload.to_vec()),
        }
    }
}

/// A frame of data.
pub(crate) fn data(stream: u32, flags: u8, payload: &[u8], shape: &Shape) -> Vec<u8> {
    let (padded, payload) = shape.padded(payload);
    frame(DATA, flags | padded, stream, &payload)
}

/// A header block: HEADERS or PUSH_PROMISE with `before` in front of the block, and CONTINUATION behind it.
fn block(kind: u8, flags: u8, stream: u32, before: &[u8], block: &[u8], shape: &Shape) -> Vec<u8> {
    let mut parts = Vec::new();
    let mut rest = block;
    for &length in &shape.fragments {
        let (part, behind) = rest.split_at(length.min(rest.len()));
        parts.push(part);
        rest = behind;
    }
    parts.push(rest);
    let ends = |number: usize| if number + 1 == parts.len() { END_HEADERS } else { 0 };
    let (padded, payload) = shape.padded(&[before, parts[0]].concat());
    let mut written = frame(kind, flags | padded | ends(0), stream, &payload);
    for (number, part) in parts.iter().enumerate().skip(1) {
        written.extend(frame(CONTINUATION, ends(number), stream, part));
    }
    written
}

/// A header block in HEADERS.
pub(crate) fn headers(stream: u32, flags: u8, fields: &[u8], shape: &Shape) -> Vec<u8> {
    if shape.priority {
        block(HEADERS, flags | HAS_PRIORITY, stream, &[0x80, 0, 0, 0, 15], fields, shape)
    } else {
        block(HEADERS, flags, stream, &[], fields, shape)
    }
}

/// A header block in PUSH_PROMISE.
pub(crate) fn promise(stream: u32, promised: u32, fields: &[u8], shape: &Shape) -> Vec<u8> {
    block(PUSH_PROMISE, 0, stream, &promised.to_be_bytes(), fields, shape)
}

/// RST_STREAM.
pub(crate) fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())
}

/// GOAWAY without an error.
pub(crate) fn goaway(last: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[last.to_be_bytes(), [0; 4]].concat())
}

/// A message of gRPC, uncompressed.
pub(crate) fn message(length: usize) -> Vec<u8> {
    [&[0][..], &u32::try_from(length).expect("a message").to_be_bytes(), &vec![b'm'; length]].concat()
}

/// What Envoy's meter has of each stream of one direction, which it receives or has `sent`: an independent reading of the
/// frames.
pub(crate) fn meter(bytes: &[u8], sent: bool) -> HashMap<u32, u64> {
    let mut streams = HashMap::new();
    let mut rest = bytes.strip_prefix(PREFACE).unwrap_or(bytes);
    while let Some((frame, behind)) = split(rest) {
        *streams.entry(frame.stream).or_default() += frame.metered(sent);
        rest = behind;
    }
    assert!(rest.is_empty());
    streams
}

/// The same of both directions as they were written; what comes of a stream behind its end is of no request.
pub(crate) fn meter_both(record: &[(usize, Vec<u8>)], sent: usize) -> HashMap<u32, [u64; 2]> {
    let mut streams: HashMap<u32, ([u64; 2], [bool; 2])> = HashMap::new();
    let mut rest = [Vec::new(), Vec::new()];
    for (direction, bytes) in record {
        let rest = &mut rest[*direction];
        rest.extend_from_slice(bytes);
        if let Some(behind) = rest.strip_prefix(PREFACE) {
            *rest = behind.to_vec();
        }
        while let Some((frame, behind)) = split(rest) {
            let (metered, done) = streams.entry(frame.stream).or_default();
            if *done != [true; 2] {
                metered[*direction] += frame.metered(sent == *direction);
            }
            done[*direction] |= matches!(frame.kind, DATA | HEADERS) && frame.flags & END_STREAM != 0;
            *rest = behind.to_vec();
        }
    }
    streams.into_iter().map(|(stream, (metered, _))| (stream, metered)).collect()
}

/// The head of a frame.
struct Head {
    length: u32,
    kind: u8,
    flags: u8,
    stream: u32,
}

impl Head {
    fn metered(&self, sent: bool) -> u64 {
        match self.kind {
            DATA | HEADERS => u64::from(self.length) + 9,
            WINDOW_UPDATE if sent && self.stream != 0 => 13,
            CONTINUATION => u64::from(self.length),
            _ => 0,
        }
    }
}

/// The first frame's head, and what is behind the frame; nothing if it is not whole.
fn split(bytes: &[u8]) -> Option<(Head, &[u8])> {
    let [a, b, c, kind, flags, s, t, u, v, behind @ ..] = bytes else { return None };
    let length = u32::from_be_bytes([0, *a, *b, *c]);
    let stream = u32::from_be_bytes([*s, *t, *u, *v]);
    let behind = behind.get(length as usize..)?;
    Some((Head { length, kind: *kind, flags: *flags, stream }, behind))
}
