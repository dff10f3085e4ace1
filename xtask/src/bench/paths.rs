//! Whole paths, observed against unobserved: throughput, latency, a large body.

use anyhow::Result;

use super::{
    Options,
    report::{Bar, Row, is_settled},
    spoken::Spoken,
    spread::Spread,
    stage::{Observed, Stage},
};

/// Pairs that are taken in any case.
const FEWEST_PAIRS: usize = 8;
const GIB: u64 = 1 << 30;

/// Requests a second with everything saturated.
pub(super) fn throughput(options: &Options, spoken: Spoken) -> Result<Vec<Row>> {
    let mut stage = Stage::new(spoken)?;
    let ratios = ratios(&mut stage, options.pairs, |stage| Ok(stage.saturate(0, options.time)?.a_second))?;
    let figure = format!("{}: throughput, 1 KiB replies, observed / unobserved", spoken.name());
    Ok(vec![ratios.row(&figure, Bar::AtLeast(0.97), "requests/s").note(format!(
        "{}, one thread; both sidecars on one machine with client and server, all saturated, both observed; {} s an interval",
        spoken.ends(),
        options.time.as_secs().max(1)
    )).note(stage.recognised())])
}

/// 99th percentile at half of what goes through unobserved.
pub(super) fn latency(options: &Options) -> Result<Vec<Row>> {
    let mut stage = Stage::new(Spoken::Http1)?;
    stage.unobserve()?;
    let half = stage.saturate(0, options.time)?.a_second / 2.0;
    let ratios = ratios(&mut stage, options.pairs, |stage| stage.pace(half, options.time))?;
    let row = ratios.row("p99 latency at half load, observed / unobserved", Bar::AtMost(1.05), "ms");
    Ok(vec![row.note(format!("h2load at a constant {half:.0} requests/s on 16 connections; both sidecars observed"))])
}

/// Speed of one large body.
pub(super) fn bulk(options: &Options) -> Result<Vec<Row>> {
    let mut stage = Stage::new(Spoken::Http1)?;
    let ratios = ratios(&mut stage, options.pairs, |stage| Ok(stage.download(GIB)? / 1e6))?;
    let row = ratios.row("throughput of a 1 GiB body, observed / unobserved", Bar::AtLeast(0.97), "MB/s");
    Ok(vec![row.note("curl, one download an interval; both sidecars observed")])
}

/// Ratios of neighbours, and what was divided.
struct Ratios {
    observed: Vec<f64>,
    unobserved: Vec<f64>,
    pairs: Vec<f64>,
    controls: Vec<f64>,
}

/// Measures in the order observed, unobserved, unobserved, observed, so that a steady drift favours neither.
fn ratios(stage: &mut Stage, most: usize, mut measure: impl FnMut(&Stage) -> Result<f64>) -> Result<Ratios> {
    let mut ratios = Ratios { observed: Vec::new(), unobserved: Vec::new(), pairs: Vec::new(), controls: Vec::new() };
    while ratios.pairs.len() < most.max(1) && !ratios.are_settled() {
        stage.observe(Observed::Both)?;
        let first = measure(stage)?;
        stage.unobserve()?;
        let second = measure(stage)?;
        stage.unobserve()?;
        let third = measure(stage)?;
        stage.observe(Observed::Both)?;
        let fourth = measure(stage)?;
        ratios.observed.extend([first, fourth]);
        ratios.unobserved.extend([second, third]);
        ratios.pairs.extend([first / second, fourth / third]);
        ratios.controls.push(second / third);
    }
    Ok(ratios)
}

impl Ratios {
    fn are_settled(&self) -> bool {
        self.pairs.len() >= FEWEST_PAIRS && is_settled(Spread::of(self.controls.clone()).median)
    }

    fn row(self, figure: &str, bar: Bar, unit: &str) -> Row {
        let settled = self.are_settled();
        let (observed, unobserved) = (Spread::of(self.observed), Spread::of(self.unobserved));
        let pairs = self.pairs.len();
        let mut row = Row::new(figure, bar, "", Spread::of(self.pairs)).with_control(Spread::of(self.controls));
        row.details.insert("observed".to_owned(), observed.median);
        row.details.insert("unobserved".to_owned(), unobserved.median);
        let row = row.note(format!("observed {observed} {unit}, unobserved {unobserved} {unit}"));
        if settled {
            row
        } else {
            row.note(format!("after {pairs} pairs unobserved against unobserved does not lie within 2 % of 1"))
        }
    }
}
