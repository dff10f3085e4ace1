//! The control-plane processes of this node, and the endpoints that are scraped.

use std::sync::Arc;

use anyhow::{Context, Error, Result};

use crate::{
    collect::scrape::{ScrapePool, ScrapeTarget, targets},
    config::Config,
    discovery::{Component, ProcessId, Sidecar},
    model::reading::ScrapeReading,
};

/// The control-plane processes, and the scrapes.
pub(super) struct Scraping {
    pool: ScrapePool,
    /// Endpoints that the configuration names.
    named: Vec<ScrapeTarget>,
    scrapes_proxies: bool,
    components: Vec<Arc<Component>>,
}

impl Scraping {
    /// Starts to scrape the named endpoints.
    ///
    /// # Errors
    /// An HTTP client cannot be created.
    pub(super) fn new(config: &Config) -> Result<Self> {
        let mut pool = ScrapePool::new(config.scraping());
        let named: Vec<_> = config.named_targets().collect();
        pool.set(named.iter().cloned()).context("control-plane endpoints cannot be scraped")?;
        Ok(Self { pool, named, scrapes_proxies: config.scrape_proxies, components: Vec::new() })
    }

    /// Returns the control-plane processes that run.
    pub(super) fn components(&self) -> &[Arc<Component>] {
        &self.components
    }

    /// Adds or replaces a control-plane process.
    pub(super) fn insert(&mut self, component: Arc<Component>) {
        self.components.retain(|other| other.process != component.process);
        if let Ok(endpoint) = &component.endpoint {
            let (pid, reason) = (component.process.pid, &endpoint.evidence);
            tracing::info!(pid, reason, "{} at {}", component.app, endpoint.address);
        }
        self.components.push(component);
    }

    /// Removes a control-plane process that has ended.
    pub(super) fn remove(&mut self, process: ProcessId, app: &str) {
        self.components.retain(|other| other.process != process);
        tracing::info!(pid = process.pid, "{app} ended");
    }

    /// Scrapes the named endpoints and those of the processes that run now.
    pub(super) fn update_targets(&mut self, sidecars: &[Arc<Sidecar>]) {
        let found = targets(&self.components, sidecars, self.scrapes_proxies).into_iter();
        let found = found.filter(|found| !self.named.iter().any(|named| named.is_same_page(found)));
        if let Err(error) = self.pool.set(self.named.iter().cloned().chain(found)) {
            tracing::error!("endpoints cannot be scraped: {:#}", Error::from(error));
        }
    }

    /// Returns the last result of every scrape.
    pub(super) fn read(&self) -> Vec<ScrapeReading> {
        self.pool.read()
    }
}
