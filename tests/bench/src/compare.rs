//! Kernel time a request of two observers in turn on one mesh: of this build, and of another build or with other options.

use std::{fs::File, path::PathBuf};

use anyhow::Result;
use clap::ValueEnum as _;

use crate::{
    Options,
    bpf::{self, EmptyPair, Statistics},
    kernel::{self, OURS},
    protocol::Protocol,
    report::{Row, Target},
    spread::Spread,
    testbed::{Observed, SIDES, Testbed},
};

/// Rounds of this, the other and this, two intervals each.
const ROUNDS: usize = 5;
/// Longer requests, as in the benchmark of kernel time: 400 bytes of headers on the leg or a few more.
const PADDING: usize = 150;

/// An observer to start.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Other {
    /// Executable of the observer to compare with; this one if none is named.
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Option of the observer to compare with, e.g. --against-option=--callers=off.
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    against_option: Vec<String>,
    /// Protocols to compare; all if none is named.
    #[arg(long, value_enum)]
    protocol: Vec<Protocol>,
}

/// Measures every protocol; by default against an observer that reads no callers.
pub(crate) fn kernel_time(options: &Options) -> Result<Vec<Row>> {
    let mut other = options.other.clone();
    if other.against.is_none() && other.against_option.is_empty() {
        other.against_option.push("--callers=off".into());
    }
    let protocols = if other.protocol.is_empty() { Protocol::value_variants() } else { &other.protocol };
    protocols.iter().map(|protocol| ratio(options, *protocol, &other)).collect()
}

fn ratio(options: &Options, protocol: Protocol, other: &Other) -> Result<Row> {
    let mut testbed = Testbed::new(protocol)?;
    let [client, server] = SIDES.map(|side| bpf::open(testbed.sidecar(side).cgroup()));
    let cgroups = [client?, server?];
    let _statistics = Statistics::enable()?;
    let (mut this, mut others, mut controls) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let own = Other::default();
        let first = intervals(&mut testbed, &cgroups, &own, options)?;
        let second = intervals(&mut testbed, &cgroups, other, options)?;
        let third = intervals(&mut testbed, &cgroups, &own, options)?;
        this.push((first[1] + third[0]) / 2.0);
        others.push((second[0] + second[1]) / 2.0);
        controls.extend([first, second, third].map(|[one, other]| one / other));
    }
    let ratios: Vec<f64> = this.iter().zip(&others).map(|(this, other)| this / other).collect();
    let differences: Vec<f64> = this.iter().zip(&others).map(|(this, other)| this - other).collect();
    Ok(Row::new(
        format!("{}: kernel time a request / the other's", protocol.name()),
        Target::Stated,
        "",
        Spread::of(ratios),
    )
    .with_control(Spread::of(controls))
    .note(format!("{} µs, the other {} µs", Spread::of(this), Spread::of(others)))
    .note(format!("difference {} µs", Spread::of(differences)))
    .note(format!("the other is {}", other.describe())))
}

/// Measures two intervals with one observer; returns the microseconds a request in the programs of both sidecars, without
/// the cost of the statistics.
fn intervals(testbed: &mut Testbed, cgroups: &[File; 2], observer: &Other, options: &Options) -> Result<[f64; 2]> {
    testbed.unobserve()?;
    testbed.observe_by(Observed::Both, observer.against.as_deref(), &observer.against_option)?;
    let empty = EmptyPair::attach(&cgroups[0])?;
    let read = || cgroups.iter().map(|cgroup| bpf::runs_of(cgroup, OURS)).collect::<Result<Vec<_>>>();
    let mut times = [0.0; 2];
    for time in &mut times {
        let (before, empty_before) = (read()?, empty.runs()?);
        let answers = testbed.saturate(PADDING, options.time)?;
        let (after, costs) = (read()?, kernel::costs(empty_before, empty.runs()?));
        let net = before.iter().zip(after).map(|(before, after)| kernel::net(&bpf::since(after, before), &costs));
        *time = net.sum::<f64>() / answers.requests / 1000.0;
    }
    Ok(times)
}

impl Other {
    fn describe(&self) -> String {
        let binary = self.against.as_ref().map_or("this build".to_owned(), |path| path.display().to_string());
        let options: Vec<_> = self.against_option.iter().map(String::as_str).collect();
        format!("{binary} {}", options.join(" ")).trim_end().to_owned()
    }
}
