//! gRPC by two implementations that share no code; `tests/peers` says what their programs do.

use std::{collections::BTreeMap, net::SocketAddr, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::program::Program;
use crate::{mesh::Workload, net::finish, tools};

/// Whose gRPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Implementation {
    /// grpc-go.
    Go,
    /// grpcio, which is gRPC C-core.
    Python,
}

/// What a client knows at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Calls made.
    pub calls: usize,
    /// How many of them ended with which status, as the client sees it.
    pub statuses: BTreeMap<String, u64>,
    /// Messages sent.
    pub sent: u64,
    /// Messages received.
    pub received: u64,
}

impl Implementation {
    /// Starts a server, which ends each connection gracefully at about `age` if one is given.
    pub fn serve(self, on: &Workload, port: u16, age: Option<Duration>) -> Result<Program> {
        let mut command = self.command(on)?;
        command.arg("server").arg(port.to_string()).args(age.map(|age| age.as_millis().to_string()));
        Program::serve(on, port, &mut command)
    }

    /// Runs one scenario, given with its numbers.
    pub fn call(self, from: &Workload, to: SocketAddr, scenario: &str) -> Result<Told> {
        let mut command = self.command(from)?;
        command.arg("client").arg(to.to_string()).args(scenario.split(' '));
        let said = finish(&mut command, "")?;
        Told::read(&said).with_context(|| format!("{self:?} said {said:?} of {scenario}"))
    }

    fn command(self, on: &Workload) -> Result<Command> {
        let folder = |name: &str| tools::cache().join(name);
        let (program, script) = match self {
            Self::Go => (folder("grpc-go").join("peer"), None),
            Self::Python => (
                folder("grpc-python").join("python"),
                Some(tools::repository().join("tests/peers/grpc-python/peer.py")),
            ),
        };
        ensure!(program.is_file(), "{} is missing: run `cargo xtask setup`", program.display());
        let mut command = on.command(&program.to_string_lossy())?;
        command.args(script).env("PYTHONPATH", folder("grpc-python").join("packages"));
        Ok(command)
    }
}

impl Told {
    fn read(line: &str) -> Result<Self> {
        let said: Value = serde_json::from_str(line)?;
        let number = |value: &Value| value.as_u64().context("not a number");
        let statuses = said["statuses"].as_object().context("no statuses")?;
        Ok(Self {
            calls: usize::try_from(number(&said["calls"])?)?,
            statuses: statuses
                .iter()
                .map(|(status, count)| Ok((status.clone(), number(count)?)))
                .collect::<Result<_>>()?,
            sent: number(&said["sent"])?,
            received: number(&said["received"])?,
        })
    }
}
