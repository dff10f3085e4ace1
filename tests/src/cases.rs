//! Runs named cases, one after another on one fixture, and says each one's figures: a test program without the standard
//! harness, so that a mesh is built once, its cases have names, and everything is removed at the end.

use std::{
    env,
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    time::Instant,
};

use anyhow::Result;

/// One case: a name, and what it does. It returns its figures in a few words.
pub struct Case<F> {
    /// Name, a sentence in snake case.
    pub name: &'static str,
    /// The case itself.
    pub run: fn(&mut F) -> Result<String>,
}

/// Makes a table of cases of functions, under their own names.
#[macro_export]
macro_rules! cases {
    ($($name:ident),* $(,)?) => { &[$($crate::cases::Case { name: stringify!($name), run: $name }),*] };
}

/// Runs those cases whose names contain one of the words on the command line (all if there is none).
///
/// `--list`, `--exact` and `--skip WORD` mean what they mean to cargo's own tests; other options are ignored.
pub fn run<F>(suite: &str, fixture: impl FnOnce() -> Result<F>, cases: &[Case<F>]) -> ExitCode {
    let wish = Wish::read(env::args().skip(1));
    let chosen: Vec<&Case<F>> = cases.iter().filter(|case| wish.wants(case.name)).collect();
    if wish.list {
        for case in &chosen {
            println!("{}: test", case.name);
        }
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} cases of {suite}", chosen.len());
    if chosen.is_empty() {
        return ExitCode::SUCCESS;
    }
    let mut fixture = match fixture() {
        Ok(fixture) => fixture,
        Err(error) => {
            println!("the fixture of {suite} cannot be made: {error:?}");
            return ExitCode::FAILURE;
        }
    };
    let mut failed = Vec::new();
    for case in &chosen {
        let begun = Instant::now();
        let mut attempt = || {
            catch_unwind(AssertUnwindSafe(|| (case.run)(&mut fixture)))
                .unwrap_or_else(|_| Err(anyhow::anyhow!("panicked (see above)")))
        };
        let mut outcome = attempt();
        for _ in 1..TRIES {
            match &outcome {
                Err(error) if only_durations(&format!("{error:#}")) => {
                    println!("test {} ... again, since only times differ: {error:#}", case.name);
                    outcome = attempt();
                }
                _ => break,
            }
        }
        let seconds = begun.elapsed().as_secs_f64();
        match outcome {
            Ok(figures) => println!("test {} ... ok ({seconds:.1} s) {figures}", case.name),
            Err(error) => {
                println!("test {} ... FAILED ({seconds:.1} s)\n    {error:?}", case.name);
                failed.push(case.name);
            }
        }
    }
    println!("\n{suite}: {} passed, {} failed {failed:?}\n", chosen.len() - failed.len(), failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Times a case is tried if nothing but durations differ: on a busy machine the proxy itself is late at times, and its
/// log then has what the socket has not. Counts, codes and bytes must be equal at once.
const TRIES: u32 = 3;

/// Does a case's error list differences, and only of durations?
fn only_durations(error: &str) -> bool {
    let mut differences = error.lines().skip(1).filter(|line| line.contains(" instead of ")).peekable();
    differences.peek().is_some() && differences.all(|line| line.contains(" durations: "))
}

#[cfg(test)]
mod tests {
    use super::only_durations;

    #[test]
    fn only_times_are_tried_again() {
        let head = "the observer differs from the referee:";
        let time = "source(client) 200 durations: 1 ms in all instead of 9 ms (2 requests)";
        assert!(only_durations(&format!("{head}\n  {time}\n  it says of itself: nothing")));
        assert!(!only_durations(&format!("{head}\n  {time}\n  source(client) 200 requests: 1 instead of 2")));
        assert!(!only_durations("panicked"));
    }
}

#[derive(Default)]
struct Wish {
    list: bool,
    exact: bool,
    words: Vec<String>,
    skipped: Vec<String>,
}

impl Wish {
    fn read(mut arguments: impl Iterator<Item = String>) -> Self {
        let mut wish = Self::default();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--list" => wish.list = true,
                "--exact" => wish.exact = true,
                "--skip" => wish.skipped.extend(arguments.next()),
                "--test-threads" | "--color" | "--format" => drop(arguments.next()),
                option if option.starts_with('-') => {}
                word => wish.words.push(word.to_owned()),
            }
        }
        wish
    }

    fn wants(&self, name: &str) -> bool {
        let matches = |word: &String| if self.exact { name == word } else { name.contains(word.as_str()) };
        (self.words.is_empty() || self.words.iter().any(matches)) && !self.skipped.iter().any(matches)
    }
}
