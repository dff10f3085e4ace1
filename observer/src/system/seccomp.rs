//! Restricts the system calls that the observer may make after startup, irrevocably [seccomp(2)].
//!
//! Calls that are not listed, which another C library or an untested path might make, fail with EPERM: that is handled as any
//! error, counting continues, and the kernel's log names the call. Calls that only injected code would make (to execute a
//! program, to read or change another process, mounts, modules or the kernel) kill the process: metrics of a compromised
//! process are worthless.

#![expect(unsafe_code, reason = "seccomp(2)")]

use std::{collections::BTreeMap, env::consts::ARCH, io};

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen::Dword, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// Calls that only injected code makes.
const HOSTILE: &[c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_open_by_handle_at,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
];

/// Filters cannot read its arguments; the C library falls back to clone(2).
const UNFILTERABLE: &[c_long] = &[libc::SYS_clone3];

/// Calls that are allowed with any arguments.
const ALLOWED: &[c_long] = &[
    // Memory and threads.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
    // Signals; sending one is below.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    // Time and random numbers.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    // Own ids and resource usage.
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getrusage,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_capget,
    // Files: procfs, cgroups, the queue, the token, pinned maps.
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_ftruncate,
    libc::SYS_flock,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    // Sockets and polling.
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept4,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_ppoll,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    // Ends of other processes.
    libc::SYS_pidfd_open,
];

/// Older forms of some of these, which newer architectures lack.
#[cfg(target_arch = "x86_64")]
const LEGACY: &[c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_dup2,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_epoll_wait,
    libc::SYS_time,
    libc::SYS_arch_prctl,
];
#[cfg(not(target_arch = "x86_64"))]
const LEGACY: &[c_long] = &[];

/// Commands of bpf(2) that are needed after startup: map access, links, pins. Loading programs and creating maps is over.
/// [linux/bpf.h, `enum bpf_cmd`]
const BPF: &[u64] = &[
    1,  // BPF_MAP_LOOKUP_ELEM
    2,  // BPF_MAP_UPDATE_ELEM
    3,  // BPF_MAP_DELETE_ELEM
    4,  // BPF_MAP_GET_NEXT_KEY
    6,  // BPF_OBJ_PIN
    7,  // BPF_OBJ_GET
    15, // BPF_OBJ_GET_INFO_BY_FD
    24, // BPF_MAP_LOOKUP_BATCH
    28, // BPF_LINK_CREATE
    29, // BPF_LINK_UPDATE
    34, // BPF_LINK_DETACH
];
/// Commands of fcntl(2): no signal owners, leases or pipe sizes.
const FCNTL: &[i32] =
    &[libc::F_DUPFD, libc::F_DUPFD_CLOEXEC, libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL];
const FAMILIES: &[i32] = &[libc::AF_INET, libc::AF_INET6, libc::AF_UNIX, libc::AF_NETLINK];
const NEW_NAMESPACES: i32 = libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

/// Why the filters cannot be installed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The architecture is not supported.
    #[error("no system call filter for {ARCH}: {0}")]
    Filter(#[from] seccompiler::BackendError),
    /// The kernel refuses.
    #[error("the kernel rejects the system call filter: {0}")]
    Refused(#[source] io::Error),
}

/// Restricts every thread of this process, present and future.
///
/// # Errors
/// The kernel has no seccomp, or the container runtime forbids it.
pub fn install_filters() -> Result<(), Error> {
    let filters = [
        filter(any(HOSTILE), SeccompAction::Allow, SeccompAction::KillProcess)?,
        filter(any(UNFILTERABLE), SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32))?,
        // The last, as it does not allow seccomp(2).
        filter(needed()?, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow)?,
    ];
    filters.iter().try_for_each(install)
}

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

fn filter(rules: Rules, otherwise: SeccompAction, these: SeccompAction) -> Result<BpfProgram, Error> {
    Ok(SeccompFilter::new(rules, otherwise, these, ARCH.try_into()?)?.try_into()?)
}

fn any(calls: &[c_long]) -> Rules {
    calls.iter().map(|&call| (call, Vec::new())).collect()
}

fn needed() -> Result<Rules, Error> {
    let is = |argument, value| SeccompCondition::new(argument, Dword, SeccompCmpOp::Eq, value);
    let one_of = |argument, values: &[u64]| -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
        values.iter().map(|&value| SeccompRule::new(vec![is(argument, value)?])).collect()
    };
    let families: Vec<u64> = FAMILIES.iter().map(|&family| family as u64).collect();
    let fcntl: Vec<u64> = FCNTL.iter().map(|&command| command as u64).collect();
    let own = u64::from(std::process::id());
    let without = SeccompCmpOp::MaskedEq(NEW_NAMESPACES as u64);
    let threads = SeccompRule::new(vec![SeccompCondition::new(0, Dword, without, 0)?])?;
    let mut rules = any(ALLOWED);
    rules.extend(any(LEGACY));
    // Of two filters that return an error, the later one wins.
    rules.extend(any(UNFILTERABLE));
    rules.insert(libc::SYS_bpf, one_of(0, BPF)?);
    rules.insert(libc::SYS_socket, one_of(0, &families)?);
    rules.insert(libc::SYS_fcntl, one_of(1, &fcntl)?);
    // Only for its own threads, as in abort(3), and its own limits: root could otherwise affect every process of root's.
    rules.insert(libc::SYS_tgkill, one_of(0, &[own])?);
    rules.insert(libc::SYS_prlimit64, one_of(0, &[0, own])?);
    rules.insert(libc::SYS_clone, vec![threads]);
    // To enter a pod's network namespace, which needs CAP_SYS_ADMIN too.
    rules.insert(libc::SYS_setns, one_of(1, &[libc::CLONE_NEWNET as u64])?);
    rules.insert(libc::SYS_ioctl, one_of(1, &[libc::FIONBIO, libc::FIONREAD, libc::TCGETS])?);
    rules.insert(libc::SYS_prctl, one_of(0, &[libc::PR_SET_NAME as u64, libc::PR_GET_NAME as u64])?);
    Ok(rules)
}

/// Installs a filter on every thread, with refused calls logged by the kernel.
fn install(program: &BpfProgram) -> Result<(), Error> {
    #[repr(C)]
    struct Program {
        length: u16,
        instructions: *const seccompiler::sock_filter,
    }
    let flags = libc::SECCOMP_FILTER_FLAG_TSYNC | libc::SECCOMP_FILTER_FLAG_LOG;
    // A few hundred instructions.
    let length = u16::try_from(program.len()).map_err(|_| Error::Refused(io::ErrorKind::FileTooLarge.into()))?;
    let program = Program { length, instructions: program.as_ptr() };
    // SAFETY: the structure is `sock_fprog` of linux/filter.h; the kernel copies it and the instructions during the call.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    match result {
        0 => Ok(()),
        1.. => Err(Error::Refused(io::Error::other(format!("thread {result} has filters of its own")))),
        _ => Err(Error::Refused(io::Error::last_os_error())),
    }
}
