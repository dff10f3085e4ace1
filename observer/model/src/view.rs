//! What is shown to whoever looks at the node now: edges of the mesh with their rates and latencies, the control plane,
//! processes, and what is not seen.
//!
//! A [`View`] is fed one snapshot per second while somebody looks, and is dropped afterwards. Rates are over the last
//! [`WINDOW`] snapshots; [`History`] has the last minutes. Its memory is bounded by [`MAX_EDGES`],
//! [`history::MAX_BYTES`] and [`rates::MAX_COUNTERS`], and by the number of series that the model exposes.

mod control_plane;
mod edges;
mod families;
mod figures;
mod findings;
pub mod history;
mod node;
pub mod rates;
mod sampled;
mod state;

use std::{collections::VecDeque, time::Duration};

pub use self::{
    edges::MAX_EDGES,
    findings::{Finding, Level},
    state::{Node, State},
};
use self::{
    edges::{Delta, Edges},
    history::{Column, History},
    rates::Rates,
};
use crate::Snapshot;

/// Number of snapshots that rates are over.
pub const WINDOW: usize = 10;

/// State kept while somebody looks.
#[derive(Debug, Default)]
pub struct View {
    edges: Edges,
    /// What was counted between the last snapshots, the oldest first.
    window: VecDeque<Tick>,
    history: History,
    rates: Rates,
    /// Monotonic time of the last snapshot.
    previous: Option<Duration>,
}

/// What was counted between two snapshots.
#[derive(Debug)]
struct Tick {
    length: Duration,
    deltas: Vec<Delta>,
}

impl View {
    /// Records a snapshot; the first one is what later ones are compared with. Returns the column of the history that
    /// has become complete, if any.
    pub fn record(&mut self, snapshot: &Snapshot) -> Option<&Column> {
        let deltas = self.edges.record(snapshot);
        families::counters(snapshot, |name, labels, value| self.rates.record(snapshot.steady, name, labels, value));
        self.rates.end(snapshot.steady);
        let previous = self.previous.replace(snapshot.steady)?;
        let length = snapshot.steady.saturating_sub(previous);
        let is_complete = self.history.record(snapshot, length, &deltas, |delta| self.edges.is_shown(delta));
        if self.window.len() == WINDOW {
            self.window.pop_front();
        }
        self.window.push_back(Tick { length, deltas });
        is_complete.then(|| self.history.columns().next_back()).flatten()
    }

    /// Returns what is shown of the last snapshot that was recorded, on the node of this name with these findings.
    #[must_use]
    pub fn state<'a>(&'a self, snapshot: &Snapshot, node: &'a str, findings: &[Finding]) -> State<'a> {
        let length: Duration = self.window.iter().map(|tick| tick.length).sum();
        let recent = edges::sum(self.window.iter().flat_map(|tick| &tick.deltas));
        let window = (!length.is_zero()).then_some(length);
        state::state(snapshot, node, &self.edges, window, &recent, &self.rates, findings)
    }

    /// Returns the last minutes.
    #[must_use]
    pub fn history(&self) -> &History {
        &self.history
    }
}

#[cfg(test)]
mod tests;
