//! The cluster, kept up to date by changes.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::SystemTime,
};

use super::{
    facts::{Entry, ObjectName, Pod, Rejection, Service, Slice},
    object::{self, Object},
    pods::{PodQuery, Pods},
    routes::Routes,
};

/// Maximum Services, and `ServiceEntry`s.
const MAX_SERVICES: usize = 16_384;
/// Maximum slices.
const MAX_SLICES: usize = 65_536;
/// Maximum endpoints of all slices together.
const MAX_ENDPOINTS: usize = 262_144;

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Resource {
    /// `services`.
    Services,
    /// `endpointslices.discovery.k8s.io`.
    EndpointSlices,
    /// `serviceentries.networking.istio.io`.
    ServiceEntries,
    /// `pods`.
    Pods,
}

impl Resource {
    /// Those that are listed and watched.
    pub const WATCHED: [Self; 3] = [Self::Services, Self::EndpointSlices, Self::ServiceEntries];

    /// Returns the plural name that the API uses.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::EndpointSlices => "endpointslices",
            Self::ServiceEntries => "serviceentries",
            Self::Pods => "pods",
        }
    }
}

/// An object that is listed and watched.
pub trait Watched: Object {
    /// Its kind.
    const RESOURCE: Resource;

    /// Returns what is kept of it in a cluster with this domain; `None` if nothing.
    ///
    /// # Errors
    /// It is too large to be kept.
    fn fact(&self, domain: &str) -> Result<Option<Fact>, Rejection>;
}

/// What is kept of an object.
#[derive(Clone, Debug)]
pub struct Fact(Kept);

#[derive(Clone, Debug)]
enum Kept {
    Service(Arc<Service>),
    Slice(Arc<Slice>),
    Entry(Arc<Entry>),
}

impl Watched for object::Service {
    const RESOURCE: Resource = Resource::Services;

    fn fact(&self, domain: &str) -> Result<Option<Fact>, Rejection> {
        Ok(Service::new(self, domain)?.map(|service| Fact(Kept::Service(Arc::new(service)))))
    }
}

impl Watched for object::EndpointSlice {
    const RESOURCE: Resource = Resource::EndpointSlices;

    fn fact(&self, _: &str) -> Result<Option<Fact>, Rejection> {
        Ok(Slice::new(self)?.map(|slice| Fact(Kept::Slice(Arc::new(slice)))))
    }
}

impl Watched for object::ServiceEntry {
    const RESOURCE: Resource = Resource::ServiceEntries;

    fn fact(&self, _: &str) -> Result<Option<Fact>, Rejection> {
        Ok(Some(Fact(Kept::Entry(Arc::new(Entry::new(self)?)))))
    }
}

/// A change of the cluster.
#[derive(Clone, Debug)]
pub enum Change {
    /// A complete list begins: what it does not name is gone when it ends.
    ListBegan(Resource),
    /// The list has ended.
    ListEnded(Resource),
    /// An object was added or modified, or is gone if nothing is kept of it.
    Applied(Resource, ObjectName, Option<Fact>),
    /// An object is not kept; its former state, if the name is known, is dropped.
    Rejected(Resource, Option<ObjectName>, Rejection),
    /// The answer to a question for pods: those that there are.
    Pods(PodQuery, Vec<Pod>),
}

impl Change {
    /// Returns the change that an added or modified object makes.
    #[must_use]
    pub fn applied<T: Watched>(object: &T, domain: &str) -> Self {
        match (ObjectName::of(object.metadata()), object.fact(domain)) {
            (Ok(name), Ok(fact)) => Self::Applied(T::RESOURCE, name, fact),
            (name, fact) => {
                let rejection = fact.err().unwrap_or(Rejection::Name);
                Self::Rejected(T::RESOURCE, name.ok(), rejection)
            }
        }
    }
}

/// The cluster's Services, endpoints, `ServiceEntry`s, and pods as far as fetched.
#[derive(Debug, Default)]
pub struct Cluster {
    is_on: bool,
    generation: u64,
    synced: HashSet<Resource>,
    /// Names seen so far by a list that has not ended.
    listing: HashMap<Resource, HashSet<ObjectName>>,
    services: HashMap<ObjectName, Arc<Service>>,
    slices: HashMap<ObjectName, Arc<Slice>>,
    entries: HashMap<ObjectName, Arc<Entry>>,
    pub(super) slices_by_service: HashMap<ObjectName, Vec<Arc<Slice>>>,
    pub(super) slices_by_address: HashMap<IpAddr, Vec<Arc<Slice>>>,
    endpoints: usize,
    pub(super) pods: Pods,
    rejected: BTreeMap<(Resource, Rejection), u64>,
    pub(super) routes: Routes,
    /// Changes with the objects that are listed.
    listed: u64,
    /// Value of `listed` that `routes` are of.
    routed: u64,
}

impl Cluster {
    /// Turns the cluster on: from now on, what is not known may become known.
    pub fn turn_on(&mut self) {
        self.is_on = true;
        self.generation += 1;
    }

    /// Returns whether it is turned on.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.is_on
    }

    /// Returns whether every list has ended once.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.synced.len() == Resource::WATCHED.len()
    }

    /// Returns a number that changes with each change that may change an answer.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Returns a number that changes with each change of the listed objects, on which the ports' protocols depend.
    #[must_use]
    pub fn listed_generation(&self) -> u64 {
        self.listed
    }

    fn on_listed_changed(&mut self) {
        self.generation += 1;
        self.listed += 1;
    }

    /// Applies a change.
    pub fn apply(&mut self, change: Change, now: SystemTime) {
        match change {
            Change::ListBegan(resource) => {
                self.listing.insert(resource, HashSet::new());
            }
            Change::ListEnded(resource) => self.end_list(resource),
            Change::Applied(resource, name, fact) => {
                if let Some(listed) = self.listing.get_mut(&resource) {
                    listed.insert(name.clone());
                }
                self.set(resource, name, fact);
            }
            Change::Rejected(resource, name, rejection) => {
                self.count_rejected(resource, rejection);
                if let Some(name) = name {
                    self.set(resource, name, None);
                }
            }
            Change::Pods(query, found) => {
                let (is_news, refused) = self.pods.answer(query, found, now);
                for _ in 0..refused {
                    self.count_rejected(Resource::Pods, Rejection::TooMany);
                }
                self.generation += u64::from(is_news);
            }
        }
    }

    /// Brings everything that is derived up to date; called before questions are asked in a round.
    pub(crate) fn prepare(&mut self, now: SystemTime) {
        self.pods.begin(now);
        self.refresh_routes();
    }

    /// Brings the routes up to date.
    pub(super) fn refresh_routes(&mut self) {
        if self.routed != self.listed {
            self.routes = Routes::new(self.services.values(), self.entries.values());
            self.routed = self.listed;
        }
    }

    /// Returns the questions for pods that were not answered and not taken in the last seconds.
    pub fn take_wanted(&mut self, now: SystemTime) -> Vec<PodQuery> {
        self.pods.take_wanted(now)
    }

    /// Drops pods that no series has named for a while.
    pub fn sweep(&mut self) {
        self.pods.sweep();
    }

    /// Returns how many objects of each kind are kept, and how many endpoints.
    #[must_use]
    pub fn sizes(&self) -> [(&'static str, u64); 5] {
        [
            (Resource::Services.name(), self.services.len() as u64),
            (Resource::EndpointSlices.name(), self.slices.len() as u64),
            ("endpoints", self.endpoints as u64),
            (Resource::ServiceEntries.name(), self.entries.len() as u64),
            (Resource::Pods.name(), self.pods.len() as u64),
        ]
    }

    /// Returns how many objects were not kept, by kind and reason.
    pub fn rejected(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        self.rejected.iter().map(|((resource, rejection), count)| (resource.name(), rejection.reason(), *count))
    }

    fn count_rejected(&mut self, resource: Resource, rejection: Rejection) {
        *self.rejected.entry((resource, rejection)).or_default() += 1;
    }

    fn end_list(&mut self, resource: Resource) {
        let Some(listed) = self.listing.remove(&resource) else { return };
        let names: Vec<ObjectName> = match resource {
            Resource::Services => self.services.keys().cloned().collect(),
            Resource::EndpointSlices => self.slices.keys().cloned().collect(),
            Resource::ServiceEntries => self.entries.keys().cloned().collect(),
            Resource::Pods => Vec::new(),
        };
        for name in names {
            if !listed.contains(&name) {
                self.set(resource, name, None);
            }
        }
        if self.synced.insert(resource) {
            self.on_listed_changed();
        }
    }

    fn set(&mut self, resource: Resource, name: ObjectName, fact: Option<Fact>) {
        let is_changed = match (resource, fact.map(|Fact(kept)| kept)) {
            (Resource::Services, Some(Kept::Service(service))) => insert(&mut self.services, name, service),
            (Resource::ServiceEntries, Some(Kept::Entry(entry))) => insert(&mut self.entries, name, entry),
            (Resource::EndpointSlices, Some(Kept::Slice(slice))) => self.set_slice(name, Some(slice)),
            (Resource::Services, _) => Ok(self.services.remove(&name).is_some()),
            (Resource::ServiceEntries, _) => Ok(self.entries.remove(&name).is_some()),
            (Resource::EndpointSlices, _) => self.set_slice(name, None),
            (Resource::Pods, _) => Ok(false),
        };
        match is_changed {
            Ok(true) => self.on_listed_changed(),
            Ok(false) => {}
            Err(rejection) => self.count_rejected(resource, rejection),
        }
    }

    /// Replaces a slice, and the indices of its endpoints. Returns whether it differs from the former.
    fn set_slice(&mut self, name: ObjectName, slice: Option<Arc<Slice>>) -> Result<bool, Rejection> {
        if slice.is_some() && self.slices.get(&name) == slice.as_ref() {
            return Ok(false);
        }
        let former = self.slices.remove(&name);
        let is_known = former.is_some();
        if let Some(former) = former {
            self.endpoints -= former.endpoints.len();
            remove(&mut self.slices_by_service, &former.service, &former);
            for endpoint in &former.endpoints {
                remove(&mut self.slices_by_address, &endpoint.address, &former);
                self.pods.on_endpoint_changed(endpoint.address);
            }
        }
        let Some(slice) = slice else { return Ok(is_known) };
        if self.slices.len() >= MAX_SLICES || self.endpoints + slice.endpoints.len() > MAX_ENDPOINTS {
            if is_known {
                self.on_listed_changed();
            }
            return Err(Rejection::TooMany);
        }
        self.endpoints += slice.endpoints.len();
        self.slices_by_service.entry(slice.service.clone()).or_default().push(slice.clone());
        for endpoint in &slice.endpoints {
            let slices = self.slices_by_address.entry(endpoint.address).or_default();
            if !slices.iter().any(|other| Arc::ptr_eq(other, &slice)) {
                slices.push(slice.clone());
            }
            self.pods.on_endpoint_changed(endpoint.address);
        }
        self.slices.insert(name, slice);
        Ok(true)
    }

    pub(super) fn service(&self, name: &ObjectName) -> Option<&Arc<Service>> {
        self.services.get(name)
    }

    pub(super) fn services(&self) -> impl Iterator<Item = (&ObjectName, &Arc<Service>)> {
        self.services.iter()
    }
}

impl Rejection {
    /// Returns the label value.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::TooLarge => "too_large",
            Self::TooMany => "too_many",
            Self::Malformed => "malformed",
        }
    }
}

/// Inserts an object; returns whether it differs from the former.
fn insert<T: PartialEq>(
    all: &mut HashMap<ObjectName, Arc<T>>,
    name: ObjectName,
    object: Arc<T>,
) -> Result<bool, Rejection> {
    if all.len() >= MAX_SERVICES && !all.contains_key(&name) {
        return Err(Rejection::TooMany);
    }
    Ok(all.insert(name, object.clone()).as_ref() != Some(&object))
}

fn remove<K: Eq + std::hash::Hash>(all: &mut HashMap<K, Vec<Arc<Slice>>>, key: &K, slice: &Arc<Slice>) {
    if let Some(slices) = all.get_mut(key) {
        slices.retain(|other| !Arc::ptr_eq(other, slice));
        if slices.is_empty() {
            all.remove(key);
        }
    }
}
