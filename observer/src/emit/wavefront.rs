//! Delivery of Wavefront lines: to a file, to a proxy or to the service.

pub mod answer;
pub mod file;
pub mod http;
pub mod token;

pub use observer_model::encode::wavefront::*;
