//! The live view: a snapshot once per second while somebody looks, for everybody who does.
//!
//! A session begins with the first request, and ends [`LINGER`] after the last one when no stream is open: then nothing
//! is read or kept. Streams are bounded in number and length; a client that reads too slowly misses events.

use std::{sync::Arc, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;
use tokio::{
    sync::{
        Mutex,
        mpsc::{Receiver, Sender, channel},
    },
    time::{Instant, MissedTickBehavior, interval_at},
};

use super::snapshot_cache::Source;
use crate::{
    collect::self_usage,
    model::view::{View, history::Column},
};

/// Interval of snapshots.
const TICK: Duration = Duration::from_secs(1);
/// How long a session goes on without a stream after the last request.
const LINGER: Duration = Duration::from_mins(1);
/// Maximum number of streams.
pub(super) const MAX_STREAMS: usize = 8;
/// Length after which a stream ends; the client opens another, and is asked for its password again.
pub(super) const STREAM_LENGTH: Duration = Duration::from_mins(10);
/// Events that wait for a slow client.
const STREAM_EVENTS: usize = 4;
/// Beginning of every stream: when to return after it has ended, in milliseconds.
const STREAM_START: &[u8] = b"retry: 1000\n\n";

/// Shows a source to whoever looks.
pub(super) struct Live<S> {
    source: Arc<S>,
    node: String,
    session: Mutex<Option<Session>>,
}

/// What is kept while somebody looks.
#[derive(Default)]
struct Session {
    view: View,
    /// The last document.
    state: Bytes,
    streams: Vec<Stream>,
    looked: Option<Instant>,
}

struct Stream {
    events: Sender<Bytes>,
    since: Instant,
}

impl<S: Source> Live<S> {
    pub(super) fn new(source: Arc<S>, node: String) -> Self {
        Self { source, node, session: Mutex::default() }
    }

    /// Returns the document of what is shown now.
    pub(super) async fn state(self: &Arc<Self>) -> Bytes {
        self.look(|session| session.state.clone()).await
    }

    /// Returns the document of the last minutes.
    pub(super) async fn history(self: &Arc<Self>) -> Bytes {
        self.look(|session| json(&session.view.history().document())).await
    }

    /// Opens a stream of events; `None` if there are too many.
    pub(super) async fn subscribe(self: &Arc<Self>) -> Option<Receiver<Bytes>> {
        self.look(|session| {
            session.streams.retain(|stream| !stream.events.is_closed());
            if session.streams.len() >= MAX_STREAMS {
                return None;
            }
            let (events, receiver) = channel(STREAM_EVENTS);
            for first in [Bytes::from_static(STREAM_START), event("state", &session.state)] {
                let _ = events.try_send(first);
            }
            session.streams.push(Stream { events, since: Instant::now() });
            Some(receiver)
        })
        .await
    }

    /// Lets somebody look at the session, which begins if there is none.
    async fn look<R>(self: &Arc<Self>, look: impl FnOnce(&mut Session) -> R) -> R {
        let mut current = self.session.lock().await;
        let session = current.get_or_insert_with(|| {
            tokio::spawn(self.clone().run());
            Session::default()
        });
        session.looked = Some(Instant::now());
        // Also if who looked first went away before the first snapshot was taken.
        if session.state.is_empty() {
            self.tick(session).await;
        }
        look(session)
    }

    /// Ticks until nobody looks any more.
    async fn run(self: Arc<Self>) {
        let mut ticks = interval_at(Instant::now() + TICK, TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            ticks.tick().await;
            let mut current = self.session.lock().await;
            let Some(session) = current.as_mut() else { return };
            session.streams.retain(|stream| !stream.events.is_closed() && stream.since.elapsed() < STREAM_LENGTH);
            if !session.is_watched() {
                *current = None;
                self.source.stop_watching().await;
                self_usage::trim_heap();
                return;
            }
            self.tick(session).await;
        }
    }

    async fn tick(&self, session: &mut Session) {
        let (snapshot, findings) = self.source.watch().await;
        let column = session.view.record(&snapshot).map(|column: &Column| event("column", &json(column)));
        session.state = json(&session.view.state(&snapshot, &self.node, &findings));
        if session.streams.is_empty() {
            return;
        }
        let state = event("state", &session.state);
        for stream in &session.streams {
            // Whoever reads too slowly misses it, and gets the next one.
            for event in column.iter().chain([&state]) {
                let _ = stream.events.try_send(event.clone());
            }
        }
    }
}

impl Session {
    fn is_watched(&self) -> bool {
        !self.streams.is_empty() || self.looked.is_some_and(|looked| looked.elapsed() < LINGER)
    }
}

/// Returns a document on one line, as events need it.
fn json(document: &impl Serialize) -> Bytes {
    // Keys are strings, so that this cannot fail.
    serde_json::to_vec(document).unwrap_or_default().into()
}

/// Returns a server-sent event [HTML, section 9.2].
fn event(name: &str, data: &[u8]) -> Bytes {
    let mut event = BytesMut::with_capacity(name.len() + data.len() + 16);
    for part in [b"event: ", name.as_bytes(), b"\ndata: ", data, b"\n\n"] {
        event.put_slice(part);
    }
    event.freeze()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use serde_json::Value;

    use super::*;
    use crate::model::{
        Snapshot, fixture,
        view::{Finding, Level},
    };

    #[derive(Default)]
    struct Counted {
        taken: AtomicUsize,
        stopped: AtomicUsize,
        delay: Duration,
    }

    impl Source for Counted {
        async fn snapshot(&self, _with_cells: bool) -> Arc<Snapshot> {
            unreachable!("the view reads with cells")
        }

        async fn watch(&self) -> (Arc<Snapshot>, Vec<Finding>) {
            if !self.delay.is_zero() {
                tokio::time::sleep(self.delay).await;
            }
            let taken = self.taken.fetch_add(1, Relaxed);
            (fixture::snapshots()[taken.min(1)].clone(), vec![Finding::new(Level::Note, "a finding")])
        }

        async fn stop_watching(&self) {
            self.stopped.fetch_add(1, Relaxed);
        }
    }

    fn live() -> Arc<Live<Counted>> {
        Arc::new(Live::new(Arc::default(), "node-1".to_owned()))
    }

    fn taken(live: &Live<Counted>) -> usize {
        live.source.taken.load(Relaxed)
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_read_while_nobody_looks() {
        let live = live();
        tokio::time::sleep(10 * TICK).await;
        assert_eq!(taken(&live), 0);
        let state: Value = serde_json::from_slice(&live.state().await).unwrap();
        assert_eq!((&state["node"], taken(&live)), (&Value::from("node-1"), 1));
        assert!(state["findings"].as_array().unwrap().iter().any(|finding| finding["text"] == "a finding"));
        tokio::time::sleep(2 * LINGER).await;
        let at_end = taken(&live);
        assert!((55..=65).contains(&at_end), "{at_end}");
        assert_eq!(live.source.stopped.load(Relaxed), 1);
        tokio::time::sleep(LINGER).await;
        assert_eq!(taken(&live), at_end);
        live.history().await;
        assert_eq!(taken(&live), at_end + 1, "another session");
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_goes_on_if_who_began_it_goes_away_while_it_is_read() {
        let delay = Duration::from_millis(5);
        let live = Arc::new(Live::new(Arc::new(Counted { delay, ..Counted::default() }), "node-1".to_owned()));
        assert!(tokio::time::timeout(delay / 5, live.state()).await.is_err());
        assert_eq!(taken(&live), 0);
        let state: Value = serde_json::from_slice(&live.state().await).unwrap();
        assert_eq!(state["node"], "node-1");
        tokio::time::sleep(2 * LINGER).await;
        assert_eq!(live.source.stopped.load(Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_has_every_state_and_column_until_it_is_dropped() {
        let live = live();
        let mut stream = live.subscribe().await.unwrap();
        assert_eq!(stream.recv().await.unwrap(), STREAM_START);
        let (mut states, mut columns) = (0, 0);
        for _ in 0..25 {
            let event = String::from_utf8(stream.recv().await.unwrap().to_vec()).unwrap();
            let (head, data) = event.split_once("\ndata: ").unwrap();
            assert!(serde_json::from_str::<Value>(data.trim_end()).is_ok());
            states += usize::from(head == "event: state");
            columns += usize::from(head == "event: column");
        }
        assert_eq!(states + columns, 25);
        assert!(states >= 20, "{states} and {columns}");
        drop(stream);
        tokio::time::sleep(2 * LINGER).await;
        assert_eq!(live.source.stopped.load(Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn streams_are_bounded_in_number_length_and_events() {
        let live = live();
        let mut streams = Vec::new();
        for _ in 0..MAX_STREAMS {
            streams.push(live.subscribe().await.unwrap());
        }
        assert!(live.subscribe().await.is_none());
        streams.pop();
        let mut slow = live.subscribe().await.expect("one has ended");
        tokio::time::sleep(STREAM_LENGTH + TICK).await;
        let mut events = 0;
        while slow.recv().await.is_some() {
            events += 1;
        }
        assert_eq!(events, STREAM_EVENTS, "and it has ended");
    }
}
