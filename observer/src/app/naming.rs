//! Names from the Kubernetes API, if there is access to it.

use anyhow::Result;

use crate::{
    config::{Config, values::KubernetesMode},
    discovery::kubernetes::{Access, Kubernetes, domain::cluster_domain},
    model::kubernetes::Change,
    reporter::Reporter,
};

/// Access to the API, from when it is opened until it is used.
pub(super) struct Naming {
    access: Option<Access>,
    domain: String,
    kubernetes: Option<Kubernetes>,
}

impl Naming {
    /// Opens access, if there are credentials; asks nothing yet.
    ///
    /// # Errors
    /// There are credentials, and they cannot be used.
    pub(super) async fn open(config: &Config) -> Result<Self> {
        let access = match config.kubernetes {
            KubernetesMode::Off => None,
            KubernetesMode::Auto => Access::open(config.kubeconfig.as_deref()).await?,
        };
        let domain = config.cluster_domain.clone().unwrap_or_else(cluster_domain);
        Ok(Self { access, domain, kubernetes: None })
    }

    /// Starts to ask.
    pub(super) fn start(&mut self, reporter: &mut Reporter) {
        let Some(access) = self.access.take() else { return };
        tracing::info!("names come from the Kubernetes API by {}; domain {}", access.source(), self.domain);
        let kubernetes = Kubernetes::start(access, self.domain.clone());
        reporter.set_kubernetes(kubernetes.handle());
        self.kubernetes = Some(kubernetes);
    }

    /// Returns the next changes; waits for ever without access.
    pub(super) async fn next(&mut self) -> Vec<Change> {
        match &mut self.kubernetes {
            Some(kubernetes) => kubernetes.next().await,
            None => std::future::pending().await,
        }
    }
}
