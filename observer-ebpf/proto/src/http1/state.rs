//! Parser state of HTTP/1 in a [`crate::flow::Flow`].

/// In place of a gRPC status: one that is not a number.
pub(super) const UNREADABLE_GRPC_STATUS: u32 = u32::MAX - 1;

/// Positions in a message.
pub mod phase {
    use crate::flow::Phase;

    /// Between messages.
    pub const START: Phase = Phase(0);
    /// In the header lines.
    pub const HEADERS: Phase = Phase(1);
    /// In a body of known length.
    pub const BODY: Phase = Phase(2);
    /// At a chunk-size line.
    pub const CHUNK: Phase = Phase(3);
    /// In a chunk's data and the line end behind it.
    pub const CHUNK_DATA: Phase = Phase(4);
    /// In the trailer lines.
    pub const TRAILERS: Phase = Phase(5);
    /// In a body that lasts until the connection ends.
    pub const UNTIL_CLOSE: Phase = Phase(6);
    /// In a tunnel, or behind a request that only its response ends: one that asks for a tunnel, or a malformed one.
    pub const TUNNEL: Phase = Phase(7);
    /// Behind the last message that is read. Further bytes belong to no message.
    pub const SPENT: Phase = Phase(8);
    /// Where a PROXY protocol header may begin.
    pub const PROXY_HEADER: Phase = Phase(9);
    /// In a PROXY protocol header of version 1, which is a line.
    pub const PROXY_LINE: Phase = Phase(10);
    /// In a PROXY protocol header of version 2, which is binary.
    pub const PROXY_BINARY: Phase = Phase(11);
}

/// Bits of [`crate::flow::Flow::flags`]: properties of the message being read.
pub mod flags {
    /// The message has begun.
    pub const BEGUN: u32 = 1;
    /// The rest of the current line is skipped.
    pub const LONG_LINE: u32 = 1 << 1;
    /// The value of a Content-Length was read.
    pub const LENGTH_READ: u32 = 1 << 2;
    /// The only transfer coding is `chunked`.
    pub const CHUNKED: u32 = 1 << 3;
    /// Envoy refuses the message.
    pub const MALFORMED: u32 = 1 << 4;
    /// There is an Upgrade header other than `h2c`, which Envoy ignores.
    pub const UPGRADE: u32 = 1 << 5;
    /// A HEAD request.
    pub const HEAD: u32 = 1 << 6;
    /// A CONNECT request.
    pub const CONNECT: u32 = 1 << 7;
    /// The status is not an interim one.
    pub const FINAL: u32 = 1 << 8;
    /// The last header line was Content-Length, which a folded line continues.
    pub const IN_LENGTH: u32 = 1 << 9;
    /// The last header line was Transfer-Encoding.
    pub const IN_CODING: u32 = 1 << 10;
    /// There is a Content-Length header.
    pub const HAS_LENGTH: u32 = 1 << 11;
    /// There is a Transfer-Encoding header.
    pub const HAS_CODING: u32 = 1 << 12;
    /// The version is not HTTP/1.1, so that the connection ends with the message unless it is kept alive.
    pub const NOT_HTTP11: u32 = 1 << 13;
    /// Connection option `close`.
    pub const CLOSE: u32 = 1 << 14;
    /// Connection option `keep-alive`.
    pub const KEEP_ALIVE: u32 = 1 << 15;
    /// Connection option `upgrade`.
    pub const CONNECTION_UPGRADE: u32 = 1 << 16;
    /// The content type is gRPC's.
    pub const GRPC: u32 = 1 << 17;
    /// In a line that names the request's caller.
    pub const IN_CALLER: u32 = 1 << 18;
    /// There is a header of a trace context.
    pub const TRACED: u32 = 1 << 19;
}
