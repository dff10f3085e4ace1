//! The built kernel objects, inspected without loading them: their helpers, their atomics, and both sides' view of
//! the layouts.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use anyhow::{Context, Result, ensure};
use aya_obj::{Map, Object, ProgramSection};
use harness::tools;
use observer_common::{
    BucketPage, Caller, Cgroup, Exemplar, ExemplarKey, InboundKey, InboundPeer, InboundPeerKey, InboundPort,
    OpenRequest, Series, SeriesKey, TraceKey, health::Counter, names,
};
use observer_proto::{
    Connection,
    caller::CallerText,
    hpack::LargeTable,
    http2::{H2Stream, Http2, MoreStreams, StreamKey},
    pairing::{Accepted, AcceptedKey},
    reassembly::{Buffer, HandshakeData},
    trace::{LineTable, TraceTable, TraceText},
};

/// Every helper the programs may call, with the reason. None reads kernel or user memory, none writes a packet.
const HELPERS: [(u32, &str); 21] = [
    (1, "map_lookup_elem: every map but the arrays, whose look-up is inlined"),
    (2, "map_update_elem: a new series, inbound port, caller or peer"),
    (3, "map_delete_elem: a stream that has ended"),
    (5, "ktime_get_ns: begin and end of a request"),
    (12, "tail_call: packets of HTTP/2 go on in a program of their own"),
    (14, "get_current_pid_tgid: which process connects, and which accepted"),
    (16, "get_current_comm: whose thread it is, where process ids are those of another namespace"),
    (26, "skb_load_bytes: header bytes of a packet"),
    (46, "get_socket_cookie: distinguishes a connection's streams in the map from others"),
    (59, "sock_ops_cb_flags_set: ask for the close"),
    (79, "skb_cgroup_id: whose accepted socket this is"),
    (80, "get_current_cgroup_id: mode of the cgroup that connects"),
    (84, "sk_lookup_tcp: whether the port of a preexisting connection has a listener"),
    (86, "sk_release: of what that found"),
    (87, "map_push_elem: a free slot that another processor made needless"),
    (88, "map_pop_elem: a free slot, bucket page or inbound port"),
    (96, "tcp_sock: what TCP has accepted, and whether it will take a segment"),
    (107, "sk_storage_get: the connection"),
    (131, "ringbuf_reserve: the record of a sampled request"),
    (132, "ringbuf_submit: likewise"),
    (181, "loop: steps through a packet"),
];

const CALL: u8 = 0x85;
const ATOMIC_32: u8 = 0xc3;
const ATOMIC_64: u8 = 0xdb;
const FETCH: i32 = 1;

/// Returns the objects without and with the reading of traces.
fn objects() -> Result<[Vec<u8>; 2]> {
    let path = std::env::var_os("OBSERVER_KERNEL_OBJECT")
        .map_or_else(|| tools::repository().join("target/bpf/observer-kernel.o"), PathBuf::from);
    let read = |path: PathBuf| {
        fs::read(&path).with_context(|| format!("{}: make it with `cargo xtask build`", path.display()))
    };
    Ok([read(path.clone())?, read(path.with_extension("traces.o"))?])
}

#[test]
fn only_packet_socket_and_cgroup_programs() -> Result<()> {
    for bytes in objects()? {
        let object = Object::parse(&bytes)?;
        let mut found: Vec<&str> = object.programs.keys().map(String::as_str).collect();
        let mut expected = names::PROGRAMS.to_vec();
        found.sort_unstable();
        expected.sort_unstable();
        ensure!(found == expected, "programs {found:?}, expected {expected:?}");
        for (name, program) in &object.programs {
            ensure!(
                matches!(
                    program.section,
                    ProgramSection::CgroupSkb { .. }
                        | ProgramSection::SockOps
                        | ProgramSection::CgroupSockAddr { .. }
                        | ProgramSection::CgroupSockopt { .. }
                ),
                "{name} is of type {:?}",
                program.section
            );
        }
    }
    Ok(())
}

#[test]
fn only_the_helpers_on_the_list() -> Result<()> {
    for bytes in objects()? {
        let object = Object::parse(&bytes)?;
        let mut calls = BTreeMap::<u32, u32>::new();
        for function in object.functions.values() {
            for instruction in &function.instructions {
                if instruction.code == CALL && instruction.src_reg() == 0 {
                    *calls.entry(instruction.imm as u32).or_default() += 1;
                }
            }
        }
        println!("helper calls: {calls:?}");
        for helper in calls.keys() {
            ensure!(HELPERS.iter().any(|(allowed, _)| allowed == helper), "helper {helper} is not on the list");
        }
        for (helper, reason) in HELPERS {
            ensure!(calls.contains_key(&helper), "helper {helper} ({reason}) is on the list but never called");
        }
    }
    Ok(())
}

/// A relaxed operation whose result is used is compiled to one that does not fetch, with the wrong result
/// (llvm#210280). All but plain addition must therefore fetch; that additions whose result is used are not relaxed is
/// a rule on `atomic.rs`, the only file with atomics, checked below.
#[test]
fn no_atomic_with_a_used_result_is_relaxed() -> Result<()> {
    for bytes in objects()? {
        let object = Object::parse(&bytes)?;
        let mut fetching = 0;
        for (key, function) in &object.functions {
            for (at, instruction) in function.instructions.iter().enumerate() {
                if !matches!(instruction.code, ATOMIC_32 | ATOMIC_64) {
                    continue;
                }
                let fetches = instruction.imm & FETCH != 0;
                fetching += u32::from(fetches);
                let adds = instruction.imm & !FETCH == 0;
                ensure!(fetches || adds, "{key:?}, instruction {at}: operation {:#x} does not fetch", instruction.imm);
            }
        }
        ensure!(fetching > 0, "no fetching operation at all");
    }

    let source = fs::read_to_string(tools::repository().join("observer-ebpf/proto/src/atomic.rs"))?;
    for function in source.split("\n    #[inline(always)]\n    pub(super) unsafe fn ").skip(1) {
        let (signature, body) = function.split_once('{').context("function")?;
        let returns = signature.contains("->");
        let relaxed = body.contains("AtomicOrdering::Relaxed");
        ensure!(!(returns && relaxed), "`{}` returns what a relaxed operation gave", signature.trim());
    }
    let kernel = tools::repository().join("observer-ebpf");
    for directory in ["proto/src", "proto/src/http1", "proto/src/http2", "src/programs", "src/programs/hooks"] {
        for entry in fs::read_dir(kernel.join(directory))? {
            let path = entry?.path();
            if path.is_file() && !path.ends_with("atomic.rs") {
                let text = fs::read_to_string(&path)?;
                ensure!(!text.contains("intrinsics::atomic"), "{} has atomics of its own", path.display());
            }
        }
    }
    Ok(())
}

#[test]
fn both_sides_agree_on_every_layout() -> Result<()> {
    for bytes in objects()? {
        let object = Object::parse(&bytes)?;
        let expected = [
            (names::CONNECTIONS, 4, size_of::<Connection>()),
            (names::HTTP2, 4, size_of::<Http2>()),
            (names::LARGE_TABLES, 4, 2 * size_of::<LargeTable>()),
            (names::UNOBSERVED, 4, 4),
            (names::MORE_STREAMS, 4, size_of::<MoreStreams>()),
            (names::H2_STREAMS, size_of::<StreamKey>(), size_of::<H2Stream>()),
            (names::REASSEMBLY, 4, size_of::<Buffer>()),
            (names::HANDSHAKE_DATA, 4, size_of::<HandshakeData>()),
            (names::TAIL_CALLS_SKB, 4, 4),
            (names::TAIL_CALLS_OPS, 4, 4),
            (names::PROCESSES, 4, 4),
            (names::CGROUPS, 8, size_of::<Cgroup>()),
            (names::PORTS, 4, 4),
            (names::PORT_PROTOCOLS, 24, 4),
            (names::SLOTS, size_of::<SeriesKey>(), 4),
            (names::SERIES, 4, size_of::<Series>()),
            (names::BUCKET_PAGES, 4, size_of::<BucketPage>()),
            (names::ALLOCATED, 4, 4),
            (names::FREE_SLOTS, 0, 4),
            (names::FREE_PAGES, 0, 4),
            (names::FREE_PORTS, 0, 4),
            (names::HEALTH, 4, 8),
            (names::INBOUND, size_of::<InboundKey>(), 4),
            (names::INBOUND_PORTS, 4, size_of::<InboundPort>()),
            (names::CALLERS, 8, size_of::<Caller>()),
            (names::CALLER_TEXTS, 4, size_of::<CallerText>()),
            (names::TRACE_TEXTS, 4, size_of::<TraceText>()),
            (names::TRACE_TABLES, 4, size_of::<TraceTable>()),
            (names::LINE_TABLES, 4, size_of::<LineTable>()),
            (names::TRACES, size_of::<TraceKey>(), size_of::<OpenRequest>()),
            (names::EXEMPLARS, size_of::<ExemplarKey>(), size_of::<Exemplar>()),
            (names::SPANS, 0, 0),
            (names::ACCEPTED, size_of::<AcceptedKey>(), size_of::<Accepted>()),
            (names::INBOUND_PEERS, size_of::<InboundPeerKey>(), size_of::<InboundPeer>()),
        ];
        for (name, key, value) in expected {
            let map: &Map = object.maps.get(name).with_context(|| format!("map {name}"))?;
            let found = (map.key_size() as usize, map.value_size() as usize);
            ensure!(found == (key, value), "{name}: object {found:?}, host {:?}", (key, value));
        }
        let others: Vec<_> = object
            .maps
            .keys()
            .filter(|name| !expected.iter().any(|(known, ..)| known == name) && !name.starts_with('.'))
            .collect();
        ensure!(others.is_empty(), "maps {others:?} are not accounted for");
        let (all, listed) = (expected.map(|(name, ..)| name), names::MAPS);
        ensure!(
            BTreeSet::from(all) == BTreeSet::from(listed),
            "of all maps, {all:?}, the list for pins has {listed:?}"
        );
        ensure!(
            object.maps[names::HEALTH].max_entries() as usize >= Counter::ALL.len(),
            "more counters than map entries"
        );
    }
    Ok(())
}

#[test]
fn the_release_objects_have_no_log_lines() -> Result<()> {
    for bytes in objects()? {
        let object = Object::parse(&bytes)?;
        ensure!(!object.maps.contains_key("AYA_LOGS"), "the object logs: built with --kernel-log?");
    }
    Ok(())
}
