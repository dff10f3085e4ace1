//! The Kubernetes API: lists and watches Services, EndpointSlices and `ServiceEntry`s, and fetches pods on demand.
//!
//! Everything runs beside the main loop, which takes [`Change`]s when it has time: a full channel makes the API wait,
//! and an API that does not answer makes nobody wait. The client is `kube`'s; lists, watches and retries are here, since
//! all that the API sends is bounded: pages and lines in bytes, questions per second, and the time that each may take.

pub mod access;
mod api;
mod backoff;
pub mod domain;
mod list_watch;
mod pods;
mod stats;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use tokio::{
    sync::mpsc::{self, Receiver, Sender},
    task::JoinSet,
};

pub use self::{
    access::{Access, AccessError, AccessOptions},
    api::{ApiError, Permission},
};
use self::{api::Api, pods::PodFetcher, stats::Stats};
use crate::model::{
    KubernetesStats,
    kubernetes::{Change, PodQuery, object},
};

/// Batches of changes that wait for the main loop.
const MAX_BATCHES: usize = 4;
/// Batches of questions for pods that wait.
const MAX_QUESTIONS: usize = 16;

/// The observer's connection to the API. Dropping it ends all requests.
pub struct Kubernetes {
    changes: Receiver<Vec<Change>>,
    handle: KubernetesHandle,
    #[expect(dead_code, reason = "the tasks end when it is dropped")]
    tasks: JoinSet<()>,
}

/// Asks for pods, and has the statistics.
#[derive(Clone)]
pub struct KubernetesHandle {
    questions: Sender<Vec<PodQuery>>,
    stats: Arc<Stats>,
}

impl Kubernetes {
    /// Starts to list and watch. `domain` is the cluster's, e.g. `cluster.local`.
    #[must_use]
    pub fn start(access: Access, domain: String) -> Self {
        let stats = Arc::new(Stats::default());
        let api = Arc::new(Api::new(access, stats.clone()));
        let (changed, changes) = mpsc::channel(MAX_BATCHES);
        let (questions, asked) = mpsc::channel(MAX_QUESTIONS);
        let domain: Arc<str> = domain.into();
        let mut tasks = JoinSet::new();
        let watch = |paths: &'static [&'static str]| list_watch::Watch {
            api: api.clone(),
            paths,
            domain: domain.clone(),
            changes: changed.clone(),
        };
        tasks.spawn(watch(&["/api/v1/services"]).run::<object::Service>());
        tasks.spawn(watch(&["/apis/discovery.k8s.io/v1/endpointslices"]).run::<object::EndpointSlice>());
        tasks.spawn(
            watch(&["/apis/networking.istio.io/v1/serviceentries", "/apis/networking.istio.io/v1beta1/serviceentries"])
                .run::<object::ServiceEntry>(),
        );
        tasks.spawn(PodFetcher { api, questions: asked, changes: changed }.run());
        Self { changes, handle: KubernetesHandle { questions, stats }, tasks }
    }

    /// Returns each permission, and whether the API grants it.
    pub async fn permissions(access: Access) -> Vec<(Permission, Result<bool, ApiError>)> {
        let api = Api::new(access, Arc::default());
        let mut granted = Vec::new();
        for permission in Permission::ALL {
            granted.push((permission, api.is_allowed(permission).await));
        }
        granted
    }

    /// Returns the next changes.
    pub async fn next(&mut self) -> Vec<Change> {
        match self.changes.recv().await {
            Some(changes) => changes,
            // The senders live as long as `self`.
            None => std::future::pending().await,
        }
    }

    /// Returns the handle for questions.
    #[must_use]
    pub fn handle(&self) -> KubernetesHandle {
        self.handle.clone()
    }
}

impl KubernetesHandle {
    /// Asks for pods. Questions that find no room are repeated by whoever needs the answer.
    pub fn ask(&self, questions: Vec<PodQuery>) {
        if !questions.is_empty() && self.questions.try_send(questions).is_err() {
            self.stats.count(crate::model::kubernetes::Resource::Pods, "queue_full");
        }
    }

    /// Returns what was asked of the API, and how old its answers are.
    #[must_use]
    pub fn stats(&self) -> KubernetesStats {
        self.stats.read()
    }
}
