//! Stands between a scraper and the observer and keeps what passed, so that what was stored can be compared with it.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::{Context, Result};

/// A relay on a port of its own, until the test ends.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    passed: Arc<Mutex<Passed>>,
}

/// What passed.
#[derive(Debug, Default)]
struct Passed {
    answers: usize,
    last: Vec<u8>,
    frozen: bool,
}

impl Relay {
    /// Passes requests on to `observer`, as they are or with another `Accept` header.
    pub fn start(observer: SocketAddr, accept: Option<&'static str>) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on 127.0.0.1")?;
        let relay = Self { address: listener.local_addr()?, passed: Arc::default() };
        let passed = relay.passed.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A failure shows on the other side, as a scrape that failed.
                let _ = pass(stream, observer, accept, &passed);
            }
        });
        Ok(relay)
    }

    /// `address:port`.
    pub fn instance(&self) -> String {
        self.address.to_string()
    }

    /// How many answers passed.
    pub fn answers(&self) -> usize {
        self.passed.lock().unwrap_or_else(PoisonError::into_inner).answers
    }

    /// Repeats the last answer from now on; its head and its body.
    pub fn freeze(&self) -> Result<(String, String)> {
        let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        passed.frozen = true;
        let answer = str::from_utf8(&passed.last).context("the page is not UTF-8")?;
        let (head, body) = answer.split_once("\r\n\r\n").context("nothing has passed")?;
        Ok((head.to_owned(), body.to_owned()))
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
            // What is kept is to be read here: neither compressed, nor in chunks, which HTTP/1.0 does not have.
            "accept-encoding" => {}
            "accept" if accept.is_some() => {}
            _ => {
                request.push_str(&line.replace(" HTTP/1.1", " HTTP/1.0"));
                request.push_str("\r\n");
            }
        }
    }
    let accept = accept.map(|accept| format!("accept: {accept}\r\n")).unwrap_or_default();
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
