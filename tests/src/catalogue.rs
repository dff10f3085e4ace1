//! The observer's catalogue, and the families in recordings of real control planes.

use std::{collections::BTreeMap, fs, process::Command};

use anyhow::{Context, Result, ensure};

use crate::{replay::fixtures, tools};

/// Returns the rows of `observer catalogue` by column; with `--live`, those of a running observer.
pub fn rows(arguments: &[&str]) -> Result<Vec<BTreeMap<String, String>>> {
    let output = Command::new(tools::observer()?).args(["catalogue", "--format", "tsv"]).args(arguments).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let table = String::from_utf8(output.stdout)?;
    let mut lines = table.lines();
    let columns: Vec<&str> = lines.next().context("no header")?.split('\t').collect();
    let rows = lines.map(|line| {
        columns.iter().zip(line.split('\t')).map(|(column, cell)| ((*column).to_owned(), cell.to_owned())).collect()
    });
    Ok(rows.collect())
}

/// Returns the state of every family in every recording.
pub fn coverage() -> Result<BTreeMap<String, Vec<(String, String)>>> {
    let table = fs::read_to_string(fixtures().join("coverage.tsv"))?;
    let mut lines = table.lines().map(|line| line.split('\t').collect::<Vec<_>>());
    let captures = lines.next().context("no header")?;
    let rows = lines.map(|row| {
        let states = captures.iter().zip(&row).skip(2);
        (row[1].to_owned(), states.map(|(capture, state)| ((*capture).to_owned(), (*state).to_owned())).collect())
    });
    Ok(rows.collect())
}
