//! Waiting for a condition instead of a fixed time.

use std::{
    any::type_name,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

/// Longest pause between two tries; the first are shorter.
const PAUSE: Duration = Duration::from_millis(50);

/// Calls `look` until it succeeds and returns its value; after `patience` its last error, with `what` as context.
///
/// # Panics
/// The value is a `bool`: what is not so yet must be an error, or nothing is waited for.
pub fn wait_until<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Result<T>) -> Result<T> {
    assert_ne!(type_name::<T>(), type_name::<bool>(), "{what}: use `ensure!`");
    let end = Instant::now() + patience;
    let mut pause = Duration::from_millis(1);
    loop {
        match look() {
            Err(_) if Instant::now() < end => sleep(pause),
            outcome => return outcome.with_context(|| format!("not within {patience:?}: {what}")),
        }
        pause = PAUSE.min(pause * 2);
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{anyhow, ensure};

    use super::*;

    #[test]
    fn it_ends_with_success_or_with_the_last_error() {
        let mut looks = 0;
        let third = wait_until("a third look", Duration::from_secs(60), || {
            looks += 1;
            ensure!(looks == 3);
            Ok(looks)
        });
        assert_eq!(third.expect("the third look"), 3);
        let never = wait_until("a wonder", Duration::ZERO, || Err::<(), _>(anyhow!("none")));
        assert_eq!(format!("{:#}", never.expect_err("none")), "not within 0ns: a wonder: none");
    }
}
