//! Speed and memory of the parser of scraped expositions.

use anyhow::{Context as _, Result};

use crate::speed;
use crate::{
    report::{Row, Target},
    spread::Spread,
};

/// The recording with the most series.
const PAGE: &str = "tests/fixtures/istiod/1.32-dev/25-many-series.prom";
const MEGABYTES: &str = "100";
const RUNS: &str = "9";

/// Measures both in a separate process, so that its memory is the parser's alone.
pub(crate) fn speed() -> Result<Vec<Row>> {
    let said = speed::measure("exposition_speed", PAGE, [MEGABYTES, RUNS])?;
    let mut numbers = said.lines().map(|line| line.parse().with_context(|| format!("{line:?} is not a number")));
    let mut numbers = numbers.by_ref().collect::<Result<Vec<f64>>>()?;
    let grown = numbers.pop().context("the program printed nothing")?;
    Ok(vec![
        Row::new("parsing a scraped page of 100 MB, one core", Target::AtLeast(500.0), "MB/s", Spread::of(numbers))
            .note(format!("{PAGE} repeated; every label looked at, series that come twice looked for")),
        Row::new("memory that this takes, at its peak", Target::AtMost(1.0), "MB", Spread::of([grown / 1_000.0])),
    ])
}
