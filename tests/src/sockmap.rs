//! A third-party bypass between an application and its sidecar, as some meshes and network plugins have it: a program
//! puts the sockets that the sidecar accepts into a sockmap, and others redirect what is written to one socket to the
//! reader of the other. None of it passes TCP.

use std::{
    fs::File,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{
    bpf::{self, ALLOW_MULTI, descriptor},
    third_party_program::ThirdPartyProgram,
    wait::wait_until,
};

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_TYPE_SOCKMAP: u64 = 15;
const BPF_PROG_TYPE_SOCK_OPS: u32 = 13;
const BPF_PROG_TYPE_SK_MSG: u32 = 16;
const BPF_CGROUP_SOCK_OPS: u32 = 3;
const BPF_SK_MSG_VERDICT: u32 = 7;
const BPF_FUNC_SOCK_MAP_UPDATE: i32 = 53;
const BPF_FUNC_MSG_REDIRECT_MAP: i32 = 60;
const BPF_F_INGRESS: i32 = 1;
const PASSIVE_ESTABLISHED: i32 = 5;
const OUTBOUND_PORT: i32 = 15001;
/// Limits the time until the sidecar's end of a connection is in the sockmap.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(8);

/// Redirected directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redirected {
    /// From the application.
    Requests,
    /// From the application and from the sidecar.
    Both,
}

/// A bypass for one connection; to be dropped after the connection's end.
#[derive(Debug)]
pub struct ShortCut {
    application: OwnedFd,
    sidecar: OwnedFd,
    _programs: Vec<ThirdPartyProgram>,
}

impl ShortCut {
    /// Waits for the next connection that the sidecar in `cgroup` accepts from its application.
    pub fn new(cgroup: &Path, redirected: Redirected) -> Result<Self> {
        let (application, sidecar) = (sockmap()?, sockmap()?);
        // Sockets are redirected that come after the program.
        let mut programs = vec![redirect(&application, &sidecar)?];
        if redirected == Redirected::Both {
            programs.push(redirect(&sidecar, &application)?);
        }
        let cgroup = File::open(cgroup).with_context(|| format!("{}", cgroup.display()))?;
        let collect = collect(&sidecar);
        programs.push(ThirdPartyProgram::load(
            BPF_PROG_TYPE_SOCK_OPS,
            &collect,
            cgroup.into(),
            BPF_CGROUP_SOCK_OPS,
            ALLOW_MULTI,
        )?);
        Ok(Self { application, sidecar, _programs: programs })
    }

    /// Redirects the application's end of that connection, on which nothing has been sent yet.
    pub fn take(&self, connection: &impl AsRawFd) -> Result<()> {
        let (key, mut cookie) = (0_u32, 0_u64);
        wait_until("the sidecar's end is in the sockmap", ACCEPT_TIMEOUT, || {
            Ok(bpf::call(BPF_MAP_LOOKUP_ELEM, &mut element(&self.sidecar, &key, &mut cookie))?)
        })?;
        let mut socket = descriptor(connection);
        bpf::call(BPF_MAP_UPDATE_ELEM, &mut element(&self.application, &key, &mut socket))
            .context("the connection cannot be put into a sockmap")?;
        Ok(())
    }
}

/// Returns a map for one socket.
fn sockmap() -> Result<OwnedFd> {
    let mut attributes = [0; 16];
    attributes[0] = BPF_MAP_TYPE_SOCKMAP | (size_of::<u32>() as u64) << 32;
    attributes[1] = size_of::<u64>() as u64 | 1 << 32;
    bpf::create(BPF_MAP_CREATE, &mut attributes).context("no sockmap can be made (CONFIG_BPF_STREAM_PARSER)")
}

/// Returns `struct { map_fd, key, value, flags }`.
fn element(map: &OwnedFd, key: &u32, value: &mut u64) -> [u64; 16] {
    let mut attributes = [0; 16];
    attributes[0] = descriptor(map);
    attributes[1] = (&raw const *key) as u64;
    attributes[2] = (&raw mut *value) as u64;
    attributes
}

/// Redirects what the socket in `from` writes to the reader of the socket in `to`.
fn redirect(from: &OwnedFd, to: &OwnedFd) -> Result<ThirdPartyProgram> {
    let [map, map_high] = map(2, to);
    let instructions = [
        map,
        map_high,
        op(MOVE, 3, 0, 0, 0),
        op(MOVE, 4, 0, 0, BPF_F_INGRESS),
        op(CALL, 0, 0, 0, BPF_FUNC_MSG_REDIRECT_MAP),
        op(EXIT, 0, 0, 0, 0),
    ];
    ThirdPartyProgram::load(BPF_PROG_TYPE_SK_MSG, &instructions, from.try_clone()?, BPF_SK_MSG_VERDICT, 0)
}

/// Puts each socket that is accepted from the application into `into`.
fn collect(into: &OwnedFd) -> [u64; 13] {
    // Offsets in `struct bpf_sock_ops`.
    const OP: i16 = 0;
    const LOCAL_PORT: i16 = 68;
    let [map, map_high] = map(2, into);
    [
        op(LOAD, 2, 1, OP, 0),
        op(JUMP_UNLESS, 2, 0, 9, PASSIVE_ESTABLISHED),
        op(LOAD, 2, 1, LOCAL_PORT, 0),
        op(JUMP_UNLESS, 2, 0, 7, OUTBOUND_PORT),
        op(STORE, 10, 0, -4, 0),
        map,
        map_high,
        op(COPY, 3, 10, 0, 0),
        op(ADD, 3, 0, 0, -4),
        op(MOVE, 4, 0, 0, 0),
        op(CALL, 0, 0, 0, BPF_FUNC_SOCK_MAP_UPDATE),
        op(MOVE, 0, 0, 0, 1),
        op(EXIT, 0, 0, 0, 0),
    ]
}

const ADD: u8 = 0x07;
const LOAD: u8 = 0x61;
const STORE: u8 = 0x62;
const JUMP_UNLESS: u8 = 0x55;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const MOVE: u8 = 0xb7;
const COPY: u8 = 0xbf;

/// Returns an instruction: code, registers, offset, number.
fn op(code: u8, to: u8, from: u8, offset: i16, number: i32) -> u64 {
    u64::from(code)
        | u64::from(to | from << 4) << 8
        | u64::from(offset.cast_unsigned()) << 16
        | u64::from(number.cast_unsigned()) << 32
}

/// Returns both halves of the instruction that loads a map.
fn map(to: u8, map: &OwnedFd) -> [u64; 2] {
    const LOAD_MAP: u8 = 0x18;
    [op(LOAD_MAP, to, 1, 0, map.as_raw_fd()), 0]
}
