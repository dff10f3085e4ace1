//! `observer detach`.

use std::path::Path;

use super::outcome::{Failure, print};
use crate::persist::pin_dir::{PinDir, Removed};

/// Removes all that is pinned in a directory.
///
/// # Errors
/// The directory is in use, or something in it cannot be removed.
pub fn run(pin_dir: &Path) -> Result<(), Failure> {
    let removed = PinDir::open_existing(pin_dir).and_then(|pins| pins.map(PinDir::remove).transpose());
    let path = pin_dir.display();
    let text = match removed.map_err(|error| Failure::could_not_run(error.into()))? {
        Some(Removed { links, maps }) => {
            format!("{path}: detached {links} programs from cgroups, removed {maps} maps\n")
        }
        None => format!("{path}: nothing is pinned\n"),
    };
    print(text.as_bytes())
}
