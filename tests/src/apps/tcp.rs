//! Ordinary TCP servers.

use std::io::pipe;

use anyhow::Result;

use super::raw::Server;
use crate::mesh::Workload;

/// Echoes until the client ends.
pub fn echo(on: &Workload, port: u16) -> Result<Server> {
    Server::start(on, port, |connection| {
        let connection = connection.as_mut().expect("given by the server");
        loop {
            let bytes = connection.receive_some()?;
            if bytes.is_empty() {
                return Ok(());
            }
            connection.send(bytes)?;
        }
    })
}

/// Echoes with splice(2), without reading the bytes.
pub fn spliced_echo(on: &Workload, port: u16) -> Result<Server> {
    Server::start(on, port, |connection| {
        let connection = connection.as_mut().expect("given by the server");
        let (reader, writer) = pipe()?;
        loop {
            let moved = connection.splice_into(&writer)?;
            if moved == 0 {
                return Ok(());
            }
            connection.splice_from(&reader, moved)?;
        }
    })
}

/// Sends first, as mail and database servers do, then echoes.
pub fn banner(on: &Workload, port: u16, banner: &'static [u8]) -> Result<Server> {
    Server::start(on, port, move |connection| {
        let connection = connection.as_mut().expect("given by the server");
        connection.send(banner)?;
        loop {
            let bytes = connection.receive_some()?;
            if bytes.is_empty() {
                return Ok(());
            }
            connection.send(bytes)?;
        }
    })
}

/// Receives everything, sends nothing.
pub fn sink(on: &Workload, port: u16) -> Result<Server> {
    Server::start(on, port, |connection| connection.as_mut().expect("given by the server").drain().map(|_| ()))
}

/// Sends `length` zero bytes to whoever has sent a byte, then ends.
pub fn source(on: &Workload, port: u16, length: u64) -> Result<Server> {
    Server::start(on, port, move |connection| {
        let connection = connection.as_mut().expect("given by the server");
        connection.receive(1)?;
        connection.send_zeros(length)
    })
}
