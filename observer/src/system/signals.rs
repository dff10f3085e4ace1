//! Waits for SIGINT and SIGTERM in a thread of its own, so that shutdown takes bounded time even if other threads block on a
//! full pipe, a hung file system or a name server.

use std::{io, process, thread, time::Duration};

use tokio::{
    runtime::Builder,
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
    time::sleep,
};

/// Exit code of a shutdown that was cut short.
const UNFINISHED: i32 = 1;

/// Returns a receiver that resolves at the first SIGINT or SIGTERM. The process exits at the second one, or after `timeout`.
///
/// # Errors
/// The thread or the signal handlers cannot be created.
pub fn shutdown(timeout: Duration) -> io::Result<oneshot::Receiver<()>> {
    let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
    let (mut interrupted, mut terminated) = {
        let _context = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let (begin, begun) = oneshot::channel();
    let wait = move || {
        runtime.block_on(async {
            any(&mut interrupted, &mut terminated).await;
            let _ = begin.send(());
            tokio::select! {
                () = any(&mut interrupted, &mut terminated) => {}
                () = sleep(timeout) => {}
            }
        });
        // Not logged: logging may be what blocks.
        process::exit(UNFINISHED);
    };
    thread::Builder::new().name("signals".to_owned()).spawn(wait)?;
    Ok(begun)
}

async fn any(one: &mut Signal, other: &mut Signal) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}
