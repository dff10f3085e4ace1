//! One scrape: a page is asked for at its own address, or else from inside its network namespace.

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use reqwest::{Body, Client, Response, header};
use tokio::{net::TcpStream, task::JoinSet, time::timeout};

use super::{
    NetnsRoute, ScrapeOptions, ScrapeTarget,
    fetch::{ACCEPT, ScrapeError, failed, read},
};
use crate::{
    collect::netns,
    system::http_client::{self, ClientError, USER_AGENT},
};
use observer_model::scraped::ScrapedExposition;

/// Scrapes one target.
pub(super) struct Scraper {
    client: Client,
    proc_root: PathBuf,
    limit: Duration,
}

impl Scraper {
    /// `limit` is the longest that one scrape takes.
    pub(super) fn new(target: &ScrapeTarget, options: &ScrapeOptions, limit: Duration) -> Result<Self, ClientError> {
        let https = target.url.0.scheme() == "https";
        let client = http_client::direct(https, options.ca_file.as_deref(), limit)?;
        Ok(Self { client, proc_root: options.proc_root.clone(), limit })
    }

    /// Fetches and reads the page. From inside its network namespace it is asked for only where its own address does not
    /// let us in.
    pub(super) async fn page(&self, target: &ScrapeTarget) -> Result<Arc<ScrapedExposition>, ScrapeError> {
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

    /// `why` says why not from here.
    async fn ask_inside(
        &self,
        target: &ScrapeTarget,
        inside: &NetnsRoute,
        why: &str,
    ) -> Result<Arc<ScrapedExposition>, ScrapeError> {
        let connected = netns::connect(&self.proc_root, inside.process, inside.address, self.limit).await;
        let stream = connected.map_err(|error| {
            let said = format!("{why}; {error}");
            match error {
                netns::Error::NotPermitted { .. } => ScrapeError::NotPermitted(said),
                netns::Error::Gone { .. } => ScrapeError::Gone(said),
                netns::Error::Failed { .. } => ScrapeError::Connect(said),
            }
        })?;
        let mut connection = JoinSet::new();
        let response = ask(stream, target, inside, &mut connection).await;
        read(response.map_err(|error| ScrapeError::Broken(error.to_string()))?, target.instance.labels(), self.limit)
            .await
    }
}

/// Asks for the page through a connection that is open; it is served by `connection` until that is dropped.
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
