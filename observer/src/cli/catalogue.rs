//! `observer catalogue`.

use super::{
    args::{CatalogueArgs, CatalogueFormat},
    live_catalogue,
    outcome::{Failure, block_on, print},
};
use observer_model::{
    catalogue::{self, Descriptor, Live},
    encode::selection::matches_pattern,
};

/// Prints the families that match.
///
/// # Errors
/// No observer answers, or standard output cannot be written.
pub fn run(args: &CatalogueArgs) -> Result<(), Failure> {
    let mut live = None;
    if args.live {
        block_on(async {
            live = Some(live_catalogue::fetch(args.listen.0).await?);
            Ok(())
        })?;
    }
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
