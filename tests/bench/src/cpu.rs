//! The observer's own CPU time with no load and with full load.

use std::{
    io,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::{
    Options,
    protocol::Protocol,
    report::{Row, Target},
    spread::Spread,
    testbed::{Observed, Testbed},
};

/// Factor of the interval's length, since the result is a fraction of a percent.
const LONGER: u32 = 5;

/// Measures in the order none, full, full, none, so that a steady drift cancels out.
pub(crate) fn at_no_and_full_load(options: &Options) -> Result<Vec<Row>> {
    let mut testbed = Testbed::new(Protocol::Http1)?;
    testbed.observe(Observed::Both)?;
    let pid = testbed.observer()?.pid();
    let time = options.time * LONGER;
    let idle = || {
        share_of_a_core(pid, || {
            sleep(time);
            Ok(())
        })
    };
    let full = || share_of_a_core(pid, || testbed.press(time));
    let (first, second, third, fourth) = (idle()?, full()?, full()?, idle()?);
    let differences = Spread::of([second - first, third - fourth].map(f64::abs));
    let (idle, full) = (Spread::of([first, fourth]), Spread::of([second, third]));
    let mut row =
        Row::new("observer's CPU at full load less at none, of a core", Target::AtMost(0.2), "%", differences).note(
            format!(
                "none: {idle} %, full: {full} %; {:.0} s an interval, nobody reads /metrics meanwhile",
                time.as_secs_f64()
            ),
        );
    row.details.insert("idle_percent".to_owned(), idle.median);
    row.details.insert("full_percent".to_owned(), full.median);
    Ok(vec![row])
}

/// Returns the percentage of one core that a process uses while `action` runs.
fn share_of_a_core(pid: u32, action: impl FnOnce() -> Result<()>) -> Result<f64> {
    let (begun, before) = (Instant::now(), used(pid)?);
    action()?;
    let after = used(pid)?;
    Ok((after - before).as_secs_f64() / begun.elapsed().as_secs_f64() * 100.0)
}

/// Returns user and system time of a process and all its threads, ended ones included.
pub(crate) fn used(pid: u32) -> Result<Duration> {
    let mut clock: libc::clockid_t = 0;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: both pointers are to live values of the right type.
    let result = unsafe {
        match libc::clock_getcpuclockid(pid.cast_signed(), &raw mut clock) {
            0 => libc::clock_gettime(clock, &raw mut time),
            _ => -1,
        }
    };
    if result != 0 {
        return Err(io::Error::last_os_error()).context("the observer's CPU time cannot be read");
    }
    let (seconds, nanoseconds) = (time.tv_sec.cast_unsigned(), time.tv_nsec.cast_unsigned());
    Ok(Duration::new(seconds, u32::try_from(nanoseconds).context("nanoseconds")?))
}
