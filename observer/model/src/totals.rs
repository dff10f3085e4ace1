//! Cumulative totals of a series and their differences. A total that decreased yields no difference.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{histogram::PackedCells, reading::SeriesReading};

/// Cumulative totals of one series.
pub trait Totals: Clone + Default + PartialEq {
    /// Returns the totals of a reading.
    fn of(reading: &SeriesReading) -> Self;

    /// Returns whether `reading` has the same totals, without allocating.
    fn equals(&self, reading: &SeriesReading) -> bool;

    /// Returns whether nothing has been counted.
    fn is_zero(&self) -> bool;

    /// Returns the number of requests, or of connections opened.
    fn events(&self) -> u64;

    /// Returns `newer` minus `self`; `None` if any total decreased.
    fn difference(&self, newer: &Self) -> Option<Self>;

    /// Adds `other` to `self`.
    fn add(&mut self, other: &Self);

    /// Returns how many values of each histogram `cells` lack.
    fn room(&self, _cells: &PackedCells) -> [u64; 3] {
        [0; 3]
    }

    /// Returns `cells` with the values that they lack, as far as the exposed buckets place them; `None` if they lack none.
    fn filled(&self, _cells: &PackedCells) -> Option<PackedCells> {
        None
    }
}

/// Totals of a TCP series.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpTotals {
    /// Connections opened.
    pub opened: u64,
    /// Connections closed.
    pub closed: u64,
    /// Payload bytes client to server.
    pub received_bytes: u64,
    /// Payload bytes server to client.
    pub sent_bytes: u64,
}

impl Totals for TcpTotals {
    fn of(reading: &SeriesReading) -> Self {
        Self {
            opened: reading.opened,
            closed: reading.closed,
            received_bytes: reading.received,
            sent_bytes: reading.sent,
        }
    }

    fn equals(&self, reading: &SeriesReading) -> bool {
        *self == Self::of(reading)
    }

    fn is_zero(&self) -> bool {
        *self == Self::default()
    }

    fn events(&self) -> u64 {
        self.opened
    }

    fn difference(&self, newer: &Self) -> Option<Self> {
        Some(Self {
            opened: difference(self.opened, newer.opened)?,
            closed: difference(self.closed, newer.closed)?,
            received_bytes: difference(self.received_bytes, newer.received_bytes)?,
            sent_bytes: difference(self.sent_bytes, newer.sent_bytes)?,
        })
    }

    fn add(&mut self, other: &Self) {
        let Self { opened, closed, received_bytes, sent_bytes } = self;
        let own = [opened, closed, received_bytes, sent_bytes];
        let more = [other.opened, other.closed, other.received_bytes, other.sent_bytes];
        own.into_iter().zip(more).for_each(|(own, more)| *own = own.saturating_add(more));
    }
}

/// Returns the increase of a counter; `None` if it decreased.
#[must_use]
pub fn difference(older: u64, newer: u64) -> Option<u64> {
    newer.checked_sub(older)
}

/// Returns the increase per second; `None` if the counter decreased or no time has passed.
#[must_use]
pub fn rate(older: u64, newer: u64, elapsed: Duration) -> Option<f64> {
    let delta = difference(older, newer)?;
    #[expect(clippy::cast_precision_loss, reason = "a rate needs no more than 53 bits")]
    (!elapsed.is_zero()).then(|| delta as f64 / elapsed.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn totals() -> impl Strategy<Value = TcpTotals> {
        (0u64..1 << 40, 0u64..1 << 40, 0u64..1 << 40, 0u64..1 << 40).prop_map(
            |(opened, closed, received_bytes, sent_bytes)| TcpTotals { opened, closed, received_bytes, sent_bytes },
        )
    }

    proptest! {
        #[test]
        fn what_was_added_is_the_difference(older in totals(), delta in totals()) {
            let mut newer = older.clone();
            newer.add(&delta);
            prop_assert_eq!(older.difference(&newer), Some(delta.clone()));
            prop_assert_eq!(newer.difference(&older).is_none(), !delta.is_zero());
        }
    }

    #[test]
    fn a_reset_or_a_standing_clock_yields_no_rate() {
        assert_eq!(rate(10, 30, Duration::from_secs(10)), Some(2.0));
        assert_eq!(rate(30, 10, Duration::from_secs(10)), None);
        assert_eq!(rate(10, 30, Duration::ZERO), None);
    }
}
