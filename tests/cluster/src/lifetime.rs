//! Start and end of the cluster.

use std::{
    env, fs, os::unix::process::CommandExt as _, path::PathBuf, process::Command, sync::atomic::Ordering,
    thread::sleep, time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use harness::console::{say, stop_on_signal, timed};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::{
    build,
    certificates::{self, Certificates},
    control_plane, istio,
    node::{self, NODES, Node, directory},
    observer, workloads,
};

/// What a node writes that is no log.
const DATA: [&str; 5] = ["kubelet", "containerd", "etcd", "copies", "prometheus"];

/// Starts the cluster, tests, and ends it, whatever happens in between.
pub(crate) fn whole_test(keep: bool) -> Result<()> {
    let stop = stop_on_signal()?;
    let result = ["up", "test"].into_iter().try_for_each(|action| {
        // A process of its own: a signal, an error or a panic in it ends no cleaning.
        let mut child = Command::new(env::current_exe()?).arg(action).process_group(0).spawn()?;
        loop {
            if let Some(status) = child.try_wait()? {
                ensure!(status.success(), "`cluster {action}` failed; logs are in {}", directory().display());
                return Ok(());
            }
            if stop.load(Ordering::Relaxed) {
                // Its compilers too; what runs in the nodes ends with them.
                kill_process_group(Pid::from_child(&child), Signal::KILL)?;
                child.wait()?;
                bail!("stopped before the end: nothing can be said");
            }
            sleep(Duration::from_millis(100));
        }
    });
    if keep {
        say("the cluster runs on: `cargo xtask cluster kubectl get pods -A`, `cargo xtask cluster down` ends it");
        return result;
    }
    let ended = timed("ending the cluster", down);
    result.and(ended)
}

/// Starts everything.
pub(crate) fn up() -> Result<()> {
    build::all()?;
    control_plane::prerequisites()?;
    down().context("what an earlier cluster left")?;
    let own = directory();
    fs::create_dir_all(own.join("bin"))?;
    std::os::unix::fs::symlink(env::current_exe()?, own.join("bin/runc"))?;
    let certificates = Certificates::create(certificates::directory(&own))?;
    timed("starting two nodes", || {
        node::connect()?;
        NODES.into_iter().try_for_each(|node| Node(node).start())
    })?;
    timed("starting Kubernetes", || control_plane::start(&certificates))?;
    timed("writing and loading images", || {
        let [proxy, pilot] = istio::images()?;
        let images = [workloads::image()?, observer::image()?, proxy, pilot];
        images.into_iter().try_for_each(load)
    })?;
    timed("installing Istio", istio::install)?;
    timed("installing the observer", observer::install)?;
    timed("starting the workloads", workloads::start)
}

/// Loads an image into every node and removes its archive.
fn load(archive: PathBuf) -> Result<()> {
    let path = archive.display().to_string();
    for node in NODES {
        Node(node).run("ctr", &["--namespace", "k8s.io", "images", "import", &path])?;
    }
    fs::remove_file(archive).context("archive of an image")
}

/// Ends everything and checks that nothing is left but logs.
pub(crate) fn down() -> Result<()> {
    for node in NODES {
        Node(node).stop()?;
        for name in DATA {
            let data = Node(node).directory().join(name);
            if data.exists() {
                fs::remove_dir_all(&data).with_context(|| format!("{}", data.display()))?;
            }
        }
    }
    let _ = fs::remove_dir_all(directory().join("bin"));
    // What the nodes' own directories were mounted over, if nothing else is in it.
    let _ = fs::remove_dir("/var/lib/kubelet");
    node::check_clean()
}
