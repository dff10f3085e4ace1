//! Closes connections whose client stalls for too long, or does not read a whole response in time.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Sleep,
};

/// Resolves when a response must be complete.
pub(super) type Deadline = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The response in progress on a connection, if any.
#[derive(Default)]
pub(super) struct Exchange {
    deadline: Mutex<Option<Deadline>>,
    was_cut: AtomicBool,
}

impl Exchange {
    /// Starts a response, which ends when the returned value is dropped.
    pub(super) fn begin(self: &Arc<Self>, deadline: Deadline) -> ResponseGuard {
        *self.deadline() = Some(deadline);
        ResponseGuard(self.clone())
    }

    /// Whether a response is in progress.
    pub(super) fn is_busy(&self) -> bool {
        self.deadline().is_some()
    }

    /// Whether a response was cut off at its deadline.
    pub(super) fn was_cut(&self) -> bool {
        self.was_cut.load(Relaxed)
    }

    fn is_over(&self, context: &mut Context<'_>) -> bool {
        let is_over = self.deadline().as_mut().is_some_and(|deadline| deadline.as_mut().poll(context).is_ready());
        if is_over {
            *self.deadline() = None;
            self.was_cut.store(true, Relaxed);
        }
        is_over
    }

    fn deadline(&self) -> MutexGuard<'_, Option<Deadline>> {
        self.deadline.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A response in progress.
pub(super) struct ResponseGuard(Arc<Exchange>);

impl Drop for ResponseGuard {
    fn drop(&mut self) {
        *self.0.deadline() = None;
    }
}

/// A stream that fails when the client stalls.
pub(super) struct StallTimeout {
    stream: TcpStream,
    stall: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
    exchange: Arc<Exchange>,
}

impl StallTimeout {
    /// `stall` is how long the client may read nothing.
    pub(super) fn new(stream: TcpStream, stall: Duration, exchange: Arc<Exchange>) -> Self {
        Self { stream, stall, stalled: None, exchange }
    }

    fn watch<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if self.exchange.is_over(context) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stall = self.stall;
        let sleep = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(stall)));
        sleep.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for StallTimeout {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for StallTimeout {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.watch(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.watch(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.watch(context, shut)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    const STALL: Duration = Duration::from_millis(200);

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    /// Writes until that fails; returns how long it went on.
    async fn write(mut stream: StallTimeout) -> Duration {
        let (began, piece) = (Instant::now(), vec![0; 1 << 20]);
        loop {
            if let Err(error) = stream.write_all(&piece).await {
                assert_eq!(error.kind(), io::ErrorKind::TimedOut);
                return began.elapsed();
            }
        }
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_left() {
        let (client, server) = pair().await;
        assert!(write(StallTimeout::new(server, STALL, Arc::default())).await >= STALL);
        drop(client);
    }

    #[tokio::test]
    async fn a_client_that_goes_on_taking_a_little_is_left_as_well() {
        let (mut client, server) = pair().await;
        tokio::spawn(async move {
            while client.read_exact(&mut [0; 1 << 16]).await.is_ok() {
                tokio::time::sleep(STALL / 20).await;
            }
        });
        let exchange = Arc::<Exchange>::default();
        let answering = exchange.begin(Box::pin(tokio::time::sleep(3 * STALL)));
        assert!(exchange.is_busy());
        assert!(write(StallTimeout::new(server, 100 * STALL, exchange.clone())).await >= 3 * STALL);
        assert!(exchange.was_cut());
        drop(answering);
        assert!(!exchange.is_busy());
    }
}
