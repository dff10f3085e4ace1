//! The capabilities that the observer may keep, each with its reason; all others are given up before it begins.
//!
//! The calls here concern one thread: they are made while there is no other.

use std::io;

use rustix::{
    io::Errno,
    thread::{
        CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, remove_capability_from_bounding_set,
        set_capabilities, set_no_new_privs,
    },
};

/// A capability that matters here.
#[derive(Debug)]
pub struct Capability {
    /// As people write it.
    pub name: &'static str,
    set: CapabilitySet,
    /// One that includes it, in the kernel's eyes.
    or: CapabilitySet,
    /// What becomes of it.
    pub need: Need,
    /// What it is for, after "needed".
    pub purpose: &'static str,
}

/// When a capability is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing works without it; given up once the programs are loaded.
    ToStart,
    /// Nothing works without it.
    Always,
    /// Without it something is missing in most places.
    Mostly,
    /// Without it something is missing in some places.
    Seldom,
    /// Used while starting, if at all.
    SeldomToStart,
}

impl Need {
    /// Whether it ends when everything has started.
    #[must_use]
    pub const fn is_to_start(self) -> bool {
        matches!(self, Self::ToStart | Self::SeldomToStart)
    }
}

/// The highest number that the kernel's sets have room for.
const HIGHEST: u32 = 63;

/// All that are kept if they are there.
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
        need: Need::ToStart,
        purpose: "to have the verifier follow only branches that can be taken",
    },
    Capability {
        name: "CAP_NET_ADMIN",
        set: CapabilitySet::NET_ADMIN,
        or: CapabilitySet::SYS_ADMIN,
        need: Need::Always,
        purpose: "to attach them to cgroups, and to hear of new processes at once",
    },
    Capability {
        name: "CAP_SYS_PTRACE",
        set: CapabilitySet::SYS_PTRACE,
        or: CapabilitySet::empty(),
        need: Need::Mostly,
        purpose: "to see the program, environment, sockets and files of other users' processes",
    },
    Capability {
        name: "CAP_DAC_READ_SEARCH",
        set: CapabilitySet::DAC_READ_SEARCH,
        or: CapabilitySet::empty(),
        need: Need::Mostly,
        purpose: "to open those files below /proc and in containers that are their owner's alone",
    },
    Capability {
        name: "CAP_SYS_ADMIN",
        set: CapabilitySet::SYS_ADMIN,
        or: CapabilitySet::empty(),
        need: Need::Seldom,
        purpose: "to read metrics pages from inside their network namespaces, where those let nobody else in",
    },
    Capability {
        name: "CAP_NET_BIND_SERVICE",
        set: CapabilitySet::NET_BIND_SERVICE,
        or: CapabilitySet::empty(),
        need: Need::SeldomToStart,
        purpose: "to serve /metrics on a port below 1024",
    },
];

impl Capability {
    /// Whether these effective capabilities have it or one that includes it.
    #[must_use]
    pub fn is_held(&self, held: CapabilitySet) -> bool {
        held.intersects(self.set | self.or)
    }

    /// Whether nothing works without it.
    #[must_use]
    pub const fn is_indispensable(&self) -> bool {
        matches!(self.need, Need::ToStart | Need::Always)
    }
}

/// What this thread may do now.
///
/// # Errors
/// The kernel does not tell.
pub fn held() -> io::Result<CapabilitySet> {
    Ok(capabilities(None)?.effective)
}

/// How many there are beside those that are kept.
#[must_use]
pub fn superfluous(held: CapabilitySet) -> u32 {
    held.difference(kept(|_| true)).bits().count_ones()
}

/// Gives up all but [`CAPABILITIES`], in every set of the process, and the right to get any by an execve(2).
///
/// # Errors
/// The kernel refuses, which no privilege is needed for.
pub fn give_up_others() -> io::Result<()> {
    confine(kept(|_| true))
}

/// Gives up those that only the start needed.
///
/// # Errors
/// As [`give_up_others`].
pub fn give_up_what_started() -> io::Result<()> {
    confine(kept(|need| !need.is_to_start()))
}

/// Those without which nothing works and which are not there, for people; nothing if all are.
#[must_use]
pub fn lacking(held: CapabilitySet) -> Option<String> {
    let names: Vec<&str> = missing(held, Capability::is_indispensable).map(|capability| capability.name).collect();
    (!names.is_empty()).then(|| format!("{} missing", names.join(", ")))
}

/// Says which of those are not there that make the figures whole.
pub fn warn_of_gaps() {
    let Ok(held) = held() else { return };
    for capability in missing(held, |capability| capability.need == Need::Mostly) {
        tracing::warn!("{} is missing, needed {}", capability.name, capability.purpose);
    }
}

fn missing(held: CapabilitySet, which: fn(&Capability) -> bool) -> impl Iterator<Item = &'static Capability> {
    CAPABILITIES.iter().filter(move |capability| which(capability) && !capability.is_held(held))
}

fn kept(which: impl Fn(Need) -> bool) -> CapabilitySet {
    CAPABILITIES.iter().filter(|capability| which(capability.need)).fold(CapabilitySet::empty(), |all, it| all | it.set)
}

fn confine(these: CapabilitySet) -> io::Result<()> {
    let permitted = capabilities(None)?.permitted;
    let remaining = permitted & these;
    // What bounds an execve(2) that gains privileges: there is none after `set_no_new_privs`, so that a process that may not
    // change it (CAP_SETPCAP) loses nothing. One that may, may once: that goes too.
    if permitted.contains(CapabilitySet::SETPCAP) {
        limit_bounds(permitted & kept(|need| !need.is_to_start()))?;
    }
    match clear_ambient_capability_set() {
        // Before Linux 4.3 there is no such set.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(error) => return Err(error.into()),
    }
    let sets = CapabilitySets { effective: remaining, permitted: remaining, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets)?;
    Ok(set_no_new_privs(true)?)
}

fn limit_bounds(kept: CapabilitySet) -> io::Result<()> {
    for one in (0..=HIGHEST).map(|number| CapabilitySet::from_bits_retain(1 << number)) {
        if kept.contains(one) {
            continue;
        }
        match remove_capability_from_bounding_set(one) {
            // The kernel knows none of this number.
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
            give_up_others().unwrap();
            let after = capabilities(None).unwrap();
            assert_eq!(after.permitted, before.permitted & kept(|_| true));
            assert_eq!((after.effective, after.inheritable), (after.permitted, CapabilitySet::empty()));
            assert_eq!(superfluous(after.effective), 0);
            assert!(rustix::thread::no_new_privs().unwrap());
            give_up_what_started().unwrap();
            let last = capabilities(None).unwrap().effective;
            assert!(!last.intersects(CapabilitySet::PERFMON | CapabilitySet::NET_BIND_SERVICE));
            assert!(after.effective.contains(last));
        });
        thread.join().unwrap();
    }

    #[test]
    fn the_manifests_grant_what_is_needed_and_no_more() {
        let names =
            || CAPABILITIES.iter().filter(|it| it.is_indispensable() || it.need == Need::Mostly).map(|it| it.name);
        let unit = include_str!("../../deploy/mesh-observer.service");
        let list = names().collect::<Vec<_>>().join(" ");
        for set in ["AmbientCapabilities", "CapabilityBoundingSet"] {
            let lines: Vec<&str> = unit.lines().filter(|line| line.starts_with(set)).collect();
            assert_eq!(lines, [format!("{set}={list}")]);
        }
        let pod = include_str!("../../deploy/daemonset.yaml");
        let list = names().map(|name| name.trim_start_matches("CAP_")).collect::<Vec<_>>().join(", ");
        let lines: Vec<&str> = pod.lines().map(str::trim).filter(|line| line.starts_with("add: ")).collect();
        assert_eq!(lines, [format!("add: [{list}]")]);
        assert!(pod.contains("drop: [ALL]") && pod.contains("readOnlyRootFilesystem: true"));
    }

    #[test]
    fn says_what_is_lacking() {
        let names = |held, which| missing(held, which).map(|capability| capability.name).collect::<Vec<_>>();
        let none = CapabilitySet::empty();
        assert_eq!(names(none, Capability::is_indispensable), ["CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"]);
        assert_eq!(names(CapabilitySet::SYS_ADMIN, Capability::is_indispensable), [""; 0]);
        let some = CapabilitySet::BPF | CapabilitySet::SYS_PTRACE;
        assert_eq!(names(some, Capability::is_indispensable), ["CAP_PERFMON", "CAP_NET_ADMIN"]);
        assert_eq!(names(some, |capability| capability.need == Need::Mostly), ["CAP_DAC_READ_SEARCH"]);
        assert_eq!(superfluous(some | CapabilitySet::CHOWN | CapabilitySet::KILL), 2);
    }
}
