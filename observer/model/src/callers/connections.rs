//! Who was connected to the inbound listeners of each sidecar, and when.
//!
//! A request is counted when it ends, and is ended at once when its connection closes: it came over a connection that
//! was open since the reading before, but for the moment between the two events. Every reading of the series precedes
//! the reading of the connections.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use observer_common::{InboundPeerKey, Security};

use super::pods::{Pod, Pods};
use crate::{identity::SidecarId, reading::InboundPeerReading, waiting::MAX_ROUNDS};

/// Time after a connection's end within which its last requests are counted.
const LATE: Duration = Duration::from_secs(5);

/// The connections of all sidecars.
#[derive(Debug, Default)]
pub(super) struct Connections {
    by_sidecar: HashMap<SidecarId, HashMap<PeerKey, Track>>,
    round: u64,
    now: Option<SystemTime>,
    /// When the last round was.
    previous: Option<SystemTime>,
    readings: u64,
}

/// Connections of one address to one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct PeerKey {
    port: u16,
    security: Security,
    address: IpAddr,
}

#[derive(Debug, Default)]
struct Track {
    opened: u64,
    closed: u64,
    /// Value of `closed` when the round began.
    closed_before: u64,
    /// Reading that had it last.
    reading: u64,
    /// When it was connected last.
    connected: Option<(u64, SystemTime)>,
    owner: Option<Arc<Pod>>,
    /// Value of `opened` when the address was the owner's last.
    opened_by_owner: u64,
    /// Whether it will become known whose the address is.
    is_pending: bool,
    /// The owner before, and the round in which that changed.
    former: Option<(Option<Arc<Pod>>, u64)>,
}

/// One pod that a request can be of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate<'a> {
    pub(super) port: u16,
    pub(super) security: Security,
    /// `None` if it is not known which pod the address is of.
    pub(super) pod: Option<&'a Arc<Pod>>,
    /// Whether it will become known whose the address is.
    pub(super) is_pending: bool,
}

impl Connections {
    /// Begins a round.
    pub(super) fn begin(&mut self, now: SystemTime, previous: SystemTime) {
        self.round += 1;
        (self.now, self.previous) = (Some(now), Some(previous));
        for track in self.by_sidecar.values_mut().flat_map(HashMap::values_mut) {
            track.closed_before = track.closed;
        }
    }

    /// Ingests all connections as they are now; those of `removed` were removed from the kernel since the last reading,
    /// and count from 0.
    pub(super) fn ingest(&mut self, peers: &[InboundPeerReading], removed: &[InboundPeerKey], pods: &Pods) {
        let Some(now) = self.now else { return };
        self.readings += 1;
        for key in removed {
            if let Some(track) = self.by_sidecar.get_mut(&key.sidecar).and_then(|own| own.get_mut(&PeerKey::from(key)))
            {
                (track.opened, track.closed, track.closed_before, track.opened_by_owner) = (0, 0, 0, 0);
            }
        }
        let (round, reading) = (self.round, self.readings);
        for peer in peers {
            let key = PeerKey::from(&peer.key);
            let entry = self.by_sidecar.entry(peer.key.sidecar).or_default().entry(key);
            // One that is new here may have ended long before: an earlier observer has counted its last requests.
            let is_past = matches!(entry, Entry::Vacant(_)) && ended_before(peer, now, self.previous);
            let track = entry.or_default();
            if peer.opened < track.opened || peer.closed < track.closed {
                track.closed_before = 0;
            }
            track.reading = reading;
            (track.opened, track.closed) = (peer.opened, peer.closed);
            if track.opened > track.closed_before && !is_past {
                track.connected = Some((round, now));
            }
            track.is_pending = pods.is_pending(key.address);
            track.set_owner(pods.get(key.address), round);
        }
        for track in self.by_sidecar.values_mut().flat_map(HashMap::values_mut) {
            if track.reading != reading {
                track.is_pending = false;
                if track.opened > track.closed_before {
                    track.connected = Some((round, now));
                }
                track.closed = track.opened.max(track.closed);
            }
        }
    }

    /// Ends a round: forgets what is neither in the kernel nor a candidate any more.
    pub(super) fn end(&mut self) {
        let (round, previous, reading) = (self.round, self.previous, self.readings);
        for own in self.by_sidecar.values_mut() {
            own.retain(|_, track| track.reading == reading || track.is_recent(round, previous, MAX_ROUNDS));
        }
        self.by_sidecar.retain(|_, own| !own.is_empty());
    }

    /// Returns whose requests can be among those counted in the last `rounds` rounds, this one included.
    pub(super) fn candidates(&self, sidecar: SidecarId, rounds: u64) -> impl Iterator<Item = Candidate<'_>> {
        let tracks = self.by_sidecar.get(&sidecar).into_iter().flatten();
        let recent = tracks.filter(move |(_, track)| track.is_recent(self.round, self.previous, rounds));
        recent.flat_map(move |(key, track)| self.owners(key, track, rounds))
    }

    /// Returns the pods that an address can have been of in the last `rounds` rounds, for connections of this sidecar.
    pub(super) fn at_address(
        &self,
        sidecar: SidecarId,
        address: IpAddr,
        rounds: u64,
    ) -> impl Iterator<Item = Candidate<'_>> {
        let tracks = self.by_sidecar.get(&sidecar).into_iter().flatten();
        let own = tracks.filter(move |(key, _)| key.address == address);
        own.flat_map(move |(key, track)| self.owners(key, track, rounds))
    }

    fn owners<'a>(
        &self,
        key: &PeerKey,
        track: &'a Track,
        rounds: u64,
    ) -> impl Iterator<Item = Candidate<'a>> + use<'a> {
        let &PeerKey { port, security, .. } = key;
        let candidate = move |pod, is_pending| Candidate { port, security, pod, is_pending };
        let former = track.former.as_ref().filter(|(_, changed)| changed + rounds + 1 >= self.round);
        let former = former.map(|(pod, _)| candidate(pod.as_ref(), false)).into_iter();
        former.chain([candidate(track.owner.as_ref(), track.is_pending)])
    }
}

impl Track {
    /// Returns whether it was connected in the last `rounds` intervals or the one before, or less than [`LATE`] earlier.
    fn is_recent(&self, round: u64, previous: Option<SystemTime>, rounds: u64) -> bool {
        self.connected
            .is_some_and(|(last, at)| last + rounds >= round || previous.is_some_and(|previous| at + LATE >= previous))
    }

    /// Records which pod has the address now. Connections that were opened before it lost the address stay its own.
    fn set_owner(&mut self, now: Option<&Arc<Pod>>, round: u64) {
        let is_same = match (&self.owner, now) {
            (Some(owner), Some(now)) => owner.id == now.id,
            (Some(_), None) => self.opened == self.opened_by_owner,
            (None, None) => return,
            // Nobody is known to have had it before.
            (None, Some(_)) => true,
        };
        if !is_same {
            self.former = Some((self.owner.take(), round));
        }
        if let Some(now) = now {
            (self.owner, self.opened_by_owner) = (Some(now.clone()), self.opened);
        } else if is_same {
            self.opened_by_owner = self.opened;
        }
    }
}

/// Returns whether the last requests of a peer were counted before the previous round.
fn ended_before(peer: &InboundPeerReading, now: SystemTime, previous: Option<SystemTime>) -> bool {
    let ended = now.checked_sub(peer.closed_for).map(|at| at + LATE);
    peer.opened == peer.closed && ended.zip(previous).is_some_and(|(ended, previous)| ended < previous)
}

impl From<&InboundPeerKey> for PeerKey {
    fn from(key: &InboundPeerKey) -> Self {
        let address = Ipv6Addr::from(key.address).to_canonical();
        Self { port: key.port, security: key.security, address }
    }
}
