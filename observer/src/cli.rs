//! The command line: one module per command.

pub mod args;
pub mod await_daemon_set;
pub mod catalogue;
pub mod check;
pub mod command;
pub mod detach;
pub mod documents;
pub mod live_catalogue;
pub mod outcome;
pub mod own_pages;
pub mod run;
pub mod snapshot;
pub mod top;
