//! What the programs could not do or could not see, one counter for each reason.

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident = $text:literal in $group:ident,)*) => {
        /// A counter of the `HEALTH` map; the discriminant is its index.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Counter { $($(#[$doc])* $name,)* }

        impl Counter {
            /// Every counter, in map order.
            pub const ALL: &[Counter] = &[$(Counter::$name,)*];

            /// Label value under which the counter is exposed.
            #[must_use]
            pub fn label(self) -> &'static str {
                match self { $(Counter::$name => $text,)* }
            }

            /// Family the counter belongs to.
            #[must_use]
            pub fn group(self) -> Group {
                match self { $(Counter::$name => Group::$group,)* }
            }
        }
    };
}

/// Families that the counters are exposed under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// `mesh_observer_connections_total{outcome}`: observed connections by what became of their parsing.
    Connections,
    /// `mesh_observer_requests_total{outcome}`: requests by what became of them.
    Requests,
    /// `mesh_observer_parser_desyncs_total{reason}`: times a connection's position in its protocol was lost.
    LostSync,
    /// `mesh_observer_uncounted_total{reason}`: what could not be counted.
    Losses,
    /// `mesh_observer_audit_bytes_total{kind}`, `mesh_observer_audit_connections_total` and
    /// `mesh_observer_audit_empty_connections_total`: the check at close.
    Audit,
}

counters! {
    /// Connection recognised as HTTP/1.
    ConnectionHttp1 = "http1" in Connections,
    /// Connection recognised as TCP.
    ConnectionTcp = "tcp" in Connections,
    /// Connection recognised as HTTP/2.
    ConnectionHttp2 = "http2" in Connections,
    /// Encrypted connection at a gateway's door.
    ConnectionEncrypted = "gateway_encrypted" in Connections,
    /// Connection of an application that closed before it sent anything (if it is older than the programs, anything since), and whose
    /// protocol is therefore unknown.
    ConnectionSilent = "silent" in Connections,
    /// Connection that was open before the programs were attached.
    ConnectionLate = "preexisting" in Connections,
    /// Request seen from its first to its last byte.
    RequestOk = "ok" in Requests,
    /// Request whose connection ended before the exchange did.
    RequestEndedEarly = "ended_early" in Requests,
    /// Request of a connection that was open before the programs were attached, or whose header table was lost: its status is
    /// unknown.
    RequestLate = "preexisting" in Requests,
    /// Request whose status, or gRPC status, could not be resolved in the header table.
    RequestStatusUnknown = "unknown_status" in Requests,
    /// Request for which the map of open HTTP/2 streams had no room: counted here, in no Istio family.
    RequestNoRoom = "stream_map_full" in Requests,
    /// Request that was open when the connection's sync was lost: counted here, in no Istio family.
    RequestLostSync = "desync" in Requests,
    /// Request pipelined behind one that ended early, or refused by GOAWAY, which the proxy never began: in no Istio family.
    RequestAbandoned = "abandoned" in Requests,
    /// Request of a process that was not known as a sidecar when it ended: counted here, in no Istio family.
    RequestUnattributed = "unattributed" in Requests,
    /// Bytes outside a body that TCP has accepted and that were not read.
    SyncGap = "gap" in LostSync,
    /// A message that is not HTTP/1 where one was due.
    SyncMalformed = "malformed" in LostSync,
    /// More pipelined requests than the connection's storage holds.
    SyncPipeline = "pipeline_full" in LostSync,
    /// A response without a request.
    SyncUnasked = "unexpected_response" in LostSync,
    /// A packet too rich in messages to be read within the step limit.
    SyncSteps = "iteration_limit" in LostSync,
    /// Two processors met in one direction of one connection, and one gave up waiting.
    SyncContended = "lock_contended" in LostSync,
    /// A packet whose bytes the kernel would not give.
    SyncUnreadable = "unreadable" in LostSync,
    /// No storage for a socket (option memory or the observer's memory limit).
    LossStorage = "storage" in Losses,
    /// Series map full: counted in the overflow series, labels lost.
    LossSeries = "series_full" in Losses,
    /// Cell blocks used up: percentiles lose this value, counts and buckets do not.
    LossBlocks = "bucket_pages_full" in Losses,
    /// No storage for a header table larger than 4,096 bytes: some statuses are unknown.
    LossTables = "header_table" in Losses,
    /// Segments that came before others of their connection, when there was no room to keep their bytes.
    LossEarly = "out_of_order_buffer_full" in Losses,
    /// HTTP/2 packet that the programs could not hand on: not read.
    LossHandOver = "tail_call_failed" in Losses,
    /// Packet that is not TCP over IPv4 or IPv6 as expected (extension headers).
    LossHeaders = "headers" in Losses,
    /// Inbound listener table full: `connection_security_policy` of some requests is unknown.
    LossInbound = "inbound_full" in Losses,
    /// TCP bytes or connections of a process that was not known as a sidecar.
    LossUnattributed = "unattributed" in Losses,
    /// Connections from the same pod that were accepted in a cgroup which a sidecar shares with others, and of which nothing told
    /// that the sidecar took them.
    LossShared = "shared_cgroup" in Losses,
    /// Connections whose audit was made.
    AuditConnections = "connections" in Audit,
    /// Of those, connections without a byte in either direction.
    AuditEmpty = "empty_connections" in Audit,
    /// Bytes the kernel received or had acknowledged that the programs did not see.
    AuditUnseen = "unseen" in Audit,
    /// Bytes the programs saw sent that the peer never acknowledged.
    AuditUnacknowledged = "unacknowledged" in Audit,
}
