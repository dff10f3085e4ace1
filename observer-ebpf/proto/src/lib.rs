//! Sans-IO protocol engine: reads the segments of a connection, in any order and segmentation, and yields its requests.
//!
//! The same code runs in the eBPF programs and in the host's tests and fuzzers. Its environment is defined by the traits of
//! [`env`] and by [`http2::StreamStore`].
#![no_std]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![cfg_attr(
    target_arch = "bpf",
    feature(asm_experimental_arch, core_intrinsics),
    allow(internal_features, reason = "see atomic.rs")
)]

pub mod address;
pub mod atomic;
pub mod caller;
mod classify;
pub mod close;
pub mod connection;
pub mod env;
mod finished;
pub mod flow;
pub mod hpack;
pub mod http1;
pub mod http2;
pub mod huffman;
mod option;
pub mod pairing;
pub mod reassembly;
pub mod segment;
pub mod tls;
pub mod trace;

pub use classify::{on_destination, on_established};
pub use connection::{ConnLeg, ConnProtocol, Connection};
pub use finished::FinishedRequest;
pub use option::{OptionU32, Peer};

#[cfg(feature = "aya")]
mod pod {
    // SAFETY: `repr(C)`, `Copy`, no padding bytes, every bit pattern valid.
    unsafe impl aya::Pod for super::http2::StreamKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::http2::H2Stream {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::pairing::AcceptedKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::pairing::Accepted {}
}
