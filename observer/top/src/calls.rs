//! Rows of the table: who calls whom, with the figures that are shown of each.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    clean::Clean,
    document::{Counts, Edge, Side},
};

/// Share of failed requests from which on an edge is not healthy, and from which on it is bad: as on the page.
const WARN: f64 = 0.001;
const BAD: f64 = 0.05;

/// What a row is recognised by while documents change.
pub(crate) type Key = (Clean, Clean, Clean);

/// One row.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) edge: Edge,
    /// Names of the ends, with their namespaces where they need them.
    pub(crate) from: String,
    pub(crate) to: String,
}

/// How an edge fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    Idle,
    Good,
    Warning,
    Bad,
}

/// Figures over all edges: each request counts once, where its caller's proxy or else its callee's saw it.
#[derive(Debug)]
pub(crate) struct Sums {
    pub(crate) requests: f64,
    pub(crate) errors: f64,
    pub(crate) bytes: f64,
    pub(crate) slowest_p99: Option<f64>,
}

/// Makes rows of edges.
pub(crate) fn calls(edges: Vec<Edge>) -> Vec<Call> {
    let names = Names::of(&edges);
    edges.into_iter().map(|edge| Call { from: names.name(&edge.from), to: names.name(&edge.to), edge }).collect()
}

impl Call {
    pub(crate) fn ends(&self) -> (&Clean, &Clean, &Clean) {
        (&self.edge.from, &self.edge.to, &self.edge.protocol)
    }

    pub(crate) fn key(&self) -> Key {
        let (from, to, protocol) = self.ends();
        (from.clone(), to.clone(), protocol.clone())
    }

    /// Returns the side that is shown: both count the same requests.
    pub(crate) fn side(&self) -> Option<&Side> {
        self.edge.source.as_ref().or(self.edge.destination.as_ref())
    }

    pub(crate) fn recent(&self) -> Option<&Counts> {
        self.side()?.recent.as_ref()
    }

    pub(crate) fn is_tcp(&self) -> bool {
        &*self.edge.protocol == "tcp"
    }

    pub(crate) fn protocol(&self) -> &str {
        match &*self.edge.protocol {
            "http" => "HTTP",
            "grpc" => "gRPC",
            "tcp" => "TCP",
            _ => "?",
        }
    }

    /// Returns requests, or opened connections of TCP, per second.
    pub(crate) fn rate(&self) -> f64 {
        self.recent().map_or(0.0, |recent| self.events(recent))
    }

    /// Returns requests, or opened connections of TCP, as in `/metrics`.
    pub(crate) fn total(&self) -> f64 {
        self.side().map_or(0.0, |side| self.events(&side.totals))
    }

    pub(crate) fn error_ratio(&self) -> Option<f64> {
        let recent = self.recent()?;
        (recent.requests > 0.0).then(|| recent.errors / recent.requests)
    }

    /// Returns bytes per second of both directions.
    pub(crate) fn bytes(&self) -> f64 {
        self.recent().map_or(0.0, Counts::bytes)
    }

    pub(crate) fn health(&self) -> Health {
        match self.error_ratio() {
            Some(BAD..) => Health::Bad,
            Some(WARN..) => Health::Warning,
            _ if self.recent().is_some() => Health::Good,
            _ => Health::Idle,
        }
    }

    /// Returns whether a text in lower case is part of names, protocol or services.
    pub(crate) fn matches(&self, filter: &str) -> bool {
        let Edge { from, to, protocol, services, .. } = &self.edge;
        let mut texts = [from, to, protocol].into_iter().chain(services);
        texts.any(|text| text.to_lowercase().contains(filter))
    }

    fn events(&self, counts: &Counts) -> f64 {
        if self.is_tcp() { counts.opened } else { counts.requests }
    }
}

impl Counts {
    pub(crate) fn bytes(&self) -> f64 {
        self.request_bytes + self.response_bytes + self.received_bytes + self.sent_bytes
    }
}

impl Sums {
    pub(crate) fn of(calls: &[Call]) -> Self {
        let recent = || calls.iter().filter_map(Call::recent);
        Self {
            requests: recent().map(|recent| recent.requests).sum(),
            errors: recent().map(|recent| recent.errors).sum(),
            bytes: recent().map(Counts::bytes).sum(),
            slowest_p99: recent().filter_map(|recent| recent.latency_ms.p99).reduce(f64::max),
        }
    }

    pub(crate) fn error_ratio(&self) -> Option<f64> {
        (self.requests > 0.0).then(|| self.errors / self.requests)
    }
}

/// Names that stand in several namespaces.
struct Names(BTreeSet<String>);

impl Names {
    fn of(edges: &[Edge]) -> Self {
        let mut namespaces: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (namespace, name) in edges.iter().flat_map(|edge| [&edge.from, &edge.to]).filter_map(|id| parts(id)) {
            namespaces.entry(name).or_default().insert(namespace);
        }
        let shared = namespaces.into_iter().filter(|(_, namespaces)| namespaces.len() > 1);
        Self(shared.map(|(name, _)| name.to_owned()).collect())
    }

    fn name(&self, id: &str) -> String {
        match parts(id) {
            Some((namespace, name)) if self.0.contains(name) => format!("{namespace}/{name}"),
            Some((_, name)) => name.to_owned(),
            None => id.to_owned(),
        }
    }
}

/// Returns namespace and name of an id such as `workload/default/shop`.
fn parts(id: &str) -> Option<(&str, &str)> {
    id.split_once('/')?.1.split_once('/')
}
