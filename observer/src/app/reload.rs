//! SIGHUP reloads the configuration's services and workloads.

use crate::{cli::args::RunArgs, config::Config, model::workload_index::StaticPeers};

/// The configuration as loaded last.
pub(super) struct Reload<'a> {
    args: &'a RunArgs,
    config: Config,
}

impl<'a> Reload<'a> {
    pub(super) fn new(config: &Config, args: &'a RunArgs) -> Self {
        Self { args, config: config.clone() }
    }

    /// Returns the services and workloads if they have changed and can be read. All other keys keep their values.
    pub(super) fn peers(&mut self) -> Option<StaticPeers> {
        let loaded = match Config::load(self.args) {
            Ok(loaded) => loaded,
            Err(error) => {
                tracing::error!("SIGHUP: the configuration is unchanged: {error}");
                return None;
            }
        };
        let peers = loaded.peers();
        let is_changed = peers != self.config.peers();
        self.config.set_peers(&loaded);
        let other = if loaded == self.config { "" } else { "; other changes need a restart" };
        let (services, workloads) = (peers.services.len(), peers.workloads.len());
        tracing::info!("SIGHUP: the configuration names {services} services and {workloads} workloads{other}");
        is_changed.then_some(peers)
    }
}
