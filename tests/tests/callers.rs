//! Callers at the destination leg: what the programs count per caller, against Envoy's access log and the clients.

use std::{collections::BTreeMap, process::ExitCode};

use anyhow::{Result, ensure};
use harness::{
    apps::raw::Connection,
    bpf::PinnedMap,
    bpffs::Bpffs,
    cases,
    mesh::Family,
    observer::Observer,
    pair::SETTLE_TIMEOUT,
    two_clients::{FORGED_REQUESTS, HTTP1_REQUESTS, PLAINTEXT_REQUESTS, SIDECARS, TwoClients},
    wait::wait_until,
};
use observer_common::{
    Caller, CallerId, CallerKind, DURATION, InboundPeer, InboundPeerKey, Leg, Security, Series, SeriesKey, names,
};

/// Requests, or TCP connections opened and closed, by who called; empty for nobody.
type Callers = BTreeMap<Vec<u8>, u64>;

fn main() -> ExitCode {
    cases::run(
        Fixture::new,
        cases![
            requests_over_http1,
            requests_over_http2,
            forged_headers,
            plaintext_requests,
            tcp_connections,
            peers_that_are_connected,
            peers_that_are_reset,
        ],
    )
}

/// The programs, whose maps are read.
struct Fixture {
    observer: Observer,
    bpffs: Bpffs,
    scene: TwoClients,
}

impl Fixture {
    fn new() -> Result<Self> {
        let scene = TwoClients::new()?;
        let bpffs = Bpffs::mount(scene.mesh.directory())?;
        let pins = bpffs.path().join("pins");
        let observer = Observer::start(&scene.mesh, SIDECARS, &["--pin", &pins.display().to_string()])?;
        Ok(Self { observer, bpffs, scene })
    }

    fn map(&self, name: &str) -> Result<PinnedMap> {
        PinnedMap::open(&self.bpffs.path().join("pins"), name)
    }

    /// Returns the texts of callers by id.
    fn texts(&self) -> Result<BTreeMap<CallerId, (CallerKind, Vec<u8>)>> {
        let entries = self.map(names::CALLERS)?.entries(size_of::<u64>(), size_of::<Caller>())?;
        Ok(entries
            .iter()
            .map(|(_, value)| {
                let caller = plain::<Caller>(value);
                (caller.id, (caller.kind, caller.text[..caller.length as usize].to_vec()))
            })
            .collect())
    }

    /// Returns what is counted at the destination leg per caller, as a function of a series.
    fn counted(&self, kind: CallerKind, value: impl Fn(&Series) -> u64) -> Result<Callers> {
        let (texts, series) = (self.texts()?, self.map(names::SERIES)?);
        let mut counted = Callers::new();
        for (key, slot) in self.map(names::SLOTS)?.entries(size_of::<SeriesKey>(), size_of::<u32>())? {
            let key = plain::<SeriesKey>(&key);
            let series = plain::<Series>(&series.value(&slot, size_of::<Series>())?);
            let count = value(&series);
            if key.leg != Leg::DESTINATION || count == 0 {
                continue;
            }
            let text = match texts.get(&key.caller) {
                Some((found, text)) => {
                    ensure!(*found == kind, "a caller of the wrong kind");
                    text.clone()
                }
                None if key.caller == CallerId::NONE => Vec::new(),
                None => format!("{:?}", key.caller).into_bytes(),
            };
            *counted.entry(text).or_default() += count;
        }
        Ok(counted)
    }

    /// Returns the peers that have ever been connected to a port with mutual TLS, by address.
    fn peers(&self, port: u16) -> Result<BTreeMap<Vec<u8>, InboundPeer>> {
        let peers = self.map(names::INBOUND_PEERS)?.entries(size_of::<InboundPeerKey>(), size_of::<InboundPeer>())?;
        let mut found = BTreeMap::new();
        for (key, value) in peers {
            let (key, peer) = (plain::<InboundPeerKey>(&key), plain::<InboundPeer>(&value));
            ensure!(peer.closed <= peer.opened, "{key:?}: {peer:?}");
            if key.port == port && key.security == Security::MUTUAL_TLS {
                found.insert(key.address.to_vec(), peer);
            }
        }
        Ok(found)
    }

    /// Has traffic made, and compares requests per caller with the access log, whose peers are `expected` requests.
    fn check(&mut self, expected: usize, traffic: impl FnOnce(&TwoClients) -> Result<()>) -> Result<String> {
        self.scene.log.settled(0, SETTLE_TIMEOUT)?;
        let before = by_identity(&self.counted(CallerKind::CERTIFICATE, requests)?)?;
        traffic(&self.scene)?;
        let mut truth = before;
        let mut peers = BTreeMap::<String, u64>::new();
        for line in self.scene.log.settled(expected, SETTLE_TIMEOUT)?.iter().filter(|line| line.is_end()) {
            // Envoy writes a dash where there is no peer certificate.
            let peer = line.text("peer").trim_start_matches('-').to_owned();
            *truth.entry(peer.clone()).or_default() += 1;
            *peers.entry(peer).or_default() += 1;
        }
        wait_until("requests per caller are those of the access log", SETTLE_TIMEOUT, || {
            let counted = by_identity(&self.counted(CallerKind::CERTIFICATE, requests)?)?;
            ensure!(counted == truth, "{counted:?} instead of {truth:?}");
            Ok(())
        })?;
        Ok(format!("{peers:?}"))
    }
}

/// Reads a value of the ABI.
fn plain<T: Copy>(bytes: &[u8]) -> T {
    assert_eq!(bytes.len(), size_of::<T>());
    // SAFETY: types of the ABI are integers, for which every bit pattern is valid; the length is right.
    unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }
}

fn requests(series: &Series) -> u64 {
    series.histograms[DURATION].buckets.iter().sum()
}

/// Returns counts by the URI in the callers' texts.
fn by_identity(callers: &Callers) -> Result<BTreeMap<String, u64>> {
    let mut found = BTreeMap::new();
    for (text, count) in callers {
        let text = std::str::from_utf8(text)?;
        let identity = text.split(';').find_map(|pair| pair.strip_prefix("URI=")).unwrap_or(text);
        *found.entry(identity.to_owned()).or_default() += count;
    }
    Ok(found)
}

fn requests_over_http1(f: &mut Fixture) -> Result<String> {
    f.check(HTTP1_REQUESTS, TwoClients::request_over_http1)
}

fn requests_over_http2(f: &mut Fixture) -> Result<String> {
    let server = f.scene.serve_http2()?;
    let summary = f.check(600, |scene| scene.request_over_http2(3, 100));
    drop(server);
    summary
}

fn forged_headers(f: &mut Fixture) -> Result<String> {
    f.check(FORGED_REQUESTS, TwoClients::forge)
}

fn plaintext_requests(f: &mut Fixture) -> Result<String> {
    f.check(PLAINTEXT_REQUESTS, TwoClients::request_in_plaintext)
}

/// One at a time, a connection's peer is the only one that can be.
fn tcp_connections(f: &mut Fixture) -> Result<String> {
    let mut truth = Callers::new();
    for _ in 0..4 {
        for client in &f.scene.clients {
            for (family, count) in [(Family::V4, 2), (Family::V6, 1)] {
                for _ in 0..count {
                    f.scene.echo(client, family)?;
                    *truth.entry(address(client.ip(family))).or_default() += 1;
                }
            }
        }
    }
    wait_until("connections per caller are those that were made", SETTLE_TIMEOUT, || {
        for counted in [
            f.counted(CallerKind::ADDRESS, |series| series.opened)?,
            f.counted(CallerKind::ADDRESS, |series| series.closed)?,
        ] {
            ensure!(counted == truth, "{counted:?} instead of {truth:?}");
        }
        Ok(())
    })?;
    Ok(format!("{} connections of {} addresses", truth.values().sum::<u64>(), truth.len()))
}

fn peers_that_are_connected(f: &mut Fixture) -> Result<String> {
    let open = |f: &Fixture| {
        let peers = f.peers(9000)?.into_iter().map(|(address, peer)| (address, peer.opened - peer.closed));
        anyhow::Ok(peers.filter(|(_, open)| *open > 0).collect::<BTreeMap<_, _>>())
    };
    let wait = |what: &str, expected: BTreeMap<Vec<u8>, u64>| {
        wait_until(what, SETTLE_TIMEOUT, || {
            let open = open(f)?;
            ensure!(open == expected, "{open:?} instead of {expected:?}");
            Ok(())
        })
    };
    wait("the peers of earlier connections are gone", BTreeMap::new())?;
    let mut connections = Vec::new();
    for (client, count) in f.scene.clients.iter().zip([3, 1]) {
        for _ in 0..count {
            let mut connection = Connection::open(client, f.scene.tcp.address(Family::V4))?;
            connection.send([7; 10])?;
            connection.receive(10)?;
            connections.push(connection);
        }
    }
    let expected: BTreeMap<Vec<u8>, u64> =
        f.scene.clients.iter().zip([3, 1]).map(|(client, count)| (address(client.ip(Family::V4)), count)).collect();
    wait("the peers are connected", expected)?;
    drop(connections);
    wait("the peers are gone", BTreeMap::new())?;
    ensure!(f.observer.own("mesh_observer_uncounted_total", &[("reason", "peers_full")]).unwrap_or(0.0) == 0.0);
    Ok("4 connections of 2 peers".to_owned())
}

/// A sidecar that closes a connection before it has read the client's last bytes sends a reset, after the end.
fn peers_that_are_reset(f: &mut Fixture) -> Result<String> {
    const NUMBER: u64 = 5;
    let outside = address(f.scene.outside.ip(Family::V4));
    let before = f.peers(8080)?.get(&outside).copied().unwrap_or_default();
    for _ in 0..NUMBER {
        f.scene.request_with_certificate("forger", "")?;
    }
    wait_until("as many have ended as were opened", SETTLE_TIMEOUT, || {
        let peer = f.peers(8080)?.get(&outside).copied().unwrap_or_default();
        let expected = [before.opened + NUMBER; 2];
        ensure!([peer.opened, peer.closed] == expected, "{peer:?} instead of {expected:?}");
        Ok(())
    })?;
    Ok(format!("{NUMBER} connections"))
}

/// Returns an address as the programs keep it.
fn address(ip: std::net::IpAddr) -> Vec<u8> {
    match ip {
        std::net::IpAddr::V4(ip) => ip.to_ipv6_mapped().octets().to_vec(),
        std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}
