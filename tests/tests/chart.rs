//! The Helm chart, rendered by Helm: the manifests in `deploy/` are made from it, every switch has its effect, and wrong
//! values are refused.

use std::{env, fs, path::PathBuf, process::Command};

use anyhow::{Result, bail, ensure};
use harness::tools;

/// Manifests for users without Helm, with the options that render them.
const MANIFESTS: [(&str, &str, &[&str]); 2] = [
    (
        "daemonset.yaml",
        "One observer per node: kubectl apply -f daemonset.yaml. docs/install.md has the rest.",
        &["--set=namespace.create=true", "--no-hooks"],
    ),
    (
        "detach.yaml",
        "Removes what observers leave in the kernel of every node, once daemonset.yaml's are stopped: docs/install.md.",
        &["--show-only=templates/detach/daemonset.yaml"],
    ),
];
const DETACH: &str = "name: mesh-observer-detach";

fn chart() -> PathBuf {
    tools::repository().join("deploy/helm/mesh-observer")
}

/// Runs Helm on the chart; the error is what it wrote.
fn helm(arguments: &[&str]) -> Result<String> {
    let output = Command::new(tools::built("helm")?).args(arguments).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Renders the chart with these options.
fn rendered(options: &[&str]) -> Result<String> {
    let chart = chart();
    let fixed = [
        "template",
        "mesh-observer",
        chart.to_str().expect("UTF-8"),
        "--namespace=mesh-observer",
        "--kube-version=1.34.0",
    ];
    helm(&[&fixed, options].concat())
}

#[test]
fn manifests_are_rendered_from_the_chart() -> Result<()> {
    for (file, purpose, options) in MANIFESTS {
        let path = tools::repository().join("deploy").join(file);
        let head = format!("# {purpose}\n# Made from the chart: UPDATE_GOLDEN=1 cargo test -p harness --test chart\n");
        let text = head + &rendered(options)?;
        if env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&path, &text)?;
        }
        if fs::read_to_string(&path)? != text {
            bail!("{} is not what the chart renders: run this test with UPDATE_GOLDEN=1", path.display());
        }
    }
    Ok(())
}

#[test]
fn lint_finds_nothing() -> Result<()> {
    let chart = chart();
    let said = helm(&["lint", "--strict", chart.to_str().expect("UTF-8")])?;
    ensure!(!said.contains("[WARNING]") && !said.contains("[ERROR]"), "{said}");
    Ok(())
}

#[test]
fn every_value_has_its_effect() -> Result<()> {
    let plain = rendered(&[])?;
    for (values, expected) in [
        ("image.repository=registry.example/observer,image.tag=v7", "image: \"registry.example/observer:v7\""),
        ("image.digest=sha256:", "image: \"mesh-observer@sha256:"),
        ("image.pullPolicy=Always", "imagePullPolicy: Always"),
        ("imagePullSecrets[0].name=registry", "imagePullSecrets:\n        - name: registry"),
        ("nameOverride=other", "app.kubernetes.io/name: other"),
        ("fullnameOverride=other", "name: other\n"),
        ("namespace.create=true", "pod-security.kubernetes.io/enforce: privileged"),
        ("listen.port=9000", "value: \"0.0.0.0:9000\""),
        ("listen.address=::", "value: \"[::]:9469\""),
        ("listen.address=127.0.0.1", "port: metrics, host: \"127.0.0.1\""),
        ("listen.address=::1", "--listen, \"[::1]:9469\""),
        ("webConfig.existingSecret=web", "port: metrics, scheme: HTTPS}"),
        ("webConfig.existingSecret=web", "value: /etc/mesh-observer/web/web-config.yml"),
        ("webConfig.existingSecret=web", "secret: {secretName: web, defaultMode: 0400}"),
        ("webConfig.existingSecret=web", "secret: {secretName: web, defaultMode: 0440}"),
        ("webConfig.existingSecret=web", "securityContext: {fsGroup: 65534}"),
        (
            "webConfig.existingSecret=web,webConfig.test.basicAuthSecret=user",
            "OBSERVER_WEB_BASIC_AUTH_FILE, value: /etc/mesh-observer/user/basic-auth",
        ),
        ("webConfig.existingSecret=web,webConfig.test.basicAuthSecret=user", "secretName: user"),
        (
            "webConfig.existingSecret=web,webConfig.test.certificateSecret=client",
            "OBSERVER_WEB_KEY_FILE, value: /etc/mesh-observer/client/tls.key",
        ),
        ("webConfig.existingSecret=web,webConfig.test.certificateSecret=client", "secretName: client"),
        ("webConfig.existingSecret=web,podMonitor.enabled=true", "scheme: https"),
        ("podMonitor.enabled=true,podMonitor.tlsConfig.insecureSkipVerify=true", "insecureSkipVerify: true"),
        ("podMonitor.enabled=true,podMonitor.basicAuth.username.name=web", "basicAuth:"),
        ("emit={wavefront+http://a:1,wavefront+file:-}", "value: \"wavefront+http://a:1,wavefront+file:-\""),
        ("secrets={wavefront}", "mountPath: /etc/mesh-observer/secrets/wavefront"),
        ("secrets={wavefront}", "secret: {secretName: wavefront, defaultMode: 0400}"),
        ("options.scrape-proxies=true", "name: OBSERVER_SCRAPE_PROXIES\n              value: \"true\""),
        ("options.sidecar-exe={envoy,proxy}", "name: OBSERVER_SIDECAR_EXE\n              value: \"envoy,proxy\""),
        ("config=log = \"debug\"", "observer.toml: |-\n    log = \"debug\""),
        ("config=log = \"debug\"", "name: OBSERVER_CONFIG, value: /etc/mesh-observer/observer.toml"),
        ("config=log = \"debug\"", "checksum/config: "),
        ("kubernetes.enabled=false", "name: OBSERVER_KUBERNETES, value: \"off\""),
        ("serviceAccount.create=false,serviceAccount.name=own", "serviceAccountName: own"),
        ("serviceAccount.annotations.a=b", "annotations:\n    a: b"),
        (
            "pin.path=/sys/fs/bpf/other",
            "command: [/observer, detach, --pin, \"/sys/fs/bpf/other\", --wait, 2m, --stay]",
        ),
        ("queue.hostPath=/var/lib/queue", "hostPath: {path: \"/var/lib/queue\", type: DirectoryOrCreate}"),
        ("cgroupRoot=/sys/fs/cgroup/unified", "hostPath: {path: \"/sys/fs/cgroup/unified\", type: Directory}"),
        ("extraCapabilities={SYS_ADMIN}", "DAC_READ_SEARCH, SYS_ADMIN]"),
        ("seccompProfile.type=Unconfined", "seccompProfile:\n              type: Unconfined"),
        ("resources.limits.memory=1Gi", "memory: 1Gi"),
        ("tolerations[0].operator=Equal,tolerations[0].key=pool", "- key: pool\n          operator: Equal"),
        ("nodeSelector.pool=mesh", "pool: mesh"),
        ("affinity.nodeAffinity.a=b", "affinity:\n        nodeAffinity:"),
        ("priorityClassName=system-node-critical", "priorityClassName: system-node-critical"),
        ("updateStrategy.type=OnDelete,updateStrategy.rollingUpdate=null", "updateStrategy:\n    type: OnDelete"),
        ("podAnnotations.a=b", "annotations:\n        a: b"),
        ("podLabels.team=mesh", "team: mesh"),
        ("extraEnv[0].name=RUST_LOG,extraEnv[0].value=debug", "- name: RUST_LOG"),
        ("extraVolumes[0].name=ca", "- name: ca"),
        ("extraVolumeMounts[0].name=ca,extraVolumeMounts[0].mountPath=/ca", "- mountPath: /ca"),
        ("podMonitor.enabled=true", "honorLabels: true"),
        ("podMonitor.enabled=true,podMonitor.interval=15s", "interval: 15s"),
        ("podMonitor.enabled=true,podMonitor.labels.release=prometheus", "release: prometheus"),
        ("podMonitor.enabled=true,podMonitor.relabelings[0].action=drop", "relabelings:\n        - action: drop"),
        (
            "podMonitor.enabled=true,podMonitor.metricRelabelings[0].action=drop",
            "metricRelabelings:\n        - action: drop",
        ),
        ("prometheusRule.enabled=true", "- alert: "),
        ("prometheusRule.enabled=true,prometheusRule.labels.release=prometheus", "release: prometheus"),
        ("dashboards.enabled=true", "grafana_dashboard: \"1\""),
        ("dashboards.enabled=true", "name: mesh-observer-istio-data-plane"),
        ("dashboards.enabled=true,dashboards.annotations.grafana_folder=Istio", "grafana_folder: Istio"),
        ("networkPolicy.enabled=true", "ingress:\n    []"),
        (
            "networkPolicy.enabled=true,networkPolicy.from[0].namespaceSelector.matchLabels.a=b",
            "- from:\n        - namespaceSelector:",
        ),
    ] {
        let digest = format!("{values}{}", "0".repeat(64));
        let values = if values.ends_with("sha256:") { digest.as_str() } else { values };
        let text = rendered(&["--set", values])?;
        ensure!(text.contains(expected), "{values}: expected {expected:?} in\n{text}");
        ensure!(!plain.contains(expected), "{values}: {expected:?} is there without it, too");
        // What Helm cannot parse again it does not render, but a document without a kind is not an object.
        for document in
            text.split("\n---\n").filter(|document| document.lines().any(|line| !line.starts_with(['#', '-'])))
        {
            ensure!(document.contains("\nkind: ") && document.contains("\n  name: "), "{values}: {document}");
        }
    }
    Ok(())
}

#[test]
fn what_is_switched_off_is_not_rendered() -> Result<()> {
    for (values, absent) in [
        ("pin.path=", DETACH),
        ("pin.path=", "bpffs"),
        ("pin.detachOnUninstall=false", DETACH),
        ("kubernetes.enabled=false", "kind: ClusterRole"),
        ("kubernetes.enabled=false", "automountServiceAccountToken: true"),
        ("rbac.create=false", "kind: ClusterRole"),
        ("emit=null", "OBSERVER_EMIT"),
        ("webConfig.test.certificateSecret=client", "secretName: client"),
        ("webConfig.existingSecret=web,webConfig.tls=false", "scheme: HTTPS"),
        ("resources=null", "64Mi\n              memory"),
        ("tolerations=null", "- operator: Exists"),
    ] {
        let text = rendered(&["--set", values])?;
        ensure!(!text.contains(absent), "{values}: {absent:?} in\n{text}");
    }
    Ok(())
}

#[test]
fn apparmor_is_configured_as_the_cluster_understands_it() -> Result<()> {
    let (field, annotation) =
        ("appArmorProfile: {type: Unconfined}", "container.apparmor.security.beta.kubernetes.io/observer: unconfined");
    for (version, expected, absent) in [("1.29.9", annotation, field), ("1.30.0", field, annotation)] {
        let text = rendered(&["--kube-version", version])?;
        ensure!(text.contains(expected) && !text.contains(absent), "{version}:\n{text}");
    }
    Ok(())
}

#[test]
fn wrong_values_are_refused_by_name() -> Result<()> {
    for (values, named) in [
        ("imag.tag=1", "imag"),
        ("options.intervall=10s", "intervall"),
        ("options.listen=:1", "listen"),
        ("options.log=loud", "log"),
        ("listen.port=70000", "port"),
        ("pin.path=/var/lib", "path"),
        ("pin.path=/sys/fs/bpf/../x", "path"),
        ("emit={proxy:2878}", "emit"),
        ("secrets={../x}", "secrets"),
        ("extraCapabilities={CAP_SYS_ADMIN}", "extraCapabilities"),
        ("image.digest=abc", "digest"),
        ("updateStrategy.type=Recreate", "updateStrategy"),
        ("podMonitor.interval=often", "interval"),
    ] {
        match rendered(&["--set", values]) {
            Ok(text) => bail!("{values} is accepted:\n{text}"),
            Err(error) => ensure!(format!("{error:#}").contains(named), "{values}: {error:#}"),
        }
    }
    Ok(())
}
