//! The reasons why `/readyz` is not ready.

use std::sync::Arc;

use tokio::sync::watch;

/// The list of reasons; ready when it is empty.
#[derive(Clone, Debug)]
pub struct Readiness {
    pending: Arc<watch::Sender<Vec<String>>>,
}

/// A reason, until dropped.
#[derive(Debug)]
pub struct Block {
    what: String,
    pending: Arc<watch::Sender<Vec<String>>>,
}

impl Readiness {
    /// Creates a state that is ready until blocked.
    #[must_use]
    pub fn new() -> Self {
        Self { pending: Arc::new(watch::Sender::new(Vec::new())) }
    }

    /// Blocks readiness for this reason until the returned value is dropped.
    #[must_use = "it blocks only while it is held"]
    pub fn block(&self, what: &str) -> Block {
        let what = what.to_owned();
        self.pending.send_modify(|pending| pending.push(what.clone()));
        Block { what, pending: self.pending.clone() }
    }

    /// Returns the reasons, as they change.
    #[must_use]
    pub fn pending(&self) -> watch::Receiver<Vec<String>> {
        self.pending.subscribe()
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.pending.send_modify(|pending| {
            if let Some(at) = pending.iter().position(|what| *what == self.what) {
                pending.remove(at);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_nothing_blocks() {
        let readiness = Readiness::new();
        let pending = readiness.pending();
        assert!(pending.borrow().is_empty());
        let (first, second) = (readiness.block("programs"), readiness.block("programs"));
        assert_eq!(*pending.borrow(), ["programs", "programs"]);
        drop(first);
        assert_eq!(*pending.borrow(), ["programs"]);
        drop(second);
        assert!(pending.borrow().is_empty());
    }
}
