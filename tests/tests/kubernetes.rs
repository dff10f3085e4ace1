//! Names from a real Kubernetes API: etcd, kube-apiserver, and the mesh's objects in it.

use std::{
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{
    bpffs::Bpffs,
    cases,
    exposition::{Exposition, Sample},
    kubernetes::{ApiServer, OBSERVER_USER},
    mesh::{Family, Protocol, Service},
    net::finish,
    observer::Observer,
    pair::Pair,
    resource_usage::ResourceUsage,
    sidecar::Options,
    tools,
    wait::wait_until,
};
use serde_json::{Value, json};

const SERVICES: &str = "/api/v1/namespaces/default/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
const ENTRIES: &str = "/apis/networking.istio.io/v1/namespaces/default/serviceentries";
/// How long a name may take after the traffic that it is for.
const NAMED_WITHIN: Duration = Duration::from_secs(15);
/// How long a change may take to be known.
const KNOWN_WITHIN: Duration = Duration::from_secs(60);
/// The observer's memory with 1,000 Services and 20,000 endpoints.
const MAX_MEMORY: u64 = 40 << 20;

fn main() -> ExitCode {
    cases::run(
        Fixture::new,
        cases![
            both_ends_are_named,
            the_ports_name_decides_the_protocol,
            what_is_passed_through_is_named_so,
            what_has_no_pod_or_several_workloads,
            a_service_entry_that_appears_with_its_definition,
            check_says_what_the_api_gives,
            an_api_that_is_away_leaves_what_was_known,
            declared_ports_outlive_the_observer,
            a_thousand_services,
        ],
    )
}

struct Fixture {
    observer: Observer,
    api: ApiServer,
    // Dropped before the mesh, whose files are removed with it.
    bpffs: Bpffs,
    pair: Pair,
}

impl Fixture {
    fn new() -> Result<Self> {
        let pair = Pair::unobserved(Options::default(), Options::default())?;
        let api = ApiServer::start(pair.mesh.directory())?;
        grant(&api)?;
        describe(&api, &pair)?;
        let bpffs = Bpffs::mount(pair.mesh.directory())?;
        let observer = observe(&pair, &api, &bpffs, "")?;
        Ok(Self { observer, api, bpffs, pair })
    }

    /// Replaces the observer by one with these settings.
    fn observe_with(&mut self, settings: &str) -> Result<()> {
        self.observer.kill()?;
        self.observer = observe(&self.pair, &self.api, &self.bpffs, settings)?;
        Ok(())
    }

    /// Gives the port of the Service `sniffed` another name.
    fn name_port(&self, name: &str) -> Result<()> {
        let path = format!("{SERVICES}/sniffed");
        let mut service: Value = serde_json::from_str(&self.api.get(&path)?)?;
        service["spec"]["ports"][0]["name"] = name.into();
        self.api.replace(&path, &service)
    }

    /// Waits for a series of requests with these labels.
    fn named(&self, labels: &[(&str, &str)]) -> Result<Sample> {
        self.series("istio_requests_total", labels)
    }

    fn series(&self, family: &str, labels: &[(&str, &str)]) -> Result<Sample> {
        let found = |page: &Exposition| {
            let fits = |sample: &&Sample| labels.iter().all(|(name, value)| sample.label(name) == *value);
            page.samples(family).find(fits).cloned()
        };
        wait_until("the series is named", NAMED_WITHIN, || {
            let page = self.observer.scrape()?;
            let seen = || page.samples(family).map(|sample| format!("{:?}", sample.labels)).collect::<Vec<_>>();
            found(&page).with_context(|| format!("no {labels:?} among {:#?}", seen()))
        })
    }

    fn get(&self, service: &Service) -> Result<()> {
        let codes = self.pair.curl(&[&service.url(Family::V4, "/bytes/10")])?;
        ensure!(codes == "200", "{codes}");
        Ok(())
    }

    fn own(&self, family: &str, labels: &[(&str, &str)]) -> Result<f64> {
        self.observer.own(family, labels)
    }
}

/// Starts an observer that leaves its state behind.
fn observe(pair: &Pair, api: &ApiServer, bpffs: &Bpffs, settings: &str) -> Result<Observer> {
    let (executable, kubeconfig) = (pair.mesh.executable(), api.kubeconfig()?.display().to_string());
    let pins = bpffs.path().join("pins").display().to_string();
    let arguments = ["--sidecar-exe", &executable, "--kubeconfig", &kubeconfig, "--pin", &pins];
    Observer::start_with(pair.mesh.directory(), settings, 2, &arguments)
}

/// Grants what docs/kubernetes.md says that the observer needs, and nothing else.
fn grant(api: &ApiServer) -> Result<()> {
    let rule = |group: &str, resource: &str, verbs: [&str; 2]| json!({"apiGroups": [group], "resources": [resource], "verbs": verbs});
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let role = json!({
        "metadata": {"name": "mesh-observer"},
        "rules": [
            rule("", "services", ["list", "watch"]),
            rule("discovery.k8s.io", "endpointslices", ["list", "watch"]),
            rule("networking.istio.io", "serviceentries", ["list", "watch"]),
            rule("", "pods", ["get", "list"]),
        ],
    });
    let binding = json!({
        "metadata": {"name": "mesh-observer"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "mesh-observer"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": OBSERVER_USER}],
    });
    // The namespace is made by the API server itself, a moment after it is ready.
    wait_until("there is a namespace", KNOWN_WITHIN, || api.get("/api/v1/namespaces/default"))?;
    api.create(&format!("{rbac}/clusterroles"), &role)?;
    api.create(&format!("{rbac}/clusterrolebindings"), &binding)
}

/// Creates Services, slices and pods that describe the mesh.
fn describe(api: &ApiServer, pair: &Pair) -> Result<()> {
    for workload in [&pair.client, &pair.server, &pair.outside] {
        let mut labels = json!({"app": workload.name, "version": "v7", "pod-template-hash": "7c9f8"});
        if workload.name != "outside" {
            labels["security.istio.io/tlsMode"] = "istio".into();
        }
        api.pod(&workload.name, &workload.pod, &workload.ipv4.to_string(), &labels)?;
    }
    for service in pair.mesh.services() {
        let name = match service.protocol {
            Protocol::Http => "http",
            Protocol::Http2 => "http2",
            Protocol::Tcp => "tcp",
            Protocol::Auto => "any",
        };
        api.create(SERVICES, &object(&service.name, &service.ipv4.to_string(), name, service.port))?;
        let ready = [(service.endpoint.pod.clone(), service.endpoint.ipv4.to_string())];
        api.create(SLICES, &slice(&service.name, name, service.target_port, &ready))?;
    }
    Ok(())
}

fn object(name: &str, address: &str, port_name: &str, port: u16) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {"clusterIP": address, "ports": [{"name": port_name, "port": port}]},
    })
}

fn slice(service: &str, port_name: &str, port: u16, pods: &[(String, String)]) -> Value {
    let endpoints = pods.iter().map(|(pod, address)| {
        json!({
            "addresses": [address], "conditions": {"ready": true},
            "targetRef": {"kind": "Pod", "namespace": "default", "name": pod},
        })
    });
    json!({
        "metadata": {"name": format!("{service}-1"), "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "ports": [{"name": port_name, "port": port, "protocol": "TCP"}],
        "endpoints": endpoints.collect::<Vec<_>>(),
    })
}

fn both_ends_are_named(fixture: &mut Fixture) -> Result<String> {
    for _ in 0..5 {
        fixture.get(&fixture.pair.web)?;
    }
    let source = fixture.named(&[("reporter", "source"), ("destination_service_name", "web")])?;
    for (label, expected) in [
        ("source_workload", "client"),
        ("destination_workload", "server"),
        ("destination_workload_namespace", "default"),
        ("destination_service", "web.default.svc.cluster.local"),
        ("destination_service_namespace", "default"),
        ("destination_app", "server"),
        ("destination_version", "v7"),
        ("destination_canonical_service", "server"),
        ("destination_canonical_revision", "v7"),
        ("destination_cluster", "Kubernetes"),
        ("destination_principal", "spiffe://cluster.local/ns/default/sa/server"),
    ] {
        ensure!(source.label(label) == expected, "{label} is {}", source.label(label));
    }
    let destination = fixture.named(&[("reporter", "destination"), ("destination_service_name", "web")])?;
    ensure!(destination.label("destination_service") == "web.default.svc.cluster.local", "{destination:?}");
    let page = fixture.observer.scrape()?;
    for reporter in ["source", "destination"] {
        let counted = page.sum("istio_requests_total", &[("reporter", reporter), ("destination_service_name", "web")]);
        ensure!(counted == Some(5.0), "{counted:?} at {reporter}");
        let unknown = [("reporter", reporter), ("destination_service_name", "unknown")];
        ensure!(page.sum("istio_requests_total", &unknown).is_none(), "some were counted before they were named");
    }
    Ok("5 requests, 11 labels of the destination".to_owned())
}

fn the_ports_name_decides_the_protocol(fixture: &mut Fixture) -> Result<String> {
    // The Service's port is called http, then tcp: Envoy is not asked, its configuration stays.
    fixture.get(&fixture.pair.sniffed)?;
    fixture.named(&[("reporter", "source"), ("destination_service_name", "sniffed"), ("request_protocol", "http")])?;
    fixture.name_port("tcp-web")?;
    let tcp = [("reporter", "source"), ("destination_service_name", "sniffed")];
    wait_until("the change is known", KNOWN_WITHIN, || {
        fixture.get(&fixture.pair.sniffed)?;
        let page = fixture.observer.scrape()?;
        page.sum("istio_tcp_connections_opened_total", &tcp).context("still HTTP")
    })?;
    let before = fixture.observer.scrape()?.sum("istio_requests_total", &tcp);
    fixture.get(&fixture.pair.sniffed)?;
    std::thread::sleep(Duration::from_secs(2));
    let after = fixture.observer.scrape()?.sum("istio_requests_total", &tcp);
    ensure!(before == after, "requests still grow: {before:?}, {after:?}");
    Ok("HTTP became TCP with the port's name".to_owned())
}

fn what_is_passed_through_is_named_so(fixture: &mut Fixture) -> Result<String> {
    // A pod's own address, at a port that no Service has: TCP, whatever is in it.
    let url = format!("http://{}:8080/bytes/10", fixture.pair.outside.ipv4);
    ensure!(fixture.pair.curl(&[&url])? == "200");
    let passed = fixture.series(
        "istio_tcp_connections_opened_total",
        &[("reporter", "source"), ("destination_service_name", "PassthroughCluster")],
    )?;
    for (label, expected) in
        [("destination_workload", "outside"), ("destination_service", "unknown"), ("destination_principal", "unknown")]
    {
        ensure!(passed.label(label) == expected, "{label} is {}", passed.label(label));
    }
    Ok("one connection".to_owned())
}

fn what_has_no_pod_or_several_workloads(fixture: &mut Fixture) -> Result<String> {
    // A canary stands behind the Service too: only what both have in common is said.
    let path = format!("{SLICES}/http2-1");
    let mut both: Value = serde_json::from_str(&fixture.api.get(&path)?)?;
    let server = both["endpoints"][0].clone();
    fixture.api.pod("canary", "canary-8f-2bcdf", "10.250.0.1", &json!({"app": "server", "pod-template-hash": "8f"}))?;
    let mut canary = server.clone();
    canary["addresses"] = json!(["10.250.0.1"]);
    canary["targetRef"]["name"] = "canary-8f-2bcdf".into();
    both["endpoints"] = json!([server, canary]);
    fixture.api.replace(&path, &both)?;
    wait_until("the slice is known", KNOWN_WITHIN, || {
        let _ = fixture.pair.curl(&["--http2-prior-knowledge", &fixture.pair.http2.url(Family::V4, "/")]);
        let unresolved = fixture.own("mesh_observer_destinations_unresolved", &[("reason", "several_workloads")])?;
        ensure!(unresolved == 1.0, "{unresolved} destinations");
        Ok(())
    })?;
    let common = fixture.named(&[("reporter", "source"), ("destination_service_name", "http2")])?;
    for (label, expected) in [
        ("destination_workload", "unknown"),
        ("destination_workload_namespace", "default"),
        ("destination_app", "server"),
    ] {
        ensure!(common.label(label) == expected, "{label} is {}", common.label(label));
    }
    Ok("the namespace and the app alone".to_owned())
}

fn a_service_entry_that_appears_with_its_definition(fixture: &mut Fixture) -> Result<String> {
    let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "serviceentries.networking.istio.io"},
        "spec": {
            "group": "networking.istio.io", "scope": "Namespaced",
            "names": {"plural": "serviceentries", "singular": "serviceentry", "kind": "ServiceEntry"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}],
        },
    });
    fixture.api.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition)?;
    let entry = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
        "metadata": {"name": "far"},
        "spec": {"hosts": ["far.example"], "addresses": ["198.51.100.0/24"],
                 "ports": [{"number": 7000, "name": "tcp", "protocol": "TCP"}]},
    });
    wait_until("the definition is served", KNOWN_WITHIN, || fixture.api.create(ENTRIES, &entry))?;
    wait_until("the entry is known", 2 * KNOWN_WITHIN, || {
        let entries = fixture.own("mesh_observer_kubernetes_objects", &[("kind", "serviceentries")])?;
        ensure!(entries == 1.0, "{entries} entries");
        Ok(())
    })?;
    // Nobody answers there; the connection that the application opens is counted all the same.
    let _ = fixture.pair.curl(&["--max-time", "2", "http://198.51.100.7:7000/"]);
    let far = fixture.series("istio_tcp_connections_opened_total", &[("destination_service", "far.example")])?;
    ensure!(far.label("destination_service_name") == "far.example", "{far:?}");
    Ok("within a minute of its definition".to_owned())
}

fn check_says_what_the_api_gives(fixture: &mut Fixture) -> Result<String> {
    let kubeconfig = fixture.api.kubeconfig()?;
    let mut command = Command::new(tools::observer()?);
    command.args(["check", "--listen", &fixture.observer.address().to_string(), "--kubeconfig"]).arg(&kubeconfig);
    let report = finish(&mut command, "").unwrap_or_else(|error| format!("{error:#}"));
    for line in [
        "ok    list services",
        "ok    watch endpointslices.discovery.k8s.io",
        "ok    list serviceentries.networking.istio.io",
        "ok    get pods",
        "the running observer's services are 0 s old",
    ] {
        ensure!(report.contains(line), "no {line:?} in\n{report}");
    }
    Ok("permissions and staleness".to_owned())
}

fn an_api_that_is_away_leaves_what_was_known(fixture: &mut Fixture) -> Result<String> {
    fixture.api.kill()?;
    let stale = [("resource", "services")];
    wait_until("the observer says so", KNOWN_WITHIN, || {
        let (age, open) = (
            fixture.own("mesh_observer_kubernetes_staleness_seconds", &stale)?,
            fixture.own("mesh_observer_kubernetes_watch_open", &stale)?,
        );
        ensure!(age > 1.0 && open == 0.0, "{age} s old, open: {open}");
        Ok(())
    })?;
    let web = [("reporter", "source"), ("destination_service_name", "web"), ("destination_workload", "server")];
    let before = fixture.named(&web)?.value;
    fixture.get(&fixture.pair.web)?;
    wait_until("it still counts under the names", NAMED_WITHIN, || {
        let counted = fixture.observer.scrape()?.sum("istio_requests_total", &web);
        ensure!(counted == Some(before + 1.0), "{counted:?} after {before}");
        Ok(())
    })?;
    let log = fixture.observer.log();
    let said = log.lines().filter(|line| line.contains("services of the Kubernetes API: ")).count();
    ensure!(said == 1, "said {said} times:\n{log}");
    fixture.api.resume()?;
    let late = object("late", "10.96.255.1", "http", 80);
    wait_until("it is there again", KNOWN_WITHIN, || fixture.api.create(SERVICES, &late))?;
    let services = fixture.pair.mesh.services().len() as f64 + 2.0;
    wait_until("the observer has what came since", 2 * KNOWN_WITHIN, || {
        let known = fixture.own("mesh_observer_kubernetes_objects", &[("kind", "services")])?;
        ensure!(known == services, "{known} services of {services}");
        Ok(())
    })?;
    ensure!(fixture.own("mesh_observer_kubernetes_staleness_seconds", &stale)? == 0.0);
    Ok("counted under the same names meanwhile".to_owned())
}

fn declared_ports_outlive_the_observer(fixture: &mut Fixture) -> Result<String> {
    fixture.name_port("tcp-db")?;
    let source = [("reporter", "source")];
    let counted = |fixture: &Fixture| -> Result<_> {
        let page = fixture.observer.scrape()?;
        let sum = |family| page.sum(family, &source).unwrap_or(0.0);
        Ok((sum("istio_requests_total"), sum("istio_tcp_connections_opened_total")))
    };
    let (_, before) = counted(fixture)?;
    wait_until("the change is known", KNOWN_WITHIN, || {
        fixture.get(&fixture.pair.sniffed)?;
        ensure!(counted(fixture)?.1 > before, "still HTTP");
        Ok(())
    })?;
    // Nothing of before waits for names any more.
    std::thread::sleep(Duration::from_secs(11));
    fixture.api.kill()?;
    // The second has maps of another layout.
    for settings in ["", "max_series = 500"] {
        fixture.observe_with(settings)?;
        let (requests, connections) = counted(fixture)?;
        fixture.get(&fixture.pair.sniffed)?;
        wait_until("it is counted as TCP", NAMED_WITHIN, || {
            let now = counted(fixture)?;
            ensure!(
                now == (requests, connections + 1.0),
                "{now:?} after {requests} requests, {connections} connections"
            );
            Ok(())
        })?;
    }
    fixture.api.resume()?;
    Ok("TCP after a restart without the API, with the same maps and with others".to_owned())
}

fn a_thousand_services(fixture: &mut Fixture) -> Result<String> {
    const COUNT: usize = 1_000;
    const PODS: usize = 20;
    let address = |service: usize, pod: usize| {
        let number = service * PODS + pod;
        format!("10.{}.{}.{}", 128 + number / 65_536, number / 256 % 256, number % 256)
    };
    let names: Vec<usize> = (0..COUNT).collect();
    let services: Vec<Value> = names
        .iter()
        .map(|number| {
            object(&format!("s{number}"), &format!("10.96.{}.{}", 200 + number / 250, number % 250 + 1), "http", 80)
        })
        .collect();
    let slices: Vec<Value> = names
        .iter()
        .map(|&number| {
            let pods = (0..PODS).map(|pod| {
                (format!("s{number}-7d4b9c8f6d-2bcd{}", b"fghjklmnpqrstvwxz24567"[pod] as char), address(number, pod))
            });
            slice(&format!("s{number}"), "http", 8080, &pods.collect::<Vec<_>>())
        })
        .collect();
    let before = ResourceUsage::of(fixture.observer.pid())?;
    for (collection, objects) in [(SERVICES, &services), (SLICES, &slices)] {
        objects.chunks(100).try_for_each(|chunk| fixture.api.create_all(collection, chunk))?;
    }
    let started = Instant::now();
    let known = |kind: &str| fixture.own("mesh_observer_kubernetes_objects", &[("kind", kind)]);
    wait_until("all are known", KNOWN_WITHIN, || {
        let (services, endpoints) = (known("services")?, known("endpoints")?);
        ensure!(services > COUNT as f64 && endpoints > (COUNT * PODS) as f64, "{services} {endpoints}");
        Ok(())
    })?;
    let followed = started.elapsed();
    // Listed anew, as at a start: what that takes at its peak is in the memory that stays.
    let requests = || fixture.own("mesh_observer_kubernetes_requests_total", &[]);
    let (first, since) = (requests()?, Instant::now());
    std::thread::sleep(Duration::from_secs(20));
    let rate = (requests()? - first) / since.elapsed().as_secs_f64();
    let after = ResourceUsage::of(fixture.observer.pid())?;
    let resident = fixture.own("mesh_observer_resident_memory_bytes", &[])?;
    ensure!(after.anonymous_bytes <= MAX_MEMORY, "{after}, before {before}");
    ensure!(rate < 0.5, "{rate} requests a second, with nothing to ask");
    Ok(format!(
        "{} MB of its own before, {} MB after, {:.0} MB resident; {rate:.2} requests a second; followed in {followed:.1?}",
        before.anonymous_bytes >> 20,
        after.anonymous_bytes >> 20,
        resident / f64::from(1 << 20)
    ))
}
