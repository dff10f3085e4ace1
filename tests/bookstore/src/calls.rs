//! The demo's gRPC: grpc-go at both ends, calls and streams one after another, some of them refused.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::Result;
use harness::{
    apps::{grpc::Implementation, program::Program},
    counts::Messages,
    mesh::{Family, Service, Workload},
};

use crate::traffic::until_told;

/// Scenarios of the client, each on its own connection: single calls, of which every fourth is refused; a message and
/// an answer in turn; many answers to one message.
const SCENARIOS: [&str; 3] = ["paced 8 200", "talk 5 300", "pour 20 1000"];

/// Server and client; ended when dropped.
pub(crate) struct Calls {
    stop: Arc<AtomicBool>,
    client: Option<JoinHandle<Messages>>,
    _server: Program,
}

impl Calls {
    /// Starts the server of `service`, then its client in `from`.
    pub(crate) fn start(service: &Service, from: &Arc<Workload>) -> Result<Self> {
        let server = Implementation::Go.serve(&service.endpoint, service.target_port, None)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (ours, from, to) = (Arc::clone(&stop), Arc::clone(from), service.address(Family::V4));
        let client = thread::spawn(move || {
            let mut messages = Messages::default();
            let mut round = 0;
            until_told(&ours, &format!("{} to {to}", from.name), || {
                let summary = Implementation::Go.call(&from, to, SCENARIOS[round % SCENARIOS.len()])?;
                round += 1;
                messages.requests += summary.sent;
                messages.responses += summary.received;
                Ok(())
            });
            messages
        });
        Ok(Self { stop, client: Some(client), _server: server })
    }

    /// Waits until the running calls have ended; returns the client's count of messages.
    pub(crate) fn end(mut self) -> Messages {
        self.stop()
    }

    fn stop(&mut self) -> Messages {
        self.stop.store(true, Ordering::Relaxed);
        // A panic has been printed.
        self.client.take().and_then(|client| client.join().ok()).unwrap_or_default()
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        self.stop();
    }
}
