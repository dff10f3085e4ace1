//! Pairing of TCP connections to the application with peers' connections: where threads accept and connect.

use aya_ebpf::helpers::generated::bpf_get_current_pid_tgid;
use observer_common::{CallerId, health::Counter};
use observer_proto::{
    ConnLeg, Connection, address, atomic,
    caller::{self, of_address},
    connection::flags::{AMBIGUOUS_PEER, HAS_PEER, WITHOUT_CALLERS},
    env::CallerStore,
    env::{Recorder, Step},
    pairing::{Accepted, AcceptedKey, Pairing, Waiting},
};

use super::{bpf_loop::repeat, maps, record};

/// Tries of a change that another CPU may be making too.
const MAX_TRIES: u32 = 1 << 10;

#[inline(always)]
fn current_thread() -> u32 {
    // SAFETY: the helper takes nothing and cannot fail.
    unsafe { bpf_get_current_pid_tgid() as u32 }
}

/// Records that the running thread has accepted a peer's connection, whose destination is known.
#[inline(never)]
pub(super) fn on_accepted(c: &mut Connection) {
    if c.flags & WITHOUT_CALLERS != 0 || c.sidecar == 0 || c.thread != 0 {
        return;
    }
    let thread = current_thread();
    let key = AcceptedKey { sidecar: c.sidecar, thread, port: u32::from(c.destination.port) };
    if let Some(accepted) = maps::accepted(&key)
        && let Some(since_ns) = join(accepted, &c.peer.address)
    {
        c.accepted_ns = since_ns;
        c.thread = thread;
        return;
    }
    let accepted =
        Accepted { since_ns: record::now(), address: c.peer.address, waiting: Waiting(0).accept(true).0, padding: 0 };
    c.accepted_ns = accepted.since_ns;
    if maps::insert_accepted(&key, &accepted) {
        c.thread = thread;
    } else {
        maps::count(Counter::LossPeers as u32, 1);
    }
}

/// Adds a connection to those that are waiting, if there are any; returns since when.
#[inline(always)]
fn join(accepted: &mut Accepted, peer: &[u8; 16]) -> Option<u64> {
    let is_same = address::is_same(&accepted.address, peer);
    let waiting = &mut accepted.waiting;
    let mut joined = 0u32;
    repeat(MAX_TRIES, |_| {
        let old = atomic::load(waiting);
        if old == 0 {
            return Step::Done;
        }
        if atomic::compare_exchange(waiting, old, Waiting(old).accept(is_same).0) {
            joined = 1;
            return Step::Done;
        }
        Step::More
    });
    if joined == 0 { None } else { Some(accepted.since_ns) }
}

/// Pairs a connection that the running thread opens to a port of the application.
#[inline(never)]
pub(super) fn on_connect(c: &mut Connection, port: u16) {
    let key = AcceptedKey { sidecar: c.sidecar, thread: current_thread(), port: u32::from(port) };
    let Some(accepted) = maps::accepted(&key) else { return };
    let waiting = &mut accepted.waiting;
    let mut flag = 0;
    repeat(MAX_TRIES, |_| {
        let old = atomic::load(waiting);
        let (pairing, new) = Waiting(old).connect();
        flag = match pairing {
            Pairing::None => 0,
            Pairing::Known => HAS_PEER,
            Pairing::Ambiguous => AMBIGUOUS_PEER,
        };
        if new.0 == old || atomic::compare_exchange(waiting, old, new.0) { Step::Done } else { Step::More }
    });
    if flag == HAS_PEER {
        c.peer.address = accepted.address;
    }
    c.set_flags(flag);
}

/// Handles the end of a peer's connection.
#[inline(never)]
pub(super) fn on_closed(c: &Connection) {
    if c.thread == 0 {
        return;
    }
    let key = AcceptedKey { sidecar: c.sidecar, thread: c.thread, port: u32::from(c.destination.port) };
    let Some(accepted) = maps::accepted(&key) else { return };
    if accepted.since_ns != c.accepted_ns {
        return;
    }
    let waiting = &mut accepted.waiting;
    repeat(MAX_TRIES, |_| {
        let old = atomic::load(waiting);
        let new = Waiting(old).close().0;
        if new == old || atomic::compare_exchange(waiting, old, new) { Step::Done } else { Step::More }
    });
}

/// Returns the caller of a TCP connection, the same one for all that is counted of it.
#[inline(always)]
pub(super) fn tcp_caller<E: CallerStore + Recorder>(c: &mut Connection, env: &mut E) -> CallerId {
    if c.leg != ConnLeg::DESTINATION {
        return CallerId::NONE;
    }
    let known = atomic::load(&c.tcp_caller);
    if known != 0 {
        return CallerId(known as u16);
    }
    if c.flags & (HAS_PEER | AMBIGUOUS_PEER) == 0 {
        return CallerId::NONE;
    }
    find_tcp_caller(c, env)
}

#[inline(never)]
fn find_tcp_caller<E: CallerStore + Recorder>(c: &mut Connection, env: &mut E) -> CallerId {
    if atomic::fetch_and(&mut c.flags, !AMBIGUOUS_PEER) & AMBIGUOUS_PEER != 0 {
        env.count(Counter::CallerAmbiguous, 1);
        return CallerId::NONE;
    }
    let address = c.peer.address;
    // SAFETY: null or valid, see `CallerStore`.
    let text = unsafe { env.caller_text().as_mut() };
    let id = text.map_or(caller::NO_ROOM, |text| of_address(text, env, &address));
    let id = caller::record(env, id);
    // Another CPU may have been first.
    atomic::compare_exchange(&mut c.tcp_caller, 0, u32::from(id.0));
    CallerId(atomic::load(&c.tcp_caller) as u16)
}
