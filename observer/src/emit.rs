//! Emitters: each has its own task and a bounded queue of reports, so that no receiver holds up collection.
//!
//! What a receiver does not take is tried again with jittered, growing pauses for a bounded time. A queue that is full
//! drops its oldest report; figures are cumulative, so the next report still holds all counts. Every drop is counted.

pub mod prometheus;
pub mod wavefront;

use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    hash::{BuildHasher, Hasher, RandomState},
    pin::Pin,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{sync::Notify, task::JoinHandle};

use crate::model::{EmitterFigures, Snapshot};

/// Where reports go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `wavefront+file:PATH`: lines appended to a file, or to standard output for `-`.
    WavefrontFile(String),
    /// `wavefront+http://HOST:PORT[/PATH]`: lines posted to a Wavefront proxy.
    WavefrontHttp(reqwest::Url),
}

/// A target that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot emit to {target:?}: {problem}; use wavefront+file:PATH (- for standard output) or wavefront+http://HOST:PORT"
)]
pub struct TargetError {
    target: String,
    problem: String,
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let error = |problem: String| TargetError { target: text.to_owned(), problem };
        if let Some(path) = text.strip_prefix("wavefront+file:") {
            return match path {
                "" => Err(error("the path is missing".to_owned())),
                _ => Ok(Self::WavefrontFile(path.to_owned())),
            };
        }
        if let Some(rest) = text.strip_prefix("wavefront+http://") {
            let url = reqwest::Url::parse(&format!("http://{rest}")).map_err(|cause| error(cause.to_string()))?;
            if !url.username().is_empty() || url.password().is_some() {
                return Err(error("credentials do not belong on a command line".to_owned()));
            }
            return Ok(Self::WavefrontHttp(url));
        }
        let scheme = text.split_once(':').map_or(text, |(scheme, _)| scheme);
        Err(error(format!("this version has no emitter {scheme:?}")))
    }
}

/// Part of a report, as one send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Lines, each ended by a line feed.
    pub text: Bytes,
    /// Points, one a line.
    pub points: u64,
}

impl Batch {
    /// Two halves, cut between lines; `None` if there is only one.
    fn split(&self) -> Option<(Self, Self)> {
        let middle = self.text.len() / 2;
        let before = self.text[..middle].iter().rposition(|byte| *byte == b'\n');
        let after = || self.text[middle..].iter().position(|byte| *byte == b'\n').map(|at| middle + at);
        let cut = before.or_else(after)? + 1;
        let half = |text: Bytes| {
            let points = text.iter().filter(|byte| **byte == b'\n').count() as u64;
            Self { text, points }
        };
        (cut < self.text.len()).then(|| (half(self.text.slice(..cut)), half(self.text.slice(cut..))))
    }
}

/// Turns reports into batches.
pub trait Encoder: Send + 'static {
    /// The batches of one report, made as they are asked for.
    fn encode(&mut self, snapshot: Arc<Snapshot>) -> Box<dyn Iterator<Item = Batch> + Send + '_>;

    /// Points that broke the format's rules so far, by reason.
    fn rejected(&self) -> Vec<(&'static str, u64)>;
}

/// A send in progress.
pub type Sending<'a> = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>>;

/// Hands batches over.
pub trait Transport: Send + 'static {
    /// Sends one batch; the receiver has it when this returns `Ok`.
    fn send<'a>(&'a mut self, batch: &'a Batch) -> Sending<'a>;
}

/// Why a batch was not taken, which decides what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Too large: halves are tried.
    TooLarge,
    /// Never taken as it is: dropped.
    Refused {
        /// Label value it is counted under.
        kind: &'static str,
        /// For people.
        message: String,
    },
    /// The receiver asks for a pause.
    PushBack {
        /// How long, if it says so.
        after: Option<Duration>,
    },
    /// May go better next time.
    Transient {
        /// Label value it is counted under.
        kind: &'static str,
        /// For people.
        message: String,
    },
}

/// Bounds of an emitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Reports that wait at most.
    pub queue: usize,
    /// How long one batch is tried.
    pub patience: Duration,
    /// First pause between two tries; each further one is twice as long.
    pub first_pause: Duration,
    /// Longest pause between two tries.
    pub longest_pause: Duration,
    /// Pause that a receiver's push-back means if it names none.
    pub push_back: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queue: 4,
            patience: Duration::from_secs(120),
            first_pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(30),
            push_back: Duration::from_secs(30),
        }
    }
}

impl Limits {
    /// Pause after failure number `attempt` (from 0), `chance` in 0 to 1 spreading many emitters over time.
    fn pause(&self, attempt: u32, failure: &Failure, chance: f64) -> Duration {
        match failure {
            Failure::PushBack { after } => after.unwrap_or(self.push_back).mul_f64(1.0 + chance / 4.0),
            _ => {
                let grown = self.first_pause.saturating_mul(1 << attempt.min(16)).min(self.longest_pause);
                grown.mul_f64(0.5 + chance / 2.0)
            }
        }
    }
}

/// A running emitter.
#[derive(Debug)]
pub struct Emitter {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Emitter {
    /// Starts an emitter in a task of its own. `name` is its label value, without secrets.
    #[must_use]
    pub fn start(name: String, encoder: Box<dyn Encoder>, transport: Box<dyn Transport>, limits: Limits) -> Self {
        let state = State {
            // Known ways to lose something start at 0, so that the first loss is seen as growth.
            dropped: [("gave_up", 0)].into(),
            reports_dropped: [("queue_full", 0), ("shutdown", 0)].into(),
            figures: EmitterFigures { name, rejected: encoder.rejected(), ..EmitterFigures::default() },
            ..State::default()
        };
        let shared = Arc::new(Shared { limits, state: Mutex::new(state), changed: Notify::new() });
        let worker = Worker { shared: shared.clone(), encoder, transport, failing: false };
        Self { shared, task: tokio::spawn(worker.run()) }
    }

    /// Queues a report; drops the oldest that waits if there are too many. Never blocks.
    pub fn offer(&self, snapshot: Arc<Snapshot>) {
        let mut state = self.shared.state();
        if state.queue.len() >= self.shared.limits.queue {
            state.queue.pop_front();
            *state.reports_dropped.entry("queue_full").or_default() += 1;
        }
        state.queue.push_back(snapshot);
        drop(state);
        self.shared.changed.notify_one();
    }

    /// How it fares.
    #[must_use]
    pub fn figures(&self) -> EmitterFigures {
        let state = self.shared.state();
        let list = |counts: &BTreeMap<&'static str, u64>| counts.iter().map(|(key, value)| (*key, *value)).collect();
        EmitterFigures {
            queued_reports: state.queue.len() as u64,
            dropped: list(&state.dropped),
            reports_dropped: list(&state.reports_dropped),
            errors: list(&state.errors),
            ..state.figures.clone()
        }
    }

    /// Sends what waits and ends, within `limit`; what is left then is dropped, counted and said. Returns the last figures.
    pub async fn finish(mut self, limit: Duration) -> EmitterFigures {
        self.shared.state().closing = true;
        self.shared.changed.notify_one();
        if tokio::time::timeout(limit, &mut self.task).await.is_err() {
            self.task.abort();
            let mut state = self.shared.state();
            // The report in hand counts too.
            let lost = state.queue.len() as u64 + 1;
            state.queue.clear();
            *state.reports_dropped.entry("shutdown").or_default() += lost;
            tracing::warn!("emitter {}: {lost} report(s) could not be sent before the end", state.figures.name);
        }
        self.figures()
    }
}

#[derive(Debug)]
struct Shared {
    limits: Limits,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Arc<Snapshot>>,
    closing: bool,
    figures: EmitterFigures,
    dropped: BTreeMap<&'static str, u64>,
    reports_dropped: BTreeMap<&'static str, u64>,
    errors: BTreeMap<&'static str, u64>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Counters stay usable even if a thread panicked while it held them.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Worker {
    shared: Arc<Shared>,
    encoder: Box<dyn Encoder>,
    transport: Box<dyn Transport>,
    /// Whether the last send failed: only changes are logged.
    failing: bool,
}

impl Worker {
    async fn run(mut self) {
        while let Some(snapshot) = self.shared.next().await {
            let Self { shared, encoder, transport, failing } = &mut self;
            for batch in encoder.encode(snapshot) {
                deliver(shared, transport.as_mut(), batch, failing).await;
            }
            shared.state().figures.rejected = encoder.rejected();
        }
    }
}

/// Sends one batch, in halves if need be, until it is taken, refused or the patience ends.
async fn deliver(shared: &Shared, transport: &mut dyn Transport, batch: Batch, failing: &mut bool) {
    let mut waiting = vec![batch];
    let (began, mut attempt) = (Instant::now(), 0);
    while let Some(batch) = waiting.pop() {
        let Err(failure) = transport.send(&batch).await else {
            shared.state().figures.sent += batch.points;
            if std::mem::take(failing) {
                tracing::info!("emitter {}: sending again", shared.state().figures.name);
            }
            attempt = 0;
            continue;
        };
        let (kind, message) = failure.said();
        {
            let mut state = shared.state();
            *state.errors.entry(kind).or_default() += 1;
            if !std::mem::replace(failing, true) {
                tracing::warn!("emitter {}: {message}", state.figures.name);
            }
        }
        match failure {
            Failure::TooLarge => match batch.split() {
                Some((first, second)) => waiting.extend([second, first]),
                None => shared.drop_points(kind, &batch),
            },
            Failure::Refused { .. } => shared.drop_points(kind, &batch),
            Failure::PushBack { .. } | Failure::Transient { .. } => {
                let pause = shared.limits.pause(attempt, &failure, chance());
                if began.elapsed() + pause > shared.limits.patience {
                    shared.drop_points("gave_up", &batch);
                    continue;
                }
                attempt += 1;
                tokio::time::sleep(pause).await;
                waiting.push(batch);
            }
        }
    }
}

impl Shared {
    /// The next report; `None` when the emitter is to end and nothing waits.
    async fn next(&self) -> Option<Arc<Snapshot>> {
        loop {
            let (snapshot, closing) = {
                let mut state = self.state();
                (state.queue.pop_front(), state.closing)
            };
            match snapshot {
                Some(snapshot) => return Some(snapshot),
                None if closing => return None,
                None => self.changed.notified().await,
            }
        }
    }

    fn drop_points(&self, reason: &'static str, batch: &Batch) {
        *self.state().dropped.entry(reason).or_default() += batch.points;
    }
}

impl Failure {
    fn said(&self) -> (&'static str, String) {
        match self {
            Self::TooLarge => ("too_large", "the receiver finds the batch too large; halves are tried".to_owned()),
            Self::PushBack { .. } => ("push_back", "the receiver asks to send less; pausing".to_owned()),
            Self::Refused { kind, message } => (kind, format!("{message}; these points are dropped")),
            Self::Transient { kind, message } => (kind, format!("{message}; trying again")),
        }
    }
}

/// A number in 0 to 1 that differs between processes and calls.
#[expect(clippy::cast_precision_loss, reason = "a chance needs no more than 53 bits")]
fn chance() -> f64 {
    RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64
}

#[cfg(test)]
mod tests {
    use super::{
        wavefront::{FileSink, HttpSink, Lines, Names},
        *,
    };
    use crate::model::fixture;
    use std::io::Read;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        sync::mpsc,
    };

    /// What the scripted receiver does with one request.
    enum Act {
        Answer(&'static str),
        Hang,
        Close,
    }

    /// A receiver that follows a script, then takes everything; it hands on what it took.
    async fn receiver(script: Vec<Act>) -> (reqwest::Url, mpsc::UnboundedReceiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
        let (taken, receiver) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut script = script.into_iter();
            let mut hanging = Vec::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                let body = loop {
                    if stream.read_buf(&mut request).await.unwrap() == 0 {
                        break None;
                    }
                    let text = String::from_utf8_lossy(&request).to_lowercase();
                    let Some(head) = request.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
                    assert!(text.starts_with("post / http/1.1") && text.contains("content-encoding: gzip"));
                    let (_, length) = text.split_once("content-length: ").unwrap();
                    let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
                    if request.len() >= head + 4 + length {
                        break Some(request[head + 4..head + 4 + length].to_vec());
                    }
                };
                let Some(body) = body else { continue };
                let answer = match script.next().unwrap_or(Act::Answer("202 Accepted")) {
                    Act::Hang => {
                        hanging.push(stream);
                        continue;
                    }
                    Act::Close => continue,
                    Act::Answer(answer) => answer,
                };
                if answer.starts_with("202") {
                    let mut text = String::new();
                    flate2::read::GzDecoder::new(body.as_slice()).read_to_string(&mut text).unwrap();
                    let _ = taken.send(text);
                }
                let answer = format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        (url, receiver)
    }

    const QUICK: Limits = Limits {
        queue: 2,
        patience: Duration::from_secs(5),
        first_pause: Duration::from_millis(2),
        longest_pause: Duration::from_millis(10),
        push_back: Duration::from_millis(5),
    };

    fn emitter(url: reqwest::Url, limits: Limits) -> Emitter {
        let lines = Lines::new(Names::Documented, "node-1").unwrap();
        let sink = HttpSink::new(url, Duration::from_millis(300)).unwrap();
        Emitter::start("test".to_owned(), Box::new(lines), Box::new(sink), limits)
    }

    fn losses(counts: &[(&'static str, u64)]) -> Vec<(&'static str, u64)> {
        counts.iter().copied().filter(|(_, count)| *count > 0).collect()
    }

    /// One report through a script: what was taken, and the figures afterwards.
    async fn report(script: Vec<Act>, limits: Limits) -> (String, EmitterFigures) {
        let (url, mut taken) = receiver(script).await;
        let emitter = emitter(url, limits);
        emitter.offer(fixture::snapshots()[0].clone());
        let figures = emitter.finish(Duration::from_secs(10)).await;
        let mut text = String::new();
        while let Ok(more) = taken.try_recv() {
            text.push_str(&more);
        }
        (text, figures)
    }

    fn expected() -> String {
        let mut lines = Lines::new(Names::Documented, "node-1").unwrap();
        let batches: Vec<Batch> = lines.encode(fixture::snapshots()[0].clone()).collect();
        batches.iter().map(|batch| std::str::from_utf8(&batch.text).unwrap()).collect()
    }

    #[tokio::test]
    async fn every_transient_failure_is_tried_again_until_all_is_taken_once() {
        for (script, kind, errors) in [
            (vec![], "", 0),
            (vec![Act::Answer("406 Not Acceptable")], "push_back", 1),
            (vec![Act::Answer("429 Too Many Requests\r\nretry-after: 0")], "push_back", 1),
            (vec![Act::Answer("500 Oops"), Act::Answer("503 Later")], "server", 2),
            (vec![Act::Answer("408 Slow"), Act::Answer("407 Proxy")], "server", 2),
            (vec![Act::Hang], "timeout", 1),
            (vec![Act::Close], "connection", 1),
            (vec![Act::Answer("413 Large"), Act::Answer("413 Large")], "too_large", 2),
        ] {
            let (text, figures) = report(script, QUICK).await;
            let sorted = |text: &str| {
                let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
                lines.sort_unstable();
                lines
            };
            assert_eq!(sorted(&text), sorted(&expected()), "{kind}");
            assert_eq!(figures.sent, text.lines().count() as u64);
            assert_eq!(figures.errors, if errors == 0 { vec![] } else { vec![(kind, errors)] });
            assert!(losses(&figures.dropped).is_empty() && losses(&figures.reports_dropped).is_empty());
        }
    }

    #[tokio::test]
    async fn what_is_refused_is_dropped_and_counted() {
        let points = expected().lines().count() as u64;
        for (answer, kind) in
            [("401 No", "unauthorised"), ("403 No", "unauthorised"), ("400 What", "refused"), ("301 There", "refused")]
        {
            let (text, figures) = report(vec![Act::Answer(answer)], QUICK).await;
            assert_eq!((text.as_str(), figures.sent), ("", 0));
            assert_eq!(losses(&figures.dropped), [(kind, points)]);
        }
    }

    #[tokio::test]
    async fn patience_ends_and_a_single_line_that_is_too_large_is_dropped() {
        let script = || (0..4_000).map(|_| Act::Answer("503 Never")).collect();
        let (_, figures) = report(script(), Limits { patience: Duration::from_millis(30), ..QUICK }).await;
        assert_eq!(losses(&figures.dropped), [("gave_up", expected().lines().count() as u64)]);
        let script = (0..4_000).map(|_| Act::Answer("413 Large")).collect();
        let (_, figures) = report(script, QUICK).await;
        assert_eq!(losses(&figures.dropped), [("too_large", expected().lines().count() as u64)]);
    }

    #[tokio::test]
    async fn a_full_queue_drops_the_oldest_and_the_end_drops_the_rest() {
        let (url, mut taken) = receiver((0..100).map(|_| Act::Hang).collect()).await;
        let emitter = emitter(url, QUICK);
        let [first, second] = fixture::snapshots();
        emitter.offer(first.clone());
        tokio::time::sleep(Duration::from_millis(50)).await;
        let began = Instant::now();
        for snapshot in [&first, &first, &second, &second] {
            emitter.offer(snapshot.clone());
        }
        assert!(began.elapsed() < Duration::from_millis(50), "nothing waits for the receiver");
        assert_eq!(losses(&emitter.figures().reports_dropped), [("queue_full", 2)]);
        assert_eq!(emitter.figures().queued_reports, 2);
        let figures = emitter.finish(Duration::from_millis(50)).await;
        assert_eq!(losses(&figures.reports_dropped), [("queue_full", 2), ("shutdown", 3)]);
        assert!(taken.try_recv().is_err());
    }

    #[tokio::test]
    async fn nobody_there_is_a_connection_failure() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
        drop(listener);
        let emitter = emitter(url, Limits { patience: Duration::from_millis(20), ..QUICK });
        emitter.offer(fixture::snapshots()[0].clone());
        let figures = emitter.finish(Duration::from_secs(5)).await;
        assert!(figures.errors.iter().any(|(kind, count)| *kind == "connect" && *count > 0), "{:?}", figures.errors);
    }

    #[tokio::test]
    async fn a_file_is_appended_to_and_may_be_moved_away() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("points");
        let lines = Lines::new(Names::Documented, "node-1").unwrap();
        let sink = FileSink::new(path.to_str().unwrap());
        let emitter = Emitter::start("file".to_owned(), Box::new(lines), Box::new(sink), QUICK);
        let [first, second] = fixture::snapshots();
        emitter.offer(first);
        while !path.exists() || emitter.figures().sent == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let moved = directory.path().join("points.1");
        std::fs::rename(&path, &moved).unwrap();
        emitter.offer(second);
        let figures = emitter.finish(Duration::from_secs(5)).await;
        let lines = |path| std::fs::read_to_string(path).unwrap().lines().count() as u64;
        assert_eq!(lines(moved) + lines(path), figures.sent);
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_written_costs_its_points_only() {
        let lines = Lines::new(Names::Documented, "node-1").unwrap();
        let sink = FileSink::new("/nonexistent/points");
        let emitter = Emitter::start("file".to_owned(), Box::new(lines), Box::new(sink), QUICK);
        emitter.offer(fixture::snapshots()[0].clone());
        let figures = emitter.finish(Duration::from_secs(5)).await;
        assert_eq!(losses(&figures.dropped), [("write", expected().lines().count() as u64)]);
    }

    #[test]
    fn targets_are_read_and_wrong_ones_explained() {
        let read = |text: &str| text.parse::<Target>();
        assert_eq!(read("wavefront+file:-"), Ok(Target::WavefrontFile("-".to_owned())));
        assert_eq!(read("wavefront+file:/tmp/x y"), Ok(Target::WavefrontFile("/tmp/x y".to_owned())));
        let url = "http://proxy:2878/report".parse().unwrap();
        assert_eq!(read("wavefront+http://proxy:2878/report"), Ok(Target::WavefrontHttp(url)));
        for (wrong, said) in [
            ("", "no emitter"),
            ("wavefront+file:", "path is missing"),
            ("wavefront+http://", "empty host"),
            ("wavefront+http://user:secret@proxy", "credentials"),
            ("statsd://x", "no emitter \"statsd\""),
        ] {
            let error = read(wrong).unwrap_err().to_string();
            assert!(error.contains(said) && error.contains("use wavefront+file:"), "{error}");
        }
    }

    #[test]
    fn halves_are_cut_between_lines_and_lose_nothing() {
        let batch = |text: &'static str| Batch { points: text.lines().count() as u64, text: text.into() };
        assert_eq!(batch("one\n").split(), None);
        for text in ["a\nb\n", "long long long\nb\n", "a\nlong long long\n", "a\nb\nc\n"] {
            let (first, second) = batch(text).split().unwrap();
            assert!(first.text.ends_with(b"\n") && first.points > 0 && second.points > 0);
            assert_eq!([&first.text[..], &second.text[..]].concat(), text.as_bytes());
            assert_eq!(first.points + second.points, text.lines().count() as u64);
        }
    }

    #[test]
    fn pauses_grow_and_stay_within_their_bounds() {
        let limits = Limits::default();
        let failure = Failure::Transient { kind: "server", message: String::new() };
        assert_eq!(limits.pause(0, &failure, 0.0), Duration::from_millis(500));
        assert_eq!(limits.pause(0, &failure, 1.0), Duration::from_secs(1));
        assert_eq!(limits.pause(60, &failure, 1.0), limits.longest_pause);
        let asked = Failure::PushBack { after: Some(Duration::from_secs(4)) };
        assert_eq!(limits.pause(9, &asked, 0.0), Duration::from_secs(4));
        assert_eq!(limits.pause(0, &Failure::PushBack { after: None }, 0.0), limits.push_back);
        assert!((0.0..=1.0).contains(&chance()));
    }
}
