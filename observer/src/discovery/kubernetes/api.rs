//! Requests to the API, bounded in size and time.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use kube::client::Body;
use tokio::time::timeout;

use super::{access::Access, stats::Stats};
use crate::{model::kubernetes::Resource, system::http_client::USER_AGENT};

/// Timeout of a request until its answer begins, and of each pause within it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of a whole answer.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// A watch sends a bookmark about once a minute.
const WATCH_TIMEOUT: Duration = Duration::from_secs(150);
/// Maximum length of a watch's line: etcd's limit of an object is 1.5 MiB, and JSON may take more.
const MAX_LINE: usize = 4 << 20;
/// Maximum time that the API may ask to wait.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApiError {
    /// The API's status, and how long it asks to wait.
    Status(u16, Option<Duration>),
    /// It does not answer in time.
    Timeout,
    /// It cannot be reached, or the connection broke.
    Unreachable(String),
    /// The answer is longer than is read.
    TooLarge,
    /// The answer is not what the API's schema says.
    Malformed(String),
}

/// A permission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permission {
    /// API group, empty for the core.
    pub group: &'static str,
    /// What is read.
    pub resource: Resource,
    /// `list`, `watch` or `get`.
    pub verb: &'static str,
}

impl Permission {
    /// All that the observer needs.
    pub const ALL: [Self; 8] = [
        Self { group: "", resource: Resource::Services, verb: "list" },
        Self { group: "", resource: Resource::Services, verb: "watch" },
        Self { group: "discovery.k8s.io", resource: Resource::EndpointSlices, verb: "list" },
        Self { group: "discovery.k8s.io", resource: Resource::EndpointSlices, verb: "watch" },
        Self { group: "networking.istio.io", resource: Resource::ServiceEntries, verb: "list" },
        Self { group: "networking.istio.io", resource: Resource::ServiceEntries, verb: "watch" },
        Self { group: "", resource: Resource::Pods, verb: "get" },
        Self { group: "", resource: Resource::Pods, verb: "list" },
    ];
}

impl ApiError {
    /// Returns the outcome in the metrics.
    #[must_use]
    pub const fn outcome(&self) -> &'static str {
        match self {
            Self::Status(401, _) => "unauthorized",
            Self::Status(403, _) => "forbidden",
            Self::Status(404, _) => "not_found",
            Self::Status(410, _) => "gone",
            Self::Status(429, _) => "throttled",
            Self::Status(500.., _) => "server_error",
            Self::Status(..) => "refused",
            Self::Timeout => "timeout",
            Self::Unreachable(_) => "unreachable",
            Self::TooLarge => "too_large",
            Self::Malformed(_) => "malformed",
        }
    }

    /// Returns how long the API asks to wait.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status(_, after) => *after,
            _ => None,
        }
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status(401, _) => f.write_str("the API refuses the credentials (401); is the token valid?"),
            Self::Status(403, _) => {
                f.write_str("the API forbids it (403); grant it in a ClusterRole, see docs/kubernetes.md")
            }
            Self::Status(429, _) => f.write_str("the API is overloaded (429)"),
            Self::Status(status, _) => write!(f, "the API answers {status}"),
            Self::Timeout => f.write_str("the API does not answer in time"),
            Self::Unreachable(reason) => write!(f, "the API cannot be reached: {reason}"),
            Self::TooLarge => f.write_str("the API's answer is too large"),
            Self::Malformed(reason) => write!(f, "the API's answer is malformed: {reason}"),
        }
    }
}

/// The API.
pub(super) struct Api {
    access: Access,
    pub(super) stats: Arc<Stats>,
}

impl Api {
    pub(super) fn new(access: Access, stats: Arc<Stats>) -> Self {
        Self { access, stats }
    }

    /// Returns the answer to a GET, of at most `limit` bytes.
    pub(super) async fn get(&self, resource: Resource, path: &str, limit: usize) -> Result<Bytes, ApiError> {
        let answer = async {
            let body = self.send(path, None).await?;
            timeout(BODY_TIMEOUT, read(body, limit)).await.map_err(|_| ApiError::Timeout)?
        };
        let answer = answer.await;
        self.record(resource, answer.as_ref().err()).await;
        answer
    }

    /// Opens a watch.
    pub(super) async fn watch(&self, resource: Resource, path: &str) -> Result<Lines, ApiError> {
        let opened = self.send(path, None).await;
        self.record(resource, opened.as_ref().err()).await;
        Ok(Lines { body: opened?, buffer: BytesMut::new(), searched: 0, has_ended: false })
    }

    /// Returns whether the API grants a permission.
    pub(super) async fn is_allowed(&self, permission: Permission) -> Result<bool, ApiError> {
        let Permission { group, resource, verb } = permission;
        let review = serde_json::json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {"group": group, "resource": resource.name(), "verb": verb}},
        });
        let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        let body = self.send(path, Some(review.to_string())).await?;
        let answer = timeout(BODY_TIMEOUT, read(body, 1 << 20)).await.map_err(|_| ApiError::Timeout)??;
        let answer: serde_json::Value =
            serde_json::from_slice(&answer).map_err(|error| ApiError::Malformed(error.to_string()))?;
        Ok(answer.pointer("/status/allowed") == Some(&true.into()))
    }

    async fn send(&self, path: &str, post: Option<String>) -> Result<Body, ApiError> {
        let method = if post.is_some() { "POST" } else { "GET" };
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("accept", "application/json")
            .header("content-type", "application/json")
            .header("user-agent", USER_AGENT)
            .body(post.map_or_else(Body::empty, |text| text.into_bytes().into()));
        let request = request.map_err(|error| ApiError::Malformed(error.to_string()))?;
        let client = self.access.client();
        let response = timeout(ANSWER_TIMEOUT, client.send(request)).await.map_err(|_| ApiError::Timeout)?;
        let response = response.map_err(|error| ApiError::Unreachable(causes(&error)))?;
        if response.status().is_success() {
            return Ok(response.into_body());
        }
        let after = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
        let after = after.map(|seconds| Duration::from_secs(seconds).min(MAX_RETRY_AFTER));
        Err(ApiError::Status(response.status().as_u16(), after))
    }

    /// Counts the outcome, and reads the credentials again if they were refused.
    async fn record(&self, resource: Resource, error: Option<&ApiError>) {
        self.stats.count(resource, error.map_or("ok", ApiError::outcome));
        if matches!(error, Some(ApiError::Status(401, _)))
            && let Err(error) = self.access.reload().await
        {
            tracing::warn!("{error}");
        }
    }
}

/// The lines of a watch.
pub(super) struct Lines {
    body: Body,
    buffer: BytesMut,
    searched: usize,
    has_ended: bool,
}

impl Lines {
    /// Returns the next line, or `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        loop {
            let unsearched = self.buffer.get(self.searched..).unwrap_or_default();
            if let Some(at) = memchr::memchr(b'\n', unsearched) {
                let line = self.buffer.split_to(self.searched + at + 1).freeze();
                self.searched = 0;
                return Ok(Some(line));
            }
            self.searched = self.buffer.len();
            if self.has_ended {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(ApiError::Malformed("it is cut".to_owned()))
                };
            }
            if self.buffer.len() > MAX_LINE {
                return Err(ApiError::TooLarge);
            }
            if self.buffer.is_empty() {
                // Memory of a large line is released.
                self.buffer = BytesMut::new();
            }
            match timeout(WATCH_TIMEOUT, self.body.frame()).await {
                Err(_) => return Err(ApiError::Timeout),
                Ok(None) => self.has_ended = true,
                Ok(Some(Err(error))) => return Err(ApiError::Unreachable(causes(&error))),
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }

    /// Returns whether a whole line is there already.
    pub(super) fn has_line(&self) -> bool {
        memchr::memchr(b'\n', &self.buffer).is_some()
    }
}

async fn read(mut body: Body, limit: usize) -> Result<Bytes, ApiError> {
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ApiError::Unreachable(causes(&error)))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > limit {
            return Err(ApiError::TooLarge);
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes.freeze())
}

/// Returns an error with its causes.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}
