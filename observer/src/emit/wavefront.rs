//! Delivery of Wavefront lines: to a file, to a proxy or to the service.

pub mod file;
pub mod http;

pub use observer_model::encode::wavefront::*;
