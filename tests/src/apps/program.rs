//! A third-party server program.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::raw::Connection;
use crate::mesh::Workload;

/// Limits the time until it listens.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(15);

/// A running program; killed when dropped.
#[derive(Debug)]
pub struct Program(Child);

impl Program {
    /// Starts a command in the pod `on` and waits until it listens on `port`.
    pub fn serve(on: &Workload, port: u16, command: &mut Command) -> Result<Self> {
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let mut program = Self(spawned.with_context(|| format!("{command:?} cannot be started"))?);
        let end = Instant::now() + LISTEN_TIMEOUT;
        // To itself, past its sidecar.
        while Connection::open(on, SocketAddr::from((Ipv4Addr::LOCALHOST, port))).is_err() {
            if let Some(status) = program.0.try_wait()? {
                bail!("{command:?} ended with {status}");
            }
            ensure!(Instant::now() < end, "{command:?} does not listen on port {port} after {LISTEN_TIMEOUT:?}");
            sleep(Duration::from_millis(20));
        }
        Ok(program)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
