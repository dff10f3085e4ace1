//! A receiver on loopback that does as it is told.

use std::{io::Read, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc,
};

use crate::emit::{Batch, Sending, Transport};

/// The clock stands while something is being sent: the network takes its time whatever the clock says.
pub(super) struct Held<T>(pub(super) T);

impl<T: Transport> Transport for Held<T> {
    fn send<'a>(&'a mut self, batch: &'a Batch) -> Sending<'a> {
        Box::pin(async {
            let (release, held) = std::sync::mpsc::channel::<()>();
            let holding = tokio::task::spawn_blocking(move || held.recv().is_ok());
            let sent = self.0.send(batch).await;
            drop(release);
            holding.await.unwrap();
            sent
        })
    }
}

/// What the scripted receiver does with one request.
pub(super) enum Act {
    Answer(&'static str),
    /// Takes it, with an answer whose body is not what its head says.
    BrokenGzip,
    /// Never answers, and moves a clock that stands by so much.
    Hang(Option<Duration>),
    Close,
}

/// A receiver that follows a script, then takes everything; it hands on what it took.
pub(super) async fn receiver(script: Vec<Act>) -> (reqwest::Url, mpsc::UnboundedReceiver<String>) {
    let mut script = script.into_iter();
    receive(move || script.next().unwrap_or(Act::Answer("202 Accepted"))).await
}

/// A receiver that does with each request what `next` says.
pub(super) async fn receive(
    mut next: impl FnMut() -> Act + Send + 'static,
) -> (reqwest::Url, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
    let (taken, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut hanging = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            let body = loop {
                if stream.read_buf(&mut request).await.unwrap() == 0 {
                    break None;
                }
                let text = String::from_utf8_lossy(&request).to_lowercase();
                let Some(head) = request.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
                assert!(text.starts_with("post / http/1.1") && text.contains("content-encoding: gzip"));
                let (_, length) = text.split_once("content-length: ").unwrap();
                let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
                if request.len() >= head + 4 + length {
                    break Some(request[head + 4..head + 4 + length].to_vec());
                }
            };
            let Some(body) = body else { continue };
            let (answer, trailer) = match next() {
                Act::Hang(moved) => {
                    hanging.push(stream);
                    if let Some(moved) = moved {
                        tokio::time::advance(moved).await;
                    }
                    continue;
                }
                Act::Close => continue,
                Act::BrokenGzip => ("202 Accepted\r\ncontent-encoding: gzip", "no gzip"),
                Act::Answer(answer) => (answer, ""),
            };
            if answer.starts_with("202") {
                let mut text = String::new();
                flate2::read::GzDecoder::new(body.as_slice()).read_to_string(&mut text).unwrap();
                let _ = taken.send(text);
            }
            let length = trailer.len();
            let answer = format!("HTTP/1.1 {answer}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{trailer}");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    (url, receiver)
}
