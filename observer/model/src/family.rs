//! Metric families of a snapshot as the encoders see them, whether counted here or scraped.

use std::borrow::Cow;

use observer_common::Direction;

use crate::{
    aggregate::Series,
    catalogue::{self, Descriptor, Origin},
    exposition::MetricType,
    histogram::HttpTotals,
    labels::{HTTP, MeshLabels, TCP},
    merge::MergedFamily,
    point::{HistogramView, Labels, Point, Value},
    recorded::{RecordedPoint, RecordedValue},
    scraped::Suffix,
    totals::TcpTotals,
};

/// One metric family of a [`Snapshot`](crate::Snapshot).
#[derive(Clone, Copy, Debug)]
pub struct Family<'a> {
    pub(crate) recorded: Option<Recorded<'a>>,
    pub(crate) scraped: Option<MergedFamily<'a>>,
}

/// Points counted by this observer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Recorded<'a> {
    pub(crate) descriptor: &'static Descriptor,
    pub(crate) points: Points<'a>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Points<'a> {
    Requests(&'a [Series<HttpTotals>]),
    Histograms(&'a [Series<HttpTotals>], usize),
    Messages(&'a [Series<HttpTotals>], Direction),
    Tcp(&'a [Series<TcpTotals>], fn(&TcpTotals) -> u64),
    Recorded(&'a [RecordedPoint]),
}

/// Position in the points of a family, for encoders that pause between two of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// 0 for the recorded points, then one per scraped instance.
    part: usize,
    index: usize,
}

impl<'a> Family<'a> {
    /// Returns the name in text 0.0.4.
    #[must_use]
    pub fn name(&self) -> &'a str {
        self.recorded.map_or_else(|| self.scraped().name(), |recorded| recorded.descriptor.prometheus_name)
    }

    /// Returns the name without `_total`, which OpenMetrics reserves for a counter's samples; `None` where another
    /// family has that name. The Go runtime has a gauge `x` beside a counter `x_total`.
    #[must_use]
    pub fn counter_name(&self) -> Option<&'a str> {
        match self.recorded {
            Some(Recorded { descriptor: Descriptor { prometheus_name, .. }, .. }) => {
                Some(prometheus_name.strip_suffix("_total").unwrap_or(prometheus_name))
            }
            None => self.scraped().counter_name(),
        }
    }

    /// Returns the documented name in Wavefront; `*` stands for a histogram's statistic.
    #[must_use]
    pub fn documented_name(&self) -> Cow<'a, str> {
        match self.recorded {
            Some(recorded) => Cow::Borrowed(recorded.descriptor.documented_name),
            None => Cow::Owned(self.statistic_name(Suffix::None)),
        }
    }

    /// Returns the documented name of one statistic; undocumented families are named by the same scheme.
    #[must_use]
    pub fn statistic_name(&self, suffix: Suffix) -> String {
        let documented = match self.recorded {
            Some(Recorded { descriptor: Descriptor { documented_name, .. }, .. }) => Some(*documented_name),
            None => catalogue::by_prometheus_name(self.name()).map(|known| known.documented_name),
        };
        if let Some(pattern) = documented.filter(|name| name.contains('*')) {
            return pattern.replace('*', suffix.text().trim_start_matches('_'));
        }
        let stem = documented.and_then(|name| name.strip_suffix(".value"));
        let stem = stem.map_or_else(|| Cow::Owned(self.name().replace('_', ".")), Cow::Borrowed);
        let stem = stem.strip_suffix(".bucket").unwrap_or(&stem);
        format!("{stem}{}.value", suffix.text().replace('_', "."))
    }

    /// Returns the type.
    #[must_use]
    pub fn metric_type(&self) -> MetricType {
        self.recorded.map_or_else(|| self.scraped().metric_type(), |recorded| recorded.descriptor.metric_type)
    }

    /// Returns one sentence of help, that of the exporter or else of the catalogue.
    #[must_use]
    pub fn help(&self) -> &'a str {
        self.recorded.map_or_else(|| self.scraped().help(), |recorded| recorded.descriptor.help)
    }

    /// Returns the unit, empty if none is known.
    #[must_use]
    pub fn unit(&self) -> &'a str {
        self.recorded.map_or_else(|| self.scraped().unit(), |recorded| recorded.descriptor.unit)
    }

    /// Returns where the values come from, which decides whether a first total is an increase.
    #[must_use]
    pub fn origin(&self) -> Origin {
        self.recorded.map_or(Origin::Istiod, |recorded| recorded.descriptor.origin)
    }

    /// Returns the point at the cursor and advances it; `None` behind the last one.
    pub fn next(&self, cursor: &mut Cursor) -> Option<Point<'a>> {
        let parts = self.scraped.map_or(0, |scraped| scraped.parts());
        loop {
            let point = match cursor.part {
                0 => self.recorded.and_then(|recorded| recorded.get(cursor.index)),
                part => self.scraped.and_then(|scraped| scraped.get(part - 1, cursor.index)),
            };
            if point.is_some() {
                cursor.index += 1;
                return point;
            }
            if cursor.part == parts {
                return None;
            }
            *cursor = Cursor { part: cursor.part + 1, index: 0 };
        }
    }

    /// Returns all points.
    pub fn points(self) -> impl Iterator<Item = Point<'a>> {
        let mut cursor = Cursor::default();
        std::iter::from_fn(move || self.next(&mut cursor))
    }

    fn scraped(&self) -> MergedFamily<'a> {
        self.scraped.expect("a family is recorded, scraped or both")
    }
}

impl<'a> Recorded<'a> {
    fn get(&self, index: usize) -> Option<Point<'a>> {
        let http = |labels: &'a MeshLabels| Labels::mesh(labels, &HTTP);
        Some(match self.points {
            Points::Requests(series) => {
                let series = series.get(index)?;
                Point::new(http(&series.labels), Value::Integer(series.totals.requests()), series.created)
            }
            Points::Histograms(series, histogram) => {
                let series = series.get(index)?;
                let view = HistogramView::new(&series.totals, series.recent.as_deref(), histogram);
                let view = view.with_cells(series.cells.as_deref()).with_exemplars(series.exemplars.as_deref());
                Point::new(http(&series.labels), Value::Histogram(view), series.created)
            }
            Points::Messages(series, direction) => {
                let series = series.get(index)?;
                Point::new(http(&series.labels), Value::Integer(series.totals.messages(direction)), series.created)
            }
            Points::Tcp(series, total) => {
                let series = series.get(index)?;
                let labels = Labels::mesh(&series.labels, &TCP);
                Point::new(labels, Value::Integer(total(&series.totals)), series.created)
            }
            Points::Recorded(points) => {
                let point = points.get(index)?;
                let value = match &point.value {
                    RecordedValue::Integer(value) => Value::Integer(*value),
                    RecordedValue::Real(value) => Value::Real(*value),
                    RecordedValue::Delay(delay) => Value::Histogram(HistogramView::delay(delay)),
                };
                let labels = Labels::recorded(self.descriptor.labels, &point.labels);
                Point::new(labels, value, point.created)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::fixture::snapshots;

    #[test]
    fn every_point_has_its_familys_labels() {
        let [snapshot, _] = snapshots();
        for family in snapshot.families() {
            for point in family.points() {
                let mut names = Vec::new();
                point.labels.each(|name, _| names.push(name));
                assert_eq!(names, family.recorded.unwrap().descriptor.labels, "{}", family.name());
            }
        }
    }
}
