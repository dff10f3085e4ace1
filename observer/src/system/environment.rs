//! The environment's `OBSERVER_*` variables: templates leave empty ones, people misspell others.

#![expect(unsafe_code, reason = "removes environment variables before any thread starts")]

use std::env;

use clap::Command;

const PREFIX: &str = "OBSERVER_";

/// Removes empty variables, so that they have no effect.
///
/// # Safety
/// No other thread may run yet: it might read the environment.
pub unsafe fn remove_empty() {
    for (name, value) in env::vars_os() {
        if value.is_empty() && name.to_string_lossy().starts_with(PREFIX) {
            // SAFETY: the caller guarantees that there is no other thread.
            unsafe { env::remove_var(name) };
        }
    }
}

/// Returns the variables among `names` that are named like options but belong to none.
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
    use crate::cli::args::Cli;

    #[test]
    fn a_variable_without_an_option_is_returned() {
        let names = ["OBSERVER_LISTEN", "OBSERVER_LISTN", "PATH", "OBSERVER_SCRAPE_PROXIES", "OBSERVER_"];
        let unknown = unknown(&Cli::command(), names.into_iter().map(str::to_owned));
        assert_eq!(unknown, ["OBSERVER_LISTN", "OBSERVER_"]);
    }
}
