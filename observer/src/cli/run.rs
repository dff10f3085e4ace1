//! `observer run`.

use super::{
    args::RunArgs,
    outcome::{Failure, block_on, configure, drop_privileges},
};
use crate::app::{self, emitters::Emitters};

/// Observes until stopped.
///
/// # Errors
/// It cannot start.
pub fn run(args: &RunArgs) -> Result<(), Failure> {
    let config = configure(args)?;
    drop_privileges()?;
    let emitters = Emitters::prepare(&config).map_err(Failure::wrong_usage)?;
    block_on(app::run(&config, args, emitters))
}
