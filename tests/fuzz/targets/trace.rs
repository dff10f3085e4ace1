//! Headers of a trace context: a request says the same in HTTP/1 and in HTTP/2, with and without Huffman coding, whole or
//! in two packets, and again by index.
//!
//! Input: a byte that says where the packet is cut; then headers of two bytes (name and representation, length) and that many
//! bytes of value. Nothing panics, and what is kept is a context.
#![no_main]

use fuzz::{Packet, connection};
use httlib_hpack::Encoder;
use libfuzzer_sys::fuzz_target;
use observer_common::{Direction::Request, Exemplar};
use observer_proto::{
    ConnLeg, ConnProtocol, Connection, http1,
    http2::{self, Http2},
};

const OFFSET: u32 = 40;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const NAMES: [&str; 8] = [
    "traceparent",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-sampled",
    "x-b3-flags",
    "tracestate",
    "x-b3-parentspanid",
];
/// A line of HTTP/1 is shorter than what is kept of an unfinished one.
const MAX_VALUE: usize = 100;

type Header<'a> = (&'a str, Vec<u8>, u8);

/// A client's side of a connection.
struct Client {
    c: Box<Connection>,
    h: Box<Http2>,
    packet: Packet,
    seq: u32,
}

impl Client {
    fn new() -> Self {
        // SAFETY: integers and arrays of integers, for which all zero is valid.
        let h = Box::new(unsafe { std::mem::zeroed() });
        Self { c: connection(ConnLeg::SOURCE), h, packet: Packet::default(), seq: 0 }
    }

    fn send(&mut self, bytes: &[u8], cut: usize) {
        let (first, second) = bytes.split_at(cut.min(bytes.len()));
        for payload in [first, second].into_iter().filter(|payload| !payload.is_empty()) {
            let length = u32::try_from(payload.len()).expect("a packet");
            self.packet.bytes = [&[0; OFFSET as usize], payload].concat();
            let Self { c, h, packet, seq } = self;
            if c.protocol != ConnProtocol::HTTP2 {
                http1::on_payload(c, packet, Request, *seq, OFFSET, length);
            }
            if c.protocol == ConnProtocol::HTTP2 {
                http2::on_payload(c, h, packet, Request, *seq, OFFSET, length);
            }
            self.seq = self.seq.wrapping_add(length);
        }
    }

    fn context(&mut self, number: u32) -> Option<Exemplar> {
        self.packet.traces.remove(&number).map(|request| request.exemplar)
    }
}

fn over_http1(headers: &[Header<'_>], cut: usize) -> Option<Exemplar> {
    let mut request = b"GET / HTTP/1.1\r\n".to_vec();
    for (name, value, _) in headers {
        request.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
    }
    request.extend(b"\r\n");
    let mut client = Client::new();
    client.send(&request, cut);
    client.context(0)
}

/// Sends the same headers in two requests of one connection.
fn over_http2(headers: &[Header<'_>], cut: usize) -> [Option<Exemplar>; 2] {
    let mut client = Client::new();
    client.send(PREFACE, 0);
    let mut encoder = Encoder::default();
    [1_u32, 3].map(|stream| {
        // `:method: GET`.
        let mut block = vec![0x82];
        for (name, value, flags) in headers {
            encoder.encode((name.as_bytes().to_vec(), value.clone(), *flags), &mut block).expect("a field");
        }
        let length = u32::try_from(block.len()).expect("a frame");
        // HEADERS that ends stream and block.
        let frame = [&length.to_be_bytes()[1..], &[1, 5], &stream.to_be_bytes(), &block].concat();
        client.send(&frame, cut);
        client.context(stream)
    })
}

fuzz_target!(|input: &[u8]| {
    let Some((&cut, mut rest)) = input.split_first() else { return };
    let mut headers = Vec::<Header<'_>>::new();
    while let [what, length, after @ ..] = rest
        && headers.len() < 8
    {
        let (value, behind) = after.split_at(after.len().min(usize::from(*length).min(MAX_VALUE)));
        rest = behind;
        // Those whose Huffman code has at most eight bits: a longer code may be too long where the text is not.
        let is_text = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-';
        let value = value.iter().map(|byte| byte & 0x7f).filter(is_text).collect();
        let form = match what >> 3 & 3 {
            0 => Encoder::WITH_INDEXING | Encoder::BEST_FORMAT,
            1 => Encoder::WITH_INDEXING,
            2 => Encoder::NEVER_INDEXED,
            _ => 0,
        };
        let huffman = (if what & 0x20 != 0 { Encoder::HUFFMAN_NAME } else { 0 })
            | (if what & 0x40 != 0 { Encoder::HUFFMAN_VALUE } else { 0 });
        headers.push((NAMES[usize::from(what & 7)], value, form | huffman));
    }
    let expected = over_http1(&headers, usize::from(cut));
    let found = over_http2(&headers, usize::from(cut));
    assert_eq!(found, [expected; 2], "{headers:?}");
});
