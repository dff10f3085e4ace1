//! The state that outlives the process with `--pin`: restored at startup, and kept up to date.

use anyhow::Result;

use crate::{
    config::Config,
    discovery::registry::Registry,
    kernel::{Kernel, error::KernelError},
    persist::{pins::Pins, state::PersistedState, state_map::StateMap},
};

/// Where state is persisted, if anywhere.
pub(super) struct Persistence {
    state_map: Option<StateMap>,
    /// As persisted last.
    registry: Registry,
    is_write_failing: bool,
}

impl Persistence {
    /// Loads the programs, and restores what an earlier observer persisted.
    pub(super) fn load(config: &Config) -> Result<(Kernel, Self, PersistedState)> {
        let options = config.kernel();
        let Some(pin_dir) = &config.pin else {
            return Ok((Kernel::load(&options)?, Self::new(None, Registry::default()), PersistedState::default()));
        };
        let (pins, text) = Pins::open(pin_dir)?;
        let state = text.map_or(Ok(PersistedState::default()), |text| PersistedState::decode(&text));
        let mut state = state.map_err(|error| pins.unreadable(error))?;
        let (map_state, running) = (std::mem::take(&mut state.kernel), state.running.clone());
        let (kernel, state_map) = Kernel::resume(&options, pins, map_state, &running, |state_map, map_state| {
            state.kernel = map_state.clone();
            state_map.write(|into| state.write(into)).map_err(|error| KernelError::state(pin_dir, error))
        })?;
        Ok((kernel, Self::new(Some(state_map), state.registry.clone()), state))
    }

    fn new(state_map: Option<StateMap>, registry: Registry) -> Self {
        Self { state_map, registry, is_write_failing: false }
    }

    /// Whether state outlives the process.
    pub(super) fn is_on(&self) -> bool {
        self.state_map.is_some()
    }

    /// Whether the last state could not be written.
    pub(super) fn is_write_failing(&self) -> bool {
        self.is_write_failing
    }

    /// Takes over the ids of the sidecars; returns whether they have changed and must be persisted.
    pub(super) fn update_registry(&mut self, registry: &Registry) -> bool {
        let is_changed = self.is_on() && self.registry != *registry;
        if is_changed {
            self.registry = registry.clone();
        }
        is_changed
    }

    /// Persists a state with the current registry, before anything that depends on it is counted or exposed.
    pub(super) fn save(&mut self, state: impl FnOnce(Registry) -> PersistedState) {
        let Some(state_map) = &mut self.state_map else { return };
        let state = state(self.registry.clone());
        let written = state_map.write(|into| state.write(into));
        if let Err(error) = &written
            && !self.is_write_failing
        {
            tracing::error!("--pin: state for a restart cannot be persisted: {error}");
        }
        self.is_write_failing = written.is_err();
    }
}
