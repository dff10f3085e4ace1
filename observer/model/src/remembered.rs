//! The model as it is kept over a restart: as of a round, so that what the kernel's maps then have more is what came since.

use std::time::{Duration, SystemTime};

use observer_common::SeriesKey;
use serde::{Deserialize, Serialize};

use super::{
    Model,
    cardinality::{Accounts, RememberedAccounts},
    counter::{Figures, TcpFigures},
    histogram::HttpFigures,
    labels::{
        GatewayLabels,
        remembered::{RememberedLabels, Table},
    },
};
use crate::series_key::RememberedKey;

/// Everything the model knows that the kernel's maps do not tell.
#[derive(Debug, Serialize, Deserialize)]
pub struct Remembered {
    counting_since: SystemTime,
    before: SystemTime,
    table: Table,
    http: RememberedAccounts<RememberedKey, RememberedLabels, HttpFigures>,
    tcp: RememberedAccounts<RememberedKey, RememberedLabels, TcpFigures>,
    encrypted: RememberedAccounts<RememberedKey, GatewayLabels, TcpFigures>,
}

impl Model {
    /// What must be remembered as of the last round.
    #[must_use]
    pub fn remember(&self) -> Remembered {
        let mut table = Table::default();
        Remembered {
            counting_since: self.counting_since,
            before: self.before,
            http: self.http.remember(|key| (*key).into(), |labels| table.put(labels)),
            tcp: self.tcp.remember(|key| (*key).into(), |labels| table.put(labels)),
            encrypted: self.encrypted.remember(|key| (*key).into(), GatewayLabels::clone),
            table,
        }
    }

    /// A model that goes on from there; `None` if it was not remembered whole.
    #[must_use]
    pub fn resume(started: SystemTime, retention: Duration, remembered: Remembered) -> Option<Self> {
        let Remembered { counting_since, before, table, http, tcp, encrypted } = remembered;
        let mut model = Self::new(started, retention);
        (model.counting_since, model.before) = (counting_since, before);
        model.http = resume(http, |labels| table.get(labels))?;
        model.tcp = resume(tcp, |labels| table.get(labels))?;
        model.encrypted = resume(encrypted, |labels| Some(labels.clone()))?;
        Some(model)
    }
}

fn resume<R, L: Eq + std::hash::Hash, F: Figures>(
    remembered: RememberedAccounts<RememberedKey, R, F>,
    labels: impl Fn(&R) -> Option<L>,
) -> Option<Accounts<SeriesKey, L, F>> {
    Accounts::resume(remembered, |key| key.into(), labels)
}
