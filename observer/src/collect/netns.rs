//! Connects from inside another network namespace, for endpoints that are not reachable from here.

use std::{
    fs::File,
    io,
    net::{SocketAddr, TcpStream},
    os::fd::AsFd,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use rustix::{
    io::Errno,
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use tokio::{net, sync::oneshot};

use crate::discovery::{ProcessId, proc_files::ProcFiles};

/// Why a connection failed.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The namespace cannot be entered.
    #[error("the network namespace of process {pid} may not be entered: that needs CAP_SYS_ADMIN and CAP_SYS_PTRACE")]
    NotPermitted {
        /// The process.
        pid: u32,
    },
    /// The process has ended.
    #[error("process {pid} has ended")]
    Gone {
        /// The process.
        pid: u32,
    },
    /// Connecting failed.
    #[error("{address} in the network namespace of process {pid}: {reason}")]
    Failed {
        /// The process.
        pid: u32,
        /// The address.
        address: SocketAddr,
        /// Why.
        reason: io::Error,
    },
}

/// Opens a connection to `address` from the network namespace of a process, in which the socket stays.
///
/// A thread enters the namespace and ends, so that no other thread leaves the observer's. Requires a tokio runtime.
///
/// # Errors
/// See [`Error`].
pub async fn connect(
    proc_root: &Path,
    process: ProcessId,
    address: SocketAddr,
    patience: Duration,
) -> Result<net::TcpStream, NetnsError> {
    let pid = process.pid;
    let failed = |reason| NetnsError::Failed { pid, address, reason };
    let (answer, answered) = oneshot::channel();
    let proc_root = proc_root.to_owned();
    let work = move || {
        // The receiver is gone after a timeout.
        let _ = answer.send(connect_there(proc_root, process, address, patience));
    };
    thread::Builder::new().name("network-namespace".to_owned()).spawn(work).map_err(failed)?;
    let stream = answered.await.map_err(|_| failed(io::Error::other("the thread for it ended early")))??;
    net::TcpStream::from_std(stream).map_err(failed)
}

fn connect_there(
    proc_root: PathBuf,
    process: ProcessId,
    address: SocketAddr,
    patience: Duration,
) -> Result<TcpStream, NetnsError> {
    let pid = process.pid;
    let failed = |reason: io::Error| match reason.kind() {
        io::ErrorKind::PermissionDenied => NetnsError::NotPermitted { pid },
        io::ErrorKind::NotFound => NetnsError::Gone { pid },
        _ if reason.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => NetnsError::Gone { pid },
        _ => NetnsError::Failed { pid, address, reason },
    };
    let namespace = File::open(proc_root.join(pid.to_string()).join("ns/net")).map_err(failed)?;
    // The pid may be reused.
    if ProcFiles::new(proc_root).start_time(pid).map_err(failed)? != process.start_time {
        return Err(NetnsError::Gone { pid });
    }
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(|error| failed(error.into()))?;
    let connected = TcpStream::connect_timeout(&address, patience);
    let stream = connected.and_then(|stream| stream.set_nonblocking(true).map(|()| stream));
    stream.map_err(|reason| NetnsError::Failed { pid, address, reason })
}
