//! The calls of bpf(2) that aya does not offer, each a safe function: the only place here that talks to the kernel past aya.
//! Source: kernel `include/uapi/linux/bpf.h`, `union bpf_attr`.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use aya_obj::generated::{bpf_attach_type, bpf_cmd, bpf_link_info, bpf_prog_info};

/// Attaches `program` to a cgroup, in company: for links the kernel adds `BPF_F_ALLOW_MULTI` itself (`kernel/bpf/cgroup.c`).
pub(super) fn create_link(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    place: bpf_attach_type,
) -> io::Result<OwnedFd> {
    let mut attribute = [pair(number(program), number(cgroup)), pair(place as u32, 0)];
    let fd = call(bpf_cmd::BPF_LINK_CREATE, &mut attribute)?;
    // SAFETY: a descriptor that the kernel has just given us, and nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The cgroup that a link attaches to; 0 once that was removed and its last socket is gone.
pub(super) fn linked_cgroup(link: BorrowedFd<'_>) -> io::Result<u64> {
    // SAFETY: plain numbers, for which zero is valid.
    let mut info: bpf_link_info = unsafe { std::mem::zeroed() };
    let mut attribute = [pair(number(link), size_of_val(&info) as u32), (&raw mut info) as u64];
    call(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attribute)?;
    // SAFETY: the link is one to a cgroup, for which the kernel fills this part.
    Ok(unsafe { info.__bindgen_anon_1.cgroup.cgroup_id })
}

/// Runs and nanoseconds of a program, where `kernel.bpf_stats_enabled` is on.
pub(super) fn run_statistics(program: BorrowedFd<'_>) -> (u64, u64) {
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

/// Two fields of 32 bits, as they lie in memory.
fn pair(first: u32, second: u32) -> u64 {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&first.to_ne_bytes());
    bytes[4..].copy_from_slice(&second.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

fn call(command: bpf_cmd, attribute: &mut [u64]) -> io::Result<i32> {
    let (pointer, length) = (attribute.as_mut_ptr(), size_of_val(attribute));
    // SAFETY: the kernel reads and writes within the given length, and where the pointers in it lead; every caller's lead to
    // buffers of the size that the command implies, which live through the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as libc::c_long, pointer, length) };
    i32::try_from(result).ok().filter(|result| *result >= 0).ok_or_else(io::Error::last_os_error)
}
