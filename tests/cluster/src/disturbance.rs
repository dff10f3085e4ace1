//! What happens in a cluster's life: observers are replaced, sidecars killed, workloads rolled out anew.

use std::{fs, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use harness::{net::run, wait::wait_until};

use crate::{facts::Facts, kubectl, observer, traffic::Situation};

/// Limits the time until a killed container runs again.
const RESTART_TIMEOUT: Duration = Duration::from_secs(60);

/// Replaces every observer while a situation repeats.
pub(crate) fn upgrade_under_load(load: &Situation, facts: &Facts) -> Result<()> {
    thread::scope(|scope| {
        let upgrade = scope.spawn(observer::upgrade);
        let mut rounds = 0;
        while !upgrade.is_finished() || rounds < 3 {
            load.run(facts)?;
            rounds += 1;
        }
        upgrade.join().expect("the upgrade does not panic")
    })
}

/// Kills Envoy of a workload's pod and waits until the pod is whole again.
pub(crate) fn kill_sidecar(facts: &Facts, namespace: &str, workload: &str) -> Result<()> {
    let pod = facts.pod_of(namespace, workload).with_context(|| format!("{namespace}/{workload} has no pod"))?;
    let envoy = fs::read_dir("/proc")?
        .flatten()
        .find(|process| {
            let read = |file: &str| fs::read_to_string(process.path().join(file)).unwrap_or_default();
            read("comm").trim() == "envoy" && read("cgroup").contains(&pod.uid)
        })
        .with_context(|| format!("no Envoy runs in {namespace}/{workload}"))?;
    let number = envoy.file_name().to_string_lossy().into_owned();
    run("kill", &["-KILL", &number])?;
    wait_until(&format!("the sidecar of {workload} runs again"), RESTART_TIMEOUT, || {
        let pods = kubectl::get("pods")?;
        let same =
            pods.iter().find(|object| object["metadata"]["uid"] == pod.uid.as_str()).context("the pod is gone")?;
        let text = same["status"].to_string();
        ensure!(text.contains("\"restartCount\":1"), "no container was restarted");
        ensure!(!text.contains("\"ready\":false"), "not every container is ready");
        Ok(())
    })
}

/// Gives a workload a new pod.
pub(crate) fn roll_out(namespace: &str, workload: &str) -> Result<()> {
    let name = format!("deployment/{workload}");
    kubectl::run(&["-n", namespace, "rollout", "restart", &name])?;
    kubectl::rolled_out(namespace, &name, RESTART_TIMEOUT * 2)
}
