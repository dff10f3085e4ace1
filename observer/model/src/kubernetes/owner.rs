//! Workload of a pod, by its owner.
//!
//! Source: istio `pkg/kube/util.go`, `GetWorkloadMetaFromPod`.

use super::object::{Metadata, OwnerReference};

const WORKLOAD_NAME: &str = "service.istio.io/workload-name";
/// Length of the random end of a pod's name.
const RANDOM_LENGTH: usize = 5;

/// Returns the name of a pod's workload.
pub(super) fn workload_name(metadata: &Metadata) -> &str {
    let label = |name: &str| metadata.labels.get(name).map(String::as_str).filter(|value| !value.is_empty());
    if let Some(name) = label(WORKLOAD_NAME) {
        return name;
    }
    let Some(owner) = controller(metadata) else { return &metadata.name };
    let of_template = |hash: &str| owner.name.strip_suffix(hash)?.strip_suffix('-').filter(|name| !name.is_empty());
    let name = match owner.kind.as_str() {
        "ReplicaSet" => {
            ["pod-template-hash", "rollouts-pod-template-hash"].iter().find_map(|hash| of_template(label(hash)?))
        }
        "ReplicationController" => label("deploymentconfig"),
        "Job" => cron_job(&owner.name),
        _ => None,
    };
    name.unwrap_or(&owner.name)
}

/// Returns what the name of a pod begins with if a `ReplicaSet` made it from its template, whose pods are alike.
pub(super) fn template(metadata: &Metadata) -> Option<&str> {
    controller(metadata).filter(|owner| owner.kind == "ReplicaSet")?;
    (template_of(&metadata.name) == Some(&metadata.generate_name)).then_some(&metadata.generate_name)
}

/// Returns what the name of a pod begins with if its end looks random.
///
/// Source: k8s.io/apimachinery `pkg/util/rand`.
pub(super) fn template_of(name: &str) -> Option<&str> {
    let (start, end) = name.split_at_checked(name.len().checked_sub(RANDOM_LENGTH)?)?;
    let is_random = end.bytes().all(|byte| b"bcdfghjklmnpqrstvwxz2456789".contains(&byte));
    (is_random && start.len() > 1).then_some(start)
}

fn controller(metadata: &Metadata) -> Option<&OwnerReference> {
    let owner = metadata.owner_references.iter().find(|owner| owner.controller == Some(true));
    owner.filter(|owner| !metadata.generate_name.is_empty() && !owner.name.is_empty())
}

/// Returns the `CronJob` that made a job: its name ends in eight to ten digits.
fn cron_job(job: &str) -> Option<&str> {
    let (name, time) = job.rsplit_once('-')?;
    let is_time = (8..=10).contains(&time.len()) && time.bytes().all(|byte| byte.is_ascii_digit());
    (is_time && !name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::object::{Object as _, Pod};

    fn name(pod: &serde_json::Value) -> String {
        let pod: Pod = serde_json::from_value(pod.clone()).unwrap();
        workload_name(pod.metadata()).to_owned()
    }

    fn pod(pod: &str, owner: &str, labels: &[(&str, &str)]) -> serde_json::Value {
        let (kind, owner) = owner.split_once('/').unwrap();
        let labels: std::collections::BTreeMap<_, _> = labels.iter().copied().collect();
        serde_json::json!({"metadata": {
            "name": pod, "namespace": "shop", "generateName": "x-", "labels": labels,
            "ownerReferences": [{"kind": "Other", "name": "no"}, {"kind": kind, "name": owner, "controller": true}],
        }})
    }

    #[test]
    fn the_owner_names_the_workload() {
        for (labels, owner, expected) in [
            (&[("pod-template-hash", "7d4b9c")][..], "ReplicaSet/web-7d4b9c", "web"),
            (&[("pod-template-hash", "7d4b9c")], "ReplicaSet/web-other", "web-other"),
            (&[("pod-template-hash", "")], "ReplicaSet/web-", "web-"),
            (&[("pod-template-hash", "7d4b9c")], "ReplicaSet/-7d4b9c", "-7d4b9c"),
            (&[("rollouts-pod-template-hash", "55f")], "ReplicaSet/web-55f", "web"),
            (&[("pod-template-hash", "1"), ("rollouts-pod-template-hash", "55f")], "ReplicaSet/web-55f", "web"),
            (&[("deploymentconfig", "dc")], "ReplicationController/dc-1", "dc"),
            (&[], "ReplicationController/rc", "rc"),
            (&[], "Job/report-28412345", "report"),
            (&[], "Job/report-1234567890", "report"),
            (&[], "Job/report-1234567", "report-1234567"),
            (&[], "Job/report-12345678901", "report-12345678901"),
            (&[], "Job/report-2841234x", "report-2841234x"),
            (&[], "Job/-28412345", "-28412345"),
            (&[], "StatefulSet/db", "db"),
            (&[], "DaemonSet/agent", "agent"),
            (&[(WORKLOAD_NAME, "named"), ("pod-template-hash", "7")], "ReplicaSet/web-7", "named"),
        ] {
            assert_eq!(name(&pod("web-0", owner, labels)), expected, "{owner}");
        }
    }

    #[test]
    fn a_pod_made_by_hand_is_its_own_workload() {
        let mut made = pod("by-hand", "ReplicaSet/web-1", &[("pod-template-hash", "1")]);
        made["metadata"]["generateName"] = "".into();
        assert_eq!(name(&made), "by-hand");
        made["metadata"]["generateName"] = "web-".into();
        made["metadata"]["ownerReferences"][1]["controller"] = false.into();
        assert_eq!(name(&made), "by-hand");
    }

    #[test]
    fn only_pods_of_replica_sets_are_taken_for_alike() {
        let of = |name: &str, owner: &str, generate: &str| {
            let mut made = pod(name, owner, &[]);
            made["metadata"]["generateName"] = generate.into();
            let pod: Pod = serde_json::from_value(made).unwrap();
            template(pod.metadata()).map(str::to_owned)
        };
        assert_eq!(of("web-7d-x2k4z", "ReplicaSet/web-7d", "web-7d-").as_deref(), Some("web-7d-"));
        assert_eq!(of("web-7d-x2k4z", "DaemonSet/web-7d", "web-7d-"), None);
        assert_eq!(of("web-7d-x2k4z", "ReplicaSet/web-7d", "other-"), None);
        assert_eq!(of("web-7d-aeiou", "ReplicaSet/web-7d", "web-7d-"), None, "a vowel is never random");
        assert_eq!((template_of(""), template_of("é2456789"), template_of("22222")), (None, Some("é24"), None));
    }
}
