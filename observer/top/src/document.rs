//! `/api/v1/state`, as far as it is shown. Fields that are not known are ignored, as the API asks for.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::{bounded, clean::Clean};

/// Everything that is shown now.
#[derive(Debug, Deserialize)]
pub struct Document {
    pub(crate) version: Clean,
    pub(crate) node: Clean,
    /// When it was read, in seconds since 1970.
    pub(crate) at: f64,
    /// Length of the time that rates are over; none in the first document of a session.
    pub(crate) window_seconds: Option<f64>,
    /// As many as the observer has at most.
    #[serde(deserialize_with = "bounded::list::<_, _, 2_000>")]
    pub(crate) edges: Vec<Edge>,
    #[serde(default)]
    pub(crate) unlisted_series: f64,
    #[serde(default, deserialize_with = "bounded::list::<_, _, 2_000>")]
    pub(crate) processes: Vec<Process>,
    #[serde(default)]
    pub(crate) control_plane: ControlPlane,
    #[serde(default, deserialize_with = "bounded::list::<_, _, 500>")]
    pub(crate) unseen: Vec<Unseen>,
    #[serde(default)]
    pub(crate) observer: Observer,
    #[serde(default, deserialize_with = "bounded::list::<_, _, 200>")]
    pub(crate) findings: Vec<Finding>,
}

impl Document {
    /// Reads a document.
    ///
    /// # Errors
    /// It is not one of an observer.
    pub fn parse(text: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(text)
    }
}

/// Everything of one caller, one callee and one protocol.
#[derive(Debug, Deserialize)]
pub(crate) struct Edge {
    pub(crate) id: u32,
    pub(crate) from: Clean,
    pub(crate) to: Clean,
    pub(crate) protocol: Clean,
    #[serde(default, deserialize_with = "bounded::list::<_, _, 16>")]
    pub(crate) services: Vec<Clean>,
    #[serde(default, deserialize_with = "bounded::list::<_, _, 4>")]
    pub(crate) security: Vec<Clean>,
    pub(crate) source: Option<Side>,
    pub(crate) destination: Option<Side>,
}

/// What one proxy counted.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Side {
    pub(crate) totals: Counts,
    /// Per second, if something moved within the window.
    pub(crate) recent: Option<Counts>,
    /// Requests whose traces are worth a look, if trace contexts are read.
    #[serde(default)]
    pub(crate) sampled: Sampled,
}

/// Requests that a tracing system has.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Sampled {
    /// The last one of the slowest bucket.
    pub(crate) slowest: Option<SampledRequest>,
    /// The last one that failed.
    pub(crate) failed: Option<SampledRequest>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct SampledRequest {
    pub(crate) trace_id: Clean,
    pub(crate) duration_ms: f64,
    pub(crate) code: Clean,
    pub(crate) grpc_status: Option<Clean>,
}

/// What is counted: as totals, or per second.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Counts {
    pub(crate) requests: f64,
    pub(crate) errors: f64,
    pub(crate) client_errors: f64,
    #[serde(deserialize_with = "bounded::map::<_, _, 100>")]
    pub(crate) codes: BTreeMap<Clean, f64>,
    #[serde(deserialize_with = "bounded::map::<_, _, 100>")]
    pub(crate) grpc_statuses: BTreeMap<Clean, f64>,
    pub(crate) request_bytes: f64,
    pub(crate) response_bytes: f64,
    pub(crate) request_messages: f64,
    pub(crate) response_messages: f64,
    pub(crate) opened: f64,
    pub(crate) closed: f64,
    pub(crate) received_bytes: f64,
    pub(crate) sent_bytes: f64,
    /// Of the window.
    pub(crate) latency_ms: Latency,
}

/// Durations in milliseconds.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Latency {
    pub(crate) mean: Option<f64>,
    pub(crate) p50: Option<f64>,
    pub(crate) p75: Option<f64>,
    pub(crate) p90: Option<f64>,
    pub(crate) p95: Option<f64>,
    pub(crate) p99: Option<f64>,
    pub(crate) p999: Option<f64>,
}

/// A process of the mesh, with what is known of it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Process {
    pub(crate) app: Clean,
    pub(crate) instance: Clean,
    pub(crate) pod: Clean,
    pub(crate) namespace: Clean,
    pub(crate) cpu_cores: Option<f64>,
    pub(crate) resident_bytes: Option<f64>,
    pub(crate) open_files: Option<f64>,
    pub(crate) threads: Option<f64>,
    pub(crate) started: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ControlPlane {
    #[serde(deserialize_with = "bounded::list::<_, _, 200>")]
    pub(crate) instances: Vec<Instance>,
    #[serde(deserialize_with = "bounded::list::<_, _, 200>")]
    pub(crate) families: Vec<Family>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Instance {
    pub(crate) app: Clean,
    pub(crate) instance: Clean,
    pub(crate) up: bool,
    pub(crate) scrape_seconds: Option<f64>,
}

/// A family of the control plane.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Family {
    pub(crate) name: Clean,
    #[serde(deserialize_with = "bounded::list::<_, _, 200>")]
    pub(crate) points: Vec<Point>,
    pub(crate) at_most: AtMost,
}

/// Upper bounds of percentiles, in seconds.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct AtMost {
    pub(crate) p99: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Point {
    #[serde(deserialize_with = "bounded::map::<_, _, 32>")]
    pub(crate) labels: BTreeMap<Clean, Clean>,
    pub(crate) value: f64,
    pub(crate) per_second: Option<f64>,
}

/// What was not seen, and why.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Unseen {
    pub(crate) help: Clean,
    #[serde(deserialize_with = "bounded::map::<_, _, 32>")]
    pub(crate) labels: BTreeMap<Clean, Clean>,
    pub(crate) value: f64,
    pub(crate) per_second: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Observer {
    pub(crate) cpu_cores: Option<f64>,
    pub(crate) resident_bytes: Option<f64>,
    #[serde(deserialize_with = "bounded::list::<_, _, 16>")]
    pub(crate) sidecars: Vec<Point>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Finding {
    pub(crate) level: Clean,
    pub(crate) text: Clean,
}
