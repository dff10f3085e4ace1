//! Reads who calls: the texts of callers, and who is connected to the inbound listeners.

use std::{
    collections::{BTreeSet, HashSet},
    net::{IpAddr, Ipv6Addr},
    os::fd::AsFd,
    path::Path,
    time::{Duration, Instant},
};

use aya::{
    maps::{Array, HashMap, Map, MapError},
    sys::SyscallError,
};
use observer_common::{
    ALLOCATED_CALLERS, Caller, CallerId, InboundPeer, InboundPeerKey, Security, SeriesKey, health::Counter, names,
};

use super::{Kernel, clock::programs_now, error::KernelError, preexisting_peers::PreexistingPeers, sys};
use crate::{
    collect::{CallerReading, CallersReading, InboundPeerReading},
    discovery::{Sidecar, SidecarId},
};

/// Time after the map of peers had no room, in which requests of uncounted connections that have ended are counted.
const INCOMPLETE: Duration = Duration::from_secs(10);
/// The same in readings.
const INCOMPLETE_READINGS: u32 = 3;
/// Flag of an insertion [uapi/linux/bpf.h].
const BPF_NOEXIST: u64 = 1;

/// What was read of callers last.
#[derive(Debug)]
pub(super) struct CallerMaps {
    /// Ids allocated, and ids whose text was read.
    allocated: Option<u32>,
    known: HashSet<CallerId>,
    preexisting: PreexistingPeers,
    /// Connections that are in no peer, when and how many readings ago there was a new one.
    uncounted: u64,
    overflowed: Option<(Instant, u32)>,
    /// Whether any of this is wanted.
    pub(super) is_on: bool,
    /// Number of peers in the map.
    pub(super) peers: usize,
    /// Peers that were removed since the last reading.
    removed: Vec<InboundPeerKey>,
    /// Series that were freed since the last reading.
    pub(super) freed: Vec<SeriesKey>,
}

impl CallerMaps {
    pub(super) fn new(is_on: bool, proc_root: &Path) -> Self {
        Self {
            allocated: None,
            known: HashSet::new(),
            preexisting: PreexistingPeers::new(proc_root),
            uncounted: 0,
            overflowed: None,
            is_on,
            peers: 0,
            removed: Vec::new(),
            freed: Vec::new(),
        }
    }

    /// Returns the number of callers.
    pub(super) fn count(&self) -> usize {
        self.known.len()
    }

    /// Forgets callers that were removed from the map.
    pub(super) fn forget(&mut self, ids: &HashSet<CallerId>) {
        self.known.retain(|id| !ids.contains(id));
    }

    /// Forgets sidecars that can no longer be counted.
    pub(super) fn forget_sidecars(&mut self, sidecars: &BTreeSet<SidecarId>) {
        self.preexisting.forget(sidecars);
    }

    /// Records that peers were removed from the map.
    pub(super) fn removed_peers(&mut self, mut gone: Vec<InboundPeerKey>) {
        self.removed.append(&mut gone);
        self.preexisting.read_all();
    }
}

impl Kernel {
    /// Takes over the callers of other maps with their ids, before its own programs allocate any.
    pub(super) fn continue_callers(&mut self, last: CallerId, callers: &[(u64, Caller)]) -> Result<(), KernelError> {
        let mut numbers: Array<_, u32> = self.map_mut(names::ALLOCATED)?;
        let allocated =
            numbers.get(&ALLOCATED_CALLERS, 0).map_err(|source| KernelError::map(names::ALLOCATED, source))?;
        numbers
            .set(ALLOCATED_CALLERS, allocated.max(last.0.into()), 0)
            .map_err(|source| KernelError::map(names::ALLOCATED, source))?;
        let mut known: HashMap<_, u64, Caller> = self.map_mut(names::CALLERS)?;
        for (hash, caller) in callers.iter().filter(|(_, caller)| caller.id <= last) {
            match known.insert(hash, caller, BPF_NOEXIST) {
                // Without its text, what the others counted for it since their last reading has an unknown caller.
                Ok(()) | Err(MapError::SyscallError(_)) => {}
                Err(source) => return Err(KernelError::map(names::CALLERS, source)),
            }
        }
        Ok(())
    }

    /// Reads the connections of a sidecar that are older than its programs, once per process.
    pub(super) fn read_preexisting_peers(&mut self, sidecar: &Sidecar, has_new_programs: bool) {
        if self.callers.is_on {
            self.callers.preexisting.read(sidecar, has_new_programs);
        }
    }

    /// Reads callers if there are new ones among `slots`, and every peer.
    pub(super) fn read_callers(&mut self) -> Result<CallersReading, KernelError> {
        if !self.callers.is_on {
            return Ok(CallersReading::default());
        }
        self.callers.preexisting.refresh();
        let mut peers = Vec::new();
        let now = programs_now();
        self.each_element(names::INBOUND_PEERS, |key: InboundPeerKey, InboundPeer { opened, closed, closed_ns }| {
            let closed_for = now.saturating_sub(Duration::from_nanos(closed_ns));
            peers.push(InboundPeerReading { key, opened, closed, closed_for });
        })?;
        self.callers.peers = peers.len();
        let callers = self.read_new_callers()?;
        self.note_uncounted_peers()?;
        self.callers.preexisting.add_to(&mut peers);
        let incomplete = if self.callers.overflowed.is_some() {
            self.callers.preexisting.sidecars().collect()
        } else {
            self.callers.preexisting.unread().collect()
        };
        let CallerMaps { removed, freed, .. } = &mut self.callers;
        let (removed, freed) = (std::mem::take(removed), std::mem::take(freed));
        Ok(CallersReading { callers, peers, removed, freed, incomplete })
    }

    /// Returns every caller if there may be one that was not read.
    fn read_new_callers(&mut self) -> Result<Vec<CallerReading>, KernelError> {
        let numbers: Array<_, u32> = self.map(names::ALLOCATED)?;
        // Read before the callers: one that is inserted meanwhile is found next time.
        let allocated =
            numbers.get(&ALLOCATED_CALLERS, 0).map_err(|source| KernelError::map(names::ALLOCATED, source))?;
        // An id is allocated before its text is inserted, and the text before a series of it.
        let is_unknown = |id: CallerId| {
            !matches!(id, CallerId::NONE | CallerId::MISSED | CallerId::UNREADABLE) && !self.callers.known.contains(&id)
        };
        if self.callers.allocated == Some(allocated) && !self.slots.iter().any(|(key, _)| is_unknown(key.caller)) {
            return Ok(Vec::new());
        }
        let mut callers = Vec::new();
        self.each_element(names::CALLERS, |_: u64, Caller { id, kind, length, text }| {
            let text = text.get(..length as usize).unwrap_or(&text).into();
            callers.push(CallerReading { id, kind, text });
        })?;
        self.callers.allocated = Some(allocated);
        // A series may also have a caller that was removed: it is not looked for again.
        self.callers.known =
            self.slots.iter().map(|(key, _)| key.caller).chain(callers.iter().map(|it| it.id)).collect();
        Ok(callers)
    }

    /// Has everybody's connections read again if some could not be counted.
    fn note_uncounted_peers(&mut self) -> Result<(), KernelError> {
        let health: Array<_, u64> = self.map(names::HEALTH)?;
        let uncounted =
            health.get(&(Counter::LossPeers as u32), 0).map_err(|source| KernelError::map(names::HEALTH, source))?;
        let callers = &mut self.callers;
        if uncounted != callers.uncounted {
            callers.uncounted = uncounted;
            callers.overflowed = Some((Instant::now(), 0));
            callers.preexisting.read_all();
        } else if let Some((since, readings)) = &mut callers.overflowed {
            *readings += 1;
            if since.elapsed() >= INCOMPLETE && *readings >= INCOMPLETE_READINGS {
                callers.overflowed = None;
            }
        }
        Ok(())
    }

    /// Passes every element of a hash map to `each`.
    pub(super) fn each_element<K: aya::Pod, V: aya::Pod>(
        &self,
        name: &'static str,
        each: impl FnMut(K, V),
    ) -> Result<(), KernelError> {
        // Checks the sizes of keys and values.
        let _: HashMap<_, K, V> = self.map(name)?;
        let Some(Map::HashMap(map) | Map::LruHashMap(map)) = self.ebpf.map(name) else {
            return Err(KernelError::Missing { name });
        };
        sys::read_hash(map.fd().as_fd(), each)
            .map_err(|io_error| KernelError::map(name, SyscallError { call: "bpf_map_lookup_batch", io_error }.into()))
    }
}

/// Returns the key of a connection whose port and security are not known.
pub(super) fn peer_key(sidecar: u32, address: IpAddr) -> InboundPeerKey {
    let address = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    let address = Ipv6Addr::octets(&address);
    InboundPeerKey { sidecar, port: 0, security: Security::UNKNOWN, padding: 0, address }
}
