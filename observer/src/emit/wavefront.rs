//! Snapshot -> Wavefront metric lines, and the file and proxy they go to.
//!
//! Form of a line: `"name" value seconds source="node" "key"="value" …`, everything quoted, tags sorted, numbers without
//! exponent. That is the part of the grammar which every known decoder reads alike. There is no escape for a backslash,
//! so trailing ones are cut; line feeds become the two characters `\n`; empty values, `-` and `/` are no tag.
//!
//! A point takes at most 20 tags, `le` included, and Istio has 25 labels. So the principals, the canonical services
//! and the canonical revisions are left out, and series that differ in nothing else are added up. The collector's
//! names ([`Names::Collector`]) reproduce the recording rules of the integration for Prometheus, which keep eight labels.
//! There a bucket is a rate over the last interval, elsewhere a cumulative count.
//!
//! A proxy answers 202 even for lines it rejects later, so every limit is checked here and every rejected point counted.

use std::{
    collections::HashMap,
    fmt::{Display, Write as _},
    io::{self, Write as _},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
    vec,
};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use observer_ebpf::{DURATION, REQUEST_BYTES, RESPONSE_BYTES};
use reqwest::{StatusCode, header};

use super::{Batch, Encoder, Failure, Sending, Transport};
use crate::model::{
    HistogramView, Labels, Series, Snapshot, Value,
    cardinality::{Accounts, Moment},
    catalogue::{self, Family},
    counter::{self, Figures, TcpFigures},
    histogram::{HttpFigures, LE, PackedCells, QUANTILES},
    labels::{MeshLabels, Projection, REPORTING_APP},
};

/// Lines in one batch at most, the default of Wavefront's own senders.
const BATCH_POINTS: u64 = 10_000;
/// Bytes at which a batch is full; a proxy takes 16 MiB.
const BATCH_BYTES: usize = 512 * 1024;
/// Longest metric name, source, tag key, key and value together in UTF-16 units; most tags: the service's defaults.
const NAME_LENGTH: usize = 256;
const SOURCE_LENGTH: usize = 128;
const KEY_LENGTH: usize = 64;
const TAG_LENGTH: usize = 254;
const TAGS: usize = 20;
/// Longest line a proxy takes, bytes.
const LINE_LENGTH: usize = 32 * 1024;

/// Labels sent under documented names, by index of `labels::HTTP`: all but principals and canonical names.
const DOCUMENTED: &[usize] = &[0, 1, 4, 6, 7, 8, 9, 10, 12, 13, 14, 17, 18, 19, 20, 21, 22, 23, 24];
/// The same without what TCP families lack.
const DOCUMENTED_TCP: &[usize] = &[0, 1, 4, 6, 7, 8, 9, 10, 12, 13, 14, 17, 18, 19, 20, 23, 24];
/// Labels that the integration's recording rules keep.
const COLLECTOR: &[usize] = &[0, 1, 4, 9, 10, 21, 23, REPORTING_APP];
/// The same without what TCP families lack.
const COLLECTOR_TCP: &[usize] = &[0, 1, 4, 9, 10, 23, REPORTING_APP];

/// Which names are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Names {
    /// `istio.request.bytes.p99.value`.
    #[default]
    Documented,
    /// `istio.request.bytes.bucket.p99.value`, buckets as rates, and eight labels: what the chain of Prometheus,
    /// recording rules and collector sent.
    Collector,
}

/// Why a point is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Name,
    TagKey,
    TagLength,
    TooManyTags,
    NotFinite,
    LineLength,
}

const REASONS: [(Reason, &str); 6] = [
    (Reason::Name, "name"),
    (Reason::TagKey, "tag_key"),
    (Reason::TagLength, "tag_length"),
    (Reason::TooManyTags, "too_many_tags"),
    (Reason::NotFinite, "not_finite"),
    (Reason::LineLength, "line_length"),
];

/// A source that cannot be sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} cannot be the source of Wavefront points: it needs 1 to 128 letters, digits, dots, dashes or underscores; set the node's name"
)]
pub struct SourceError(String);

/// A series of the snapshot: forgotten and begun anew it is another one.
type SeriesId = (Arc<MeshLabels>, SystemTime);

/// Makes lines of snapshots. Remembers totals, which must not go back when series that were added up retire.
#[derive(Debug)]
pub struct Lines {
    names: Names,
    source: String,
    http: Accounts<SeriesId, Projection, HttpFigures>,
    tcp: Accounts<SeriesId, Projection, TcpFigures>,
    /// Totals of the last report, for rates.
    previous: HashMap<Arc<Projection>, Arc<HttpFigures>>,
    reported: Option<SystemTime>,
    rejected: [u64; REASONS.len()],
}

impl Lines {
    /// An encoder for one node; `source` is its name.
    ///
    /// # Errors
    /// The name cannot be a source.
    pub fn new(names: Names, source: &str) -> Result<Self, SourceError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if source.is_empty() || source.len() > SOURCE_LENGTH || !source.bytes().all(allowed) {
            return Err(SourceError(source.to_owned()));
        }
        Ok(Self {
            names,
            source: source.to_owned(),
            http: Accounts::default(),
            tcp: Accounts::default(),
            previous: HashMap::new(),
            reported: None,
            rejected: [0; REASONS.len()],
        })
    }

    /// Adds up what differs only in labels that are not sent.
    fn aggregate(&mut self, snapshot: &Snapshot) {
        let at = Moment { now: snapshot.at, before: self.reported.unwrap_or(snapshot.at) };
        let (http, tcp) = match self.names {
            Names::Documented => (DOCUMENTED, DOCUMENTED_TCP),
            Names::Collector => (COLLECTOR, COLLECTOR_TCP),
        };
        add_up(&mut self.http, &snapshot.http, http, at);
        add_up(&mut self.tcp, &snapshot.tcp, tcp, at);
    }

    /// The rate of every bucket since the last report needs that report's totals; none before the second.
    fn requests(&mut self, snapshot: &Snapshot) -> vec::IntoIter<Requests> {
        let elapsed = self.reported.and_then(|before| snapshot.at.duration_since(before).ok());
        let requests: Vec<_> = self
            .http
            .exposed()
            .map(|account| Requests {
                labels: account.labels.clone(),
                total: account.total.clone(),
                recent: account.recent.clone(),
                grown: elapsed.filter(|_| self.names == Names::Collector).map(|elapsed| {
                    // What was not there in the last report was 0 then.
                    (self.previous.get(&account.labels).cloned().unwrap_or_default(), elapsed)
                }),
            })
            .collect();
        if self.names == Names::Collector {
            self.previous = requests.iter().map(|own| (own.labels.clone(), own.total.clone())).collect();
        }
        self.reported = Some(snapshot.at);
        requests.into_iter()
    }
}

fn add_up<F: Figures>(
    accounts: &mut Accounts<SeriesId, Projection, F>,
    series: &[Series<F>],
    kept: &'static [usize],
    at: Moment,
) {
    accounts.begin(true);
    for series in series {
        let labels = || Projection::new(series.labels.clone(), kept);
        let id = (series.labels.clone(), series.created);
        accounts.feed(id.clone(), series.figures.clone(), true, at, labels);
        if let Some(recent) = &series.recent {
            accounts.recent(&id, recent);
        }
    }
    // A series that retired may come back with its whole past, which is in what was added up already.
    accounts.end_with_absent_feeds(at.now);
}

impl Encoder for Lines {
    fn encode(&mut self, snapshot: Arc<Snapshot>) -> Box<dyn Iterator<Item = Batch> + Send + '_> {
        self.aggregate(&snapshot);
        let seconds = snapshot.at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let ending = format!(" {seconds} source=\"{}\"", self.source);
        let requests = self.requests(&snapshot);
        let tcp: Vec<_> = self.tcp.exposed().map(|own| (own.labels.clone(), own.total.clone())).collect();
        let writer = Writer { text: String::new(), points: 0, ending, rejected: &mut self.rejected };
        // Istio's families come first in a snapshot; they are sent added up.
        Box::new(Report { names: self.names, requests, tcp: tcp.into_iter(), snapshot, family: 8, writer })
    }

    fn rejected(&self) -> Vec<(&'static str, u64)> {
        REASONS.iter().zip(self.rejected).map(|((_, name), count)| (*name, count)).collect()
    }
}

/// One label set of the HTTP families.
struct Requests {
    labels: Arc<Projection>,
    total: Arc<HttpFigures>,
    recent: Option<Arc<PackedCells>>,
    /// Totals of the last report and the time since, where buckets are rates.
    grown: Option<(Arc<HttpFigures>, Duration)>,
}

/// The batches of one snapshot.
struct Report<'a> {
    names: Names,
    requests: vec::IntoIter<Requests>,
    tcp: vec::IntoIter<(Arc<Projection>, Arc<TcpFigures>)>,
    snapshot: Arc<Snapshot>,
    family: usize,
    writer: Writer<'a>,
}

impl Iterator for Report<'_> {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        while self.writer.points < BATCH_POINTS && self.writer.text.len() < BATCH_BYTES && self.advance() {}
        self.writer.take()
    }
}

impl Report<'_> {
    /// Writes one label set or one family of the observer's own; `false` at the end.
    fn advance(&mut self) -> bool {
        if let Some(requests) = self.requests.next() {
            self.request_lines(&requests);
        } else if let Some((labels, total)) = self.tcp.next() {
            let tags = Tags::new(|each| labels.each(each));
            for (family, value) in [
                (&catalogue::TCP_OPENED, total.opened),
                (&catalogue::TCP_CLOSED, total.closed),
                (&catalogue::TCP_RECEIVED_BYTES, total.received_bytes),
                (&catalogue::TCP_SENT_BYTES, total.sent_bytes),
            ] {
                self.writer.line(family.documented_name, &value, &tags, None);
            }
        } else if let Some(points) = self.snapshot.family(self.family) {
            self.family += 1;
            for point in points.iter() {
                let Labels::Own(..) = point.labels else { continue };
                let tags = Tags::new(|each| point.labels.each(each));
                match point.value {
                    Value::Integer(value) => self.writer.line(points.family.documented_name, &value, &tags, None),
                    Value::Real(value) => self.writer.real(points.family.documented_name, value, &tags, None),
                    Value::Histogram(_) => {}
                }
            }
        } else {
            return false;
        }
        true
    }

    fn request_lines(&mut self, requests: &Requests) {
        let tags = Tags::new(|each| requests.labels.each(each));
        let total = &requests.total;
        self.writer.line(catalogue::REQUESTS.documented_name, &total.requests(), &tags, None);
        for (family, index) in [
            (&catalogue::REQUEST_DURATION, DURATION),
            (&catalogue::REQUEST_BYTES, REQUEST_BYTES),
            (&catalogue::RESPONSE_BYTES, RESPONSE_BYTES),
        ] {
            let view = HistogramView::new(total, requests.recent.as_deref(), index);
            let cumulative = view.cumulative();
            let bucket = statistic(family, "bucket");
            match (self.names, &requests.grown) {
                (Names::Documented, _) => {
                    for (le, count) in LE.into_iter().zip(cumulative) {
                        self.writer.line(&bucket, &count, &tags, Some(le));
                    }
                }
                (Names::Collector, Some((older, elapsed))) => {
                    let older = HistogramView::new(older, None, index).cumulative();
                    for ((le, older), newer) in LE.into_iter().zip(older).zip(cumulative) {
                        if let Some(rate) = counter::rate(older, newer, *elapsed) {
                            self.writer.real(&bucket, rate, &tags, Some(le));
                        }
                    }
                }
                (Names::Collector, None) => {}
            }
            for ((name, _), value) in QUANTILES.into_iter().zip(view.quantiles().into_iter().flatten()) {
                let name = match self.names {
                    Names::Documented => statistic(family, name),
                    Names::Collector => statistic(family, &format!("bucket.{name}")),
                };
                self.writer.real(&name, value, &tags, None);
            }
            self.writer.line(&statistic(family, "count"), &cumulative[LE.len() - 1], &tags, None);
            self.writer.real(&statistic(family, "sum"), view.sum(), &tags, None);
        }
    }
}

fn statistic(family: &Family, statistic: &str) -> String {
    family.documented_name.replace('*', statistic)
}

/// Tags of a point, ready to be written: sorted, with a gap where `le` belongs.
struct Tags {
    before_le: String,
    after_le: String,
    count: usize,
    broken: Option<Reason>,
}

impl Tags {
    fn new(labels: impl FnOnce(&mut dyn FnMut(&'static str, &str))) -> Self {
        let mut sorted: Vec<(&'static str, String)> = Vec::with_capacity(TAGS);
        labels(&mut |key, value| {
            let value = clean(value);
            if !matches!(value.as_str(), "" | "-" | "/") {
                sorted.push((key, value));
            }
        });
        sorted.sort_unstable();
        let mut tags = Self { before_le: String::new(), after_le: String::new(), count: sorted.len(), broken: None };
        for (key, value) in sorted {
            if !is_key(key) {
                tags.broken = Some(Reason::TagKey);
            } else if key.len() + value.encode_utf16().count() > TAG_LENGTH {
                tags.broken = Some(Reason::TagLength);
            }
            let text = if key < "le" { &mut tags.before_le } else { &mut tags.after_le };
            let _ = write!(text, " \"{key}\"=\"{}\"", value.replace('"', "\\\""));
        }
        tags
    }
}

/// A tag value that every decoder reads alike, not yet escaped.
fn clean(value: &str) -> String {
    let mut cleaned = String::with_capacity(value.len());
    for character in value.chars() {
        match character {
            '\n' => cleaned.push_str("\\n"),
            '\r' => cleaned.push_str("\\r"),
            // End of transmission makes a proxy reject the line; the others have no business in it either.
            control if control.is_control() => cleaned.push(' '),
            _ => cleaned.push(character),
        }
    }
    // A backslash before the closing quote would swallow it.
    cleaned.trim_start().trim_end_matches(|end: char| end == '\\' || end.is_whitespace()).to_owned()
}

fn is_key(key: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !key.is_empty() && key.len() <= KEY_LENGTH && key.bytes().all(allowed) && !matches!(key, "source" | "host")
}

fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !name.is_empty() && name.len() <= NAME_LENGTH && name.bytes().all(allowed)
}

/// Lines being gathered for a batch.
struct Writer<'a> {
    text: String,
    points: u64,
    /// Timestamp and source.
    ending: String,
    rejected: &'a mut [u64; REASONS.len()],
}

impl Writer<'_> {
    fn real(&mut self, name: &str, value: f64, tags: &Tags, le: Option<&str>) {
        if value.is_finite() {
            self.line(name, &value, tags, le);
        } else {
            self.reject(Reason::NotFinite);
        }
    }

    fn line(&mut self, name: &str, value: &dyn Display, tags: &Tags, le: Option<&str>) {
        if let Some(reason) = tags.broken {
            return self.reject(reason);
        }
        if !is_name(name) {
            return self.reject(Reason::Name);
        }
        if tags.count + usize::from(le.is_some()) > TAGS {
            return self.reject(Reason::TooManyTags);
        }
        let start = self.text.len();
        let _ = write!(self.text, "\"{name}\" {value}{}{}", self.ending, tags.before_le);
        if let Some(le) = le {
            let _ = write!(self.text, " \"le\"=\"{le}\"");
        }
        self.text.push_str(&tags.after_le);
        self.text.push('\n');
        if self.text.len() - start > LINE_LENGTH {
            self.text.truncate(start);
            return self.reject(Reason::LineLength);
        }
        self.points += 1;
    }

    fn reject(&mut self, reason: Reason) {
        let index = REASONS.iter().position(|(known, _)| *known == reason).expect("every reason is listed");
        self.rejected[index] += 1;
    }

    fn take(&mut self) -> Option<Batch> {
        let points = std::mem::take(&mut self.points);
        (points > 0).then(|| Batch { text: std::mem::take(&mut self.text).into(), points })
    }
}

/// Appends lines to a file or to standard output.
#[derive(Debug)]
pub struct FileSink {
    /// `None` is standard output.
    path: Option<PathBuf>,
}

impl FileSink {
    /// `-` is standard output. The file is opened for every batch, so it may be moved away and made anew.
    #[must_use]
    pub fn new(path: &str) -> Self {
        Self { path: (path != "-").then(|| path.into()) }
    }
}

impl Transport for FileSink {
    fn send<'a>(&'a mut self, batch: &'a Batch) -> Sending<'a> {
        let (path, text) = (self.path.clone(), batch.text.clone());
        Box::pin(async move {
            let name = path.as_ref().map_or_else(|| "standard output".to_owned(), |path| path.display().to_string());
            let written = tokio::task::spawn_blocking(move || append(path, &text)).await;
            let error = match written {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            Err(Failure::Refused { kind: "write", message: format!("cannot write to {name}: {error}") })
        })
    }
}

fn append(path: Option<PathBuf>, text: &[u8]) -> io::Result<()> {
    let Some(path) = path else {
        let mut output = io::stdout().lock();
        output.write_all(text)?;
        return output.flush();
    };
    let mut file = std::fs::File::options().append(true).create(true).open(path)?;
    let metadata = file.metadata()?;
    file.write_all(text).inspect_err(|_| {
        // Half a line would spoil the next one; what cannot be shortened (a pipe) has no length either.
        if metadata.is_file() {
            let _ = file.set_len(metadata.len());
        }
    })
}

/// Posts lines to a Wavefront proxy.
#[derive(Debug)]
pub struct HttpSink {
    client: reqwest::Client,
    url: reqwest::Url,
}

impl HttpSink {
    /// Posts to `url`, compressed.
    ///
    /// # Errors
    /// The HTTP client could not be set up.
    pub fn new(url: reqwest::Url, timeout: Duration) -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder()
            .timeout(timeout)
            .user_agent(concat!("mesh-observer/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        Ok(Self { client, url })
    }
}

impl Transport for HttpSink {
    fn send<'a>(&'a mut self, batch: &'a Batch) -> Sending<'a> {
        Box::pin(async move {
            let request = self
                .client
                .post(self.url.clone())
                .header(header::CONTENT_TYPE, "application/octet-stream")
                .header(header::CONTENT_ENCODING, "gzip")
                .body(compressed(&batch.text));
            let response = request.send().await.map_err(|error| unreachable(&self.url, &error))?;
            let after = response.headers().get(header::RETRY_AFTER);
            let after = after.and_then(|value| value.to_str().ok()?.parse().ok()).map(Duration::from_secs);
            judge(response.status(), after, &self.url)
        })
    }
}

fn compressed(text: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::with_capacity(text.len() / 16), Compression::fast());
    encoder.write_all(text).expect("writing to memory does not fail");
    encoder.finish().expect("writing to memory does not fail").into()
}

fn unreachable(url: &reqwest::Url, error: &reqwest::Error) -> Failure {
    let kind = if error.is_timeout() {
        "timeout"
    } else if error.is_connect() {
        "connect"
    } else {
        "connection"
    };
    let mut message = format!("no answer from {url}");
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(error) = cause {
        let _ = write!(message, ": {error}");
        cause = error.source();
    }
    Failure::Transient { kind, message }
}

/// What an answer means: the table a Wavefront proxy itself follows towards the service.
fn judge(status: StatusCode, after: Option<Duration>, url: &reqwest::Url) -> Result<(), Failure> {
    let message = || format!("{url} answered {status}");
    match status.as_u16() {
        200..=299 => Ok(()),
        413 => Err(Failure::TooLarge),
        406 | 429 => Err(Failure::PushBack { after }),
        401 | 403 => Err(Failure::Refused { kind: "unauthorised", message: message() }),
        407 | 408 | 500..=599 => Err(Failure::Transient { kind: "server", message: message() }),
        _ => Err(Failure::Refused { kind: "refused", message: message() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        discovery::{Role, Workload},
        model::{Inputs, Model, Own, fixture, labels::Peers},
    };
    use observer_ebpf::{LEG_SOURCE, PROTOCOL_HTTP, PROTOCOL_TCP};
    use proptest::prelude::*;
    use std::collections::{BTreeMap, HashSet};

    #[derive(Clone, Debug, PartialEq)]
    struct Point {
        name: String,
        value: f64,
        seconds: u64,
        source: String,
        tags: BTreeMap<String, String>,
    }

    /// A decoder of its own, written from the rules of the receivers' tokeniser and validation, taking the strictest of
    /// each: whitespace parts tokens, `=` is a token, a backslash escapes only the quote that is open.
    fn decode(line: &str) -> Result<Point, String> {
        if line.contains('\u{4}') || line.len() > 32 * 1024 {
            return Err("line refused whole".to_owned());
        }
        let mut tokens = Vec::new();
        let mut rest = line.chars().peekable();
        loop {
            while rest.next_if(|c| c.is_whitespace()).is_some() {}
            let Some(first) = rest.next() else { break };
            let mut token = String::new();
            match first {
                '=' => token.push('='),
                quote @ ('"' | '\'') => loop {
                    match rest.next().ok_or("unmatched quote")? {
                        end if end == quote => break,
                        '\\' if rest.peek() == Some(&quote) => token.extend(rest.next()),
                        other => token.push(other),
                    }
                },
                other => {
                    token.push(other);
                    while let Some(more) = rest.next_if(|c| !matches!(c, ' ' | '\t' | '=')) {
                        token.push(more);
                    }
                }
            }
            tokens.push((token, matches!(first, '"' | '\'')));
        }
        let mut tokens = tokens.into_iter();
        let mut next = |what: &str| tokens.next().ok_or(format!("{what} is missing"));
        let (name, _) = next("name")?;
        let allowed =
            |text: &str| text.chars().all(|c| matches!(c, 'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_' | '.'));
        if name.is_empty() || name.len() > 256 || !allowed(&name) || !name.contains('.') {
            return Err(format!("name {name:?}"));
        }
        let (value, quoted) = next("value")?;
        if quoted || !value.chars().all(|c| matches!(c, '0'..='9' | '.' | '-')) {
            return Err(format!("value {value:?}"));
        }
        let (seconds, quoted) = next("timestamp")?;
        if quoted || seconds.len() != 10 {
            return Err(format!("timestamp {seconds:?}"));
        }
        let (mut source, mut tags) = (None, BTreeMap::new());
        let mut previous = String::new();
        while let Ok((key, _)) = next("key") {
            if next("=")? != ("=".to_owned(), false) {
                return Err(format!("no = after {key:?}"));
            }
            let (value, _) = next("value")?;
            if value.trim().is_empty() || matches!(value.as_str(), "-" | "/") {
                return Err(format!("blank value of {key:?}"));
            }
            if key == "source" {
                source = Some(value);
                continue;
            }
            if key.is_empty() || key.len() > 64 || !allowed(&key) || key == "host" {
                return Err(format!("key {key:?}"));
            }
            if key.encode_utf16().count() + value.encode_utf16().count() > 254 {
                return Err(format!("tag {key:?} is too long"));
            }
            if key <= previous {
                return Err(format!("key {key:?} after {previous:?}"));
            }
            previous.clone_from(&key);
            tags.insert(key, value);
        }
        if tags.len() > 20 {
            return Err(format!("{} tags", tags.len()));
        }
        Ok(Point {
            name,
            value: value.parse().map_err(|error| format!("{value:?}: {error}"))?,
            seconds: seconds.parse().map_err(|error| format!("{seconds:?}: {error}"))?,
            source: source.filter(|own| own.len() <= 128 && allowed(own)).ok_or("source is missing")?,
            tags,
        })
    }

    fn text(lines: &mut Lines, snapshot: &Arc<Snapshot>) -> String {
        let batches: Vec<Batch> = lines.encode(snapshot.clone()).collect();
        for batch in &batches {
            assert_eq!(batch.text.iter().filter(|byte| **byte == b'\n').count() as u64, batch.points);
        }
        batches.iter().map(|batch| std::str::from_utf8(&batch.text).unwrap()).collect()
    }

    fn points(text: &str) -> Vec<Point> {
        text.split_terminator('\n').map(|line| decode(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
    }

    fn named<'a>(points: &'a [Point], name: &str) -> Vec<&'a Point> {
        points.iter().filter(|point| point.name == name).collect()
    }

    fn snapshot(app: &str, workload: &str) -> Arc<Snapshot> {
        let workload = Workload {
            name: Some(workload.to_owned()),
            labels: [("app".to_owned(), app.to_owned())].into(),
            ..Workload::default()
        };
        let sidecars = [fixture::sidecar(1, Role::Sidecar, "10.0.0.1", Arc::new(workload))];
        let series = vec![
            fixture::tcp(fixture::key(1, LEG_SOURCE, "10.0.0.9:1", PROTOCOL_TCP, 0), 1, 0, 5, 0),
            fixture::http(fixture::key(1, LEG_SOURCE, "10.0.0.9:1", PROTOCOL_HTTP, 200), &[1]),
        ];
        Model::new(fixture::at(0), Duration::ZERO).update(Inputs {
            reading: &fixture::reading(1, series),
            running: &sidecars,
            ended: &[],
            components: &[],
            peers: &Arc::new(Peers::default()),
            own: &Own::default(),
            closes_interval: true,
        })
    }

    #[test]
    fn the_lines_are_the_golden_ones() {
        for (names, golden) in [(Names::Documented, "documented.wavefront"), (Names::Collector, "collector.wavefront")]
        {
            let mut lines = Lines::new(names, "node-1").unwrap();
            let [first, second] = fixture::snapshots();
            points(&text(&mut lines, &first));
            let lines = text(&mut lines, &second);
            points(&lines);
            fixture::assert_golden(golden, &lines);
        }
    }

    #[test]
    fn no_two_points_of_a_report_are_the_same_series() {
        for names in [Names::Documented, Names::Collector] {
            let [_, snapshot] = fixture::snapshots();
            let points = points(&text(&mut Lines::new(names, "node-1").unwrap(), &snapshot));
            let distinct: HashSet<_> = points.iter().map(|point| (&point.name, &point.tags)).collect();
            assert_eq!(distinct.len(), points.len());
        }
    }

    #[test]
    fn documented_buckets_are_cumulative_and_percentiles_have_their_names() {
        let [_, snapshot] = fixture::snapshots();
        let points = points(&text(&mut Lines::new(Names::Documented, "node-1").unwrap(), &snapshot));
        let family = &catalogue::REQUEST_DURATION;
        let all =
            |point: &&&Point| point.tags["destination_service_name"] == "reviews" && point.tags["reporter"] == "source";
        let buckets = named(&points, &statistic(family, "bucket"));
        let values: Vec<_> = buckets.iter().filter(all).map(|point| point.value).collect();
        assert_eq!(values[..6], [2.0, 2.0, 6.0, 6.0, 6.0, 6.0]);
        assert_eq!(values.last(), Some(&8.0));
        let count = named(&points, &statistic(family, "count"));
        assert_eq!(count.iter().find(|point| all(point)).map(|point| point.value), Some(8.0));
        for (name, _) in QUANTILES {
            assert!(!named(&points, &statistic(family, name)).is_empty());
        }
        assert!(points.iter().all(|point| point.source == "node-1" && point.seconds == 1_700_000_020));
    }

    #[test]
    fn collector_buckets_are_rates_and_absent_in_the_first_report() {
        let [first, second] = fixture::snapshots();
        let mut lines = Lines::new(Names::Collector, "node-1").unwrap();
        let bucket = statistic(&catalogue::REQUEST_DURATION, "bucket");
        assert!(named(&points(&text(&mut lines, &first)), &bucket).is_empty());
        let points = points(&text(&mut lines, &second));
        let infinite: Vec<_> = named(&points, &bucket)
            .into_iter()
            .filter(|point| point.tags["le"] == "+Inf" && point.tags["source_workload"] == "productpage-v1")
            .collect();
        // Four requests to reviews and one to ratings more in ten seconds.
        let mut rates: Vec<_> = infinite.iter().map(|point| point.value).collect();
        rates.sort_by(f64::total_cmp);
        assert_eq!(rates, [0.1, 0.4]);
        let names: HashSet<_> = infinite[0].tags.keys().map(String::as_str).collect();
        let kept = [
            "app",
            "reporter",
            "response_code",
            "source_workload",
            "source_workload_namespace",
            "destination_workload",
            "destination_workload_namespace",
            "le",
        ];
        assert_eq!(names, kept.into());
        assert_eq!(infinite[0].tags["app"], "productpage");
        assert!(!named(&points, &statistic(&catalogue::REQUEST_DURATION, "bucket.p999")).is_empty());
    }

    #[test]
    fn a_sum_keeps_the_past_of_series_that_retire_and_does_not_count_it_twice() {
        let mut lines = Lines::new(Names::Collector, "node-1").unwrap();
        let mut model = Model::new(fixture::at(0), Duration::ZERO);
        let mut running = fixture::sidecars();
        running.truncate(1);
        // Two services' ports behind one workload: one label set for the collector, two in the model.
        let mut peers = Peers::clone(&fixture::peers());
        peers.services[1].workload = Some("reviews-v2".to_owned());
        let peers = Arc::new(peers);
        let mut total = |seconds, running: &[Arc<_>], counts: [usize; 2]| {
            let series =
                ["10.96.0.1:80", "10.96.0.2:80"].into_iter().zip(counts).enumerate().map(|(index, (to, count))| {
                    let id = index as u32 + 1;
                    fixture::http(fixture::key(id, LEG_SOURCE, to, PROTOCOL_HTTP, 200), &vec![1; count])
                });
            let snapshot = model.update(Inputs {
                reading: &fixture::reading(seconds, series.collect()),
                running,
                ended: &[],
                components: &[],
                peers: &peers,
                own: &Own::default(),
                closes_interval: true,
            });
            let points = points(&text(&mut lines, &snapshot));
            named(&points, catalogue::REQUESTS.documented_name).iter().map(|point| point.value).sum::<f64>()
        };
        let second = fixture::sidecar(2, Role::Sidecar, "10.0.0.2", running[0].workload.clone());
        let both = [running[0].clone(), second];
        assert_eq!(total(10, &both, [3, 4]), 7.0);
        assert_eq!(total(20, &running, [3, 4]), 7.0, "the second retires");
        assert_eq!(total(30, &running, [5, 4]), 9.0);
        assert_eq!(total(40, &both, [5, 6]), 11.0, "the second is back");
    }

    #[test]
    fn what_breaks_the_rules_is_counted_by_reason() {
        let mut lines = Lines::new(Names::Documented, "node-1").unwrap();
        let long = "x".repeat(300);
        points(&text(&mut lines, &snapshot(&long, "w")));
        let rejected: HashMap<_, _> = lines.rejected().into_iter().collect();
        // One count, three histograms of 20 buckets, 6 percentiles, count and sum, and four TCP figures.
        assert_eq!(rejected["tag_length"], 1 + 3 * 28 + 4);
        assert_eq!(rejected.values().sum::<u64>(), 89);
    }

    #[test]
    fn limits_of_names_tags_and_values_hold_at_their_edges() {
        let mut rejected = [0; REASONS.len()];
        let mut writer = Writer {
            text: String::new(),
            points: 0,
            ending: " 1700000000 source=\"n\"".to_owned(),
            rejected: &mut rejected,
        };
        let tags = |value: &str| Tags::new(|each| each("key", value));
        writer.line("a.b", &1, &tags(&"é".repeat(251)), None);
        writer.line("a.b", &1, &tags(&"é".repeat(252)), None);
        writer.line(&format!("a.{}", "b".repeat(254)), &1, &tags("v"), None);
        writer.line(&format!("a.{}", "b".repeat(255)), &1, &tags("v"), None);
        writer.line("a b", &1, &tags("v"), None);
        writer.real("a.b", f64::NAN, &tags("v"), None);
        writer.real("a.b", f64::INFINITY, &tags("v"), None);
        writer.real("a.b", 1e300, &tags("v"), None);
        writer.line("a.b", &1, &Tags::new(|each| each("bad key", "v")), None);
        let keys: Vec<&'static str> = labels_of_twenty();
        writer.line("a.b", &1, &Tags::new(|each| keys.iter().for_each(|key| each(key, "v"))), None);
        writer.line("a.b", &1, &Tags::new(|each| keys.iter().for_each(|key| each(key, "v"))), Some("1"));
        let batch = writer.take().unwrap();
        assert_eq!(batch.points, 4);
        assert_eq!(points(std::str::from_utf8(&batch.text).unwrap()).len(), 4);
        assert_eq!(rejected, [2, 1, 1, 1, 2, 0]);
    }

    fn labels_of_twenty() -> Vec<&'static str> {
        crate::model::labels::HTTP[..20].to_vec()
    }

    #[test]
    fn a_source_must_be_a_node_name() {
        for bad in ["", "a b", "a\"b", "ü", &"n".repeat(129)] {
            assert!(Lines::new(Names::Documented, bad).is_err(), "{bad:?}");
        }
        assert!(Lines::new(Names::Documented, "ip-10-0-0-1.eu_west.example").is_ok());
    }

    proptest! {
        #[test]
        fn every_line_decodes_to_what_was_meant(
            app in prop_oneof![any::<String>(), "[\"'\\\\\n\r\t =#-/a\u{4}]{0,20}"],
            workload in "\\PC{0,40}",
            collector: bool,
        ) {
            let names = if collector { Names::Collector } else { Names::Documented };
            let mut lines = Lines::new(names, "node-1").unwrap();
            let found = points(&text(&mut lines, &snapshot(&app, &workload)));
            let rejected: u64 = lines.rejected().iter().map(|(_, count)| count).sum();
            prop_assert!(rejected > 0 || found.iter().any(|point| point.name == catalogue::REQUESTS.documented_name));
            // Independent of the encoder: what a reader may expect to find of a value.
            let expected = app.replace('\n', "\\n").replace('\r', "\\r").replace(|c: char| c.is_control(), " ");
            let expected = expected.trim().trim_end_matches(|c: char| c == '\\' || c.is_whitespace());
            let key = if collector { "app" } else { "source_app" };
            for point in found.iter().filter(|point| point.name == catalogue::REQUESTS.documented_name) {
                let value = point.tags.get(key).map(String::as_str);
                prop_assert_eq!(value, (!matches!(expected, "" | "-" | "/")).then_some(expected));
            }
        }
    }
}
