//! Cost of scraping control planes: an observer with twenty large targets beside one without targets.

use std::{fmt::Write as _, fs, thread::sleep, time::Duration};

use anyhow::{Context as _, Result};
use harness::{
    mesh::Mesh,
    observer::Observer,
    replay::{Capture, Replay, fixtures},
};

use crate::{
    cpu::used,
    memory::Memory,
    report::{Row, Target},
    spread::Spread,
    testbed::start_observer,
};

/// Recordings of each release, enlarged: twenty in all.
const RELEASES: [&str; 4] = ["1.12.9", "1.18.7", "1.25.3", "1.32-dev"];
const PAGES: [&str; 5] = ["10-rejects", "13-webhook", "16-one-left", "23-odd-labels", "25-many-series"];
const PAGE_BYTES: usize = 1_000_000;
/// Scrape interval of each target.
const INTERVAL: &str = "10s";
/// Two scrapes of every target.
const WINDOW: Duration = Duration::from_secs(20);
const WINDOWS: usize = 5;
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(60);
const UP: &str = "mesh_observer_control_plane_up";
const SAMPLES: &str = "mesh_observer_control_plane_samples";

/// Measures CPU time and memory above those of an observer without targets, beside the difference of two such
/// observers.
pub(crate) fn cost() -> Result<Vec<Row>> {
    let mesh = Mesh::new()?;
    let planes = planes()?;
    let urls: Vec<String> = planes.iter().map(Replay::url).collect();
    let executable = mesh.executable();
    let only = ["--sidecar-exe", executable.as_str(), "--interval", INTERVAL, "--scrape-interval", INTERVAL];
    let pages: Vec<&str> = urls.iter().flat_map(|url| ["--control-plane", url]).collect();
    let start = |more: &[&str]| start_observer(&mesh, "", 0, &[&only, more].concat());
    let [scraping, idle, other] = [start(&pages)?, start(&[])?, start(&[])?];
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let all = urls.len() as f64;
    let page = scraping.wait(SCRAPE_TIMEOUT, |page| page.sum(UP, &[]) == Some(all))?;
    let samples = page.sum(SAMPLES, &[]).context("no samples")?;
    drop(page);

    let (mut cpu, mut noise, mut resident) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..WINDOWS {
        let before = [used(scraping.pid())?, used(idle.pid())?, used(other.pid())?];
        sleep(WINDOW);
        let after = [used(scraping.pid())?, used(idle.pid())?, used(other.pid())?];
        let [with, without, again] =
            [0, 1, 2].map(|own| (after[own] - before[own]).as_secs_f64() / WINDOW.as_secs_f64() * 100.0);
        cpu.push(with - without);
        noise.push((again - without).abs());
        resident.push(Memory::of(&scraping)?.resident - Memory::of(&idle)?.resident);
    }
    let [with, without, again] = [Memory::of(&scraping)?, Memory::of(&idle)?, Memory::of(&other)?];
    [scraping, idle, other].into_iter().try_for_each(Observer::stop)?;

    let how = format!(
        "20 pages of real istiods, each grown to 1 MB by repeating its series under one more label: {samples} samples, scraped \
         every {INTERVAL}; nobody reads /metrics meanwhile; an observer without pages runs beside it"
    );
    let mut memory =
        Row::new("memory for 20 control-plane pages of 1 MB", Target::AtMost(10.0), "MB", Spread::of(resident))
            .note(format!("with pages: {with}"))
            .note(format!("without: {without}"))
            .note(format!("two observers without pages differ by {:.1} MB", (again.resident - without.resident).abs()));
    memory.details.insert("proportional_mb".to_owned(), with.proportional - without.proportional);
    memory.details.insert("peak_mb".to_owned(), with.peak - without.peak);
    Ok(vec![
        Row::new(
            "CPU of scraping 20 control-plane pages of 1 MB, of a core",
            Target::AtMost(1.0),
            "%",
            Spread::of(cpu),
        )
        .note(how)
        .note(format!("two observers without pages differ by {} %", Spread::of(noise))),
        memory,
    ])
}

fn planes() -> Result<Vec<Replay>> {
    let named = RELEASES.into_iter().flat_map(|release| PAGES.map(|page| format!("{release}/{page}")));
    named.map(|name| Capture::named(&name).and_then(|capture| serve(&capture))).collect()
}

fn serve(capture: &Capture) -> Result<Replay> {
    let page = fs::read_to_string(fixtures().join(format!("{}.prom", capture.name))).context(capture.name.clone())?;
    let page = grown(&page, PAGE_BYTES);
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4\r\nconnection: close\r\n";
    Replay::start_with(format!("{head}content-length: {}\r\n\r\n{page}", page.len()).into_bytes())
}

/// Returns the page with each of its series as many times, under one more label, as it takes to have so many bytes.
fn grown(page: &str, bytes: usize) -> String {
    let [once, twice] = [1, 2].map(|copies| repeated(page, copies).len());
    repeated(page, 1 + bytes.saturating_sub(once).div_ceil(twice - once))
}

fn repeated(page: &str, copies: usize) -> String {
    let mut text = String::new();
    let mut lines = page.lines().peekable();
    while lines.peek().is_some() {
        while let Some(comment) = lines.next_if(|line| line.starts_with('#')) {
            let _ = writeln!(text, "{comment}");
        }
        let family: Vec<&str> = std::iter::from_fn(|| lines.next_if(|line| !line.starts_with('#'))).collect();
        for copy in 0..copies {
            for line in &family {
                let end = line.find(['{', ' ']).unwrap_or(line.len());
                let (name, rest) = line.split_at(end);
                let _ = match rest.strip_prefix('{') {
                    Some(labels) => writeln!(text, "{name}{{copy=\"{copy}\",{labels}"),
                    None => writeln!(text, "{name}{{copy=\"{copy}\"}}{rest}"),
                };
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grown_page_has_each_series_many_times_in_its_family() {
        let page = "# TYPE a gauge\na 1\n# TYPE b counter\nb{x=\" {\"} 2\n";
        let expected = "# TYPE a gauge\na{copy=\"0\"} 1\na{copy=\"1\"} 1\n# TYPE b counter\n\
                        b{copy=\"0\",x=\" {\"} 2\nb{copy=\"1\",x=\" {\"} 2\n";
        assert_eq!(repeated(page, 2), expected);
        assert!((10_000..11_000).contains(&grown(page, 10_000).len()));
    }
}
