//! The table of results and targets, and the files with every sample.

use std::{collections::BTreeMap, fmt, fs};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::spread::Spread;

use harness::{
    console::{say, target},
    tools::repository,
};

/// Largest distance from 1 of the median of unobserved against unobserved in a reliable run.
pub(crate) const SETTLED: f64 = 0.02;

/// Limit of a result.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Target {
    AtLeast(f64),
    AtMost(f64),
    /// No limit: the result is reported only.
    Stated,
}

/// One result and its target.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) title: String,
    pub(crate) target: Target,
    pub(crate) unit: &'static str,
    pub(crate) measured: Spread,
    /// The same measurement of two equal things.
    pub(crate) control: Option<Spread>,
    /// Conditions and components of the measurement.
    pub(crate) notes: Vec<String>,
    /// Further values, for programs.
    pub(crate) details: BTreeMap<String, f64>,
}

impl Row {
    pub(crate) fn new(title: impl Into<String>, target: Target, unit: &'static str, measured: Spread) -> Self {
        let (title, control, notes, details) = (title.into(), None, Vec::new(), BTreeMap::new());
        Self { title, target, unit, measured, control, notes, details }
    }

    pub(crate) fn with_control(self, control: Spread) -> Self {
        Self { control: Some(control), ..self }
    }

    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    fn verdict(&self) -> &'static str {
        let met = match self.target {
            Target::AtLeast(target) => self.measured.median >= target,
            Target::AtMost(target) => self.measured.median <= target,
            Target::Stated => return "stated",
        };
        let settled = self.control.as_ref().is_none_or(|control| is_settled(control.median));
        match (met, settled) {
            (true, true) => "met",
            (false, true) => "NOT MET",
            (true, false) => "met; noisy: A/A is off by over 2 %",
            (false, false) => "NOT MET; noisy: A/A is off by over 2 %",
        }
    }
}

/// Returns whether unobserved against unobserved says that they are equal.
pub(crate) fn is_settled(control: f64) -> bool {
    (control - 1.0).abs() <= SETTLED
}

/// Results so far.
#[derive(Default)]
pub(crate) struct Report(Vec<Row>);

#[derive(Serialize)]
struct File<'a> {
    benchmark: &'a str,
    kernel: String,
    processors: usize,
    rows: &'a [Row],
}

impl Report {
    /// Adds the rows of a benchmark and writes its file.
    pub(crate) fn add(&mut self, name: &str, rows: Vec<Row>) -> Result<()> {
        let directory = target().join("bench");
        fs::create_dir_all(&directory).with_context(|| format!("{} cannot be created", directory.display()))?;
        let path = directory.join(format!("{name}.json"));
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("the kernel's release")?;
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let file = File { benchmark: name, kernel: kernel.trim().to_owned(), processors, rows: &rows };
        fs::write(&path, serde_json::to_vec_pretty(&file)?).with_context(|| format!("{}", path.display()))?;
        for row in &rows {
            say(format!("{}: {} {} ({})", row.title, row.measured, row.unit, row.verdict()));
        }
        say(format!("wrote {}", path.strip_prefix(repository()).unwrap_or(&path).display()));
        self.0.extend(rows);
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |f: &mut fmt::Formatter<'_>, cells: [&str; 6]| {
            let [title, target, median, spread, control, verdict] = cells;
            writeln!(f, "{title:<64} {target:>9} {median:>12} {spread:>26} {control:>28}  {verdict}")
        };
        line(f, ["RESULT", "TARGET", "MEDIAN", "QUARTILES", "A/A", "VERDICT"])?;
        for row in &self.0 {
            let Spread { median, lower_quartile, upper_quartile, samples } = &row.measured;
            let control = row.control.as_ref().map_or("-".to_owned(), |control| {
                format!("{:.3} ({:.3} to {:.3})", control.median, control.lower_quartile, control.upper_quartile)
            });
            let spread = format!("{lower_quartile:.3} to {upper_quartile:.3}, n={}", samples.len());
            let median = format!("{median:.3} {}", row.unit);
            line(f, [&row.title, &row.target.to_string(), median.trim_end(), &spread, &control, row.verdict()])?;
        }
        for row in self.0.iter().filter(|row| !row.notes.is_empty()) {
            writeln!(f, "\n{}", row.title)?;
            row.notes.iter().try_for_each(|note| writeln!(f, "  {note}"))?;
        }
        Ok(())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(target) => write!(f, "≥ {target}"),
            Self::AtMost(target) => write!(f, "≤ {target}"),
            Self::Stated => f.write_str("-"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_bar_and_a_noisy_machine_are_said() {
        let row = |target, measured: f64, control: f64| {
            Row::new("x", target, "", Spread::of([measured])).with_control(Spread::of([control])).verdict()
        };
        assert_eq!(row(Target::AtLeast(0.97), 0.98, 1.01), "met");
        assert_eq!(row(Target::AtLeast(0.97), 0.96, 1.0), "NOT MET");
        assert_eq!(row(Target::AtMost(4.0), 4.0, 0.9), "met; noisy: A/A is off by over 2 %");
        assert!(row(Target::AtMost(4.0), 4.1, 0.9).starts_with("NOT MET; noisy"));
    }

    #[test]
    fn the_table_has_a_line_for_each_row_and_then_the_notes() {
        let row = Row::new("time of a request", Target::AtMost(2.0), "µs", Spread::of([1.5])).note("two sidecars");
        let text = Report(vec![row]).to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].starts_with("time of a request") && lines[1].ends_with("met"), "{text}");
        assert_eq!(lines.last(), Some(&"  two sidecars"));
    }
}
