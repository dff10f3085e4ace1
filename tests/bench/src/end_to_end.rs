//! End-to-end throughput, latency and bulk transfer, observed against unobserved.

use anyhow::Result;

use crate::{
    Options,
    protocol::Protocol,
    report::{Row, Target, is_settled},
    spread::Spread,
    testbed::{Observed, Testbed},
};

/// Minimum number of pairs.
const FEWEST_PAIRS: usize = 8;
const GIB: u64 = 1 << 30;

/// Measures requests per second under saturation.
pub(crate) fn throughput(options: &Options, protocol: Protocol) -> Result<Vec<Row>> {
    let mut testbed = Testbed::new(protocol)?;
    let ratios = ratios(&mut testbed, options.pairs, |testbed| Ok(testbed.saturate(0, options.time)?.a_second))?;
    let title = format!("{}: throughput, 1 KiB replies, observed / unobserved", protocol.name());
    Ok(vec![ratios.row(&title, Target::AtLeast(0.97), "requests/s").note(format!(
        "{}, one thread; both sidecars on one machine with client and server, all saturated, both observed; {} s an interval",
        protocol.ends(),
        options.time.as_secs().max(1)
    )).note(testbed.recognised())])
}

/// Measures the 99th percentile at half of the unobserved throughput.
pub(crate) fn latency(options: &Options) -> Result<Vec<Row>> {
    let mut testbed = Testbed::new(Protocol::Http1)?;
    testbed.unobserve()?;
    let half = testbed.saturate(0, options.time)?.a_second / 2.0;
    let ratios = ratios(&mut testbed, options.pairs, |testbed| testbed.pace(half, options.time))?;
    let row = ratios.row("p99 latency at half load, observed / unobserved", Target::AtMost(1.05), "ms");
    Ok(vec![row.note(format!("h2load at a constant {half:.0} requests/s on 16 connections; both sidecars observed"))])
}

/// Measures the speed of one large body.
pub(crate) fn bulk(options: &Options) -> Result<Vec<Row>> {
    let mut testbed = Testbed::new(Protocol::Http1)?;
    let ratios = ratios(&mut testbed, options.pairs, |testbed| Ok(testbed.download(GIB)? / 1e6))?;
    let row = ratios.row("throughput of a 1 GiB body, observed / unobserved", Target::AtLeast(0.97), "MB/s");
    Ok(vec![row.note("curl, one download an interval; both sidecars observed")])
}

/// Ratios of neighbouring intervals, and their operands.
struct Ratios {
    observed: Vec<f64>,
    unobserved: Vec<f64>,
    pairs: Vec<f64>,
    controls: Vec<f64>,
}

/// Measures in the order observed, unobserved, unobserved, observed, so that a steady drift favours neither.
fn ratios(testbed: &mut Testbed, most: usize, mut measure: impl FnMut(&Testbed) -> Result<f64>) -> Result<Ratios> {
    let mut ratios = Ratios { observed: Vec::new(), unobserved: Vec::new(), pairs: Vec::new(), controls: Vec::new() };
    while ratios.pairs.len() < most.max(1) && !ratios.are_settled() {
        testbed.observe(Observed::Both)?;
        let first = measure(testbed)?;
        testbed.unobserve()?;
        let second = measure(testbed)?;
        testbed.unobserve()?;
        let third = measure(testbed)?;
        testbed.observe(Observed::Both)?;
        let fourth = measure(testbed)?;
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

    fn row(self, title: &str, target: Target, unit: &str) -> Row {
        let settled = self.are_settled();
        let (observed, unobserved) = (Spread::of(self.observed), Spread::of(self.unobserved));
        let pairs = self.pairs.len();
        let mut row = Row::new(title, target, "", Spread::of(self.pairs)).with_control(Spread::of(self.controls));
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
