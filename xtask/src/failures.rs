//! Failed tests in the output of Cargo's test harness and of libtest-mimic.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

/// Lines of a message in the summary; the output above has all of them.
const MESSAGE_LINES: usize = 12;

/// A test that failed, by its name without the suite's, and the beginning of its message.
pub(crate) type Failure = (String, Vec<String>);

/// Runs a test command that shows its own output, and returns the tests that failed.
pub(crate) fn of(command: &mut Command) -> Result<Vec<Failure>> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start the tests")?;
    let output = BufReader::new(child.stdout.take().context("it is piped")?).split(b'\n').map_while(Result::ok);
    let failures =
        parse(output.map(|line| String::from_utf8_lossy(&line).into_owned()).inspect(|line| println!("{line}")));
    let status = child.wait()?;
    ensure!(status.success() || !failures.is_empty(), "no test failed, but the tests did: {status}");
    Ok(failures)
}

fn parse(lines: impl Iterator<Item = String>) -> Vec<Failure> {
    let mut failures: Vec<Failure> = Vec::new();
    let mut is_in_message = false;
    for line in lines {
        if let Some(test) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" ----")) {
            failures.push((test.trim_end_matches(" stdout").to_owned(), Vec::new()));
            is_in_message = true;
        } else if line == "failures:" {
            is_in_message = false;
        } else if let Some((_, message)) = failures.last_mut().filter(|_| is_in_message)
            && message.len() < MESSAGE_LINES
        {
            message.push(line);
        }
    }
    failures
}

/// Returns the failures for a summary.
pub(crate) fn text(failures: &[Failure]) -> String {
    failures.iter().map(|(test, message)| format!("{test}\n    {}\n", message.join("\n    ").trim_end())).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn failures_are_found_with_their_messages() {
        let output = "test b ... FAILED\n\nfailures:\n\n---- b ----\n2, not 3\n\n\nfailures:\n    b\n\n\
                      failures:\n\n---- c stdout ----\npanicked\n\nfailures:\n    c\n";
        let failures = super::parse(output.lines().map(str::to_owned));
        assert_eq!(super::text(&failures), "b\n    2, not 3\nc\n    panicked\n");
    }
}
