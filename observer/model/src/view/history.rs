//! The last minutes, in columns of some seconds: how many requests each edge had, and how long they took.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use observer_common::histogram::{BUCKET_PAGES, SUB_BUCKETS, bounds};
use serde::{Serialize, Serializer};

use super::edges::Delta;
use crate::{Snapshot, histogram::PackedCells, snapshot::unix_seconds};

/// Length of a column.
pub const STEP: Duration = Duration::from_secs(5);
/// Maximum number of columns.
pub const MAX_COLUMNS: usize = 60;
/// Maximum size of all columns: the oldest go first.
pub const MAX_BYTES: usize = 2 << 20;
/// Size of an edge in a column without its rows, as allocated.
const EDGE_BYTES: usize = size_of::<EdgeColumn>() + 16;
/// Rows per octave.
const ROWS: u16 = 2;

/// Columns, the oldest first.
#[derive(Debug, Default)]
pub struct History {
    columns: VecDeque<Column>,
    bytes: usize,
    open: BTreeMap<u32, EdgeColumn>,
    open_length: Duration,
}

/// What was counted in one step.
#[derive(Debug, Serialize)]
pub struct Column {
    /// End, in seconds since 1970.
    at: f64,
    seconds: f64,
    edges: Vec<EdgeColumn>,
}

#[derive(Debug, Default, Serialize)]
struct EdgeColumn {
    id: u32,
    requests: u64,
    errors: u64,
    bytes: u64,
    connections: u64,
    /// Requests by [`row_bounds_ms`].
    #[serde(serialize_with = "pairs")]
    latency: PackedCells,
}

fn pairs<S: Serializer>(cells: &PackedCells, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(cells.totals(0))
}

/// Lower bounds of the rows of latency, and the upper bound of the last one, in milliseconds: two rows per octave.
fn row_bounds_ms() -> Vec<f64> {
    let first = |row: u16| {
        let (page, half) = (u32::from(row / ROWS), u32::from(row % ROWS));
        bounds(page, half * SUB_BUCKETS as u32 / u32::from(ROWS)).0
    };
    let last = bounds(BUCKET_PAGES as u32 - 1, SUB_BUCKETS as u32 - 1).1 + 1;
    let all = (0..ROWS * BUCKET_PAGES as u16).map(first).chain([last]);
    #[expect(clippy::cast_precision_loss, reason = "below 2^53")]
    all.map(|microseconds| microseconds as f64 / 1_000.0).collect()
}

/// Document of the history.
#[derive(Debug, Serialize)]
pub struct Document<'a> {
    step_seconds: f64,
    max_columns: usize,
    latency_bounds_ms: Vec<f64>,
    columns: &'a VecDeque<Column>,
}

impl History {
    /// Records what was counted in a time of this length, as far as it is shown. Returns whether a column is complete.
    pub(super) fn record(
        &mut self,
        snapshot: &Snapshot,
        length: Duration,
        deltas: &[Delta],
        is_shown: impl Fn(&Delta) -> bool,
    ) -> bool {
        for Delta { edge, figures, .. } in deltas.iter().filter(|delta| is_shown(delta)) {
            let own = self.open.entry(*edge).or_insert_with(|| EdgeColumn { id: *edge, ..EdgeColumn::default() });
            own.requests += figures.requests;
            own.errors += figures.errors();
            own.bytes = own.bytes.saturating_add(figures.bytes());
            own.connections += figures.tcp.opened;
            own.latency = own.latency.plus(&figures.durations.coarser(SUB_BUCKETS as u16 / ROWS));
        }
        self.open_length += length;
        // The clock of the one who asks may be a little early.
        if self.open_length + STEP / 10 < STEP {
            return false;
        }
        let edges: Vec<_> = std::mem::take(&mut self.open).into_values().collect();
        let at = unix_seconds(snapshot.at);
        let column = Column { at, seconds: std::mem::take(&mut self.open_length).as_secs_f64(), edges };
        self.bytes += column.bytes();
        self.columns.push_back(column);
        while self.columns.len() > MAX_COLUMNS || self.bytes > MAX_BYTES && self.columns.len() > 1 {
            let oldest = self.columns.pop_front();
            self.bytes -= oldest.map_or(0, |column| column.bytes());
        }
        true
    }

    /// Returns the columns, the oldest first.
    pub fn columns(&self) -> impl DoubleEndedIterator<Item = &Column> {
        self.columns.iter()
    }

    /// Returns the document.
    #[must_use]
    pub fn document(&self) -> Document<'_> {
        Document {
            step_seconds: STEP.as_secs_f64(),
            max_columns: MAX_COLUMNS,
            latency_bounds_ms: row_bounds_ms(),
            columns: &self.columns,
        }
    }
}

impl Column {
    fn bytes(&self) -> usize {
        size_of::<Self>() + self.edges.iter().map(|edge| EDGE_BYTES + edge.latency.bytes()).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_follow_each_other_from_nothing_up() {
        let bounds = row_bounds_ms();
        assert_eq!(bounds.len(), 73);
        assert_eq!(bounds[..5], [0.0, 0.016, 0.032, 0.048, 0.064]);
        assert!(bounds.is_sorted() && bounds.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn a_duration_stands_in_the_row_of_its_bounds() {
        let bounds = row_bounds_ms();
        for microseconds in [0_u64, 15, 16, 31, 32, 47, 48, 999, 1_000, 1_023, 1_024, 1_535, 1_536, 60_000_000] {
            let (page, cell) = observer_common::histogram::sub_bucket(microseconds);
            let cell = (page * SUB_BUCKETS as u32 + cell) as u16;
            let cells = PackedCells::new([&[(cell, 1)], &[], &[]]).coarser(SUB_BUCKETS as u16 / ROWS);
            let [(row, 1)] = cells.totals(0).collect::<Vec<_>>()[..] else { panic!("{cells:?}") };
            let milliseconds = microseconds as f64 / 1_000.0;
            let row = usize::from(row);
            assert!(bounds[row] <= milliseconds && milliseconds < bounds[row + 1], "{microseconds}: {row}");
        }
    }
}
