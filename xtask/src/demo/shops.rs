//! The demo's mesh, what its workloads say to each other, and what Envoy says of that.

use std::{
    collections::BTreeMap,
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Result;
use harness::{
    difference::Differences,
    mesh::{Mesh, Protocol, Service, Workload},
    observer::Observer,
    referee::Referee,
    sidecar::{Options, Sidecar},
    tally::{Leg, Messages, Tally},
};

use super::{
    calls::Calls,
    traffic::{Services, Traffic},
};
use crate::exec::say;

/// Longest that a log line may take to appear.
const PATIENCE: Duration = Duration::from_secs(10);

/// Three workloads with their sidecars; dropped in this order, the mesh last.
pub(crate) struct Shops {
    pub(crate) sidecars: Vec<Sidecar>,
    referees: Vec<Referee>,
    pub(crate) services: Services,
    prices: Service,
    pub(crate) shop: Arc<Workload>,
    pub(crate) catalog: Arc<Workload>,
    pub(crate) stock: Arc<Workload>,
    pub(crate) mesh: Mesh,
}

impl Shops {
    /// Builds the mesh, after removing what an earlier run left behind.
    pub(crate) fn open() -> Result<Self> {
        let removed = Mesh::sweep()?;
        if !removed.is_empty() {
            say(format!("removed what an earlier run left behind: {}", removed.join(", ")));
        }
        let mut mesh = Mesh::new()?;
        let (shop, catalog, stock) = (mesh.workload("shop")?, mesh.workload("catalog")?, mesh.workload("stock")?);
        let services = Services {
            catalog: mesh.service("catalog", 80, &catalog, 8080, Protocol::Http)?,
            stock: mesh.service("stock", 80, &stock, 8080, Protocol::Http)?,
            ledger: mesh.service("ledger", 9000, &stock, 9000, Protocol::Tcp)?,
        };
        let prices = mesh.service("prices", 50051, &stock, 50051, Protocol::Http2)?;
        let sidecars = [&shop, &catalog, &stock]
            .into_iter()
            .map(|workload| Sidecar::start(&mesh, workload, Options::default()))
            .collect::<Result<Vec<_>>>()?;
        let referees = sidecars.iter().map(Referee::new).collect::<Result<_>>()?;
        Ok(Self { sidecars, referees, services, prices, shop, catalog, stock, mesh })
    }

    /// Starts servers and clients.
    pub(crate) fn talk(&self) -> Result<Talk> {
        let Self { services, prices, shop, catalog, stock, .. } = self;
        Ok(Talk { traffic: Traffic::start(services, shop, catalog, stock)?, calls: Calls::start(prices, shop)? })
    }

    /// Adds what Envoy has logged since this was last asked, once no more comes.
    pub(crate) fn read_logs(&mut self, truth: &mut Tally) -> Result<()> {
        for referee in &mut self.referees {
            let lines = referee.settled(0, PATIENCE)?;
            referee.count(&lines, truth);
        }
        Ok(())
    }
}

/// What is being said; ended when dropped.
pub(crate) struct Talk {
    traffic: Traffic,
    calls: Calls,
}

impl Talk {
    /// Lets every exchange come to its end; returns how many gRPC messages the client counted.
    pub(crate) fn end(self) -> Messages {
        self.traffic.end();
        self.calls.end()
    }
}

/// Where the gRPC messages are counted.
pub(crate) fn messages(messages: &Messages) -> BTreeMap<Leg, Messages> {
    [Leg::source("shop"), Leg::destination("stock")].map(|leg| (leg, messages.clone())).into()
}

/// Waits for the observer to say what Envoy says; what it says, and what differs in the end.
pub(crate) fn compare(observer: &Observer, truth: &Tally, patience: Duration) -> Result<(Tally, Differences)> {
    let end = Instant::now() + patience;
    loop {
        let observed = observer.tally()?;
        // Durations are measured at two places and never equal; the tests bound how far apart they are.
        let differences = truth.differences(&observed).without_durations();
        if differences.is_empty() || Instant::now() > end {
            return Ok((observed, differences));
        }
        sleep(Duration::from_millis(100));
    }
}
