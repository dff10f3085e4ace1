//! The model's persisted state, as of a round: whatever the kernel maps have more after a restart was counted since.

mod labels;
mod series_key;

pub use self::series_key::{PersistedKey, PersistedStatus};

use std::time::{Duration, SystemTime};

use observer_common::SeriesKey;
use serde::{Deserialize, Serialize};

use self::labels::{LabelTable, PersistedLabels};
use crate::{
    Model,
    aggregate::{Aggregator, PersistedAggregator},
    histogram::HttpTotals,
    labels::GatewayLabels,
    totals::{TcpTotals, Totals},
};

/// State of the model that is not in the kernel maps.
#[derive(Debug, Serialize, Deserialize)]
pub struct PersistedModel {
    counting_since: SystemTime,
    #[serde(rename = "before")]
    previous: SystemTime,
    table: LabelTable,
    http: PersistedAggregator<PersistedKey, PersistedLabels, HttpTotals>,
    tcp: PersistedAggregator<PersistedKey, PersistedLabels, TcpTotals>,
    encrypted: PersistedAggregator<PersistedKey, GatewayLabels, TcpTotals>,
}

impl Model {
    /// Returns the state to persist, as of the last round.
    #[must_use]
    pub fn persist(&self) -> PersistedModel {
        let mut table = LabelTable::default();
        PersistedModel {
            counting_since: self.counting_since,
            // What waits is new to the next observer, too: it was 0 before the wait, and its callers were connected then.
            previous: self.waiting.earliest().unwrap_or(self.previous),
            http: self.http.persist(|key| (*key).into(), |labels| table.insert(labels)),
            tcp: self.tcp.persist(|key| (*key).into(), |labels| table.insert(labels)),
            encrypted: self.encrypted.persist(|key| (*key).into(), GatewayLabels::clone),
            table,
        }
    }

    /// Restores a model; `None` if the state is inconsistent.
    #[must_use]
    pub fn restore(started: SystemTime, retention: Duration, persisted: PersistedModel) -> Option<Self> {
        let PersistedModel { counting_since, previous, table, http, tcp, encrypted } = persisted;
        let mut model = Self::new(started, retention);
        (model.counting_since, model.previous, model.has_inherited) = (counting_since, previous, true);
        model.http = restore(http, |labels| table.get(labels))?;
        model.tcp = restore(tcp, |labels| table.get(labels))?;
        model.encrypted = restore(encrypted, |labels| Some(labels.clone()))?;
        Some(model)
    }
}

fn restore<R, L: Eq + std::hash::Hash, F: Totals>(
    persisted: PersistedAggregator<PersistedKey, R, F>,
    labels: impl Fn(&R) -> Option<L>,
) -> Option<Aggregator<SeriesKey, L, F>> {
    Aggregator::restore(persisted, |key| key.into(), labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Inputs, Snapshot,
        encode::prometheus::{Exposition, Format},
        fixture::{at, every_kind, own, peers, reading, sidecars},
    };
    use std::sync::Arc;

    fn update(model: &mut Model, round: u64) -> Arc<Snapshot> {
        model.update(Inputs {
            reading: &reading(round * 10, every_kind(round)),
            running: &sidecars(),
            ended: &[],
            components: &[],
            peers: &peers(),
            own: &own(),
            closes_interval: true,
        })
    }

    fn mesh(snapshot: Arc<Snapshot>) -> Vec<String> {
        let text = Exposition::new(snapshot, Format::OpenMetrics).collect::<Vec<_>>().concat();
        let lines = String::from_utf8(text).unwrap();
        lines.lines().filter(|line| line.starts_with("istio_")).map(str::to_owned).collect()
    }

    /// Reads the text that the first build of this format wrote.
    #[test]
    fn continues_from_the_state_of_an_earlier_build() {
        let mut model = Model::new(at(0), Duration::from_mins(15));
        update(&mut model, 1);
        let text = include_str!("../golden/state.json");
        let mut restored =
            Model::restore(at(15), Duration::from_mins(15), serde_json::from_str(text).unwrap()).unwrap();
        let (expected, restored) = (mesh(update(&mut model, 2)), mesh(update(&mut restored, 2)));
        assert!(expected.len() > 100);
        assert_eq!(restored, expected);
    }
}
