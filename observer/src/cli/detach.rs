//! `observer detach`.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use tokio::signal::unix::{SignalKind, signal};

use super::{
    args::DetachArgs,
    outcome::{Failure, block_on, print},
};
use crate::persist::pin_dir::{PinDir, Removed, error::PinDirError};

/// Time between attempts while an observer uses the directory.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// Removes all that is pinned in a directory.
///
/// # Errors
/// The directory is in use, or something in it cannot be removed.
pub fn run(args: &DetachArgs) -> Result<(), Failure> {
    let deadline = args.wait.map(|wait| Instant::now() + wait.0);
    let removed = loop {
        match remove(&args.pin) {
            Err(PinDirError::Locked { .. }) if deadline.is_some_and(|deadline| Instant::now() < deadline) => {
                thread::sleep(RETRY_INTERVAL);
            }
            removed => break removed.map_err(|error| Failure::could_not_run(error.into()))?,
        }
    };
    let path = args.pin.display();
    let text = match removed {
        Some(Removed { links, maps }) => {
            format!("{path}: detached {links} programs from cgroups, removed {maps} maps\n")
        }
        None => format!("{path}: nothing is pinned\n"),
    };
    if args.stay { block_on(print_and_stay(&text))? } else { print(text.as_bytes()) }
}

fn remove(path: &Path) -> Result<Option<Removed>, PinDirError> {
    PinDir::open_existing(path).and_then(|pins| pins.map(PinDir::remove).transpose())
}

/// Prints, and waits for SIGINT or SIGTERM, which end it in order as soon as there is something to read.
async fn print_and_stay(text: &str) -> anyhow::Result<Result<(), Failure>> {
    let (mut interrupted, mut terminated) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let printed = print(text.as_bytes());
    if printed.is_ok() {
        tokio::select! {
            _ = interrupted.recv() => {}
            _ = terminated.recv() => {}
        }
    }
    Ok(printed)
}
