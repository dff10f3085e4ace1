//! The terminal: shows the table, follows keys, and leaves everything as it was.

use std::{
    io, thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use observer_top::{App, Flow};
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};

use super::{
    api::Api,
    own_observer::OwnObserver,
    poll::{Reading, poll},
};

/// Events that wait to be followed.
const EVENTS: usize = 64;

/// Shows the table until the user quits or a signal ends it.
pub(super) async fn show(mut app: App, api: Api, interval: Duration, mut observer: Option<OwnObserver>) -> Result<()> {
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    let mut hung_up = signal(SignalKind::hangup())?;
    let mut screen = Screen::enter().context("the terminal cannot be used; `observer top --once` needs none")?;
    let mut events = read_events();
    let (demand, demanded) = watch::channel(app.demand());
    let (sender, mut readings) = mpsc::channel(1);
    tokio::spawn(poll(api, interval, demanded, sender));
    loop {
        screen.0.draw(|frame| app.draw(frame)).context("the terminal cannot be written")?;
        tokio::select! {
            event = events.recv() => match event {
                Some(Ok(Event::Key(key))) => if app.on_key(key) == Flow::Quit { return Ok(()) },
                // Whatever else happens to a terminal, e.g. its size changes, it is drawn anew.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error).context("the terminal cannot be read"),
                None => return Ok(()),
            },
            Some(reading) = readings.recv() => match reading {
                Reading::Document(document) => app.on_document(*document),
                Reading::History(history) => app.on_history(history),
                Reading::Lost(reason) => {
                    observer.as_mut().map_or(Ok(()), OwnObserver::check)?;
                    app.on_lost(now(), &reason);
                }
            },
            _ = interrupted.recv() => return Ok(()),
            _ = terminated.recv() => return Ok(()),
            _ = hung_up.recv() => return Ok(()),
        }
        demand.send_if_modified(|known| std::mem::replace(known, app.demand()) != app.demand());
    }
}

/// The terminal in another mode; as it was when dropped, and before a panic ends the process.
struct Screen(DefaultTerminal);

impl Screen {
    fn enter() -> io::Result<Self> {
        ratatui::try_init().map(Self).inspect_err(|_| ratatui::restore())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Reads events on a thread that ends with the process.
fn read_events() -> mpsc::Receiver<io::Result<Event>> {
    let (sender, receiver) = mpsc::channel(EVENTS);
    thread::spawn(move || {
        loop {
            let event = event::read();
            let is_last = event.is_err();
            if sender.blocking_send(event).is_err() || is_last {
                return;
            }
        }
    });
    receiver
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
