//! What observing costs, beside the bar it must meet; each figure's samples in `target/bench/<figure>.json`.
//!
//! Ratios are of neighbouring intervals in one run, observed and unobserved in turn, and each stands beside the ratio of
//! two unobserved intervals measured in the same way: what that says of two equal things is the noise of the machine.
//! Nothing here fails because a bar is missed; an error means that something could not be measured.

mod app;
mod attach;
mod bpf;
mod cadence;
mod control_plane;
mod cpu;
mod end_to_end;
mod exposition;
mod kernel;
mod load;
mod memory;
mod protocol;
mod rendering;
mod report;
mod speed;
mod spread;
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
    /// Most pairs of intervals that one ratio may take until unobserved against unobserved lies within 2 %.
    #[arg(long, default_value_t = 24)]
    pairs: usize,
    /// Length of one interval of load.
    #[arg(long = "for", value_name = "DURATION", default_value = "4s", value_parser = humantime::parse_duration)]
    time: Duration,
    /// What to measure; everything if none is named.
    #[arg(value_enum, value_name = "NAME")]
    figures: Vec<Figure>,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Figure {
    /// Requests a second, observed / unobserved.
    Throughput,
    /// 99th percentile at half load, observed / unobserved.
    Latency,
    /// Time in a packet program / in an empty one, and in all programs a request.
    Kernel,
    /// Throughput and kernel time of HTTP/2.
    Http2,
    /// Throughput and kernel time of unary gRPC calls.
    Grpc,
    /// Calls lost and kernel memory of 1,000 connections with 100 open calls each.
    Streams,
    /// Longest time of the programs for a packet, and for the end of many connections at once.
    Worst,
    /// The observer's CPU time, at full load less at none.
    Cpu,
    /// The observer's memory with 100 sidecars and 10,000 series.
    Memory,
    /// From a sidecar's start to its programs attached.
    Attach,
    /// Speed of a 1 GiB body, observed / unobserved.
    Bulk,
    /// Speed and memory of the parser of scraped pages.
    Exposition,
    /// Speed at which figures become text for Prometheus and Wavefront.
    Rendering,
    /// CPU time and memory of scraping 20 control-plane pages of 1 MB.
    ControlPlane,
    /// How late the kernel's figures are read while control-plane pages hang.
    Cadence,
}

fn main() -> ExitCode {
    stand_in::played().unwrap_or_else(|| exit(run(&Options::parse())))
}

/// Measures and prints.
fn run(options: &Options) -> Result<()> {
    let stop = stop_on_signal()?;
    let figures = if options.figures.is_empty() { Figure::value_variants() } else { &options.figures };
    let mut report = Report::default();
    let mut failed = Vec::new();
    for &figure in figures {
        let name = figure.to_possible_value().expect("no figure is skipped").get_name().to_owned();
        let result = timed(&format!("measuring {name}"), || figure.measure(options));
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

impl Figure {
    fn measure(self, options: &Options) -> Result<Vec<Row>> {
        match self {
            Self::Throughput => end_to_end::throughput(options, Protocol::Http1),
            Self::Latency => end_to_end::latency(options),
            Self::Kernel => kernel::time(options, Protocol::Http1),
            Self::Http2 => multiplexed(options, Protocol::Http2),
            Self::Grpc => multiplexed(options, Protocol::Grpc),
            Self::Streams => streams::held(),
            Self::Worst => worst::times(),
            Self::Cpu => cpu::at_no_and_full_load(options),
            Self::Memory => memory::resident(),
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
