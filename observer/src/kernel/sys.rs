//! Safe functions for bpf(2) calls that aya does not offer. Source: kernel `include/uapi/linux/bpf.h`, `union
//! bpf_attr`.

#![expect(unsafe_code, reason = "bpf(2)")]

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use aya_obj::generated::{
    BPF_ALU, BPF_ATOMIC, BPF_EXIT, BPF_FETCH, BPF_JMP, BPF_K, BPF_MEM, BPF_MOV, BPF_OR, BPF_ST, BPF_STX, BPF_W,
    bpf_attach_type, bpf_cmd, bpf_link_info, bpf_map_info, bpf_prog_info, bpf_prog_type,
};

/// Whether the kernel supports atomic operations that return a value. Probed with a program of five instructions; if
/// that may not be loaded, the next load reports why.
pub(crate) fn takes_fetching_atomics() -> bool {
    let instruction = |code: u32, registers: u8, offset: i16, value: i32| -> u64 {
        let [low, high] = offset.to_ne_bytes();
        pair(u32::from_ne_bytes([code as u8, registers, low, high]), value.cast_unsigned())
    };
    let program = [
        instruction(BPF_ST | BPF_MEM | BPF_W, 10, -4, 0),
        instruction(BPF_ALU | BPF_MOV | BPF_K, 1, 0, 1),
        instruction(BPF_STX | BPF_ATOMIC | BPF_W, 10 | 1 << 4, -4, (BPF_OR | BPF_FETCH).cast_signed()),
        instruction(BPF_ALU | BPF_MOV | BPF_K, 0, 0, 1),
        instruction(BPF_JMP | BPF_EXIT, 0, 0, 0),
    ];
    let kind = pair(bpf_prog_type::BPF_PROG_TYPE_SOCK_OPS as u32, program.len() as u32);
    let mut attribute = [kind, program.as_ptr() as u64, c"GPL".as_ptr() as u64, 0, 0, 0];
    match made(bpf_cmd::BPF_PROG_LOAD, &mut attribute) {
        Ok(_) => true,
        Err(error) => matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOMEM)),
    }
}

/// Opens the object pinned at `path`.
pub(crate) fn open(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    made(bpf_cmd::BPF_OBJ_GET, &mut [path.as_ptr() as u64, 0])
}

/// Pins an object at `path`.
pub(crate) fn pin(it: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    call(bpf_cmd::BPF_OBJ_PIN, &mut [path.as_ptr() as u64, u64::from(number(it))]).map(drop)
}

/// Attaches `program` to a cgroup, alongside others: the kernel adds `BPF_F_ALLOW_MULTI` to links
/// (`kernel/bpf/cgroup.c`).
pub(crate) fn create_link(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    place: bpf_attach_type,
) -> io::Result<OwnedFd> {
    made(bpf_cmd::BPF_LINK_CREATE, &mut [pair(number(program), number(cgroup)), pair(place as u32, 0)])
}

/// Replaces the link's program, atomically for every cgroup below it.
pub(crate) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    call(bpf_cmd::BPF_LINK_UPDATE, &mut [pair(number(link), number(program)), 0]).map(drop)
}

/// Returns the cgroup of a link; 0 once that was removed and its last socket closed.
pub(crate) fn linked_cgroup(link: BorrowedFd<'_>) -> io::Result<u64> {
    // SAFETY: plain numbers, for which zero is valid.
    let mut info: bpf_link_info = unsafe { std::mem::zeroed() };
    let mut attribute = [pair(number(link), size_of_val(&info) as u32), (&raw mut info) as u64];
    call(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attribute)?;
    // SAFETY: the link is one to a cgroup, for which the kernel fills this part.
    Ok(unsafe { info.__bindgen_anon_1.cgroup.cgroup_id })
}

/// Detaches the link, even if others hold it.
pub(crate) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    call(bpf_cmd::BPF_LINK_DETACH, &mut [u64::from(number(link))]).map(drop)
}

/// A pinned map of any layout, read as bytes.
pub(crate) struct RawMap {
    fd: OwnedFd,
    key_size: usize,
    value_size: usize,
}

impl RawMap {
    /// Opens the object pinned at `path`.
    pub(crate) fn open(path: &Path, key_size: usize, value_size: usize) -> io::Result<Self> {
        let fd = open(path)?;
        // SAFETY: plain numbers, for which zero is valid.
        let mut info: bpf_map_info = unsafe { std::mem::zeroed() };
        let mut attribute = [pair(number(fd.as_fd()), size_of_val(&info) as u32), (&raw mut info) as u64];
        call(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attribute)?;
        if (info.key_size as usize, info.value_size as usize) != (key_size, value_size) {
            let problem = format!("keys of {} and values of {} bytes", info.key_size, info.value_size);
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        Ok(Self { fd, key_size, value_size })
    }

    /// Returns every key.
    pub(crate) fn keys(&self) -> impl Iterator<Item = io::Result<Vec<u8>>> {
        let mut before = None;
        std::iter::from_fn(move || {
            let next = self.next_key(before.as_deref());
            before = next.as_ref().ok().cloned().flatten();
            next.transpose()
        })
    }

    /// Returns the key after `key`, or the first; `None` after the last.
    fn next_key(&self, key: Option<&[u8]>) -> io::Result<Option<Vec<u8>>> {
        let mut next = vec![0; self.key_size];
        let key = key.filter(|key| key.len() == self.key_size).map_or(0, |key| key.as_ptr() as u64);
        let mut attribute = [u64::from(number(self.fd.as_fd())), key, next.as_mut_ptr() as u64, 0];
        match call(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut attribute) {
            Ok(_) => Ok(Some(next)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the value at `key`, which must have the size of the map's keys.
    pub(crate) fn get(&self, key: &[u8]) -> io::Result<Vec<u8>> {
        if key.len() != self.key_size {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut value = vec![0; self.value_size];
        let mut attribute = [u64::from(number(self.fd.as_fd())), key.as_ptr() as u64, value.as_mut_ptr() as u64, 0];
        call(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attribute).map(|_| value)
    }

    /// As [`read_hash`], of a hash map that was opened with the sizes of `K` and `V`.
    pub(crate) fn read_hash<K: aya::Pod, V: aya::Pod>(&self, each: impl FnMut(K, V)) -> io::Result<()> {
        if (size_of::<K>(), size_of::<V>()) != (self.key_size, self.value_size) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        read_hash(self.fd.as_fd(), each)
    }
}

/// Passes every element of a hash map to `each`; those that are inserted or removed meanwhile, or not.
pub(crate) fn read_hash<K: aya::Pod, V: aya::Pod>(map: BorrowedFd<'_>, mut each: impl FnMut(K, V)) -> io::Result<()> {
    let (mut length, mut cursor, mut is_first) = (256_u32, 0_u32, true);
    loop {
        let (mut keys, mut values) =
            (Vec::<K>::with_capacity(length as usize), Vec::<V>::with_capacity(length as usize));
        let mut next = 0_u32;
        let from = if is_first { 0 } else { (&raw const cursor) as u64 };
        let to = (&raw mut next) as u64;
        let counted = pair(length, number(map));
        let mut attribute = [from, to, keys.as_mut_ptr() as u64, values.as_mut_ptr() as u64, counted, 0, 0];
        let result = call(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attribute);
        let is_last = match &result {
            Ok(_) => false,
            // ENOENT follows the last element.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            // One bucket has more elements than that.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && length < 1 << 20 => {
                length *= 2;
                continue;
            }
            Err(_) => return result.map(drop),
        };
        let [read @ .., _, _, _, _] = attribute[4].to_ne_bytes();
        let read = u32::from_ne_bytes(read).min(length) as usize;
        // SAFETY: the kernel has written as many keys and values, of the map's sizes, which are those of `K` and `V`, as the
        // caller's types say; both are plain data, for which every bit pattern is valid.
        unsafe {
            keys.set_len(read);
            values.set_len(read);
        }
        keys.into_iter().zip(values).for_each(|(key, value)| each(key, value));
        if is_last {
            return Ok(());
        }
        (cursor, is_first) = (next, false);
    }
}

/// Returns runs and nanoseconds of a program, if `kernel.bpf_stats_enabled` is on.
pub(crate) fn run_statistics(program: BorrowedFd<'_>) -> (u64, u64) {
    // SAFETY: plain numbers, for which zero is valid; an all-zero one asks for no array.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    let mut attribute = [pair(number(program), size_of_val(&info) as u32), (&raw mut info) as u64];
    match call(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attribute) {
        Ok(_) => (info.run_cnt, info.run_time_ns),
        Err(_) => (0, 0),
    }
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// Packs two fields of 32 bits as they lie in memory.
fn pair(first: u32, second: u32) -> u64 {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&first.to_ne_bytes());
    bytes[4..].copy_from_slice(&second.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

/// Makes a call that returns a descriptor.
fn made(command: bpf_cmd, attribute: &mut [u64]) -> io::Result<OwnedFd> {
    // SAFETY: a descriptor that the kernel has just given us, and nobody else has.
    call(command, attribute).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

fn call(command: bpf_cmd, attribute: &mut [u64]) -> io::Result<i32> {
    let (pointer, length) = (attribute.as_mut_ptr(), size_of_val(attribute));
    // SAFETY: the kernel reads and writes within the given length, and where the pointers in it lead; every caller's lead to
    // buffers of the size that the command implies, which live through the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as libc::c_long, pointer, length) };
    i32::try_from(result).ok().filter(|result| *result >= 0).ok_or_else(io::Error::last_os_error)
}
