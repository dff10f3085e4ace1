//! Relays scrapes to the observer and records them, so that stored samples can be compared with the exposition.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::{Context, Result};
use flate2::read::GzDecoder;

/// A relay on a port of its own, until the test ends.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    passed: Arc<Mutex<Passed>>,
}

/// The recorded exchanges.
#[derive(Debug, Default)]
struct Passed {
    answers: usize,
    last: Vec<u8>,
    frozen: bool,
}

impl Relay {
    /// Passes requests on to `observer`, as they are or, with an `Accept` header of one's own, as HTTP/1.0 that takes
    /// nothing compressed or in chunks.
    pub fn start(observer: SocketAddr, accept: Option<&'static str>) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on 127.0.0.1")?;
        let relay = Self { address: listener.local_addr()?, passed: Arc::default() };
        let passed = relay.passed.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A failure shows as a failed scrape.
                let _ = pass(stream, observer, accept, &passed);
            }
        });
        Ok(relay)
    }

    /// Returns `address:port`.
    pub fn instance(&self) -> String {
        self.address.to_string()
    }

    /// Returns the number of relayed answers.
    pub fn answers(&self) -> usize {
        self.passed.lock().unwrap_or_else(PoisonError::into_inner).answers
    }

    /// Repeats the last answer from now on; its head, and its body as it is meant.
    pub fn freeze(&self) -> Result<(String, String)> {
        let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        passed.frozen = true;
        let end = passed.last.windows(4).position(|four| four == b"\r\n\r\n").context("nothing has passed")?;
        let head = str::from_utf8(&passed.last[..end]).context("the head is not UTF-8")?.to_owned();
        let mut body = passed.last[end + 4..].to_vec();
        let has = |line: &str| head.lines().any(|own| own.eq_ignore_ascii_case(line));
        if has("transfer-encoding: chunked") {
            body = unchunked(&body)?;
        }
        if has("content-encoding: gzip") {
            let mut text = Vec::new();
            GzDecoder::new(body.as_slice()).read_to_end(&mut text).context("the page's gzip")?;
            body = text;
        }
        Ok((head, String::from_utf8(body).context("the page is not UTF-8")?))
    }
}

/// Decodes a chunked body.
fn unchunked(mut chunks: &[u8]) -> Result<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let end = chunks.windows(2).position(|two| two == b"\r\n").context("a chunk without a size")?;
        let size = usize::from_str_radix(str::from_utf8(&chunks[..end])?, 16).context("a chunk's size")?;
        let chunk = chunks.get(end + 2..end + 2 + size).context("a chunk is cut")?;
        if size == 0 {
            return Ok(whole);
        }
        whole.extend_from_slice(chunk);
        chunks = chunks.get(end + 4 + size..).context("a chunk does not end")?;
    }
}

fn pass(
    mut scraper: TcpStream,
    observer: SocketAddr,
    accept: Option<&str>,
    passed: &Mutex<Passed>,
) -> std::io::Result<()> {
    let mut request = String::new();
    for line in BufReader::new(&scraper).lines() {
        let line = line?;
        let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
        match name.as_str() {
            "" => break,
            "accept" | "accept-encoding" if accept.is_some() => {}
            _ => {
                let line = if accept.is_some() { line.replace(" HTTP/1.1", " HTTP/1.0") } else { line };
                request.push_str(&line);
                request.push_str("\r\n");
            }
        }
    }
    let accept = accept.map_or_else(|| "connection: close\r\n".to_owned(), |accept| format!("accept: {accept}\r\n"));
    let mut passed = passed.lock().unwrap_or_else(PoisonError::into_inner);
    if !passed.frozen {
        let mut upstream = TcpStream::connect(observer)?;
        write!(upstream, "{request}{accept}\r\n")?;
        let mut answer = Vec::new();
        upstream.read_to_end(&mut answer)?;
        passed.last = answer;
    }
    passed.answers += 1;
    scraper.write_all(&passed.last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::{Capture, Replay, fixtures};

    const PAGE: &str = "1.25.3/16-one-left";

    fn passed(accept: Option<&'static str>) -> Result<(String, String)> {
        let served = Replay::start(&Capture::named(PAGE)?)?;
        let relay = Relay::start(served.instance().parse()?, accept)?;
        let mut stream = TcpStream::connect(relay.address)?;
        write!(stream, "GET /metrics HTTP/1.1\r\naccept: text/plain\r\naccept-encoding: gzip\r\n\r\n")?;
        stream.read_to_end(&mut Vec::new())?;
        let (head, body) = relay.freeze()?;
        Ok((head.to_ascii_lowercase(), body))
    }

    #[test]
    fn what_passes_compressed_and_in_chunks_is_kept_as_it_is_meant() {
        let page = std::fs::read_to_string(fixtures().join(format!("{PAGE}.prom"))).unwrap();
        let (head, body) = passed(None).unwrap();
        assert!(head.contains("content-encoding: gzip") && head.contains("transfer-encoding: chunked"), "{head}");
        assert!(body == page, "{body}");
        let (head, body) = passed(Some("text/plain")).unwrap();
        assert!(!head.contains("gzip") && body == page, "{head}");
    }

    #[test]
    fn chunks_that_are_cut_are_no_page() {
        assert_eq!(unchunked(b"3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n").unwrap(), b"abcd");
        for cut in [b"".as_slice(), b"3", b"3\r\nab", b"3\r\nabc\r\n", b"3\r\nabc", b"x\r\n"] {
            assert!(unchunked(cut).is_err(), "{cut:?}");
        }
    }
}
