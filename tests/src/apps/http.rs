//! An ordinary HTTP/1.1 server with keep-alive, whose paths select the answer.
//!
//! | path | answer |
//! |---|---|
//! | `/status/N` | status N, no body |
//! | `/bytes/N` | N zero bytes with Content-Length |
//! | `/chunked/N` | the same in chunks of 1,000 with an extension and a trailer |
//! | `/until-close/N` | the same until the connection ends |
//! | `/delay/MS` | 200 after that many milliseconds |
//! | `/echo` | the request's body |
//! | `/upload` | reads the body, answers its length |
//! | `/early` | answers 413 before it reads the body, then reads it |
//! | `/close` | 200 with `connection: close` |
//! | `/hints` | 103, then 200 |
//! | `/vanish`, `/reset` | ends the connection without an answer |
//! | `/short` | promises 100 bytes, sends 10 and ends |
//! | `/upgrade`, CONNECT | 101 or 200, then echoes |

use std::{io, thread::sleep, time::Duration};

use anyhow::Result;

use super::raw::{Connection, Server, header};
use crate::mesh::Workload;

/// Starts it.
pub fn serve(on: &Workload, port: u16) -> Result<Server> {
    Server::start(on, port, answer_all)
}

fn answer_all(slot: &mut Option<Connection>) -> io::Result<()> {
    loop {
        let connection = slot.as_mut().expect("given by the server");
        let Some(head) = connection.receive_head()? else { return Ok(()) };
        let head = String::from_utf8_lossy(&head).trim_start_matches("\r\n").to_owned();
        let mut line = head.lines().next().unwrap_or_default().split(' ');
        let (method, path) = (line.next().unwrap_or_default(), line.next().unwrap_or_default());
        let old = line.next() == Some("HTTP/1.0");
        let path = path.split('?').next().unwrap_or_default().trim_start_matches('/');
        let (action, argument) = path.split_once('/').unwrap_or((path, ""));
        let number: u64 = argument.parse().unwrap_or(0);
        if header(&head, "expect").is_some() {
            connection.send("HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        if action == "early" {
            plain(connection, method, 413, b"")?;
        }
        let body = receive_body(connection, &head, action == "echo")?;
        let mut last = old || header(&head, "connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        match (method, action) {
            ("CONNECT", _) => return tunnel(connection, "HTTP/1.1 200 OK\r\n\r\n"),
            (_, "upgrade") => {
                return tunnel(
                    connection,
                    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
                );
            }
            (_, "early") => {}
            (_, "status") => plain(connection, method, u16::try_from(number).unwrap_or(500), b"")?,
            (_, "bytes") => {
                connection.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {number}\r\n\r\n"))?;
                if method != "HEAD" {
                    connection.send_zeros(number)?;
                }
            }
            (_, "chunked") => chunked(connection, number)?,
            (_, "until-close") => {
                connection.send("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")?;
                connection.send_zeros(number)?;
                last = true;
            }
            (_, "delay") => {
                sleep(Duration::from_millis(number));
                plain(connection, method, 200, b"late")?;
            }
            (_, "echo") => plain(connection, method, 200, &body.1)?,
            (_, "close") => {
                connection.send("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 3\r\n\r\nbye")?;
                last = true;
            }
            (_, "hints") => {
                connection.send("HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\n\r\n")?;
                plain(connection, method, 200, b"hinted")?;
            }
            (_, "vanish") => return Ok(()),
            (_, "reset") => {
                slot.take().expect("given by the server").reset();
                return Ok(());
            }
            (_, "short") => return connection.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n0123456789"),
            (_, "upload") => plain(connection, method, 200, body.0.to_string().as_bytes())?,
            _ => plain(connection, method, 200, b"hello\n")?,
        }
        if last {
            return Ok(());
        }
    }
}

fn plain(connection: &mut Connection, method: &str, status: u16, body: &[u8]) -> io::Result<()> {
    let bodiless = matches!(status, 100..200 | 204 | 304);
    let length = if bodiless { String::new() } else { format!("content-length: {}\r\n", body.len()) };
    let mut message = format!("HTTP/1.1 {status} Status\r\n{length}\r\n").into_bytes();
    if method != "HEAD" && !bodiless {
        message.extend_from_slice(body);
    }
    connection.send(message)
}

fn chunked(connection: &mut Connection, length: u64) -> io::Result<()> {
    connection.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n")?;
    let mut left = length;
    while left > 0 {
        let size = left.min(1000);
        connection.send(format!("{size:x};note=\"a chunk\"\r\n"))?;
        connection.send_zeros(size)?;
        connection.send("\r\n")?;
        left -= size;
    }
    connection.send("0\r\nx-sum: 0\r\n\r\n")
}

/// Receives the request's body; returns its length, and the body itself if `keep`.
fn receive_body(connection: &mut Connection, head: &str, keep: bool) -> io::Result<(u64, Vec<u8>)> {
    if header(head, "transfer-encoding").is_some() {
        let (body, _) = connection.receive_chunks()?;
        return Ok((body.len() as u64, body));
    }
    let length: usize = header(head, "content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let (mut left, mut kept) = (length, Vec::new());
    while left > 0 {
        let part = connection.receive(left.min(1 << 16))?;
        left -= part.len();
        if keep {
            kept.extend(part);
        }
    }
    Ok((length as u64, kept))
}

fn tunnel(connection: &mut Connection, head: &str) -> io::Result<()> {
    connection.send(head)?;
    loop {
        let bytes = connection.receive_some()?;
        if bytes.is_empty() {
            return Ok(());
        }
        connection.send(bytes)?;
    }
}
