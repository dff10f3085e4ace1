//! Labels of Istio's standard metrics.
//!
//! Names, order and the values for what is not known follow Istio's own stats filter; where Istio would report
//! `unknown` although the observer knows the value, the known value is reported. Two things sockets do not show are
//! never guessed: `response_flags` is always `-`, and the route of a gateway is unknown.

use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

use observer_common::{GRPC_NONE, GRPC_UNKNOWN, STATUS_UNKNOWN};
use serde::{Deserialize, Serialize};

pub(crate) const UNKNOWN: &str = "unknown";

macro_rules! labels {
    ($($variant:ident = $name:literal,)*; $($other:ident = $other_name:literal,)*) => {
        /// A label of Istio's standard metrics, or of a subset of them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Label {
            $(#[doc = concat!("`", $name, "`.")] $variant,)*
            $(#[doc = concat!("`", $other_name, "`, of label subsets only.")] $other,)*
        }

        impl Label {
            /// Returns the name that Istio and Prometheus use.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                    $(Self::$other => $other_name,)*
                }
            }
        }

        /// Labels of the HTTP families, in Istio's order.
        pub const HTTP: [Label; 25] = [$(Label::$variant),*];
    };
}

labels! {
    Reporter = "reporter",
    SourceWorkload = "source_workload",
    SourceCanonicalService = "source_canonical_service",
    SourceCanonicalRevision = "source_canonical_revision",
    SourceWorkloadNamespace = "source_workload_namespace",
    SourcePrincipal = "source_principal",
    SourceApp = "source_app",
    SourceVersion = "source_version",
    SourceCluster = "source_cluster",
    DestinationWorkload = "destination_workload",
    DestinationWorkloadNamespace = "destination_workload_namespace",
    DestinationPrincipal = "destination_principal",
    DestinationApp = "destination_app",
    DestinationVersion = "destination_version",
    DestinationService = "destination_service",
    DestinationCanonicalService = "destination_canonical_service",
    DestinationCanonicalRevision = "destination_canonical_revision",
    DestinationServiceName = "destination_service_name",
    DestinationServiceNamespace = "destination_service_namespace",
    DestinationCluster = "destination_cluster",
    RequestProtocol = "request_protocol",
    ResponseCode = "response_code",
    GrpcResponseStatus = "grpc_response_status",
    ResponseFlags = "response_flags",
    ConnectionSecurityPolicy = "connection_security_policy",
    ;
    // Of the reporting pod.
    App = "app",
}

use Label::*;

/// Labels of the TCP families, in Istio's order.
pub const TCP: [Label; 23] = {
    let mut labels = [Label::Reporter; 23];
    let (mut from, mut to) = (0, 0);
    while from < HTTP.len() {
        if !matches!(HTTP[from], Label::ResponseCode | Label::GrpcResponseStatus) {
            labels[to] = HTTP[from];
            to += 1;
        }
        from += 1;
    }
    labels
};

/// Names of [`HTTP`].
pub const HTTP_NAMES: [&str; HTTP.len()] = names(&HTTP);
/// Names of [`TCP`].
pub const TCP_NAMES: [&str; TCP.len()] = names(&TCP);
/// Names of the labels of a process's metrics, and of the exposition that it serves itself.
pub const PROCESS_NAMES: [&str; 4] = ["app", "instance", "pod", "namespace"];

const fn names<const N: usize>(labels: &[Label; N]) -> [&'static str; N] {
    let mut names = [""; N];
    let mut index = 0;
    while index < N {
        names[index] = labels[index].name();
        index += 1;
    }
    names
}

/// Labels of one end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Peer {
    pub(crate) workload: Box<str>,
    pub(crate) canonical_service: Box<str>,
    pub(crate) canonical_revision: Box<str>,
    pub(crate) namespace: Box<str>,
    pub(crate) principal: Box<str>,
    pub(crate) app: Box<str>,
    pub(crate) version: Box<str>,
    pub(crate) cluster: Box<str>,
}

impl Peer {
    /// Makes `unknown` the labels in which the two differ.
    pub(crate) fn keep_common(&mut self, other: &Self) {
        let Self { workload, canonical_service, canonical_revision, namespace, principal, app, version, cluster } =
            self;
        for (own, other) in [
            (workload, &other.workload),
            (canonical_service, &other.canonical_service),
            (canonical_revision, &other.canonical_revision),
            (namespace, &other.namespace),
            (principal, &other.principal),
            (app, &other.app),
            (version, &other.version),
            (cluster, &other.cluster),
        ] {
            if own != other {
                *own = UNKNOWN.into();
            }
        }
    }
}

/// Labels of the destination's service.
#[derive(Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Service {
    pub(crate) host: Box<str>,
    pub(crate) name: Box<str>,
    pub(crate) namespace: Box<str>,
}

/// Which end reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reporter {
    /// The client's proxy.
    Source,
    /// The server's proxy.
    Destination,
    /// Unknown: the overflow series.
    Unknown,
}

/// Protocol of a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// HTTP, not gRPC.
    Http,
    /// gRPC.
    Grpc,
    /// Anything else over TCP.
    Tcp,
    /// Unknown: the overflow series.
    Unknown,
}

/// How the connection was secured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Security {
    /// Unknown, always so at the source.
    Unknown,
    /// Without Istio's mutual TLS.
    None,
    /// With it.
    MutualTls,
}

/// One label set of the `istio_` families; 50 bytes, its strings are shared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MeshLabels {
    pub(crate) source: Arc<Peer>,
    pub(crate) destination: Arc<Peer>,
    pub(crate) service: Arc<Service>,
    /// [`STATUS_UNKNOWN`] where it could not be parsed.
    pub(crate) response_code: u16,
    /// [`GRPC_NONE`] where absent, [`GRPC_UNKNOWN`] where it could not be parsed.
    pub(crate) grpc_status: u64,
    pub(crate) reporter: Reporter,
    pub(crate) protocol: Protocol,
    pub(crate) security: Security,
    pub(crate) source_authenticated: bool,
    pub(crate) destination_authenticated: bool,
}

impl MeshLabels {
    /// Calls `each` with the name and value of these labels.
    pub fn each(&self, labels: &[Label], mut each: impl FnMut(&'static str, &str)) {
        labels.iter().for_each(|label| self.with(*label, |value| each(label.name(), value)));
    }

    /// Returns whether this is a gRPC series.
    #[must_use]
    pub fn is_grpc(&self) -> bool {
        self.protocol == Protocol::Grpc
    }

    /// Returns the labels of the overflow series: only the kind of what it counts is known.
    #[must_use]
    pub fn overflow() -> Self {
        let nobody = Arc::new(Peer {
            workload: UNKNOWN.into(),
            canonical_service: UNKNOWN.into(),
            canonical_revision: UNKNOWN.into(),
            namespace: UNKNOWN.into(),
            principal: UNKNOWN.into(),
            app: UNKNOWN.into(),
            version: UNKNOWN.into(),
            cluster: UNKNOWN.into(),
        });
        Self {
            source: nobody.clone(),
            destination: nobody,
            service: Arc::new(Service { host: UNKNOWN.into(), name: UNKNOWN.into(), namespace: UNKNOWN.into() }),
            response_code: STATUS_UNKNOWN,
            grpc_status: GRPC_NONE,
            reporter: Reporter::Unknown,
            protocol: Protocol::Unknown,
            security: Security::Unknown,
            source_authenticated: false,
            destination_authenticated: false,
        }
    }

    /// Passes the value of one label to `use_value`.
    fn with<R>(&self, label: Label, use_value: impl FnOnce(&str) -> R) -> R {
        match label {
            ResponseCode if self.response_code != STATUS_UNKNOWN => {
                use_value(Digits::new(self.response_code.into()).text())
            }
            GrpcResponseStatus if self.grpc_status < GRPC_UNKNOWN => use_value(Digits::new(self.grpc_status).text()),
            _ => use_value(self.text(label)),
        }
    }

    /// Returns the value of a label that is text.
    fn text(&self, label: Label) -> &str {
        let (source, destination) = (&*self.source, &*self.destination);
        match label {
            Label::Reporter => match self.reporter {
                Reporter::Source => "source",
                Reporter::Destination => "destination",
                Reporter::Unknown => UNKNOWN,
            },
            SourceWorkload => &source.workload,
            SourceCanonicalService => &source.canonical_service,
            SourceCanonicalRevision => &source.canonical_revision,
            SourceWorkloadNamespace => &source.namespace,
            SourcePrincipal if self.source_authenticated => &source.principal,
            SourceApp => &source.app,
            SourceVersion => &source.version,
            SourceCluster => &source.cluster,
            DestinationWorkload => &destination.workload,
            DestinationWorkloadNamespace => &destination.namespace,
            DestinationPrincipal if self.destination_authenticated => &destination.principal,
            DestinationApp => &destination.app,
            DestinationVersion => &destination.version,
            DestinationService => &self.service.host,
            DestinationCanonicalService => &destination.canonical_service,
            DestinationCanonicalRevision => &destination.canonical_revision,
            DestinationServiceName => &self.service.name,
            DestinationServiceNamespace => &self.service.namespace,
            DestinationCluster => &destination.cluster,
            RequestProtocol => match self.protocol {
                Protocol::Http => "http",
                Protocol::Grpc => "grpc",
                Protocol::Tcp => "tcp",
                Protocol::Unknown => UNKNOWN,
            },
            GrpcResponseStatus if self.grpc_status == GRPC_NONE => "",
            ResponseFlags => "-",
            ConnectionSecurityPolicy => match self.security {
                Security::Unknown => UNKNOWN,
                Security::None => "none",
                Security::MutualTls => "mutual_tls",
            },
            App if self.reporter == Reporter::Source => &source.app,
            App if self.reporter == Reporter::Destination => &destination.app,
            SourcePrincipal | DestinationPrincipal | ResponseCode | GrpcResponseStatus | App => UNKNOWN,
        }
    }
}

/// Some labels of a label set: equal to every other that agrees in those.
#[derive(Clone, Debug)]
pub struct LabelSubset {
    labels: Arc<MeshLabels>,
    kept: Arc<[Label]>,
}

impl LabelSubset {
    /// Reduces `labels` to `kept`.
    #[must_use]
    pub fn new(labels: Arc<MeshLabels>, kept: Arc<[Label]>) -> Self {
        Self { labels, kept }
    }

    /// Calls `each` with the name and value of every kept label.
    pub fn each(&self, each: impl FnMut(&'static str, &str)) {
        self.labels.each(&self.kept, each);
    }
}

impl PartialEq for LabelSubset {
    fn eq(&self, other: &Self) -> bool {
        let is_equal = |label| self.labels.with(label, |own| other.labels.with(label, |other| own == other));
        self.kept == other.kept && self.kept.iter().all(|label| is_equal(*label))
    }
}

impl Eq for LabelSubset {}

impl Hash for LabelSubset {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.kept.iter().for_each(|label| self.labels.with(*label, |value| value.hash(state)));
    }
}

/// A decimal number that needs no allocation.
struct Digits {
    bytes: [u8; 20],
    start: usize,
}

impl Digits {
    fn new(mut number: u64) -> Self {
        let mut digits = Self { bytes: [b'0'; 20], start: 20 };
        loop {
            digits.start -= 1;
            digits.bytes[digits.start] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                return digits;
            }
        }
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.bytes[self.start..]).expect("decimal digits are ASCII")
    }
}

/// Labels of a gateway's encrypted connections, whose requests are not visible.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GatewayLabels {
    /// Workload name.
    pub workload: Box<str>,
    /// Namespace.
    pub namespace: Box<str>,
    /// Cluster.
    pub cluster: Box<str>,
    /// Port of the listener.
    pub port: u16,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::Cluster;
    use crate::{
        fixture::{self, key},
        workload_index::WorkloadIndex,
    };
    use observer_common::Leg;

    fn index() -> WorkloadIndex {
        WorkloadIndex::new(fixture::sidecars().iter(), &fixture::peers(), &mut Cluster::default())
    }

    #[test]
    fn a_subset_is_equal_if_its_labels_are() {
        let (two, other) = (
            Arc::new(index().resolve(
                &mut Cluster::default(),
                &key(1, Leg::SOURCE, "10.96.0.1:80", observer_common::Protocol::HTTP, 200),
            )),
            Arc::new(index().resolve(
                &mut Cluster::default(),
                &key(1, Leg::SOURCE, "10.96.0.1:80", observer_common::Protocol::HTTP, 500),
            )),
        );
        let subset = |labels: &Arc<MeshLabels>, kept: [Label; 3]| LabelSubset::new(labels.clone(), kept.into());
        assert!(
            subset(&two, [Label::Reporter, SourceWorkload, RequestProtocol])
                == subset(&other, [Label::Reporter, SourceWorkload, RequestProtocol])
        );
        assert!(
            subset(&two, [Label::Reporter, SourceWorkload, ResponseCode])
                != subset(&other, [Label::Reporter, SourceWorkload, ResponseCode])
        );
    }

    #[test]
    fn numbers_are_printed_as_they_are() {
        for number in [0, 7, 10, 200, 999, 65_534, u32::MAX.into(), u64::MAX] {
            assert_eq!(Digits::new(number).text(), number.to_string());
        }
    }
}
