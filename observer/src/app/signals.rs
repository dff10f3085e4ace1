//! Signals that end the observer, waited for by a thread of their own: so the end comes within a bound whatever the other
//! threads wait for, be it a full pipe, a hung file system or a name server.

use std::{io, process, thread, time::Duration};

use tokio::{
    runtime::Builder,
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
    time::sleep,
};

/// Exit code of an end that was not waited for.
const UNFINISHED: i32 = 1;

/// Begins to wait for SIGINT and SIGTERM. The first one resolves what is returned; the process then ends at the second, or
/// after `bound`, if it has not ended by itself.
///
/// # Errors
/// No thread can be started, or no signal can be waited for.
pub(super) fn stop(bound: Duration) -> io::Result<oneshot::Receiver<()>> {
    let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
    let (mut interrupted, mut terminated) = {
        let _context = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let (begin, begun) = oneshot::channel();
    let watched = move || {
        runtime.block_on(async {
            any(&mut interrupted, &mut terminated).await;
            let _ = begin.send(());
            tokio::select! {
                () = any(&mut interrupted, &mut terminated) => {}
                () = sleep(bound) => {}
            }
        });
        // Nothing is logged: that may be what hangs.
        process::exit(UNFINISHED);
    };
    thread::Builder::new().name("signals".to_owned()).spawn(watched)?;
    Ok(begun)
}

async fn any(one: &mut Signal, other: &mut Signal) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}
