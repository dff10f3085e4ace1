//! The capabilities that the observer keeps, each with its reason; all others are dropped at startup.
//!
//! Capabilities belong to a thread: call these functions while there is only one.

use std::io;

use rustix::{
    io::Errno,
    thread::{
        CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, remove_capability_from_bounding_set,
        set_capabilities, set_no_new_privs,
    },
};

/// A capability that the observer uses.
#[derive(Debug)]
pub struct Capability {
    /// The name, e.g. `CAP_BPF`.
    pub name: &'static str,
    set: CapabilitySet,
    /// A capability that includes it.
    or: CapabilitySet,
    /// When it is needed.
    pub need: Need,
    /// What it is for, to be read after "needed".
    pub purpose: &'static str,
}

/// When a capability is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The observer cannot start without it; dropped once the programs are loaded.
    Startup,
    /// The observer cannot work without it.
    Always,
    /// Data is missing on most nodes without it.
    MostNodes,
    /// Data is missing on some nodes without it.
    SomeNodes,
    /// Needed at startup on some nodes.
    SomeNodesStartup,
}

impl Need {
    /// Whether it is dropped after startup.
    #[must_use]
    pub const fn is_startup_only(self) -> bool {
        matches!(self, Self::Startup | Self::SomeNodesStartup)
    }
}

/// Highest capability number in the kernel's sets.
const HIGHEST: u32 = 63;

/// The capabilities that are kept if held.
pub const CAPABILITIES: [Capability; 7] = [
    Capability {
        name: "CAP_BPF",
        set: CapabilitySet::BPF,
        or: CapabilitySet::SYS_ADMIN,
        need: Need::Always,
        purpose: "to load the programs, and to attach them to sidecars that come later",
    },
    Capability {
        name: "CAP_PERFMON",
        set: CapabilitySet::PERFMON,
        or: CapabilitySet::SYS_ADMIN,
        need: Need::Startup,
        purpose: "to let the verifier accept variable-offset map pointers",
    },
    Capability {
        name: "CAP_NET_ADMIN",
        set: CapabilitySet::NET_ADMIN,
        or: CapabilitySet::SYS_ADMIN,
        need: Need::Always,
        purpose: "to attach them to cgroups, and to be notified of new processes",
    },
    Capability {
        name: "CAP_SYS_PTRACE",
        set: CapabilitySet::SYS_PTRACE,
        or: CapabilitySet::empty(),
        need: Need::MostNodes,
        purpose: "to read the executable, environment, sockets and files of other users' processes",
    },
    Capability {
        name: "CAP_DAC_READ_SEARCH",
        set: CapabilitySet::DAC_READ_SEARCH,
        or: CapabilitySet::empty(),
        need: Need::MostNodes,
        purpose: "to read mode-0400 files below /proc and in containers",
    },
    Capability {
        name: "CAP_SYS_ADMIN",
        set: CapabilitySet::SYS_ADMIN,
        or: CapabilitySet::empty(),
        need: Need::SomeNodes,
        purpose: "to scrape endpoints from inside their network namespaces if they are not reachable from outside",
    },
    Capability {
        name: "CAP_NET_BIND_SERVICE",
        set: CapabilitySet::NET_BIND_SERVICE,
        or: CapabilitySet::empty(),
        need: Need::SomeNodesStartup,
        purpose: "to serve /metrics on a port below 1024",
    },
];

impl Capability {
    /// Whether these effective capabilities include it.
    #[must_use]
    pub fn is_held(&self, held: CapabilitySet) -> bool {
        held.intersects(self.set | self.or)
    }

    /// Whether the observer cannot work without it.
    #[must_use]
    pub const fn is_required(&self) -> bool {
        matches!(self.need, Need::Startup | Need::Always)
    }
}

/// Returns this thread's effective capabilities.
///
/// # Errors
/// They cannot be read.
pub fn held() -> io::Result<CapabilitySet> {
    Ok(capabilities(None)?.effective)
}

/// Returns the number of capabilities that are not kept.
#[must_use]
pub fn superfluous(held: CapabilitySet) -> u32 {
    held.difference(kept(|_| true)).bits().count_ones()
}

/// Drops all but [`CAPABILITIES`] from every set, and sets `no_new_privs`.
///
/// # Errors
/// The kernel refuses, although no privilege is needed.
pub fn drop_unneeded() -> io::Result<()> {
    keep_only(kept(|_| true))
}

/// Drops all of them.
///
/// # Errors
/// As [`drop_unneeded`].
pub fn drop_all() -> io::Result<()> {
    keep_only(CapabilitySet::empty())
}

/// Drops those that only startup needed.
///
/// # Errors
/// As [`drop_unneeded`].
pub fn drop_startup_only() -> io::Result<()> {
    keep_only(kept(|need| !need.is_startup_only()))
}

/// Returns a message that names the missing required capabilities; `None` if none is missing.
#[must_use]
pub fn missing_required(held: CapabilitySet) -> Option<String> {
    let names: Vec<&str> = missing(held, Capability::is_required).map(|capability| capability.name).collect();
    (!names.is_empty()).then(|| format!("{} missing", names.join(", ")))
}

/// Logs which missing capabilities cost data on most nodes.
pub fn warn_about_missing() {
    missing_on_most_nodes().for_each(|missing| tracing::warn!("{missing}"));
}

/// Returns which missing capabilities cost data on most nodes, and what they are needed for.
pub fn missing_on_most_nodes() -> impl Iterator<Item = String> {
    let missing = held().ok().map(|held| missing(held, |capability| capability.need == Need::MostNodes));
    let sentence = |capability: &Capability| format!("{} is missing, needed {}", capability.name, capability.purpose);
    missing.into_iter().flatten().map(sentence)
}

fn missing(held: CapabilitySet, which: fn(&Capability) -> bool) -> impl Iterator<Item = &'static Capability> {
    CAPABILITIES.iter().filter(move |capability| which(capability) && !capability.is_held(held))
}

fn kept(which: impl Fn(Need) -> bool) -> CapabilitySet {
    CAPABILITIES.iter().filter(|capability| which(capability.need)).fold(CapabilitySet::empty(), |all, it| all | it.set)
}

fn keep_only(these: CapabilitySet) -> io::Result<()> {
    let permitted = capabilities(None)?.permitted;
    let remaining = permitted & these;
    // The bounding set limits an execve(2) that gains privileges, which `set_no_new_privs` forbids: it does not matter that
    // changing it needs CAP_SETPCAP.
    if permitted.contains(CapabilitySet::SETPCAP) {
        limit_bounding_set(permitted & kept(|need| !need.is_startup_only()))?;
    }
    match clear_ambient_capability_set() {
        // There is no ambient set before Linux 4.3.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(error) => return Err(error.into()),
    }
    let sets = CapabilitySets { effective: remaining, permitted: remaining, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets)?;
    Ok(set_no_new_privs(true)?)
}

fn limit_bounding_set(kept: CapabilitySet) -> io::Result<()> {
    for one in (0..=HIGHEST).map(|number| CapabilitySet::from_bits_retain(1 << number)) {
        if kept.contains(one) {
            continue;
        }
        match remove_capability_from_bounding_set(one) {
            // The kernel has no capability of this number.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_keeps_only_what_is_listed() {
        // Capabilities are a thread's own, so this one's change nothing for the others.
        let thread = std::thread::spawn(|| {
            let before = capabilities(None).unwrap();
            drop_unneeded().unwrap();
            let after = capabilities(None).unwrap();
            assert_eq!(after.permitted, before.permitted & kept(|_| true));
            assert_eq!((after.effective, after.inheritable), (after.permitted, CapabilitySet::empty()));
            assert_eq!(superfluous(after.effective), 0);
            assert!(rustix::thread::no_new_privs().unwrap());
            drop_startup_only().unwrap();
            let last = capabilities(None).unwrap().effective;
            assert!(!last.intersects(CapabilitySet::PERFMON | CapabilitySet::NET_BIND_SERVICE));
            assert!(after.effective.contains(last));
        });
        thread.join().unwrap();
    }

    #[test]
    fn the_manifests_grant_what_is_needed_and_no_more() {
        let names =
            || CAPABILITIES.iter().filter(|it| it.is_required() || it.need == Need::MostNodes).map(|it| it.name);
        let unit = include_str!("../../../deploy/mesh-observer.service");
        let list = names().collect::<Vec<_>>().join(" ");
        for set in ["AmbientCapabilities", "CapabilityBoundingSet"] {
            let lines: Vec<&str> = unit.lines().filter(|line| line.starts_with(set)).collect();
            assert_eq!(lines, [format!("{set}={list}")]);
        }
        let pod = include_str!("../../../deploy/daemonset.yaml");
        let list = names().map(|name| name.trim_start_matches("CAP_")).collect::<Vec<_>>().join(", ");
        let lines: Vec<&str> = pod.lines().map(str::trim).filter(|line| line.starts_with("add: ")).collect();
        assert_eq!(lines, [format!("add: [{list}]")]);
        assert!(pod.contains("drop: [ALL]") && pod.contains("readOnlyRootFilesystem: true"));
    }

    #[test]
    fn missing_capabilities_are_named() {
        let names = |held, which| missing(held, which).map(|capability| capability.name).collect::<Vec<_>>();
        let none = CapabilitySet::empty();
        assert_eq!(names(none, Capability::is_required), ["CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"]);
        assert_eq!(names(CapabilitySet::SYS_ADMIN, Capability::is_required), [""; 0]);
        let some = CapabilitySet::BPF | CapabilitySet::SYS_PTRACE;
        assert_eq!(names(some, Capability::is_required), ["CAP_PERFMON", "CAP_NET_ADMIN"]);
        assert_eq!(names(some, |capability| capability.need == Need::MostNodes), ["CAP_DAC_READ_SEARCH"]);
        assert_eq!(superfluous(some | CapabilitySet::CHOWN | CapabilitySet::KILL), 2);
    }
}
