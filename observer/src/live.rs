//! `observer catalogue --live`: asks a running observer which documented families have data.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Error, Result, ensure};

use crate::{
    client::{self, causes},
    collect::exposition::{Format, Parser},
    model::live_catalogue::LiveCatalogue,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// Reads the page of the observer that listens there, as it comes.
///
/// # Errors
/// None answers, or it has no figures yet.
pub async fn ask(address: SocketAddr) -> Result<LiveCatalogue> {
    let request = client::direct(false, None, PATIENCE)?.get(format!("http://{address}/metrics"));
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
            "no observer answers at {address}; start one with `observer run`, or name where it listens with --listen"
        ));
    }
    Error::msg(format!(
        "what answers at {address} is no observer ({}); name where one listens with --listen",
        causes(error)
    ))
}
