//! What outlives the process where `--pin` names a folder: taken over at the start, kept up to date from then on.

use std::{collections::BTreeSet, sync::Arc};

use anyhow::Result;

use super::State;
use crate::{
    collect::kernel::{self, Kernel, Pins, Store},
    config::Config,
    discovery::{Change, Sidecar, SidecarId, registry::Registry},
    memory::Memory,
};

/// The programs, and what an earlier observer left behind if there is a folder for it.
pub(super) fn load(config: &Config) -> Result<(Kernel, Option<Store>, Memory)> {
    let Some(folder) = &config.pin else { return Ok((Kernel::load(&config.kernel())?, None, Memory::default())) };
    let (pins, text) = Pins::open(folder)?;
    let memory = text.map_or(Ok(Memory::default()), |text| Memory::decode(&text));
    let mut memory = memory.map_err(|error| pins.unreadable(error))?;
    let remembered = std::mem::take(&mut memory.kernel);
    let (kernel, store) = Kernel::resume(&config.kernel(), pins, remembered, |store, remembered| {
        memory.kernel = remembered.clone();
        store.write(|page| memory.write(page)).map_err(|error| kernel::Error::state(folder, error))
    })?;
    Ok((kernel, Some(store), memory))
}

impl State {
    /// Goes on where an earlier observer was: attaches to what is there now, and leaves what ended while nobody looked.
    pub(super) fn resume(&mut self, changes: Vec<Change>, registry: &Registry, before: Vec<Arc<Sidecar>>) {
        self.ended.iter().for_each(|sidecar| self.kernel.recall(sidecar));
        self.apply(changes, registry);
        if self.store.is_none() {
            return;
        }
        let running: BTreeSet<SidecarId> = self.running.iter().map(|sidecar| sidecar.id).collect();
        self.ended.retain(|sidecar| !running.contains(&sidecar.id));
        for sidecar in before {
            if self.running.iter().all(|other| other.process != sidecar.process) {
                self.leave(&sidecar);
            }
        }
        let running = &self.running;
        self.moved.retain(|(process, _)| running.iter().any(|sidecar| sidecar.process == *process));
        let observed = self.running.iter().map(|sidecar| sidecar.cgroup_id);
        let observed = observed.chain(self.moved.iter().map(|&(_, id)| id));
        let cgroups = observed.chain(self.lingering.iter().map(|&(_, id)| id)).collect();
        let own = self.running.iter().flat_map(|sidecar| sidecar.companions.iter().chain([&sidecar.process]));
        let processes = own.map(|process| process.pid).collect();
        self.kernel.retain(&cgroups, &processes);
        // What was counted meanwhile is not of an interval that this process reports.
        self.round(true);
    }

    /// Keeps what a later observer must know, before anything that follows from it is counted or told.
    pub(super) fn remember(&mut self) {
        let Some(store) = &mut self.store else { return };
        let memory = Memory {
            registry: self.registry.clone(),
            running: self.running.clone(),
            ended: self.ended.clone(),
            moved: self.moved.clone(),
            model: Some(self.model.persist()),
            kernel: self.kernel.remembered().clone(),
        };
        let written = store.write(|page| memory.write(page));
        if let Err(error) = &written
            && !self.forgetful
        {
            tracing::error!("--pin: what a restart would need cannot be kept: {error}");
        }
        self.forgetful = written.is_err();
    }
}
