//! Persisted key of a series, independent of the layout of the maps.

use std::net::Ipv6Addr;

use observer_common::{CallerId, Endpoint, GRPC_NONE, GRPC_UNKNOWN, Leg, Protocol, Security, SeriesKey};
use serde::{Deserialize, Serialize};

/// Sidecar, address, port, status, gRPC status, leg, protocol, security, caller (absent in earlier builds).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PersistedKey(u32, Ipv6Addr, u16, u16, PersistedStatus, u8, u8, u8, #[serde(default)] u16);

/// Persisted gRPC status. Earlier builds had 16 bits, of which the two largest values mean none and unknown; statuses
/// that are these numbers are written beyond 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PersistedStatus(u64);

const NONE: u64 = u16::MAX as u64;
const UNKNOWN: u64 = NONE - 1;
const BEYOND: u64 = 1 << 32;

impl From<u64> for PersistedStatus {
    fn from(status: u64) -> Self {
        Self(match status {
            GRPC_NONE => NONE,
            GRPC_UNKNOWN => UNKNOWN,
            UNKNOWN | NONE => BEYOND + status,
            status => status,
        })
    }
}

impl From<PersistedStatus> for u64 {
    fn from(PersistedStatus(status): PersistedStatus) -> Self {
        match status {
            NONE => GRPC_NONE,
            UNKNOWN => GRPC_UNKNOWN,
            status => status % BEYOND,
        }
    }
}

impl From<SeriesKey> for PersistedKey {
    fn from(key: SeriesKey) -> Self {
        let SeriesKey { sidecar, destination, status, grpc_status, leg, protocol, security, caller, padding: _ } = key;
        Self(
            sidecar,
            destination.address.into(),
            destination.port,
            status,
            grpc_status.into(),
            leg.0,
            protocol.0,
            security.0,
            caller.0,
        )
    }
}

impl From<PersistedKey> for SeriesKey {
    fn from(key: PersistedKey) -> Self {
        let PersistedKey(sidecar, address, port, status, grpc_status, leg, protocol, security, caller) = key;
        let destination = Endpoint { address: address.octets(), port, padding: 0 };
        let grpc_status = grpc_status.into();
        Self {
            sidecar,
            destination,
            status,
            grpc_status,
            leg: Leg(leg),
            protocol: Protocol(protocol),
            security: Security(security),
            padding: 0,
            caller: CallerId(caller),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_comes_back_as_it_was() {
        let destination = Endpoint { address: Ipv6Addr::from(1 << 77 | 5).octets(), port: 6, padding: 0 };
        let key = SeriesKey {
            sidecar: 1,
            destination,
            status: 2,
            grpc_status: 3,
            leg: Leg(4),
            protocol: Protocol(5),
            security: Security(6),
            padding: 0,
            caller: CallerId(7),
        };
        let statuses = [0, 3, 16, 65_533, 65_534, 65_535, 65_536, u32::MAX.into(), GRPC_NONE, GRPC_UNKNOWN];
        for key in statuses.map(|grpc_status| SeriesKey { grpc_status, ..key }) {
            let text = serde_json::to_string(&PersistedKey::from(key)).unwrap();
            assert_eq!(SeriesKey::from(serde_json::from_str::<PersistedKey>(&text).unwrap()), key);
        }
    }

    #[test]
    fn a_key_of_an_earlier_build_has_no_caller() {
        let key: PersistedKey = serde_json::from_str(r#"[1,"::1",80,200,0,2,2,1]"#).unwrap();
        assert_eq!(SeriesKey::from(key).caller, CallerId::NONE);
    }

    #[test]
    fn what_an_earlier_build_remembered_means_the_same() {
        for (written, status) in
            [("0", 0), ("16", 16), ("65533", 65_533), ("65534", GRPC_UNKNOWN), ("65535", GRPC_NONE)]
        {
            assert_eq!(u64::from(serde_json::from_str::<PersistedStatus>(written).unwrap()), status);
        }
    }
}
