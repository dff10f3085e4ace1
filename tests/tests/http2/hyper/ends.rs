//! hyper as an application, and as a client.

use std::net::{SocketAddr, TcpListener, TcpStream};

use anyhow::{Context, Result};
use harness::mesh::Workload;
use http_body_util::BodyExt;
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::http2::{Builder as Client, SendRequest},
    server::conn::http2::Builder as Server,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net, runtime, task::JoinSet};

use super::exchange::{Exchange, Zeros};

/// Starts hyper as an application that answers each [`Exchange`] as it asks, and takes header tables of up to `table`
/// bytes. It ends with the runtime.
pub(super) fn application(on: &Workload, port: u16, table: u32) -> Result<runtime::Runtime> {
    let listener = on.net.enter(|| TcpListener::bind(("::", port)))?.with_context(|| format!("port {port}"))?;
    listener.set_nonblocking(true)?;
    let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_io().build()?;
    runtime.spawn(async move {
        let listener = net::TcpListener::from_std(listener)?;
        loop {
            let stream = TokioIo::new(listener.accept().await?.0);
            let mut server = Server::new(TokioExecutor::new());
            server.header_table_size(table);
            // The sidecar may end its connections in any way; the client reports missing answers.
            tokio::spawn(server.serve_connection(stream, service_fn(answer)));
        }
        #[expect(unreachable_code, reason = "names the error's type")]
        std::io::Result::Ok(())
    });
    Ok(runtime)
}

async fn answer(request: Request<Incoming>) -> Result<Response<Zeros>> {
    let (head, body) = request.into_parts();
    Exchange::answer(&head, body.collect().await?)
}

/// Makes these exchanges on one connection, after the first `at_once` at a time, and fails unless each is answered as
/// requested.
pub(super) fn exchange(from: &Workload, to: SocketAddr, table: u32, at_once: usize, all: Vec<Exchange>) -> Result<()> {
    let stream = from.net.enter(|| TcpStream::connect(to))?.with_context(|| to.to_string())?;
    stream.set_nonblocking(true)?;
    runtime::Builder::new_current_thread().enable_io().build()?.block_on(async {
        let stream = TokioIo::new(net::TcpStream::from_std(stream)?);
        let mut client = Client::new(TokioExecutor::new());
        let (sender, connection) = client.header_table_size(table).handshake(stream).await?;
        tokio::spawn(connection);
        let mut running = JoinSet::new();
        for (number, exchange) in all.into_iter().enumerate() {
            // Until it has connected to the application, Envoy opens a connection for each request.
            while running.len() >= if number <= 1 { 1 } else { at_once } {
                running.join_next().await.context("some run")???;
            }
            running.spawn(once(sender.clone(), to, exchange));
        }
        while let Some(ended) = running.join_next().await {
            ended??;
        }
        Ok(())
    })
}

async fn once(mut sender: SendRequest<Zeros>, to: SocketAddr, exchange: Exchange) -> Result<()> {
    sender.ready().await?;
    let (head, body) = sender.send_request(exchange.request(&to.to_string())?).await?.into_parts();
    exchange.is_answered_by(&head, body.collect().await?)
}
