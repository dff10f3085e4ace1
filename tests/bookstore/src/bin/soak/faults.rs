//! Faults in the observed mesh. Each is undone, and visible in Envoy's log.

use std::{fmt, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use harness::{
    apps::raw::Connection,
    bpffs::Bpffs,
    mesh::{Family, Workload},
    net::finish,
    observer::{Observer, get},
};

use bookstore::Bookstore;

/// How long packets are lost for.
const LOSS: Duration = Duration::from_secs(2);
/// Connections that are reset, one after the other.
const RESETS: usize = 5;
/// Scrapes at the same time.
const SCRAPES: usize = 4;

/// How often each has happened.
#[derive(Default)]
pub(crate) struct Faults {
    restarts: u32,
    kills: u32,
    losses: u32,
    resets: u32,
    scrapes: u32,
}

impl Faults {
    /// Restarts a sidecar, in its old container or in a new one. No exchange may be running.
    pub(crate) fn restart_sidecar(
        &mut self,
        bookstore: &mut Bookstore,
        observer: &mut Observer,
        dice: &mut Dice,
    ) -> Result<()> {
        let all = bookstore.sidecars.len();
        let sidecar = &mut bookstore.sidecars[dice.throw(all)];
        if dice.throw(2) == 0 {
            sidecar.stop()?;
            observer.wait_attached(all - 1)?;
            sidecar.start_again()?;
        } else {
            sidecar.replace_container()?;
        }
        observer.wait_attached(all)?;
        self.restarts += 1;
        Ok(())
    }

    /// Kills the observer and starts the next one, while traffic goes on.
    pub(crate) fn kill_observer(
        &mut self,
        bookstore: &Bookstore,
        bpffs: &Bpffs,
        observer: &mut Observer,
    ) -> Result<()> {
        observer.kill()?;
        *observer = observe(bookstore, bpffs)?;
        self.kills += 1;
        Ok(())
    }

    /// Loses one in thirty of the packets between a workload and its sidecar that are long enough to carry data: a
    /// handshake whose last packet is lost is completed by the first data, which the kernel then passes to no program.
    pub(crate) fn lose_packets(&mut self, bookstore: &Bookstore, dice: &mut Dice) -> Result<()> {
        let workload = [&bookstore.shop, &bookstore.catalog, &bookstore.stock][dice.throw(3)];
        lose(workload, "-A")?;
        thread::sleep(LOSS);
        lose(workload, "-D")?;
        self.losses += 1;
        Ok(())
    }

    /// Resets TCP connections at the client.
    pub(crate) fn reset_connections(&mut self, bookstore: &Bookstore) -> Result<()> {
        for _ in 0..RESETS {
            let mut connection = Connection::open(&bookstore.shop, bookstore.services.ledger.address(Family::V4))?;
            connection.send([b'x'; 500])?;
            connection.receive(500)?;
            connection.reset();
        }
        self.resets += 1;
        Ok(())
    }

    /// Has a server reset its connections instead of answering.
    pub(crate) fn reset_by_server(&mut self, bookstore: &Bookstore) -> Result<()> {
        for _ in 0..RESETS {
            let mut connection = Connection::open(&bookstore.shop, bookstore.services.stock.address(Family::V4))?;
            connection.send("GET /reset HTTP/1.1\r\nhost: stock\r\n\r\n")?;
            let answer = connection.receive_response()?;
            ensure!(answer.status == 503, "the proxy answered {} for a server that reset", answer.status);
        }
        self.resets += 1;
        Ok(())
    }

    /// Scrapes several times at once.
    pub(crate) fn scrape(&mut self, observer: &Observer) -> Result<()> {
        let address = observer.address();
        let scrapers: Vec<_> = (0..SCRAPES).map(|_| thread::spawn(move || get(address, "/metrics"))).collect();
        for scraper in scrapers {
            let (status, _) = scraper.join().expect("a scraper does not panic").context("scrape")?;
            ensure!(status == 200, "/metrics answered {status}");
        }
        self.scrapes += 1;
        Ok(())
    }
}

/// Returns an observer whose counts outlive it.
pub(crate) fn observe(bookstore: &Bookstore, bpffs: &Bpffs) -> Result<Observer> {
    let directory = bpffs.path().join("pins").display().to_string();
    Observer::start(&bookstore.mesh, bookstore.sidecars.len(), &["--interval", "1s", "--pin", &directory])
}

fn lose(workload: &Workload, action: &str) -> Result<()> {
    let rule = format!(
        "{action} INPUT -i lo -p tcp -m length --length 100:65535 -m statistic --mode random --probability 0.033 -j DROP"
    );
    finish(workload.command("iptables-legacy")?.args(rule.split(' ')), "").map(drop)
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { restarts, kills, losses, resets, scrapes } = self;
        write!(f, "{restarts} restarts, {kills} kills, {losses} losses, {resets} resets, {scrapes} scrapes;")
    }
}

/// A seeded random generator.
/// Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (SplitMix64).
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns a number below `sides`.
    pub(crate) fn throw(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) as usize % sides
    }
}
