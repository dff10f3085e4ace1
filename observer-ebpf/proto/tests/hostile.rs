//! Segments whose headers are forged, woven between honest ones: what TCP refuses changes nothing and costs nothing.

mod fixture;

use fixture::Wire;
use observer_common::{Direction, health::Counter};
use observer_proto::{
    ConnLeg, Peer, close, http1,
    segment::{ACK, ESTABLISHED, FIN, RST, SYN, Segment, Socket},
};
use proptest::{collection::vec, prelude::*, sample::Index};

const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
/// What the socket would take behind the next byte.
const WINDOW: u32 = 30_000;

/// A client's connection to a proxy, and where the proxy's TCP is with it.
struct Proxy {
    wire: Wire,
    tcp: Socket,
}

impl Proxy {
    fn new() -> Self {
        let wire = Wire::new(ConnLeg::SOURCE);
        let [rcv_nxt, snd_nxt] = wire.base;
        Self { wire, tcp: Socket { state: ESTABLISHED, rcv_nxt, snd_una: snd_nxt, snd_nxt, acknowledged: 0 } }
    }

    /// A segment as the hook has it: before TCP, and whatever TCP makes of it. Returns the steps that it cost.
    fn arrives(&mut self, segment: &Segment, payload: &[u8]) -> u64 {
        let Wire { c, env, .. } = &mut self.wire;
        let before = env.steps;
        let [request, response] = &c.flows;
        let (next, sent) = (request.next, response.next);
        let known = !segment.is_end() && request.has_seen(segment.end());
        if !known && self.tcp.accepts(segment, next, sent) {
            env.packet = [&[0xee; 52], payload].concat();
            http1::catch_up(c, env, Direction::Request, self.tcp.accepted());
            if segment.length != 0 {
                http1::on_payload(c, env, Direction::Request, segment.seq, segment.offset, segment.length);
            }
            if close::on_segment_end(c, env, Direction::Request, segment) {
                close::on_close(c, env);
            }
        }
        self.wire.env.steps - before
    }

    /// An honest request, and its answer.
    fn exchange(&mut self) {
        let segment = self.honest(GET.len());
        self.arrives(&segment, GET);
        self.tcp.rcv_nxt = segment.end();
        let Wire { c, env, .. } = &mut self.wire;
        env.packet = [&[0xee; 52], ANSWER].concat();
        let length = ANSWER.len() as u32;
        http1::on_payload(c, env, Direction::Response, self.tcp.snd_nxt, 52, length);
        self.tcp.snd_nxt = self.tcp.snd_nxt.wrapping_add(length);
        self.tcp.snd_una = self.tcp.snd_nxt;
        self.tcp.acknowledged += u64::from(length);
    }

    fn honest(&self, length: usize) -> Segment {
        let (seq, ack) = (self.tcp.rcv_nxt, self.tcp.snd_nxt);
        Segment { seq, ack, offset: 52, length: length as u32, flags: ACK }
    }
}

/// What is wrong with a segment.
#[derive(Clone, Copy, Debug)]
enum Forged {
    BehindTheWindow(u32),
    FarAhead(u32),
    Old(u32),
    AcknowledgesTheFuture(u32),
    AcknowledgesThePast(u32),
    Unacknowledged,
    Synchronises,
    Resets(u32),
}

impl Forged {
    fn make(self, proxy: &Proxy, length: u32, fin: bool) -> Segment {
        let honest = proxy.honest(length as usize);
        let Segment { seq, ack, flags, .. } = honest;
        let forged = match self {
            Self::BehindTheWindow(by) => Segment { seq: seq.wrapping_add(WINDOW + by), ..honest },
            Self::FarAhead(by) => Segment { seq: seq.wrapping_add((1 << 24) + by), ..honest },
            Self::Old(by) => Segment { seq: seq.wrapping_sub(length + by), ..honest },
            Self::AcknowledgesTheFuture(by) => Segment { ack: ack.wrapping_add(1 + by), ..honest },
            Self::AcknowledgesThePast(by) => {
                Segment { ack: ack.wrapping_sub(proxy.tcp.acknowledged as u32 + 1 + by), ..honest }
            }
            Self::Unacknowledged => Segment { flags: 0, ..honest },
            Self::Synchronises => Segment { flags: flags | SYN, ..honest },
            Self::Resets(by) => Segment { seq: seq.wrapping_add(1 + by), flags: RST, ..honest },
        };
        Segment { flags: forged.flags | if fin { FIN } else { 0 }, ..forged }
    }
}

fn forged() -> impl Strategy<Value = Forged> {
    let far = 0..(1u32 << 30);
    prop_oneof![
        (0..250_000u32).prop_map(Forged::BehindTheWindow),
        far.clone().prop_map(Forged::FarAhead),
        (1..10_000u32).prop_map(Forged::Old),
        far.clone().prop_map(Forged::AcknowledgesTheFuture),
        far.clone().prop_map(Forged::AcknowledgesThePast),
        Just(Forged::Unacknowledged),
        Just(Forged::Synchronises),
        far.prop_map(Forged::Resets),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_tcp_refuses_changes_nothing(
        hostile in vec((forged(), 0..2_000u32, any::<bool>(), any::<Index>()), 0..200), exchanges in 1..60usize,
    ) {
        let mut proxy = Proxy::new();
        for exchange in 0..exchanges {
            for &(forged, length, fin, _) in hostile.iter().filter(|(.., when)| when.index(exchanges) == exchange) {
                let payload = vec![b'\n'; length as usize];
                let segment = forged.make(&proxy, length, fin);
                prop_assert_eq!(proxy.arrives(&segment, &payload), 0, "{:?} is read", forged);
            }
            proxy.exchange();
        }
        let finished = &proxy.wire.env.finished;
        prop_assert_eq!(finished.len(), exchanges);
        prop_assert!(finished.iter().all(|f| f.status == 200 && f.bytes == [GET.len() as u64, ANSWER.len() as u64]));
        prop_assert_eq!(&proxy.wire.env.counts, &[(Counter::ConnectionHttp1, 1)]);
        prop_assert_eq!(proxy.wire.c.first_end, Peer::NONE, "nothing has ended");
    }

    #[test]
    fn what_tcp_refuses_leaves_room_for_out_of_order_segments(
        hostile in vec((0..250_000u32, 1..2_000u32), 0..40), cut in 1..GET.len(),
    ) {
        let mut proxy = Proxy::new();
        proxy.exchange();
        for (by, length) in hostile {
            let segment = Forged::BehindTheWindow(by).make(&proxy, length, false);
            proxy.arrives(&segment, &vec![b'x'; length as usize]);
        }
        let whole = proxy.honest(GET.len());
        let second = Segment { seq: whole.seq.wrapping_add(cut as u32), length: (GET.len() - cut) as u32, ..whole };
        proxy.arrives(&second, &GET[cut..]);
        proxy.arrives(&Segment { length: cut as u32, ..whole }, &GET[..cut]);
        proxy.tcp.rcv_nxt = whole.end();
        let Wire { c, env, .. } = &mut proxy.wire;
        env.packet = [&[0xee; 52], ANSWER].concat();
        http1::on_payload(c, env, Direction::Response, proxy.tcp.snd_nxt, 52, ANSWER.len() as u32);
        let bytes: Vec<_> = env.finished.iter().map(|f| f.bytes).collect();
        prop_assert_eq!(bytes, vec![[GET.len() as u64, ANSWER.len() as u64]; 2], "{:?}", env.counts);
    }
}

/// Both ends of every number's range are as the kernel has them.
#[test]
fn a_segment_is_taken_or_refused_as_tcp_does() {
    let tcp = Socket { state: ESTABLISHED, rcv_nxt: 5, snd_una: 100, snd_nxt: 300, acknowledged: 40 };
    let honest = Segment { seq: 5, ack: 300, offset: 0, length: 10, flags: ACK };
    let accepts = |segment: Segment| tcp.accepts(&segment, 5, 300);
    assert!(accepts(honest));
    for (ack, taken) in [(100, true), (99, true), (60, true), (59, false), (301, false), (300 + (1 << 31), false)] {
        assert_eq!(accepts(Segment { ack, ..honest }), taken, "ack {ack}");
    }
    for (flags, taken) in [(ACK | FIN, true), (0, false), (FIN, false), (SYN | ACK, false), (RST, true)] {
        assert_eq!(accepts(Segment { flags, ..honest }), taken, "flags {flags}");
    }
    for (seq, taken) in [(4, false), (6, false), (5 + (1 << 20), false)] {
        assert_eq!(accepts(Segment { seq, flags: RST, ..honest }), taken, "a reset at {seq}");
    }
    // What the hooks saw sent, and the socket does not say yet, can be acknowledged; a FIN has a number once it can be sent.
    assert!(tcp.accepts(&Segment { ack: 350, ..honest }, 5, 350));
    assert!(!tcp.accepts(&Segment { ack: 351, ..honest }, 5, 350));
    let closed = Socket { state: 4, ..tcp };
    assert!(closed.accepts(&Segment { ack: 351, ..honest }, 5, 350));
}

/// The bytes in front of a FIN come behind it.
#[test]
fn a_fin_ends_a_response_at_its_sequence_number() {
    let mut wire = Wire::new(ConnLeg::DESTINATION);
    wire.deliver(Direction::Request, GET, 0, GET.len());
    let answer = b"HTTP/1.0 200 OK\r\n\r\nsome bytes";
    wire.deliver(Direction::Response, answer, 0, 24);
    let fin = Segment { seq: wire.base[Direction::Response] + 29, ack: 0, offset: 52, length: 0, flags: ACK | FIN };
    assert!(!close::on_segment_end(&mut wire.c, &mut wire.env, Direction::Response, &fin));
    assert!(wire.env.finished.is_empty());
    wire.deliver(Direction::Response, answer, 24, 29);
    let data = Segment { seq: wire.base[Direction::Response] + 24, length: 5, flags: ACK, ..fin };
    close::on_segment_end(&mut wire.c, &mut wire.env, Direction::Response, &data);
    assert_eq!(wire.env.finished.iter().map(|f| f.bytes[Direction::Response]).collect::<Vec<_>>(), [29]);
}
