//! What one side of an edge has counted.

use std::collections::BTreeMap;

use observer_common::{DURATION, Direction, GRPC_NONE, GRPC_UNKNOWN, REQUEST_BYTES, RESPONSE_BYTES, STATUS_UNKNOWN};

use crate::{
    histogram::{HttpTotals, PackedCells},
    labels::{MeshLabels, UNKNOWN},
    totals::{TcpTotals, Totals as _},
};

/// Response code and gRPC status, as in [`MeshLabels`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Code {
    pub(super) http: u16,
    pub(super) grpc: u64,
}

impl Code {
    pub(super) const fn of(labels: &MeshLabels) -> Self {
        Self { http: labels.response_code, grpc: labels.grpc_status }
    }

    /// Returns whether the request failed: a gRPC status other than OK, a server error, or no response at all. A status
    /// that could not be parsed is not a failure.
    pub(super) const fn is_error(self) -> bool {
        let is_grpc_error = self.grpc != 0 && self.grpc < GRPC_UNKNOWN;
        let is_http_error = self.http == 0 || self.http >= 500 && self.http != STATUS_UNKNOWN;
        is_grpc_error || is_http_error
    }

    /// Returns the response code, and the gRPC status if there is one.
    pub(super) fn texts(self) -> (String, Option<String>) {
        let Self { http, grpc } = self;
        let code = if http == STATUS_UNKNOWN { UNKNOWN.to_owned() } else { http.to_string() };
        let status = || if grpc == GRPC_UNKNOWN { UNKNOWN.to_owned() } else { grpc.to_string() };
        (code, (grpc != GRPC_NONE).then(status))
    }

    /// Returns whether the response blames the client: 400 to 499, without a gRPC status.
    pub(super) const fn is_client_error(self) -> bool {
        self.http >= 400 && self.http < 500 && self.grpc == GRPC_NONE
    }
}

/// Counts of HTTP and of TCP.
#[derive(Clone, Debug, Default)]
pub(super) struct Figures {
    pub(super) requests: u64,
    pub(super) by_code: BTreeMap<Code, u64>,
    pub(super) duration_us: u64,
    pub(super) request_bytes: u64,
    pub(super) response_bytes: u64,
    /// gRPC messages, by direction.
    pub(super) messages: [u64; 2],
    pub(super) tcp: TcpTotals,
    /// Durations by cell, where they are read.
    pub(super) durations: PackedCells,
}

impl Figures {
    pub(super) fn of_http(labels: &MeshLabels, totals: &HttpTotals, durations: PackedCells) -> Self {
        let requests = totals.requests();
        Self {
            requests,
            by_code: [(Code::of(labels), requests)].into(),
            duration_us: totals.sum(DURATION),
            request_bytes: totals.sum(REQUEST_BYTES),
            response_bytes: totals.sum(RESPONSE_BYTES),
            messages: Direction::BOTH.map(|way| totals.messages(way)),
            tcp: TcpTotals::default(),
            durations,
        }
    }

    pub(super) fn of_tcp(totals: &TcpTotals) -> Self {
        Self { tcp: totals.clone(), ..Self::default() }
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (code, count) in &other.by_code {
            let own = self.by_code.entry(*code).or_default();
            *own = own.saturating_add(*count);
        }
        let Self { requests, duration_us, request_bytes, response_bytes, messages: [sent, received], .. } = self;
        for (own, more) in [
            (requests, other.requests),
            (duration_us, other.duration_us),
            (request_bytes, other.request_bytes),
            (response_bytes, other.response_bytes),
            (sent, other.messages[0]),
            (received, other.messages[1]),
        ] {
            *own = own.saturating_add(more);
        }
        self.tcp.add(&other.tcp);
        if !other.durations.is_empty() {
            self.durations = self.durations.plus(&other.durations);
        }
    }

    pub(super) fn is_zero(&self) -> bool {
        self.requests == 0 && self.tcp.is_zero()
    }

    /// Returns the number of failed requests.
    pub(super) fn errors(&self) -> u64 {
        self.count(Code::is_error)
    }

    /// Returns the number of requests that the client is blamed for.
    pub(super) fn client_errors(&self) -> u64 {
        self.count(Code::is_client_error)
    }

    /// Returns bytes of both directions.
    pub(super) fn bytes(&self) -> u64 {
        let parts = [self.request_bytes, self.response_bytes, self.tcp.received_bytes, self.tcp.sent_bytes];
        parts.into_iter().fold(0, u64::saturating_add)
    }

    fn count(&self, is_counted: fn(Code) -> bool) -> u64 {
        self.by_code.iter().filter(|(code, _)| is_counted(**code)).map(|(_, count)| count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_told_from_what_is_not_known() {
        let is = |http, grpc| Code { http, grpc }.is_error();
        assert!(is(500, GRPC_NONE) && is(503, GRPC_NONE) && is(0, GRPC_NONE) && is(200, 14));
        assert!(!is(200, GRPC_NONE) && !is(404, GRPC_NONE) && !is(200, 0));
        assert!(!is(STATUS_UNKNOWN, GRPC_NONE) && !is(200, GRPC_UNKNOWN));
        let blames = |http, grpc| Code { http, grpc }.is_client_error();
        assert!(blames(404, GRPC_NONE) && !blames(500, GRPC_NONE) && !blames(STATUS_UNKNOWN, GRPC_NONE));
    }
}
