//! Runs named cases, one after another on one fixture, and says each one's figures: a test program without the standard
//! harness, so that a mesh is built once, its cases have names, and everything is removed at the end.

use std::{
    env, fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Error, Result};

use crate::difference::Differences;

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

/// Runs those cases whose names contain one of the words on the command line (all if there is none); to find none is a
/// failure, since nothing is shown by it.
///
/// `--list`, `--exact` and `--skip WORD` mean what they mean to cargo's own tests; other options are ignored.
pub fn run<F>(suite: &str, fixture: impl FnOnce() -> Result<F>, cases: &[Case<F>]) -> ExitCode {
    run_wish(suite, &Wish::read(env::args().skip(1)), fixture, cases)
}

fn run_wish<F>(suite: &str, wish: &Wish, fixture: impl FnOnce() -> Result<F>, cases: &[Case<F>]) -> ExitCode {
    let chosen: Vec<&Case<F>> = cases.iter().filter(|case| wish.wants(case.name)).collect();
    if wish.list {
        for case in &chosen {
            println!("{}: test", case.name);
        }
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} cases of {suite}", chosen.len());
    if chosen.is_empty() {
        println!("{suite} has no case of the {} whose name has what is asked for: {wish}", cases.len());
        return ExitCode::FAILURE;
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
                Err(error) if only_durations(error) => {
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

fn only_durations(error: &Error) -> bool {
    error.downcast_ref::<Differences>().is_some_and(Differences::only_durations)
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

impl fmt::Display for Wish {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "`{}`", self.words.join("`, `"))?;
        if self.skipped.is_empty() { Ok(()) } else { write!(formatter, " without `{}`", self.skipped.join("`, `")) }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{Context as _, anyhow};

    use super::*;
    use crate::tally::{Leg, Requests, Tally};

    #[test]
    fn only_times_are_tried_again() {
        let of = |count, duration_ms| {
            let requests = Requests { count, duration_ms: Some(duration_ms), ..Requests::default() };
            Tally { requests: [((Leg::source("a"), "200".into()), requests)].into(), ..Tally::default() }
        };
        let error = |observed| Err::<(), _>(of(1, 1.0).differences(&observed)).context("of a mesh").expect_err("it is");
        assert!(only_durations(&error(of(1, 900.0))));
        assert!(!only_durations(&error(of(2, 900.0))));
        assert!(!only_durations(&anyhow!("a durations: 1 instead of 2")));
    }

    fn wish(arguments: &[&str]) -> Wish {
        Wish::read(arguments.iter().map(|argument| (*argument).to_owned()))
    }

    #[test]
    fn names_are_chosen_as_by_cargo() {
        assert!(wish(&[]).wants("head") && wish(&["ea"]).wants("head") && wish(&["no", "head"]).wants("head"));
        assert!(!wish(&["--exact", "ea"]).wants("head") && !wish(&["--skip", "ea"]).wants("head"));
        assert_eq!(wish(&["typo", "--skip", "x"]).to_string(), "`typo` without `x`");
    }

    #[test]
    fn a_filter_that_matches_nothing_fails() {
        let fixture = || -> Result<()> { unreachable!("nothing is to be run") };
        assert_eq!(run_wish("none", &wish(&["typo"]), fixture, &[]), ExitCode::FAILURE);
        assert_eq!(run_wish("none", &wish(&["typo", "--list"]), fixture, &[]), ExitCode::SUCCESS);
    }
}
