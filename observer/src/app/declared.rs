//! Protocols of ports, declared to the kernel as the cluster changes.

use std::sync::Arc;

use anyhow::Error;

use crate::{
    discovery::{Sidecar, SidecarId},
    kernel::Kernel,
    model::kubernetes::Cluster,
};

/// What the kernel's map was written from.
#[derive(Default)]
pub(super) struct Declared {
    generation: u64,
    /// `None` before the first time.
    sidecars: Option<Vec<SidecarId>>,
    /// Ports left out last time.
    left_out: u64,
}

impl Declared {
    /// Writes the map if the cluster or the sidecars have changed.
    pub(super) fn update(&mut self, kernel: &mut Kernel, cluster: &mut Cluster, running: &[Arc<Sidecar>]) {
        // Until all is known, what an earlier observer declared stands.
        if cluster.is_on() && !cluster.is_synced() {
            return;
        }
        let sidecars = Some(running.iter().map(|sidecar| sidecar.id).collect());
        if self.generation == cluster.listed_generation() && self.sidecars == sidecars {
            return;
        }
        let protocols = cluster.port_protocols(running.iter());
        if protocols.left_out > 0 && self.left_out == 0 {
            tracing::warn!(
                "{} ports of the cluster are more than the kernel's map holds: whether these are HTTP or TCP is decided by \
                 their first bytes",
                protocols.left_out
            );
        }
        self.left_out = protocols.left_out;
        match kernel.set_port_protocols(&protocols) {
            Ok(()) => (self.generation, self.sidecars) = (cluster.listed_generation(), sidecars),
            Err(error) => tracing::error!("protocols of ports cannot be declared: {:#}", Error::from(error)),
        }
    }
}
