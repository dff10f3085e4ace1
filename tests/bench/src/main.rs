//! Benchmarks of the observer against targets; the samples of each are in `target/bench/<benchmark>.json`.
//!
//! Ratios are of neighbouring intervals in one run, observed and unobserved in turn, and each stands beside the ratio
//! of two unobserved intervals measured in the same way, which shows the noise of the machine. A missed target is not
//! an error; an error means that something could not be measured.

mod app;
mod attach;
mod bpf;
mod cadence;
mod compare;
mod control_plane;
mod cpu;
mod end_to_end;
mod exposition;
mod kernel;
mod load;
mod memory;
mod protocol;
mod reading;
mod rendering;
mod report;
mod speed;
mod spread;
mod start;
mod streams;
mod testbed;
mod worst;

use std::{process::ExitCode, sync::atomic::Ordering, time::Duration};

use anyhow::{Result, bail};
use clap::{Parser as _, ValueEnum};
use harness::{
    console::{exit, say, stop_on_signal, timed},
    stand_in,
};

use crate::{
    protocol::Protocol,
    report::{Report, Row},
};

/// Measures what observing costs; the samples are in target/bench.
#[derive(clap::Parser)]
#[command(name = "cargo xtask bench")]
struct Options {
    /// Maximum pairs of intervals per ratio, until unobserved against unobserved lies within 2 %.
    #[arg(long, default_value_t = 24)]
    pairs: usize,
    /// Length of one interval of load, e.g. 4s.
    #[arg(long = "for", value_name = "DURATION", default_value = "4s", value_parser = humantime::parse_duration)]
    time: Duration,
    #[command(flatten)]
    other: compare::Other,
    /// Benchmarks to run; all if none is named.
    #[arg(value_enum, value_name = "NAME")]
    benchmarks: Vec<Benchmark>,
}

/// A benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Benchmark {
    /// Requests per second, observed / unobserved.
    Throughput,
    /// 99th percentile at half load, observed / unobserved.
    Latency,
    /// Time in a packet program / in an empty one, and in all programs per request.
    Kernel,
    /// Kernel time a request / that of another build or with other options; by default without callers.
    Compare,
    /// Throughput and kernel time of HTTP/2.
    Http2,
    /// Throughput and kernel time of unary gRPC calls.
    Grpc,
    /// Calls lost and kernel memory of 1,000 connections with 100 open calls each.
    Streams,
    /// Longest time of the eBPF programs for a packet, and for the end of many connections at once.
    Worst,
    /// The observer's CPU time at full load minus that without load.
    Cpu,
    /// The observer's memory with 100 sidecars and 10,000 series.
    Memory,
    /// Time of reading 10,000 series, with and without percentiles.
    Reading,
    /// Time and memory of the observer's start.
    Start,
    /// From a sidecar's start to its programs attached.
    Attach,
    /// Speed of a 1 GiB body, observed / unobserved.
    Bulk,
    /// Speed and memory of the parser of scraped expositions.
    Exposition,
    /// Speed of the encoders for Prometheus and Wavefront.
    Rendering,
    /// CPU time and memory of scraping 20 control planes of 1 MB.
    ControlPlane,
    /// Delay of kernel collection while scrapes of control planes hang.
    Cadence,
}

fn main() -> ExitCode {
    stand_in::played().unwrap_or_else(|| exit(run(&Options::parse())))
}

/// Measures and prints.
fn run(options: &Options) -> Result<()> {
    let stop = stop_on_signal()?;
    let benchmarks = if options.benchmarks.is_empty() { Benchmark::value_variants() } else { &options.benchmarks };
    let mut report = Report::default();
    let mut failed = Vec::new();
    for &benchmark in benchmarks {
        let name = benchmark.to_possible_value().expect("no benchmark is skipped").get_name().to_owned();
        let result = timed(&format!("measuring {name}"), || benchmark.measure(options));
        if stop.load(Ordering::Relaxed) {
            say("stopped; namespaces, processes and cgroups are removed");
            return Ok(());
        }
        match result {
            Ok(rows) => report.add(&name, rows)?,
            Err(error) => {
                say(format!("{name} cannot be measured: {error:#}"));
                failed.push(name);
            }
        }
    }
    print!("{report}");
    if failed.is_empty() { Ok(()) } else { bail!("not measured: {}", failed.join(", ")) }
}

impl Benchmark {
    fn measure(self, options: &Options) -> Result<Vec<Row>> {
        match self {
            Self::Throughput => end_to_end::throughput(options, Protocol::Http1),
            Self::Latency => end_to_end::latency(options),
            Self::Kernel => kernel::time(options, Protocol::Http1),
            Self::Compare => compare::kernel_time(options),
            Self::Http2 => multiplexed(options, Protocol::Http2),
            Self::Grpc => multiplexed(options, Protocol::Grpc),
            Self::Streams => streams::held(),
            Self::Worst => worst::times(),
            Self::Cpu => cpu::at_no_and_full_load(options),
            Self::Memory => memory::resident(),
            Self::Reading => reading::time(),
            Self::Start => start::cost(),
            Self::Attach => attach::delay(),
            Self::Bulk => end_to_end::bulk(options),
            Self::Exposition => exposition::speed(),
            Self::Rendering => rendering::speed(),
            Self::ControlPlane => control_plane::cost(),
            Self::Cadence => cadence::lateness(),
        }
    }
}

fn multiplexed(options: &Options, protocol: Protocol) -> Result<Vec<Row>> {
    let mut rows = end_to_end::throughput(options, protocol)?;
    rows.extend(kernel::time(options, protocol)?);
    Ok(rows)
}
