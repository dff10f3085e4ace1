//! Label sets as they are kept over a restart: their strings once each, in a table.

use std::{collections::HashMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{MeshLabels, Party, Protocol, Reporter, Security, Service};
use crate::series_key::RememberedStatus;

/// The strings that label sets share.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Table {
    parties: Vec<Arc<Party>>,
    services: Vec<Arc<Service>>,
    #[serde(skip)]
    known_parties: HashMap<Arc<Party>, usize>,
    #[serde(skip)]
    known_services: HashMap<Arc<Service>, usize>,
}

/// One label set, by places in the table.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct RememberedLabels {
    parties: [usize; 2],
    service: usize,
    codes: (u16, RememberedStatus),
    reporter: Reporter,
    protocol: Protocol,
    security: Security,
    authenticated: [bool; 2],
}

impl Table {
    /// A label set, its strings in the table.
    pub fn put(&mut self, labels: &MeshLabels) -> RememberedLabels {
        let party = |table: &mut Self, party: &Arc<Party>| place(&mut table.parties, &mut table.known_parties, party);
        RememberedLabels {
            parties: [party(self, &labels.source), party(self, &labels.destination)],
            service: place(&mut self.services, &mut self.known_services, &labels.service),
            codes: (labels.response_code, labels.grpc_status.into()),
            reporter: labels.reporter,
            protocol: labels.protocol,
            security: labels.security,
            authenticated: [labels.source_authenticated, labels.destination_authenticated],
        }
    }

    /// The label set again; `None` if the table is not the one that it was put in.
    #[must_use]
    pub fn get(&self, remembered: &RememberedLabels) -> Option<MeshLabels> {
        let [source, destination] = remembered.parties;
        Some(MeshLabels {
            source: self.parties.get(source)?.clone(),
            destination: self.parties.get(destination)?.clone(),
            service: self.services.get(remembered.service)?.clone(),
            response_code: remembered.codes.0,
            grpc_status: remembered.codes.1.into(),
            reporter: remembered.reporter,
            protocol: remembered.protocol,
            security: remembered.security,
            source_authenticated: remembered.authenticated[0],
            destination_authenticated: remembered.authenticated[1],
        })
    }
}

fn place<T: Eq + std::hash::Hash>(all: &mut Vec<Arc<T>>, known: &mut HashMap<Arc<T>, usize>, it: &Arc<T>) -> usize {
    *known.entry(it.clone()).or_insert_with(|| {
        all.push(it.clone());
        all.len() - 1
    })
}
