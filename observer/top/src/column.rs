//! Columns of the table, and the order of its rows.

use std::{cmp::Ordering, fmt, str::FromStr};

use crate::{calls::Call, format};

/// A column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// The caller.
    From,
    /// The callee.
    To,
    /// HTTP, gRPC or TCP.
    Protocol,
    /// Requests, or opened connections of TCP, per second.
    Rate,
    /// Share of failed requests.
    Errors,
    /// Median of the durations.
    P50,
    /// 90th percentile.
    P90,
    /// 95th percentile.
    P95,
    /// 99th percentile.
    P99,
    /// Bytes of both directions per second.
    Bytes,
    /// Requests, or opened connections of TCP.
    Total,
}

use Column::{Bytes, Errors, From, P50, P90, P95, P99, Protocol, Rate, To, Total};

/// Width of a terminal from which on these columns have room.
const WIDE: [(u16, &[Column]); 3] = [
    (112, &[From, To, Protocol, Rate, Errors, P50, P90, P95, P99, Bytes, Total]),
    (92, &[From, To, Protocol, Rate, Errors, P50, P99, Bytes, Total]),
    (0, &[From, To, Protocol, Rate, Errors, P50, P99, Bytes]),
];

impl Column {
    /// All columns.
    pub const ALL: [Self; 11] = [From, To, Protocol, Rate, Errors, P50, P90, P95, P99, Bytes, Total];

    /// Returns those that have room in a terminal of this width.
    pub(crate) fn shown(width: u16) -> &'static [Self] {
        WIDE.into_iter().find(|(least, _)| width >= *least).map_or(&[], |(_, columns)| columns)
    }

    /// Returns the name in options.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            From => "from",
            To => "to",
            Protocol => "protocol",
            Rate => "rate",
            Errors => "errors",
            P50 => "p50",
            P90 => "p90",
            P95 => "p95",
            P99 => "p99",
            Bytes => "bytes",
            Total => "total",
        }
    }

    pub(crate) const fn title(self) -> &'static str {
        match self {
            From => "FROM",
            To => "TO",
            Protocol => "KIND",
            Rate => "RATE/s",
            Errors => "ERRORS",
            P50 => "P50",
            P90 => "P90",
            P95 => "P95",
            P99 => "P99",
            Bytes => "BYTES/s",
            Total => "TOTAL",
        }
    }

    /// Returns the width in characters; none of names, which share what is left.
    pub(crate) const fn width(self) -> Option<u16> {
        match self {
            From | To => None,
            Protocol => Some(5),
            Rate | Errors => Some(7),
            P50 | P90 | P95 | P99 | Bytes => Some(8),
            Total => Some(11),
        }
    }

    pub(crate) const fn is_text(self) -> bool {
        matches!(self, From | To | Protocol)
    }

    pub(crate) fn text(self, call: &Call) -> String {
        match self {
            From | To | Protocol => self.name_of(call).to_owned(),
            Rate => format::short(call.rate()),
            Errors => format::known(self.value(call), format::percent),
            P50 | P90 | P95 | P99 => format::known(self.value(call), format::milliseconds),
            Bytes => format::bytes(call.bytes()),
            Total => format::count(call.total()),
        }
    }

    fn name_of(self, call: &Call) -> &str {
        match self {
            From => &call.from,
            To => &call.to,
            _ => call.protocol(),
        }
    }

    fn value(self, call: &Call) -> Option<f64> {
        let latency = || Some(&call.recent()?.latency_ms);
        match self {
            From | To | Protocol => None,
            Rate => Some(call.rate()),
            Errors => call.error_ratio(),
            P50 => latency()?.p50,
            P90 => latency()?.p90,
            P95 => latency()?.p95,
            P99 => latency()?.p99,
            Bytes => Some(call.bytes()),
            Total => Some(call.total()),
        }
    }
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Column {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|column| column.name() == text.to_lowercase())
            .ok_or_else(|| format!("there is no such column: expected one of {}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// Order of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// What is compared.
    pub column: Column,
    /// Whether the largest comes first.
    pub is_descending: bool,
}

impl Order {
    /// Returns the usual order by a column: names from A, numbers from the largest.
    #[must_use]
    pub const fn by(column: Column) -> Self {
        Self { column, is_descending: !column.is_text() }
    }

    /// Returns the order by the next of these columns.
    pub(crate) fn next(self, columns: &[Column]) -> Self {
        let place = columns.iter().position(|column| *column == self.column).map_or(0, |place| place + 1);
        Self::by(columns.get(place).or(columns.first()).copied().unwrap_or(self.column))
    }

    pub(crate) const fn reversed(self) -> Self {
        Self { is_descending: !self.is_descending, ..self }
    }

    /// Compares rows; what is not known comes last, whatever the direction.
    pub(crate) fn compare(self, one: &Call, other: &Call) -> Ordering {
        let directed = |order: Ordering| if self.is_descending { order.reverse() } else { order };
        let order = if self.column.is_text() {
            directed(self.column.name_of(one).cmp(self.column.name_of(other)))
        } else {
            match (self.column.value(one), self.column.value(other)) {
                (Some(one), Some(other)) => directed(one.total_cmp(&other)),
                (one, other) => other.is_some().cmp(&one.is_some()),
            }
        };
        order.then_with(|| one.ends().cmp(&other.ends()))
    }
}
