//! Every counter of a scrape with the time it was 0, to be compared over a restart.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::TcpStream,
};

use anyhow::{Context, Result, ensure};
use harness::observer::Observer;

/// Istio's families by series: the value, and the time it was 0 as the page has it.
pub(super) struct Counters(BTreeMap<String, (f64, String)>);

impl Counters {
    pub(super) fn read(observer: &Observer) -> Result<Self> {
        let text = openmetrics(observer)?;
        let (mut created, mut counters) = (BTreeMap::new(), BTreeMap::new());
        for line in text.lines().filter(|line| line.starts_with("istio_")) {
            let (series, value) = line.rsplit_once(' ').context("a sample")?;
            let (name, labels) = series.split_once('{').context("labels")?;
            match name.strip_suffix("_created") {
                Some(family) => drop(created.insert(format!("{family}{{{labels}"), value.to_owned())),
                None => drop(counters.insert(series.to_owned(), (value.parse()?, String::new()))),
            }
        }
        for (series, (_, since)) in &mut counters {
            let (name, labels) = series.split_once('{').context("labels")?;
            if let Some(value) = created.get(&format!("{}{{{labels}", name.trim_end_matches("_total"))) {
                since.clone_from(value);
            }
        }
        ensure!(counters.values().any(|(_, since)| !since.is_empty()), "no counter says when it was 0:\n{text}");
        Ok(Self(counters))
    }

    /// Checks that no series is lower, missing or reset later.
    pub(super) fn go_on_in(&self, later: &Self) -> Result<()> {
        for (series, (value, since)) in &self.0 {
            let (now, since_now) = later.0.get(series).with_context(|| format!("{series} is gone"))?;
            ensure!(now >= value, "{series} was {value} and is {now}");
            ensure!(since == since_now, "{series} was 0 at {since} and now at {since_now}");
        }
        Ok(())
    }
}

fn openmetrics(observer: &Observer) -> Result<String> {
    let mut stream = TcpStream::connect(observer.address())?;
    write!(stream, "GET /metrics?created=true HTTP/1.0\r\naccept: application/openmetrics-text\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
    ensure!(body.ends_with("# EOF\n"), "no OpenMetrics");
    Ok(body.to_owned())
}
