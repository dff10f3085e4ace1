//! Health counters: what the programs could not do or could not see, one counter per reason.

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident = $text:literal in $group:ident,)*) => {
        /// A counter of the `HEALTH` map; the discriminant is its index.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Counter { $($(#[$doc])* $name,)* }

        impl Counter {
            /// Every counter, in map order.
            pub const ALL: &[Counter] = &[$(Counter::$name,)*];

            /// Returns the label value under which the counter is exposed.
            #[must_use]
            pub fn label(self) -> &'static str {
                match self { $(Counter::$name => $text,)* }
            }

            /// Returns the family of the counter.
            #[must_use]
            pub fn group(self) -> Group {
                match self { $(Counter::$name => Group::$group,)* }
            }
        }
    };
}

/// Families of the health counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// `mesh_observer_connections_total{outcome}`: observed connections by recognised protocol.
    Connections,
    /// `mesh_observer_requests_total{outcome}`: requests by outcome.
    Requests,
    /// `mesh_observer_parser_desyncs_total{reason}`: lost positions in a connection's protocol.
    Desyncs,
    /// `mesh_observer_uncounted_total{reason}`: data that could not be counted.
    Uncounted,
    /// `mesh_observer_audit_bytes_total{kind}`, `mesh_observer_audit_connections_total` and
    /// `mesh_observer_audit_empty_connections_total`: the comparison with the kernel's byte counts at close.
    Audit,
}

impl Group {
    /// Returns the group's name in persisted state, which must not change.
    #[must_use]
    pub fn persisted_name(self) -> &'static str {
        match self {
            Self::Connections => "Connections",
            Self::Requests => "Requests",
            Self::Desyncs => "LostSync",
            Self::Uncounted => "Losses",
            Self::Audit => "Audit",
        }
    }
}

counters! {
    /// Connection recognised as HTTP/1.
    ConnectionHttp1 = "http1" in Connections,
    /// Connection recognised as TCP.
    ConnectionTcp = "tcp" in Connections,
    /// Connection recognised as HTTP/2.
    ConnectionHttp2 = "http2" in Connections,
    /// Encrypted connection to a gateway's listener.
    ConnectionEncrypted = "gateway_encrypted" in Connections,
    /// Connection of an application that closed before sending anything (a preexisting one: anything since the attach),
    /// so that its protocol is unknown.
    ConnectionSilent = "silent" in Connections,
    /// Connection that was open before the programs were attached.
    ConnectionPreexisting = "preexisting" in Connections,
    /// Request seen from its first to its last byte.
    RequestOk = "ok" in Requests,
    /// Request whose connection ended before the exchange did.
    RequestEndedEarly = "ended_early" in Requests,
    /// Request of a preexisting connection, or one whose header table was lost: its status is unknown.
    RequestPreexisting = "preexisting" in Requests,
    /// Request whose status, or gRPC status, could not be resolved in the header table.
    RequestStatusUnknown = "unknown_status" in Requests,
    /// Request for which the map of open HTTP/2 streams had no room: counted here, in no Istio family.
    RequestNoRoom = "stream_map_full" in Requests,
    /// Request that was open at a desync of its connection: counted here, in no Istio family.
    RequestDesync = "desync" in Requests,
    /// Request pipelined behind one that ended early, or refused by GOAWAY, which the proxy never began: in no Istio family.
    RequestAbandoned = "abandoned" in Requests,
    /// Request of a process that was not known as a sidecar when it ended: counted here, in no Istio family.
    RequestUnattributed = "unattributed" in Requests,
    /// Bytes outside a body that TCP has accepted and that were not read.
    DesyncGap = "gap" in Desyncs,
    /// A message that is not HTTP/1 where one was due.
    DesyncMalformed = "malformed" in Desyncs,
    /// More pipelined requests than the connection's storage holds.
    DesyncPipeline = "pipeline_full" in Desyncs,
    /// A response without a request.
    DesyncUnexpected = "unexpected_response" in Desyncs,
    /// A packet with too many messages to be read within the step limit.
    DesyncSteps = "iteration_limit" in Desyncs,
    /// Two CPUs met in one direction of one connection, and one gave up waiting.
    DesyncContended = "lock_contended" in Desyncs,
    /// A packet whose bytes the kernel would not give.
    DesyncUnreadable = "unreadable" in Desyncs,
    /// No storage for a socket (option memory or the observer's memory limit).
    LossStorage = "storage" in Uncounted,
    /// Series map full: counted in the overflow series, labels lost.
    LossSeries = "series_full" in Uncounted,
    /// Bucket pages used up: percentiles lose this value, counts and buckets do not.
    LossPages = "bucket_pages_full" in Uncounted,
    /// No storage for a header table larger than 4,096 bytes: some statuses are unknown.
    LossTables = "header_table" in Uncounted,
    /// Out-of-order segments for which there was no reassembly buffer.
    LossReassembly = "out_of_order_buffer_full" in Uncounted,
    /// Packet whose tail call failed: not read.
    LossTailCall = "tail_call_failed" in Uncounted,
    /// Packet that is not TCP over IPv4 or IPv6 as expected (extension headers).
    LossHeaders = "headers" in Uncounted,
    /// Inbound port table full: `connection_security_policy` of some requests is unknown.
    LossInbound = "inbound_full" in Uncounted,
    /// Request whose `x-forwarded-client-cert` is longer than a caller's text or broken: its caller is unknown.
    CallerUnreadable = "caller_unreadable" in Uncounted,
    /// Request or TCP connection for whose caller there was no room: its caller is unknown.
    CallersFull = "callers_full" in Uncounted,
    /// Request that refers to headers sent before the programs were attached: its caller is unknown.
    CallerMissed = "caller_missed" in Uncounted,
    /// TCP connection to an application that may belong to one of several peers: its caller is unknown.
    CallerAmbiguous = "caller_ambiguous" in Uncounted,
    /// Sampled request for whose trace context there was no room, or that was forgotten for newer ones before it ended: it is
    /// no exemplar.
    TracesFull = "traces_full" in Uncounted,
    /// Request that refers to headers sent before the programs were attached, or to a value that is no longer kept: its trace
    /// context is unknown.
    TraceMissed = "trace_missed" in Uncounted,
    /// Sampled request for whose record the ring buffer had no room: it is no span.
    SpansFull = "spans_full" in Uncounted,
    /// Table of inbound peers full: the connection is none of a known peer's.
    LossPeers = "peers_full" in Uncounted,
    /// TCP bytes or connections of a process that was not known as a sidecar.
    LossUnattributed = "unattributed" in Uncounted,
    /// Connections from the same pod that were accepted in a cgroup which a sidecar shares with others, without evidence
    /// that the sidecar accepted them.
    LossShared = "shared_cgroup" in Uncounted,
    /// Audited connections.
    AuditConnections = "connections" in Audit,
    /// Audited connections without a byte in either direction.
    AuditEmpty = "empty_connections" in Audit,
    /// Bytes the kernel received or had acknowledged that the programs did not see.
    AuditUnseen = "unseen" in Audit,
    /// Bytes the programs saw sent that the peer never acknowledged.
    AuditUnacknowledged = "unacknowledged" in Audit,
}
