//! `observer catalogue`.

use super::{
    args::{CatalogueArgs, CatalogueFormat},
    live_catalogue,
    outcome::{Failure, block_on, print},
};
use crate::{emit::selection::is_like, model::catalogue};

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
    let matches = |name: &str| patterns.is_empty() || patterns.iter().any(|pattern| is_like(pattern, name));
    let (families, live) = (catalogue::printed(live.as_ref(), matches), live.as_ref());
    let text = match format {
        CatalogueFormat::Table => catalogue::table(&families, live),
        CatalogueFormat::Json => catalogue::json(&families, live),
        CatalogueFormat::Tsv => catalogue::tsv(&families, live),
    };
    print(text.as_bytes())
}
