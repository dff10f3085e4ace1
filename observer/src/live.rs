//! `observer catalogue --live`: asks a running observer which documented families have data.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::{
    client,
    collect::exposition::{Format, Parser},
    model::live::Live,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// Reads the page of the observer that listens there, as it comes.
///
/// # Errors
/// None answers, or it has no figures yet.
pub async fn ask(address: SocketAddr) -> Result<Live> {
    let nobody = || {
        format!(
            "no observer answers at {address}; start one with `observer run`, or name where it listens with --listen"
        )
    };
    let request = client::direct(false, None, PATIENCE)?.get(format!("http://{address}/metrics"));
    let mut response = request.send().await.with_context(nobody)?;
    ensure!(response.status() == 200, "{address} answers {}; see its log and /readyz", response.status());
    let (mut live, mut parser) = (Live::default(), Parser::new(Format::Text));
    while let Some(piece) = response.chunk().await.with_context(nobody)? {
        parser.feed(&piece, &mut |event| live.take(&event));
    }
    parser.finish(&mut |event| live.take(&event));
    Ok(live)
}
