//! The configuration file and the command line: any input is a configuration or an error with its position.
//!
//! Input: a file, or after a zero byte the words of a command line, each ended by a zero byte.
#![no_main]

use std::path::Path;

use clap::Parser;
use libfuzzer_sys::fuzz_target;
use observer::{
    cli::args::{Cli, RunArgs},
    config::{Config, ConfigError},
};

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    // A name to listen on is looked up, which may take seconds: of such lines only one with an address is let through.
    let mut settings = text.lines().filter(|line| !line.starts_with('#'));
    if settings.any(|line| line.contains("listen") && line != "listen = \"127.0.0.1:9469\"") {
        return;
    }
    match text.strip_prefix('\0') {
        Some(words) => {
            let _ = Cli::try_parse_from(["observer"].into_iter().chain(words.split('\0')));
        }
        None => match Config::from_text(&RunArgs::default(), Path::new("observer.toml"), text) {
            Ok(config) => {
                let peers = config.peers();
                let _ = (config.discovery(), config.kernel(), peers);
                for interval in [config.interval.0, config.scrape_interval.0, config.push_interval()] {
                    assert!((100_u128..=3_600_000).contains(&interval.as_millis()));
                }
                assert!(!config.sidecar_exe.is_empty());
            }
            Err(ConfigError::Invalid { line, column, .. }) => {
                assert!((1..=text.split('\n').count()).contains(&line) && column > 0, "{line}:{column}");
            }
            Err(ConfigError::Conflict(said)) => assert!(said.contains("is there twice"), "{said}"),
            Err(other) => panic!("no error of a file's text: {other}"),
        },
    }
});
