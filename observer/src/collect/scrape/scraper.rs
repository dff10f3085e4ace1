//! Scrapes one target: at its own address, or else through its network namespace.

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use reqwest::{Body, Client, Response, header};
use tokio::{net::TcpStream, task::JoinSet, time::timeout};

use super::{
    fetch::{ACCEPT, ScrapeError, failed, read},
    target::{NetnsRoute, ScrapeTarget},
};
use crate::{
    collect::netns,
    system::http_client::{self, ClientError, USER_AGENT},
};
use observer_model::scraped::ScrapedExposition;

/// Options of scrapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScrapeOptions {
    /// Interval of scrapes of a target.
    pub interval: Duration,
    /// File with the CA certificates that are trusted; the system's if absent.
    pub ca_file: Option<PathBuf>,
    /// The proc file system.
    pub proc_root: PathBuf,
}

/// Scrapes one target.
pub(super) struct Scraper {
    client: Client,
    proc_root: PathBuf,
    limit: Duration,
}

impl Scraper {
    /// `limit` is the timeout of a scrape.
    pub(super) fn new(target: &ScrapeTarget, options: &ScrapeOptions, limit: Duration) -> Result<Self, ClientError> {
        let https = target.url.0.scheme() == "https";
        let client = http_client::direct(https, options.ca_file.as_deref(), limit)?;
        Ok(Self { client, proc_root: options.proc_root.clone(), limit })
    }

    /// Fetches and parses the endpoint; through its network namespace only if its own address does not work.
    pub(super) async fn scrape(&self, target: &ScrapeTarget) -> Result<Arc<ScrapedExposition>, ScrapeError> {
        let asked = async {
            let Some(inside) = &target.inside else { return self.ask_here(target).await };
            let why = match inside.only {
                Some(reason) => reason.text().to_owned(),
                None => match self.ask_here(target).await {
                    Err(error @ (ScrapeError::Connect(_) | ScrapeError::Forbidden)) => error.to_string(),
                    outcome => return outcome,
                },
            };
            self.ask_inside(target, inside, &why).await
        };
        timeout(self.limit, asked).await.unwrap_or(Err(ScrapeError::Timeout(self.limit)))
    }

    async fn ask_here(&self, target: &ScrapeTarget) -> Result<Arc<ScrapedExposition>, ScrapeError> {
        let request = self.client.get(target.url.0.clone());
        let request = request.header(header::ACCEPT, ACCEPT).header(header::ACCEPT_ENCODING, "gzip");
        let response = request.send().await.map_err(|error| failed(&error, self.limit))?;
        read(response, target.instance.labels(), self.limit).await
    }

    /// `why` is the reason why its own address does not work.
    async fn ask_inside(
        &self,
        target: &ScrapeTarget,
        inside: &NetnsRoute,
        why: &str,
    ) -> Result<Arc<ScrapedExposition>, ScrapeError> {
        let connected = netns::connect(&self.proc_root, inside.process, inside.address, self.limit).await;
        let stream = connected.map_err(|error| {
            let reason = format!("{why}; {error}");
            match error {
                netns::NetnsError::NotPermitted { .. } => ScrapeError::NotPermitted(reason),
                netns::NetnsError::Gone { .. } => ScrapeError::Gone(reason),
                netns::NetnsError::Failed { .. } => ScrapeError::Connect(reason),
            }
        })?;
        let mut connection = JoinSet::new();
        let response = ask(stream, target, inside, &mut connection).await;
        read(response.map_err(|error| ScrapeError::Broken(error.to_string()))?, target.instance.labels(), self.limit)
            .await
    }
}

/// Requests the endpoint on an open connection, which is served by `connection` until that is dropped.
async fn ask(
    stream: TcpStream,
    target: &ScrapeTarget,
    inside: &NetnsRoute,
    connection: &mut JoinSet<hyper::Result<()>>,
) -> Result<Response, anyhow::Error> {
    let (mut sender, serving) = http1::handshake(TokioIo::new(stream)).await?;
    connection.spawn(serving);
    let request = Request::get(target.url.0.path())
        .header(header::HOST, inside.address.to_string())
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::ACCEPT, ACCEPT)
        .header(header::ACCEPT_ENCODING, "gzip")
        .body(Empty::<Bytes>::new())?;
    Ok(sender.send_request(request).await?.map(Body::wrap).into())
}
