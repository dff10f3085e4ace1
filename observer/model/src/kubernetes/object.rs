//! The API's objects, cut down to the fields that identity needs.
//!
//! Objects are hostile: whoever may create one chooses its text and its lists. [`ListPage`] and [`WatchEvent`] decode
//! what is well-formed; the [conversions](super::convert) bound what is kept.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::value::RawValue;

/// One page of a list; its objects are decoded one by one, so that a malformed one does not hide the others.
#[derive(Debug, Deserialize)]
pub struct ListPage<'a> {
    /// Version and continuation.
    #[serde(default)]
    pub metadata: ListMetadata,
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

impl<'a> ListPage<'a> {
    /// Decodes a page.
    ///
    /// # Errors
    /// It is malformed.
    pub fn decode(text: &'a [u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(text)
    }

    /// Returns its objects, or why one is malformed.
    pub fn objects<T: Object>(&self) -> impl Iterator<Item = Result<T, serde_json::Error>> + use<'_, 'a, T> {
        self.items.iter().flatten().map(|item| serde_json::from_str(item.get()))
    }
}

/// Metadata of a list.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ListMetadata {
    /// Version that a watch continues from.
    pub resource_version: String,
    /// Token of the next page; empty at the last one.
    #[serde(rename = "continue", deserialize_with = "or_default")]
    pub next: String,
}

/// One line of a watch.
#[derive(Debug)]
pub enum WatchEvent<T> {
    /// Added or modified.
    Applied(T),
    /// Deleted.
    Deleted(T),
    /// Everything up to this version has been sent.
    Bookmark(String),
    /// The watch has ended with this HTTP status, e.g. 410 if its version is too old.
    Error(u16),
}

/// An object that a list or a watch returns.
pub trait Object: DeserializeOwned {
    /// Returns its metadata.
    fn metadata(&self) -> &Metadata;
}

/// Metadata of an object.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) uid: String,
    /// Version of the object.
    pub resource_version: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) creation_timestamp: String,
    pub(super) generate_name: String,
    pub(super) deletion_timestamp: Option<String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) owner_references: Vec<OwnerReference>,
}

/// An owner of a pod.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct OwnerReference {
    pub(super) kind: String,
    pub(super) name: String,
    pub(super) controller: Option<bool>,
}

/// A Service.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Service {
    pub(super) metadata: Metadata,
    pub(super) spec: ServiceSpec,
    pub(super) status: ServiceStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ServiceSpec {
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(rename = "clusterIP")]
    pub(super) cluster_ip: String,
    #[serde(rename = "clusterIPs", deserialize_with = "or_default")]
    pub(super) cluster_ips: Vec<String>,
    #[serde(rename = "externalIPs", deserialize_with = "or_default")]
    pub(super) external_ips: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) ports: Vec<ServicePort>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ServicePort {
    pub(super) name: String,
    pub(super) protocol: String,
    pub(super) app_protocol: Option<String>,
    pub(super) port: u16,
    pub(super) node_port: u16,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ServiceStatus {
    pub(super) load_balancer: LoadBalancer,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct LoadBalancer {
    #[serde(deserialize_with = "or_default")]
    pub(super) ingress: Vec<Ingress>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Ingress {
    pub(super) ip: String,
}

/// An EndpointSlice.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSlice {
    pub(super) metadata: Metadata,
    pub(super) address_type: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) ports: Vec<EndpointPort>,
    #[serde(deserialize_with = "or_default")]
    pub(super) endpoints: Vec<Endpoint>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct EndpointPort {
    #[serde(deserialize_with = "or_default")]
    pub(super) name: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) protocol: String,
    pub(super) port: Option<u16>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Endpoint {
    #[serde(deserialize_with = "or_default")]
    pub(super) addresses: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) conditions: Conditions,
    pub(super) target_ref: Option<TargetReference>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Conditions {
    pub(super) ready: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct TargetReference {
    pub(super) kind: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
}

/// A `ServiceEntry` of Istio.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct ServiceEntry {
    pub(super) metadata: Metadata,
    pub(super) spec: EntrySpec,
    #[serde(deserialize_with = "or_default")]
    pub(super) status: EntryStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct EntrySpec {
    #[serde(deserialize_with = "or_default")]
    pub(super) hosts: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) addresses: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) ports: Vec<EntryPort>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct EntryPort {
    pub(super) number: u32,
    pub(super) protocol: String,
    pub(super) name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct EntryStatus {
    #[serde(deserialize_with = "or_default")]
    pub(super) addresses: Vec<EntryAddress>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct EntryAddress {
    pub(super) value: String,
    pub(super) host: String,
}

/// A Pod.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Pod {
    pub(super) metadata: Metadata,
    pub(super) spec: PodSpec,
    pub(super) status: PodStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PodSpec {
    pub(super) service_account_name: String,
    pub(super) node_name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PodStatus {
    pub(super) phase: String,
    #[serde(rename = "podIP")]
    pub(super) pod_ip: String,
    #[serde(rename = "podIPs", deserialize_with = "or_default")]
    pub(super) pod_ips: Vec<Address>,
    #[serde(rename = "hostIP")]
    pub(super) host_ip: String,
    #[serde(rename = "hostIPs", deserialize_with = "or_default")]
    pub(super) host_ips: Vec<Address>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Address {
    pub(super) ip: String,
}

macro_rules! objects {
    ($($object:ident),*) => {
        $(impl Object for $object {
            fn metadata(&self) -> &Metadata {
                &self.metadata
            }
        })*
    };
}

objects!(Service, EndpointSlice, ServiceEntry, Pod);

impl<T: Object> WatchEvent<T> {
    /// Decodes a line of a watch.
    ///
    /// # Errors
    /// It is malformed.
    pub fn decode(line: &[u8]) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Line<'a> {
            #[serde(rename = "type")]
            kind: &'a str,
            #[serde(borrow)]
            object: &'a RawValue,
        }
        #[derive(Deserialize)]
        struct Bookmark {
            metadata: Metadata,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Status {
            code: u16,
        }
        let Line { kind, object } = serde_json::from_slice(line)?;
        Ok(match kind {
            "ADDED" | "MODIFIED" => Self::Applied(serde_json::from_str(object.get())?),
            "DELETED" => Self::Deleted(serde_json::from_str(object.get())?),
            "BOOKMARK" => Self::Bookmark(serde_json::from_str::<Bookmark>(object.get())?.metadata.resource_version),
            _ => Self::Error(serde_json::from_str::<Status>(object.get()).unwrap_or_default().code),
        })
    }
}

/// Takes `null` for absent, as Go writes an empty list.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
