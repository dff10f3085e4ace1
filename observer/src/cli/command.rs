//! The command line with the defaults in its help.

use clap::{Arg, Command, CommandFactory as _};

use super::args::Cli;
use crate::{config::Config, emit::wavefront::Names};

/// Returns the command line, with the defaults that [`Config`] applies in the help of its options.
#[must_use]
pub fn command() -> Command {
    let defaults = defaults();
    ["run", "check", "snapshot", "top"].into_iter().fold(Cli::command(), |command, name| {
        command.mut_subcommand(name, |subcommand| {
            subcommand.mut_args(|arg| match defaults.iter().find(|(id, _)| arg.get_id() == id) {
                Some((_, default)) => with_default(arg, default),
                None => arg,
            })
        })
    })
}

fn with_default(arg: Arg, default: &str) -> Arg {
    if arg.get_default_values().is_empty() {
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        return arg.help(format!("{help} [default: {default}]"));
    }
    arg
}

fn defaults() -> [(&'static str, String); 9] {
    let config = Config::default();
    let join = |values: Vec<String>| values.join(", ");
    [
        ("listen", config.listen.to_string()),
        ("interval", config.interval.to_string()),
        ("scrape_interval", config.scrape_interval.to_string()),
        ("wavefront_names", wavefront_names(config.wavefront_names).to_owned()),
        ("log", config.log.name().to_owned()),
        ("sidecar_exe", join(config.sidecar_exe.iter().map(ToString::to_string).collect())),
        ("control_plane_exe", join(config.control_plane_exe.iter().map(ToString::to_string).collect())),
        ("scrape_proxies", config.scrape_proxies.to_string()),
        ("proc_root", config.proc_root().display().to_string()),
    ]
}

fn wavefront_names(names: Names) -> &'static str {
    match names {
        Names::Documented => "documented",
        Names::Collector => "collector",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_has_every_default() {
        let mut command = command();
        let help = command.find_subcommand_mut("run").unwrap().render_help().to_string();
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        for (id, default) in defaults() {
            assert!(help.contains(&format!("[default: {default}]")), "{id}: {help}");
        }
    }
}
