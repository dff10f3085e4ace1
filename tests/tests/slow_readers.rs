//! Memory of an observer that many read slowly, whose pages of control planes are a megabyte each: flat, and as
//! `docs/operating.md` states.

use std::{
    fs,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{
    net::finish,
    replay::Replay,
    tools,
    wait::wait_until,
    web::{TLS, Web},
};

const PLANES: usize = 5;
const SAMPLES: usize = 13_000;
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long each number of readers is there: longer than it takes to get new snapshots.
const READING: Duration = Duration::from_secs(25);
/// A page takes minutes at this speed.
const SPEED: &str = "10k";
const CODINGS: [&str; 3] = ["identity", "gzip", "zstd"];
/// As stated: five snapshots of five pages, and of each of 64 connections what is being written and a compressor.
const SNAPSHOTS: usize = 5 * PLANES * (1 << 20);
const CONNECTION: usize = (100 << 10) + (1 << 20);
const MAX_CONNECTIONS: usize = 64;
/// What 192 readers more than connections may cost: the phase of scrapes and the allocator, where as many connections would
/// cost 200 MiB.
const MAX_MORE: usize = 32 << 20;

#[test]
fn memory_is_flat_however_many_read_slowly() -> Result<()> {
    measure("plain", "", "http")
}

#[test]
fn memory_is_flat_however_many_read_slowly_over_tls() -> Result<()> {
    measure("over-tls", TLS, "https")
}

fn measure(name: &str, configuration: &str, scheme: &str) -> Result<()> {
    let lines: String = (0..SAMPLES).map(|number| format!("pilot_x{{n=\"{}\"}} {number}\n", word(number))).collect();
    ensure!(lines.len() > 1_000_000, "{} bytes a page", lines.len());
    let page = format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n{lines}", lines.len());
    let planes = (0..PLANES).map(|_| Replay::start_with(page.clone().into_bytes())).collect::<Result<Vec<_>>>()?;
    let urls: Vec<String> = planes.iter().map(Replay::url).collect();
    // Every scrape is a page of its own in memory, though it has the same text.
    let pages = urls.iter().flat_map(|url| ["--control-plane", url]);
    let arguments: Vec<&str> = ["--scrape-interval", "1s"].into_iter().chain(pages).collect();
    let web = Web::start(&format!("slow-{name}"), configuration, &arguments)?;
    let url = format!("{scheme}://{}/metrics", web.address());
    let read = || finish(Command::new(tools::require("curl")?).args(["-sSfk", "-m", "10", &url]), "");
    wait_until("all pages are there", START_TIMEOUT, || {
        let length = read()?.len();
        ensure!(length > PLANES * lines.len(), "{length} bytes: {}", web.log());
        Ok(())
    })?;
    for _ in 0..10 {
        read()?;
    }
    let before = resident(&web)?;
    let mut most = Vec::new();
    for number in [MAX_CONNECTIONS / 4, MAX_CONNECTIONS, 4 * MAX_CONNECTIONS] {
        let readers =
            (0..number).map(|at| Reader::start(&url, CODINGS[at % CODINGS.len()])).collect::<Result<Vec<_>>>()?;
        let (began, mut peak) = (Instant::now(), 0);
        while began.elapsed() < READING {
            sleep(Duration::from_millis(200));
            peak = peak.max(resident(&web)?);
        }
        drop(readers);
        most.push(peak);
    }
    println!("{name}: {before} bytes resident; with 16, 64 and 256 slow readers at most {most:?}");
    let [_, full, more] = most[..] else { unreachable!("three numbers of readers") };
    let stated = before + SNAPSHOTS + MAX_CONNECTIONS * CONNECTION;
    ensure!(full.max(more) < stated, "{before} bytes, with 64 readers {full}, with 256 {more}");
    ensure!(more < full + MAX_MORE, "{full} bytes with 64 readers, with 256 {more}");
    read()?;
    web.end()
}

/// Returns a word of 64 digits that hardly compresses.
fn word(number: usize) -> String {
    let digits =
        |part: u64| format!("{:016x}", (number as u64 * 4 + part).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29));
    (0..4).map(digits).collect()
}

/// Returns the observer's resident memory in bytes.
fn resident(web: &Web) -> Result<usize> {
    let status = fs::read_to_string(format!("/proc/{}/status", web.pid()))?;
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(kilobytes.trim_end_matches("kB").trim().parse::<usize>()? << 10)
}

/// A client that reads slowly; killed when dropped.
struct Reader(Child);

impl Reader {
    fn start(url: &str, coding: &str) -> Result<Self> {
        let mut command = Command::new(tools::require("curl")?);
        command.args([
            "-sk",
            "--limit-rate",
            SPEED,
            "-H",
            &format!("accept-encoding: {coding}"),
            "-o",
            "/dev/null",
            url,
        ]);
        Ok(Self(command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().context("curl")?))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // It ends with its connection.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
