//! Takes the records of sampled requests that have ended.

#![expect(unsafe_code, reason = "a record is read from the ring buffer's bytes")]

use std::{
    ptr,
    time::{Duration, SystemTime},
};

use aya::maps::{MapData, RingBuf};
use observer_common::{Exemplar, SpanRecord, names};

use super::{Kernel, clock::programs_now, error::KernelError};
use crate::model::span::{SpanReading, Target};

/// The ring buffer of records, if requests become spans.
pub(super) type SpanRing = Option<RingBuf<MapData>>;

impl Kernel {
    /// Returns the requests that have ended since the last call; at most as many as the ring buffer holds.
    pub fn take_spans(&mut self) -> Vec<SpanReading> {
        let Some(ring) = &mut self.spans else { return Vec::new() };
        let (now, steady) = (SystemTime::now(), programs_now());
        let mut taken = Vec::new();
        while taken.len() < MAX_TAKEN
            && let Some(record) = ring.next()
        {
            taken.extend(record_of(&record).map(|record| reading(&record, now, steady)));
        }
        taken
    }
}

/// Most records taken at a time: what is written meanwhile waits.
const MAX_TAKEN: usize = 16_384;

/// Returns the ring buffer.
pub(super) fn open(ebpf: &mut aya::Ebpf) -> Result<RingBuf<MapData>, KernelError> {
    let map = ebpf.take_map(names::SPANS).ok_or(KernelError::Missing { name: names::SPANS })?;
    RingBuf::try_from(map).map_err(|source| KernelError::map(names::SPANS, source))
}

fn record_of(bytes: &[u8]) -> Option<SpanRecord> {
    // SAFETY: as many bytes as it has, of integers; the buffer may be aligned less.
    (bytes.len() >= size_of::<SpanRecord>()).then(|| unsafe { ptr::read_unaligned(bytes.as_ptr().cast()) })
}

fn reading(record: &SpanRecord, now: SystemTime, steady: Duration) -> SpanReading {
    let &SpanRecord { key, request, bytes, ref line } = record;
    let Exemplar { trace_id: [high, low], span_id, microseconds, at_ns } = request;
    let duration = Duration::from_micros(microseconds);
    let age = steady.saturating_sub(Duration::from_nanos(at_ns)) + duration;
    SpanReading {
        key,
        trace_id: u128::from(high) << 64 | u128::from(low),
        parent_id: span_id,
        start: now.checked_sub(age).unwrap_or(now),
        duration,
        bytes,
        target: Target::of(line),
    }
}
