//! Reclaims map entries: those of idle callers, and those of sidecars that can no longer be counted ([`CgroupUsage`](super::cgroup_usage::CgroupUsage)).
//!
//! A socket keeps the number of its slot. No program runs again for the sockets of a removed cgroup after its programs were
//! detached, and a cgroup's id is never reused: no program finds its slot to be another sidecar's.

use std::collections::BTreeSet;

use aya::maps::{Array, HashMap, Stack};
use observer_common::{
    BucketPage, Histogram, InboundKey, InboundPort, Series, SeriesKey,
    histogram::{BUCKET_PAGES, BUCKETS, SUB_BUCKETS},
    names,
};
use observer_proto::{
    http2::{H2Stream, StreamKey},
    pairing::{Accepted, AcceptedKey},
};

use super::{Kernel, error::KernelError, idle_series::is_gone};
use crate::discovery::SidecarId;

const ZERO: Series = Series {
    histograms: [Histogram { buckets: [0; BUCKETS], sum: 0, pages: [0; BUCKET_PAGES] }; 3],
    opened: 0,
    closed: 0,
    received: 0,
    sent: 0,
    messages: [0; 2],
};

impl Kernel {
    /// Reclaims the entries of idle callers and of sidecars that can no longer be counted. Returns the number of their series.
    ///
    /// # Errors
    /// A map cannot be read or written; entries that are not reclaimed then stay until the observer is restarted.
    pub fn reclaim(&mut self) -> Result<usize, KernelError> {
        let idle = self.reclaim_idle()?;
        self.reclaim_peers()?;
        let sidecars = self.usage.take_reclaimable();
        if sidecars.is_empty() {
            return Ok(idle);
        }
        self.refresh_slots()?;
        let (gone, kept): (Vec<_>, _) = self.slots.drain(..).partition(|(key, _)| sidecars.contains(&key.sidecar));
        self.slots = kept;
        self.map_state.carried_over.remove(&sidecars);
        for (key, slot) in &gone {
            slot.map_or(Ok(()), |slot| self.free_series(key, slot))?;
        }
        self.idle.forget(&sidecars).into_iter().try_for_each(|slot| self.zero_series(slot))?;
        self.remove_callers(gone.iter().map(|(key, _)| key.caller).collect())?;
        self.callers.forget_sidecars(&sidecars);
        self.free_peers(&sidecars)?;
        self.free_inbound_ports(&sidecars)?;
        self.free_streams(&sidecars)?;
        self.free_accepted(&sidecars)?;
        Ok(gone.len() + idle)
    }

    /// Frees in an order in which free entries are always zero, and entries that can be looked up are never free.
    fn free_series(&mut self, key: &SeriesKey, slot: u32) -> Result<(), KernelError> {
        let mut slots: HashMap<_, SeriesKey, u32> = self.map_mut(names::SLOTS)?;
        is_gone(slots.remove(key)).map_err(|source| KernelError::map(names::SLOTS, source))?;
        self.zero_series(slot)
    }

    /// Frees a slot that no key leads to.
    pub(super) fn zero_series(&mut self, slot: u32) -> Result<(), KernelError> {
        self.remove_exemplars(slot)?;
        let mut series: Array<_, Series> = self.map_mut(names::SERIES)?;
        let values = series.get(&slot, 0).map_err(|source| KernelError::map(names::SERIES, source))?;
        series.set(slot, ZERO, 0).map_err(|source| KernelError::map(names::SERIES, source))?;
        for block in values.histograms.iter().flat_map(|histogram| histogram.pages).filter(|&name| name != 0) {
            let mut blocks: Array<_, BucketPage> = self.map_mut(names::BUCKET_PAGES)?;
            let zero = BucketPage { sub_buckets: [0; SUB_BUCKETS] };
            blocks.set(block - 1, zero, 0).map_err(|source| KernelError::map(names::BUCKET_PAGES, source))?;
            self.free(names::FREE_PAGES, block - 1)?;
        }
        self.free(names::FREE_SLOTS, slot)
    }

    fn free_inbound_ports(&mut self, sidecars: &BTreeSet<SidecarId>) -> Result<(), KernelError> {
        let inbound: HashMap<_, InboundKey, u32> = self.map(names::INBOUND)?;
        let all: Result<Vec<_>, _> = inbound.iter().collect();
        let all = all.map_err(|source| KernelError::map(names::INBOUND, source))?;
        for (key, name) in all.into_iter().filter(|(key, _)| sidecars.contains(&key.sidecar)) {
            let mut inbound: HashMap<_, InboundKey, u32> = self.map_mut(names::INBOUND)?;
            inbound.remove(&key).map_err(|source| KernelError::map(names::INBOUND, source))?;
            let mut ports: Array<_, InboundPort> = self.map_mut(names::INBOUND_PORTS)?;
            ports
                .set(name - 1, InboundPort::default(), 0)
                .map_err(|source| KernelError::map(names::INBOUND_PORTS, source))?;
            self.free(names::FREE_PORTS, name - 1)?;
        }
        Ok(())
    }

    /// Removes streams that were open when programs were detached from their sockets.
    fn free_streams(&mut self, sidecars: &BTreeSet<SidecarId>) -> Result<(), KernelError> {
        let error = |source| KernelError::map(names::H2_STREAMS, source);
        let mut calls: HashMap<_, StreamKey, H2Stream> = self.map_mut(names::H2_STREAMS)?;
        let all: Vec<StreamKey> = calls.keys().collect::<Result<_, _>>().map_err(error)?;
        let gone = all.iter().filter(|key| sidecars.contains(&key.sidecar));
        gone.into_iter().try_for_each(|key| calls.remove(key)).map_err(error)
    }

    /// Removes connections that were accepted and never passed on.
    fn free_accepted(&mut self, sidecars: &BTreeSet<SidecarId>) -> Result<(), KernelError> {
        let error = |source| KernelError::map(names::ACCEPTED, source);
        let mut accepted: HashMap<_, AcceptedKey, Accepted> = self.map_mut(names::ACCEPTED)?;
        let all: Vec<AcceptedKey> = accepted.keys().collect::<Result<_, _>>().map_err(error)?;
        let mut gone = all.iter().filter(|key| sidecars.contains(&key.sidecar));
        gone.try_for_each(|key| is_gone(accepted.remove(key))).map_err(error)
    }

    fn free(&mut self, stack: &'static str, number: u32) -> Result<(), KernelError> {
        let mut free: Stack<_, u32> = self.map_mut(stack)?;
        free.push(number, 0).map_err(|source| KernelError::map(stack, source))
    }
}
