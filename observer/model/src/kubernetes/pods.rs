//! Pods, fetched on demand and dropped when unused.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{
    facts::{ObjectName, Pod, PodUid},
    owner,
};
use crate::identity::Workload;

/// Maximum pods that are kept.
const MAX_PODS: usize = 4_096;
/// Maximum questions that wait to be taken.
const MAX_WANTED: usize = 1_024;
/// How long a question is not repeated after it was taken.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// How long it is known that there is no such pod.
const ABSENT_FOR: Duration = Duration::from_secs(60);
/// How long an address is known to be a pod's that no endpoint names: it may be another's then.
const ADDRESS_TRUSTED_FOR: Duration = Duration::from_secs(30);

/// A question for pods.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PodQuery {
    /// The pod of this name.
    Name(ObjectName),
    /// All pods at this address.
    Address(IpAddr),
}

/// What is known of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// Its identity.
    Known(Arc<Workload>),
    /// It will be asked for.
    Pending,
    /// There is none.
    Absent,
    /// There are several that differ.
    Ambiguous,
}

#[derive(Debug, Default)]
pub(super) struct Pods {
    now: Option<SystemTime>,
    by_name: HashMap<ObjectName, Kept>,
    by_address: HashMap<IpAddr, Answer>,
    /// A pod of each template, by namespace and what its pods' names begin with.
    by_template: HashMap<ObjectName, ObjectName>,
    absent: HashMap<PodQuery, SystemTime>,
    wanted: BTreeSet<PodQuery>,
    /// When questions were taken, and whether they wait for an answer.
    taken: HashMap<PodQuery, (SystemTime, bool)>,
    /// Templates whose pods differ, as they are not a `ReplicaSet`'s.
    unlike: HashSet<ObjectName>,
    sweep: u32,
}

#[derive(Debug)]
struct Kept {
    pod: Arc<Pod>,
    used: u32,
}

/// All pods at an address.
#[derive(Debug)]
struct Answer {
    pods: Vec<Arc<Pod>>,
    at: SystemTime,
    used: u32,
}

impl Pods {
    pub(super) fn len(&self) -> usize {
        self.by_name.len() + self.by_address.values().map(|answer| answer.pods.len()).sum::<usize>()
    }

    /// Begins a round. Addresses in use are asked for again from time to time, without being forgotten meanwhile.
    pub(super) fn begin(&mut self, now: SystemTime) {
        self.now = Some(now);
        self.absent.retain(|_, until| *until > now);
        let since = |at: SystemTime| now.duration_since(at).unwrap_or_default();
        self.taken.retain(|_, (at, _)| since(*at) < ASK_AGAIN);
        let old = self.by_address.iter().filter(|(_, answer)| since(answer.at) >= ADDRESS_TRUSTED_FOR);
        let old: Vec<_> = old.map(|(address, _)| PodQuery::Address(*address)).collect();
        old.into_iter().for_each(|query| self.want(query));
    }

    /// Returns the pod of a name, or what is like it: another pod made of the same template.
    pub(super) fn named(&mut self, name: &ObjectName, uid: PodUid) -> (Lookup, bool) {
        let sweep = self.sweep;
        if let Some(kept) = self.by_name.get_mut(name).filter(|kept| kept.pod.uid.fits(uid)) {
            kept.used = sweep;
            return (Lookup::Known(kept.pod.workload.clone()), kept.pod.is_in_host_network());
        }
        let like = template(name).and_then(|template| self.by_template.get(&template));
        if let Some(kept) = like.and_then(|like| self.by_name.get_mut(like)) {
            kept.used = sweep;
            return (Lookup::Known(kept.pod.workload.clone()), kept.pod.is_in_host_network());
        }
        let query = PodQuery::Name(name.clone());
        if self.absent.contains_key(&query) {
            return (Lookup::Absent, false);
        }
        self.want(query);
        (Lookup::Pending, false)
    }

    /// Returns the pod at an address: several share their node's, and count as one if they are of one workload.
    pub(super) fn at(&mut self, address: IpAddr) -> Lookup {
        let query = PodQuery::Address(address);
        if let Some(answer) = self.by_address.get_mut(&address) {
            answer.used = self.sweep;
            let mut workloads = answer.pods.iter().map(|pod| &pod.workload);
            let Some(first) = workloads.next() else { return Lookup::Absent };
            let is_one = workloads.all(|other| is_alike(first, other));
            return if is_one { Lookup::Known(first.clone()) } else { Lookup::Ambiguous };
        }
        if self.absent.contains_key(&query) {
            return Lookup::Absent;
        }
        self.want(query);
        Lookup::Pending
    }

    /// Returns whether an address is known to be a node's.
    pub(super) fn is_node(&self, address: IpAddr) -> bool {
        let by_name = self.by_name.values().map(|kept| &kept.pod);
        let mut all = by_name.chain(self.by_address.values().flat_map(|answer| &answer.pods));
        all.any(|pod| pod.host_addresses.contains(&address))
    }

    /// Takes an answer; returns whether it is news, and how many pods of it are not kept.
    pub(super) fn answer(&mut self, query: PodQuery, found: Vec<Pod>, now: SystemTime) -> (bool, usize) {
        self.wanted.remove(&query);
        if let Some((_, is_waiting)) = self.taken.get_mut(&query) {
            *is_waiting = false;
        }
        // An address of a pod that has ended may be another's.
        let found: Vec<_> = match &query {
            PodQuery::Address(address) => found
                .into_iter()
                .filter(|pod| !pod.has_ended && pod.addresses.contains(address))
                .map(Arc::new)
                .collect(),
            PodQuery::Name(name) => found.into_iter().filter(|pod| pod.name == *name).map(Arc::new).collect(),
        };
        if found.is_empty() {
            match &query {
                PodQuery::Name(name) => drop(self.by_name.remove(name)),
                PodQuery::Address(address) => drop(self.by_address.remove(address)),
            }
            if self.absent.len() < MAX_PODS {
                self.absent.insert(query, now + ABSENT_FOR);
            }
            return (true, 0);
        }
        self.absent.remove(&query);
        if self.len() + found.len() > MAX_PODS {
            return (true, found.len());
        }
        match query {
            PodQuery::Address(address) => {
                let answer = self.by_address.entry(address).or_insert_with(|| Answer {
                    pods: Vec::new(),
                    at: now,
                    used: self.sweep,
                });
                answer.at = now;
                if answer.pods == found {
                    return (false, 0);
                }
                answer.pods = found;
            }
            PodQuery::Name(name) => {
                for pod in found {
                    if let Some(template) = template(&name) {
                        if pod.template.is_some() {
                            self.by_template.insert(template, name.clone());
                        } else if self.unlike.len() < MAX_PODS {
                            self.unlike.insert(template);
                        }
                    }
                    self.by_name.insert(name.clone(), Kept { pod, used: self.sweep });
                }
            }
        }
        (true, 0)
    }

    /// Forgets what was known of an address whose endpoint was added, changed or removed.
    pub(super) fn on_endpoint_changed(&mut self, address: IpAddr) {
        self.by_address.remove(&address);
        self.absent.remove(&PodQuery::Address(address));
    }

    /// Returns the questions, each at most once in [`ASK_AGAIN`].
    pub(super) fn take_wanted(&mut self, now: SystemTime) -> Vec<PodQuery> {
        let wanted = std::mem::take(&mut self.wanted);
        let wanted: Vec<_> = wanted.into_iter().filter(|query| !self.taken.contains_key(query)).collect();
        self.taken.extend(wanted.iter().map(|query| (query.clone(), (now, true))));
        wanted
    }

    /// Drops pods that were not used since the last but one sweep.
    pub(super) fn sweep(&mut self) {
        let last = self.sweep;
        self.by_name.retain(|_, kept| kept.used >= last);
        self.by_address.retain(|_, answer| answer.used >= last);
        let names: HashSet<_> = self.by_name.keys().cloned().collect();
        self.by_template.retain(|_, name| names.contains(name));
        self.unlike.clear();
        self.sweep += 1;
    }

    fn want(&mut self, query: PodQuery) {
        // One pod of a template suffices, whichever was asked for first.
        if let PodQuery::Name(name) = &query
            && let Some(own) = template(name).filter(|template| !self.unlike.contains(template))
        {
            let is_like = |other: &PodQuery| matches!(other, PodQuery::Name(it) if template(it).as_ref() == Some(&own));
            let mut waiting = self.taken.iter().filter(|(_, (_, is_waiting))| *is_waiting).map(|(query, _)| query);
            if waiting.any(is_like) || self.wanted.iter().any(is_like) {
                return;
            }
        }
        if self.wanted.len() < MAX_WANTED {
            self.wanted.insert(query);
        }
    }
}

/// Returns the namespace and what the name of a pod begins with if its end looks random.
fn template(name: &ObjectName) -> Option<ObjectName> {
    ObjectName::new(&name.namespace, owner::template_of(&name.name)?)
}

/// Returns whether two pods have the same labels in metrics.
fn is_alike(one: &Workload, other: &Workload) -> bool {
    one.name == other.name
        && one.namespace == other.namespace
        && one.service_account == other.service_account
        && one.labels == other.labels
}
