//! Capture of handshake data: payload of the packet that ends the handshake.
//!
//! The kernel shows that packet to the listener's programs and passes it to the new socket without showing it again; in
//! between, on the same CPU, it reports the connection as established. So the payload of the last packet to a listener is
//! where an established connection begins.

use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_skb_cgroup_id};
use observer_common::health::Counter;
use observer_proto::{
    flow::BufferHandle,
    reassembly::{FIRST_FOR_HANDSHAKES, HANDSHAKE_LEASE_NS, HandshakeData},
    segment::{RST, SYN},
};

use super::{maps, packet::segment, reassembly};

/// Stores the payload of a packet to a listener until the next one.
#[inline(never)]
pub(super) fn capture(skb: *mut __sk_buff) {
    let Some(data) = maps::handshake_data() else { return };
    reassembly::free(data.buffer);
    data.buffer = BufferHandle::NONE;
    let Some(segment) = segment(skb) else { return };
    if segment.length == 0 || segment.flags & RST != 0 {
        return;
    }
    let buffer = reassembly::alloc(FIRST_FOR_HANDSHAKES, HANDSHAKE_LEASE_NS);
    if buffer.is_none() {
        return;
    }
    if !reassembly::store(skb, buffer, 0, segment.offset, segment.length) {
        reassembly::free(buffer);
        maps::count(Counter::LossReassembly as u32, 1);
        return;
    }
    // A SYN has a sequence number of its own.
    data.seq = segment.seq.wrapping_add(u32::from(segment.flags & SYN != 0));
    data.length = segment.length;
    data.buffer = buffer;
    // SAFETY: the context is valid.
    data.cgroup = unsafe { bpf_skb_cgroup_id(skb) };
}

/// Frees the data's buffer, unless a flow has kept it as its own, `flow_buffer`, for bytes in front of which others are
/// missing.
#[inline(always)]
pub(super) fn release(data: &mut HandshakeData, flow_buffer: BufferHandle) {
    if flow_buffer != data.buffer {
        reassembly::free(data.buffer);
    }
    data.buffer = BufferHandle::NONE;
}
