//! Tests by a part of their name: which programs have some, so that those alone are run and finding none is an error.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::exec::{cargo, exec, output};

/// A test program.
pub(super) struct Program {
    executable: PathBuf,
    /// Where its package is, and where it expects to be run.
    folder: PathBuf,
}

/// Those of `packages` that have a test whose name contains `filter`.
pub(super) fn programs(packages: &[&str], filter: &str) -> Result<Vec<Program>> {
    let mut command = cargo();
    command.args(["test", "--locked", "--no-run", "--message-format", "json"]);
    command.args(packages.iter().flat_map(|package| ["-p", package]));
    let mut found = Vec::new();
    for message in output(&mut command)?.lines() {
        let Some(program) = program(&serde_json::from_str(message).context("a message of cargo's")?) else { continue };
        if has_tests(&output(Command::new(&program.executable).args([filter, "--list"]))?) {
            found.push(program);
        }
    }
    Ok(found)
}

/// What cargo says of a test program that is built: reference/external-tools in its book.
fn program(message: &Value) -> Option<Program> {
    let executable = message["executable"].as_str().filter(|_| message["profile"]["test"] == true)?;
    let folder = Path::new(message["manifest_path"].as_str()?).parent()?;
    Some(Program { executable: executable.into(), folder: folder.to_owned() })
}

/// What a test program answers to `--list` has a line for each test, and others.
fn has_tests(listed: &str) -> bool {
    listed.lines().any(|line| line.ends_with(": test"))
}

/// An error if no program has a test of that name.
pub(super) fn ensure_some(programs: &[&[Program]], filter: &str) -> Result<()> {
    ensure!(programs.iter().any(|found| !found.is_empty()), "there is no test whose name contains `{filter}`");
    Ok(())
}

/// Runs the tests that `programs` have by that name, all of them; `prepare` adds what they need.
pub(super) fn run(programs: &[Program], filter: &str, prepare: impl Fn(&mut Command)) -> Result<()> {
    let failed: Vec<String> = programs
        .iter()
        .filter_map(|Program { executable, folder }| {
            let mut command = Command::new(executable);
            command.arg(filter).current_dir(folder);
            prepare(&mut command);
            exec(&mut command).err().map(|error| error.to_string())
        })
        .collect();
    ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn finding_nothing_is_an_error() {
        assert!(has_tests("a::b: test\n\n1 test, 0 benchmarks\n") && !has_tests("\n0 tests, 0 benchmarks\n"));
        let some = [Program { executable: "a".into(), folder: "b".into() }];
        assert!(ensure_some(&[&[], &some], "b").is_ok());
        let error = ensure_some(&[&[], &[]], "typo").expect_err("there is none");
        assert_eq!(error.to_string(), "there is no test whose name contains `typo`");
    }

    #[test]
    fn programs_are_told_from_what_is_no_test() {
        let said = |test: bool, executable: Option<&str>| {
            program(&json!({"executable": executable, "manifest_path": "/a/Cargo.toml", "profile": {"test": test}}))
        };
        let found = said(true, Some("/b/c-1")).expect("it is one");
        assert_eq!((found.executable.as_path(), found.folder.as_path()), (Path::new("/b/c-1"), Path::new("/a")));
        assert!(said(false, Some("/b/c")).is_none() && said(true, None).is_none());
        assert!(program(&json!({"reason": "build-finished"})).is_none());
    }
}
