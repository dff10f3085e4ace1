//! The environment's `OBSERVER_*` variables, where templates leave empty ones and people misspell others.

use std::env;

use clap::Command;

const PREFIX: &str = "OBSERVER_";

/// Takes variables away that are set to nothing: they are as if they were not there.
///
/// # Safety
/// No other thread may run yet: it might read the environment.
pub unsafe fn drop_empty() {
    for (name, value) in env::vars_os() {
        if value.is_empty() && name.to_string_lossy().starts_with(PREFIX) {
            // SAFETY: the caller sees to it that there is no other thread.
            unsafe { env::remove_var(name) };
        }
    }
}

/// Variables among `names` that look like options and are none.
pub fn unknown(command: &Command, names: impl Iterator<Item = String>) -> Vec<String> {
    let arguments = command.get_subcommands().flat_map(Command::get_arguments);
    let known: Vec<String> =
        arguments.filter_map(|argument| argument.get_env()).map(|name| name.to_string_lossy().into_owned()).collect();
    names.filter(|name| name.starts_with(PREFIX) && !known.contains(name)).collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn a_variable_that_no_option_has_is_named() {
        let names = ["OBSERVER_LISTEN", "OBSERVER_LISTN", "PATH", "OBSERVER_SCRAPE_PROXIES", "OBSERVER_"];
        let unknown = unknown(&Cli::command(), names.into_iter().map(str::to_owned));
        assert_eq!(unknown, ["OBSERVER_LISTN", "OBSERVER_"]);
    }
}
