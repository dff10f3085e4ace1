//! Names of pods by uid, from the directories that the kubelet creates for container logs: `NAMESPACE_NAME_UID`
//! [kubernetes `pkg/kubelet/kuberuntime/helpers.go`, `BuildPodLogsDirectory`]. A container controls its environment,
//! but neither its cgroup nor these directories.

use std::{fs, path::Path};

use super::proc_files::{MAX_NAME_BYTES, is_printable};

const LOGS: &str = "var/log/pods";
/// Maximum number of directories read; the kubelet allows 110 pods by default.
const MAX_ENTRIES: usize = 10_000;

/// Returns namespace and name of the pod with this uid, given the root directory of the node; `None` if there is no
/// such directory, or none is visible.
pub fn pod_of(node_root: &Path, uid: &str) -> Option<(String, String)> {
    let entries = fs::read_dir(node_root.join(LOGS)).ok()?.take(MAX_ENTRIES).flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).find_map(|name| pod(&name, uid))
}

fn pod(entry: &str, uid: &str) -> Option<(String, String)> {
    let (namespace, name) = entry.strip_suffix(uid)?.strip_suffix('_')?.split_once('_')?;
    let valid = |text: &str| is_printable(text, MAX_NAME_BYTES).then(|| text.to_owned());
    Some((valid(namespace)?, valid(name)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0d6bd6b1-3c5c-4a9e-8f0e-0123456789ab";

    #[test]
    fn finds_the_pod_of_a_uid() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(pod_of(root.path(), UID), None);
        for entry in ["default_other_11111111-3c5c-4a9e-8f0e-0123456789ab", &format!("shop_reviews-1_{UID}"), "odd"] {
            fs::create_dir_all(root.path().join(LOGS).join(entry)).unwrap();
        }
        assert_eq!(pod_of(root.path(), UID), Some(("shop".to_owned(), "reviews-1".to_owned())));
        assert_eq!(pod_of(root.path(), "reviews-1"), None);
    }

    #[test]
    fn takes_nothing_else_for_one() {
        for entry in
            [format!("_{UID}"), format!("a_{UID}"), format!("_b_{UID}"), format!("a\nb_c_{UID}"), UID.to_owned()]
        {
            assert_eq!(pod(&entry, UID), None, "{entry:?}");
        }
    }
}
