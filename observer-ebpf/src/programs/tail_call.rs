//! Tail calls, which let the verifier check each part of the parser on its own. They return only if they fail.

use aya_ebpf::programs::{SkBuffContext, SockOpsContext};
use observer_common::{Direction, health::Counter};

use super::maps;

/// Index of the first program for HTTP/1, behind those for HTTP/2.
const HTTP1: u32 = 2;

/// Continues in the program for a direction of HTTP/1.
#[inline(always)]
pub(super) fn http1(ctx: &SkBuffContext, direction: Direction) {
    maps::tail_call_skb(ctx, HTTP1 + direction as u32);
    maps::count(Counter::LossTailCall as u32, 1);
}

/// Continues in the program for HTTP/2.
#[inline(always)]
pub(super) fn http2(ctx: &SkBuffContext, is_egress: bool) {
    maps::tail_call_skb(ctx, u32::from(is_egress));
    maps::count(Counter::LossTailCall as u32, 1);
}

/// Continues in the program for handshake data.
#[inline(always)]
pub(super) fn first_data(ctx: &SockOpsContext) {
    maps::tail_call_ops(ctx, 0);
    maps::count(Counter::LossTailCall as u32, 1);
}

/// Continues in the program for handshake data of HTTP/2.
#[inline(always)]
pub(super) fn first_data_h2(ctx: &SockOpsContext) {
    maps::tail_call_ops(ctx, 1);
    maps::count(Counter::LossTailCall as u32, 1);
}
