//! Container and pod of a cgroup, from the names that container runtimes and the kubelet give.

/// Container and pod of a cgroup, as far as its path shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    /// Id at the runtime, 64 hexadecimal digits.
    pub id: Option<String>,
    /// Uid of the pod, with hyphens unless it is a static pod.
    pub pod_uid: Option<String>,
}

impl Container {
    /// Parses a path of `/proc/PID/cgroup`, of both cgroup drivers: `/kubepods/burstable/podUID/ID`, and
    /// `/kubepods.slice/…-podUID_WITH_UNDERSCORES.slice/cri-containerd-ID.scope`.
    #[must_use]
    pub fn of_cgroup(path: &str) -> Self {
        let words = || path.rsplit(|c: char| !c.is_ascii_alphanumeric());
        let is_id = |word: &&str| word.len() == 64 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
        // The outermost uid is the kubelet's; the container itself may have named what is below.
        Self { id: words().find(is_id).map(str::to_owned), pod_uid: path.split('/').find_map(pod_uid) }
    }
}

/// Returns the uid in the name of a pod's cgroup.
fn pod_uid(name: &str) -> Option<String> {
    let after = &name[name.rfind("pod")? + 3..];
    let end = after.find(|c: char| !c.is_ascii_hexdigit() && !"-_".contains(c)).unwrap_or(after.len());
    let uid = after[..end].replace('_', "-");
    let groups: Vec<usize> = uid.split('-').map(str::len).collect();
    matches!(groups[..], [8, 4, 4, 4, 12] | [32]).then_some(uid)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UID: &str = "0d6bd6b1-3c5c-4a9e-8f0e-0123456789ab";

    #[test]
    fn reads_what_runtimes_write() {
        let id = "3f".repeat(32);
        let under = UID.replace('-', "_");
        let hash = "0123456789abcdef".repeat(2);
        for (path, expected_id, uid) in [
            (format!("/kubepods/burstable/pod{UID}/{id}"), true, Some(UID)),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{under}.slice/cri-containerd-{id}.scope"
                ),
                true,
                Some(UID),
            ),
            (format!("/../../kubepods-pod{under}.slice/crio-{id}.scope/init.scope"), true, Some(UID)),
            (
                format!("/system.slice/containerd.service/kubepods-besteffort-pod{under}.slice:cri-containerd:{id}"),
                true,
                Some(UID),
            ),
            (format!("/kubepods/pod{hash}/{id}"), true, Some(hash.as_str())),
            (format!("/system.slice/docker-{id}.scope"), true, None),
            (format!("/kubepods/pod{UID}x/{}", &id[1..]), false, Some(UID)),
            // A container may make cgroups of its own below its own.
            (format!("/kubepods/pod{UID}/{id}/pod{hash}/x"), true, Some(UID)),
            ("/user.slice/tripod/app".to_owned(), false, None),
            ("/".to_owned(), false, None),
        ] {
            let container = Container::of_cgroup(&path);
            assert_eq!(container.id, expected_id.then(|| id.clone()), "{path}");
            assert_eq!(container.pod_uid.as_deref(), uid, "{path}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(path in "(pod|/|-|_|é|[0-9a-f]{1,12}){0,12}") {
            let _ = Container::of_cgroup(&path);
        }
    }
}
