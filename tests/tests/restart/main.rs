//! Restart without loss: with `--pin` the observer is stopped, killed, replaced and restarted under load, and counts as
//! if it had never been away.

mod counters;
mod load;
mod other_build;
mod pin_directories;
mod under_load;

use std::{path::Path, process::Command, process::ExitCode};

use anyhow::{Context, Result, ensure};
use harness::{bpffs::Bpffs, cases, mesh::Family, observer::Observer, pair::Pair, sidecar::Options, tools};

fn main() -> ExitCode {
    use self::{pin_directories::*, under_load::*};
    cases::run(
        Pinned::new,
        cases![
            killed,
            stopped,
            upgraded_and_downgraded,
            second_observer_is_refused,
            different_map_layout,
            detach_leaves_nothing,
            detach_waits_for_the_observer,
            unusable_directories_are_refused,
        ],
    )
}

/// A mesh of two, and a bpffs for the pins, which continues from case to case.
struct Pinned {
    // Dropped first: the mesh's files are removed after it.
    bpffs: Bpffs,
    pair: Pair,
}

impl Pinned {
    /// Builds the pair without an observer.
    fn new() -> Result<Self> {
        let pair = Pair::unobserved(Options::default(), Options::default())?;
        Ok(Self { bpffs: Bpffs::mount(pair.mesh.directory())?, pair })
    }

    fn directory(&self) -> String {
        self.bpffs.path().join("pins").display().to_string()
    }

    /// Starts an observer on the directory, unless one runs from the case before.
    fn observe(&mut self) -> Result<()> {
        if self.pair.observer.is_some() { Ok(()) } else { self.observe_with(&tools::observer()?, "") }
    }

    /// Starts an observer of some build, with further settings.
    fn observe_with(&mut self, program: &Path, settings: &str) -> Result<()> {
        let mesh = &self.pair.mesh;
        let configuration = format!("{settings}\n{}", mesh.observer_tables());
        let arguments = ["--sidecar-exe", &mesh.executable(), "--pin", &self.directory()];
        let observer = Observer::launch(&mut Command::new(program), mesh.directory(), &configuration, 2, &arguments)?;
        self.pair.observer = Some(observer);
        Ok(())
    }

    fn observer(&self) -> Result<&Observer> {
        self.pair.observer.as_ref().context("an observer")
    }

    fn take_observer(&mut self) -> Result<Observer> {
        self.pair.observer.take().context("an observer")
    }

    /// Returns the number of preexisting connections.
    fn preexisting(&self) -> Result<f64> {
        self.observer()?.own("mesh_observer_connections_total", &[("outcome", "preexisting")])
    }
}

fn request_both(pair: &Pair) -> Result<()> {
    for family in [Family::V4, Family::V6] {
        let code = pair.curl(&[&pair.url(family, "/bytes/10")])?;
        ensure!(code == "200", "{code}");
    }
    Ok(())
}
