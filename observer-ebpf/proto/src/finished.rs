//! Requests to be counted.

use observer_common::{CallerId, Direction, Protocol, Security};

use crate::{option::OptionU32, trace};

/// A request to count.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FinishedRequest {
    /// First request byte to last response byte, nanoseconds.
    pub duration_ns: u64,
    /// Wire bytes by direction.
    pub bytes: [u64; 2],
    /// gRPC messages by direction.
    pub messages: [u32; 2],
    /// gRPC status of 32 bits, [`observer_common::GRPC_NONE`] or [`observer_common::GRPC_UNKNOWN`].
    pub grpc_status: u64,
    /// HTTP status, 0, or [`observer_common::STATUS_UNKNOWN`].
    pub status: u16,
    /// [`Protocol::HTTP`], [`Protocol::GRPC`] or [`Protocol::UNKNOWN`].
    pub protocol: Protocol,
    /// Security of the client's connection.
    pub security: Security,
    /// [`observer_common::health::Counter`] of requests with this outcome.
    pub outcome: u16,
    /// Caller.
    pub caller: CallerId,
    /// Number under which the trace context is kept, if the request is sampled.
    pub trace: OptionU32,
}

impl FinishedRequest {
    /// Writes the request to storage, from where it is counted: values loaded from storage are unknown to the verifier,
    /// which need not track them.
    #[inline(always)]
    pub fn write(self, storage: &mut Self) {
        use Direction::{Request, Response};
        // SAFETY: references are valid; volatile, so that the compiler does not forward the values.
        unsafe {
            core::ptr::write_volatile(&mut storage.duration_ns, self.duration_ns);
            core::ptr::write_volatile(&mut storage.bytes[Request], self.bytes[Request]);
            core::ptr::write_volatile(&mut storage.bytes[Response], self.bytes[Response]);
            core::ptr::write_volatile(&mut storage.messages[Request], self.messages[Request]);
            core::ptr::write_volatile(&mut storage.messages[Response], self.messages[Response]);
            core::ptr::write_volatile(&mut storage.status, self.status);
            core::ptr::write_volatile(&mut storage.grpc_status, self.grpc_status);
            core::ptr::write_volatile(&mut storage.protocol, self.protocol);
            core::ptr::write_volatile(&mut storage.security, self.security);
            core::ptr::write_volatile(&mut storage.outcome, self.outcome);
            core::ptr::write_volatile(&mut storage.caller, self.caller);
            if trace::is_on() {
                core::ptr::write_volatile(&mut storage.trace, self.trace);
            }
        }
    }
}
