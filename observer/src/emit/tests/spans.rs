//! Delivery of spans: what Zipkin is sent, and how many wait for it.

use std::{fs, time::SystemTime};

use bytes::Bytes;
use observer_common::{GRPC_NONE, Leg, Protocol, SeriesKey};

use super::{
    receivers::{Answer, LIMIT, Taken, serve, start, ungzip, url},
    *,
};
use crate::{
    emit::{credentials::Credentials, http::Access, options::Compression, zipkin::Zipkin},
    model::{
        Model,
        encode::spans::zipkin::ZipkinEncoder,
        fixture::{at, key},
        span::{SpanReading, Target},
    },
};

/// As many spans of requests that differ.
fn snapshot(count: u64) -> Arc<Snapshot> {
    let key = SeriesKey { grpc_status: GRPC_NONE, ..key(1, Leg::SOURCE, "10.96.0.1:80", Protocol::HTTP, 200) };
    let request = |number| SpanReading {
        target: Target::default(),
        key,
        trace_id: 5,
        parent_id: number + 1,
        start: at(100),
        duration: Duration::from_millis(3),
        bytes: [1, 2],
    };
    let mut model = Model::new(at(0), Duration::from_mins(15));
    Arc::new(Snapshot::of_spans(SystemTime::now(), model.spans((0..count).map(request).collect())))
}

fn zipkin(url: reqwest::Url, access: Access, disk_queue: Option<DiskQueue>) -> Emitter {
    let transport = Zipkin::new(url, access, Compression::Gzip, LIMIT).unwrap();
    start(Box::new(ZipkinEncoder::new("node-1")), transport, disk_queue)
}

/// Returns the parents of the spans in a request.
fn parents(Taken(_, _, body): &Taken) -> Vec<String> {
    let spans: Vec<serde_json::Value> = serde_json::from_slice(&ungzip(body)).unwrap();
    spans.iter().map(|span| span["parentId"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn zipkin_is_sent_json_until_it_has_each_span_once() {
    let answer = |status| Answer(status, vec![], Bytes::new(), vec![]);
    let (address, mut taken) = serve(false, vec![answer(503), answer(413), answer(202)]).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "Authorization: Bearer secret\n").unwrap();
    let credentials = Credentials { headers: Some(file.path().to_owned()), ..Credentials::default() };
    let emitter = zipkin(url(address, "/api/v2/spans"), Access { credentials, ..Access::default() }, None);
    assert!(emitter.takes_spans());
    emitter.offer(snapshot(6));
    let stats = emitter.finish(Duration::from_mins(1)).await;
    let mut requests = Vec::new();
    while let Ok(request) = taken.try_recv() {
        let Taken(path, headers, _) = &request;
        assert!(path == "/api/v2/spans" && headers["content-type"] == "application/json", "{headers:?}");
        assert!(headers["content-encoding"] == "gzip" && headers["authorization"] == "Bearer secret", "{headers:?}");
        requests.push(parents(&request));
    }
    // Whole, whole again, and in halves.
    assert_eq!(requests.iter().map(Vec::len).collect::<Vec<_>>(), [6, 6, 3, 3]);
    assert_eq!([&requests[2][..], &requests[3]].concat(), requests[0]);
    assert_eq!((stats.sent, losses(&stats.dropped)), (6, vec![]));
    assert_eq!(stats.errors, [("server", 1), ("too_large", 1)]);
}

#[tokio::test]
async fn what_zipkin_refuses_is_dropped_and_counted() {
    let reason = Bytes::from("no spans");
    let (address, _taken) = serve(false, vec![Answer(400, vec![], reason, vec![])]).await;
    let emitter = zipkin(url(address, "/"), Access::default(), None);
    emitter.offer(snapshot(3));
    let stats = emitter.finish(Duration::from_mins(1)).await;
    assert_eq!((stats.sent, losses(&stats.dropped)), (0, vec![("refused", 3)]));
}

#[tokio::test]
async fn spans_wait_by_their_number_and_those_dropped_are_counted() {
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let emitter = zipkin(url(dead.local_addr().unwrap(), "/"), Access::default(), None);
    // The runtime has one thread: nothing is taken out meanwhile.
    for _ in 0..8 {
        emitter.offer(snapshot(1));
    }
    assert_eq!((emitter.stats().queued_pushes, losses(&emitter.stats().dropped)), (8, vec![]));
    emitter.offer(snapshot(3));
    assert_eq!((emitter.stats().queued_pushes, losses(&emitter.stats().dropped)), (6, vec![("queue_full", 3)]));
    // More than there is ever room for is sent all the same, alone.
    emitter.offer(snapshot(9));
    assert_eq!((emitter.stats().queued_pushes, losses(&emitter.stats().dropped)), (1, vec![("queue_full", 11)]));
}

#[tokio::test]
async fn spans_wait_on_disk_for_the_next_run() {
    let directory = tempfile::tempdir().unwrap();
    let place = || Some(DiskQueue::new(directory.path().join("zipkin"), 1 << 20));
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let emitter = zipkin(url(dead, "/"), Access::default(), place());
    emitter.offer(snapshot(5));
    let stats = emitter.finish(Duration::from_secs(5)).await;
    assert_eq!((stats.sent, stats.on_disk.unwrap().0), (0, 5));
    let (address, mut taken) = serve(false, vec![Answer(202, vec![], Bytes::new(), vec![])]).await;
    let emitter = zipkin(url(address, "/"), Access::default(), place());
    let request = taken.recv().await.unwrap();
    assert_eq!(parents(&request).len(), 5);
    let began = Instant::now();
    while emitter.stats().on_disk != Some((0, 0)) {
        assert!(began.elapsed() < Duration::from_mins(1), "{:?}", emitter.stats());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
