//! What the API server says about pods and services, with labels as Istio makes them. Written from Istio's rules
//! (istio `pkg/kube/util.go`, `pkg/kube/labels`), and not from the observer.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::Value;

use crate::kubectl;

/// A pod.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) uid: String,
    pub(crate) node: String,
    pub(crate) address: String,
    pub(crate) is_on_host_network: bool,
    pub(crate) account: String,
    pub(crate) workload: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) containers: Vec<String>,
}

/// A Service or ServiceEntry, as a destination's labels name it.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) host: String,
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) selector: BTreeMap<String, String>,
    /// Port that the pods listen on, of those that are numbers.
    pub(crate) targets: Vec<u64>,
    pub(crate) address: String,
}

/// Everything at one time; pods that were seen before and are gone stay.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) pods: Vec<Pod>,
    pub(crate) services: Vec<Service>,
}

impl Facts {
    /// Asks the API server again.
    pub(crate) fn refresh(&mut self) -> Result<()> {
        for pod in kubectl::get("pods")?.iter().filter_map(Pod::new) {
            self.pods.retain(|known| known.uid != pod.uid);
            self.pods.push(pod);
        }
        self.services = kubectl::get("services")?.iter().filter_map(Service::new).collect();
        self.services.extend(kubectl::get("serviceentries.networking.istio.io")?.iter().filter_map(Service::external));
        Ok(())
    }

    /// Returns the newest pod of a workload.
    pub(crate) fn pod_of(&self, namespace: &str, workload: &str) -> Option<&Pod> {
        self.pods.iter().rev().find(|pod| pod.namespace == namespace && pod.workload == workload)
    }

    /// Returns the newest pod with an address of its own.
    pub(crate) fn pod_at(&self, address: &str) -> Option<&Pod> {
        self.pods.iter().rev().find(|pod| !pod.is_on_host_network && pod.address == address)
    }

    /// Returns a service by its full host name.
    pub(crate) fn service(&self, host: &str) -> Option<&Service> {
        self.services.iter().find(|service| service.host == host)
    }

    /// Returns the service that selects a pod and sends to this port of it.
    pub(crate) fn service_of(&self, pod: &Pod, target: u64) -> Option<&Service> {
        let selects = |service: &&Service| {
            service.namespace == pod.namespace
                && !service.selector.is_empty()
                && service.selector.iter().all(|(name, value)| pod.labels.get(name) == Some(value))
                && service.targets.contains(&target)
        };
        self.services.iter().find(selects)
    }
}

impl Pod {
    fn new(object: &Value) -> Option<Self> {
        let labels = strings(&object["metadata"]["labels"]);
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let containers = ["/spec/containers", "/spec/initContainers"]
            .into_iter()
            .filter_map(|pointer| object.pointer(pointer)?.as_array())
            .flatten()
            .filter_map(|container| container["name"].as_str().map(str::to_owned))
            .collect();
        Some(Self {
            name: text("/metadata/name"),
            namespace: text("/metadata/namespace"),
            uid: text("/metadata/uid"),
            node: text("/spec/nodeName"),
            address: object.pointer("/status/podIP")?.as_str()?.to_owned(),
            is_on_host_network: object.pointer("/spec/hostNetwork") == Some(&Value::Bool(true)),
            account: text("/spec/serviceAccountName"),
            workload: workload(object, &labels)?,
            labels,
            containers,
        })
    }

    /// Returns the first of these labels that is set and not empty.
    pub(crate) fn label(&self, names: &[&str]) -> Option<&str> {
        names.iter().find_map(|name| self.labels.get(*name)).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Returns the identity in its certificate.
    pub(crate) fn principal(&self) -> String {
        format!("spiffe://cluster.local/ns/{}/sa/{}", self.namespace, self.account)
    }

    /// Returns its canonical service.
    pub(crate) fn canonical_service(&self) -> &str {
        self.label(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]).unwrap_or(&self.workload)
    }

    /// Returns its canonical revision.
    pub(crate) fn canonical_revision(&self) -> &str {
        let names = ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"];
        self.label(&names).unwrap_or("latest")
    }
}

impl Service {
    fn new(object: &Value) -> Option<Self> {
        let name = object["metadata"]["name"].as_str()?;
        let namespace = object["metadata"]["namespace"].as_str()?;
        let ports = object["spec"]["ports"].as_array()?;
        Some(Self {
            host: format!("{name}.{namespace}.svc.cluster.local"),
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            selector: strings(&object["spec"]["selector"]),
            targets: ports.iter().filter_map(|port| port["targetPort"].as_u64()).collect(),
            address: object["spec"]["clusterIP"].as_str().unwrap_or_default().to_owned(),
        })
    }

    /// Reads a ServiceEntry of one host.
    fn external(object: &Value) -> Option<Self> {
        let host = object.pointer("/spec/hosts/0")?.as_str()?;
        Some(Self {
            host: host.to_owned(),
            name: host.to_owned(),
            namespace: object["metadata"]["namespace"].as_str()?.to_owned(),
            selector: BTreeMap::new(),
            targets: Vec::new(),
            address: object.pointer("/spec/addresses/0").and_then(Value::as_str).unwrap_or_default().to_owned(),
        })
    }
}

/// Returns the workload that made a pod.
fn workload(pod: &Value, labels: &BTreeMap<String, String>) -> Option<String> {
    if let Some(name) = labels.get("service.istio.io/workload-name") {
        return Some(name.clone());
    }
    let name = pod["metadata"]["name"].as_str()?.to_owned();
    let owners = pod["metadata"]["ownerReferences"].as_array();
    let owner = owners.and_then(|owners| owners.iter().find(|owner| owner["controller"] == true));
    let Some(owner) = owner.filter(|_| pod["metadata"]["generateName"].is_string()) else { return Some(name) };
    let owner_name = owner["name"].as_str()?;
    if owner["kind"] == "ReplicaSet" {
        let hash = labels.get("pod-template-hash").or_else(|| labels.get("rollouts-pod-template-hash"));
        let without = hash.and_then(|hash| owner_name.strip_suffix(hash.as_str())?.strip_suffix('-'));
        return Some(without.unwrap_or(owner_name).to_owned());
    }
    if owner["kind"] == "Job"
        && let Some((start, minutes)) = owner_name.rsplit_once('-')
        && (8..=10).contains(&minutes.len())
        && minutes.bytes().all(|byte| byte.is_ascii_digit())
    {
        return Some(start.to_owned());
    }
    Some(owner_name.to_owned())
}

fn strings(object: &Value) -> BTreeMap<String, String> {
    let entries = object.as_object().into_iter().flatten();
    entries.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn workloads_are_named_as_istio_names_them() {
        let pod = |name: &str, labels: Value, kind: &str, owner: &str| {
            let pod = json!({"metadata": {
                "name": name, "generateName": "any-",
                "ownerReferences": [{"controller": true, "kind": kind, "name": owner}],
            }});
            workload(&pod, &strings(&labels)).expect("it has a name")
        };
        assert_eq!(pod("a-1-x", json!({"pod-template-hash": "6d4"}), "ReplicaSet", "a-6d4"), "a");
        assert_eq!(pod("a-1-x", json!({"pod-template-hash": "other"}), "ReplicaSet", "a-6d4"), "a-6d4");
        assert_eq!(pod("n-1", json!({}), "Job", "nightly-29384756"), "nightly");
        assert_eq!(pod("n-1", json!({}), "Job", "nightly-1234567"), "nightly-1234567");
        assert_eq!(pod("db-0", json!({}), "StatefulSet", "db"), "db");
        assert_eq!(pod("x", json!({"service.istio.io/workload-name": "named"}), "DaemonSet", "d"), "named");
        assert_eq!(workload(&json!({"metadata": {"name": "bare"}}), &BTreeMap::new()).as_deref(), Some("bare"));
    }
}
