//! Reads the API again and again, as long as what is shown moves.

use std::time::Duration;

use observer_top::{Demand, Document, History};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

use super::api::Api;

/// Time between readings of the history, which is in columns as long.
const HISTORY_INTERVAL: Duration = Duration::from_secs(5);

/// What was read.
pub(super) enum Reading {
    Document(Box<Document>),
    History(History),
    /// Nothing, and why.
    Lost(String),
}

/// Reads until nobody receives it.
pub(super) async fn poll(
    api: Api,
    interval: Duration,
    mut demand: watch::Receiver<Demand>,
    readings: mpsc::Sender<Reading>,
) {
    let mut next_history = Instant::now();
    loop {
        let next = Instant::now() + interval;
        let Demand { is_paused, wants_history } = *demand.borrow_and_update();
        if !is_paused {
            let reading = match api.document().await {
                Ok(document) => Reading::Document(Box::new(document)),
                Err(error) => Reading::Lost(error.to_string()),
            };
            if readings.send(reading).await.is_err() {
                return;
            }
        }
        if !wants_history {
            next_history = Instant::now();
        } else if !is_paused && next_history <= Instant::now() {
            next_history = Instant::now() + HISTORY_INTERVAL;
            // Whether the observer is reachable says the next document.
            if let Ok(history) = api.history().await
                && readings.send(Reading::History(history)).await.is_err()
            {
                return;
            }
        }
        tokio::select! {
            () = sleep_until(next) => {}
            changed = demand.changed() => if changed.is_err() { return },
        }
    }
}
