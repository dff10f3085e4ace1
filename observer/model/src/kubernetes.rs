//! The cluster as the Kubernetes API describes it: Services, their endpoints, `ServiceEntry`s, and the pods that this
//! node's traffic names.
//!
//! [`Cluster`] takes [`Change`]s and answers where a connection leads: at the source by its original destination, at
//! the destination by the pod's own port. Services and endpoints are complete, as lists and watches deliver them; pods
//! are fetched on demand, so that a question may be answered [later](PodQuery).

mod cluster;
pub mod facts;
pub mod object;
mod outbound;
mod owner;
mod pods;
mod protocol;
mod routes;
#[cfg(test)]
mod tests;

pub(crate) use self::outbound::Outbound;
pub use self::{
    cluster::{Change, Cluster, Fact, Resource, Watched},
    facts::{ObjectName, Pod, PodUid, Rejection},
    outbound::Unresolved,
    pods::PodQuery,
    protocol::PortProtocol,
    routes::{PortKey, PortProtocols},
};

/// Pod label, written by the injector, for sidecars that accept Istio's mutual TLS.
pub(crate) const TLS_MODE: &str = "security.istio.io/tlsMode";
