//! Lists a resource page by page, then watches it; lists it again when the watch cannot continue.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::mpsc::Sender,
    time::{Instant, sleep},
};

use super::{
    api::{Api, ApiError, Lines},
    backoff::Backoff,
};
use crate::{
    model::kubernetes::{
        Change, ObjectName, Rejection, Resource, Watched,
        object::{ListPage, WatchEvent},
    },
    system::jitter::jitter,
};

/// Objects per page.
const PAGE: usize = 100;
/// Maximum bytes of a page; a larger one is asked for in parts.
const MAX_PAGE: usize = 8 << 20;
/// Maximum pages of a list.
const MAX_PAGES: usize = 10_000;
/// Maximum changes that are handed over together.
const MAX_BATCH: usize = 256;
/// Minimum time from one watch to the next.
const MIN_WATCH: Duration = Duration::from_secs(1);

/// A resource that is listed and watched.
pub(super) struct Watch {
    pub(super) api: Arc<Api>,
    /// Path in each version of its API, the best first.
    pub(super) paths: &'static [&'static str],
    pub(super) domain: Arc<str>,
    pub(super) changes: Sender<Vec<Change>>,
}

/// The main loop has ended.
struct Closed;

/// Why a round ends.
enum End {
    /// An error of the API.
    Api(ApiError),
    Closed,
}

impl From<ApiError> for End {
    fn from(error: ApiError) -> Self {
        Self::Api(error)
    }
}

impl From<Closed> for End {
    fn from(_: Closed) -> Self {
        Self::Closed
    }
}

impl Watch {
    /// Runs until the main loop ends.
    pub(super) async fn run<T: Watched + Send>(self) {
        let mut backoff = Backoff::default();
        let mut version: Option<(usize, String)> = None;
        loop {
            let end = match self.round::<T>(&mut version, &mut backoff).await {
                Ok(never) => match never {},
                Err(end) => end,
            };
            self.api.stats.set_open(T::RESOURCE, false);
            let error = match end {
                End::Closed => return,
                End::Api(error) => error,
            };
            // A version that is too old, or that the API does not understand, cannot be continued from.
            if matches!(error, ApiError::Status(400 | 410, _) | ApiError::Malformed(_) | ApiError::TooLarge) {
                version = None;
            }
            if !backoff.is_failing() {
                self.log::<T>(&error);
            }
            if is_optional(T::RESOURCE, &error) && self.send_empty_list(T::RESOURCE).await.is_err() {
                return;
            }
            sleep(backoff.after(&error)).await;
        }
    }

    fn log<T: Watched>(&self, error: &ApiError) {
        let resource = T::RESOURCE.name();
        match error {
            ApiError::Status(410, _) => tracing::debug!("{resource}: the watch is too old: listing again"),
            ApiError::Status(404, _) if is_optional(T::RESOURCE, error) => {
                tracing::info!("{resource} are not served; they are looked for once a minute");
            }
            _ => tracing::warn!("{resource} of the Kubernetes API: {error}; what was known stays"),
        }
    }

    /// Lists unless there is a version, then watches for ever.
    async fn round<T: Watched + Send>(
        &self,
        version: &mut Option<(usize, String)>,
        backoff: &mut Backoff,
    ) -> Result<std::convert::Infallible, End> {
        loop {
            let (path, from) = match version.take() {
                Some(known) => known,
                None => self.list::<T>().await?,
            };
            let started = Instant::now();
            let open = self.open::<T>(path, &from).await;
            // Where it may be continued, whatever happens next.
            *version = Some((path, from));
            let mut lines = open?;
            self.api.stats.set_open(T::RESOURCE, true);
            if backoff.is_failing() {
                tracing::info!("{} of the Kubernetes API are watched again", T::RESOURCE.name());
                backoff.reset();
            }
            self.follow::<T>(&mut lines, version).await?;
            // The API ends a watch in time, and some too early.
            tokio::time::sleep_until(started + MIN_WATCH).await;
        }
    }

    /// Lists all objects; returns the number of the path and the version to watch from.
    async fn list<T: Watched + Send>(&self) -> Result<(usize, String), End> {
        let mut number = 0;
        loop {
            match self.list_at::<T>(number).await {
                Err(End::Api(ApiError::Status(404, _))) if number + 1 < self.paths.len() => number += 1,
                Err(end) => return Err(end),
                Ok(version) => return Ok((number, version)),
            }
        }
    }

    async fn list_at<T: Watched + Send>(&self, number: usize) -> Result<String, End> {
        let (mut next, mut limit) = (String::new(), PAGE);
        self.send(vec![Change::ListBegan(T::RESOURCE)]).await?;
        for _ in 0..MAX_PAGES {
            let path = format!("{}?limit={limit}&continue={}", self.path(number), encoded(&next));
            let text = match self.api.get(T::RESOURCE, &path, MAX_PAGE).await {
                Err(ApiError::TooLarge) if limit > 1 => {
                    limit = (limit / 8).max(1);
                    continue;
                }
                answer => answer?,
            };
            let page = ListPage::decode(&text).map_err(|error| ApiError::Malformed(error.to_string()))?;
            let changes = page.objects::<T>().map(|object| match object {
                Ok(object) => Change::applied(&object, &self.domain),
                Err(_) => Change::Rejected(T::RESOURCE, None, Rejection::Malformed),
            });
            let changes: Vec<_> = changes.collect();
            let (version, more) = (page.metadata.resource_version, page.metadata.next);
            self.send(changes).await?;
            if more.is_empty() {
                self.send(vec![Change::ListEnded(T::RESOURCE)]).await?;
                return Ok(version);
            }
            next = more;
        }
        Err(ApiError::TooLarge.into())
    }

    async fn open<T: Watched>(&self, path: usize, version: &str) -> Result<Lines, ApiError> {
        // The API ends the watch then; nodes differ, so that they do not all come back at once.
        let seconds = 300 + (jitter() * 300.0) as u32;
        let path = format!(
            "{}?watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}&resourceVersion={}",
            self.path(path),
            encoded(version)
        );
        self.api.watch(T::RESOURCE, &path).await
    }

    /// Applies the events of a watch until it ends, and advances the version.
    async fn follow<T: Watched + Send>(
        &self,
        lines: &mut Lines,
        version: &mut Option<(usize, String)>,
    ) -> Result<(), End> {
        let mut batch = Vec::new();
        let result = loop {
            let line = match lines.next().await {
                Ok(Some(line)) => line,
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            };
            self.api.stats.set_open(T::RESOURCE, true);
            let new_version = match WatchEvent::<T>::decode(&line) {
                Ok(WatchEvent::Applied(object)) => {
                    batch.push(Change::applied(&object, &self.domain));
                    object.metadata().resource_version.clone()
                }
                Ok(WatchEvent::Deleted(object)) => {
                    if let Ok(name) = ObjectName::of(object.metadata()) {
                        batch.push(Change::Applied(T::RESOURCE, name, None));
                    }
                    object.metadata().resource_version.clone()
                }
                Ok(WatchEvent::Bookmark(version)) => version,
                Ok(WatchEvent::Error(status)) => break Err(ApiError::Status(status, None)),
                Err(error) => break Err(ApiError::Malformed(error.to_string())),
            };
            if let Some((_, version)) = version {
                *version = new_version;
            }
            if !batch.is_empty() && (batch.len() >= MAX_BATCH || !lines.has_line()) {
                self.send(std::mem::take(&mut batch)).await?;
            }
        };
        if !batch.is_empty() {
            self.send(batch).await?;
        }
        if let Err(error @ ApiError::Status(..)) = &result {
            self.api.stats.count(T::RESOURCE, error.outcome());
        }
        Ok(result?)
    }

    async fn send_empty_list(&self, resource: Resource) -> Result<(), Closed> {
        self.send(vec![Change::ListBegan(resource), Change::ListEnded(resource)]).await
    }

    async fn send(&self, changes: Vec<Change>) -> Result<(), Closed> {
        self.changes.send(changes).await.map_err(|_| Closed)
    }

    fn path(&self, number: usize) -> &'static str {
        self.paths.get(number).or(self.paths.first()).copied().unwrap_or_default()
    }
}

/// Returns whether a resource is one that need not be there: Istio's, without Istio or without permission.
fn is_optional(resource: Resource, error: &ApiError) -> bool {
    resource == Resource::ServiceEntries && matches!(error, ApiError::Status(403 | 404, _))
}

/// Encodes a value of a query [RFC 3986, section 2.1].
pub(super) fn encoded(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(byte.into());
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}
