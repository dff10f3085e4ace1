//! A dashboard's content, whatever program shows it.

use observer_model::{catalogue::Descriptor, histogram::QUANTILES};

use crate::query::{Match, Query, Series};

/// Fills the width of a row with this many columns.
pub(crate) const WIDTH: u8 = 24;

/// A dashboard.
pub(crate) struct Board {
    /// Stable identifier, and name of its file.
    pub(crate) id: &'static str,
    pub(crate) title: &'static str,
    pub(crate) description: &'static str,
    pub(crate) variables: Vec<Variable>,
    pub(crate) rows: Vec<Row>,
}

/// A choice at the top of the dashboard.
pub(crate) struct Variable {
    pub(crate) name: &'static str,
    pub(crate) label: &'static str,
    pub(crate) choice: Choice,
}

pub(crate) enum Choice {
    /// Values of a label in these families, under conditions; any number of them.
    Values(&'static str, Vec<&'static Descriptor>, &'static [Match], Shown),
    /// One of: text and value. The first is chosen at the start.
    One(&'static [(&'static str, &'static str)]),
}

/// Values that a variable offers.
#[derive(Clone, Copy)]
pub(crate) enum Shown {
    All,
    /// Those that contain this text.
    Containing(&'static str),
}

/// A group of panels that collapses; the first of a dashboard is open.
pub(crate) struct Row {
    pub(crate) title: &'static str,
    pub(crate) panels: Vec<Panel>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Number,
    Lines,
    Areas,
    Bars,
    Heatmap,
    /// One row for each set of labels, one column for each query.
    Table,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Number,
    PerSecond,
    Requests,
    Messages,
    Bytes,
    BytesPerSecond,
    Milliseconds,
    Seconds,
    Cores,
    Share,
}

/// Colours from a value on, lowest first.
pub(crate) type Thresholds = &'static [(f64, Colour)];

#[derive(Clone, Copy)]
pub(crate) enum Colour {
    Fine,
    Warning,
    Bad,
}

pub(crate) struct Panel {
    pub(crate) title: &'static str,
    pub(crate) note: &'static str,
    pub(crate) kind: Kind,
    pub(crate) unit: Unit,
    pub(crate) size: (u8, u8),
    pub(crate) thresholds: Thresholds,
    pub(crate) exemplars: bool,
    pub(crate) targets: Vec<Target>,
}

pub(crate) struct Target {
    /// Before the labels in the legend; title of the column in tables.
    pub(crate) name: &'static str,
    pub(crate) unit: Unit,
    pub(crate) query: Query,
}

impl Panel {
    fn new(title: &'static str, kind: Kind, unit: Unit, size: (u8, u8)) -> Self {
        Self { title, note: "", kind, unit, size, thresholds: &[], exemplars: false, targets: Vec::new() }
    }

    pub(crate) fn number(title: &'static str, unit: Unit, query: Query) -> Self {
        Self::new(title, Kind::Number, unit, (4, 4)).with("", query)
    }

    pub(crate) fn lines(title: &'static str, unit: Unit) -> Self {
        Self::new(title, Kind::Lines, unit, (12, 8))
    }

    pub(crate) fn areas(title: &'static str, unit: Unit) -> Self {
        Self::new(title, Kind::Areas, unit, (12, 8))
    }

    pub(crate) fn bars(title: &'static str, unit: Unit) -> Self {
        Self::new(title, Kind::Bars, unit, (12, 8))
    }

    pub(crate) fn table(title: &'static str) -> Self {
        Self::new(title, Kind::Table, Unit::Number, (WIDTH, 9))
    }

    pub(crate) fn heatmap(title: &'static str, unit: Unit, series: &Series) -> Self {
        Self::new(title, Kind::Heatmap, unit, (12, 8)).with("", series.buckets())
    }

    /// Every percentile of a histogram.
    pub(crate) fn percentiles(title: &'static str, unit: Unit, series: &Series) -> Self {
        let lines = Self { exemplars: true, ..Self::lines(title, unit) };
        QUANTILES.into_iter().fold(lines, |panel, (name, _)| panel.with(name, series.quantile(name)))
    }

    /// One percentile by labels.
    pub(crate) fn percentile(title: &'static str, unit: Unit, name: &'static str, series: &Series) -> Self {
        Self { exemplars: true, ..Self::lines(title, unit) }.with("", series.quantile(name).top(20))
    }

    pub(crate) fn with(self, name: &'static str, query: Query) -> Self {
        let unit = self.unit;
        self.column(name, unit, query)
    }

    pub(crate) fn column(mut self, name: &'static str, unit: Unit, query: Query) -> Self {
        self.targets.push(Target { name, unit, query });
        self
    }

    pub(crate) fn noting(self, note: &'static str) -> Self {
        Self { note, ..self }
    }

    pub(crate) fn sized(self, width: u8, height: u8) -> Self {
        Self { size: (width, height), ..self }
    }

    pub(crate) fn marking(self, thresholds: Thresholds) -> Self {
        Self { thresholds, ..self }
    }

    /// Returns its note and the meaning of its families.
    pub(crate) fn description(&self) -> String {
        let mut sentences: Vec<&str> = vec![self.note];
        for family in self.targets.iter().flat_map(|target| target.query.families()) {
            if !sentences.contains(&family.help) {
                sentences.push(family.help);
            }
        }
        sentences.join(" ").trim().to_owned()
    }
}

impl Board {
    pub(crate) fn panels(&self) -> impl Iterator<Item = &Panel> {
        self.rows.iter().flat_map(|row| &row.panels)
    }

    pub(crate) fn queries(&self) -> impl Iterator<Item = &Query> {
        self.panels().flat_map(|panel| panel.targets.iter().map(|target| &target.query))
    }
}
