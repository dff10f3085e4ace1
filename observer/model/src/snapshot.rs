//! An immutable view of all families at one instant.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use observer_common::{DURATION, Direction, REQUEST_BYTES, RESPONSE_BYTES};

use crate::{
    aggregate::Series,
    catalogue,
    family::{Family, Points, Recorded},
    histogram::HttpTotals,
    merge::ScrapedFamilies,
    recorded::{RecordedFamilies, RecordedFamily},
    span::Span,
    totals::TcpTotals,
};

/// Number of Istio's standard metrics, the first families of a [`Snapshot`].
pub const MESH_FAMILIES: usize = 10;

/// All families at one instant. Shares its totals with the model and with other snapshots.
#[derive(Debug)]
pub struct Snapshot {
    /// Wall-clock time of the reading.
    pub at: SystemTime,
    /// The same on the monotonic clock, since the observer started.
    pub steady: Duration,
    /// When this process started to observe; totals may be older.
    pub began: SystemTime,
    /// Length of the reporting interval that this snapshot closes, if any.
    pub interval: Option<Duration>,
    /// HTTP and gRPC series, one per label set.
    pub http: Vec<Series<HttpTotals>>,
    /// gRPC series of `http`.
    pub grpc: Vec<Series<HttpTotals>>,
    /// TCP series, one per label set.
    pub tcp: Vec<Series<TcpTotals>>,
    /// Spans that have ended since the last snapshot with spans, in which there is nothing else.
    pub spans: Vec<Span>,
    pub(crate) recorded: Vec<RecordedFamily>,
    pub(crate) scraped: ScrapedFamilies,
    /// Families behind Istio's: indices into `recorded` and `scraped`, both for a name that has points in both.
    pub(crate) others: Vec<(Option<usize>, Option<usize>)>,
}

impl Snapshot {
    /// Returns a snapshot without series.
    pub(crate) fn new(recorded: RecordedFamilies, scraped: ScrapedFamilies) -> Self {
        let recorded = recorded.families;
        let names = scraped.families().enumerate().map(|(index, family)| (family.name(), index));
        let mut by_name: HashMap<&str, usize> = names.collect();
        let own = recorded.iter().enumerate();
        let own = own.map(|(index, family)| (Some(index), by_name.remove(family.descriptor.prometheus_name)));
        let mut others: Vec<_> = own.collect();
        let mut rest: Vec<usize> = by_name.into_values().collect();
        rest.sort_unstable();
        others.extend(rest.into_iter().map(|index| (None, Some(index))));
        Self {
            at: SystemTime::UNIX_EPOCH,
            steady: Duration::ZERO,
            began: SystemTime::UNIX_EPOCH,
            interval: None,
            http: Vec::new(),
            grpc: Vec::new(),
            tcp: Vec::new(),
            spans: Vec::new(),
            recorded,
            scraped,
            others,
        }
    }

    /// Returns a snapshot of nothing but spans.
    #[must_use]
    pub fn of_spans(at: SystemTime, spans: Vec<Span>) -> Self {
        Self { at, spans, ..Self::new(RecordedFamilies::new(at), ScrapedFamilies::default()) }
    }

    /// Returns all families in the order they are exposed: Istio's, the observer's own, those of procfs, scraped ones.
    /// Some of the first [`MESH_FAMILIES`] may have no points.
    pub fn families(&self) -> impl Iterator<Item = Family<'_>> {
        (0..).map_while(|index| self.family(index))
    }

    /// Returns the family at `index`; `None` behind the last one.
    #[must_use]
    pub fn family(&self, index: usize) -> Option<Family<'_>> {
        let (descriptor, points) = match index {
            0 => (&catalogue::REQUESTS, Points::Requests(&self.http)),
            1 => (&catalogue::REQUEST_DURATION, Points::Histograms(&self.http, DURATION)),
            2 => (&catalogue::REQUEST_BYTES, Points::Histograms(&self.http, REQUEST_BYTES)),
            3 => (&catalogue::RESPONSE_BYTES, Points::Histograms(&self.http, RESPONSE_BYTES)),
            4 => (&catalogue::REQUEST_MESSAGES, Points::Messages(&self.grpc, Direction::Request)),
            5 => (&catalogue::RESPONSE_MESSAGES, Points::Messages(&self.grpc, Direction::Response)),
            6 => (&catalogue::TCP_OPENED, Points::Tcp(&self.tcp, |totals| totals.opened)),
            7 => (&catalogue::TCP_CLOSED, Points::Tcp(&self.tcp, |totals| totals.closed)),
            8 => (&catalogue::TCP_RECEIVED_BYTES, Points::Tcp(&self.tcp, |totals| totals.received_bytes)),
            9 => (&catalogue::TCP_SENT_BYTES, Points::Tcp(&self.tcp, |totals| totals.sent_bytes)),
            _ => {
                let (recorded, scraped) = self.others.get(index - MESH_FAMILIES)?;
                let recorded = recorded.map(|index| &self.recorded[index]);
                return Some(Family {
                    recorded: recorded
                        .map(|own| Recorded { descriptor: own.descriptor, points: Points::Recorded(&own.points) }),
                    scraped: scraped.and_then(|index| self.scraped.family(index)),
                });
            }
        };
        Some(Family { recorded: Some(Recorded { descriptor, points }), scraped: None })
    }
}

/// Returns a time as documents have it.
pub(crate) fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
