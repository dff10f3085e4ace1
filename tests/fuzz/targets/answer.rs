//! A receiver's answer to a batch: any bytes are classified, and the pause that follows is within its bounds
//! and can be added to any clock. The headers are those of a gRPC status as well, the bytes an OTLP answer.
//!
//! Input: bytes of an answer of HTTP/1, as they come over the connection.
#![no_main]

use std::{
    cell::RefCell,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime},
};

use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, Response, body::Bytes, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use libfuzzer_sys::fuzz_target;
use observer::emit::{DeliveryLimits, Failure, answer, otlp::grpc};
use observer_model::encode::otlp::answer::{partial_success, retry_delay, status_message};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    runtime::{Builder, Runtime},
};

/// A receiver that sends this and then closes.
struct Receiver(Vec<u8>, usize);

impl AsyncRead for Receiver {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let rest = &self.0[self.1..];
        let taken = rest.len().min(buffer.remaining());
        buffer.put_slice(&rest[..taken]);
        self.1 += taken;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Receiver {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

thread_local! {
    static RUNTIME: RefCell<Option<Runtime>> = const { RefCell::new(None) };
}

fuzz_target!(|input: &[u8]| {
    let answer = RUNTIME.with_borrow_mut(|runtime| {
        let runtime = runtime.get_or_insert_with(|| Builder::new_current_thread().build().expect("a runtime"));
        runtime.block_on(ask(Receiver(input.to_vec(), 0)))
    });
    let Some(response) = answer else { return };
    let (status, headers) = (response.status(), response.headers());
    let judged = answer::classify(status, headers, SystemTime::now(), &"a receiver");
    assert_eq!(judged.is_ok(), status.is_success());
    for failure in [judged, grpc::classify(headers, &"a receiver")].into_iter().filter_map(Result::err) {
        check_pause(&failure);
    }
    if let Some(after) = retry_delay(input) {
        check_pause(&Failure::PushBack { after: Some(after) });
    }
    let _ = (partial_success(input), status_message(input));
});

/// Returns the answer, once all of its body that there is has come.
async fn ask(receiver: Receiver) -> Option<Response<()>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(receiver)).await.ok()?;
    let request = Request::post("/").header("host", "a").body(Empty::<Bytes>::new()).expect("it is one");
    let asked = async {
        let (head, mut body): (_, Incoming) = sender.send_request(request).await.ok()?.into_parts();
        while let Some(Ok(_)) = body.frame().await {}
        Some(Response::from_parts(head, ()))
    };
    tokio::select! {
        biased;
        answer = asked => answer,
        _ = connection => None,
    }
}

fn check_pause(failure: &Failure) {
    let limits = DeliveryLimits::default();
    let longest = limits.max_push_back.max(limits.max_pause).mul_f64(1.25);
    for attempt in [0, 1, u32::MAX] {
        for jitter in [0.0, 1.0] {
            let pause = limits.pause(attempt, failure, jitter);
            assert!((Duration::from_millis(500)..=longest).contains(&pause), "{pause:?} after {failure:?}");
            assert!(Instant::now().checked_add(pause).is_some());
        }
    }
}
