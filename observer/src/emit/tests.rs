//! The emitter against a receiver that follows a script.

mod hour;
mod outage;
mod receiver;
mod receivers;
mod spans;

use super::{
    wavefront::{Options, WavefrontEncoder, file::FileSink, http::HttpSink},
    *,
};
use crate::model::fixture;
use receiver::{Act, receiver};
use tokio::net::TcpListener;

const QUICK: DeliveryLimits = DeliveryLimits {
    queue: 2,
    queued_spans: 8,
    retry_timeout: Duration::from_mins(1),
    first_pause: Duration::from_millis(2),
    max_pause: Duration::from_millis(10),
    push_back: Duration::from_millis(5),
    max_push_back: Duration::from_millis(20),
};

/// The longest pause that a number of 64 bits can ask for.
const FOR_EVER: &str = "429 Too Many Requests\r\nretry-after: 18446744073709551615";

fn emitter(url: reqwest::Url, limits: DeliveryLimits) -> Emitter {
    emitter_with(url, limits, None)
}

fn emitter_with(url: reqwest::Url, limits: DeliveryLimits, disk_queue: Option<DiskQueue>) -> Emitter {
    let lines = WavefrontEncoder::new(Options::default(), "node-1").unwrap();
    let sink = HttpSink::proxy(url, Duration::from_millis(300)).unwrap();
    Emitter::start("test".to_owned(), Box::new(lines), Box::new(sink), disk_queue, limits)
}

fn losses(counts: &[(&'static str, u64)]) -> Vec<(&'static str, u64)> {
    counts.iter().copied().filter(|(_, count)| *count > 0).collect()
}

/// One report through a script: what was taken, and the stats afterwards.
async fn report(script: Vec<Act>, limits: DeliveryLimits) -> (String, EmitterStats) {
    let (url, mut taken) = receiver(script).await;
    let emitter = emitter(url, limits);
    emitter.offer(fixture::snapshots()[0].clone());
    let stats = emitter.finish(Duration::from_mins(1)).await;
    let mut text = String::new();
    while let Ok(more) = taken.try_recv() {
        text.push_str(&more);
    }
    (text, stats)
}

fn expected() -> String {
    let mut lines = WavefrontEncoder::new(Options::default(), "node-1").unwrap();
    let batches: Vec<Batch> = lines.encode(fixture::snapshots()[0].clone()).collect();
    batches.iter().map(|batch| std::str::from_utf8(&batch.body).unwrap()).collect()
}

#[tokio::test]
async fn every_transient_failure_is_tried_again_until_all_is_taken_once() {
    for (script, kind, errors) in [
        (vec![], "", 0),
        (vec![Act::Answer("406 Not Acceptable")], "push_back", 1),
        (vec![Act::Answer("429 Too Many Requests\r\nretry-after: 0")], "push_back", 1),
        (vec![Act::Answer("500 Oops"), Act::Answer("503 Later")], "server", 2),
        (vec![Act::Answer("408 Slow"), Act::Answer("407 Proxy")], "server", 2),
        (vec![Act::Answer("503 Later\r\nretry-after: 0")], "push_back", 1),
        (
            vec![Act::Answer(FOR_EVER), Act::Answer("406 No\r\nretry-after: Fri, 31 Dec 9999 23:59:59 GMT")],
            "push_back",
            2,
        ),
        (vec![Act::Answer("401 No"), Act::Answer("403 No")], "unauthorised", 2),
        (vec![Act::Answer("404 Where"), Act::Answer("301 There"), Act::Answer("418 Teapot")], "refused", 3),
        (vec![Act::Hang(None)], "timeout", 1),
        (vec![Act::Close], "connection", 1),
        (vec![Act::BrokenGzip], "", 0),
        (vec![Act::Answer("413 Large"), Act::Answer("413 Large")], "too_large", 2),
    ] {
        let (text, stats) = report(script, QUICK).await;
        let sorted = |text: &str| {
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort_unstable();
            lines
        };
        assert_eq!(sorted(&text), sorted(&expected()), "{kind}");
        assert_eq!(stats.sent, text.lines().count() as u64);
        assert_eq!(stats.errors, if errors == 0 { vec![] } else { vec![(kind, errors)] });
        assert!(losses(&stats.dropped).is_empty() && losses(&stats.pushes_dropped).is_empty());
    }
}

#[tokio::test]
async fn what_may_go_better_later_waits_on_disk_however_long_a_pause_is_asked_for() {
    let script =
        ["401 No", "403 No", "404 Where", "302 There", FOR_EVER, "429 Later\r\nretry-after: 10000000000000000000"];
    let number = script.len() as u64;
    let (url, mut taken) = receiver(script.into_iter().map(Act::Answer).collect()).await;
    let directory = tempfile::tempdir().unwrap();
    let emitter = emitter_with(url, QUICK, Some(DiskQueue::new(directory.path().to_owned(), 1 << 20)));
    emitter.offer(fixture::snapshots()[0].clone());
    let began = Instant::now();
    while emitter.stats().on_disk != Some((0, 0)) || emitter.stats().sent == 0 {
        assert!(began.elapsed() < Duration::from_mins(1), "{:?}", emitter.stats());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let stats = emitter.finish(Duration::from_mins(1)).await;
    assert_eq!(stats.errors.iter().map(|(_, count)| count).sum::<u64>(), number, "{stats:?}");
    assert!(losses(&stats.dropped).is_empty());
    assert_eq!(taken.try_recv().unwrap(), expected());
}

#[tokio::test]
async fn what_is_refused_is_dropped_and_counted() {
    let points = expected().lines().count() as u64;
    for (answer, kind) in [("400 What", "refused"), ("415 Which", "refused"), ("422 No", "refused")] {
        let (text, stats) = report(vec![Act::Answer(answer)], QUICK).await;
        assert_eq!((text.as_str(), stats.sent), ("", 0));
        assert_eq!(losses(&stats.dropped), [(kind, points)]);
    }
}

#[tokio::test]
async fn patience_ends_and_a_single_line_that_is_too_large_is_dropped() {
    let script = || (0..4_000).map(|_| Act::Answer("503 Never")).collect();
    let (_, stats) = report(script(), DeliveryLimits { retry_timeout: Duration::from_millis(30), ..QUICK }).await;
    assert_eq!(losses(&stats.dropped), [("gave_up", expected().lines().count() as u64)]);
    let script = (0..4_000).map(|_| Act::Answer("413 Large")).collect();
    let (_, stats) = report(script, QUICK).await;
    assert_eq!(losses(&stats.dropped), [("too_large", expected().lines().count() as u64)]);
}

#[tokio::test]
async fn a_full_queue_drops_the_oldest_and_the_end_drops_the_rest() {
    let (url, mut taken) = receiver((0..100).map(|_| Act::Hang(None)).collect()).await;
    let emitter = emitter(url, QUICK);
    let [first, second] = fixture::snapshots();
    emitter.offer(first.clone());
    tokio::time::sleep(Duration::from_millis(50)).await;
    let began = Instant::now();
    for snapshot in [&first, &first, &second, &second] {
        emitter.offer(snapshot.clone());
    }
    assert!(began.elapsed() < Duration::from_millis(50), "nothing waits for the receiver");
    assert_eq!(losses(&emitter.stats().pushes_dropped), [("queue_full", 2)]);
    assert_eq!(emitter.stats().queued_pushes, 2);
    let stats = emitter.finish(Duration::from_millis(50)).await;
    assert_eq!(losses(&stats.pushes_dropped), [("queue_full", 2), ("shutdown", 3)]);
    assert!(taken.try_recv().is_err());
}

#[tokio::test]
async fn nobody_there_is_a_connection_failure() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
    drop(listener);
    let emitter = emitter(url, DeliveryLimits { retry_timeout: Duration::from_millis(20), ..QUICK });
    emitter.offer(fixture::snapshots()[0].clone());
    let stats = emitter.finish(Duration::from_secs(5)).await;
    assert!(stats.errors.iter().any(|(kind, count)| *kind == "connect" && *count > 0), "{:?}", stats.errors);
}

#[tokio::test]
async fn a_file_is_appended_to_and_may_be_moved_away() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("points");
    let lines = WavefrontEncoder::new(Options::default(), "node-1").unwrap();
    let sink = FileSink::new(path.to_str().unwrap());
    let emitter = Emitter::start("file".to_owned(), Box::new(lines), Box::new(sink), None, QUICK);
    let [first, second] = fixture::snapshots();
    emitter.offer(first);
    while !path.exists() || emitter.stats().sent == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let moved = directory.path().join("points.1");
    std::fs::rename(&path, &moved).unwrap();
    emitter.offer(second);
    let stats = emitter.finish(Duration::from_secs(5)).await;
    let lines = |path| std::fs::read_to_string(path).unwrap().lines().count() as u64;
    assert_eq!(lines(moved) + lines(path), stats.sent);
}

#[tokio::test]
async fn a_file_that_cannot_be_written_costs_its_points_only() {
    let lines = WavefrontEncoder::new(Options::default(), "node-1").unwrap();
    let sink = FileSink::new("/nonexistent/points");
    let emitter = Emitter::start("file".to_owned(), Box::new(lines), Box::new(sink), None, QUICK);
    emitter.offer(fixture::snapshots()[0].clone());
    let stats = emitter.finish(Duration::from_secs(5)).await;
    assert_eq!(losses(&stats.dropped), [("write", expected().lines().count() as u64)]);
}

#[test]
fn halves_are_cut_between_lines_and_lose_nothing() {
    let batch =
        |text: &'static str| Batch { points: text.lines().count() as u64, body: text.into(), form: Form::Points };
    assert_eq!(batch("one\n").split(), None);
    for text in ["a\nb\n", "long long long\nb\n", "a\nlong long long\n", "a\nb\nc\n"] {
        let (first, second) = batch(text).split().unwrap();
        assert!(first.body.ends_with(b"\n") && first.points > 0 && second.points > 0);
        assert_eq!([&first.body[..], &second.body[..]].concat(), text.as_bytes());
        assert_eq!(first.points + second.points, text.lines().count() as u64);
    }
}

#[test]
fn pauses_grow_and_stay_within_their_bounds() {
    let limits = DeliveryLimits::default();
    let failure = Failure::Transient { kind: "server", message: String::new() };
    assert_eq!(limits.pause(0, &failure, 0.0), Duration::from_millis(500));
    assert_eq!(limits.pause(0, &failure, 1.0), Duration::from_secs(1));
    assert_eq!(limits.pause(60, &failure, 1.0), limits.max_pause);
    let asked = Failure::PushBack { after: Some(Duration::from_secs(4)) };
    assert_eq!(limits.pause(9, &asked, 0.0), Duration::from_secs(4));
    assert_eq!(limits.pause(0, &Failure::PushBack { after: None }, 0.0), limits.push_back);
    let asked = |seconds| limits.pause(0, &Failure::PushBack { after: Some(Duration::from_secs(seconds)) }, 0.0);
    assert_eq!(asked(0), limits.first_pause, "a receiver that asks for none is not asked without one");
    assert_eq!([asked(301), asked(u64::MAX)], [limits.max_push_back; 2]);
    assert!((0.0..=1.0).contains(&crate::system::jitter::jitter()));
}
