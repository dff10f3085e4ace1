//! Assigns ids to sidecars: a container restarted in the same pod keeps its id, and ids are not reused.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{ProcessId, SidecarId, Workload};

/// Number of departed identities whose ids are kept in case they return.
const MAX_DEPARTED: usize = 4096;

/// Assigns the ids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "PersistedRegistry", into = "PersistedRegistry")]
pub struct Registry {
    next: SidecarId,
    numbers: BTreeMap<Key, SidecarId>,
    holders: BTreeMap<ProcessId, Key>,
    departed: VecDeque<Key>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Key {
    Pod {
        namespace: String,
        pod: String,
        /// From its cgroup, which it does not control, if that has one.
        #[serde(default)]
        uid: Option<String>,
    },
    Cgroup {
        #[serde(serialize_with = "super::lossy")]
        path: PathBuf,
        ordinal: usize,
    },
}

impl Key {
    /// Whether it is this pod's key, also one assigned by an observer that did not record uids.
    fn is_of(&self, pod: &Self) -> bool {
        match (self, pod) {
            (Self::Pod { namespace, pod, uid: None }, Self::Pod { namespace: other_namespace, pod: other_pod, .. }) => {
                namespace == other_namespace && pod == other_pod
            }
            _ => self == pod,
        }
    }
}

/// The registry as it is persisted.
#[derive(Serialize, Deserialize)]
struct PersistedRegistry {
    next: SidecarId,
    numbers: Vec<(Key, SidecarId)>,
    holders: Vec<(ProcessId, Key)>,
    departed: VecDeque<Key>,
}

impl From<Registry> for PersistedRegistry {
    fn from(registry: Registry) -> Self {
        let Registry { next, numbers, holders, departed } = registry;
        Self { next, numbers: numbers.into_iter().collect(), holders: holders.into_iter().collect(), departed }
    }
}

impl TryFrom<PersistedRegistry> for Registry {
    type Error = &'static str;

    fn try_from(persisted: PersistedRegistry) -> Result<Self, Self::Error> {
        let PersistedRegistry { next, numbers, holders, departed } = persisted;
        let numbers: BTreeMap<Key, SidecarId> = numbers.into_iter().collect();
        let given: BTreeSet<SidecarId> = numbers.values().copied().collect();
        // Half of the range is more than any node uses, and leaves room for new ids.
        let ordered = next <= SidecarId::MAX / 2 && given.iter().all(|number| (1..next).contains(number));
        let known = |key: &Key| numbers.contains_key(key);
        if !ordered || given.len() != numbers.len() || !holders.iter().map(|(_, key)| key).chain(&departed).all(known) {
            return Err("the numbers of sidecars do not fit together");
        }
        Ok(Self { next, numbers, holders: holders.into_iter().collect(), departed })
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self { next: 1, numbers: BTreeMap::new(), holders: BTreeMap::new(), departed: VecDeque::new() }
    }
}

impl Registry {
    /// Returns the id of a process until [`Registry::release`]: its pod's (`uid` is from the cgroup), or that of its
    /// position among the sidecars of its cgroup. A process that turns out to be in another pod gets another id.
    pub fn assign(&mut self, process: ProcessId, workload: &Workload, uid: Option<&str>, cgroup: &Path) -> SidecarId {
        let pod = workload.namespace.clone().zip(workload.pod.clone());
        let pod = pod.map(|(namespace, pod)| Key::Pod { namespace, pod, uid: uid.map(str::to_owned) });
        let held = self.holders.get(&process).filter(|held| match &pod {
            Some(pod) => held.is_of(pod),
            None => matches!(held, Key::Cgroup { .. }),
        });
        if let Some(number) = held.and_then(|held| self.numbers.get(held)) {
            return *number;
        }
        self.release(process);
        let key = pod.unwrap_or_else(|| self.free_cgroup_key(cgroup));
        self.holders.insert(process, key.clone());
        self.departed.retain(|departed| *departed != key);
        *self.numbers.entry(key).or_insert_with(|| {
            let number = self.next;
            self.next += 1;
            number
        })
    }

    /// Returns a process of another pod with this pod's name; a process whose cgroup has a pod uid takes precedence
    /// over one whose cgroup has none.
    pub fn name_conflict(
        &self,
        process: ProcessId,
        namespace: &str,
        pod: &str,
        uid: Option<&str>,
    ) -> Option<ProcessId> {
        let is_conflict = |key: &Key| match key {
            Key::Pod { namespace: theirs, pod: name, uid: other } => {
                theirs == namespace && name == pod && other.is_some() && other.as_deref() != uid
            }
            Key::Cgroup { .. } => false,
        };
        self.holders.iter().find(|(holder, key)| **holder != process && is_conflict(key)).map(|(holder, _)| *holder)
    }

    /// Releases all but these processes.
    pub fn retain(&mut self, present: &BTreeSet<ProcessId>) {
        let ended: Vec<ProcessId> = self.holders.keys().filter(|process| !present.contains(process)).copied().collect();
        ended.into_iter().for_each(|process| self.release(process));
    }

    /// Releases the id of a process that has ended.
    pub fn release(&mut self, process: ProcessId) {
        let Some(key) = self.holders.remove(&process) else { return };
        if self.holders.values().any(|held| *held == key) {
            return;
        }
        self.departed.push_back(key);
        if self.departed.len() > MAX_DEPARTED
            && let Some(oldest) = self.departed.pop_front()
        {
            self.numbers.remove(&oldest);
        }
    }

    fn free_cgroup_key(&self, cgroup: &Path) -> Key {
        let taken: BTreeSet<usize> = self
            .holders
            .values()
            .filter_map(|key| match key {
                Key::Cgroup { path, ordinal } if path == cgroup => Some(*ordinal),
                _ => None,
            })
            .collect();
        let ordinal = (0..taken.len()).find(|ordinal| !taken.contains(ordinal)).unwrap_or(taken.len());
        Key::Cgroup { path: cgroup.to_owned(), ordinal }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pod(name: &str) -> Workload {
        Workload { pod: Some(name.to_owned()), namespace: Some("default".to_owned()), ..Workload::default() }
    }

    fn process(pid: u32) -> ProcessId {
        ProcessId { pid, start_time: 7 }
    }

    #[test]
    fn a_restarted_container_keeps_its_number() {
        let mut registry = Registry::default();
        let first = registry.assign(process(10), &pod("a"), None, Path::new("/pod/1"));
        assert_eq!(first, 1);
        registry.release(process(10));
        assert_eq!(registry.assign(process(20), &pod("a"), None, Path::new("/pod/2")), first);
        assert_eq!(registry.assign(process(20), &pod("a"), None, Path::new("/pod/2")), first);
        assert_ne!(registry.assign(process(30), &pod("b"), None, Path::new("/pod/2")), first);
    }

    #[test]
    fn a_pods_name_in_another_pod_is_another_number() {
        let (mut registry, cgroup) = (Registry::default(), Path::new("/pod"));
        let victim = registry.assign(process(1), &pod("a"), Some("uid-1"), cgroup);
        assert_eq!(registry.name_conflict(process(2), "default", "a", Some("uid-2")), Some(process(1)));
        assert_eq!(registry.name_conflict(process(2), "default", "a", None), Some(process(1)));
        assert_eq!(
            registry.name_conflict(process(2), "default", "a", Some("uid-1")),
            None,
            "a restart in the same pod"
        );
        assert_eq!(registry.name_conflict(process(2), "other", "a", Some("uid-2")), None);
        assert_ne!(registry.assign(process(2), &pod("a"), Some("uid-2"), cgroup), victim);
        assert_eq!(registry.assign(process(3), &pod("a"), Some("uid-1"), cgroup), victim);
        // Where cgroups tell nothing, names are all there is.
        let nameless = registry.assign(process(4), &pod("b"), None, cgroup);
        assert_eq!(registry.name_conflict(process(5), "default", "b", None), None);
        assert_eq!(registry.assign(process(5), &pod("b"), None, cgroup), nameless);
    }

    #[test]
    fn who_gets_its_name_back_gets_its_number() {
        let (mut registry, cgroup) = (Registry::default(), Path::new("/pod"));
        let nobody = registry.assign(process(1), &Workload::default(), Some("uid"), cgroup);
        assert_eq!(registry.assign(process(1), &Workload::default(), Some("uid"), cgroup), nobody);
        let named = registry.assign(process(1), &pod("a"), Some("uid"), cgroup);
        assert_ne!(named, nobody);
        assert_eq!(registry.assign(process(1), &pod("a"), Some("uid"), cgroup), named);
        assert_eq!(registry.assign(process(2), &Workload::default(), None, cgroup), nobody, "its place is free");
    }

    #[test]
    fn numbers_survive_the_observer() {
        let (mut registry, nobody, cgroup) = (Registry::default(), Workload::default(), Path::new("/service"));
        let first = registry.assign(process(1), &nobody, None, cgroup);
        let second = registry.assign(process(2), &nobody, None, cgroup);
        let pod_number = registry.assign(process(3), &pod("a"), None, cgroup);
        let text = serde_json::to_string(&registry).unwrap();
        let mut again: Registry = serde_json::from_str(&text).unwrap();
        assert_eq!(again, registry);
        again.retain(&BTreeSet::from([process(2), process(4)]));
        assert_eq!(again.assign(process(2), &nobody, None, cgroup), second);
        assert_eq!(again.assign(process(5), &nobody, None, cgroup), first, "its place is free");
        assert_eq!(again.assign(process(6), &pod("a"), None, cgroup), pod_number);
        assert!(again.assign(process(7), &pod("b"), None, cgroup) > pod_number);
    }

    #[test]
    fn numbers_of_an_observer_that_knew_no_uids_go_on() {
        let (mut registry, cgroup) = (Registry::default(), Path::new("/pod"));
        let number = registry.assign(process(1), &pod("a"), None, cgroup);
        let mut text = serde_json::to_value(&registry).unwrap();
        text["numbers"][0][0]["Pod"].as_object_mut().unwrap().remove("uid");
        text["holders"][0][1]["Pod"].as_object_mut().unwrap().remove("uid");
        let mut again: Registry = serde_json::from_value(text).unwrap();
        assert_eq!(again.assign(process(1), &pod("a"), Some("uid"), cgroup), number);
    }

    #[test]
    fn numbers_that_do_not_fit_together_are_refused() {
        let (mut registry, cgroup) = (Registry::default(), Path::new("/service"));
        registry.assign(process(1), &pod("a"), None, cgroup);
        registry.assign(process(2), &pod("b"), None, cgroup);
        registry.release(process(2));
        let whole = serde_json::to_value(&registry).unwrap();
        let again = |change: &dyn Fn(&mut serde_json::Value)| {
            let mut changed = whole.clone();
            change(&mut changed);
            serde_json::from_value::<Registry>(changed)
        };
        assert_eq!(again(&|_| {}).unwrap(), registry);
        let changes: [&dyn Fn(&mut serde_json::Value); 6] = [
            &|it| it["next"] = 2.into(),
            &|it| it["next"] = u32::MAX.into(),
            &|it| it["numbers"][0][1] = 0.into(),
            &|it| it["numbers"][0][1] = it["numbers"][1][1].clone(),
            &|it| it["numbers"][0][0]["Pod"]["pod"] = "c".into(),
            &|it| it["departed"][0]["Pod"]["pod"] = "c".into(),
        ];
        for (index, change) in changes.into_iter().enumerate() {
            assert!(again(change).is_err(), "change {index}");
        }
    }

    #[test]
    fn without_a_pod_the_place_in_the_cgroup_counts() {
        let (mut registry, nobody, cgroup) = (Registry::default(), Workload::default(), Path::new("/service"));
        let first = registry.assign(process(1), &nobody, None, cgroup);
        let second = registry.assign(process(2), &nobody, None, cgroup);
        assert_ne!(first, second);
        registry.release(process(1));
        assert_eq!(registry.assign(process(3), &nobody, None, cgroup), first);
        assert_eq!(registry.assign(process(2), &nobody, None, cgroup), second);
    }

    #[test]
    fn forgets_the_oldest_departed_and_never_reuses_its_number() {
        let mut registry = Registry::default();
        let first = registry.assign(process(0), &pod("0"), None, Path::new("/"));
        registry.release(process(0));
        for pid in 1..=MAX_DEPARTED as u32 {
            registry.assign(process(pid), &pod(&pid.to_string()), None, Path::new("/"));
            registry.release(process(pid));
        }
        assert_eq!((registry.departed.len(), registry.numbers.len()), (MAX_DEPARTED, MAX_DEPARTED));
        assert!(registry.assign(process(0), &pod("0"), None, Path::new("/")) > first + MAX_DEPARTED as u32);
    }

    proptest! {
        #[test]
        fn living_identities_never_share(steps in proptest::collection::vec((0u32..8, 0u8..4, any::<bool>()), 0..60)) {
            let mut registry = Registry::default();
            let mut living = BTreeMap::new();
            for (pid, name, ends) in steps {
                if ends {
                    registry.release(process(pid));
                    living.remove(&pid);
                } else {
                    living.entry(pid).or_insert_with(|| {
                        let workload = if name == 0 { Workload::default() } else { pod(&name.to_string()) };
                        (name, registry.assign(process(pid), &workload, None, Path::new("/x")))
                    });
                }
                for (one, (name, number)) in &living {
                    prop_assert!(*number > 0);
                    for (other, (other_name, other_number)) in &living {
                        let same = one == other || (name == other_name && *name != 0);
                        prop_assert_eq!(same, number == other_number);
                    }
                }
            }
        }
    }
}
