//! What `observer check` reports that a running observer knows as well, for whoever looks.

use crate::{
    discovery::watch::Watcher,
    model::view::{Finding, Level},
    system::capabilities,
};

/// The findings, kept only while somebody looks.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// `None` while nobody looks.
    current: Option<Vec<Finding>>,
}

impl Findings {
    /// Returns the findings of the last refresh, none at first, and lets them be refreshed from now on.
    pub(super) fn watch(&mut self) -> Vec<Finding> {
        self.current.get_or_insert_default().clone()
    }

    pub(super) fn stop_watching(&mut self) {
        self.current = None;
    }

    /// Collects them anew, if somebody looks.
    pub(super) fn refresh(&mut self, watcher: &Watcher) {
        let Some(current) = &mut self.current else { return };
        let warnings = watcher.problems().chain(capabilities::missing_on_most_nodes());
        current.clear();
        current.extend(warnings.map(|text| Finding::new(Level::Warning, text)));
        current.extend(watcher.why_scanning().map(|reason| {
            Finding::new(Level::Note, format!("new processes are found by scans every second ({reason})"))
        }));
    }
}
