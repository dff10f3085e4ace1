//! `/api/v1/…`: what the page shows, as JSON and as server-sent events (`docs/api.md`).

use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use hyper::{
    Response, StatusCode,
    header::{self, HeaderMap},
};

use super::{AppState, BodyStream, compressed, snapshot_cache::Source, text, with};

/// Everything below this path.
pub(super) const ROOT: &str = "/api/v1";
/// Names that other programs begin with.
const INDEX: &str =
    "{\"version\":1,\"state\":\"/api/v1/state\",\"history\":\"/api/v1/history\",\"events\":\"/api/v1/events\"}\n";

/// One of its resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resource {
    Index,
    State,
    History,
    Events,
}

impl Resource {
    /// Returns the resource of a path.
    pub(super) fn of(path: &str) -> Option<Self> {
        match path.strip_prefix(ROOT)? {
            "" | "/" => Some(Self::Index),
            "/state" => Some(Self::State),
            "/history" => Some(Self::History),
            "/events" => Some(Self::Events),
            _ => None,
        }
    }
}

impl<S: Source> AppState<S> {
    pub(super) async fn api(&self, resource: Resource, headers: &HeaderMap) -> Response<BodyStream> {
        let document = match resource {
            Resource::Index => Bytes::from_static(INDEX.as_bytes()),
            Resource::State => self.live.state().await,
            Resource::History => self.live.history().await,
            Resource::Events => return self.events().await,
        };
        let response = compressed(headers, Box::new(std::iter::once(document)), BodyStream::of);
        never_stored(with(response, header::CONTENT_TYPE, "application/json"))
    }

    async fn events(&self) -> Response<BodyStream> {
        let Some(events) = self.live.subscribe().await else {
            self.stats.too_many_streams.fetch_add(1, Relaxed);
            let response = text(StatusCode::SERVICE_UNAVAILABLE, "too many streams are open; close another page\n");
            return with(response, header::RETRY_AFTER, "10");
        };
        let response = Response::new(BodyStream { events: Some(events), ..BodyStream::none() });
        never_stored(with(response, header::CONTENT_TYPE, "text/event-stream"))
    }
}

fn never_stored(response: Response<BodyStream>) -> Response<BodyStream> {
    with(response, header::CACHE_CONTROL, "no-store")
}
