//! Runs the cases of one suite one after another on a shared fixture, so that a mesh is built once.

use std::{
    process::ExitCode,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use anyhow::{Error, Result};
use libtest_mimic::{Arguments, Failed, Trial};

use crate::difference::Differences;

/// A test on a shared fixture. It returns a summary of what it compared.
pub struct Case<F> {
    /// Name, a sentence in snake case.
    pub name: &'static str,
    /// The test itself.
    pub run: fn(&mut F) -> Result<String>,
}

/// Makes a table of cases from functions, under their own names.
#[macro_export]
macro_rules! cases {
    ($($name:ident),* $(,)?) => { &[$($crate::cases::Case { name: stringify!($name), run: $name }),*] };
}

/// Runs the cases that the command line selects; its options are those of Cargo's own tests. `fixture` is called for
/// the first of them.
pub fn run<F: Send + 'static>(
    fixture: impl FnOnce() -> Result<F> + Send + 'static,
    cases: &'static [Case<F>],
) -> ExitCode {
    let fixture = Arc::new(LazyLock::new(|| fixture().map(Mutex::new)));
    let trial = |case: &'static Case<F>| {
        let fixture = Arc::clone(&fixture);
        Trial::test(case.name, move || {
            let fixture = (**fixture).as_ref().map_err(|error| format!("the fixture cannot be made: {error:?}"))?;
            // A case that panicked has failed; the others still run.
            let mut fixture = fixture.lock().unwrap_or_else(PoisonError::into_inner);
            let summary = retried(|| (case.run)(&mut fixture)).map_err(|error| Failed::from(format!("{error:?}")))?;
            print!("{summary} ... ");
            Ok(())
        })
    };
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    libtest_mimic::run(&arguments, cases.iter().map(trial).collect()).exit_code()
}

/// Times that a case is tried if nothing but durations differ: on a busy machine Envoy itself is late at times, and its
/// log then has time that the socket has not. Counts, codes and bytes must be equal at the first try.
const MAX_TRIES: u32 = 3;

fn retried(mut case: impl FnMut() -> Result<String>) -> Result<String> {
    let mut outcome = case();
    for _ in 1..MAX_TRIES {
        match &outcome {
            Err(error) if only_durations(error) => {
                print!("only durations differ, retrying: {error:#} ... ");
                outcome = case();
            }
            _ => break,
        }
    }
    outcome
}

fn only_durations(error: &Error) -> bool {
    error.downcast_ref::<Differences>().is_some_and(Differences::only_durations)
}

#[cfg(test)]
mod tests {
    use anyhow::{Context as _, anyhow};

    use super::*;
    use crate::counts::{Counts, Leg, Requests};

    #[test]
    fn only_differences_of_durations_are_retried() {
        let of = |count, duration_ms| {
            let requests = Requests { count, duration_ms: Some(duration_ms), ..Requests::default() };
            Counts { requests: [((Leg::source("a"), "200".into()), requests)].into(), ..Counts::default() }
        };
        let tries = |error: &dyn Fn() -> Error| {
            let mut tries = 0;
            let outcome = retried(|| {
                tries += 1;
                Err(error())
            });
            outcome.map_or(tries, |_| 0)
        };
        let error =
            |observed: &Counts| of(1, 1.0).differences(observed).none().context("of a mesh").expect_err("it is");
        assert_eq!(tries(&|| error(&of(1, 900.0))), MAX_TRIES);
        assert_eq!(tries(&|| error(&of(2, 900.0))), 1);
        assert_eq!(tries(&|| anyhow!("a durations: 1 instead of 2")), 1);
    }
}
