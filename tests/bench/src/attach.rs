//! Delay from a sidecar's start until all of its programs are attached.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use harness::{bpf::attached, mesh::Mesh, stand_in::Stand};

use crate::{
    bpf::{ATTACH_TYPES, open},
    report::{Row, Target},
    spread::Spread,
    testbed::start_observer,
};

const STARTS: u8 = 20;
const ATTACH_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval of checks of the cgroup.
const RESOLUTION: Duration = Duration::from_millis(1);

/// Measures stand-ins that start one after another.
pub(crate) fn delay() -> Result<Vec<Row>> {
    let mut mesh = Mesh::new()?;
    let pod = mesh.workload("pod")?;
    let stand = Stand::new(&mesh)?;
    let observer = start_observer(&mesh, "", 0, &["--sidecar-exe", stand.name()])?;
    let mut delays = Vec::new();
    for number in 0..STARTS {
        let name = format!("stand-in-{number}");
        let cgroup = open(&stand.cgroup(&name)?)?;
        let begun = Instant::now();
        let stand_in = stand.start(&name, &name, &pod)?;
        while !is_complete(&cgroup)? {
            ensure!(
                begun.elapsed() < ATTACH_TIMEOUT,
                "a stand-in is not observed after {ATTACH_TIMEOUT:?}:\n{}",
                observer.log()
            );
            sleep(RESOLUTION);
        }
        delays.push(begun.elapsed().as_secs_f64() * 1000.0);
        drop(stand_in);
        // Keeps starts from running in lockstep with the observer's intervals.
        sleep(Duration::from_millis(150 + 37 * u64::from(number)));
    }
    observer.stop()?;
    let row = Row::new("sidecar started → programs attached", Target::AtMost(200.0), "ms", Spread::of(delays));
    Ok(vec![row.note(
        "stand-ins with the injector's environment, each in a new cgroup; from before the fork until the kernel lists a \
         program at every hook of the cgroup",
    )])
}

fn is_complete(cgroup: &std::fs::File) -> Result<bool> {
    for attach_type in ATTACH_TYPES {
        if attached(cgroup, attach_type)?.is_empty() {
            return Ok(false);
        }
    }
    Ok(true)
}
