//! HTTP/2 frame by frame: the test decides every byte of its end, down to the bits of header fields.
//!
//! Frames of the other end are followed only as far as a case needs: which streams have ended, and how. Header blocks
//! of the other end are not decoded; their fields are in the access log.

use std::{collections::BTreeMap, io};

use super::raw::Connection;

/// The client's connection preface.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Frame types.
pub mod kind {
    #![expect(missing_docs, reason = "the names of RFC 9113")]
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// Frame flags.
pub mod flag {
    #![expect(missing_docs, reason = "the names of RFC 9113")]
    pub const ACK: u8 = 1;
    pub const END_STREAM: u8 = 1;
    pub const END_HEADERS: u8 = 4;
    pub const PADDED: u8 = 8;
    pub const PRIORITY: u8 = 0x20;
}

const NO_ERROR: u32 = 0;
/// Error code CANCEL.
pub const CANCEL: u32 = 8;
/// Setting: size of the table that the sender of the setting decodes with.
pub const HEADER_TABLE_SIZE: u16 = 1;
/// Setting: initial window of a stream.
const INITIAL_WINDOW_SIZE: u16 = 4;

/// Encodes a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    let length = u32::try_from(payload.len()).expect("a frame is small").to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Encodes HEADERS in one frame.
pub fn headers(stream: u32, flags: u8, block: &Block) -> Vec<u8> {
    frame(kind::HEADERS, flags | flag::END_HEADERS, stream, &block.0)
}

/// Encodes HEADERS in pieces of `length`, all but the first as CONTINUATION.
pub fn headers_in_pieces(stream: u32, flags: u8, block: &Block, length: usize) -> Vec<u8> {
    let pieces: Vec<&[u8]> = block.0.chunks(length).collect();
    let last = pieces.len() - 1;
    let piece = |(at, piece): (usize, &&[u8])| {
        let end = if at == last { flag::END_HEADERS } else { 0 };
        let (kind, flags) = if at == 0 { (kind::HEADERS, flags) } else { (kind::CONTINUATION, 0) };
        frame(kind, flags | end, stream, piece)
    };
    pieces.iter().enumerate().flat_map(piece).collect()
}

/// Encodes DATA.
pub fn data(stream: u32, flags: u8, bytes: impl AsRef<[u8]>) -> Vec<u8> {
    frame(kind::DATA, flags, stream, bytes)
}

/// Returns a payload with its padding, for frames with the flag PADDED.
pub fn padded(payload: impl AsRef<[u8]>, padding: u8) -> Vec<u8> {
    [&[padding], payload.as_ref(), &vec![0; padding.into()]].concat()
}

/// Encodes RST_STREAM.
pub fn reset(stream: u32, reason: u32) -> Vec<u8> {
    frame(kind::RST_STREAM, 0, stream, reason.to_be_bytes())
}

/// Encodes GOAWAY without an error.
pub fn go_away(last_stream: u32) -> Vec<u8> {
    frame(kind::GOAWAY, 0, 0, [last_stream.to_be_bytes(), NO_ERROR.to_be_bytes()].concat())
}

/// Encodes SETTINGS.
pub fn settings(pairs: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> = pairs
        .iter()
        .flat_map(|(name, value)| [name.to_be_bytes().to_vec(), value.to_be_bytes().to_vec()].concat())
        .collect();
    frame(kind::SETTINGS, 0, 0, payload)
}

/// A header block, one representation after the other (RFC 7541, section 6).
#[derive(Clone, Debug, Default)]
pub struct Block(Vec<u8>);

impl Block {
    /// Returns a request of `method` for `path`, without use of the dynamic table.
    pub fn request(method: &str, path: &str) -> Self {
        Self::default().named(2, method).indexed(6).named(4, path).named(1, "http2")
    }

    /// Returns an answer with a status only.
    pub fn status(code: u16) -> Self {
        Self::default().named(8, &code.to_string())
    }

    /// Appends an indexed field of either table.
    pub fn indexed(self, index: usize) -> Self {
        self.integer(0x80, 7, index)
    }

    /// Appends a value with an indexed name, without indexing.
    pub fn named(self, index: usize, value: &str) -> Self {
        self.integer(0, 4, index).text(value)
    }

    /// Appends a value with an indexed name, with incremental indexing.
    pub fn named_and_remembered(self, index: usize, value: &str) -> Self {
        self.integer(0x40, 6, index).text(value)
    }

    /// Appends name and value without indexing.
    pub fn literal(self, name: &str, value: &str) -> Self {
        self.integer(0, 4, 0).text(name).text(value)
    }

    /// Appends name and value with incremental indexing.
    pub fn remembered(self, name: &str, value: &str) -> Self {
        self.integer(0x40, 6, 0).text(name).text(value)
    }

    /// Appends name and value, never indexed.
    pub fn never_indexed(self, name: &str, value: &str) -> Self {
        self.integer(0x10, 4, 0).text(name).text(value)
    }

    /// Appends an update of the dynamic table's size; only at the beginning of a block.
    pub fn table_size(self, size: usize) -> Self {
        self.integer(0x20, 5, size)
    }

    /// Returns its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn text(self, text: &str) -> Self {
        let mut block = self.integer(0, 7, text.len());
        block.0.extend(text.as_bytes());
        block
    }

    fn integer(mut self, pattern: u8, bits: u32, value: usize) -> Self {
        let low = |value: usize| u8::try_from(value).expect("masked");
        let limit = (1 << bits) - 1;
        if value < limit {
            self.0.push(pattern | low(value));
            return self;
        }
        self.0.push(pattern | low(limit));
        let mut rest = value - limit;
        while rest >= 0x80 {
            self.0.push(low(rest & 0x7f) | 0x80);
            rest >>= 7;
        }
        self.0.push(low(rest));
        self
    }
}

/// Progress of a stream, from the other end's frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stream {
    /// Bytes of DATA.
    pub received: u64,
    /// The other end has ended its direction.
    pub ended: bool,
    /// The other end has reset the stream, with this reason.
    pub reset: Option<u32>,
}

/// One end of a connection.
pub struct Peer<'a> {
    /// To send frames with.
    pub connection: &'a mut Connection,
    /// Streams with frames from the other end.
    pub streams: BTreeMap<u32, Stream>,
    /// The other end has sent GOAWAY.
    pub gone_away: bool,
    /// Whose end is awaited by [`Peer::request`].
    answered: u32,
}

impl<'a> Peer<'a> {
    /// Returns a client that announces `pairs` as its settings.
    pub fn client(connection: &'a mut Connection, pairs: &[(u16, u32)]) -> io::Result<Self> {
        connection.send([PREFACE, &settings(pairs)].concat())?;
        Ok(Self::new(connection))
    }

    /// Returns a server that announces `pairs` as its settings.
    pub fn server(connection: &'a mut Connection, pairs: &[(u16, u32)]) -> io::Result<Self> {
        connection.receive(PREFACE.len())?;
        connection.send(settings(&[pairs, &[(INITIAL_WINDOW_SIZE, 1 << 24)]].concat()))?;
        connection.send(frame(kind::WINDOW_UPDATE, 0, 0, (1_u32 << 24).to_be_bytes()))?;
        Ok(Self::new(connection))
    }

    /// Continues a connection after its beginning.
    pub fn new(connection: &'a mut Connection) -> Self {
        Self { connection, streams: BTreeMap::new(), gone_away: false, answered: 0 }
    }

    /// Sends frames, in one segment if they fit.
    pub fn send(&mut self, frames: impl AsRef<[u8]>) -> io::Result<()> {
        self.connection.send(frames)
    }

    /// Waits until the other end has ended or reset the stream.
    pub fn ended(&mut self, stream: u32) -> io::Result<Stream> {
        loop {
            match self.streams.get(&stream) {
                Some(state) if state.ended || state.reset.is_some() => return Ok(*state),
                _ => self.receive()?,
            }
        }
    }

    /// Returns the next stream, in order of their numbers, on which a whole request has come.
    pub fn request(&mut self) -> io::Result<u32> {
        loop {
            if let Some((stream, state)) = self.streams.range(self.answered + 1..).next()
                && (state.ended || state.reset.is_some())
            {
                self.answered = *stream;
                return Ok(*stream);
            }
            self.receive()?;
        }
    }

    /// Returns the next stream, in order of their numbers, on which anything has come.
    pub fn opened(&mut self) -> io::Result<u32> {
        loop {
            if let Some((stream, _)) = self.streams.range(self.answered + 1..).next() {
                self.answered = *stream;
                return Ok(*stream);
            }
            self.receive()?;
        }
    }

    /// Receives one frame and answers it if it needs an answer.
    pub fn receive(&mut self) -> io::Result<()> {
        let head = self.connection.receive(9)?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let (kind, flags) = (head[3], head[4]);
        let stream = word(&head[5..9]) & 0x7fff_ffff;
        let payload = self.connection.receive(length)?;
        match kind {
            kind::DATA | kind::HEADERS => {
                let state = self.streams.entry(stream).or_default();
                state.ended |= flags & flag::END_STREAM != 0;
                if kind == kind::DATA && length > 0 {
                    state.received += length as u64;
                    let more = u32::try_from(length).expect("three bytes").to_be_bytes();
                    let update = |stream| frame(kind::WINDOW_UPDATE, 0, stream, more);
                    self.connection.send([update(0), update(stream)].concat())?;
                }
            }
            kind::RST_STREAM => self.streams.entry(stream).or_default().reset = Some(word(&payload)),
            kind::SETTINGS if flags & flag::ACK == 0 => {
                self.connection.send(frame(kind::SETTINGS, flag::ACK, 0, ""))?
            }
            kind::PING if flags & flag::ACK == 0 => self.connection.send(frame(kind::PING, flag::ACK, 0, payload))?,
            kind::GOAWAY => self.gone_away = true,
            _ => {}
        }
        Ok(())
    }
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().expect("four bytes"))
}
