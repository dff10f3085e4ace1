//! OpenTelemetry's semantic conventions: units of all metrics, and names and attributes of requests by [`Names::Semconv`].
//!
//! The method and the route of a request are not part of a series: the method is `_OTHER`, which the conventions have for
//! unknown ones. Source: semantic-conventions 1.44, `http-metrics.md`, `rpc-metrics.md`.

use std::borrow::Cow;

use super::options::Names;
use crate::{
    Family, Labels,
    catalogue::{self, Descriptor},
    labels::{MeshLabels, Protocol, Reporter},
};

/// Codes of gRPC's statuses, in their order.
const GRPC_CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];
/// Statuses that are errors of the server for its own metrics.
const SERVER_ERRORS: [&str; 6] =
    ["UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"];

/// Value of an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attribute<'a> {
    Text(&'a str),
    Integer(u64),
}

/// The metric that some points of a family become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The family itself, with all points.
    Whole,
    /// The family itself, with the points of no other kind.
    Rest,
    /// A metric of the conventions.
    Convention(&'static Convention),
}

/// A metric of the conventions.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Convention {
    family: &'static str,
    reporter: Reporter,
    protocol: Protocol,
    name: &'static str,
    unit: &'static str,
}

const fn convention(family: &Descriptor, reporter: Reporter, protocol: Protocol, name: &'static str) -> Convention {
    Convention { family: family.prometheus_name, reporter, protocol, name, unit: "s" }
}

const fn size(family: &Descriptor, reporter: Reporter, name: &'static str) -> Convention {
    Convention { family: family.prometheus_name, reporter, protocol: Protocol::Http, name, unit: "By" }
}

static CONVENTIONS: [Convention; 8] = {
    use Protocol::{Grpc, Http};
    use Reporter::{Destination, Source};
    use catalogue::{REQUEST_BYTES, REQUEST_DURATION, RESPONSE_BYTES};
    [
        convention(&REQUEST_DURATION, Destination, Http, "http.server.request.duration"),
        convention(&REQUEST_DURATION, Source, Http, "http.client.request.duration"),
        convention(&REQUEST_DURATION, Destination, Grpc, "rpc.server.call.duration"),
        convention(&REQUEST_DURATION, Source, Grpc, "rpc.client.call.duration"),
        size(&REQUEST_BYTES, Destination, "http.server.request.body.size"),
        size(&REQUEST_BYTES, Source, "http.client.request.body.size"),
        size(&RESPONSE_BYTES, Destination, "http.server.response.body.size"),
        size(&RESPONSE_BYTES, Source, "http.client.response.body.size"),
    ]
};

/// Returns the metrics that the points of a family are sent as.
pub(super) fn kinds(names: Names, family: &Family<'_>) -> Vec<Kind> {
    let own = CONVENTIONS.iter().filter(|convention| convention.family == family.name());
    let mut kinds: Vec<_> = match names {
        Names::Istio => Vec::new(),
        Names::Semconv => own.map(Kind::Convention).collect(),
    };
    kinds.push(if kinds.is_empty() { Kind::Whole } else { Kind::Rest });
    kinds
}

impl Kind {
    /// Returns whether a point of `family` with these labels is of this kind.
    pub(super) fn includes(self, family: &Family<'_>, labels: &Labels<'_>) -> bool {
        let includes = |convention: &Convention| labels.of_mesh().is_some_and(|labels| convention.includes(labels));
        match self {
            Self::Whole => true,
            Self::Convention(convention) => includes(convention),
            Self::Rest => !CONVENTIONS.iter().any(|own| own.family == family.name() && includes(own)),
        }
    }

    /// Returns the name of the metric.
    pub(super) fn name<'a>(self, family: &Family<'a>) -> &'a str {
        match self {
            Self::Convention(convention) => convention.name,
            _ => family.name(),
        }
    }

    /// Returns the unit, if it is not that of the family.
    pub(super) fn unit(self) -> Option<&'static str> {
        match self {
            Self::Convention(convention) => Some(convention.unit),
            _ => None,
        }
    }

    /// Returns what values are multiplied by: Istio's durations are milliseconds.
    pub(super) fn factor(self) -> f64 {
        match self {
            Self::Convention(Convention { unit: "s", .. }) => 0.001,
            _ => 1.0,
        }
    }

    /// Passes the attributes of a point to `each`.
    pub(super) fn attributes(self, labels: &Labels<'_>, each: &mut dyn FnMut(&str, Attribute<'_>)) {
        let convention = match (self, labels.of_mesh()) {
            (Self::Convention(convention), Some(mesh)) => Some((convention, mesh)),
            _ => None,
        };
        let is_replaced = |name: &str| {
            convention.is_some()
                && matches!(name, "reporter" | "request_protocol" | "response_code" | "grpc_response_status")
        };
        labels.each(|name, value| {
            if name != super::stream::QUANTILE && !is_replaced(name) {
                each(name, Attribute::Text(value));
            }
        });
        if let Some((convention, mesh)) = convention {
            convention.attributes(mesh, each);
        }
    }
}

impl Convention {
    fn includes(&self, labels: &MeshLabels) -> bool {
        labels.reporter == self.reporter && labels.protocol == self.protocol
    }

    fn attributes(&self, labels: &MeshLabels, each: &mut dyn FnMut(&str, Attribute<'_>)) {
        let is_server = self.reporter == Reporter::Destination;
        each("server.address", Attribute::Text(&labels.service.host));
        if self.protocol == Protocol::Grpc {
            each("rpc.system.name", Attribute::Text("grpc"));
            let code = usize::try_from(labels.grpc_status).ok().and_then(|status| GRPC_CODES.get(status).copied());
            if let Some(code) = code {
                each("rpc.status_code", Attribute::Text(code));
                if code != "OK" && (!is_server || SERVER_ERRORS.contains(&code)) {
                    each("error.type", Attribute::Text(code));
                }
            }
            return;
        }
        each("http.request.method", Attribute::Text("_OTHER"));
        each("url.scheme", Attribute::Text("http"));
        // 0 where no status came or none could be read.
        if let status @ 100..=999 = labels.response_code {
            each("http.response.status_code", Attribute::Integer(status.into()));
            if status >= if is_server { 500 } else { 400 } {
                each("error.type", Attribute::Text(&status.to_string()));
            }
        }
    }
}

/// Returns the unit as UCUM writes it. Prometheus' receiver appends the words of such units to names that do not end in
/// them, so a unit that the name does not have is an annotation, which it ignores.
pub(super) fn unit<'a>(name: &str, unit: &'a str) -> Cow<'a, str> {
    let is_in_name =
        name.strip_suffix("_total").unwrap_or(name).strip_suffix(unit).is_some_and(|stem| stem.ends_with('_'));
    match unit {
        "" => Cow::Borrowed(""),
        "milliseconds" if is_in_name => Cow::Borrowed("ms"),
        "seconds" if is_in_name => Cow::Borrowed("s"),
        "bytes" if is_in_name => Cow::Borrowed("By"),
        unit => Cow::Owned(format!("{{{}}}", unit.replace(['{', '}'], "_"))),
    }
}
