//! Speed of the encoders.

use anyhow::{Context as _, Result, ensure};

use crate::speed;
use crate::{
    report::{Row, Target},
    spread::Spread,
};

/// A recording of a control plane with many families.
const PAGE: &str = "tests/fixtures/istiod/1.32-dev/16-one-left.prom";
const SERIES: &str = "10000";
const RUNS: &str = "9";

/// Measures each format, for the mesh and for control planes.
pub(crate) fn speed() -> Result<Vec<Row>> {
    let said = speed::measure("rendering_speed", PAGE, [SERIES, RUNS])?;
    said.lines().map(row).collect()
}

fn row(line: &str) -> Result<Row> {
    let (what, numbers) = line.split_once(' ').with_context(|| format!("{line:?} has no values"))?;
    let numbers =
        numbers.split(' ').map(|number| number.parse().with_context(|| format!("{number:?} is not a number")));
    let numbers = numbers.collect::<Result<Vec<f64>>>()?;
    ensure!(!numbers.is_empty(), "{line:?} has no values");
    let row = Row::new(format!("rendering 10,000 series, {what}"), Target::AtLeast(300.0), "MB/s", Spread::of(numbers));
    Ok(row.note(if what.starts_with("mesh") {
        "label sets of HTTP, each with three histograms; megabytes of text a second of CPU time".to_owned()
    } else {
        format!("samples of control planes whose page is {PAGE}; megabytes of text a second of CPU time")
    }))
}
