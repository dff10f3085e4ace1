//! `observer completions` and `observer man`.

use clap_complete::Shell;
use clap_mangen::Man;

use super::{
    command::command,
    outcome::{Failure, print},
};

/// Prints the completion script for a shell.
///
/// # Errors
/// Standard output cannot be written.
pub fn completions(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command(), "observer", &mut script);
    print(&script)
}

/// Prints the manual page of the command, followed by those of its subcommands.
///
/// # Errors
/// Standard output cannot be written.
pub fn man() -> Result<(), Failure> {
    let mut command = command().disable_help_subcommand(true);
    command.build();
    let subcommands: Vec<_> = command.get_subcommands().cloned().collect();
    let mut page = Vec::new();
    for command in [command].into_iter().chain(subcommands) {
        Man::new(command).render(&mut page).map_err(|error| Failure::could_not_run(error.into()))?;
    }
    print(&page)
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn every_shell_completes_the_options() {
        for shell in Shell::value_variants() {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut command(), "observer", &mut script);
            assert!(String::from_utf8_lossy(&script).contains("scrape-interval"), "{shell}");
        }
    }
}
