//! Sans-IO protocol engine: takes the segments of a connection, in whatever order and pieces, and says what requests they carried.
//!
//! The same code runs in the kernel programs and in the host's tests and fuzzers. What it needs from outside it asks of
//! [`socket::Env`] and [`http2::Calls`].
#![no_std]
#![cfg_attr(
    target_arch = "bpf",
    feature(asm_experimental_arch, core_intrinsics),
    allow(internal_features, reason = "see shared.rs")
)]

pub mod early;
pub mod hpack;
pub mod http1;
pub mod http2;
pub mod segment;
pub mod shared;
pub mod socket;
pub mod stream;
pub mod tls;

#[cfg(feature = "aya")]
mod pod {
    // SAFETY: `repr(C)`, `Copy`, no padding bytes, every bit pattern valid.
    unsafe impl aya::Pod for super::http2::CallKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::http2::Call {}
}
