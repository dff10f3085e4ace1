//! Connections from inside another network namespace, on a real kernel. Needs root.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    path::Path,
    process::Command,
    sync::mpsc,
    thread,
    time::Duration,
};

use observer::{
    collect::netns::{self, NetnsError},
    discovery::{ProcessId, proc_files::ProcFiles},
};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A thread in a network namespace of its own that answers on loopback there. The kernel shows a thread below /proc as it
/// does a process.
struct Secluded {
    process: ProcessId,
    address: SocketAddr,
}

impl Secluded {
    fn start() -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test makes a network namespace: run it as root");
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            // SAFETY: no file descriptors are unshared, only the network namespace.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
            assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let tid = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned();
            sender.send((tid, listener.local_addr().unwrap())).unwrap();
            for stream in listener.incoming() {
                stream.unwrap().write_all(b"from inside").unwrap();
            }
        });
        let (pid, address) = receiver.recv().unwrap();
        let start_time = ProcFiles::new("/proc".into()).start_time(pid).unwrap();
        Self { process: ProcessId { pid, start_time }, address }
    }

    fn connect(&self, process: ProcessId) -> Result<std::net::TcpStream, NetnsError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let stream = netns::connect(Path::new("/proc"), process, self.address, CONNECT_TIMEOUT).await?;
            let stream = stream.into_std().unwrap();
            stream.set_nonblocking(false).unwrap();
            Ok(stream)
        })
    }
}

#[test]
fn reaches_what_listens_on_loopback_there() {
    let secluded = Secluded::start();
    assert!(std::net::TcpStream::connect_timeout(&secluded.address, CONNECT_TIMEOUT).is_err(), "not from here");
    let mut said = String::new();
    secluded.connect(secluded.process).unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "from inside");
    assert!(std::net::TcpStream::connect_timeout(&secluded.address, CONNECT_TIMEOUT).is_err(), "still not from here");
}

#[test]
fn says_what_is_missing() {
    let secluded = Secluded::start();
    let another = ProcessId { start_time: 1, ..secluded.process };
    assert!(matches!(secluded.connect(another), Err(NetnsError::Gone { .. })));
    let nobody = ProcessId { pid: u32::MAX >> 1, start_time: 1 };
    assert!(matches!(secluded.connect(nobody), Err(NetnsError::Gone { .. })));
    let refused = Secluded { address: "127.0.0.1:1".parse().unwrap(), ..secluded };
    let error = refused.connect(refused.process).unwrap_err().to_string();
    assert!(error.contains("127.0.0.1:1 in the network namespace of process"), "{error}");
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
        .unwrap();
    let error = refused.connect(refused.process).unwrap_err().to_string();
    assert!(error.contains("needs CAP_SYS_ADMIN"), "{error}");
}
