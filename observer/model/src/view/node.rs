//! Names of the ends of an edge.

use crate::labels::{MeshLabels, Peer, UNKNOWN};

/// A workload, or a service whose workload is not known.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct NodeKey {
    pub(super) kind: Kind,
    pub(super) namespace: Box<str>,
    pub(super) name: Box<str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    Workload,
    Service,
    Unknown,
}

impl Kind {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Workload => "workload",
            Self::Service => "service",
            Self::Unknown => UNKNOWN,
        }
    }
}

impl NodeKey {
    pub(super) fn source(labels: &MeshLabels) -> Self {
        Self::workload(&labels.source).unwrap_or_else(Self::unknown)
    }

    pub(super) fn destination(labels: &MeshLabels) -> Self {
        let service = &labels.service;
        Self::workload(&labels.destination).unwrap_or_else(|| match (&*service.name, &*service.host) {
            (UNKNOWN | "", UNKNOWN | "") => Self::unknown(),
            (UNKNOWN | "", name) | (name, _) => {
                Self { kind: Kind::Service, namespace: service.namespace.clone(), name: name.into() }
            }
        })
    }

    pub(super) fn is_workload(&self) -> bool {
        self.kind == Kind::Workload
    }

    /// Returns an identifier that is unique among the nodes.
    pub(super) fn id(&self) -> String {
        match self.kind {
            Kind::Unknown => UNKNOWN.to_owned(),
            kind => format!("{}/{}/{}", kind.word(), self.namespace, self.name),
        }
    }

    fn workload(peer: &Peer) -> Option<Self> {
        let name = Some(&peer.workload).filter(|name| !matches!(&***name, UNKNOWN | ""))?;
        Some(Self { kind: Kind::Workload, namespace: peer.namespace.clone(), name: name.clone() })
    }

    fn unknown() -> Self {
        Self { kind: Kind::Unknown, namespace: "".into(), name: UNKNOWN.into() }
    }
}
