//! The observer's log on standard error: one line per state change.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

use crate::config::values::LogLevel;

/// Starts logging; `RUST_LOG`, if set, overrides the level.
///
/// # Errors
/// `RUST_LOG` is invalid.
pub fn init(level: LogLevel) -> Result<(), String> {
    let rust_log = std::env::var("RUST_LOG").ok();
    let filter = filter(level, rust_log.as_deref())?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .init();
    Ok(())
}

/// The level applies to the observer; libraries log warnings only, and the Kubernetes client nothing: what fails is logged
/// once, by whoever asked.
fn filter(level: LogLevel, rust_log: Option<&str>) -> Result<EnvFilter, String> {
    match rust_log.filter(|directives| !directives.is_empty()) {
        Some(directives) => EnvFilter::builder().parse(directives).map_err(|error| {
            format!("RUST_LOG={directives}: {error}; expected a level, or TARGET=LEVEL separated by commas, e.g. observer=debug")
        }),
        None => {
            let libraries = if level == LogLevel::Error { "error" } else { "warn" };
            Ok(EnvFilter::new(format!("{libraries},kube_client=off,observer={}", level.name())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rust_log_overrides_the_level() {
        assert_eq!(filter(LogLevel::Error, None).unwrap().to_string(), "kube_client=off,observer=error,error");
        assert_eq!(filter(LogLevel::Debug, Some("")).unwrap().to_string(), "kube_client=off,observer=debug,warn");
        assert_eq!(filter(LogLevel::Error, Some("trace")).unwrap().to_string(), "trace");
        assert!(filter(LogLevel::Error, Some("observer=loud")).unwrap_err().starts_with("RUST_LOG=observer=loud"));
    }
}
