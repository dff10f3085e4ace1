//! The kernel's HTTP/2 reading on whole connections written by hand: any interleaving of streams, framed, cut, repeated
//! and overlapped in any way, yields the same requests.

mod fixture;

use std::collections::VecDeque;

use fixture::{
    Wire,
    cuts::{cuts, deliver},
    frames::{
        self, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PADDED, PING, PREFACE, PRIORITY, RST_STREAM,
        SETTINGS, Shape, WINDOW_UPDATE, data, frame, goaway, headers, message, meter, promise, reset,
    },
};
use httlib_hpack::Encoder;
use observer_common::{Direction, GRPC_NONE, GRPC_UNKNOWN, Protocol, STATUS_UNKNOWN, health::Counter};
use observer_proto::{
    ConnLeg, FinishedRequest, OptionU32,
    connection::flags::GATEWAY,
    http2::{self, MAX_MAPPED, MORE_STREAMS, OWN_STREAMS},
};
use proptest::{
    collection::vec,
    prelude::*,
    sample::{Index, select},
};

const BEST: u8 = Encoder::BEST_FORMAT | Encoder::WITH_INDEXING;
const HUFFMAN: u8 = Encoder::HUFFMAN_NAME | Encoder::HUFFMAN_VALUE;

/// Both directions of a connection as they are written, and their encoders.
struct Writer {
    encoders: [Encoder<'static>; 2],
    streams: [Vec<u8>; 2],
    flags: u8,
}

impl Writer {
    /// Preface and settings of both.
    fn new() -> Self {
        let settings = frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 1, 0]);
        Self {
            encoders: [Encoder::default(), Encoder::default()],
            streams: [[PREFACE, &settings].concat(), settings.clone()],
            flags: BEST | HUFFMAN,
        }
    }

    fn block(&mut self, direction: Direction, fields: &[(&str, &str)]) -> Vec<u8> {
        let mut block = Vec::new();
        for &(name, value) in fields {
            let field = (name.as_bytes().to_vec(), value.as_bytes().to_vec(), self.flags);
            self.encoders[direction].encode(field, &mut block).expect("a field");
        }
        block
    }

    fn write(&mut self, direction: Direction, bytes: &[u8]) {
        self.streams[direction].extend_from_slice(bytes);
    }

    fn headers(&mut self, direction: Direction, stream: u32, flags: u8, fields: &[(&str, &str)]) {
        let block = self.block(direction, fields);
        self.write(direction, &headers(stream, flags, &block, &Shape::default()));
    }

    fn ask(&mut self, stream: u32, flags: u8) {
        self.headers(Direction::Request, stream, flags, &[(":method", "GET"), (":path", "/"), (":scheme", "http")]);
    }

    fn call(&mut self, stream: u32) {
        let fields =
            [(":method", "POST"), (":path", "/a.B/C"), ("content-type", "application/grpc"), ("te", "trailers")];
        self.headers(Direction::Request, stream, 0, &fields);
    }

    fn answer(&mut self, stream: u32, flags: u8, status: &str) {
        self.headers(Direction::Response, stream, flags, &[(":status", status)]);
    }
}

/// A connection that has what is written delivered whenever the direction changes.
struct Talk {
    writer: Writer,
    wire: Wire,
    sent: [usize; 2],
}

impl Talk {
    fn new(leg: ConnLeg) -> Self {
        Self { writer: Writer::new(), wire: Wire::new(leg), sent: [0; 2] }
    }

    /// Delivers what is written and not yet sent, whole.
    fn send(&mut self, direction: Direction) {
        let stream = &self.writer.streams[direction];
        if self.sent[direction] < stream.len() {
            self.wire.deliver(direction, stream, self.sent[direction], stream.len());
            self.sent[direction] = stream.len();
        }
    }

    fn flush(&mut self) {
        self.send(Direction::Request);
        self.send(Direction::Response);
    }

    /// Forgets what is written and not yet sent: the peer gets it, the programs do not.
    fn lose(&mut self, direction: Direction) {
        let to = self.writer.streams[direction].len();
        self.wire.miss(direction, self.sent[direction], to);
        self.sent[direction] = to;
    }

    fn finished(&self) -> Vec<(u16, u64, Counter)> {
        let outcome = |f: &FinishedRequest| *Counter::ALL.iter().find(|c| **c as u16 == f.outcome).expect("a counter");
        self.wire.env.finished.iter().map(|f| (f.status, f.grpc_status, outcome(f))).collect()
    }

    fn count_of(&self, counter: Counter) -> u64 {
        self.wire.env.count_of(counter)
    }
}

/// Does the proxy receive what is written in a direction?
fn received(leg: ConnLeg, direction: Direction) -> bool {
    (leg == ConnLeg::SOURCE) == (direction == Direction::Request)
}

/// How a stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Normal,
    ResetByClient,
    ResetByServer,
}

/// One stream, before it is written.
#[derive(Clone, Debug)]
struct Plan {
    grpc: Option<u32>,
    status: u16,
    interim: usize,
    bodies: [Vec<usize>; 2],
    fields: Vec<(String, String)>,
    shape: Shape,
    empty_end: bool,
    trailers: bool,
    end: End,
    /// Units of frames each direction has sent when the reset comes.
    cut: Index,
    flags: u8,
}

fn shape() -> impl Strategy<Value = Shape> {
    (prop::option::of(any::<u8>()), any::<bool>(), vec(0..40usize, 0..4))
        .prop_map(|(padding, priority, fragments)| Shape { padding, priority, fragments })
}

/// Mostly one that is known to everybody, else one of the application's own.
fn grpc_status() -> impl Strategy<Value = u32> {
    let odd = prop::sample::select(vec![8_190, 8_191, 40_103, 65_534, 65_535, 1 << 31, u32::MAX - 1, u32::MAX]);
    prop_oneof![6 => 0..17u32, 1 => odd]
}

fn plan() -> impl Strategy<Value = Plan> {
    let status = prop_oneof![Just(200u16), Just(204), Just(404), 200..1000u16];
    let end = prop_oneof![8 => Just(End::Normal), 1 => Just(End::ResetByClient), 1 => Just(End::ResetByServer)];
    let body = || vec(prop_oneof![Just(0usize), 0..20usize, 0..700usize], 0..4);
    let field = ("[a-z][a-z-]{0,14}x", "[ -~]{0,60}");
    let flags = (any::<bool>(), any::<bool>(), prop_oneof![Just(0), Just(Encoder::NEVER_INDEXED), Just(BEST)])
        .prop_map(|(name, value, form)| u8::from(name) | u8::from(value) << 1 | form);
    (
        (prop::option::of(grpc_status()), status, 0..3usize, body(), body(), vec(field, 0..5)),
        (shape(), any::<bool>(), any::<bool>(), end, any::<Index>(), flags),
    )
        .prop_map(
            |((grpc, status, interim, asked, sent, fields), (shape, empty_end, trailers, end, cut, flags))| Plan {
                grpc,
                status,
                interim,
                bodies: [asked, sent],
                fields,
                shape,
                empty_end,
                trailers,
                end,
                cut,
                flags,
            },
        )
}

/// A frame, or frames that belong together; blocks are encoded when it is their turn.
enum Unit {
    Block { flags: u8, fields: Vec<(String, String)> },
    Data { flags: u8, payload: Vec<u8> },
    Reset,
}

impl Plan {
    /// The bodies' data as it is cut into frames: with gRPC a message may begin in one and end in another.
    fn data(&self, direction: Direction) -> Vec<Vec<u8>> {
        let bodies = &self.bodies[direction];
        if self.grpc.is_none() {
            return bodies.iter().map(|&length| vec![b'd'; length]).collect();
        }
        let whole: Vec<u8> = bodies.iter().flat_map(|&length| message(length)).collect();
        let size = 1 + self.shape.fragments.iter().sum::<usize>();
        whole.chunks(size).map(<[u8]>::to_vec).collect()
    }

    fn units(&self, direction: Direction) -> Vec<Unit> {
        let own = |name: &str, value: String| (name.to_owned(), value);
        let mut fields = Vec::new();
        let mut units = Vec::new();
        let trailers_only =
            self.grpc.is_some() && direction == Direction::Response && self.bodies[Direction::Response].is_empty();
        if direction == Direction::Request {
            fields.push(own(":method", "POST".into()));
            let kind = if self.grpc.is_some() { "application/grpc+proto" } else { "application/grpc-web" };
            fields.push(own("content-type", kind.into()));
        } else {
            for _ in 0..self.interim {
                units.push(Unit::Block { flags: 0, fields: vec![own(":status", "103".into())] });
            }
            fields.push(own(":status", self.status.to_string()));
            if trailers_only {
                fields.push(own("grpc-status", self.grpc.unwrap().to_string()));
            }
        }
        fields.extend(self.fields.clone());
        let data = self.data(direction);
        let trailers = direction == Direction::Response && !trailers_only && (self.grpc.is_some() || self.trailers);
        let open = !data.is_empty() || trailers || (self.empty_end && !trailers_only);
        units.push(Unit::Block { flags: if open { 0 } else { END_STREAM }, fields });
        let last = data.len();
        for (number, payload) in data.into_iter().enumerate() {
            let ends = number + 1 == last && !trailers && !self.empty_end;
            units.push(Unit::Data { flags: if ends { END_STREAM } else { 0 }, payload });
        }
        if trailers {
            let mut fields = self.fields.clone();
            fields.extend(self.grpc.map(|status| own("grpc-status", status.to_string())));
            units.push(Unit::Block { flags: END_STREAM, fields });
        } else if self.empty_end && open {
            units.push(Unit::Data { flags: END_STREAM, payload: Vec::new() });
        }
        units
    }
}

/// What is to come out of one stream.
#[derive(Debug, PartialEq, Eq)]
struct Expected {
    status: u16,
    grpc_status: u64,
    protocol: Protocol,
    bytes: [u64; 2],
    messages: [u32; 2],
    early: bool,
}

impl From<&FinishedRequest> for Expected {
    fn from(f: &FinishedRequest) -> Self {
        Self {
            status: f.status,
            grpc_status: f.grpc_status,
            protocol: f.protocol,
            bytes: f.bytes,
            messages: f.messages,
            early: f.outcome == Counter::RequestEndedEarly as u16,
        }
    }
}

/// One stream while its frames are written.
struct Progress {
    plan: Plan,
    units: [VecDeque<Unit>; 2],
    left_to_reset: usize,
    reset: Option<Direction>,
    status: u16,
    grpc_status: u64,
    done: [bool; 2],
    sent: [usize; 2],
    bytes: [u64; 2],
}

impl Progress {
    fn new(plan: &Plan) -> Self {
        let units = [plan.units(Direction::Request).into(), plan.units(Direction::Response).into()];
        let total: usize = units.iter().map(VecDeque::len).sum();
        Self {
            plan: plan.clone(),
            left_to_reset: plan.cut.index(total),
            reset: None,
            units,
            status: 0,
            grpc_status: GRPC_NONE,
            done: [false; 2],
            sent: [0; 2],
            bytes: [0; 2],
        }
    }

    fn over(&self) -> bool {
        self.done == [true; 2]
    }

    /// The next direction to write and what; a response only once the request has begun.
    fn next(&mut self, wish: Direction) -> (Direction, Unit) {
        let begun = self.bytes[Direction::Request] > 0;
        if begun && self.left_to_reset == 0 && self.plan.end != End::Normal {
            let by = if self.plan.end == End::ResetByClient { Direction::Request } else { Direction::Response };
            return (by, Unit::Reset);
        }
        self.left_to_reset = self.left_to_reset.saturating_sub(1);
        let direction = if !begun || self.done[Direction::Response] {
            Direction::Request
        } else if self.done[Direction::Request] {
            Direction::Response
        } else {
            wish
        };
        (direction, self.units[direction].pop_front().expect("not done"))
    }

    /// Messages whose first byte was sent.
    fn begun(&self, direction: Direction) -> u32 {
        let begins =
            self.plan.bodies[direction].iter().scan(0, |at, length| Some(std::mem::replace(at, *at + 5 + length)));
        begins.filter(|begin| *begin < self.sent[direction]).count() as u32
    }

    fn expected(&self, leg: ConnLeg) -> Expected {
        let grpc = self.plan.grpc.is_some();
        let unanswered = self.status == 0 && leg == ConnLeg::DESTINATION && self.reset == Some(Direction::Response);
        Expected {
            status: match self.status {
                0 if unanswered => {
                    if grpc {
                        200
                    } else {
                        503
                    }
                }
                status => status,
            },
            grpc_status: if unanswered && grpc { 14 } else { self.grpc_status },
            protocol: if grpc { Protocol::GRPC } else { Protocol::HTTP },
            bytes: self.bytes,
            messages: [Direction::Request, Direction::Response]
                .map(|direction| if grpc { self.begun(direction) } else { 0 }),
            early: self.reset.is_some(),
        }
    }
}

/// Writes the plans' streams interleaved as given; returns what is to come out, in order, and when each direction was
/// written up to where.
fn write(plans: &[Plan], order: &[(Index, bool)], leg: ConnLeg) -> (Writer, Vec<Expected>, Vec<(Direction, usize)>) {
    let mut writer = Writer::new();
    let mut steps = vec![
        (Direction::Request, writer.streams[Direction::Request].len()),
        (Direction::Response, writer.streams[Direction::Response].len()),
    ];
    let mut calls: Vec<Progress> = plans.iter().map(Progress::new).collect();
    let mut expected = Vec::new();
    // The first streams are open; a new one opens only behind all before it, as its number demands.
    let mut opened = 0;
    for (pick, response) in order.iter().cycle() {
        let candidates: Vec<usize> = (0..calls.len().min(opened + 1)).filter(|&number| !calls[number].over()).collect();
        if candidates.is_empty() {
            break;
        }
        let number = candidates[pick.index(candidates.len())];
        opened = opened.max(number + 1);
        let id = number as u32 * 2 + 1;
        let call = &mut calls[number];
        let (direction, unit) = call.next(if *response { Direction::Response } else { Direction::Request });
        let before = writer.streams[direction].len();
        let noise = [
            frame(PING, 0, 0, &[7; 8]),
            frame(WINDOW_UPDATE, 0, if call.bytes[Direction::Request] > 0 { id } else { 0 }, &[0, 0, 1, 0]),
            frame(PRIORITY, 0, id, &[0, 0, 0, 0, 9]),
            frame(0xbe, 0xff, id, b"unknown"),
            Vec::new(),
        ];
        let noise = &noise[before % noise.len()];
        writer.write(direction, noise);
        match unit {
            Unit::Block { flags, fields } => {
                writer.flags = call.plan.flags;
                let fields: Vec<(&str, &str)> = fields.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
                let block = writer.block(direction, &fields);
                writer.write(direction, &headers(id, flags, &block, &call.plan.shape));
                let value = |name| fields.iter().find(|f| f.0 == name).map(|f| f.1.parse::<u64>().expect("a number"));
                if direction == Direction::Response {
                    call.status = value(":status").filter(|s| *s >= 200).map_or(call.status, |s| s as u16);
                    call.grpc_status = value("grpc-status").unwrap_or(call.grpc_status);
                }
                call.done[direction] = flags & END_STREAM != 0;
            }
            Unit::Data { flags, payload } => {
                call.sent[direction] += payload.len();
                writer.write(direction, &data(id, flags, &payload, &call.plan.shape));
                call.done[direction] = flags & END_STREAM != 0;
            }
            Unit::Reset => {
                writer.write(direction, &reset(id));
                let answered = direction == Direction::Response && call.done[Direction::Response];
                if received(leg, direction) && !answered {
                    call.bytes[direction] += 13;
                }
                call.done = [true; 2];
                call.reset = Some(direction);
            }
        }
        let written = meter(&writer.streams[direction][before..], !received(leg, direction));
        call.bytes[direction] += written.get(&id).copied().unwrap_or_default();
        steps.push((direction, writer.streams[direction].len()));
        if call.over() {
            expected.push(call.expected(leg));
        }
    }
    (writer, expected, steps)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_framing_and_segmentation_yields_the_same_requests(
        plans in vec(plan(), 1..8), order in vec((any::<Index>(), any::<bool>()), 1..60), cuts in [cuts(), cuts()],
        source in any::<bool>(),
    ) {
        let leg = if source { ConnLeg::SOURCE } else { ConnLeg::DESTINATION };
        let (writer, expected, steps) = write(&plans, &order, leg);
        let mut wire = Wire::new(leg);
        let mut sent = [0; 2];
        for (direction, to) in steps {
            deliver(&mut wire, direction, &writer.streams[direction], sent[direction], to, &cuts[direction]);
            sent[direction] = to;
        }
        let finished: Vec<Expected> = wire.env.finished.iter().map(Expected::from).collect();
        prop_assert_eq!(finished, expected, "counts {:?}", wire.env.counts);
        prop_assert_eq!(wire.open(), 0);
        wire.close();
        prop_assert_eq!(wire.env.finished.len(), plans.len());
        prop_assert_eq!(&wire.env.counts, &[(Counter::ConnectionHttp2, 1)]);
        prop_assert_eq!(wire.c.flows.map(|s| s.seen_bytes as usize), writer.streams.map(|s| s.len()));
    }

    #[test]
    fn a_segment_that_comes_late_costs_no_request_or_is_counted(
        plans in vec(plan(), 1..5), order in vec((any::<Index>(), any::<bool>()), 1..60), cuts in cuts(),
        late in any::<Index>(), ahead in 1..5usize, direction in select(Direction::BOTH.to_vec()), crowded in any::<bool>(),
    ) {
        // Resets cross what they end; which came first is then unknown.
        let plans: Vec<Plan> = plans.into_iter().map(|plan| Plan { end: End::Normal, ..plan }).collect();
        let (writer, expected, _) = write(&plans, &order, ConnLeg::DESTINATION);
        let mut wire = Wire::new(ConnLeg::DESTINATION);
        wire.env.no_buffers = crowded;
        let late_one = |wire: &mut Wire| {
            let stream = &writer.streams[direction];
            let from = late.index(stream.len());
            let to = (from + cuts[0].0).min(stream.len());
            deliver(wire, direction, stream, 0, from, &cuts);
            let mut end = to;
            for &(length, ..) in cuts.iter().cycle().take(ahead) {
                let next = (end + length).min(stream.len());
                if next > end {
                    wire.deliver(direction, stream, end, next);
                }
                end = next;
            }
            wire.deliver(direction, stream, from, to);
            deliver(wire, direction, stream, end, stream.len(), &cuts);
            wire.catch_up(direction);
        };
        for each in [Direction::Request, Direction::Response] {
            if each == direction {
                late_one(&mut wire);
            } else {
                deliver(&mut wire, each, &writer.streams[each], 0, writer.streams[each].len(), &cuts);
            }
        }
        let losses = wire.env.count_of(Counter::DesyncGap);
        prop_assert!(losses <= u64::from(crowded));
        prop_assert!(wire.env.buffers.is_empty());
        if losses == 0 && !crowded {
            prop_assert_eq!(wire.open(), 0);
            let by_bytes = |all: &mut Vec<Expected>| all.sort_by_key(|e| (e.bytes, e.status));
            let mut finished: Vec<Expected> = wire.env.finished.iter().map(Expected::from).collect();
            let mut expected = expected;
            by_bytes(&mut finished);
            by_bytes(&mut expected);
            prop_assert_eq!(finished, expected, "{:?}", wire.env.counts);
        } else {
            wire.close();
            // A position that a few bytes spoke for may be none, and its streams neither; answers begin no streams.
            let counted = wire.env.finished.len() as u64 + wire.env.count_of(Counter::RequestDesync);
            prop_assert!(direction == Direction::Request || counted == plans.len() as u64, "{:?}", wire.env.counts);
        }
    }

    /// What is known of a stream on a connection joined at any point is right, and what is not known is said to be so.
    #[test]
    fn a_connection_joined_anywhere_claims_nothing_that_is_wrong(
        plans in vec(plan(), 1..12), order in vec((any::<Index>(), any::<bool>()), 1..60), cuts in [cuts(), cuts()],
        source in any::<bool>(), joined in any::<Index>(),
    ) {
        let leg = if source { ConnLeg::SOURCE } else { ConnLeg::DESTINATION };
        let (writer, expected, steps) = write(&plans, &order, leg);
        let mut wire = Wire::preexisting(leg);
        let mut sent = [0; 2];
        let join = joined.index(steps.len());
        for (number, (direction, to)) in steps.into_iter().enumerate() {
            if number >= join {
                deliver(&mut wire, direction, &writer.streams[direction], sent[direction], to, &cuts[direction]);
            }
            sent[direction] = to;
        }
        wire.close();
        prop_assert_eq!(wire.env.count_of(Counter::ConnectionHttp1), 0);
        prop_assert_eq!(wire.open(), 0);
        let late = Counter::RequestPreexisting as u16;
        for f in &wire.env.finished {
            // A position found inside a stream, or given up there, leaves its bytes short and its end open.
            let fits = |e: &&Expected| {
                (f.status == STATUS_UNKNOWN || f.status == e.status || f.outcome == Counter::RequestEndedEarly as u16)
                    && (f.outcome == late || f.protocol == e.protocol)
                    && (f.grpc_status == GRPC_UNKNOWN || f.grpc_status == e.grpc_status || f.outcome != Counter::RequestOk as u16)
            };
            prop_assert!(expected.iter().any(|e| fits(&e)), "{f:?} of {expected:?}");
            let known = f.status != STATUS_UNKNOWN && f.grpc_status != GRPC_UNKNOWN && f.protocol != Protocol::UNKNOWN;
            prop_assert_eq!(known, f.outcome != late, "{:?}", f);
        }
    }

    #[test]
    fn any_bytes_end_without_panic_or_endless_loop(
        requests in vec(any::<u8>(), 0..2_000), responses in vec(any::<u8>(), 0..2_000), cuts in cuts(),
    ) {
        let mut wire = Wire::new(ConnLeg::SOURCE);
        let requests = [PREFACE, &requests].concat();
        deliver(&mut wire, Direction::Request, &requests, 0, requests.len(), &cuts);
        deliver(&mut wire, Direction::Response, &responses, 0, responses.len(), &cuts);
        wire.close();
        prop_assert_eq!(wire.open(), 0);
        prop_assert!(wire.env.steps <= 20 * (requests.len() + responses.len() + 100) as u64 * 3);
    }

    #[test]
    fn a_changed_byte_ends_without_panic_or_endless_loop(
        plans in vec(plan(), 1..5), order in vec((any::<Index>(), any::<bool>()), 1..60), cuts in cuts(),
        changes in vec((0..2usize, any::<Index>(), any::<u8>()), 1..6),
    ) {
        let (mut writer, _, steps) = write(&plans, &order, ConnLeg::SOURCE);
        for (direction, at, byte) in changes {
            let at = at.index(writer.streams[direction].len());
            writer.streams[direction][at] = byte;
        }
        let mut wire = Wire::new(ConnLeg::SOURCE);
        let mut sent = [0; 2];
        for (direction, to) in steps {
            deliver(&mut wire, direction, &writer.streams[direction], sent[direction], to, &cuts);
            sent[direction] = to;
        }
        wire.close();
        prop_assert_eq!(wire.open(), 0);
        for direction in [Direction::Request, Direction::Response] {
            let bytes: u64 = wire.env.finished.iter().map(|f| f.bytes[direction]).sum();
            prop_assert!(bytes as usize <= sent[direction] + 4 * wire.env.finished.len(), "at most some cut short RST_STREAMs more");
        }
    }
}

#[test]
fn a_server_may_speak_first() {
    let mut talk = Talk::new(ConnLeg::SOURCE);
    talk.send(Direction::Response);
    talk.writer.ask(1, END_STREAM);
    talk.send(Direction::Request);
    talk.writer.answer(1, END_STREAM, "418");
    talk.send(Direction::Response);
    assert_eq!(talk.finished(), [(418, GRPC_NONE, Counter::RequestOk)]);
    assert_eq!(talk.wire.env.counts, [(Counter::ConnectionHttp2, 1)]);
}

#[test]
fn the_preface_may_come_in_pieces() {
    for first in 1..PREFACE.len() + 10 {
        let mut talk = Talk::new(ConnLeg::SOURCE);
        talk.wire.deliver(Direction::Request, &talk.writer.streams[Direction::Request], 0, first);
        talk.sent[Direction::Request] = first;
        talk.writer.ask(1, END_STREAM);
        talk.writer.answer(1, END_STREAM, "418");
        talk.flush();
        assert_eq!(talk.finished(), [(418, GRPC_NONE, Counter::RequestOk)], "{first} bytes first");
    }
}

/// The preface is known by its first four bytes, and those may come last, with everything behind them buffered.
#[test]
fn the_beginning_of_the_preface_may_come_last() {
    for late in 1..8 {
        for ahead in 1..4 {
            let mut talk = Talk::new(ConnLeg::SOURCE);
            talk.writer.ask(1, END_STREAM);
            let stream = talk.writer.streams[Direction::Request].clone();
            let cuts: Vec<usize> = (0..=ahead).map(|cut| late + cut * (stream.len() - late) / ahead).collect();
            for cut in cuts.windows(2) {
                talk.wire.deliver(Direction::Request, &stream, cut[0], cut[1]);
            }
            for from in 0..late {
                talk.wire.deliver(Direction::Request, &stream, from, from + 1);
            }
            talk.sent[Direction::Request] = stream.len();
            talk.writer.answer(1, END_STREAM, "418");
            talk.flush();
            assert_eq!(talk.finished(), [(418, GRPC_NONE, Counter::RequestOk)], "{late} late, {ahead} ahead");
            assert!(talk.wire.env.buffers.is_empty());
        }
    }
}

#[test]
fn a_proxy_protocol_header_may_precede_the_preface() {
    let binary = [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", &[7; 12][..]].concat();
    for header in [&b"PROXY TCP4 192.0.2.1 192.0.2.2 1234 80\r\n"[..], &binary] {
        for cut in 1..header.len() + PREFACE.len() + 10 {
            let mut talk = Talk::new(ConnLeg::SOURCE);
            talk.wire.c.flags |= GATEWAY;
            talk.writer.ask(1, END_STREAM);
            let stream = [header, &talk.writer.streams[Direction::Request]].concat();
            talk.wire.deliver(Direction::Request, &stream, 0, cut);
            talk.wire.deliver(Direction::Request, &stream, cut, stream.len());
            talk.sent[Direction::Request] = talk.writer.streams[Direction::Request].len();
            talk.writer.answer(1, END_STREAM, "418");
            talk.flush();
            assert_eq!(talk.finished(), [(418, GRPC_NONE, Counter::RequestOk)], "cut at {cut} of {header:?}");
        }
    }
}

/// A client whose settings come before its preface.
fn overtaken(crowded: bool) -> Talk {
    let mut talk = Talk::new(ConnLeg::SOURCE);
    talk.wire.env.no_buffers = crowded;
    let preface = PREFACE.len();
    let settings = talk.writer.streams[Direction::Request].len();
    talk.wire.deliver(Direction::Request, &talk.writer.streams[Direction::Request], preface, settings);
    talk.wire.deliver(Direction::Request, &talk.writer.streams[Direction::Request], 0, preface);
    talk.sent[Direction::Request] = settings;
    talk
}

#[test]
fn frames_that_overtake_the_preface_wait_for_it() {
    let mut talk = overtaken(false);
    talk.writer.ask(1, END_STREAM);
    talk.writer.answer(1, END_STREAM, "418");
    talk.flush();
    assert_eq!(talk.finished(), [(418, GRPC_NONE, Counter::RequestOk)]);
    assert!(talk.wire.env.buffers.is_empty());
}

#[test]
fn without_room_frames_that_overtake_the_preface_cost_the_position_once() {
    let mut talk = overtaken(true);
    // What shows the loss is passed over.
    talk.writer.write(Direction::Request, &frame(PING, 0, 0, &[7; 8]));
    talk.flush();
    talk.writer.ask(1, END_STREAM);
    talk.writer.answer(1, END_STREAM, "418");
    talk.flush();
    assert_eq!(talk.finished(), [(418, GRPC_NONE, Counter::RequestOk)]);
    assert_eq!(talk.count_of(Counter::DesyncGap), 1);
}

#[test]
fn three_hundred_streams_are_open_at_once() {
    let mut talk = Talk::new(ConnLeg::SOURCE);
    let ids: Vec<u32> = (0..300).map(|number| number * 2 + 1).collect();
    for &id in &ids {
        if id % 3 == 0 { talk.writer.call(id) } else { talk.writer.ask(id, 0) }
    }
    talk.flush();
    assert_eq!(talk.wire.open(), 300);
    for &id in &ids {
        talk.writer.write(Direction::Request, &data(id, END_STREAM, &message(id as usize), &Shape::default()));
    }
    talk.flush();
    for id in ids.iter().rev() {
        let status = (300 + id).to_string();
        talk.writer.answer(*id, 0, &status);
        talk.writer.write(Direction::Response, &data(*id, END_STREAM, b"", &Shape::default()));
    }
    talk.flush();
    let expected: Vec<_> = ids.iter().rev().map(|id| (300 + *id as u16, GRPC_NONE, Counter::RequestOk)).collect();
    assert_eq!(talk.finished(), expected);
    assert_eq!(talk.wire.open(), 0);
    let messages: u32 = talk.wire.env.finished.iter().map(|f| f.messages[Direction::Request]).sum();
    assert_eq!(messages, 100);
    for (finished, id) in talk.wire.env.finished.iter().zip(ids.iter().rev()) {
        assert_eq!(finished.bytes[Direction::Request], meter(&talk.writer.streams[Direction::Request], false)[id]);
        assert_eq!(finished.bytes[Direction::Response], meter(&talk.writer.streams[Direction::Response], false)[id]);
    }
}

/// The close counts each of them once, but those that are alike together.
#[test]
fn a_close_with_thousands_of_open_streams_is_bounded_and_counts_each() {
    for narrow in [false, true] {
        let mut talk = Talk::new(ConnLeg::DESTINATION);
        talk.wire.env.is_full = narrow;
        let most = OWN_STREAMS + if narrow { 0 } else { MORE_STREAMS } + MAX_MAPPED;
        for number in 0..most as u32 + 500 {
            talk.writer.ask(number * 2 + 1, END_STREAM);
        }
        talk.flush();
        assert_eq!(talk.wire.open(), most);
        assert_eq!(talk.count_of(Counter::RequestNoRoom), 500);
        talk.wire.end(Direction::Response, true);
        talk.wire.close();
        assert_eq!(talk.wire.open(), 0);
        assert_eq!(talk.finished(), vec![(503, GRPC_NONE, Counter::RequestEndedEarly); most]);
        // They differ in their first bytes only.
        assert!(talk.wire.env.batches < 100, "counted {} times", talk.wire.env.batches);
    }
}

/// However long some are open and however many come and go meanwhile.
#[test]
fn streams_that_stay_open_take_no_room_from_others() {
    let mut talk = Talk::new(ConnLeg::SOURCE);
    let stay = 400;
    for number in 0..stay {
        talk.writer.ask(number * 2 + 1, END_STREAM);
    }
    talk.flush();
    for number in stay..stay + 5_000 {
        talk.writer.ask(number * 2 + 1, END_STREAM);
        talk.writer.answer(number * 2 + 1, END_STREAM, "299");
        talk.flush();
        assert_eq!(talk.wire.open(), stay as usize);
    }
    for number in (0..stay).rev() {
        talk.writer.answer(number * 2 + 1, END_STREAM, "299");
    }
    talk.flush();
    assert_eq!(talk.finished(), vec![(299, GRPC_NONE, Counter::RequestOk); stay as usize + 5_000]);
    assert_eq!(talk.wire.open(), 0);
}

#[test]
fn a_graceful_goaway_closes_no_stream() {
    let mut talk = Talk::new(ConnLeg::DESTINATION);
    talk.writer.ask(1, END_STREAM);
    talk.writer.ask(3, END_STREAM);
    talk.flush();
    for (last, open) in [(0x7fff_ffff, 2), (3, 2), (1, 1)] {
        let Wire { c, h, env, .. } = &mut talk.wire;
        h.frames[Direction::Response].goaway = OptionU32::some(last);
        http2::on_segment_end(c, h, env, Direction::Response, false);
        assert_eq!(talk.wire.open(), open, "last stream {last}");
    }
}

#[test]
fn answers_that_are_alike_are_counted_together_and_others_apart() {
    let mut talk = Talk::new(ConnLeg::SOURCE);
    for id in [1, 3, 5, 7, 9] {
        talk.writer.ask(id, END_STREAM);
    }
    talk.flush();
    let booked = talk.wire.env.batches;
    for (id, status) in [(1, "299"), (3, "299"), (5, "298"), (7, "299"), (9, "299")] {
        talk.writer.answer(id, END_STREAM, status);
    }
    talk.flush();
    assert_eq!(talk.finished(), [299, 299, 298, 299, 299].map(|status| (status, GRPC_NONE, Counter::RequestOk)));
    // The first two differ by how the status is sent.
    assert_eq!(talk.wire.env.batches - booked, 4);
}

#[test]
fn a_stream_without_room_is_counted_as_such() {
    let mut talk = Talk::new(ConnLeg::SOURCE);
    (talk.wire.env.refused, talk.wire.env.is_full) = (vec![65], true);
    for id in [1, 65, 67] {
        talk.writer.ask(id, END_STREAM);
    }
    for id in [1, 65, 67] {
        talk.writer.answer(id, END_STREAM, "299");
    }
    talk.flush();
    assert_eq!(talk.finished(), [(299, GRPC_NONE, Counter::RequestOk); 2]);
    assert_eq!(talk.count_of(Counter::RequestNoRoom), 1);
    assert_eq!(talk.wire.open(), 0);
}

#[test]
fn a_promise_fills_the_header_table_and_is_no_request() {
    for padding in [None, Some(0), Some(9)] {
        let mut talk = Talk::new(ConnLeg::SOURCE);
        talk.writer.ask(1, END_STREAM);
        let promised =
            talk.writer.block(Direction::Response, &[(":method", "GET"), ("x-promised", "yes"), (":status", "207")]);
        let shape = Shape { padding, fragments: vec![1, 0, 2], ..Shape::default() };
        talk.writer.write(Direction::Response, &promise(1, 2, &promised, &shape));
        talk.flush();
        let before = talk.sent[Direction::Response];
        talk.writer.answer(1, END_STREAM, "207");
        talk.writer.answer(2, END_STREAM, "208");
        talk.writer.ask(3, END_STREAM);
        talk.writer.answer(3, END_STREAM, "208");
        talk.flush();
        assert_eq!(talk.finished(), [207, 208].map(|status| (status, GRPC_NONE, Counter::RequestOk)));
        assert_eq!(talk.wire.open(), 0);
        // The promise belongs to no request's bytes.
        assert_eq!(
            talk.wire.env.finished[0].bytes[Direction::Response],
            meter(&talk.writer.streams[Direction::Response][before..], false)[&1]
        );
    }
}

#[test]
fn a_reset_has_its_thirteen_bytes_where_the_proxy_receives_it() {
    for (leg, by, received) in [
        (ConnLeg::SOURCE, Direction::Request, true),
        (ConnLeg::SOURCE, Direction::Response, false),
        (ConnLeg::DESTINATION, Direction::Request, false),
        (ConnLeg::DESTINATION, Direction::Response, true),
    ] {
        let mut talk = Talk::new(leg);
        talk.writer.ask(1, 0);
        talk.flush();
        talk.writer.write(by, &reset(1));
        talk.flush();
        // What still comes of the stream belongs to none.
        talk.writer.answer(1, END_STREAM, "200");
        talk.flush();
        let status = if leg == ConnLeg::DESTINATION && by == Direction::Response { 503 } else { 0 };
        assert_eq!(talk.finished(), [(status, GRPC_NONE, Counter::RequestEndedEarly)], "leg {leg:?} reset by {by:?}");
        let mut bytes = [meter(&talk.writer.streams[Direction::Request], false)[&1], 0];
        bytes[by] += if received { 13 } else { 0 };
        assert_eq!(talk.wire.env.finished[0].bytes, bytes, "leg {leg:?} reset by {by:?}");
        assert_eq!(talk.wire.open(), 0);
    }
}

#[test]
fn goaway_closes_the_streams_above_its_last_one() {
    for leg in [ConnLeg::SOURCE, ConnLeg::DESTINATION] {
        let mut talk = Talk::new(leg);
        for number in 0..50 {
            talk.writer.ask(number * 2 + 1, END_STREAM);
        }
        talk.flush();
        talk.writer.write(Direction::Response, &goaway(0x7fff_ffff));
        talk.flush();
        assert_eq!(talk.wire.open(), 50);
        talk.writer.write(Direction::Response, &goaway(3));
        talk.flush();
        assert_eq!(talk.wire.open(), 2);
        if leg == ConnLeg::SOURCE {
            assert_eq!(talk.count_of(Counter::RequestAbandoned), 48);
            assert_eq!(talk.finished(), []);
        } else {
            assert_eq!(talk.finished(), [(503, GRPC_NONE, Counter::RequestEndedEarly); 48]);
        }
        talk.writer.answer(1, END_STREAM, "201");
        talk.writer.answer(3, END_STREAM, "202");
        talk.flush();
        assert_eq!(talk.wire.open(), 0);
        assert_eq!(
            talk.finished()[talk.finished().len() - 2..],
            [201, 202].map(|s| (s, GRPC_NONE, Counter::RequestOk))
        );
    }
}

#[test]
fn a_client_that_goes_away_closes_no_stream() {
    let mut talk = Talk::new(ConnLeg::SOURCE);
    talk.writer.ask(1, END_STREAM);
    talk.writer.write(Direction::Request, &goaway(0));
    talk.writer.answer(1, END_STREAM, "201");
    talk.flush();
    assert_eq!(talk.finished(), [(201, GRPC_NONE, Counter::RequestOk)]);
}

#[test]
fn an_early_end_has_the_status_of_who_ended_it() {
    for (leg, by, plain, grpc) in [
        (ConnLeg::SOURCE, Direction::Request, (0, GRPC_NONE), (0, GRPC_NONE)),
        (ConnLeg::SOURCE, Direction::Response, (0, GRPC_NONE), (0, GRPC_NONE)),
        (ConnLeg::DESTINATION, Direction::Response, (503, GRPC_NONE), (200, 14)),
        (ConnLeg::DESTINATION, Direction::Request, (0, GRPC_NONE), (0, GRPC_NONE)),
    ] {
        let mut talk = Talk::new(leg);
        talk.writer.ask(1, END_STREAM);
        talk.writer.call(3);
        talk.writer.ask(5, END_STREAM);
        talk.writer.ask(65, END_STREAM);
        talk.writer.answer(5, 0, "299");
        talk.flush();
        talk.wire.end(by, false);
        talk.wire.close();
        talk.wire.close();
        let early = |(status, grpc)| (status, grpc, Counter::RequestEndedEarly);
        let expected = [early(plain), early(grpc), early((299, GRPC_NONE)), early(plain)];
        assert_eq!(talk.finished(), expected, "leg {leg:?} ended by {by:?}");
        assert_eq!(talk.wire.open(), 0);
    }
}

#[test]
fn a_frame_that_never_came_whole_counts_no_more_than_came() {
    let mut talk = Talk::new(ConnLeg::DESTINATION);
    talk.writer.ask(1, END_STREAM);
    talk.writer.answer(1, 0, "200");
    talk.flush();
    let answer = meter(&talk.writer.streams[Direction::Response], false)[&1];
    talk.writer.write(Direction::Response, &data(1, END_STREAM, &[b'x'; 10_000], &Shape::default())[..500]);
    talk.flush();
    talk.wire.end(Direction::Response, false);
    talk.wire.close();
    assert_eq!(talk.finished(), [(200, GRPC_NONE, Counter::RequestEndedEarly)]);
    assert!((answer..=answer + 500).contains(&talk.wire.env.finished[0].bytes[Direction::Response]));
}

#[test]
fn a_body_whose_end_was_out_of_order_ends_with_the_missing_bytes() {
    for (first, second) in [(100, 200), (20, 40), (50, 308)] {
        let mut talk = Talk::new(ConnLeg::DESTINATION);
        talk.writer.ask(1, END_STREAM);
        talk.writer.answer(1, 0, "299");
        talk.flush();
        let from = talk.sent[Direction::Response];
        talk.writer.write(Direction::Response, &data(1, END_STREAM, &[b'x'; 300], &Shape::default()));
        let stream = &talk.writer.streams[Direction::Response];
        talk.wire.deliver(Direction::Response, stream, from + second, stream.len());
        talk.wire.deliver(Direction::Response, stream, from, from + first);
        talk.wire.deliver(Direction::Response, stream, from + first, from + second);
        assert_eq!(talk.finished(), [(299, GRPC_NONE, Counter::RequestOk)]);
        assert_eq!(talk.count_of(Counter::DesyncGap), 0);
    }
}

#[test]
fn out_of_order_segments_are_read_to_their_end() {
    let mut talk = Talk::new(ConnLeg::DESTINATION);
    talk.writer.ask(1, END_STREAM);
    talk.writer.answer(1, 0, "299");
    talk.flush();
    let from = talk.sent[Direction::Response];
    for number in 0..300 {
        talk.writer.write(
            Direction::Response,
            &data(1, if number < 299 { 0 } else { END_STREAM }, &[b'x'; 1_000], &Shape::default()),
        );
    }
    let stream = &talk.writer.streams[Direction::Response];
    // While it waits for the first bytes, some of them come and make room for more.
    for (begin, end) in [(100_000, 150_000), (150_000, 200_000), (200_000, 250_000), (0, 50_000), (250_000, 300_000)] {
        talk.wire.deliver(Direction::Response, stream, from + begin, from + end);
    }
    talk.wire.deliver(Direction::Response, stream, from + 50_000, from + 100_000);
    talk.wire.deliver(Direction::Response, stream, from + 300_000, stream.len());
    assert_eq!(talk.finished(), [(299, GRPC_NONE, Counter::RequestOk)]);
    assert_eq!(talk.wire.env.finished[0].bytes[Direction::Response], meter(stream, false)[&1]);
    assert_eq!(talk.wire.env.counts, [(Counter::ConnectionHttp2, 1)]);
    assert!(talk.wire.env.buffers.is_empty());
}

#[test]
fn missing_data_is_passed_over() {
    let mut talk = Talk::new(ConnLeg::DESTINATION);
    talk.writer.ask(1, END_STREAM);
    talk.writer.answer(1, 0, "299");
    talk.flush();
    let from = talk.sent[Direction::Response];
    talk.writer.write(Direction::Response, &data(1, END_STREAM, &[b'x'; 300], &Shape::default()));
    talk.writer.ask(3, END_STREAM);
    talk.writer.answer(3, END_STREAM, "298");
    talk.send(Direction::Request);
    let stream = &talk.writer.streams[Direction::Response];
    talk.wire.deliver(Direction::Response, stream, from, from + 50);
    talk.wire.miss(Direction::Response, from + 50, from + 309);
    talk.wire.deliver(Direction::Response, stream, from + 309, stream.len());
    assert_eq!(talk.finished(), [299, 298].map(|status| (status, GRPC_NONE, Counter::RequestOk)));
    assert_eq!(talk.wire.env.finished[0].bytes[Direction::Response], meter(stream, false)[&1]);
}

#[test]
fn bytes_missing_elsewhere_cost_the_position_once_and_the_open_streams() {
    let mut talk = Talk::new(ConnLeg::DESTINATION);
    for id in [1, 3, 65] {
        talk.writer.ask(id, END_STREAM);
    }
    talk.writer.answer(1, END_STREAM, "299");
    talk.flush();
    talk.writer.answer(3, END_STREAM, "298");
    talk.lose(Direction::Response);
    talk.writer.write(Direction::Response, &frame(0xbe, 0, 0, &[7; 900]));
    talk.send(Direction::Response);
    assert_eq!(talk.count_of(Counter::DesyncGap), 1);
    assert_eq!(talk.count_of(Counter::RequestDesync), 2);
    assert_eq!(talk.wire.open(), 0);
    talk.writer.ask(67, END_STREAM);
    talk.writer.answer(67, END_STREAM, "299");
    talk.flush();
    // The same status, but from the table of before.
    let expected = [(299, GRPC_NONE, Counter::RequestOk), (STATUS_UNKNOWN, GRPC_NONE, Counter::RequestPreexisting)];
    assert_eq!(talk.finished(), expected);
    talk.wire.close();
    assert_eq!(talk.count_of(Counter::DesyncGap), 1);
}

#[test]
fn a_preexisting_connection_is_found_at_a_frame_and_counted_without_a_status_from_before() {
    for base in [u32::MAX - 700, 12, 1 << 31, 3_000_000_000] {
        let mut talk = Talk::new(ConnLeg::SOURCE);
        talk.wire = Wire::preexisting(ConnLeg::SOURCE);
        talk.wire.base = [base; 2];
        talk.writer.ask(1, END_STREAM);
        talk.writer.answer(1, END_STREAM, "299");
        talk.lose(Direction::Request);
        talk.lose(Direction::Response);
        for id in [3, 5] {
            talk.writer.ask(id, 0);
            talk.writer.write(Direction::Request, &data(id, END_STREAM, b"hello", &Shape::default()));
            talk.send(Direction::Request);
            talk.writer.answer(id, 0, "299");
            talk.writer.write(Direction::Response, &data(id, END_STREAM, b"hello", &Shape::default()));
            talk.send(Direction::Response);
        }
        assert_eq!(talk.finished(), [(STATUS_UNKNOWN, GRPC_NONE, Counter::RequestPreexisting); 2], "from {base} on");
        for (finished, id) in talk.wire.env.finished.iter().zip([3, 5]) {
            assert_eq!(finished.bytes, [0, 1].map(|direction| meter(&talk.writer.streams[direction], false)[&id]));
        }
        assert_eq!(talk.wire.open(), 0);
        talk.writer.ask(7, END_STREAM);
        talk.send(Direction::Request);
        talk.wire.end(Direction::Request, false);
        talk.wire.end(Direction::Response, false);
        assert_eq!(talk.finished().len(), 3);
        assert_eq!(talk.wire.open(), 0);
    }
}

#[test]
fn a_preexisting_connection_is_not_found_inside_a_frame() {
    let mut talk = Talk::new(ConnLeg::SOURCE);
    talk.wire = Wire::preexisting(ConnLeg::SOURCE);
    talk.lose(Direction::Request);
    let from = talk.sent[Direction::Request];
    talk.writer.ask(1, 0);
    talk.writer.write(Direction::Request, &data(1, END_STREAM, &[b'x'; 1_000], &Shape::default()));
    // A segment that ends inside data, one that begins there, then one that begins with a frame.
    talk.wire.deliver(Direction::Request, &talk.writer.streams[Direction::Request], from, from + 500);
    talk.wire.deliver(
        Direction::Request,
        &talk.writer.streams[Direction::Request],
        from + 500,
        talk.writer.streams[Direction::Request].len(),
    );
    talk.lose(Direction::Request);
    talk.writer.ask(3, END_STREAM);
    talk.writer.answer(3, END_STREAM, "299");
    talk.flush();
    assert_eq!(talk.finished(), [(299, GRPC_NONE, Counter::RequestOk)]);
}

#[test]
fn a_preexisting_connection_that_is_in_the_middle_of_data_is_known_by_its_server() {
    for update in [frame(WINDOW_UPDATE, 0, 0, &[0, 0, 64, 0]), frame(PING, 1, 0, &[7; 8])] {
        let mut talk = Talk::new(ConnLeg::SOURCE);
        talk.wire = Wire::preexisting(ConnLeg::SOURCE);
        talk.writer.ask(1, 0);
        talk.flush();
        talk.wire = Wire::preexisting(ConnLeg::SOURCE);
        talk.writer.write(Direction::Request, &data(1, END_STREAM, &[b'x'; 10_000], &Shape::default()));
        talk.sent[Direction::Request] += 3_000;
        for part in [1_000, 2_000] {
            let from = talk.sent[Direction::Request];
            talk.wire.deliver(Direction::Request, &talk.writer.streams[Direction::Request], from, from + part);
            talk.sent[Direction::Request] += part;
            talk.writer.write(Direction::Response, &update);
            talk.send(Direction::Response);
        }
        talk.send(Direction::Request);
        talk.writer.answer(1, END_STREAM, "299");
        talk.flush();
        talk.writer.ask(3, END_STREAM);
        talk.writer.answer(3, END_STREAM, "299");
        talk.flush();
        assert_eq!(talk.count_of(Counter::ConnectionTcp), 0);
        assert_eq!(talk.count_of(Counter::ConnectionHttp2), 1);
        assert_eq!(talk.finished(), [(299, GRPC_NONE, Counter::RequestOk)]);
    }
}

/// A content type of before is not known by its index; one of after is, at the first stream and at all others. Either way the
/// answer's gRPC status tells.
#[test]
fn a_stream_on_a_preexisting_connection_is_distinguished_from_others() {
    let mut talk = Talk::new(ConnLeg::SOURCE);
    talk.writer.call(1);
    talk.wire = Wire::preexisting(ConnLeg::SOURCE);
    talk.lose(Direction::Request);
    talk.lose(Direction::Response);
    let mut exchange = |id, content_type| {
        talk.writer.headers(Direction::Request, id, 0, &[(":method", "POST"), ("content-type", content_type)]);
        talk.writer.write(Direction::Request, &data(id, END_STREAM, &message(3), &Shape::default()));
        talk.send(Direction::Request);
        talk.writer.answer(id, 0, "200");
        talk.writer.write(Direction::Response, &data(id, 0, &[message(3), message(5)].concat(), &Shape::default()));
        talk.writer.headers(Direction::Response, id, END_STREAM, &[("grpc-status", "5")]);
        talk.send(Direction::Response);
    };
    for (id, content_type) in [(3, "application/grpc"), (5, "application/grpc+proto"), (7, "application/grpc+proto")] {
        exchange(id, content_type);
    }
    exchange(9, "application/grpc");
    assert_eq!(talk.finished(), [(200, 5, Counter::RequestOk); 4]);
    let finished = &talk.wire.env.finished;
    let kinds: Vec<_> = finished.iter().map(|call| (call.protocol, call.messages)).collect();
    // Where only the answer says it, and behind the messages, they are not counted.
    let (late, known) = ((Protocol::GRPC, [0, 0]), (Protocol::GRPC, [1, 2]));
    assert_eq!(kinds, [late, known, known, late]);
}

#[test]
fn a_preexisting_connection_may_yet_have_its_preface_to_come() {
    let mut talk = Talk::new(ConnLeg::SOURCE);
    talk.wire = Wire::preexisting(ConnLeg::SOURCE);
    talk.flush();
    assert_eq!(talk.count_of(Counter::ConnectionHttp2), 1);
    talk.writer.ask(1, END_STREAM);
    talk.writer.answer(1, END_STREAM, "299");
    talk.flush();
    assert_eq!(talk.finished(), [(299, GRPC_NONE, Counter::RequestOk)]);
}

#[test]
fn what_is_no_http2_costs_the_position_once() {
    let block = |flags, payload: &[u8]| frame(HEADERS, flags | END_HEADERS, 3, payload);
    for (what, bytes) in [
        ("a continuation of nothing", frame(CONTINUATION, END_HEADERS, 3, &[0x88])),
        ("data inside a block", [frame(HEADERS, 0, 3, &[0x88]), frame(DATA, 0, 3, b"x")].concat()),
        ("another's continuation", [frame(HEADERS, 0, 3, &[0x88]), frame(CONTINUATION, 4, 5, &[0x88])].concat()),
        ("padding beyond the frame", block(PADDED, &[9, 0x88])),
        ("padding without its length", block(PADDED, &[])),
        ("a priority cut short", block(frames::HAS_PRIORITY, &[0, 0, 0, 1])),
        ("headers of no stream", frame(HEADERS, END_HEADERS, 0, &[0x88])),
        ("data of no stream", frame(DATA, 0, 0, b"x")),
        ("a reset with a byte too many", frame(RST_STREAM, 0, 3, &[0; 5])),
        ("index zero", block(0, &[0x80])),
        ("an index of nothing", block(0, &[0xbe])),
        ("an endless integer", block(0, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0])),
        ("a block cut short", block(0, &[0x48])),
        ("a string cut short", block(0, &[0x48, 3, b'2'])),
        ("a long string cut short", block(0, &[0, 100, b'2'])),
    ] {
        let mut talk = Talk::new(ConnLeg::SOURCE);
        talk.writer.ask(1, END_STREAM);
        talk.writer.ask(3, END_STREAM);
        talk.flush();
        talk.writer.write(Direction::Response, &bytes);
        talk.flush();
        assert_eq!(talk.count_of(Counter::DesyncMalformed), 1, "{what}");
        assert_eq!(talk.count_of(Counter::RequestDesync), 2, "{what}");
        assert_eq!(talk.wire.open(), 0);
        talk.writer.ask(5, END_STREAM);
        talk.writer.answer(5, END_STREAM, "299");
        talk.flush();
        assert_eq!(talk.finished(), [(299, GRPC_NONE, Counter::RequestOk)], "{what}");
    }
}

#[test]
fn streams_to_an_application_that_violates_the_protocol_are_answered_by_its_proxy() {
    let mut talk = Talk::new(ConnLeg::DESTINATION);
    talk.writer.ask(1, END_STREAM);
    talk.writer.call(3);
    talk.writer.ask(5, END_STREAM);
    talk.writer.answer(5, 0, "299");
    talk.flush();
    // A frame larger than any that a proxy allows.
    talk.writer.write(Direction::Response, &[1, 0, 0, DATA, 0, 0, 0, 0, 5]);
    talk.flush();
    let expected = [(502, GRPC_NONE), (200, 14), (299, GRPC_NONE)];
    assert_eq!(talk.finished(), expected.map(|(status, grpc)| (status, grpc, Counter::RequestEndedEarly)));
    assert_eq!(talk.count_of(Counter::DesyncMalformed), 1);
    assert_eq!(talk.count_of(Counter::RequestDesync), 0);
    assert_eq!(talk.wire.open(), 0);
}

/// Answers that a proxy takes for a broken connection: it answers in the application's place, and with none of its bytes.
#[test]
fn answers_that_are_refused_are_502() {
    type Fields = &'static [(&'static str, &'static str)];
    let refused: [(&str, Fields); 15] = [
        ("connection", &[(":status", "200"), ("connection", "close")]),
        ("keep-alive", &[(":status", "200"), ("keep-alive", "timeout=5")]),
        ("proxy-connection", &[(":status", "200"), ("proxy-connection", "close")]),
        ("transfer-encoding", &[(":status", "200"), ("transfer-encoding", "chunked")]),
        ("upgrade", &[(":status", "200"), ("upgrade", "h2c")]),
        ("no name", &[(":status", "200"), ("", "v")]),
        ("no status", &[("x-a", "v")]),
        ("nothing", &[]),
        ("two statuses", &[(":status", "200"), (":status", "404")]),
        ("status behind a field", &[("x-a", "v"), (":status", "200")]),
        ("a short status", &[(":status", "20")]),
        ("a long status", &[(":status", "2000")]),
        ("an empty status", &[(":status", "")]),
        ("a signed status", &[(":status", "+20")]),
        ("an interim answer that ends", &[(":status", "103")]),
    ];
    for (what, fields) in refused {
        for flags in [0, BEST, BEST | HUFFMAN] {
            let mut talk = Talk::new(ConnLeg::DESTINATION);
            talk.writer.flags = flags;
            talk.writer.ask(1, END_STREAM);
            talk.writer.ask(3, END_STREAM);
            talk.writer.headers(Direction::Response, 1, END_STREAM, fields);
            talk.flush();
            assert_eq!(talk.finished(), [(502, GRPC_NONE, Counter::RequestEndedEarly); 2], "{what}");
            assert!(talk.wire.env.finished.iter().all(|finished| finished.bytes[Direction::Response] == 0));
        }
    }
    for name in [":foo", "X-Upper", "x-uppeR", "x y", "x\t", "a-long-name-that-is-spelt-ouT"] {
        let mut talk = Talk::new(ConnLeg::DESTINATION);
        talk.writer.flags = 0;
        talk.writer.ask(1, END_STREAM);
        talk.writer.headers(Direction::Response, 1, END_STREAM, &[(":status", "200"), (name, "v")]);
        talk.flush();
        assert_eq!(talk.finished(), [(502, GRPC_NONE, Counter::RequestEndedEarly)], "{name}");
    }
    let ok = headers(1, END_STREAM, &[0x88], &Shape::default());
    for (what, frames) in [
        ("data first", data(1, END_STREAM, b"x", &Shape::default())),
        ("an even stream", headers(2, END_STREAM, &[0x88], &Shape::default())),
        ("a stream that nobody has begun", headers(3, END_STREAM, &[0x88], &Shape::default())),
        ("settings of five bytes", frame(SETTINGS, 0, 0, &[0; 5])),
        ("a ping of seven bytes", frame(PING, 0, 0, &[0; 7])),
        ("a ping on a stream", frame(PING, 0, 1, &[0; 8])),
        ("a promise", promise(1, 2, &[0x82], &Shape::default())),
        ("a size behind a field", headers(1, END_STREAM, &[0x88, 0x20], &Shape::default())),
        ("three sizes", headers(1, END_STREAM, &[0x20, 0x20, 0x20, 0x88], &Shape::default())),
    ] {
        let mut talk = Talk::new(ConnLeg::DESTINATION);
        talk.writer.ask(1, END_STREAM);
        talk.flush();
        talk.writer.write(Direction::Response, &[frames, ok.clone()].concat());
        talk.flush();
        assert_eq!(talk.finished(), [(502, GRPC_NONE, Counter::RequestEndedEarly)], "{what}");
    }
}

/// What is wrong with trailers comes too late for another code.
#[test]
fn trailers_that_are_refused_end_the_stream_early() {
    for (flags, fields) in [(END_STREAM, [(":status", "200")]), (0, [("x-sum", "0")])] {
        let mut talk = Talk::new(ConnLeg::DESTINATION);
        talk.writer.ask(1, END_STREAM);
        talk.writer.answer(1, 0, "299");
        talk.flush();
        let answer = meter(&talk.writer.streams[Direction::Response], false)[&1];
        talk.writer.headers(Direction::Response, 1, flags, &fields);
        talk.flush();
        assert_eq!(talk.finished(), [(299, GRPC_NONE, Counter::RequestEndedEarly)]);
        assert_eq!(talk.wire.env.finished[0].bytes[Direction::Response], answer);
    }
}

/// The proxy resets the stream, and its meter has the reset instead of the fields.
#[test]
fn more_fields_than_a_proxy_takes() {
    let fields = |first: (&'static str, &'static str), number| {
        let more: Vec<(String, String)> = (1..number).map(|field| (format!("x-{field}"), "v".to_owned())).collect();
        let mut all = vec![(first.0.to_owned(), first.1.to_owned())];
        all.extend(more);
        all
    };
    for (leg, number, status) in [
        (ConnLeg::DESTINATION, 100, 200),
        (ConnLeg::DESTINATION, 101, 503),
        (ConnLeg::SOURCE, 100, 299),
        (ConnLeg::SOURCE, 101, 0),
    ] {
        let mut talk = Talk::new(leg);
        let first = if leg == ConnLeg::SOURCE { (":method", "GET") } else { (":status", "200") };
        let all = fields(first, number);
        let all: Vec<(&str, &str)> = all.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let (by, given) = if leg == ConnLeg::SOURCE {
            talk.writer.headers(Direction::Request, 1, END_STREAM, &all);
            (Direction::Response, Direction::Request)
        } else {
            talk.writer.ask(1, END_STREAM);
            talk.flush();
            talk.writer.headers(Direction::Response, 1, END_STREAM, &all);
            (Direction::Request, Direction::Response)
        };
        talk.flush();
        if number > 100 {
            talk.writer.write(by, &reset(1));
        } else if leg == ConnLeg::SOURCE {
            talk.writer.answer(1, END_STREAM, "299");
        }
        talk.flush();
        assert_eq!(talk.finished().iter().map(|call| call.0).collect::<Vec<_>>(), [status], "{number} fields");
        assert_eq!(talk.wire.env.finished[0].bytes[given] == 0, number > 100);
        let asked = if leg == ConnLeg::SOURCE { 0 } else { meter(&talk.writer.streams[Direction::Request], true)[&1] };
        assert!(number == 100 || talk.wire.env.finished[0].bytes[by] == asked + 13);
    }
}

/// A client that breaks the protocol has its connection ended, and its streams have no code.
#[test]
fn requests_that_are_refused_have_no_code() {
    for fields in
        [[(":method", "GET"), ("connection", "close")], [(":method", "GET"), ("transfer-encoding", "chunked")]]
    {
        let mut talk = Talk::new(ConnLeg::SOURCE);
        talk.writer.ask(1, END_STREAM);
        talk.writer.headers(Direction::Request, 3, END_STREAM, &fields);
        talk.flush();
        assert_eq!(talk.finished(), [(0, GRPC_NONE, Counter::RequestEndedEarly); 2]);
        assert_eq!(talk.wire.env.finished[1].bytes, [0, 0]);
    }
}

#[test]
fn an_extended_connect_that_is_granted_is_an_upgrade() {
    for flags in [BEST, BEST | HUFFMAN] {
        let mut talk = Talk::new(ConnLeg::SOURCE);
        talk.writer.flags = flags;
        // The second time from the header table; the third is a plain CONNECT.
        for id in [1, 3, 5] {
            let fields = [(":method", "CONNECT"), (":protocol", "websocket")];
            talk.writer.headers(Direction::Request, id, END_STREAM, if id == 5 { &fields[..1] } else { &fields });
            talk.writer.answer(id, END_STREAM, if id == 3 { "403" } else { "200" });
        }
        talk.flush();
        assert_eq!(talk.finished(), [101, 403, 200].map(|status| (status, GRPC_NONE, Counter::RequestOk)));
    }
}

#[test]
fn a_status_that_cannot_be_read_is_unknown() {
    for junk in ["", "2", "42", "0099", "20o", "1000", "99999", "two hundred"] {
        for flags in [BEST, BEST | HUFFMAN] {
            let mut talk = Talk::new(ConnLeg::SOURCE);
            talk.writer.flags = flags;
            for id in [1, 3] {
                talk.writer.ask(id, END_STREAM);
                talk.writer.answer(id, END_STREAM, junk);
            }
            talk.flush();
            assert_eq!(talk.finished(), [(STATUS_UNKNOWN, GRPC_NONE, Counter::RequestStatusUnknown); 2], "{junk:?}");
        }
    }
}

#[test]
fn a_grpc_status_that_cannot_be_read_is_unknown() {
    for junk in ["", "-1", "+", "1e3", "++5", "4294967296", "ok"] {
        let mut talk = Talk::new(ConnLeg::SOURCE);
        talk.writer.call(1);
        talk.writer.write(Direction::Request, &data(1, END_STREAM, b"", &Shape::default()));
        talk.writer.headers(Direction::Response, 1, END_STREAM, &[(":status", "200"), ("grpc-status", junk)]);
        talk.flush();
        assert_eq!(talk.finished(), [(200, GRPC_UNKNOWN, Counter::RequestStatusUnknown)], "{junk:?}");
    }
}

/// Numbers of 32 bits as they are read by a proxy, in headers and from the header table.
#[test]
fn a_grpc_status_is_any_number_of_32_bits() {
    for (text, number) in [
        ("17", 17),
        ("8190", 8_190),
        ("8191", 8_191),
        ("9999", 9_999),
        ("10000", 10_000),
        ("40103", 40_103),
        ("65534", 65_534),
        ("65535", 65_535),
        ("4294967294", 4_294_967_294),
        ("4294967295", 4_294_967_295),
        ("+5", 5),
        ("005", 5),
        ("0000000000000005", 5),
    ] {
        for flags in [0, BEST, BEST | HUFFMAN] {
            let mut talk = Talk::new(ConnLeg::SOURCE);
            talk.writer.flags = flags;
            for id in [1, 3] {
                talk.writer.call(id);
                talk.writer.write(Direction::Request, &data(id, END_STREAM, b"", &Shape::default()));
                talk.writer.headers(Direction::Response, id, END_STREAM, &[(":status", "200"), ("grpc-status", text)]);
            }
            talk.flush();
            assert_eq!(talk.finished(), [(200, number, Counter::RequestOk); 2], "{text}");
        }
    }
}

/// Of those too large for the header table's entries only some are remembered; the others are exact where they are spelt out.
#[test]
fn more_large_grpc_statuses_than_are_remembered() {
    let mut talk = Talk::new(ConnLeg::SOURCE);
    let statuses: Vec<u64> = (0..12).map(|number| 100_000 + number).collect();
    for (call, status) in statuses.iter().chain(&statuses).enumerate() {
        let id = call as u32 * 2 + 1;
        talk.writer.call(id);
        talk.writer.write(Direction::Request, &data(id, END_STREAM, b"", &Shape::default()));
        talk.writer.headers(
            Direction::Response,
            id,
            END_STREAM,
            &[(":status", "200"), ("grpc-status", &status.to_string())],
        );
    }
    talk.flush();
    let finished: Vec<u64> = talk.finished().iter().map(|call| call.1).collect();
    assert_eq!(finished[..12], statuses);
    assert_eq!(finished[12..19], statuses[..7]);
    assert_eq!(finished[19..], [GRPC_UNKNOWN; 5]);
}

#[test]
fn only_grpc_has_messages_and_a_grpc_status() {
    for (kind, protocol) in [
        ("", Protocol::HTTP),
        ("application/grpc", Protocol::GRPC),
        ("application/grpc+json", Protocol::GRPC),
        ("application/grpc-web", Protocol::HTTP),
        ("application/grp", Protocol::HTTP),
        ("application/json", Protocol::HTTP),
        ("application/grpc; x", Protocol::HTTP),
    ] {
        for flags in [BEST, BEST | HUFFMAN, Encoder::WITH_INDEXING, HUFFMAN] {
            let mut talk = Talk::new(ConnLeg::SOURCE);
            talk.writer.flags = flags;
            // The second time from the header table.
            for id in [1, 3] {
                talk.writer.headers(Direction::Request, id, 0, &[(":method", "POST"), ("content-type", kind)]);
                talk.writer.write(Direction::Request, &data(id, END_STREAM, &message(9), &Shape::default()));
                talk.writer.headers(Direction::Response, id, END_STREAM, &[(":status", "200"), ("grpc-status", "5")]);
            }
            talk.flush();
            let grpc = protocol == Protocol::GRPC;
            for finished in &talk.wire.env.finished {
                let expected = (protocol, if grpc { 5 } else { GRPC_NONE }, [u32::from(grpc), 0]);
                assert_eq!((finished.protocol, finished.grpc_status, finished.messages), expected, "{kind:?}");
            }
            assert_eq!(talk.finished().len(), 2);
        }
    }
}
