//! Queries on the catalogue's families, written as PromQL and as Wavefront's `ts()`.

use observer_model::{
    catalogue::{Descriptor, Origin, Stability},
    exposition::MetricType,
    histogram::QUANTILES,
};

/// Window of rates in graphs: at least four scrapes.
pub(crate) const STEP: &str = "$__rate_interval";
/// Window of rates in tables: what the dashboard shows.
pub(crate) const WHOLE: &str = "$__range";
/// Endpoints that several nodes name are exposed by each of them, under this label.
const SCRAPER: &str = "scraper_node";

/// A condition on a label. In patterns `*` stands for any text.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Match {
    /// One of the patterns.
    Any(&'static str, &'static [&'static str]),
    /// None of them.
    None(&'static str, &'static [&'static str]),
    /// Selected with a variable of the dashboard: label, variable.
    Selected(&'static str, &'static str),
}

impl Match {
    pub(crate) fn promql(&self) -> String {
        match self {
            Self::Any(label, [pattern]) if !pattern.contains('*') => format!("{label}=\"{pattern}\""),
            Self::None(label, [pattern]) if !pattern.contains('*') => format!("{label}!=\"{pattern}\""),
            Self::Any(label, patterns) => format!("{label}=~\"{}\"", patterns.join("|").replace('*', ".*")),
            Self::None(label, patterns) => format!("{label}!~\"{}\"", patterns.join("|").replace('*', ".*")),
            Self::Selected(label, variable) => format!("{label}=~\"${variable}\""),
        }
    }

    fn ts(&self) -> String {
        let each = |label: &str, patterns: &[&str], glue: &str| {
            let each: Vec<_> = patterns.iter().map(|pattern| format!("{label}=\"{pattern}\"")).collect();
            each.join(glue)
        };
        match self {
            Self::Any(label, [pattern]) => each(label, &[pattern], ""),
            Self::Any(label, patterns) => format!("({})", each(label, patterns, " or ")),
            Self::None(label, patterns) => format!("not {}", each(label, patterns, " and not ")),
            // The value comes with its quotes.
            Self::Selected(label, variable) => format!("{label}=${{{variable}}}"),
        }
    }
}

/// The samples of a family.
#[derive(Clone, Copy, Debug)]
enum Statistic {
    Value,
    Bucket,
    Count,
    Sum,
}

/// Series of one family, by labels. Counters are read as rates per second.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub(crate) family: &'static Descriptor,
    statistic: Statistic,
    matches: Vec<Match>,
    pub(crate) by: Vec<&'static str>,
}

impl Series {
    pub(crate) fn new(family: &'static Descriptor, matches: &[Match]) -> Self {
        Self { family, statistic: Statistic::Value, matches: matches.to_vec(), by: Vec::new() }
    }

    pub(crate) fn by(&self, labels: &[&'static str]) -> Self {
        Self { by: labels.to_vec(), ..self.clone() }
    }

    pub(crate) fn only(&self, matches: &[Match]) -> Self {
        Self { matches: [&self.matches, matches].concat(), ..self.clone() }
    }

    pub(crate) fn sum(&self) -> Query {
        Query::Fold(Fold::Sum, self.clone())
    }

    pub(crate) fn max(&self) -> Query {
        Query::Fold(Fold::Highest, self.clone())
    }

    pub(crate) fn min(&self) -> Query {
        Query::Fold(Fold::Lowest, self.clone())
    }

    pub(crate) fn average(&self) -> Query {
        Query::Fold(Fold::Average, self.clone())
    }

    /// The number of values of a histogram.
    pub(crate) fn count(&self) -> Query {
        Query::Fold(Fold::Sum, Self { statistic: Statistic::Count, ..self.clone() })
    }

    /// The mean of a histogram's values.
    pub(crate) fn mean(&self) -> Query {
        let sum = Query::Fold(Fold::Sum, Self { statistic: Statistic::Sum, ..self.clone() });
        Query::Ratio(sum.into(), self.count().into())
    }

    /// The values of a histogram by bucket.
    pub(crate) fn buckets(&self) -> Query {
        Query::Fold(Fold::Sum, Self { statistic: Statistic::Bucket, by: vec!["le"], ..self.clone() })
    }

    /// A percentile of [`QUANTILES`] by its name.
    pub(crate) fn quantile(&self, name: &str) -> Query {
        let (name, value) = QUANTILES.into_iter().find(|(own, _)| *own == name).expect("one of the percentiles");
        Query::Quantile(name, value, Self { statistic: Statistic::Bucket, ..self.clone() })
    }

    /// The share of what matches, of all.
    pub(crate) fn share(&self, matches: &[Match]) -> Query {
        Query::Share(self.only(matches), self.clone())
    }

    fn is_rate(&self) -> bool {
        self.family.metric_type != MetricType::Gauge
    }

    fn promql(&self, window: &str) -> String {
        let suffix = match self.statistic {
            Statistic::Value => "",
            Statistic::Bucket => "_bucket",
            Statistic::Count => "_count",
            Statistic::Sum => "_sum",
        };
        let matches: Vec<_> = self.matches.iter().map(Match::promql).collect();
        let matches = if matches.is_empty() { String::new() } else { format!("{{{}}}", matches.join(", ")) };
        let selector = format!("{}{suffix}{matches}", self.family.prometheus_name);
        if self.is_rate() { format!("rate({selector}[{window}])") } else { selector }
    }

    fn promql_folded(&self, fold: Fold, window: &str) -> String {
        let inner = self.promql(window);
        let is_named = self.family.origin == Origin::Istiod || self.family.labels.contains(&SCRAPER);
        let counts_twice = is_named && fold == Fold::Sum;
        let inner = if counts_twice { format!("max without ({SCRAPER}) ({inner})") } else { inner };
        let by = if self.by.is_empty() { String::new() } else { format!(" by ({}) ", self.by.join(", ")) };
        format!("{}{by}({inner})", fold.name())
    }

    /// Writes the function `rate` for counters only.
    fn ts(&self, statistic: &str) -> String {
        let name = match (self.family.documented_name, statistic) {
            (name, "") => name.to_owned(),
            (name, statistic) => name.replace(".bucket.", ".*.").replace('*', statistic),
        };
        let matches: Vec<_> = self.matches.iter().map(Match::ts).collect();
        let matches = if matches.is_empty() { String::new() } else { format!(", {}", matches.join(" and ")) };
        let series = format!("ts(\"{name}\"{matches})");
        // Percentiles of a counting family are values.
        if self.is_rate() && !statistic.starts_with('p') { format!("rate({series})") } else { series }
    }

    fn ts_folded(&self, fold: Fold, statistic: &str) -> String {
        let by: String = self.by.iter().map(|label| format!(", {label}")).collect();
        format!("{}({}{by})", fold.name(), self.ts(statistic))
    }

    fn ts_statistic(&self) -> &'static str {
        match self.statistic {
            Statistic::Value => "",
            Statistic::Bucket => "bucket",
            Statistic::Count => "count",
            Statistic::Sum => "sum",
        }
    }
}

/// What becomes of several series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fold {
    Sum,
    Highest,
    Lowest,
    Average,
}

impl Fold {
    /// Returns its function, which both languages call the same.
    const fn name(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::Highest => "max",
            Self::Lowest => "min",
            Self::Average => "avg",
        }
    }
}

/// What a line, a number or a column shows.
#[derive(Clone, Debug)]
pub(crate) enum Query {
    Fold(Fold, Series),
    /// Name and value of the percentile.
    Quantile(&'static str, f64, Series),
    Ratio(Box<Self>, Box<Self>),
    /// Share of the first in the second, which contains it.
    Share(Series, Series),
    /// 0 without series.
    OrZero(Box<Self>),
    /// The highest.
    Top(u32, Box<Self>),
    /// Seconds from now until a time.
    Until(Box<Self>),
    /// Seconds since a time.
    Since(Box<Self>),
}

impl Query {
    pub(crate) fn or_zero(self) -> Self {
        Self::OrZero(self.into())
    }

    pub(crate) fn top(self, number: u32) -> Self {
        Self::Top(number, self.into())
    }

    pub(crate) fn promql(&self, window: &str) -> String {
        match self {
            Self::Fold(fold, series) => series.promql_folded(*fold, window),
            Self::Quantile(_, value, series) => {
                let labels: Vec<_> = ["le"].into_iter().chain(series.by.iter().copied()).collect();
                format!("histogram_quantile({value}, {})", series.by(&labels).promql_folded(Fold::Sum, window))
            }
            // Above 0, so that a pause is a gap and not a division by it.
            Self::Ratio(part, whole) => format!("{} / ({} > 0)", part.promql(window), whole.promql(window)),
            Self::Share(part, whole) => {
                let (part, whole) = (part.promql_folded(Fold::Sum, window), whole.promql_folded(Fold::Sum, window));
                // Without a series that matches, the share is 0 and not unknown.
                format!("({part} or {whole} * 0) / ({whole} > 0)")
            }
            Self::OrZero(query) => format!("{} or vector(0)", query.promql(window)),
            Self::Top(number, query) => format!("topk({number}, {})", query.promql(window)),
            Self::Until(query) => format!("{} - time()", query.promql(window)),
            Self::Since(query) => format!("time() - {}", query.promql(window)),
        }
    }

    /// Writes it for Wavefront; none for percentiles that are not sent there.
    pub(crate) fn ts(&self) -> Option<String> {
        Some(match self {
            Self::Fold(fold, series) => series.ts_folded(*fold, series.ts_statistic()),
            // Percentiles of several nodes do not add up: the highest is shown.
            Self::Quantile(name, _, series) if series.family.origin == Origin::Kernel => {
                series.ts_folded(Fold::Highest, name)
            }
            Self::Quantile(..) => return None,
            Self::Ratio(part, whole) => format!("{} / {}", part.ts()?, whole.ts()?),
            Self::Share(part, whole) => {
                let [part, whole] = [part, whole].map(|series| series.ts_folded(Fold::Sum, series.ts_statistic()));
                format!("default(0, {part}) / {whole}")
            }
            Self::OrZero(query) => format!("default(0, {})", query.ts()?),
            Self::Top(number, query) => format!("topk({number}, {})", query.ts()?),
            Self::Until(query) => format!("{} - time()", query.ts()?),
            Self::Since(query) => format!("time() - {}", query.ts()?),
        })
    }

    /// Returns the families that it reads.
    pub(crate) fn families(&self) -> Vec<&'static Descriptor> {
        match self {
            Self::Fold(_, series) | Self::Quantile(_, _, series) | Self::Share(_, series) => {
                vec![series.family]
            }
            Self::Ratio(one, other) => [one.families(), other.families()].concat(),
            Self::OrZero(query) | Self::Top(_, query) | Self::Until(query) | Self::Since(query) => query.families(),
        }
    }

    /// Returns the labels that its results have.
    pub(crate) fn labels(&self) -> &[&'static str] {
        match self {
            Self::Fold(_, series) | Self::Quantile(_, _, series) | Self::Share(_, series) => &series.by,
            Self::Ratio(query, _)
            | Self::OrZero(query)
            | Self::Top(_, query)
            | Self::Until(query)
            | Self::Since(query) => query.labels(),
        }
    }

    pub(crate) fn is_of_istio(&self) -> bool {
        self.families().iter().all(|family| family.stability != Stability::Own)
    }
}
