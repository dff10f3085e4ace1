//! Delay of kernel collection while scrapes of control planes hang.

use std::{
    net::{Ipv4Addr, TcpListener},
    thread::{self, sleep},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use harness::{mesh::Mesh, observer::Observer};

use crate::{
    report::{Row, Target},
    spread::Spread,
    testbed::start_observer,
};

const HANGING: usize = 3;
/// The shortest interval, for as many collections as possible.
const INTERVAL: &str = "100ms";
const WINDOW: Duration = Duration::from_secs(20);
const WINDOWS: usize = 4;
const TICKS: &str = "mesh_observer_collection_delay_seconds_bucket";
const SCRAPES: &str = "mesh_observer_control_plane_scrapes_total";

/// Measures the 99th percentile of the observer's own collection delay, beside that of an observer without targets.
pub(crate) fn lateness() -> Result<Vec<Row>> {
    let mesh = Mesh::new()?;
    let urls = (0..HANGING).map(|_| hang()).collect::<Result<Vec<_>>>()?;
    let executable = mesh.executable();
    let only = ["--sidecar-exe", executable.as_str(), "--interval", INTERVAL, "--scrape-interval", INTERVAL];
    let pages: Vec<&str> = urls.iter().flat_map(|url| ["--control-plane", url]).collect();
    let waiting = start_observer(&mesh, "", 0, &[only.as_slice(), &pages].concat())?;
    let idle = start_observer(&mesh, "", 0, &only)?;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..WINDOWS {
        let before = [Ticks::of(&waiting)?, Ticks::of(&idle)?];
        sleep(WINDOW);
        with.push(Ticks::of(&waiting)?.percentile_since(&before[0])?);
        without.push(Ticks::of(&idle)?.percentile_since(&before[1])?);
    }
    let timeouts = waiting.own(SCRAPES, &[("outcome", "timeout")])?;
    ensure!(timeouts > 0.0 && waiting.own(SCRAPES, &[("outcome", "ok")])? == 0.0, "the pages do not hang");
    waiting.stop()?;
    idle.stop()?;
    let title = format!("lateness of the kernel's reading, p99, {HANGING} pages hang");
    Ok(vec![
        Row::new(title, Target::AtMost(50.0), "ms", Spread::of(with))
            .note(format!(
                "upper bound of the bucket that has the 99th percentile, every {INTERVAL} for {:.0} s; {timeouts} scrapes timed out",
                WINDOW.as_secs_f64()
            ))
            .note(format!("an observer without pages, at the same time: {} ms", Spread::of(without))),
    ])
}

/// Accepts connections and never answers, until the program ends.
fn hang() -> Result<String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on 127.0.0.1")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        // They stay open until the client closes them.
        let _open: Vec<_> = listener.incoming().collect();
    });
    Ok(format!("http://{address}"))
}

/// Upper bounds in milliseconds, and cumulative counts.
struct Ticks(Vec<(f64, f64)>);

impl Ticks {
    fn of(observer: &Observer) -> Result<Self> {
        let page = observer.scrape()?;
        let buckets = page.samples(TICKS).map(|sample| {
            let le = sample.label("le");
            let bound = if le == "+Inf" { f64::INFINITY } else { le.parse().with_context(|| le.to_owned())? };
            Ok((bound * 1e3, sample.value))
        });
        buckets.collect::<Result<_>>().map(Self)
    }

    fn percentile_since(&self, earlier: &Self) -> Result<f64> {
        let before = |bound: f64| earlier.0.iter().find(|own| own.0 == bound).map_or(0.0, |own| own.1);
        let grown: Vec<(f64, f64)> = self.0.iter().map(|(bound, count)| (*bound, count - before(*bound))).collect();
        let all = grown.last().context("no tick is counted")?.1;
        ensure!(all >= 100.0, "only {all} ticks in {WINDOW:?}");
        let found = grown.iter().find(|(_, count)| *count >= all * 0.99);
        found.map(|(bound, _)| *bound).context("the buckets do not end in all")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_percentile_is_of_what_came_since() {
        let ticks = |counts: [f64; 3]| Ticks([1.0, 50.0, f64::INFINITY].into_iter().zip(counts).collect());
        let before = ticks([10.0, 10.0, 90.0]);
        assert_eq!(ticks([109.0, 110.0, 190.0]).percentile_since(&before).unwrap(), 1.0);
        assert_eq!(ticks([108.0, 110.0, 190.0]).percentile_since(&before).unwrap(), 50.0);
        assert_eq!(ticks([108.0, 108.0, 190.0]).percentile_since(&before).unwrap(), f64::INFINITY);
        assert!(before.percentile_since(&before).is_err());
    }
}
