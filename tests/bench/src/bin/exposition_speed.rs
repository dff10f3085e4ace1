//! Speed and memory of the exposition parser: `exposition_speed PAGE MEGABYTES RUNS`.
//!
//! Repeats the exposition up to that size, then reads it in pieces as from a socket, looks at every label and every
//! value, and distinguishes series. Prints the megabytes per second of each run, then the kilobytes by which resident
//! memory grew.

use std::{env, error::Error, fs, hint::black_box, time::Instant};

use observer_model::exposition::{Event, Format, Parser, SeriesSet};

const PIECE: usize = 16 * 1024;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [page, megabytes, runs] = arguments.as_slice() else { return Err("PAGE MEGABYTES RUNS".into()) };
    let (page, megabytes) = (fs::read(page)?, megabytes.parse::<usize>()?);
    let whole = page.repeat((megabytes * 1_000_000).div_ceil(page.len()));
    let before = peak_kilobytes()?;
    for _ in 0..runs.parse::<u32>()? {
        let began = Instant::now();
        black_box(read(&whole));
        println!("{:.1}", megabytes_of(&whole) / began.elapsed().as_secs_f64());
    }
    println!("{}", peak_kilobytes()? - before);
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
fn megabytes_of(page: &[u8]) -> f64 {
    page.len() as f64 / 1e6
}

fn read(whole: &[u8]) -> u64 {
    let mut parser = Parser::new(Format::Text);
    let mut seen = SeriesSet::default();
    let mut samples = 0;
    let mut each = |event: Event<'_>| match event {
        // Each repetition is an exposition of its own: a family's series are cleared when it begins again.
        Event::Type { .. } => seen.clear(),
        Event::Sample(sample) => {
            assert!(seen.insert(&sample), "{sample:?} comes twice");
            black_box((sample.labels, sample.value));
            samples += 1;
        }
        Event::Problem(problem) => panic!("{problem:?}"),
        Event::Help { .. } | Event::Unit { .. } => {}
    };
    whole.chunks(PIECE).for_each(|piece| parser.feed(piece, &mut each));
    parser.finish(&mut each);
    samples
}

/// Returns the peak resident memory so far (proc_pid_status(5)).
fn peak_kilobytes() -> Result<i64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
