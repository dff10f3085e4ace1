//! The pure part of `observer top`: documents of the observer's API (`docs/api.md`) and keys become screens and text.
//!
//! No I/O and no clock. Documents come from a server that may be anything: every list in them is bounded, and no character
//! of theirs commands a terminal.

#![forbid(unsafe_code)]
// A panic would leave the terminal as it is while something is shown.
#![cfg_attr(
    not(test),
    deny(
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::unreachable,
        clippy::unwrap_used
    )
)]

mod app;
mod bounded;
mod calls;
mod clean;
mod column;
mod document;
mod format;
mod history;
mod node;
mod once;
mod palette;
mod screen;

pub use self::{
    app::{App, Demand, Flow, Options},
    clean::clean,
    column::{Column, Order},
    document::Document,
    history::History,
    once::page,
    palette::Palette,
};
