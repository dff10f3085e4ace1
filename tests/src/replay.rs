//! Replays recordings of real control planes with their headers, in chunks and
//! compressed for clients that accept it, as real ones do.

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::{Context, Result};
use flate2::{Compression, write::GzEncoder};

use crate::tools;

const FORBIDDEN: &[u8] = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
/// Bytes of one chunk, small enough for many chunks per exposition.
const CHUNK: usize = 2048;

/// Returns the directory of the recordings.
#[must_use]
pub fn fixtures() -> PathBuf {
    tools::repository().join("tests/fixtures/istiod")
}

/// Returns the names of the families that Istio's documentation lists for the control plane.
pub fn documented() -> Result<Vec<String>> {
    let table = fs::read_to_string(fixtures().join("coverage.tsv")).context("coverage.tsv")?;
    let names = table.lines().skip(1).filter_map(|row| row.split('\t').nth(1));
    Ok(names.map(str::to_owned).collect())
}

/// One recording of one version, e.g. `1.25.3/05-config-update`.
#[derive(Clone, Debug)]
pub struct Capture {
    /// Version and name, without `.prom`.
    pub name: String,
    content_type: String,
}

impl Capture {
    /// Returns every recording.
    pub fn all() -> Result<Vec<Self>> {
        let headers = fs::read_to_string(fixtures().join("headers.tsv")).context("headers.tsv")?;
        let captures = headers.lines().skip(1).filter_map(|line| {
            let columns: Vec<&str> = line.split('\t').collect();
            let [version, file, _, _, content_type, ..] = columns[..] else { return None };
            // The other recordings describe requests, not responses.
            let name = file.strip_suffix(".prom").filter(|name| !name.starts_with("24-"))?;
            Some(Self { name: format!("{version}/{name}"), content_type: content_type.to_owned() })
        });
        Ok(captures.collect())
    }

    /// Returns the recording of this name.
    pub fn named(name: &str) -> Result<Self> {
        Self::all()?.into_iter().find(|own| own.name == name).with_context(|| format!("no page {name}"))
    }

    /// Returns its version.
    #[must_use]
    pub fn version(&self) -> &str {
        self.name.split('/').next().unwrap_or_default()
    }

    fn answers(&self) -> Result<Answers> {
        let page = fs::read(fixtures().join(format!("{}.prom", self.name))).with_context(|| self.name.clone())?;
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(&page)?;
        Ok(Answers {
            plain: self.answer(&page, "")?,
            gzip: Some(self.answer(&encoder.finish()?, "Content-Encoding: gzip\r\n")?),
        })
    }

    /// Returns the answer as the real control plane sends it: chunked, of unknown length.
    fn answer(&self, body: &[u8], headers: &str) -> Result<Vec<u8>> {
        let mut answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {}\r\n{headers}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n",
            self.content_type
        )
        .into_bytes();
        for chunk in body.chunks(CHUNK) {
            write!(answer, "{:x}\r\n", chunk.len())?;
            answer.extend_from_slice(chunk);
            answer.extend_from_slice(b"\r\n");
        }
        answer.extend_from_slice(b"0\r\n\r\n");
        Ok(answer)
    }
}

/// The answer, and a compressed one for clients that accept it.
#[derive(Clone, Debug)]
struct Answers {
    plain: Vec<u8>,
    gzip: Option<Vec<u8>>,
}

/// One control plane on its own port, whose answer can be changed while it runs.
#[derive(Clone, Debug)]
pub struct Replay {
    address: SocketAddr,
    answers: Arc<Mutex<Answers>>,
}

impl Replay {
    /// Serves this recording until the test ends.
    pub fn start(capture: &Capture) -> Result<Self> {
        let replay = Self::start_with(Vec::new())?;
        replay.show(capture)?;
        Ok(replay)
    }

    /// Serves these bytes, valid or not.
    pub fn start_with(answer: Vec<u8>) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on 127.0.0.1")?;
        let answers = Answers { plain: answer, gzip: None };
        let replay = Self { address: listener.local_addr()?, answers: Arc::new(Mutex::new(answers)) };
        let answers = replay.answers.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client may leave early.
                let _ = serve(stream, &answers);
            }
        });
        Ok(replay)
    }

    /// Serves this recording from now on.
    pub fn show(&self, capture: &Capture) -> Result<()> {
        *self.answers.lock().unwrap_or_else(PoisonError::into_inner) = capture.answers()?;
        Ok(())
    }

    /// Serves these bytes from now on.
    pub fn answer_with(&self, answer: Vec<u8>) {
        *self.answers.lock().unwrap_or_else(PoisonError::into_inner) = Answers { plain: answer, gzip: None };
    }

    /// Returns `address:port`, the value of the label `instance`.
    #[must_use]
    pub fn instance(&self) -> String {
        self.address.to_string()
    }

    /// Returns its page for `--control-plane`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// Serves this page on every address of this network namespace, as istiod does with `METRICS_LOCALHOST_ACCESS_ONLY`:
/// who does not call from loopback is refused. For a process of its own; does not return.
pub fn serve_local_callers(capture: &Capture, port: u16) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).with_context(|| format!("port {port}"))?;
    let page = capture.answers()?;
    let forbidden = Answers { plain: FORBIDDEN.to_vec(), gzip: None };
    for stream in listener.incoming().flatten() {
        let is_local = stream.peer_addr().is_ok_and(|peer| IpAddr::is_loopback(&peer.ip()));
        // A client may leave early.
        let _ = exchange(stream, if is_local { &page } else { &forbidden });
    }
    Ok(())
}

fn serve(stream: TcpStream, answers: &Mutex<Answers>) -> std::io::Result<()> {
    let answers = answers.lock().unwrap_or_else(PoisonError::into_inner).clone();
    exchange(stream, &answers)
}

fn exchange(mut stream: TcpStream, answers: &Answers) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut piece = [0; 1024];
    while !request.ends_with(b"\r\n\r\n") {
        let read = stream.read(&mut piece)?;
        if read == 0 {
            return Ok(());
        }
        request.extend_from_slice(&piece[..read]);
    }
    let takes_gzip = String::from_utf8_lossy(&request).to_ascii_lowercase().contains("\r\naccept-encoding: gzip");
    stream.write_all(answers.gzip.as_ref().filter(|_| takes_gzip).unwrap_or(&answers.plain))
}
