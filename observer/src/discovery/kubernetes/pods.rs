//! Fetches pods by name or address, a few per second.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::{
    sync::mpsc::{Receiver, Sender},
    time::{Instant, sleep, sleep_until},
};

use super::{
    api::{Api, ApiError},
    backoff::Backoff,
    list_watch::encoded,
};
use crate::model::kubernetes::{
    Change, Pod, PodQuery, Resource,
    object::{self, ListPage},
};

/// Requests per second, and how many may come at once.
const RATE: f64 = 10.0;
const BURST: f64 = 20.0;
/// Maximum bytes of an answer.
const MAX_ANSWER: usize = 4 << 20;
/// Maximum questions that wait; whoever needs the answer asks again.
const MAX_WAITING: usize = 1_024;

/// Fetches pods.
pub(super) struct PodFetcher {
    pub(super) api: Arc<Api>,
    pub(super) questions: Receiver<Vec<PodQuery>>,
    pub(super) changes: Sender<Vec<Change>>,
}

impl PodFetcher {
    /// Runs until the main loop ends.
    pub(super) async fn run(mut self) {
        let mut waiting: VecDeque<PodQuery> = VecDeque::new();
        let (mut tokens, mut counted) = (BURST, Instant::now());
        let mut backoff = Backoff::default();
        loop {
            let Some(query) = waiting.pop_front() else {
                let Some(questions) = self.questions.recv().await else { return };
                waiting.extend(questions);
                continue;
            };
            tokens = (tokens + counted.elapsed().as_secs_f64() * RATE).min(BURST);
            counted = Instant::now();
            if tokens < 1.0 {
                sleep_until(counted + Duration::from_secs_f64((1.0 - tokens) / RATE)).await;
            }
            tokens -= 1.0;
            match fetch(&self.api, &query).await {
                Ok(pods) => {
                    backoff.reset();
                    if self.changes.send(vec![Change::Pods(query, pods)]).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    if !backoff.is_failing() {
                        tracing::warn!("pods of the Kubernetes API: {error}; what was known stays");
                    }
                    // The questions are asked again while the answer is missing.
                    waiting.clear();
                    sleep(backoff.after(&error)).await;
                }
            }
            while let Ok(questions) = self.questions.try_recv() {
                let room = MAX_WAITING.saturating_sub(waiting.len());
                for query in questions.into_iter().take(room) {
                    if !waiting.contains(&query) {
                        waiting.push_back(query);
                    }
                }
            }
        }
    }
}

async fn fetch(api: &Api, query: &PodQuery) -> Result<Vec<Pod>, ApiError> {
    let malformed = |error: serde_json::Error| ApiError::Malformed(error.to_string());
    // Pods that are not kept are as if they were not there.
    let kept = |pod: &object::Pod| Pod::new(pod).ok();
    match query {
        PodQuery::Name(name) => {
            let path = format!("/api/v1/namespaces/{}/pods/{}", encoded(&name.namespace), encoded(&name.name));
            match api.get(Resource::Pods, &path, MAX_ANSWER).await {
                Err(ApiError::Status(404, _)) => Ok(Vec::new()),
                answer => Ok(kept(&serde_json::from_slice(&answer?).map_err(malformed)?).into_iter().collect()),
            }
        }
        PodQuery::Address(address) => {
            let selector = encoded(&format!("status.podIP={address}"));
            // Version 0 is answered from the API server's memory: without it, etcd would be read for all pods.
            let path = format!("/api/v1/pods?fieldSelector={selector}&resourceVersion=0");
            let text = api.get(Resource::Pods, &path, MAX_ANSWER).await?;
            let page = ListPage::decode(&text).map_err(malformed)?;
            Ok(page.objects::<object::Pod>().filter_map(|pod| kept(&pod.ok()?)).collect())
        }
    }
}
