//! `observer catalogue`.

use std::time::Duration;

use super::{
    args::{CatalogueArgs, CatalogueFormat},
    live_catalogue,
    outcome::{Failure, block_on, print},
    own_pages::OwnPages,
};
use observer_model::{
    catalogue::{self, Descriptor, Live},
    encode::selection::matches_pattern,
};

/// Timeout of a scrape.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Prints the families that match.
///
/// # Errors
/// No observer answers, or standard output cannot be written.
pub fn run(args: &CatalogueArgs) -> Result<(), Failure> {
    let scrape = || {
        let pages = OwnPages::new(args.listen.0, args.web_config_file.as_deref(), &args.reader, TIMEOUT);
        block_on(async { live_catalogue::fetch(&pages?).await })
    };
    let live = args.live.then(scrape).transpose()?;
    let CatalogueArgs { patterns, format, .. } = args;
    let matches = |name: &str| patterns.is_empty() || patterns.iter().any(|pattern| matches_pattern(pattern, name));
    let status = |family: &Descriptor| live.as_ref().map(|live| live.status(family)).unwrap_or_default();
    let live = live.is_some().then_some(&status as Live<'_>);
    let families = catalogue::printed(live, matches);
    let text = match format {
        CatalogueFormat::Table => catalogue::table(&families, live),
        CatalogueFormat::Json => catalogue::json(&families, live),
        CatalogueFormat::Tsv => catalogue::tsv(&families, live),
    };
    print(text.as_bytes())
}
