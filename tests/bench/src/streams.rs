//! Kernel memory of a thousand connections with a hundred open calls each, and whether each call is counted.

use std::{
    fmt, io,
    process::{Command, Stdio},
    thread::{self, sleep},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use harness::net::finish;

use crate::{
    load,
    memory::kernel_maps,
    protocol::Protocol,
    report::{Row, Target},
    spread::Spread,
    testbed::{Observed, SIDES, Side, Testbed},
};

const CONNECTIONS: u32 = 1_000;
const STREAMS: u32 = 100;
/// grpc-go answers a call after this many milliseconds, which is longer than it takes to send them all.
const HELD: &str = "delay-ms: 10000";
/// Number of [`QUIET`] intervals without a further call after which no more are expected.
const QUIET_LOOKS: u32 = 5;
/// Time without a further count after which no more is expected.
const QUIET: Duration = Duration::from_secs(1);

/// Measures one observed sidecar after the other.
pub(crate) fn held() -> Result<Vec<Row>> {
    open_enough_files()?;
    SIDES.into_iter().map(hold).collect::<Result<Vec<_>>>().map(|rows| rows.into_iter().flatten().collect())
}

fn hold(side: Side) -> Result<Vec<Row>> {
    let mut testbed = Testbed::new(Protocol::Grpc)?;
    testbed.observe(side.observed)?;
    let (counted_before, maps_before) = (settled_count(&testbed)?, kernel_maps(testbed.observer()?.pid())?);
    let mut h2load = asking(&testbed)?;
    let all = CONNECTIONS * STREAMS;
    let (said, most) = thread::scope(|scope| {
        let running = scope.spawn(move || finish(&mut h2load, ""));
        let mut most = Open::default();
        while !running.is_finished() {
            let open = Open::now(&testbed, side, maps_before)?;
            if (open.calls, open.in_maps) > (most.calls, most.in_maps) {
                most = open;
            }
            sleep(Duration::from_millis(100));
        }
        Ok::<_, anyhow::Error>((running.join().expect("it does not panic")?, most))
    })?;
    let answered = load::multiplexed_answers(&said)?.requests;
    ensure!(answered == f64::from(all), "h2load had {answered} answers instead of {all}");
    let counted = settled_count(&testbed)? - counted_before;
    let health = testbed.observer()?.health()?;
    let title = format!("calls not counted, 1,000 connections × 100 calls, {}'s sidecar", side.name);
    let mut rows = vec![
        Row::new(title, Target::AtMost(0.0), "", Spread::of([(answered - counted).abs()]))
            .note(format!("h2load: {answered} calls answered; the observer: {counted} with the status OK"))
            .note(most.to_string())
            .note(format!("the observer of itself: {health}")),
    ];
    if side.observed == Observed::Client {
        rows.push(most.a_connection());
    }
    Ok(rows)
}

/// Returns the h2load command that opens all of them and waits.
pub(crate) fn asking(testbed: &Testbed) -> Result<Command> {
    let mut h2load = testbed.asking()?;
    let all = CONNECTIONS * STREAMS;
    h2load.args(["-t", "1", "-c", &CONNECTIONS.to_string(), "-m", &STREAMS.to_string(), "-n", &all.to_string()]);
    h2load.args(["-H", HELD]).arg(testbed.url());
    h2load.stdin(Stdio::null()).stdout(Stdio::null());
    Ok(h2load)
}

/// Waits until the sidecar has all of them open, or no more come; returns their number.
pub(crate) fn most_open(testbed: &Testbed, side: Side) -> Result<u64> {
    let (mut most, mut looks) = (0, 0);
    while looks < QUIET_LOOKS {
        sleep(QUIET);
        let now = testbed.sidecar(side).stat(&format!("http.{}.downstream_rq_active", side.direction))?;
        if now >= u64::from(CONNECTIONS * STREAMS) {
            return Ok(now);
        }
        looks = if now > most { 0 } else { looks + 1 };
        most = most.max(now);
    }
    Ok(most)
}

/// Waits until the count of answered requests is stable, and returns it.
fn settled_count(testbed: &Testbed) -> Result<f64> {
    let mut count = testbed.counted()?;
    loop {
        sleep(QUIET);
        let now = testbed.counted()?;
        if now.total_cmp(&count).is_eq() {
            return Ok(now);
        }
        count = now;
    }
}

/// Raises the limit of open files for h2load and the sidecars to the hard limit.
fn open_enough_files() -> Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls get a pointer to a live value of the right type.
    let done = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 && {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) == 0
        }
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()).context("the limit of open files") }
}

/// Open calls and connections on a sidecar's leg, and their memory.
#[derive(Default)]
struct Open {
    calls: u64,
    connections: u64,
    /// Bytes of the connections' socket storage.
    with_sockets: f64,
    /// Bytes in maps.
    in_maps: f64,
}

impl Open {
    fn now(testbed: &Testbed, side: Side, maps_before: f64) -> Result<Self> {
        let calls = testbed.sidecar(side).stat(&format!("http.{}.downstream_rq_active", side.direction))?;
        let leg = match side.observed {
            Observed::Server => "src 127.0.0.6",
            Observed::Client | Observed::Both => "sport = :15001",
        };
        let mut ss = testbed.sidecar(side).workload().command("ss")?;
        let sockets = finish(ss.args(["-tnmOH", "state", "established", leg]), "")?;
        let kept: Vec<f64> = sockets.lines().filter_map(option_memory).collect();
        let in_maps = kernel_maps(testbed.observer()?.pid())? - maps_before;
        Ok(Self { calls, connections: kept.len() as u64, with_sockets: kept.iter().sum(), in_maps })
    }

    fn a_connection(&self) -> Row {
        #[expect(clippy::cast_precision_loss, reason = "thousands")]
        let each = (self.with_sockets + self.in_maps) / self.connections as f64 / 1024.0;
        let title = "kernel memory a connection with 100 open calls, client's sidecar";
        Row::new(title, Target::Stated, "KiB", Spread::of([each])).note(format!(
            "by the kernel's own account: the sockets' option memory, as `ss -m` shows it, and the growth of the observer's \
             maps; the allocator rounds up what it gives; {self}"
        ))
    }
}

impl fmt::Display for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { calls, connections, with_sockets, in_maps } = self;
        let [with_sockets, in_maps] = [with_sockets, in_maps].map(|bytes| bytes / 1e6);
        write!(
            f,
            "{calls} calls open at once on {connections} connections: {with_sockets:.1} MB with their sockets, {in_maps:.1} MB \
             in maps"
        )
    }
}

/// Parses a line of `ss -m`: `skmem:(r0,…,o5520,…)`.
fn option_memory(line: &str) -> Option<f64> {
    let (_, memory) = line.split_once("skmem:(")?;
    memory.split(',').find_map(|part| part.strip_prefix('o')?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_option_memory() {
        let line = "0 0 10.77.0.10:15001 10.77.0.10:40000 skmem:(r0,rb131072,t0,tb2626560,f0,w0,o5488,bl0,d0)";
        assert_eq!(option_memory(line), Some(5488.0));
        assert_eq!(option_memory("0 0 10.77.0.10:15001"), None);
    }
}
