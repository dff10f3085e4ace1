//! HTTP/1: reads requests and responses of a connection, just enough to find where messages begin and end (RFC 9112).
//!
//! Of a message only the start line and six headers are read; bodies are skipped arithmetically. Connections of unknown
//! protocol are read here too, until their first bytes decide it.

mod exchange;
mod resync;
mod sniff;
mod state;
mod syntax;
pub(crate) mod text;

use observer_common::{
    CallerId,
    Direction::{self, Request, Response},
    Method,
    health::Counter,
};

use crate::{
    atomic, caller,
    classify::{classify_encrypted, classify_http1, classify_http2, classify_tcp, count_bytes},
    connection::{
        ConnLeg, ConnProtocol, Connection,
        exchange_state::{ANSWERED, CALLER_SHIFT, HAS_TRACE, IS_CONNECT, IS_GRPC, IS_HEAD, IS_UPGRADE, REQUEST_DONE},
        flags::{CLOSING, DECLARED_HTTP, DECLARED_TCP, GATEWAY, PREEXISTING, UNLIKELY_HTTP},
    },
    env::{ByteSource, Pool, Recorder, Step, TraceStore},
    flow::{CARRY, Flow, Refill},
    option::{OptionU32, Peer},
    reassembly::{buffer_segment, free_if_drained},
    segment::Segment,
    trace,
};

use self::{
    exchange::{Author, BAD_GATEWAY, answer, finish_answered, open},
    flags::{
        BEGUN, CHUNKED, CLOSE, CONNECT, CONNECTION_UPGRADE, GRPC, HEAD, IN_CALLER, IN_CODING, IN_LENGTH, LENGTH_READ,
        LONG_LINE, TRACED, UPGRADE,
    },
    resync::{desync, ensure_sync, stop},
    sniff::{Sniffed, detect_proxy_header, sniff, sniff_server},
    syntax::{
        CALLER_NAME, Malformed, begin_chunk, chunk_line, header_line, is_last, is_malformed, names_caller,
        request_line, skip_lines, status_line, trim_cr,
    },
    text::{LOWER, blank_run},
};

pub(crate) use exchange::{close_exchanges, count_due};
pub use state::{flags, phase};

/// Most steps per packet: one of 64 KiB of one-byte chunks needs 33,000; BIG TCP has larger ones.
pub const MAX_STEPS: u32 = 1 << 17;
/// Most blocks of 64 bytes per step that are looked through for a line that matters.
const MAX_BLOCKS: u32 = 4;

/// Handles payload `[seq, seq + length)` that lies at packet offset `offset`. If the connection turns out to speak HTTP/2,
/// the payload counts as not handled, and is to be given to [`crate::http2::on_payload`].
#[inline(always)]
pub fn on_payload<E: ByteSource>(
    c: &mut Connection,
    env: &mut E,
    direction: Direction,
    seq: u32,
    offset: u32,
    length: u32,
) {
    let flow = &c.flows[direction];
    let before = (if flow.seq_state == 0 { seq } else { flow.next }, flow.seen_bytes);
    receive(c, env, direction, seq, offset, length);
    if c.protocol() == ConnProtocol::HTTP2 {
        let flow = &mut c.flows[direction];
        let (end, read) = (seq.wrapping_add(length), flow.next);
        (flow.next, flow.seen_bytes) = before;
        if (read.wrapping_sub(end) as i32) > 0 {
            // The segments behind it were taken out of their ranges, and are yet to be read.
            flow.insert_range(end, read);
        }
        flow.clear();
        flow.skip = 0;
    }
    free_if_drained(env, &mut c.flows[direction]);
}

/// Handles the payload of a TCP connection, whose bytes are only counted.
#[inline(always)]
pub fn on_tcp_payload<E: Recorder + Pool>(c: &mut Connection, env: &mut E, direction: Direction, segment: &Segment) {
    let flow = &mut c.flows[direction];
    if segment.length == 0 || !flow.locate(segment.seq, segment.offset, segment.length) {
        return;
    }
    if flow.gap() != 0 {
        flow.insert_range(segment.seq, segment.end());
        return;
    }
    flow.advance(segment.end());
    if flow.ranges_used != 0 {
        flow.remove_seen_ranges();
    }
    count_packet(c, env, direction);
    free_if_drained(env, &mut c.flows[direction]);
}

#[inline(always)]
fn receive<E: ByteSource>(c: &mut Connection, env: &mut E, direction: Direction, seq: u32, offset: u32, length: u32) {
    if !c.flows[direction].locate(seq, offset, length) {
        return;
    }
    let is_parsed = is_parsed(c);
    let flow = &mut c.flows[direction];
    if flow.gap() != 0 {
        if is_parsed {
            buffer_segment(env, flow, seq, offset, length);
        } else {
            flow.insert_range(seq, seq.wrapping_add(length));
        }
        return;
    }
    flow.advance(seq.wrapping_add(length));
    if flow.ranges_used != 0 && !is_parsed {
        flow.remove_seen_ranges();
    }
    let sender = Peer::sender(direction);
    let direction_changed = c.last_sender.load() != sender;
    c.last_sender.store(sender);
    if c.protocol() == ConnProtocol::UNDECIDED {
        classify_unparsed(c, env, direction);
    }
    let protocol = c.protocol();
    if protocol == ConnProtocol::UNDECIDED || protocol == ConnProtocol::HTTP1 {
        if direction == Response {
            finish_answered(c);
        }
        if ensure_sync(c, env, direction, direction_changed) && !run(c, env, direction) {
            desync(c, env, Counter::DesyncSteps);
        }
    }
    count_packet(c, env, direction);
}

/// Reads the packet; returns false if it takes too many steps. Each direction is a loop of its own, so that the verifier
/// knows it.
#[inline(always)]
fn run<E: ByteSource>(c: &mut Connection, env: &mut E, direction: Direction) -> bool {
    match direction {
        Request => env.take_steps(MAX_STEPS, |env| env.step_http1(c, Request)),
        Response => env.take_steps(MAX_STEPS, |env| env.step_http1(c, Response)),
    }
}

/// Counts the exchange or the TCP bytes that the packet has added.
#[inline(always)]
fn count_packet<E: Recorder>(c: &mut Connection, env: &mut E, direction: Direction) {
    count_due(c, env, direction);
    if c.protocol() == ConnProtocol::TCP && c.has_destination() {
        count_bytes(c, env, direction);
    }
}

/// Takes one step through the packet, and then through the segments that were buffered behind it.
#[inline(always)]
pub fn step<E: ByteSource>(c: &mut Connection, env: &mut E, direction: Direction) -> Step {
    count_due(c, env, direction);
    match read_step(c, env, direction) {
        Step::Done if c.flows[direction].ranges_used != 0 => resume_buffered(c, env, direction),
        step => step,
    }
}

/// Takes one step through the packet.
#[inline(always)]
fn read_step<E: ByteSource>(c: &mut Connection, env: &mut E, direction: Direction) -> Step {
    // One call of `read_line`, so that the verifier checks it once.
    match find_line(c, env, direction) {
        Some(step) => step,
        None => read_line(c, env, direction),
    }
}

/// Finds the next line to be read; if there is none yet, takes one step and returns its outcome.
#[inline(always)]
fn find_line<E: ByteSource>(c: &mut Connection, env: &mut E, direction: Direction) -> Option<Step> {
    let flow = &mut c.flows[direction];
    if flow.skip > 0 {
        if !flow.skip_bytes() {
            return Some(Step::Done);
        }
        on_skipped(c, env, direction);
        return Some(Step::More);
    }
    if direction == Request && flow.phase == phase::PROXY_HEADER {
        return Some(read_proxy_header(c, env));
    }
    if flow.is_window_read() {
        match flow.refill_line() {
            Refill::Load(offset, length) => {
                let at = flow.filled;
                if !env.load(flow, offset, length, at) {
                    return Some(give_up(c, env, Counter::DesyncUnreadable));
                }
                c.flows[direction].loaded(length);
            }
            Refill::LongLine(at, length) => {
                if flow.flags & (LONG_LINE | IN_CALLER) == LONG_LINE {
                    return Some(Step::More);
                }
                flow.flags |= LONG_LINE;
                flow.set_line(at, length);
                return None;
            }
            Refill::Empty => {
                on_packet_end(c, env, direction);
                return Some(Step::Done);
            }
        }
    }
    let flow = &mut c.flows[direction];
    let mut block = 0;
    while block < MAX_BLOCKS {
        skip_lines(flow, direction);
        if flow.newlines != 0 || flow.scanned >= flow.filled {
            break;
        }
        flow.mark_newlines();
        block += 1;
    }
    if flow.newlines == 0 {
        return Some(Step::More);
    }
    let (at, length) = flow.next_line();
    flow.message_bytes += u64::from(length) + 1;
    if flow.flags & LONG_LINE != 0 {
        flow.flags &= !LONG_LINE;
        if flow.flags & IN_CALLER == 0 {
            if flow.phase == phase::CHUNK {
                begin_chunk(flow);
            }
            return Some(Step::More);
        }
    }
    let length = trim_cr(flow, at, length);
    flow.set_line(at, length);
    None
}

/// Ends an unfinished response that lasts until the connection's end, at its FIN.
#[inline(always)]
pub(crate) fn on_fin<E: Recorder>(c: &mut Connection, env: &mut E, direction: Direction) {
    let phase = c.flows[direction].phase;
    let is_last = direction == Response && c.protocol == ConnProtocol::HTTP1 && phase == phase::UNTIL_CLOSE;
    if is_last && !c.is_desynced() {
        complete_response(c, env);
    }
}

/// Returns whether a proxy that has closed its socket discards what still comes in `direction`. Only a proxy of TCP reads
/// on after it has ended its own direction.
#[inline(always)]
pub fn is_discarded(c: &Connection, direction: Direction) -> bool {
    c.protocol() == ConnProtocol::HTTP1 && c.flows[direction].phase != phase::TUNNEL
}

/// Classifies a connection that ends undecided: without a whole first line, and on a port that is not declared, Envoy
/// looks no further.
#[inline(never)]
pub(crate) fn classify_at_close<E: Recorder>(c: &mut Connection, env: &mut E) {
    let tail = atomic::load(&c.tail);
    let complete = atomic::load(&c.exchange(tail.wrapping_sub(1)).state) & REQUEST_DONE != 0;
    let begun = c.flows[Request].phase != phase::START || complete;
    if tail != 0 && (c.flags & DECLARED_HTTP != 0 || (begun && c.flags & UNLIKELY_HTTP == 0)) {
        classify_http1(c, env);
    } else if c.flows[Request].seen_bytes | c.flows[Response].seen_bytes != 0 {
        classify_tcp(c, env);
    }
}

/// Classifies a connection as far as possible before the bytes are parsed.
#[inline(never)]
fn classify_unparsed<E: ByteSource>(c: &mut Connection, env: &mut E, direction: Direction) {
    let flow = &mut c.flows[direction];
    let is_first = flow.seen_bytes == u64::from(flow.unloaded());
    if c.flags & DECLARED_TCP != 0 {
        classify_tcp(c, env);
    } else if c.flags & PREEXISTING != 0 {
        // These are not its first bytes.
    } else if direction == Response {
        // Where the client's bytes leave it open, the server's decide: one of HTTP/2 may send its settings before the
        // client's preface has arrived, one of HTTP/1 answers, and anything else is TCP.
        match sniff_response(c, env) {
            Sniffed::Http2 => classify_http2(c, env),
            Sniffed::Http1 => classify_http1(c, env),
            Sniffed::Other => classify_tcp(c, env),
        }
    } else if c.flags & UNLIKELY_HTTP != 0 {
        // A sidecar that speaks HTTP would have refused it.
        if c.has_destination() && c.flags & DECLARED_HTTP == 0 {
            classify_tcp(c, env);
        }
    } else if is_first && c.flags & GATEWAY != 0 {
        flow.phase = phase::PROXY_HEADER;
    }
}

/// Sniffs a server's first bytes.
#[inline(always)]
fn sniff_response<E: ByteSource>(c: &mut Connection, env: &mut E) -> Sniffed {
    let refusal_only = c.flags & UNLIKELY_HTTP != 0;
    let flow = &mut c.flows[Response];
    let (offset, left) = (flow.offset, flow.unloaded());
    let length = if left < CARRY { left } else { CARRY };
    if flow.seen_bytes != u64::from(left) || length < 9 || !env.load(flow, offset, length, 0) {
        return Sniffed::Other;
    }
    sniff_server(flow, refusal_only)
}

/// Returns whether the payload is parsed, so that it must come in order.
#[inline(always)]
fn is_parsed(c: &Connection) -> bool {
    let protocol = c.protocol();
    (protocol == ConnProtocol::UNDECIDED && c.flags & DECLARED_TCP == 0 || protocol == ConnProtocol::HTTP1)
        && !c.is_desynced()
}

/// Goes on at `accepted`, the sequence number up to which TCP has accepted everything, seen or not. Only this can cost the
/// position: a segment's own numbers may be forged.
#[inline(always)]
pub fn catch_up<E: Recorder>(c: &mut Connection, env: &mut E, direction: Direction, accepted: u32) {
    if c.flows[direction].is_behind(accepted) {
        pass_over(c, env, direction, accepted);
    }
}

/// Goes on behind bytes that TCP has accepted.
#[inline(never)]
fn pass_over<E: Recorder>(c: &mut Connection, env: &mut E, direction: Direction, accepted: u32) {
    let flow = &mut c.flows[direction];
    let missing = accepted.wrapping_sub(flow.next);
    flow.find_unseen(accepted);
    let unseen = flow.gap();
    if unseen != 0 {
        env.count(Counter::AuditUnseen, u64::from(unseen));
    }
    skip_gap(c, env, direction, missing);
    c.flows[direction].advance(accepted);
}

/// Skips bytes that were not seen: harmless in a body, elsewhere a desync.
#[inline(always)]
fn skip_gap<E: Recorder>(c: &mut Connection, env: &mut E, direction: Direction, missing: u32) {
    if !is_parsed(c) {
        return;
    }
    let flow = &mut c.flows[direction];
    if !flow.skips_gap(missing) {
        desync(c, env, Counter::DesyncGap);
        return;
    }
    let missing = u64::from(missing);
    flow.message_bytes += missing;
    if flow.phase != phase::UNTIL_CLOSE && flow.phase != phase::TUNNEL {
        flow.skip -= missing;
        if flow.skip == 0 {
            on_skipped(c, env, direction);
        }
    }
}

/// Goes on with a buffered segment once the bytes in front of it are here.
#[inline(never)]
fn resume_buffered<E: ByteSource>(c: &mut Connection, env: &mut E, direction: Direction) -> Step {
    if !is_parsed(c) {
        return Step::Done;
    }
    let flow = &mut c.flows[direction];
    let length = flow.pop_contiguous();
    if length == 0 {
        return Step::Done;
    }
    if !flow.skips_gap(length) && env.is_valid(flow) {
        flow.read_buffered(length);
        return Step::More;
    }
    skip_gap(c, env, direction, length);
    let flow = &mut c.flows[direction];
    let end = flow.next.wrapping_add(length);
    flow.advance(end);
    flow.offset = flow.end;
    Step::More
}

/// Reads a line, or the beginning of a long one.
#[inline(always)]
fn read_line<E: ByteSource>(c: &mut Connection, env: &mut E, direction: Direction) -> Step {
    let is_caller_read = direction == Request && caller::is_read(c);
    let flow = &mut c.flows[direction];
    let (at, length) = (atomic::load(&flow.line_at), atomic::load(&flow.line_length));
    let is_whole = flow.flags & LONG_LINE == 0;
    let phase = flow.phase;
    if is_caller_read
        && (flow.flags & IN_CALLER != 0 || phase == phase::HEADERS && length >= CALLER_NAME && names_caller(flow, at))
    {
        return read_caller_line(c, env, at, length, is_whole);
    }
    if trace::is_on()
        && direction == Request
        && phase == phase::HEADERS
        && is_whole
        && trace::may_name(flow.word(at) | LOWER)
    {
        return read_trace_line(c, env, at, length);
    }
    let result = if phase == phase::START {
        if length == 0 && (direction == Request || c.leg == ConnLeg::SOURCE) {
            return if direction == Request { skip_empty_line(c, env) } else { Step::More };
        }
        return if direction == Request {
            begin_request(c, env, at, length, is_whole)
        } else {
            begin_response(c, env, at, length)
        };
    } else if phase == phase::HEADERS || phase == phase::TRAILERS {
        if length == 0 && is_whole {
            if phase == phase::TRAILERS {
                complete(c, env, direction);
                return Step::More;
            }
            return if direction == Request { end_request_header(c, env) } else { end_response_header(c, env) };
        }
        let flags = flow.flags;
        header_line(flow, at, length);
        // Loaded again, so that both phases are one path for the verifier.
        if atomic::load(&flow.phase.0) == phase::TRAILERS.0 {
            // Of trailers only a gRPC status matters.
            flow.flags = flags;
        }
        Ok(())
    } else if phase == phase::CHUNK {
        let result = chunk_line(flow, at, length);
        if is_whole {
            begin_chunk(flow);
        }
        result
    } else if direction == Request && phase == phase::PROXY_LINE {
        if is_whole {
            end_proxy_header(flow);
        }
        Ok(())
    } else {
        Err(Malformed)
    };
    if result.is_err() { reject(c, env, direction) } else { Step::More }
}

/// Reads a line, or a part of a long one, that names the request's caller; of several the last one counts.
#[inline(never)]
fn read_caller_line<E: ByteSource>(c: &mut Connection, env: &mut E, at: u32, length: u32, is_end: bool) -> Step {
    let flow = &mut c.flows[Request];
    let is_begun = flow.flags & IN_CALLER != 0;
    flow.flags = (flow.flags | IN_CALLER) & !(IN_LENGTH | IN_CODING);
    let mut id = caller::NO_ROOM;
    // SAFETY: null or valid, see `CallerStore`.
    if let Some(text) = unsafe { env.caller_text().as_mut() } {
        let name = if is_begun { 0 } else { CALLER_NAME };
        if !is_begun {
            caller::begin(text, false);
        }
        let blanks = if is_begun { 0 } else { blank_run(flow, at.wrapping_add(name)) };
        let skipped = name.wrapping_add(blanks);
        let skipped = if skipped < length { skipped } else { length };
        caller::feed(text, env, flow, at.wrapping_add(skipped), length.wrapping_sub(skipped));
        if is_end {
            id = caller::end(text, env, flow);
        }
    }
    if is_end {
        flow.flags &= !IN_CALLER;
        flow.caller = u32::from(id.0);
    }
    Step::More
}

/// Reads a line of the request's trace context.
#[inline(never)]
fn read_trace_line<E: ByteSource>(c: &mut Connection, env: &mut E, at: u32, length: u32) -> Step {
    let flow = &mut c.flows[Request];
    flow.flags &= !(IN_LENGTH | IN_CODING);
    // SAFETY: null or valid, see `TraceStore`.
    let Some(text) = (unsafe { env.trace_text().as_mut() }) else {
        env.count(Counter::TracesFull, 1);
        return Step::More;
    };
    if flow.flags & TRACED == 0 {
        flow.flags |= TRACED;
        trace::begin(text);
    }
    trace::line(text, flow, at, length);
    Step::More
}

/// Skips an empty line before a request (RFC 9112 section 2.2), whose bytes the proxy counts with the request; but a
/// connection that begins with one is not recognised as HTTP.
#[inline(always)]
fn skip_empty_line<E: Recorder>(c: &mut Connection, env: &mut E) -> Step {
    if c.protocol() != ConnProtocol::UNDECIDED || c.flags & DECLARED_HTTP != 0 {
        return Step::More;
    }
    if c.leg == ConnLeg::DESTINATION {
        classify_tcp(c, env);
        return Step::Done;
    }
    c.set_flags(UNLIKELY_HTTP);
    Step::More
}

/// Reads a PROXY protocol header, which a gateway may be configured to expect in front of everything.
#[inline(never)]
fn read_proxy_header<E: ByteSource>(c: &mut Connection, env: &mut E) -> Step {
    let flow = &mut c.flows[Request];
    if detect_proxy_header(flow) {
        if flow.phase == phase::PROXY_BINARY && flow.skip == 0 {
            end_proxy_header(flow);
        }
        return Step::More;
    }
    match flow.refill() {
        Refill::Load(offset, length) => {
            let at = flow.filled;
            if !env.load(flow, offset, length, at) {
                return give_up(c, env, Counter::DesyncUnreadable);
            }
            c.flows[Request].loaded(length);
            Step::More
        }
        _ => Step::Done,
    }
}

/// Goes on behind a PROXY protocol header, whose bytes are part of no message.
#[inline(always)]
fn end_proxy_header(flow: &mut Flow) {
    flow.phase = phase::START;
    flow.counted_bytes = flow.seen_bytes.wrapping_sub(flow.unread());
    flow.message_bytes = 0;
}

/// Handles a message that Envoy refuses. Behind such a request nothing is read before its response; such a response ends
/// there, and Envoy counts the rest of the packet with it.
///
/// In the other two cases Envoy wrote it itself: the position is lost, or the connection is not HTTP.
#[inline(never)]
fn reject<E: Recorder>(c: &mut Connection, env: &mut E, direction: Direction) -> Step {
    let head = atomic::load(&c.head);
    if direction == Request && c.leg == ConnLeg::SOURCE {
        let flow = &mut c.flows[Request];
        flow.phase = phase::TUNNEL;
        flow.skip = u64::MAX;
        return Step::More;
    }
    if direction == Response && c.leg == ConnLeg::DESTINATION && head != atomic::load(&c.tail) {
        let flow = &mut c.flows[Response];
        let in_header = flow.phase == phase::START || flow.phase == phase::HEADERS;
        flow.message_bytes += flow.unread();
        if in_header {
            flow.status = BAD_GATEWAY;
        }
        flow.clear();
        flow.offset = flow.end;
        answer(c, env, if in_header { Author::Proxy } else { Author::Application });
        stop(&mut c.flows[Response]);
        return Step::Done;
    }
    let is_first = direction == Response && head == 0 && c.flags & (PREEXISTING | DECLARED_HTTP) == 0;
    if is_first && c.change_protocol(ConnProtocol::HTTP1, ConnProtocol::TCP) {
        env.count(Counter::ConnectionTcp, 1);
        return Step::Done;
    }
    give_up(c, env, Counter::DesyncMalformed)
}

/// Ends the reading of this packet by a desync.
#[inline(always)]
fn give_up<E: Recorder>(c: &mut Connection, env: &mut E, reason: Counter) -> Step {
    desync(c, env, reason);
    Step::Done
}

/// Reads a status line.
#[inline(always)]
fn begin_response<E: Recorder>(c: &mut Connection, env: &mut E, at: u32, length: u32) -> Step {
    let flow = &mut c.flows[Response];
    let is_valid = status_line(flow, at, length).is_ok();
    if atomic::load(&c.head) == atomic::load(&c.tail) {
        if is_valid || c.leg != ConnLeg::DESTINATION {
            return give_up(c, env, Counter::DesyncUnexpected);
        }
        // Envoy closes a connection on which it receives anything unrequested.
        stop(&mut c.flows[Response]);
        return Step::More;
    }
    if c.protocol() == ConnProtocol::UNDECIDED {
        if !is_valid {
            classify_tcp(c, env);
            return Step::Done;
        }
        classify_http1(c, env);
    }
    if !is_valid {
        return reject(c, env, Response);
    }
    let flow = &mut c.flows[Response];
    flow.flags |= BEGUN;
    flow.phase = phase::HEADERS;
    Step::More
}

/// Reads a request line.
#[inline(always)]
fn begin_request<E: Recorder + TraceStore>(
    c: &mut Connection,
    env: &mut E,
    at: u32,
    length: u32,
    is_whole: bool,
) -> Step {
    let flow = &mut c.flows[Request];
    let flags = flow.flags;
    request_line(flow, at, length, is_whole);
    if c.protocol() == ConnProtocol::UNDECIDED && !classify_by_line(c, env, at, length, is_whole) {
        return Step::Done;
    }
    let flow = &mut c.flows[Request];
    let read = flow.flags;
    flow.flags = flags;
    if !open(c, env) {
        return Step::Done;
    }
    let flow = &mut c.flows[Request];
    flow.flags |= read;
    flow.caller = u32::from(CallerId::NONE.0);
    flow.phase = phase::HEADERS;
    if trace::is_on() && env.reads_lines() {
        keep_request_line(c, env, at, length);
    }
    Step::More
}

/// Keeps a request line, in case the request is sampled.
#[inline(never)]
fn keep_request_line<E: TraceStore>(c: &Connection, env: &mut E, at: u32, length: u32) {
    // SAFETY: null or valid, see `TraceStore`.
    if let Some(text) = unsafe { env.trace_text().as_mut() } {
        trace::request_line(text, &c.flows[Request], at, length);
    }
}

/// Classifies an undecided connection by the client's first line, or what there is of it; returns false if it is not
/// HTTP/1.
#[inline(never)]
fn classify_by_line<E: Recorder>(c: &mut Connection, env: &mut E, at: u32, length: u32, is_whole: bool) -> bool {
    let sniffed = sniff(&mut c.flows[Request], at, length, is_whole);
    let declared = c.flags & DECLARED_HTTP != 0;
    if sniffed == Sniffed::Http2 {
        classify_http2(c, env);
        return false;
    }
    if declared || (sniffed == Sniffed::Http1 && c.flags & UNLIKELY_HTTP == 0) {
        // While the original destination is unknown, its port may turn out to be declared TCP.
        if c.has_destination() && (declared || is_whole || length >= CARRY) {
            classify_http1(c, env);
        }
        return true;
    }
    if c.flags & GATEWAY != 0 && c.flows[Request].word(at) as u16 == 0x0316 {
        classify_encrypted(c, env);
        return false;
    }
    if c.leg == ConnLeg::DESTINATION {
        classify_tcp(c, env);
        return false;
    }
    c.set_flags(UNLIKELY_HTTP);
    true
}

/// Handles the end of the packet inside a line, a body or between messages.
#[inline(never)]
fn on_packet_end<E: Recorder>(c: &mut Connection, env: &mut E, direction: Direction) {
    let flow = &c.flows[direction];
    if flow.phase != phase::START {
        return;
    }
    let (at, length) = (flow.line, flow.pending());
    if direction == Response {
        // Envoy checks a response from its first byte on.
        let is_invalid = length != 0 && flow.byte(at) != b'H' && c.leg == ConnLeg::DESTINATION;
        if is_invalid && c.protocol() == ConnProtocol::HTTP1 {
            let _: Step = reject(c, env, Response);
        }
        return;
    }
    if length == 0 && flow.message_bytes == 0 {
        return;
    }
    // For Envoy a request begins with its first byte, even an empty line's, and so does what may become one.
    let is_undecided = c.protocol() == ConnProtocol::UNDECIDED;
    // A longer line was read as a long one. The bound lets the verifier see only the part of the sniffing that this needs.
    let length = if length < CARRY { length } else { CARRY - 1 };
    if is_undecided && length != 0 && !classify_by_line(c, env, at, length, false) {
        return;
    }
    open(c, env);
}

/// Handles the end of the request's header.
#[inline(always)]
fn end_request_header<E: Recorder + TraceStore>(c: &mut Connection, env: &mut E) -> Step {
    let tail = c.tail;
    let caller = caller::record(env, CallerId(c.flows[Request].caller as u16));
    let flow = &mut c.flows[Request];
    let flags = flow.flags;
    let is_malformed = is_malformed(flow);
    let is_upgrade = flags & (UPGRADE | CONNECTION_UPGRADE) == UPGRADE | CONNECTION_UPGRADE;
    let mut state = u32::from(caller.0) << CALLER_SHIFT;
    if flags & HEAD != 0 {
        state |= IS_HEAD;
    }
    if flags & CONNECT != 0 {
        state |= IS_CONNECT;
    }
    if is_upgrade {
        state |= IS_UPGRADE;
    }
    if flags & GRPC != 0 {
        state |= IS_GRPC;
    }
    if trace::is_on() && flags & TRACED != 0 && trace::keep(env, tail.wrapping_sub(1), Method::UNKNOWN) {
        state |= HAS_TRACE;
    }
    atomic::fetch_or(&mut c.exchange(tail.wrapping_sub(1)).state, state);
    let flow = &mut c.flows[Request];
    if is_malformed {
        return reject(c, env, Request);
    }
    if is_upgrade || flags & CONNECT != 0 {
        flow.phase = phase::TUNNEL;
        flow.skip = u64::MAX;
    } else if flags & CHUNKED != 0 {
        flow.phase = phase::CHUNK;
    } else if flags & LENGTH_READ != 0 && flow.body_length > 0 {
        flow.phase = phase::BODY;
        flow.skip = flow.body_length;
    } else {
        complete_request(c);
    }
    Step::More
}

/// Handles the end of the response's header, and determines the length of the body (RFC 9112 section 6.3).
#[inline(always)]
fn end_response_header<E: Recorder>(c: &mut Connection, env: &mut E) -> Step {
    let head = c.head;
    let state = atomic::load(&c.exchange(head).state);
    let flow = &mut c.flows[Response];
    let flags = flow.flags;
    let status = flow.status;
    let is_framed = flags & CHUNKED != 0 || (flags & LENGTH_READ != 0 && flow.body_length != 0);
    let is_bodiless = status < 200 || status == 204;
    if is_malformed(flow) || (is_bodiless && is_framed) {
        return reject(c, env, Response);
    }
    let switches = flags & (UPGRADE | CONNECTION_UPGRADE) == UPGRADE | CONNECTION_UPGRADE;
    let is_upgraded = status == 101 && switches && state & IS_UPGRADE != 0;
    if is_upgraded || (state & IS_CONNECT != 0 && (200..300).contains(&status)) {
        flow.phase = phase::TUNNEL;
        flow.skip = u64::MAX;
    } else if status < 200 && status != 101 {
        // An interim response: the final one follows, and its bytes are added to these.
        flow.phase = phase::START;
        flow.flags = BEGUN;
    } else if state & IS_HEAD != 0 || is_bodiless || status == 304 {
        complete_response(c, env);
    } else if flags & CHUNKED != 0 {
        flow.phase = phase::CHUNK;
    } else if flags & LENGTH_READ != 0 {
        if flow.body_length == 0 {
            complete_response(c, env);
        } else {
            flow.phase = phase::BODY;
            flow.skip = flow.body_length;
        }
    } else {
        flow.phase = phase::UNTIL_CLOSE;
        flow.skip = u64::MAX;
    }
    Step::More
}

/// Goes on behind skipped bytes.
#[inline(always)]
fn on_skipped<E: Recorder>(c: &mut Connection, env: &mut E, direction: Direction) {
    let flow = &mut c.flows[direction];
    if flow.phase == phase::CHUNK_DATA {
        flow.phase = phase::CHUNK;
    } else if flow.phase == phase::BODY {
        complete(c, env, direction);
    } else if direction == Request && flow.phase == phase::PROXY_BINARY {
        end_proxy_header(flow);
    }
}

#[inline(always)]
fn complete<E: Recorder>(c: &mut Connection, env: &mut E, direction: Direction) {
    if direction == Request { complete_request(c) } else { complete_response(c, env) }
}

/// Handles the end of the request.
#[inline(never)]
fn complete_request(c: &mut Connection) {
    let number = c.tail.wrapping_sub(1);
    let is_source = c.leg == ConnLeg::SOURCE;
    let flow = &mut c.flows[Request];
    let mut bytes = flow.message_bytes;
    if is_source && is_last(flow.flags) {
        // Nothing more is read, but the proxy counts the rest of the packet with the request.
        bytes += flow.unread();
        flow.offset = flow.end;
        stop(flow);
    } else {
        flow.message_bytes = 0;
        flow.flags = 0;
        flow.phase = phase::START;
    }
    let exchange = c.exchange(number);
    exchange.request_bytes = bytes;
    if atomic::fetch_or(&mut exchange.state, REQUEST_DONE) & ANSWERED != 0 {
        c.flows[Request].due = OptionU32::some(number);
    }
}

/// Handles the end of the response. At the destination leg Envoy counts surplus bytes of the packet with it, and closes the
/// connection.
#[inline(never)]
fn complete_response<E: Recorder>(c: &mut Connection, env: &mut E) {
    let open = atomic::load(&c.tail).wrapping_sub(atomic::load(&c.head));
    let is_destination = c.leg == ConnLeg::DESTINATION;
    let flow = &mut c.flows[Response];
    let closing = !is_destination && flow.flags & CLOSE != 0;
    let surplus = flow.unread();
    if is_destination && surplus != 0 && open == 1 {
        flow.message_bytes += surplus;
        flow.offset = flow.end;
        answer(c, env, Author::Application);
        stop(&mut c.flows[Response]);
        return;
    }
    if closing {
        c.set_flags(CLOSING);
    }
    answer(c, env, Author::Application);
    let flow = &mut c.flows[Response];
    flow.message_bytes = 0;
    flow.flags = 0;
    flow.skip = 0;
    flow.phase = phase::START;
}
