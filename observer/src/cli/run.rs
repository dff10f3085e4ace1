//! `observer run`.

use super::{
    args::RunArgs,
    outcome::{Failure, block_on, configure, drop_privileges},
};
use crate::{
    app::{self, emitters::Emitters},
    serve::{self, Protection},
};

/// Observes until stopped.
///
/// # Errors
/// It cannot start.
pub fn run(args: &RunArgs) -> Result<(), Failure> {
    let config = configure(args)?;
    drop_privileges()?;
    let emitters = Emitters::prepare(&config).map_err(Failure::wrong_usage)?;
    let protection = Protection::load(config.web_config_file.as_deref(), config.hosts())
        .map_err(|error| Failure::wrong_usage(error.into()))?;
    block_on(async {
        let listening = serve::bind(config.listen.0).await?;
        app::run(&config, args, emitters, listening, protection).await
    })
}
