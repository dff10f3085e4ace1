//! What the filter of system calls does to a process: this very test program, started again as one that is filtered.

use std::{
    env, fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::{
        fd::AsRawFd,
        unix::process::{CommandExt, ExitStatusExt},
    },
    process::{Command, Output},
    thread,
};

use observer::system::seccomp::install_filters;
use rustix::{
    fs::symlink,
    io::Errno,
    net::{AddressFamily, SocketType, socket},
    process::chroot,
};

/// Says which of the [`DEEDS`] the process is to do.
const DEED: &str = "MESH_OBSERVER_DEED";

type Deed = (&'static str, fn());

const DEEDS: [Deed; 4] = [("work", work), ("unexpected", unexpected), ("run", run), ("leave", leave)];

/// What an observer does all day.
fn work() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let client = thread::spawn(move || TcpStream::connect(address).unwrap().write_all(b"five").unwrap());
    let mut text = String::new();
    listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
    client.join().unwrap();
    assert_eq!(text, "five");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("waiting");
    fs::write(&file, text).unwrap();
    fs::rename(&file, directory.path().join("sent")).unwrap();
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
    assert!(fs::read_to_string("/proc/self/status").unwrap().contains("\nSeccomp:\t2\n"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::net::lookup_host("localhost:1").await.unwrap().next().unwrap() });
}

/// What it never does is an error like others.
fn unexpected() {
    assert_eq!(symlink("/a", "/proc/no-such-place").unwrap_err(), Errno::PERM);
    assert_eq!(socket(AddressFamily::PACKET, SocketType::RAW, None).unwrap_err(), Errno::PERM);
    // Signals and limits are its own only.
    let own = i64::from(std::process::id());
    // SAFETY: no pointers but null ones; signal 0 is none, and no limit is set.
    let (tgkill, limit) = unsafe {
        let call = |call, process: i64, rest: [i64; 2]| match libc::syscall(call, process, rest[0], rest[1], 0) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error().raw_os_error()),
        };
        (
            [1, own].map(|process| call(libc::SYS_tgkill, process, [process, 0])),
            [1, 0, own].map(|process| call(libc::SYS_prlimit64, process, [i64::from(libc::RLIMIT_CORE), 0])),
        )
    };
    let refused = Err(Some(libc::EPERM));
    assert_eq!((tgkill, limit), ([refused, Ok(())], [refused, Ok(()), Ok(())]));
    // SAFETY: no pointers.
    assert_eq!(unsafe { libc::fcntl(std::io::stdin().as_raw_fd(), libc::F_SETOWN, 1) }, -1);
    // In a thread that was there before, too.
    assert_eq!(
        install_filters().unwrap_err().to_string().split(": ").next(),
        Some("the kernel rejects the system call filter")
    );
    work();
}

fn run() {
    panic!("another program is not run, which is an error instead of the end: {}", Command::new("/bin/true").exec());
}

fn leave() {
    panic!("another root is an error instead of the end: {:?}", chroot("/"));
}

fn outcome(deed: &str) -> Output {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "filtered", "--nocapture"]).env(DEED, deed).output().unwrap()
}

/// Does nothing unless it was started by another of these tests.
#[test]
fn filtered() {
    let Ok(wanted) = env::var(DEED) else { return };
    let (go, gone) = std::sync::mpsc::channel();
    let (_, deed) = DEEDS.into_iter().find(|(name, _)| *name == wanted).unwrap();
    let older = thread::spawn(move || {
        gone.recv().unwrap();
        deed();
    });
    install_filters().unwrap();
    go.send(()).unwrap();
    older.join().unwrap();
    deed();
}

#[test]
fn what_it_is_for_works() {
    let done = outcome("work");
    assert!(done.status.success(), "{done:?}");
}

#[test]
fn an_unexpected_call_is_an_error() {
    let done = outcome("unexpected");
    assert!(done.status.success(), "{done:?}");
}

#[test]
fn a_hostile_call_is_the_end() {
    for deed in ["run", "leave"] {
        let done = outcome(deed);
        assert_eq!(done.status.signal(), Some(libc::SIGSYS), "{deed}: {done:?}");
    }
}
