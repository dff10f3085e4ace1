//! Time of reading 10,000 series, and of a scrape of which almost nothing is sent.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use harness::{
    apps::http,
    mesh::Mesh,
    observer::Observer,
    stand_in::{Stand, StandIn},
};

use crate::{
    report::{Row, Target},
    spread::Spread,
    testbed::start_observer,
};

const SIDECARS: u8 = 20;
const SERIES: u16 = 10_000;
const PORT: u16 = 8080;
const READINGS: usize = 40;
const ATTEMPTS: usize = 200;
/// Longer than scrapes share a snapshot.
const PAUSE: Duration = Duration::from_millis(150);
const SECONDS: &str = "mesh_observer_collector_duration_seconds_total";
const RUNS: &str = "mesh_observer_collector_runs_total";
const TEXT: &str = "text/plain";
/// Asks for native histograms, which are made of the log-linear cells that percentiles are made of.
const CELLS: &str = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";

/// Measures readings that scrapes ask for, without and with cells.
pub(crate) fn time() -> Result<Vec<Row>> {
    let mut mesh = Mesh::new()?;
    let pod = mesh.workload("pod")?;
    let _application = http::serve(&pod, PORT)?;
    let stand = Stand::new(&mesh)?;
    let mut sidecars: Vec<StandIn> = (0..SIDECARS)
        .map(|number| stand.start(&format!("stand-in-{number}"), &number.to_string(), &pod))
        .collect::<Result<_>>()?;
    let arguments = ["--sidecar-exe", stand.name(), "--interval", "10m"];
    let observer = start_observer(&mesh, "", SIDECARS.into(), &arguments)?;
    let statuses = SERIES / u16::from(SIDECARS);
    sidecars.iter_mut().try_for_each(|sidecar| sidecar.statuses(PORT, statuses))?;
    let in_use = observer.own_families()?.sum("mesh_observer_series_in_use", &[]).unwrap_or(0.0);
    ensure!(in_use >= f64::from(SERIES), "{in_use} series are in use instead of {SERIES}");
    let mut rows = measure(&observer, "", TEXT)?;
    rows.extend(measure(&observer, " with percentiles", CELLS)?);
    drop(sidecars);
    observer.stop()?;
    Ok(rows)
}

fn measure(observer: &Observer, what: &str, accept: &str) -> Result<Vec<Row>> {
    let (mut readings, mut scrapes) = (Vec::new(), Vec::new());
    // The first one also finds the series.
    scrape(observer, accept)?;
    let mut before = Spent::of(observer)?;
    for _ in 0..ATTEMPTS {
        sleep(PAUSE);
        let took = scrape(observer, accept)?;
        // Shares the snapshot, in which its own reading is counted, unless this machine was too slow.
        let after = Spent::of(observer)?;
        if after.runs == before.runs + 1.0 {
            scrapes.push(took.as_secs_f64() * 1e3);
            readings.push((after.seconds - before.seconds) * 1e3);
        }
        before = after;
        if readings.len() == READINGS {
            break;
        }
    }
    ensure!(!readings.is_empty(), "no two scrapes in {ATTEMPTS} shared a reading");
    let title = |of: &str| format!("{of} 10,000 series{what}");
    Ok(vec![
        Row::new(title("reading"), Target::AtMost(5.0), "ms", Spread::of(readings)),
        Row::new(title("scrape of"), Target::Stated, "ms", Spread::of(scrapes))
            .note("from the connection to the last byte of the observer's own families: the reading and the model"),
    ])
}

/// Readings of the maps so far, and what they took.
struct Spent {
    seconds: f64,
    runs: f64,
}

impl Spent {
    fn of(observer: &Observer) -> Result<Self> {
        let own = observer.own_families()?;
        let of_kernel =
            |family: &str| own.sum(family, &[("collector", "kernel")]).with_context(|| format!("no {family}"));
        Ok(Self { seconds: of_kernel(SECONDS)?, runs: of_kernel(RUNS)? })
    }
}

/// Scrapes the observer's own families only.
fn scrape(observer: &Observer, accept: &str) -> Result<Duration> {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(observer.address())?;
    write!(stream, "GET /metrics?family=mesh_observer_* HTTP/1.0\r\nhost: localhost\r\naccept: {accept}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let took = begun.elapsed();
    ensure!(answer.starts_with(b"HTTP/1.0 200"), "{}", String::from_utf8_lossy(&answer));
    Ok(took)
}
