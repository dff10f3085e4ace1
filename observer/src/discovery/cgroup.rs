//! Locates the cgroup v2 hierarchy and the cgroup directories of processes.
//!
//! Paths in `/proc/PID/cgroup` and mountinfo are relative to the *reader's* cgroup namespace: in a container with a
//! namespace of its own, the host's cgroups begin with `/..`, and so does the root of the host's mount. Both are joined
//! here; the names of the directories above the reader's own, which neither has, are found once.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process,
};

use rustix::fs::FsWord;

use super::{error::DiscoveryError, proc_files::Mount};

/// `f_type` of a cgroup v2 file system [linux/magic.h].
const CGROUP2_MAGIC: FsWord = 0x6367_7270;

/// A mounted cgroup v2 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    mount_point: PathBuf,
    root: Location,
    /// Directories from the mount point down to the reader's cgroup namespace, if the mount begins above it.
    own: Option<Vec<String>>,
    file_system: FsWord,
}

impl Hierarchy {
    /// Finds the mount that shows most of the hierarchy, or the one that contains `wanted`. `own` is the reader's own
    /// cgroup path.
    pub fn find(mounts: &[Mount], wanted: Option<&Path>, own: &str) -> Result<Self, DiscoveryError> {
        let (mount_point, root) = match wanted {
            Some(wanted) => within(mounts, wanted)?,
            None => widest(mounts)
                .ok_or_else(|| DiscoveryError::NoHierarchy { mountinfo: "/proc/self/mountinfo".to_owned() })?,
        };
        let own = (root.up > 0).then(|| own_directory(&mount_point, root.up, own)).flatten();
        let hierarchy = Self { mount_point, root, own, file_system: CGROUP2_MAGIC };
        hierarchy.id(&hierarchy.mount_point)?;
        Ok(hierarchy)
    }

    /// Returns the mount point.
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// Returns the directory of a cgroup path from `/proc/PID/cgroup`.
    pub fn directory(&self, path: &str) -> Result<PathBuf, DiscoveryError> {
        self.relative(&Location::parse(path))
            .map(|names| names.iter().fold(self.mount_point.clone(), |directory, name| directory.join(name)))
            .ok_or_else(|| DiscoveryError::OutOfSight { path: path.to_owned(), mount_point: self.mount_point.clone() })
    }

    /// Resolves a path given by the user: absolute, or relative to the mount point.
    pub fn named(&self, path: &Path) -> Result<PathBuf, DiscoveryError> {
        let directory = if path.starts_with(&self.mount_point) {
            path.to_owned()
        } else {
            let below = self.mount_point.join(path.strip_prefix("/").unwrap_or(path));
            if !below.is_dir() && path.is_dir() { path.to_owned() } else { below }
        };
        self.id(&directory).map(|_| directory)
    }

    /// Returns the kernel's id of a cgroup: its directory's inode.
    pub fn id(&self, directory: &Path) -> Result<u64, DiscoveryError> {
        let no_cgroup = |reason: String| DiscoveryError::NoCgroup { path: directory.to_owned(), reason };
        let metadata = fs::metadata(directory).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                no_cgroup(format!("it does not exist; cgroups are directories below {}", self.mount_point.display()))
            }
            _ => no_cgroup(error.to_string()),
        })?;
        if !metadata.is_dir() {
            return Err(no_cgroup("it is not a directory; name the cgroup's directory, not a file in it".to_owned()));
        }
        let file_system = rustix::fs::statfs(directory).map_err(|error| no_cgroup(error.to_string()))?.f_type;
        if file_system != self.file_system {
            return Err(no_cgroup(format!(
                "it is on another file system (type {file_system:#x}); cgroup v2 is mounted at {}",
                self.mount_point.display()
            )));
        }
        Ok(metadata.ino())
    }

    fn relative(&self, path: &Location) -> Option<Vec<String>> {
        if path.up == self.root.up {
            return path.names.strip_prefix(self.root.names.as_slice()).map(<[String]>::to_vec);
        }
        let below = self.root.up.checked_sub(path.up).filter(|_| self.root.names.is_empty())?;
        let own = self.own.as_ref()?;
        Some([own.get(..below)?, &path.names].concat())
    }

    /// Builds a hierarchy of plain directories, for tests without cgroups.
    #[cfg(test)]
    pub(super) fn plain(directory: &Path) -> Self {
        let file_system = rustix::fs::statfs(directory).expect("exists").f_type;
        Self { mount_point: directory.to_owned(), root: Location::default(), own: None, file_system }
    }
}

/// A path relative to the reader's cgroup namespace: a number of levels up, then names down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Location {
    up: usize,
    names: Vec<String>,
}

impl Location {
    fn parse(path: &str) -> Self {
        let mut location = Self::default();
        for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
            if part != ".." {
                location.names.push(part.to_owned());
            } else if location.names.pop().is_none() {
                location.up += 1;
            }
        }
        location
    }
}

fn within(mounts: &[Mount], wanted: &Path) -> Result<(PathBuf, Location), DiscoveryError> {
    let no_cgroup = |reason: String| DiscoveryError::NoCgroup { path: wanted.to_owned(), reason };
    let wanted = fs::canonicalize(wanted).map_err(|error| no_cgroup(error.to_string()))?;
    let mount = mounts
        .iter()
        // Of mounts stacked on one directory the last is visible.
        .rev()
        .filter(|mount| wanted.starts_with(&mount.mount_point))
        .max_by_key(|mount| mount.mount_point.as_os_str().len())
        .filter(|mount| mount.file_system == "cgroup2")
        .ok_or_else(|| {
            let where_else = widest(mounts).map_or("nowhere".to_owned(), |(at, _)| format!("at {}", at.display()));
            no_cgroup(format!("no cgroup v2 file system is mounted there; one is mounted {where_else}"))
        })?;
    let below = wanted.strip_prefix(&mount.mount_point).unwrap_or(Path::new(""));
    let root = Location::parse(&format!("{}/{}", mount.root, below.display()));
    Ok((wanted, root))
}

fn widest(mounts: &[Mount]) -> Option<(PathBuf, Location)> {
    mounts
        .iter()
        .filter(|mount| mount.file_system == "cgroup2")
        .map(|mount| (mount.mount_point.clone(), Location::parse(&mount.root)))
        .min_by_key(|(mount_point, root)| (std::cmp::Reverse(root.up), root.names.len(), mount_point.as_os_str().len()))
}

/// Finds the root of the reader's cgroup namespace, `depth` levels below `mount_point`: the directory below which the
/// reader itself is in cgroup `own`.
fn own_directory(mount_point: &Path, depth: usize, own: &str) -> Option<Vec<String>> {
    let own = Location::parse(own);
    if own.up > 0 {
        return None;
    }
    let holds_reader = |directory: &Path| {
        let members = own.names.iter().fold(directory.to_owned(), |at, name| at.join(name)).join("cgroup.procs");
        fs::read_to_string(members).is_ok_and(|pids| pids.lines().any(|pid| pid.parse() == Ok(process::id())))
    };
    let mut level = vec![(mount_point.to_owned(), Vec::new())];
    for _ in 0..depth {
        level = level.iter().flat_map(|(directory, names)| children(directory, names)).collect();
    }
    level.into_iter().find(|(directory, _)| holds_reader(directory)).map(|(_, names)| names)
}

fn children(directory: &Path, names: &[String]) -> Vec<(PathBuf, Vec<String>)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            Some((entry.path(), [names, &[name]].concat()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::discovery::proc_files::unified_path;

    fn mount(mount_point: &str, root: &str, file_system: &str) -> Mount {
        Mount {
            mount_point: mount_point.into(),
            root: root.to_owned(),
            file_system: file_system.to_owned(),
            options: String::new(),
        }
    }

    fn hierarchy(mount_point: &str, root: &str, own: Option<&[&str]>) -> Hierarchy {
        let own = own.map(|names| names.iter().map(|&name| name.to_owned()).collect());
        Hierarchy { mount_point: mount_point.into(), root: Location::parse(root), own, file_system: CGROUP2_MAGIC }
    }

    #[test]
    fn takes_the_mount_that_shows_most() {
        for (mounts, expected) in [
            (vec![mount("/sys/fs/cgroup", "/", "cgroup2")], Some("/sys/fs/cgroup")),
            (
                vec![mount("/sys/fs/cgroup", "/", "tmpfs"), mount("/sys/fs/cgroup/unified", "/", "cgroup2")],
                Some("/sys/fs/cgroup/unified"),
            ),
            (
                vec![mount("/sys/fs/cgroup", "/", "cgroup2"), mount("/host/sys/fs/cgroup", "/../../..", "cgroup2")],
                Some("/host/sys/fs/cgroup"),
            ),
            (vec![mount("/a/b", "/sub", "cgroup2"), mount("/mnt/elsewhere", "/", "cgroup2")], Some("/mnt/elsewhere")),
            (vec![mount("/sys/fs/cgroup/memory", "/", "cgroup")], None),
        ] {
            assert_eq!(widest(&mounts).map(|(at, _)| at), expected.map(PathBuf::from), "{mounts:?}");
        }
    }

    #[test]
    fn joins_mount_and_path() {
        let own = Some(["kubepods.slice", "pod1", "observer"].as_slice());
        for (root, own, path, expected) in [
            ("/", None, "/kubepods/pod1/proxy", Some("/m/kubepods/pod1/proxy")),
            ("/", None, "/", Some("/m")),
            ("/kubepods", None, "/kubepods/pod1", Some("/m/pod1")),
            ("/kubepods", None, "/system.slice", None),
            // A private cgroup namespace with only its own mount.
            ("/", None, "/../proxy", None),
            // A private cgroup namespace with the host's mount.
            ("/../../..", own, "/../../../system.slice", Some("/m/system.slice")),
            ("/../../..", own, "/../../pod2/proxy", Some("/m/kubepods.slice/pod2/proxy")),
            ("/../../..", own, "/../proxy", Some("/m/kubepods.slice/pod1/proxy")),
            ("/../../..", own, "/", Some("/m/kubepods.slice/pod1/observer")),
            ("/../../..", None, "/../../../system.slice", Some("/m/system.slice")),
            ("/../../..", None, "/../proxy", None),
            ("/../..", own, "/../../../system.slice", None),
        ] {
            let joined = hierarchy("/m", root, own).directory(path);
            assert_eq!(joined.as_ref().ok().map(|path| path.to_str().unwrap()), expected, "{root} {path} {joined:?}");
        }
    }

    #[test]
    fn finds_its_own_directory_below_the_hosts_mount() {
        let mount = tempfile::tempdir().unwrap();
        for (path, pids) in [("a/x", "1\n"), ("b/y", "2\n"), ("b/z/child", &*format!("7\n{}\n", process::id()))] {
            fs::create_dir_all(mount.path().join(path)).unwrap();
            fs::write(mount.path().join(path).join("cgroup.procs"), pids).unwrap();
        }
        assert_eq!(own_directory(mount.path(), 2, "/child"), Some(vec!["b".to_owned(), "z".to_owned()]));
        assert_eq!(own_directory(mount.path(), 1, "/child"), None);
    }

    #[test]
    fn says_what_is_wrong_with_a_path() {
        let directory = tempfile::tempdir().unwrap();
        let mut hierarchy = Hierarchy::plain(directory.path());
        assert!(hierarchy.id(directory.path()).is_ok());
        let absent = hierarchy.id(&directory.path().join("absent")).unwrap_err().to_string();
        assert!(absent.contains("does not exist"), "{absent}");
        fs::write(directory.path().join("file"), "").unwrap();
        let file = hierarchy.named(Path::new("/file")).unwrap_err().to_string();
        assert!(file.contains("is not a directory"), "{file}");
        hierarchy.file_system = CGROUP2_MAGIC;
        let plain = hierarchy.id(directory.path()).unwrap_err().to_string();
        assert!(plain.contains("another file system"), "{plain}");
        let nowhere = Hierarchy::find(&[], None, "/").unwrap_err().to_string();
        assert!(nowhere.contains("no cgroup v2 file system is mounted"), "{nowhere}");
    }

    #[test]
    fn reads_the_unified_line() {
        assert_eq!(unified_path("12:cpu:/x\n0::/pods/a\n"), Some("/pods/a"));
        assert_eq!(unified_path("0::/pods/a (deleted)\n"), Some("/pods/a"));
        assert_eq!(unified_path("1:name=systemd:/x\n"), None);
    }

    proptest! {
        #[test]
        fn never_panics(lines in ".*", root in "(/|\\.\\.|[a-c]){0,12}", path in "(/|\\.\\.|[a-c]){0,12}") {
            let _ = unified_path(&lines);
            for own in [None, Some(["a", "b", "c"].as_slice())] {
                let mut hierarchy = hierarchy("/m", &root, None);
                hierarchy.own = own.map(|own| own.iter().cycle().take(hierarchy.root.up).map(|&n| n.to_owned()).collect());
                if let Ok(directory) = hierarchy.directory(&path) {
                    prop_assert!(directory.starts_with("/m"));
                    prop_assert!(directory.components().all(|part| part != std::path::Component::ParentDir));
                }
            }
        }
    }
}
