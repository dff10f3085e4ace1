//! A series' key as it is remembered: by what it says, whatever the layout of the maps.

use std::net::Ipv6Addr;

use observer_ebpf::{Endpoint, SeriesKey};
use serde::{Deserialize, Serialize};

/// Sidecar, address, port, status, gRPC status, leg, protocol, security.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RememberedKey(u32, Ipv6Addr, u16, u16, u16, u8, u8, u8);

impl From<SeriesKey> for RememberedKey {
    fn from(key: SeriesKey) -> Self {
        let SeriesKey { sidecar, destination, status, grpc_status, leg, protocol, security, padding: _ } = key;
        Self(sidecar, destination.address.into(), destination.port, status, grpc_status, leg, protocol, security)
    }
}

impl From<RememberedKey> for SeriesKey {
    fn from(key: RememberedKey) -> Self {
        let RememberedKey(sidecar, address, port, status, grpc_status, leg, protocol, security) = key;
        let destination = Endpoint { address: address.octets(), port, padding: 0 };
        Self { sidecar, destination, status, grpc_status, leg, protocol, security, padding: 0 }
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
            leg: 4,
            protocol: 5,
            security: 6,
            padding: 0,
        };
        let text = serde_json::to_string(&RememberedKey::from(key)).unwrap();
        assert_eq!(SeriesKey::from(serde_json::from_str::<RememberedKey>(&text).unwrap()), key);
    }
}
