//! bpf(2), as far as the tests and benchmarks call it themselves. Source: kernel `include/uapi/linux/bpf.h`.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

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
