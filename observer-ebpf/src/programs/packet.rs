//! Packets: where the segment lies, whether TCP will accept it, and the lock of its direction.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::bpf_tcp_sock,
};
use observer_common::{Direction, Endpoint, health::Counter};
use observer_proto::{
    Connection, address, atomic,
    flow::Flow,
    segment::{Segment, Socket},
};

use super::{context::read, lock::lock, maps};

#[repr(C, packed)]
struct Ipv4Header {
    version_and_length: u8,
    tos: u8,
    total_length: u16,
    id: u16,
    fragment: u16,
    ttl: u8,
    protocol: u8,
    checksum: u16,
    source: u32,
    destination: u32,
}

#[repr(C, packed)]
struct Ipv6Header {
    version_and_class: u8,
    class_and_flow: [u8; 3],
    payload_length: u16,
    next_header: u8,
    hop_limit: u8,
    source: [u32; 4],
    destination: [u32; 4],
}

#[repr(C, packed)]
struct HopByHopHeader {
    next_header: u8,
    length: u8,
    options: [u8; 6],
}

#[repr(C, packed)]
struct TcpHeader {
    source: u16,
    destination: u16,
    seq: u32,
    ack: u32,
    data_offset: u8,
    flags: u8,
    window: u16,
    checksum: u16,
    urgent: u16,
}

const IPV4: usize = size_of::<Ipv4Header>();
const IPV6: usize = size_of::<Ipv6Header>();
const IPPROTO_TCP: u8 = 6;
const IPPROTO_HOPOPTS: u8 = 0;
/// Version 4, without options.
const PLAIN_IPV4: u8 = 0x45;

/// Finds the segment in a packet whose first header is IPv4 or IPv6 and whose second is TCP.
#[inline(always)]
pub(super) fn segment(skb: *mut __sk_buff) -> Option<Segment> {
    // SAFETY: context fields; every byte behind `data` is checked against `data_end` before it is read.
    unsafe {
        let (data, end) = ((*skb).data as usize, (*skb).data_end as usize);
        // Shorter packets, IPv4 with TCP included, are not worth a second check: both headers take 40 bytes.
        if data + IPV6 > end {
            return unexpected_headers();
        }
        let (ipv4, ipv6) = (data as *const Ipv4Header, data as *const Ipv6Header);
        let mut header = IPV6;
        let mut protocol = (*ipv6).next_header;
        if (*ipv4).version_and_length >> 4 == 4 {
            header = ((*ipv4).version_and_length as usize & 15) * 4;
            protocol = (*ipv4).protocol;
        } else if protocol == IPPROTO_HOPOPTS && data + IPV6 + size_of::<HopByHopHeader>() <= end {
            // A packet above 64 KiB (BIG TCP) has its length in a jumbo option of eight bytes.
            let options = (data + IPV6) as *const HopByHopHeader;
            header = IPV6 + size_of::<HopByHopHeader>();
            protocol = if (*options).length == 0 { (*options).next_header } else { protocol };
        }
        if protocol != IPPROTO_TCP || header < IPV4 {
            return unexpected_headers();
        }
        if data + header + size_of::<TcpHeader>() > end {
            return unexpected_headers();
        }
        let tcp = (data + header) as *const TcpHeader;
        let offset = header as u32 + ((*tcp).data_offset as u32 >> 4) * 4;
        let length = (*skb).len;
        Some(Segment {
            seq: u32::from_be((*tcp).seq),
            ack: u32::from_be((*tcp).ack),
            offset,
            length: if length > offset { length - offset } else { 0 },
            flags: (*tcp).flags,
        })
    }
}

/// Keeps a segment for the program that a tail call continues in, in the words of the packet's context that the kernel
/// keeps for the programs of a hook and restores behind them.
/// Source: kernel `include/linux/filter.h`, `__bpf_prog_run_save_cb`.
#[inline(always)]
pub(super) fn keep_segment(skb: *mut __sk_buff, segment: &Segment) {
    let words = [segment.seq, segment.ack, segment.length, segment.offset | u32::from(segment.flags) << FLAGS_SHIFT];
    for (i, word) in words.into_iter().enumerate() {
        // SAFETY: the context is valid; volatile, since each word is to be written on its own.
        unsafe { core::ptr::write_volatile(&raw mut (*skb).cb[i], word) };
    }
}

/// Returns the segment that was kept.
#[inline(always)]
pub(super) fn kept_segment(skb: *mut __sk_buff) -> Segment {
    let last = read!(skb, cb[3]);
    Segment {
        seq: read!(skb, cb[0]),
        ack: read!(skb, cb[1]),
        length: read!(skb, cb[2]),
        offset: last & ((1 << FLAGS_SHIFT) - 1),
        flags: (last >> FLAGS_SHIFT) as u8,
    }
}

/// Position of the flags beside the offset, which is far below.
const FLAGS_SHIFT: u32 = 24;

#[inline(always)]
fn unexpected_headers() -> Option<Segment> {
    maps::count(Counter::LossHeaders as u32, 1);
    None
}

/// Returns the source of a packet, if it has no IP options.
#[inline(always)]
pub(super) fn source_of(skb: *mut __sk_buff) -> Option<Endpoint> {
    // SAFETY: context fields; bounds are checked before the reads.
    unsafe {
        let (data, end) = ((*skb).data as usize, (*skb).data_end as usize);
        if data + IPV6 + size_of::<u16>() > end {
            return None;
        }
        let (ipv4, ipv6) = (data as *const Ipv4Header, data as *const Ipv6Header);
        let (address, header) = if (*ipv4).version_and_length == PLAIN_IPV4 {
            (address::mapped((*ipv4).source), IPV4)
        } else if (*ipv6).version_and_class >> 4 == 6 {
            (address::from_words((*ipv6).source), IPV6)
        } else {
            return None;
        };
        let tcp = (data + header) as *const TcpHeader;
        Some(Endpoint { address, port: u16::from_be((*tcp).source), padding: 0 })
    }
}

/// Returns the TCP state of a socket.
#[inline(always)]
pub(super) fn state_of(sk: *mut bpf_sock) -> Option<Socket> {
    // SAFETY: `sk` is a socket of the context's, not null; the helper returns null unless it is a TCP socket.
    let tcp = unsafe { bpf_tcp_sock(sk) };
    if tcp.is_null() {
        return None;
    }
    Some(Socket {
        state: read!(sk, state),
        rcv_nxt: read!(tcp, rcv_nxt),
        snd_una: read!(tcp, snd_una),
        snd_nxt: read!(tcp, snd_nxt),
        acknowledged: read!(tcp, bytes_acked),
    })
}

/// Returns the TCP state of a socket if a received segment has anything new that TCP will accept.
#[inline(always)]
pub(super) fn accepting_state(sk: *mut bpf_sock, segment: &Segment, received: &Flow, sent: &Flow) -> Option<Socket> {
    if !segment.is_end() && received.has_seen(segment.end()) {
        return None;
    }
    let socket = state_of(sk)?;
    let read = if received.seq_state != 0 { atomic::load(&received.next) } else { socket.rcv_nxt };
    let sent = if sent.seq_state != 0 { atomic::load(&sent.next) } else { socket.snd_nxt };
    socket.accepts(segment, read, sent).then_some(socket)
}

/// A segment to be read: the sequence number up to which TCP has accepted everything, and whether the proxy has closed the
/// socket. In one word, so that the verifier does not track where it came from.
#[derive(Clone, Copy)]
pub(super) struct Arrival(u64);

const IS_CLOSED: u64 = 1 << 32;
const REFUSED: u64 = 1 << 33;

impl Arrival {
    #[inline(always)]
    pub(super) fn accepted(self) -> u32 {
        self.0 as u32
    }
    #[inline(always)]
    pub(super) fn is_closed(self) -> bool {
        self.0 & IS_CLOSED != 0
    }
}

/// Checks a segment, and locks its direction if it is a received one, which the caller unlocks.
#[inline(always)]
pub(super) fn admit(
    c: &mut Connection,
    sk: *mut bpf_sock,
    segment: &Segment,
    is_egress: bool,
    direction: Direction,
) -> Option<Arrival> {
    // Sent segments are serialised by the socket's lock, in order.
    let word = if is_egress { u64::from(segment.seq) } else { admit_received(c, sk, segment, direction) };
    if word & REFUSED != 0 {
        return None;
    }
    // Through storage: a value loaded from there is unknown to the verifier, so that both paths join here.
    let flow = &mut c.flows[direction];
    // SAFETY: a reference is valid; volatile, so that the compiler does not forward the value.
    let word = unsafe {
        core::ptr::write_volatile(&mut flow.number, word);
        core::ptr::read_volatile(&flow.number)
    };
    Some(Arrival(word))
}

#[inline(never)]
fn admit_received(c: &mut Connection, sk: *mut bpf_sock, segment: &Segment, direction: Direction) -> u64 {
    let (received, sent) = (&c.flows[direction], &c.flows[direction.opposite()]);
    let Some(socket) = accepting_state(sk, segment, received, sent) else { return REFUSED };
    // Two CPUs can receive at once.
    if !lock(&mut c.flows[direction]) {
        maps::count(Counter::DesyncContended as u32, 1);
        return REFUSED;
    }
    u64::from(socket.accepted()) | if socket.is_closed() { IS_CLOSED } else { 0 }
}
