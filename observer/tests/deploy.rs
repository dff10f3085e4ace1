//! What deploy/ has is what its comments and the daemon's promises need.

const DAEMON_SET: &str = include_str!("../../deploy/daemonset.yaml");
const UNIT: &str = include_str!("../../deploy/mesh-observer.service");

/// A pod in the host's network resolves names of Services only with this policy (Kubernetes, "Pod's DNS Policy").
#[test]
fn the_daemon_set_resolves_names_of_services() {
    let lines: Vec<&str> = DAEMON_SET.lines().map(str::trim).collect();
    assert!(lines.contains(&"hostNetwork: true") && lines.contains(&"dnsPolicy: ClusterFirstWithHostNet"));
    assert!(DAEMON_SET.contains("name: NODE_NAME"), "scraped pages and points are labelled with the node's name");
}

#[test]
fn the_unit_reloads_what_can_be_reloaded_and_restarts_after_failures() {
    let lines: Vec<&str> = UNIT.lines().collect();
    assert!(lines.contains(&"ExecReload=/bin/kill -HUP $MAINPID") && lines.contains(&"Restart=on-failure"));
}
