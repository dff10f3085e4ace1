//! Protocols of ports that the Kubernetes API declares.

use std::{
    collections::{BTreeSet, HashMap as Table},
    net::IpAddr,
};

use aya::maps::HashMap;
use observer_common::{PORT_HTTP, PORT_TCP, PortKey, names};

use super::{Kernel, error::KernelError};
use crate::model::kubernetes::{self, PortProtocol, PortProtocols};

impl Kernel {
    /// Removes what an earlier observer declared of ports that the configuration declares. All else stands until the
    /// cluster is known again.
    pub(super) fn remove_configured_ports(&mut self) -> Result<(), KernelError> {
        let wrong = |source| KernelError::map(names::PORT_PROTOCOLS, source);
        let configured = self.configured_ports.iter().map(|&port| port.into()).collect::<BTreeSet<u32>>();
        let mut map: HashMap<_, PortKey, u32> = self.map_mut(names::PORT_PROTOCOLS)?;
        let present: Vec<PortKey> = map.keys().collect::<Result<_, _>>().map_err(wrong)?;
        present.iter().filter(|key| configured.contains(&key.port)).try_for_each(|key| map.remove(key)).map_err(wrong)
    }

    /// Takes over what was declared in maps of another layout.
    pub(super) fn continue_port_protocols(&mut self, ports: &[(PortKey, u32)]) -> Result<(), KernelError> {
        let mut map: HashMap<_, PortKey, u32> = self.map_mut(names::PORT_PROTOCOLS)?;
        let inserted = ports.iter().try_for_each(|(key, flags)| map.insert(key, flags, 0));
        inserted.map_err(|source| KernelError::map(names::PORT_PROTOCOLS, source))
    }

    /// Makes the map of declared protocols what is declared now; connections that are open keep theirs. A port that the
    /// configuration declares stays that way.
    ///
    /// # Errors
    /// The map cannot be read or written.
    pub fn set_port_protocols(&mut self, protocols: &PortProtocols) -> Result<(), KernelError> {
        let wrong = |source| KernelError::map(names::PORT_PROTOCOLS, source);
        let declared = protocols.ports.iter().filter(|(key, _)| !self.configured_ports.contains(&key.port));
        let declared: Table<PortKey, u32> = declared.map(|(key, protocol)| (raw(key), flags(*protocol))).collect();
        let present = self.declared.take();
        let mut map: HashMap<_, PortKey, u32> = self.map_mut(names::PORT_PROTOCOLS)?;
        let present = match present {
            Some(present) => present,
            // An earlier observer may have left some.
            None => map.iter().collect::<Result<_, _>>().map_err(wrong)?,
        };
        for key in present.keys().filter(|key| !declared.contains_key(key)) {
            map.remove(key).map_err(wrong)?;
        }
        for (key, flags) in &declared {
            if present.get(key) != Some(flags) {
                map.insert(key, flags, 0).map_err(wrong)?;
            }
        }
        self.declared = Some(declared);
        Ok(())
    }
}

fn raw(key: &kubernetes::PortKey) -> PortKey {
    let address = match key.address {
        None => [0; 16],
        Some(IpAddr::V4(address)) => address.to_ipv6_mapped().octets(),
        Some(IpAddr::V6(address)) => address.octets(),
    };
    PortKey { sidecar: key.sidecar, port: key.port.into(), address }
}

const fn flags(protocol: PortProtocol) -> u32 {
    match protocol {
        PortProtocol::Sniffed => 0,
        PortProtocol::Http => PORT_HTTP,
        PortProtocol::Tcp => PORT_TCP,
    }
}
