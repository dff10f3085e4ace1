//! The bookstore: a mesh of three workloads with sidecars, its traffic, and the counts of Envoy's access logs.

mod calls;
mod traffic;

use std::{
    collections::BTreeMap,
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Result;
use harness::{
    console::say,
    counts::{Counts, Leg, Messages},
    difference::Differences,
    envoy_access_log::EnvoyAccessLog,
    mesh::{Mesh, Protocol, Service, Workload},
    observer::Observer,
    sidecar::{Options, Sidecar},
};

pub use crate::traffic::Services;
use crate::{calls::Calls, traffic::Traffic};

/// Limits the time until a log line appears.
const LOG_TIMEOUT: Duration = Duration::from_secs(10);

/// Three workloads with their sidecars; dropped in this order, the mesh last.
pub struct Bookstore {
    /// Of shop, catalog and stock.
    pub sidecars: Vec<Sidecar>,
    access_logs: Vec<EnvoyAccessLog>,
    /// Services over HTTP and TCP.
    pub services: Services,
    prices: Service,
    /// HTTP at catalog, without a server of its own.
    pub orders: Service,
    /// Calls catalog over HTTP, stock over gRPC and TCP.
    pub shop: Arc<Workload>,
    /// Calls stock over HTTP.
    pub catalog: Arc<Workload>,
    /// Calls catalog over HTTP.
    pub stock: Arc<Workload>,
    /// Namespaces, addresses and services.
    pub mesh: Mesh,
}

impl Bookstore {
    /// Builds the mesh, after removing what an earlier run left behind.
    pub fn open() -> Result<Self> {
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
        let orders = mesh.service("orders", 80, &catalog, 8081, Protocol::Http)?;
        let sidecars = [&shop, &catalog, &stock]
            .into_iter()
            .map(|workload| Sidecar::start(&mesh, workload, Options::default()))
            .collect::<Result<Vec<_>>>()?;
        let access_logs = sidecars.iter().map(EnvoyAccessLog::new).collect::<Result<_>>()?;
        Ok(Self { sidecars, access_logs, services, prices, orders, shop, catalog, stock, mesh })
    }

    /// Starts servers and clients.
    pub fn talk(&self) -> Result<Talk> {
        let Self { services, prices, shop, catalog, stock, .. } = self;
        Ok(Talk { traffic: Traffic::start(services, shop, catalog, stock)?, calls: Calls::start(prices, shop)? })
    }

    /// Adds the log lines since the last call, once no more appear.
    pub fn read_logs(&mut self, truth: &mut Counts) -> Result<()> {
        for access_log in &mut self.access_logs {
            let lines = access_log.settled(0, LOG_TIMEOUT)?;
            access_log.count(&lines, truth);
        }
        Ok(())
    }
}

/// Running traffic; ended when dropped.
pub struct Talk {
    traffic: Traffic,
    calls: Calls,
}

impl Talk {
    /// Waits until every exchange has ended; returns the client's count of gRPC messages.
    pub fn end(self) -> Messages {
        self.traffic.end();
        self.calls.end()
    }
}

/// Returns the legs on which the gRPC messages are counted.
pub fn messages(messages: &Messages) -> BTreeMap<Leg, Messages> {
    [Leg::source("shop"), Leg::destination("stock")].map(|leg| (leg, messages.clone())).into()
}

/// Waits until the observer's counts equal Envoy's; returns its counts, and the remaining differences.
pub fn compare(observer: &Observer, truth: &Counts, patience: Duration) -> Result<(Counts, Differences)> {
    let end = Instant::now() + patience;
    loop {
        let observed = observer.counts()?;
        // Durations are measured at two places and never equal; the tests bound how far apart they are.
        let differences = truth.differences(&observed).without_durations();
        if differences.is_empty() || Instant::now() > end {
            return Ok((observed, differences));
        }
        sleep(Duration::from_millis(100));
    }
}
