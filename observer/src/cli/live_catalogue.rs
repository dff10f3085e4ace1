//! `observer catalogue --live`: reads from a running observer which documented families have data.

use anyhow::Result;

use super::own_pages::OwnPages;
use crate::{
    collect::exposition::{Format, Parser},
    model::live_catalogue::LiveCatalogue,
};

/// Scrapes an observer.
///
/// # Errors
/// No observer responds, or it has no metrics yet.
pub async fn fetch(pages: &OwnPages) -> Result<LiveCatalogue> {
    let mut response = pages.get("/metrics").await?;
    let (mut live, mut parser) = (LiveCatalogue::default(), Parser::new(Format::Text));
    while let Some(piece) = response.chunk().await.map_err(|error| pages.unanswered(&error))? {
        parser.feed(&piece, &mut |event| live.record(&event));
    }
    parser.finish(&mut |event| live.record(&event));
    Ok(live)
}
