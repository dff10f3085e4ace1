//! Load across restarts of the observer: HTTP/1 and HTTP/2 one after the other on ever new connections, and bytes
//! on a TCP connection that stays open.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{JoinHandle, spawn},
};

use anyhow::{Context, Result, anyhow, ensure};
use harness::{
    apps::{
        raw::{Connection, Server},
        tcp,
    },
    mesh::Family,
    net::finish,
    pair::Pair,
};

pub(super) struct Load {
    stop: Arc<AtomicBool>,
    requests: JoinHandle<Result<()>>,
    connection: Connection,
    _echo: Server,
}

impl Load {
    /// Starts requests of each of these kinds: options of h2load, and a URL.
    pub(super) fn start(pair: &Pair, kinds: Vec<Vec<String>>) -> Result<Self> {
        let _echo = tcp::echo(&pair.server, pair.tcp.target_port)?;
        let connection = Connection::open(&pair.client, pair.tcp.address(Family::V4))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (client, is_stopped) = (pair.client.clone(), stop.clone());
        let requests = spawn(move || {
            // No request is cut short, as the proxy would log it differently.
            for kind in kinds.iter().cycle().take_while(|_| !is_stopped.load(Ordering::Relaxed)) {
                let mut command = client.command("h2load")?;
                let said = finish(command.args(["-n1000", "-c8"]).args(kind), "")?;
                ensure!(said.contains("1000 succeeded"), "{said}");
            }
            Ok(())
        });
        Ok(Self { stop, requests, connection, _echo })
    }

    /// Sends bytes and receives them back on the connection that stays open.
    pub(super) fn beat(&mut self) -> Result<()> {
        self.connection.send("tick")?;
        self.connection.receive(4).map(drop).context("the answer to a tick")
    }

    pub(super) fn end(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.requests.join().map_err(|_| anyhow!("the load panicked"))?
    }
}

pub(super) fn http1(pair: &Pair) -> Vec<String> {
    ["--h1", "-m1", &pair.url(Family::V4, "/bytes/1024")].map(str::to_owned).into()
}

pub(super) fn http2(pair: &Pair) -> Vec<String> {
    ["-m4", &pair.url(Family::V6, "/bytes/1024")].map(str::to_owned).into()
}
