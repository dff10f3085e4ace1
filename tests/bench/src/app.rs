//! The application for HTTP/1.1: answers with a body of the length in the path, and headers of a
//! chosen length.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::Result;
use harness::{
    apps::raw::{Connection, Server},
    mesh::Workload,
};

/// Bodies up to this length are sent in one piece with their headers.
const IN_ONE_PIECE: u64 = 1 << 16;

/// The running application; ended when dropped.
pub(crate) struct App {
    padding: Arc<AtomicUsize>,
    _server: Server,
}

impl App {
    /// Starts it on a port of the workload.
    pub(crate) fn start(on: &Workload, port: u16) -> Result<Self> {
        let padding = Arc::new(AtomicUsize::new(0));
        let ours = Arc::clone(&padding);
        let server = Server::start(on, port, move |slot| answer_all(slot, &ours))?;
        Ok(Self { padding, _server: server })
    }

    /// Adds this many bytes to the headers of every answer (0, or at least [`crate::load::SHORTEST_PADDING`]).
    pub(crate) fn pad(&self, bytes: usize) {
        self.padding.store(bytes, Ordering::Relaxed);
    }
}

/// Returns a path that asks for so many bytes.
pub(crate) fn path(length: u64) -> String {
    format!("/{length}")
}

fn answer_all(slot: &mut Option<Connection>, padding: &AtomicUsize) -> io::Result<()> {
    let connection = slot.as_mut().expect("given by the server");
    while let Some(head) = connection.receive_head()? {
        let path = head.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
        let length = std::str::from_utf8(path).ok().and_then(|path| path.strip_prefix('/')?.parse().ok()).unwrap_or(0);
        let padding = crate::load::padding(padding.load(Ordering::Relaxed));
        let end = if padding.is_empty() { "" } else { "\r\n" };
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n{padding}{end}\r\n");
        if length <= IN_ONE_PIECE {
            let mut whole = head.into_bytes();
            whole.resize(whole.len() + usize::try_from(length).expect("bounded above"), 0);
            connection.send(whole)?;
        } else {
            connection.send(head)?;
            connection.send_zeros(length)?;
        }
    }
    Ok(())
}
