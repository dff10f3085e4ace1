//! The client against an API server that misbehaves.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};

use super::*;
use crate::model::kubernetes::{Cluster, ObjectName};

/// What the stand-in answers.
enum Answer {
    /// A status, headers and a body.
    Whole(u16, &'static str, String),
    /// Lines of a watch, which stays open.
    Open(String),
    /// A body that is cut.
    Cut(String),
    /// Nothing, ever.
    Silence,
}

type Script = dyn Fn(&Request, usize) -> Answer + Send + Sync;

#[derive(Clone, Debug)]
struct Request {
    path: String,
    token: String,
}

/// An API server on loopback.
struct StandIn {
    requests: Arc<Mutex<Vec<Request>>>,
    directory: tempfile::TempDir,
}

impl StandIn {
    /// `script` gets each request, and how many of its path and query came before.
    async fn start(script: impl Fn(&Request, usize) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (log, script) = (requests.clone(), Arc::new(script));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, log.clone(), script.clone()));
            }
        });
        let stand_in = Self { requests, directory: tempfile::tempdir().unwrap() };
        stand_in.set_token("first");
        let config = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{{name: k, cluster: {{server: \"http://{address}\"}}}}]\n\
             users: [{{name: u, user: {{tokenFile: {}}}}}]\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n",
            stand_in.directory.path().join("token").display()
        );
        std::fs::write(stand_in.kubeconfig(), config).unwrap();
        stand_in
    }

    fn kubeconfig(&self) -> PathBuf {
        self.directory.path().join("kubeconfig")
    }

    fn set_token(&self, token: &str) {
        std::fs::write(self.directory.path().join("token"), token).unwrap();
    }

    fn count(&self, part: &str) -> usize {
        self.requests.lock().unwrap().iter().filter(|request| request.path.contains(part)).count()
    }

    async fn observe(&self) -> Observed {
        let access = Access::open(Some(&self.kubeconfig())).await.unwrap().unwrap();
        Observed { kubernetes: Kubernetes::start(access, "cluster.local".to_owned()), cluster: Cluster::default() }
    }
}

/// The client, and what it has learnt.
struct Observed {
    kubernetes: Kubernetes,
    cluster: Cluster,
}

impl Observed {
    /// Applies changes until `done`, for some seconds at most.
    async fn until(&mut self, done: impl Fn(&Cluster, &KubernetesStats) -> bool) {
        let waited = timeout(Duration::from_secs(20), async {
            while !done(&self.cluster, &self.kubernetes.handle().stats()) {
                if let Ok(changes) = timeout(Duration::from_millis(50), self.kubernetes.next()).await {
                    changes.into_iter().for_each(|change| self.cluster.apply(change, SystemTime::now()));
                }
            }
        });
        let outcome = waited.await;
        assert!(outcome.is_ok(), "{:?} {:?}", self.cluster.sizes(), self.kubernetes.handle().stats());
    }

    fn outcomes(&self) -> BTreeMap<(&'static str, &'static str), u64> {
        let stats = self.kubernetes.handle().stats();
        stats.requests.into_iter().map(|(resource, outcome, count)| ((resource, outcome), count)).collect()
    }
}

async fn serve(mut stream: TcpStream, log: Arc<Mutex<Vec<Request>>>, script: Arc<Script>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let path = head.split(' ').nth(1).unwrap().to_owned();
    let token = head.lines().find_map(|line| line.strip_prefix("authorization: Bearer ")).unwrap_or_default();
    let request = Request { path, token: token.to_owned() };
    let before = {
        let mut log = log.lock().unwrap();
        let before = log.iter().filter(|other| kind(&other.path) == kind(&request.path)).count();
        log.push(request.clone());
        before
    };
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    match script(&request, before) {
        Answer::Whole(status, headers, body) => {
            let length = body.len();
            let text =
                format!("HTTP/1.1 {status} X\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}");
            let _ = stream.write_all(text.as_bytes()).await;
        }
        Answer::Open(text) => {
            let text = if text.is_empty() { chunked.to_owned() } else { format!("{chunked}{}", chunk(&text)) };
            let _ = stream.write_all(text.as_bytes()).await;
            sleep(Duration::from_secs(600)).await;
        }
        Answer::Cut(text) => drop(stream.write_all(format!("{chunked}{}", chunk(&text)).as_bytes()).await),
        Answer::Silence => sleep(Duration::from_secs(600)).await,
    }
}

/// Returns what a path asks for: requests that differ in versions and times are the same.
fn kind(path: &str) -> (String, bool) {
    (path.split('?').next().unwrap_or_default().to_owned(), path.contains("watch=true"))
}

fn service(name: &str) -> String {
    format!(
        r#"{{"metadata":{{"name":"{name}","namespace":"shop","resourceVersion":"7"}},"spec":{{"clusterIP":"10.96.0.1","ports":[{{"port":80}}]}}}}"#
    )
}

fn list(items: &[String]) -> Answer {
    Answer::Whole(200, "", format!(r#"{{"metadata":{{"resourceVersion":"5"}},"items":[{}]}}"#, items.join(",")))
}

fn status(code: u16) -> Answer {
    Answer::Whole(code, "", String::new())
}

fn services(cluster: &Cluster) -> u64 {
    cluster.sizes()[0].1
}

/// Answers whatever a case does not care about.
fn usual(request: &Request) -> Answer {
    match request.path.as_str() {
        path if path.contains("serviceentries") => status(404),
        path if path.contains("watch=true") => Answer::Open(String::new()),
        path if path.contains("/services") => list(&[service("web")]),
        _ => list(&[]),
    }
}

#[tokio::test]
async fn everything_is_listed_and_watched_and_istio_need_not_be_there() {
    let stand_in = StandIn::start(|request, _| match request.path.as_str() {
        path if path.contains("/services?watch") => {
            let added = format!("{{\"type\":\"ADDED\",\"object\":{}}}\n", service("other"));
            let gone = format!("{{\"type\":\"DELETED\",\"object\":{}}}\n", service("web"));
            Answer::Open(format!("{added}{gone}{}", added.replace("other", "third")))
        }
        _ => usual(request),
    })
    .await;
    let mut observed = stand_in.observe().await;
    observed.until(|cluster, _| cluster.is_synced() && services(cluster) == 2).await;
    assert_eq!(stand_in.count("/apis/networking.istio.io/v1/"), 1);
    assert_eq!(stand_in.count("/apis/networking.istio.io/v1beta1/"), 1);
    let stats = observed.kubernetes.handle().stats();
    assert!(stats.watches.iter().any(|(resource, is_open, age)| *resource == "services" && *is_open && age.is_zero()));
}

#[tokio::test]
async fn pages_are_continued_and_too_large_ones_asked_for_in_parts() {
    let stand_in = StandIn::start(|request, _| match request.path.as_str() {
        path if path.contains("/services?limit=100&") => Answer::Whole(200, "", "x".repeat(9 << 20)),
        path if path.contains("/services?limit=12&continue=&") || path.ends_with("/services?limit=12&continue=") => {
            let page = format!(r#"{{"metadata":{{"continue":"a b"}},"items":[{}]}}"#, service("web"));
            Answer::Whole(200, "", page)
        }
        path if path.contains("/services?limit=12&continue=a%20b") => list(&[service("other")]),
        _ => usual(request),
    })
    .await;
    let mut observed = stand_in.observe().await;
    observed.until(|cluster, _| cluster.is_synced()).await;
    assert_eq!(services(&observed.cluster), 2);
    assert_eq!(observed.outcomes()[&("services", "too_large")], 1);
}

#[tokio::test]
async fn a_watch_that_is_too_old_is_listed_again() {
    // Once by the status of the request, once by an event.
    let stand_in = StandIn::start(|request, before| match (request.path.as_str(), before) {
        (path, 0) if path.contains("/services?watch") => status(410),
        (path, 1) if path.contains("/services?watch") => {
            Answer::Open("{\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\",\"code\":410}}\n".to_owned())
        }
        (path, 2) if path.contains("/services?limit") => list(&[service("new")]),
        _ => usual(request),
    })
    .await;
    let mut observed = stand_in.observe().await;
    observed.until(|_, _| stand_in.count("/services?limit") == 3).await;
    observed
        .until(|_, stats| stats.watches.iter().any(|(resource, is_open, _)| *resource == "services" && *is_open))
        .await;
    assert_eq!(services(&observed.cluster), 1);
    assert_eq!(observed.outcomes()[&("services", "gone")], 2);
}

#[tokio::test]
async fn a_refused_token_is_read_again() {
    let stand_in = StandIn::start(|request, _| match request.token.as_str() {
        "second" => usual(request),
        _ => status(401),
    })
    .await;
    let mut observed = stand_in.observe().await;
    observed.until(|_, _| stand_in.count("/services") > 0).await;
    stand_in.set_token("second");
    observed.until(|cluster, _| cluster.is_synced()).await;
    assert!(observed.outcomes()[&("services", "unauthorized")] > 0);
}

#[tokio::test]
async fn what_is_asked_to_wait_waits() {
    let stand_in = StandIn::start(|request, before| match request.path.as_str() {
        path if path.contains("/services?limit") && before == 0 => {
            Answer::Whole(429, "retry-after: 2\r\n", String::new())
        }
        _ => usual(request),
    })
    .await;
    let started = std::time::Instant::now();
    let mut observed = stand_in.observe().await;
    observed.until(|cluster, _| cluster.is_synced()).await;
    assert!(started.elapsed() >= Duration::from_secs(2));
    assert_eq!(observed.outcomes()[&("services", "throttled")], 1);
}

#[tokio::test]
async fn malformed_cut_and_forbidden_answers_are_counted_and_what_was_known_stays() {
    let stand_in = StandIn::start(|request, before| match (request.path.as_str(), before) {
        (path, 0) if path.contains("/services?limit") => Answer::Whole(200, "", "{\"items\": [".to_owned()),
        (path, 1) if path.contains("/services?limit") => Answer::Cut("{\"metadata\"".to_owned()),
        (path, 0) if path.contains("/services?watch") => {
            Answer::Cut("{\"type\":\"ADDED\",\"object\":{\"metadata\":".to_owned())
        }
        (path, _) if path.contains("/endpointslices") => status(403),
        _ => usual(request),
    })
    .await;
    let mut observed = stand_in.observe().await;
    observed.until(|cluster, _| services(cluster) == 1).await;
    observed.until(|_, _| stand_in.count("/services?watch") == 1).await;
    assert_eq!(services(&observed.cluster), 1);
    assert_eq!(observed.outcomes()[&("endpointslices", "forbidden")], 1);
    assert!(!observed.cluster.is_synced(), "without endpoints nothing is passed through");
}

#[tokio::test]
async fn a_hanging_api_delays_nobody_else() {
    let stand_in = StandIn::start(|request, _| match request.path.as_str() {
        path if path.contains("/endpointslices") => Answer::Silence,
        _ => usual(request),
    })
    .await;
    let mut observed = stand_in.observe().await;
    let started = std::time::Instant::now();
    observed.until(|cluster, _| services(cluster) == 1).await;
    assert!(started.elapsed() < Duration::from_secs(5));
    observed.until(|_, stats| stats.requests.contains(&("endpointslices", "timeout", 1))).await;
}

#[tokio::test]
async fn pods_are_fetched_by_name_and_address_a_few_a_second() {
    let pod = |name: &str| {
        format!(
            r#"{{"metadata":{{"name":"{name}","namespace":"shop"}},"status":{{"podIP":"10.0.0.9","phase":"Running"}}}}"#
        )
    };
    let stand_in = StandIn::start(move |request, _| match request.path.as_str() {
        "/api/v1/namespaces/shop/pods/web-1" => Answer::Whole(200, "", pod("web-1")),
        path if path.starts_with("/api/v1/namespaces/shop/pods/") => status(404),
        path if path.starts_with("/api/v1/pods?fieldSelector=status.podIP%3D10.0.0.9&") => list(&[pod("a"), pod("b")]),
        _ => usual(request),
    })
    .await;
    let mut observed = stand_in.observe().await;
    let name = |name: &str| PodQuery::Name(ObjectName::new("shop", name).unwrap());
    let mut questions = vec![name("web-1"), PodQuery::Address("10.0.0.9".parse().unwrap())];
    questions.extend((0..30).map(|at| name(&format!("absent-{at}"))));
    let started = std::time::Instant::now();
    observed.kubernetes.handle().ask(questions);
    observed.until(|cluster, _| cluster.sizes()[4].1 == 3).await;
    observed.until(|_, _| stand_in.count("/pods") == 32).await;
    let expected = Duration::from_millis(1_000);
    assert!(started.elapsed() > expected, "32 questions are 12 more than may come at once: {:?}", started.elapsed());
}

#[tokio::test]
async fn credentials_that_cannot_be_used_are_named_with_the_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kubeconfig");
    let error = |text: &str| {
        std::fs::write(&path, text).unwrap();
        let path = path.clone();
        async move { Access::open(Some(&path)).await.err().unwrap().to_string() }
    };
    assert!(error("nonsense").await.contains("name a file with a cluster"));
    let exec = "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{name: k, cluster: {server: \"http://x\"}}]\n\
                users: [{name: u, user: {exec: {apiVersion: client.authentication.k8s.io/v1, command: /bin/true}}}]\n\
                contexts: [{name: c, context: {cluster: k, user: u}}]\n";
    assert!(error(exec).await.contains("use a token file"));
    let missing = Access::open(Some(std::path::Path::new("/nonexistent"))).await.err().unwrap().to_string();
    assert!(missing.contains("/nonexistent"), "{missing}");
}
