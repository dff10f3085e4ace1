//! Reclaims peers that have no connection any more.
//!
//! A program may find a peer just before it is removed and count a connection in it just after. So the connections of
//! every sidecar are read from its network namespace after the removal, and none is missed.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use aya::maps::HashMap as HashTable;
use observer_common::{InboundPeer, InboundPeerKey, names};

use super::{
    Kernel,
    error::KernelError,
    idle_series::{IDLE, is_gone},
};
use crate::discovery::SidecarId;

/// Number of peers above which idle ones are reclaimed: half of what the map holds.
const MANY_PEERS: usize = 8_192;
/// Interval in which they are looked for.
const CHECK_INTERVAL: Duration = Duration::from_mins(1);

/// Peers without a connection.
#[derive(Debug, Default)]
pub(super) struct IdlePeers {
    /// Connections that each has had, and since when there is none.
    since: HashMap<InboundPeerKey, (u64, Instant)>,
    checked: Option<Instant>,
}

impl Kernel {
    /// Removes peers that have had no connection for a quarter of an hour, where there are many.
    pub(super) fn reclaim_peers(&mut self) -> Result<(), KernelError> {
        let is_due = self.idle_peers.checked.is_none_or(|last| last.elapsed() >= CHECK_INTERVAL);
        if self.callers.peers <= MANY_PEERS || !is_due {
            return Ok(());
        }
        self.idle_peers.checked = Some(Instant::now());
        let before = std::mem::take(&mut self.idle_peers.since);
        let (mut idle, mut gone) = (HashMap::new(), Vec::new());
        self.each_element(names::INBOUND_PEERS, |key: InboundPeerKey, InboundPeer { opened, closed, .. }| {
            if opened != closed {
                return;
            }
            match before.get(&key).filter(|(known, _)| *known == opened) {
                Some((_, since)) if since.elapsed() >= IDLE => gone.push(key),
                Some(known) => drop(idle.insert(key, *known)),
                None => drop(idle.insert(key, (opened, Instant::now()))),
            }
        })?;
        self.idle_peers.since = idle;
        if gone.is_empty() {
            return Ok(());
        }
        self.remove_peers(&gone)?;
        self.callers.removed_peers(gone);
        Ok(())
    }

    /// Removes the peers of sidecars that can no longer be counted.
    pub(super) fn free_peers(&mut self, sidecars: &BTreeSet<SidecarId>) -> Result<(), KernelError> {
        let mut gone = Vec::new();
        self.each_element(names::INBOUND_PEERS, |key: InboundPeerKey, _: InboundPeer| {
            if sidecars.contains(&key.sidecar) {
                gone.push(key);
            }
        })?;
        self.remove_peers(&gone)
    }

    fn remove_peers(&mut self, gone: &[InboundPeerKey]) -> Result<(), KernelError> {
        let mut peers: HashTable<_, InboundPeerKey, InboundPeer> = self.map_mut(names::INBOUND_PEERS)?;
        let mut gone = gone.iter();
        gone.try_for_each(|key| is_gone(peers.remove(key)))
            .map_err(|source| KernelError::map(names::INBOUND_PEERS, source))
    }
}
