//! Why a caller's workload is unknown.

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Reason for which a caller's workload is unknown.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Returns the label value.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

reasons! {
    /// Pods of several workloads have the certificate's service account and were connected.
    SharedServiceAccount = "shared_service_account",
    /// Without a certificate: pods of several workloads were connected to the port.
    SeveralPeers = "several_peers",
    /// No pod that can have sent it is known to have been connected.
    NoCandidate = "no_candidate",
    /// An address was connected of which it is not known which pod it is.
    UnknownPeer = "unknown_peer",
    /// A pod was connected whose service account is not known.
    UnknownAccount = "unknown_account",
    /// A gateway was connected that passes on connections of other clusters' pods.
    EastWestGateway = "east_west_gateway",
    /// Connections may be missing: the map of peers was full, or those older than the programs could not be read.
    Incomplete = "incomplete_peers",
    /// The header was not written by this sidecar.
    NotOwnCertificate = "not_own_certificate",
    /// The header has no certificate in the expected form, is too long, or there was no room for it.
    Unreadable = "unreadable",
}
