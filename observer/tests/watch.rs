//! New and ended sidecars on a real kernel, with the process-events connector. Needs root.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use observer::discovery::{
    Change, DiscoveryConfig, Role, Sidecar,
    cgroup::Hierarchy,
    proc_files::ProcFiles,
    watch::{FULL_SCAN_INTERVAL, Watcher},
};

/// Held while an executable is written and while a process starts: a child forked in between would inherit the open file,
/// and the kernel starts no program that somebody has open for writing.
static WRITING: Mutex<()> = Mutex::new(());

/// A program of a name that no other process has, and a cgroup for it.
struct Stage {
    directory: tempfile::TempDir,
    executable: String,
    cgroup: PathBuf,
}

impl Stage {
    fn new(name: &str) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "this test starts processes in cgroups of their own: run it as root"
        );
        let files = ProcFiles::new("/proc".into());
        let hierarchy = Hierarchy::find(&files.own_mounts().unwrap(), None, &files.own_cgroup().unwrap()).unwrap();
        let cgroup = hierarchy.mount_point().join(format!("observer-watch-{name}-{}", std::process::id()));
        fs::create_dir(&cgroup).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let executable = format!("watched-{name}");
        let _writing = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
        fs::copy("/bin/sleep", directory.path().join(&executable)).unwrap();
        Self { directory, executable, cgroup }
    }

    fn watcher(&self) -> Watcher {
        Watcher::new(DiscoveryConfig {
            proc_root: "/proc".into(),
            cgroup_root: None,
            executables: vec![self.executable.clone()],
            components: vec![format!("{}-part", self.executable).parse().unwrap()],
            cgroups: Vec::new(),
            rules: Vec::new(),
        })
        .unwrap()
    }

    fn start(&self) -> Child {
        self.start_as(&self.executable)
    }

    fn start_as(&self, executable: &str) -> Child {
        let members = self.cgroup.join("cgroup.procs");
        let mut command = Command::new(self.directory.path().join(executable));
        command.arg("60").env_clear().env("POD_NAME", "w-1").env("POD_NAMESPACE", "default");
        command.env("ISTIO_META_WORKLOAD_NAME", "w");
        // SAFETY: between fork and exec it only writes a file.
        unsafe { command.pre_exec(move || fs::write(&members, "0")) };
        let _writing = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
        command.spawn().unwrap()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // The kernel lists a process that was just reaped a moment longer.
        let gone = |path: &Path| {
            (0..100).any(|_| {
                std::thread::sleep(Duration::from_millis(10));
                fs::remove_dir(path).is_ok()
            })
        };
        assert!(gone(&self.cgroup), "{} cannot be removed", self.cgroup.display());
    }
}

async fn change(watcher: &mut Watcher) -> Change {
    let changes =
        tokio::time::timeout(FULL_SCAN_INTERVAL / 2, watcher.next()).await.expect("a change before the next full look");
    assert_eq!(changes.len(), 1, "{changes:?}");
    changes.into_iter().next().unwrap()
}

#[tokio::test]
async fn sidecars_are_noticed_as_they_come_and_go() {
    let stage = Stage::new("life");
    let mut watcher = stage.watcher();
    assert_eq!(watcher.scan(), []);
    let mut ids = Vec::new();
    let mut delays = Vec::new();
    for _ in 0..20 {
        let started = Instant::now();
        let mut child = stage.start();
        let Change::Found(sidecar) = change(&mut watcher).await else { panic!("found") };
        delays.push(started.elapsed());
        assert_eq!((sidecar.process.pid, sidecar.role), (child.id(), Role::Sidecar));
        assert_eq!(sidecar.cgroup, stage.cgroup);
        child.kill().unwrap();
        child.wait().unwrap();
        let started = Instant::now();
        let Change::Gone(gone) = change(&mut watcher).await else { panic!("gone") };
        assert!(started.elapsed() < Duration::from_millis(200), "{:?}", started.elapsed());
        assert_eq!(gone, sidecar);
        ids.push(sidecar.id);
    }
    delays.sort();
    println!("start to found: median {:?}, slowest {:?}", delays[10], delays[19]);
    assert!(delays[10] < Duration::from_millis(100), "{delays:?}");
    assert!(ids.iter().all(|id| *id == ids[0]), "a restarted pod keeps its number: {ids:?}");
}

#[tokio::test]
async fn components_are_noticed_as_they_come_and_go() {
    let stage = Stage::new("parts");
    let part = format!("{}-part", stage.executable);
    fs::hard_link(stage.directory.path().join(&stage.executable), stage.directory.path().join(&part)).unwrap();
    let mut watcher = stage.watcher();
    assert_eq!(watcher.scan(), []);
    for _ in 0..5 {
        let started = Instant::now();
        let mut child = stage.start_as(&part);
        let Change::ComponentFound(component) = change(&mut watcher).await else { panic!("found") };
        assert!(started.elapsed() < Duration::from_millis(500), "{:?}", started.elapsed());
        assert_eq!((component.process.pid, component.app.as_str()), (child.id(), part.as_str()));
        assert_eq!(component.workload.pod.as_deref(), Some("w-1"));
        assert_eq!(component.cgroup.as_deref(), Some(&*stage.cgroup));
        assert_eq!(component.endpoint.as_ref().unwrap_err(), "it listens on no port");
        child.kill().unwrap();
        child.wait().unwrap();
        let Change::ComponentGone(gone) = change(&mut watcher).await else { panic!("gone") };
        assert_eq!(gone, component);
    }
}

#[tokio::test]
async fn what_runs_already_is_found_by_the_first_look() {
    let stage = Stage::new("first");
    let mut child = stage.start();
    let mut watcher = stage.watcher();
    // The process may still be between fork and exec.
    let found: Vec<Change> = match watcher.scan() {
        changes if changes.is_empty() => watcher.next().await,
        changes => changes,
    };
    let own = |sidecar: &Sidecar| sidecar.process.pid == child.id();
    assert!(found.iter().any(|change| matches!(change, Change::Found(sidecar) if own(sidecar))), "{found:?}");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(matches!(change(&mut watcher).await, Change::Gone(_)));
}
