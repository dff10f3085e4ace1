//! Ids of spans: computed from the request, so that what is delivered twice is recognised.

use std::time::SystemTime;

use super::SpanReading;

/// Returns the id of a request's span at its end, never zero, which is no id.
pub(super) fn of(request: &SpanReading) -> u64 {
    let start = request.start.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let place = u64::from(request.key.sidecar) << 8 | u64::from(request.key.leg.0);
    let words = [
        (request.trace_id >> 64) as u64,
        request.trace_id as u64,
        request.parent_id,
        place,
        start.as_nanos() as u64,
        request.duration.as_nanos() as u64,
    ];
    words.into_iter().fold(0, |hash, word| mixed(hash ^ word)).max(1)
}

/// The finaliser of SplitMix64.
fn mixed(word: u64) -> u64 {
    let mut mixed = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}
