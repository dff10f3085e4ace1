//! bpf(2), as far as the tests and benchmarks call it themselves. Source: kernel `include/uapi/linux/bpf.h`.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStringExt as _,
    },
    path::Path,
};

use anyhow::{Context as _, Result};

const PROG_LOAD: libc::c_long = 5;
const PROG_QUERY: libc::c_long = 16;
/// Program type of the packet hooks of a cgroup.
pub const CGROUP_SKB: u32 = 8;
/// Attach type of the hook for received packets.
pub const CGROUP_INET_INGRESS: u32 = 0;
/// Attach type of the hook for sent packets.
pub const CGROUP_INET_EGRESS: u32 = 1;
/// Lets other programs be attached to the same hook of the cgroup.
pub const ALLOW_MULTI: u32 = 2;
/// Lets every packet pass: `r0 = 1; exit`.
pub const PASS: [u64; 2] = [0x0000_0001_0000_00b7, 0x0000_0000_0000_0095];

/// Most programs that the kernel attaches to one hook of a cgroup.
const MAX_ATTACHED: usize = 64;

/// Calls bpf(2); pointers in `attributes` must be valid.
pub fn call(command: libc::c_long, attributes: &mut [u64]) -> io::Result<i32> {
    // SAFETY: the kernel reads and writes within the given length; pointers in it outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size_of_val(attributes)) };
    i32::try_from(result).ok().filter(|result| *result >= 0).ok_or_else(io::Error::last_os_error)
}

/// Calls bpf(2) with a command that returns a new descriptor.
pub fn create(command: libc::c_long, attributes: &mut [u64]) -> io::Result<OwnedFd> {
    // SAFETY: the kernel has just returned the descriptor, and nothing else owns it.
    call(command, attributes).map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Returns a descriptor as attributes contain it.
pub fn descriptor(of: &impl AsRawFd) -> u64 {
    of.as_raw_fd().cast_unsigned().into()
}

/// Loads a program of one type.
pub fn load(program_type: u32, instructions: &[u64]) -> io::Result<OwnedFd> {
    let license = c"GPL";
    let mut attributes = [0; 16];
    attributes[0] = u64::from(program_type) | (instructions.len() as u64) << 32;
    attributes[1] = instructions.as_ptr() as u64;
    attributes[2] = license.as_ptr() as u64;
    create(PROG_LOAD, &mut attributes)
}

/// Returns the ids of the programs that are attached to a hook of `target`, by links too.
pub fn attached(target: &impl AsRawFd, attach_type: u32) -> io::Result<Vec<u32>> {
    let mut ids = [0_u32; MAX_ATTACHED];
    let mut query = [0; 16];
    query[0] = descriptor(target) | u64::from(attach_type) << 32;
    query[2] = ids.as_mut_ptr() as u64;
    query[3] = ids.len() as u64;
    call(PROG_QUERY, &mut query)?;
    let count = usize::try_from(query[3] & u64::from(u32::MAX)).expect("at most 64");
    Ok(ids[..count].to_vec())
}

const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_GET_NEXT_KEY: libc::c_long = 4;
const OBJ_GET: libc::c_long = 7;

/// A map that an observer has pinned.
#[derive(Debug)]
pub struct PinnedMap(OwnedFd);

impl PinnedMap {
    /// Opens a map by its name in the only directory of maps below a pin directory.
    pub fn open(directory: &Path, name: &str) -> Result<Self> {
        let mut found = None;
        for entry in fs::read_dir(directory).with_context(|| format!("{}", directory.display()))? {
            let path = entry?.path().join(name);
            if path.exists() {
                found = Some(path);
            }
        }
        let path = found.with_context(|| format!("no map {name} below {}", directory.display()))?;
        let path = CString::new(path.into_os_string().into_vec())?;
        Ok(Self(create(OBJ_GET, &mut [path.as_ptr() as u64, 0])?))
    }

    /// Returns the value of a key; both have the sizes of the map.
    pub fn value(&self, key: &[u8], size: usize) -> io::Result<Vec<u8>> {
        let mut value = vec![0; size];
        let mut attributes = [descriptor(&self.0), key.as_ptr() as u64, value.as_mut_ptr() as u64, 0];
        call(MAP_LOOKUP_ELEM, &mut attributes)?;
        Ok(value)
    }

    /// Returns all keys and values, of the map's sizes.
    pub fn entries(&self, key_size: usize, value_size: usize) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut entries: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        loop {
            let mut next = vec![0; key_size];
            let key = entries.last().map_or(0, |(key, _)| key.as_ptr() as u64);
            let mut attributes = [descriptor(&self.0), key, next.as_mut_ptr() as u64, 0];
            match call(MAP_GET_NEXT_KEY, &mut attributes) {
                Ok(_) => {
                    let value = self.value(&next, value_size)?;
                    entries.push((next, value));
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(entries),
                Err(error) => return Err(error),
            }
        }
    }
}
