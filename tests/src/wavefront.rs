//! Wavefront's own decoders, and a proxy that answers by a script and records its requests.

use std::{
    collections::VecDeque,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::{Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;

use crate::tools;

/// Returns the verdict of Wavefront's own decoders and validation, at the documented limits, on each line.
pub fn judged(lines: &str) -> Result<Vec<String>> {
    answers(lines, tools::wavefront_decoder()?)
}

/// Returns the same on each line of a span; behind "ok" is what was read, parted by tabs.
pub fn decoded_spans(lines: &str) -> Result<Vec<String>> {
    let mut decoder = tools::wavefront_decoder()?;
    decoder.arg("spans");
    answers(lines, decoder)
}

fn answers(lines: &str, mut decoder: Command) -> Result<Vec<String>> {
    let mut decoder = decoder.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut input = decoder.stdin.take().context("no standard input")?;
    let lines = lines.to_owned();
    let writer = thread::spawn(move || input.write_all(lines.as_bytes()));
    let output = decoder.wait_with_output()?;
    writer.join().expect("the writer does not panic")?;
    ensure!(output.status.success(), "the decoder failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect())
}

/// The proxy's reaction to one request.
#[derive(Clone, Copy, Debug)]
pub enum Act {
    /// Answers with this status, and further headers after it.
    Answer(&'static str),
    /// Reads it and never answers.
    Hang,
    /// Reads it and closes.
    Close,
}

/// The reaction that accepts a batch.
pub const TAKE: Act = Act::Answer("202 Accepted");

/// Lines of one request.
#[derive(Clone, Debug)]
pub struct Request {
    /// As received.
    pub lines: String,
    /// Whether it accepted them.
    pub taken: bool,
}

/// A proxy on a port of its own.
#[derive(Clone, Debug)]
pub struct Proxy {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    script: VecDeque<Act>,
    then: Act,
    requests: Vec<Request>,
}

impl Proxy {
    /// Follows the script, one reaction per request, then repeats `then` until the test ends.
    pub fn start(script: &[Act], then: Act) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on 127.0.0.1")?;
        let state = State { script: script.iter().copied().collect(), then, requests: Vec::new() };
        let proxy = Self { address: listener.local_addr()?, state: Arc::new(Mutex::new(state)) };
        let accepting = proxy.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let proxy = accepting.clone();
                // A client may leave early.
                thread::spawn(move || drop(proxy.serve(stream)));
            }
        });
        Ok(proxy)
    }

    /// Returns the URL for `--emit`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("wavefront+http://{}", self.address)
    }

    /// Sets how requests after the end of the script are answered.
    pub fn then(&self, act: Act) {
        self.state().then = act;
    }

    /// Returns all requests so far.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.state().requests.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, mut stream: TcpStream) -> Result<()> {
        let lines = lines(&mut stream)?;
        let act = {
            let mut state = self.state();
            let act = state.script.pop_front().unwrap_or(state.then);
            let taken = matches!(act, Act::Answer(answer) if answer.starts_with("202"));
            state.requests.push(Request { lines, taken });
            act
        };
        match act {
            Act::Close => {}
            // Until the client closes.
            Act::Hang => drop(stream.read(&mut [0])?),
            Act::Answer(answer) => {
                write!(stream, "HTTP/1.1 {answer}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")?;
            }
        }
        Ok(())
    }
}

/// Reads a whole request; returns its decompressed body.
fn lines(stream: &mut TcpStream) -> Result<String> {
    let (mut request, mut piece) = (Vec::new(), [0; 65536]);
    loop {
        let read = stream.read(&mut piece)?;
        ensure!(read > 0, "the request broke off");
        request.extend_from_slice(&piece[..read]);
        let Some(end) = request.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head = std::str::from_utf8(&request[..end])?.to_ascii_lowercase();
        ensure!(head.starts_with("post ") && head.contains("content-encoding: gzip"), "{head}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let body = &request[end + 4..];
        if body.len() >= length.context("no length")?.parse()? {
            let mut text = String::new();
            GzDecoder::new(body).read_to_string(&mut text)?;
            return Ok(text);
        }
    }
}
