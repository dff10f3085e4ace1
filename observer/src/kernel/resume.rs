//! Continues from pinned state: reuses maps of the same layout, replaces attached programs, and carries over the values of
//! maps of other layouts.

use std::{collections::BTreeSet, os::fd::AsFd, sync::Arc};

use aya::maps::HashMap;
use observer_common::{Cgroup, names};

use super::{Kernel, KernelOptions, attach::Link, error::KernelError, load, sys};
use crate::{
    discovery::Sidecar,
    persist::{
        carried_entries::CarriedEntries,
        pin_dir::PinDir,
        pins::{MapState, Pins},
        state_map::StateMap,
    },
};

impl Kernel {
    /// Loads the programs as [`Kernel::load`] does, with the pinned maps, and replaces the attached programs, which know
    /// the `running` sidecars from then on. `save` persists its argument; it is called before anything depends on it.
    ///
    /// # Errors
    /// As [`Kernel::load`], or the pinned state cannot be used.
    pub fn resume(
        options: &KernelOptions,
        pins: Pins,
        mut map_state: MapState,
        running: &[Arc<Sidecar>],
        mut save: impl FnMut(&mut StateMap, &MapState) -> Result<(), KernelError>,
    ) -> Result<(Self, StateMap), KernelError> {
        let Pins { pin_dir, mut state_map } = pins;
        let abi_hash = load::abi_hash(options.sizes())?;
        map_state.remove_merged(&pin_dir)?;
        let others = map_state.others(&pin_dir, &abi_hash)?;
        map_state.add_own(&abi_hash);
        save(&mut state_map, &map_state)?;
        let maps = pin_dir.make_maps_dir(&abi_hash)?;
        let mut kernel = Self::load_with(options, Some(&maps))?;
        for other in &others {
            let CarriedEntries { last_caller, callers, ports } = map_state.entries(&pin_dir, other)?;
            kernel.continue_callers(last_caller, &callers)?;
            kernel.continue_port_protocols(&ports)?;
        }
        kernel.remove_configured_ports()?;
        if !others.is_empty() {
            running.iter().try_for_each(|sidecar| kernel.register(sidecar))?;
            save(&mut state_map, &map_state)?;
        }
        kernel.replace_programs(&pin_dir)?;
        for other in others {
            map_state.merge(&pin_dir, other)?;
        }
        save(&mut state_map, &map_state)?;
        map_state.remove_merged(&pin_dir)?;
        (kernel.map_state, kernel.pin_dir) = (map_state, Some(pin_dir));
        Ok((kernel, state_map))
    }

    /// Returns what must be persisted about the maps.
    #[must_use]
    pub fn map_state(&self) -> &MapState {
        &self.map_state
    }

    /// Marks a sidecar as counted by an earlier observer: its series are in the maps.
    pub fn restore(&mut self, sidecar: &Sidecar) {
        self.usage.attached(sidecar.id, sidecar.cgroup_id, &sidecar.cgroup);
        if !self.links.contains_key(&sidecar.cgroup_id) {
            self.usage.detached(sidecar.cgroup_id);
        }
    }

    /// Replaces the programs of pinned links, one at a time: each packet meets either the old or the new program.
    fn replace_programs(&mut self, pin_dir: &PinDir) -> Result<(), KernelError> {
        let (mut known, mut unknown) = (Vec::new(), Vec::new());
        for link in pin_dir.links()? {
            let fd = sys::open(&link.path).map_err(|error| KernelError::link(&link.path, error))?;
            match names::ATTACHED.iter().enumerate().find(|(_, name)| **name == link.program) {
                Some((order, &name)) => known.push((link.cgroup_id, order, name, link.path, fd)),
                None => unknown.push(Link::pinned(fd, link.path)),
            }
        }
        // Cgroup by cgroup, with nothing else between, so that few packets meet both old and new programs.
        known.sort_unstable_by_key(|&(cgroup_id, order, ..)| (cgroup_id, order));
        for (cgroup_id, _, name, path, fd) in known {
            let program = self.ebpf.program(name).ok_or(KernelError::Missing { name })?;
            let program = program.fd().map_err(|source| KernelError::load(name, source))?;
            let updated = sys::update_link(fd.as_fd(), program.as_fd());
            let link = Link::pinned(fd, path.clone());
            match updated {
                Ok(()) => drop(self.links.entry(cgroup_id).or_default().insert(name, link)),
                // The cgroup was removed: the link is defunct.
                Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => link.detach(),
                Err(error) => return Err(KernelError::link(&path, error)),
            }
        }
        unknown.into_iter().for_each(Link::detach);
        Ok(())
    }

    /// Detaches from all other cgroups and removes all other processes: they ended while no observer ran.
    pub fn retain(&mut self, cgroups: &BTreeSet<u64>, processes: &BTreeSet<u32>) {
        let ended: Vec<u64> = self.links.keys().filter(|id| !cgroups.contains(id)).copied().collect();
        ended.into_iter().for_each(|id| self.detach(id));
        if let Ok(mut known) = self.map_mut::<HashMap<_, u64, Cgroup>>(names::CGROUPS) {
            let ended: Vec<u64> = known.keys().flatten().filter(|id| !cgroups.contains(id)).collect();
            ended.iter().for_each(|id| drop(known.remove(id)));
        }
        if let Ok(mut known) = self.map_mut::<HashMap<_, u32, u32>>(names::PROCESSES) {
            let ended: Vec<u32> = known.keys().flatten().filter(|pid| !processes.contains(pid)).collect();
            ended.iter().for_each(|pid| drop(known.remove(pid)));
        }
    }
}
