//! Which system calls the observer may make once it observes: filters in the kernel that no thread gets rid of [seccomp(2)].
//!
//! What an honest observer may come to call, with another C library or by a path that no test took, fails with EPERM: that
//! is one error among those that any call may have, with its line in the log or its outcome in the figures, and counting goes
//! on; the kernel's log names the call. What only foreign code would call (to run a program, to look into or change another
//! process, to change mounts, modules or the kernel itself) ends the process at once: figures of a process that somebody else
//! steers are worth nothing.

use std::{collections::BTreeMap, env::consts::ARCH, io};

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen::Dword, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// Only foreign code makes these.
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

/// Its arguments lie where no filter sees them; the C library then uses clone(2).
const UNSEEN: &[c_long] = &[libc::SYS_clone3];

/// What observing takes, whatever the arguments.
const PLAIN: &[c_long] = &[
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
    // Time and chance.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    // What it is and uses itself.
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
    // Sockets and waiting for them.
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

/// The older spellings of some of these, which newer machines have not.
#[cfg(target_arch = "x86_64")]
const OLDER: &[c_long] = &[
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
const OLDER: &[c_long] = &[];

/// What is asked of bpf(2) once the programs are loaded: maps read and written, links made, changed and ended, objects
/// pinned and found again. No program is loaded and no map made any more. [linux/bpf.h, `enum bpf_cmd`]
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
/// What is asked of fcntl(2): no owner for signals, no leases, no sizes of pipes.
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

/// What keeps the filters from being there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This machine's instruction set.
    #[error("no filter of system calls can be made for {ARCH}: {0}")]
    Filter(#[from] seccompiler::BackendError),
    /// The kernel.
    #[error("the kernel takes no filter of system calls: {0}")]
    Refused(#[source] io::Error),
}

/// From now on every thread of this process, and every one that it starts, may make these calls only.
///
/// # Errors
/// A kernel without seccomp, or one inside a container runtime that forbids it.
pub fn filter_calls() -> Result<(), Error> {
    let filters = [
        filter(any(HOSTILE), SeccompAction::Allow, SeccompAction::KillProcess)?,
        filter(any(UNSEEN), SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32))?,
        // The last: it knows no seccomp(2).
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
    let mut rules = any(PLAIN);
    rules.extend(any(OLDER));
    // Of two filters that answer with an error, the later would count.
    rules.extend(any(UNSEEN));
    rules.insert(libc::SYS_bpf, one_of(0, BPF)?);
    rules.insert(libc::SYS_socket, one_of(0, &families)?);
    rules.insert(libc::SYS_fcntl, one_of(1, &fcntl)?);
    // To its own threads only, as abort(3) does, and limits of its own only: as root it could reach every process of root's.
    rules.insert(libc::SYS_tgkill, one_of(0, &[own])?);
    rules.insert(libc::SYS_prlimit64, one_of(0, &[0, own])?);
    rules.insert(libc::SYS_clone, vec![threads]);
    // Into a pod's network namespace, for which the kernel asks for CAP_SYS_ADMIN besides.
    rules.insert(libc::SYS_setns, one_of(1, &[libc::CLONE_NEWNET as u64])?);
    rules.insert(libc::SYS_ioctl, one_of(1, &[libc::FIONBIO, libc::FIONREAD, libc::TCGETS])?);
    rules.insert(libc::SYS_prctl, one_of(0, &[libc::PR_SET_NAME as u64, libc::PR_GET_NAME as u64])?);
    Ok(rules)
}

/// Puts a filter on every thread, and has the kernel's log name what is refused.
fn install(program: &BpfProgram) -> Result<(), Error> {
    #[repr(C)]
    struct Program {
        length: u16,
        instructions: *const seccompiler::sock_filter,
    }
    let flags = libc::SECCOMP_FILTER_FLAG_TSYNC | libc::SECCOMP_FILTER_FLAG_LOG;
    let length = u16::try_from(program.len()).expect("some hundred instructions");
    let program = Program { length, instructions: program.as_ptr() };
    // SAFETY: the structure is `sock_fprog` of linux/filter.h; the kernel copies it and the instructions during the call.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    match result {
        0 => Ok(()),
        1.. => Err(Error::Refused(io::Error::other(format!("thread {result} has filters of its own")))),
        _ => Err(Error::Refused(io::Error::last_os_error())),
    }
}
