//! Time and memory of the observer's start, from its command until its programs are attached to a sidecar that runs.

use std::time::Instant;

use anyhow::Result;
use harness::{memory_cgroup::MemoryCgroup, mesh::Mesh, observer::Observer, stand_in::Stand, tools};

use crate::{
    memory::Memory,
    report::{Row, Target},
    spread::Spread,
};

const STARTS: usize = 7;
const MEBIBYTE: f64 = 1_048_576.0;

/// Measures observers that start one after another.
#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
pub(crate) fn cost() -> Result<Vec<Row>> {
    let mut mesh = Mesh::new()?;
    let pod = mesh.workload("pod")?;
    let stand = Stand::new(&mesh)?;
    let _sidecar = stand.start("sidecar", "sidecar", &pod)?;
    let (mut times, mut resident, mut charged) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let memory = MemoryCgroup::new(None)?;
        let mut command = memory.command()?;
        command.arg(tools::observer()?);
        let begun = Instant::now();
        let observer = Observer::launch(&mut command, mesh.directory(), "", 1, &["--sidecar-exe", stand.name()])?;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
        resident.push(Memory::of(&observer)?.peak * 1e6 / MEBIBYTE);
        charged.push(memory.peak()? as f64 / MEBIBYTE);
        observer.stop()?;
    }
    Ok(vec![
        Row::new("start: command → programs attached", Target::Stated, "ms", Spread::of(times))
            .note("asked for every 20 ms"),
        Row::new("start: peak of resident memory", Target::AtMost(64.0), "MiB", Spread::of(resident)),
        Row::new("start: most that its cgroup was charged", Target::Stated, "MiB", Spread::of(charged))
            .note("with the maps, the programs, the pages of its file and, from Linux 6.16 on, the verifier's states"),
    ])
}
