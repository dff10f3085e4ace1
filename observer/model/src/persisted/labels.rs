//! Persisted label sets: their strings once each, in a table.

use std::{collections::HashMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::series_key::PersistedStatus;
use crate::labels::{MeshLabels, Peer, Protocol, Reporter, Security, Service};

/// Strings shared by label sets.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct LabelTable {
    #[serde(rename = "parties")]
    peers: Vec<Arc<Peer>>,
    services: Vec<Arc<Service>>,
    #[serde(skip)]
    known_peers: HashMap<Arc<Peer>, usize>,
    #[serde(skip)]
    known_services: HashMap<Arc<Service>, usize>,
}

/// One label set, by indices into the table.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct PersistedLabels {
    #[serde(rename = "parties")]
    peers: [usize; 2],
    service: usize,
    codes: (u16, PersistedStatus),
    reporter: Reporter,
    protocol: Protocol,
    security: Security,
    authenticated: [bool; 2],
}

impl LabelTable {
    /// Adds the strings of a label set and returns their indices.
    pub(super) fn insert(&mut self, labels: &MeshLabels) -> PersistedLabels {
        let peer = |table: &mut Self, peer: &Arc<Peer>| intern(&mut table.peers, &mut table.known_peers, peer);
        PersistedLabels {
            peers: [peer(self, &labels.source), peer(self, &labels.destination)],
            service: intern(&mut self.services, &mut self.known_services, &labels.service),
            codes: (labels.response_code, labels.grpc_status.into()),
            reporter: labels.reporter,
            protocol: labels.protocol,
            security: labels.security,
            authenticated: [labels.source_authenticated, labels.destination_authenticated],
        }
    }

    /// Returns the label set; `None` if an index is not in the table.
    #[must_use]
    pub(super) fn get(&self, persisted: &PersistedLabels) -> Option<MeshLabels> {
        let [source, destination] = persisted.peers;
        Some(MeshLabels {
            source: self.peers.get(source)?.clone(),
            destination: self.peers.get(destination)?.clone(),
            service: self.services.get(persisted.service)?.clone(),
            response_code: persisted.codes.0,
            grpc_status: persisted.codes.1.into(),
            reporter: persisted.reporter,
            protocol: persisted.protocol,
            security: persisted.security,
            source_authenticated: persisted.authenticated[0],
            destination_authenticated: persisted.authenticated[1],
        })
    }
}

fn intern<T: Eq + std::hash::Hash>(all: &mut Vec<Arc<T>>, known: &mut HashMap<Arc<T>, usize>, it: &Arc<T>) -> usize {
    *known.entry(it.clone()).or_insert_with(|| {
        all.push(it.clone());
        all.len() - 1
    })
}
