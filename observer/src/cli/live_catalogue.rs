//! `observer catalogue --live`: reads from a running observer which documented families have data.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Error, Result, ensure};

use crate::{
    collect::exposition::{Format, Parser},
    model::live_catalogue::LiveCatalogue,
    system::http_client::{self, causes},
};

const TIMEOUT: Duration = Duration::from_secs(30);

/// Scrapes the observer that listens there.
///
/// # Errors
/// No observer responds, or it has no metrics yet.
pub async fn fetch(address: SocketAddr) -> Result<LiveCatalogue> {
    let request = http_client::direct(false, None, TIMEOUT)?.get(format!("http://{address}/metrics"));
    let mut response = request.send().await.map_err(|error| unanswered(address, &error))?;
    ensure!(
        response.status() == 200,
        "{address} answers {}: is it an observer? See its log and /readyz",
        response.status()
    );
    let (mut live, mut parser) = (LiveCatalogue::default(), Parser::new(Format::Text));
    while let Some(piece) = response.chunk().await.map_err(|error| unanswered(address, &error))? {
        parser.feed(&piece, &mut |event| live.record(&event));
    }
    parser.finish(&mut |event| live.record(&event));
    Ok(live)
}

fn unanswered(address: SocketAddr, error: &reqwest::Error) -> Error {
    if error.is_connect() {
        return Error::msg(format!(
            "no observer answers at {address}; start one with `observer run`, or name its address with --listen"
        ));
    }
    Error::msg(format!(
        "the server at {address} is not an observer ({}); name the address of one with --listen",
        causes(error)
    ))
}
