//! gRPC by three implementations that share no code; see `tests/peers`.

use std::{collections::BTreeMap, net::SocketAddr, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::program::Program;
use crate::{mesh::Workload, net::finish, tools};

/// JVM options for a short-lived program.
const SOON_THERE: [&str; 3] = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:-UsePerfData"];

/// An implementation of gRPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Implementation {
    /// grpc-go.
    Go,
    /// grpcio, which is gRPC C-core.
    Python,
    /// grpc-java.
    Java,
}

/// Report of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Calls made.
    pub calls: usize,
    /// Number of calls by status, as the client sees it.
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
        let directory = tools::cache().join(match self {
            Self::Go => "grpc-go",
            Self::Python => "grpc-python",
            Self::Java => "grpc-java",
        });
        let (built, program) = match self {
            Self::Go => (directory.join("peer"), directory.join("peer")),
            Self::Python => (directory.join("python"), directory.join("python")),
            Self::Java => (directory.join("classes/Peer.class"), tools::require("java")?),
        };
        ensure!(built.is_file(), "{} is missing: run `cargo xtask setup`", built.display());
        let mut command = on.command(&program.to_string_lossy())?;
        match self {
            Self::Go => {}
            Self::Python => {
                command.env("PYTHONPATH", directory.join("packages"));
                command.arg(tools::repository().join("tests/peers/grpc-python/peer.py"));
            }
            Self::Java => {
                command.args(SOON_THERE).arg("-cp").arg(format!("{0}/classes:{0}/*", directory.display())).arg("Peer");
            }
        }
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
