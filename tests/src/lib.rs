//! A small real mesh in network namespaces, with real Envoy, and the referee that the observer is compared with.

pub mod apps;
pub mod bpffs;
pub mod cases;
pub mod catalogue;
pub mod cgroup;
pub mod envoy;
pub mod exposition;
pub mod foreign;
pub mod holdings;
pub mod mesh;
pub mod net;
pub mod observer;
pub mod pair;
pub mod pki;
pub mod prometheus;
pub mod redirect;
pub mod referee;
pub mod relay;
pub mod replay;
pub mod server;
pub mod sidecar;
pub mod stand_in;
pub mod tally;
pub mod tools;
pub mod wavefront;
pub mod wire;
