//! `observer await-daemon-set`: what Helm, which waits for Jobs only, needs to wait for a DaemonSet.

use std::{
    env,
    fmt::{self, Display},
    fs,
    path::{Path, PathBuf},
    str::FromStr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use reqwest::{Client, StatusCode};
use serde::Deserialize;
use tokio::time::sleep;

use super::{
    args::AwaitArgs,
    outcome::{Failure, block_on, print},
};
use crate::system::http_client::{self, causes};

/// Where the kubelet puts a pod's credentials (Kubernetes, "Accessing the Kubernetes API from a Pod").
const CREDENTIALS: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Time between requests.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum size of a response.
const MAX_RESPONSE: usize = 1024 * 1024;

/// Namespace and name of a DaemonSet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonSetName {
    namespace: String,
    name: String,
}

impl FromStr for DaemonSetName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_name = |name: &str| {
            let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
            name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(allowed)
        };
        match text.split_once('/') {
            Some((namespace, name)) if is_name(namespace) && is_name(name) => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(format!(
                "invalid DaemonSet {text:?}: expected NAMESPACE/NAME, e.g. mesh-observer/mesh-observer-detach"
            )),
        }
    }
}

impl Display for DaemonSetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Waits until every pod is ready.
///
/// # Errors
/// Some are not in time, or this is not a pod.
pub fn run(args: &AwaitArgs) -> Result<(), Failure> {
    let api = Api::in_cluster().map_err(Failure::could_not_run)?;
    let waited = async {
        let pods = ready(&api, &args.daemon_set, args.timeout.0, POLL_INTERVAL).await?;
        print(format!("DaemonSet {}: {pods} pods are ready\n", args.daemon_set).as_bytes()).ok();
        Ok(())
    };
    block_on(waited)
}

/// The API server, as pods reach it.
struct Api {
    client: Client,
    /// `https://HOST:PORT`
    url: String,
    /// File with the token, which the kubelet renews.
    token: PathBuf,
}

impl Api {
    fn in_cluster() -> Result<Self> {
        let variable = |name| env::var(name).ok().filter(|value| !value.is_empty());
        let address = variable("KUBERNETES_SERVICE_HOST").zip(variable("KUBERNETES_SERVICE_PORT"));
        let (host, port) = address.context("KUBERNETES_SERVICE_HOST is not set: run this command in a pod")?;
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let directory = Path::new(CREDENTIALS);
        let client = http_client::direct(true, Some(&directory.join("ca.crt")), REQUEST_TIMEOUT)?;
        Ok(Self { client, url: format!("https://{host}:{port}"), token: directory.join("token") })
    }

    async fn daemon_set(&self, DaemonSetName { namespace, name }: &DaemonSetName) -> Result<DaemonSet> {
        let token = fs::read_to_string(&self.token).with_context(|| {
            format!("{}: cannot read; the pod needs automountServiceAccountToken", self.token.display())
        })?;
        let url = format!("{}/apis/apps/v1/namespaces/{namespace}/daemonsets/{name}", self.url);
        let mut response = match self.client.get(url).bearer_auth(token.trim()).send().await {
            Ok(response) => response,
            Err(error) => bail!("the API server does not answer: {}", causes(&error)),
        };
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => bail!("there is no such DaemonSet"),
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                bail!("the API server answers {status}; the service account needs the verb get on it")
            }
            status => bail!("the API server answers {status}"),
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| anyhow::Error::msg(causes(&error)))? {
            ensure!(body.len() + chunk.len() <= MAX_RESPONSE, "the API server's answer exceeds {MAX_RESPONSE} bytes");
            body.extend_from_slice(&chunk);
        }
        serde_json::from_slice(&body).context("the API server's answer is not a DaemonSet")
    }
}

/// Waits until every pod is ready; returns their number. Any answer may change until the time is over: permissions and
/// objects take effect a moment after they are made.
async fn ready(api: &Api, name: &DaemonSetName, timeout: Duration, poll_interval: Duration) -> Result<u64> {
    let deadline = Instant::now() + timeout;
    loop {
        let missing = match api.daemon_set(name).await.and_then(|daemon_set| daemon_set.ready()) {
            Ok(pods) => return Ok(pods),
            Err(missing) => missing,
        };
        if Instant::now() + poll_interval >= deadline {
            return Err(missing).with_context(|| {
                format!("DaemonSet {name} is not ready after {timeout:?}; `kubectl describe` names the nodes that are missing")
            });
        }
        sleep(poll_interval).await;
    }
}

/// The fields of a DaemonSet that matter here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DaemonSet {
    metadata: Metadata,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    generation: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    observed_generation: u64,
    desired_number_scheduled: u64,
    updated_number_scheduled: u64,
    number_ready: u64,
}

impl DaemonSet {
    /// Returns the number of pods if all are there and ready.
    fn ready(&self) -> Result<u64> {
        let Status { observed_generation, desired_number_scheduled: desired, .. } = self.status;
        ensure!(observed_generation >= self.metadata.generation, "the controller has not seen it yet");
        let ready = self.status.number_ready.min(self.status.updated_number_scheduled);
        ensure!(ready >= desired, "{ready} of {desired} pods are ready");
        Ok(desired)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    fn status(observed: u64, desired: u64, updated: u64, ready: u64) -> String {
        format!(
            r#"{{"metadata":{{"generation":2,"name":"x"}},"status":{{"observedGeneration":{observed},
            "desiredNumberScheduled":{desired},"updatedNumberScheduled":{updated},"numberReady":{ready}}}}}"#
        )
    }

    #[test]
    fn every_pod_of_the_newest_generation_must_be_ready() {
        let ready = |text: &str| {
            let daemon_set: DaemonSet = serde_json::from_str(text).unwrap();
            daemon_set.ready().map_err(|error| error.to_string())
        };
        assert_eq!(ready(&status(2, 3, 3, 3)), Ok(3));
        assert_eq!(ready(&status(2, 0, 0, 0)), Ok(0));
        assert_eq!(ready(&status(2, 3, 3, 2)), Err("2 of 3 pods are ready".to_owned()));
        assert_eq!(ready(&status(2, 3, 1, 3)), Err("1 of 3 pods are ready".to_owned()));
        assert_eq!(ready(&status(1, 3, 3, 3)), Err("the controller has not seen it yet".to_owned()));
        assert_eq!(ready(r#"{"metadata":{"generation":1}}"#), Err("the controller has not seen it yet".to_owned()));
    }

    /// Gives each of these answers once, then the last for good; returns the requests' heads with the result.
    async fn waited(answers: &[(u16, String)], timeout: Duration) -> (Result<u64, String>, Vec<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut token = tempfile::NamedTempFile::new().unwrap();
        token.write_all(b"secret\n").unwrap();
        let api = Api {
            client: http_client::direct(false, None, REQUEST_TIMEOUT).unwrap(),
            url: format!("http://{}", listener.local_addr().unwrap()),
            token: token.path().to_owned(),
        };
        let mut requests = Vec::new();
        let serve = async {
            for number in 0.. {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = vec![0; 4096];
                let length = stream.read(&mut head).await.unwrap();
                requests.push(String::from_utf8_lossy(&head[..length]).into_owned());
                let (status, body) = &answers[number.min(answers.len() - 1)];
                let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                // The client may have given up.
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        };
        let name = "shop/observer-detach".parse().unwrap();
        let result = tokio::select! {
            result = ready(&api, &name, timeout, Duration::from_millis(20)) => result,
            () = serve => unreachable!("serves for good"),
        };
        (result.map_err(|error| format!("{error:#}")), requests)
    }

    #[tokio::test]
    async fn any_answer_may_change_until_all_are_ready() {
        let answers = [
            (403, String::new()),
            (404, String::new()),
            (500, String::new()),
            (200, "nonsense".to_owned()),
            (200, status(2, 3, 3, 1)),
            (200, status(2, 3, 3, 3)),
        ];
        let (result, requests) = waited(&answers, Duration::from_mins(1)).await;
        assert_eq!((result, requests.len()), (Ok(3), 6));
        let head = requests[0].to_lowercase();
        assert!(head.starts_with("get /apis/apps/v1/namespaces/shop/daemonsets/observer-detach "), "{head}");
        assert!(head.contains("authorization: bearer secret\r\n"), "{head}");
    }

    #[tokio::test]
    async fn the_last_answer_is_the_error_when_the_time_is_over() {
        for (answer, reason) in [
            ((200, status(2, 3, 3, 1)), "1 of 3 pods are ready"),
            ((403, String::new()), "needs the verb get"),
            ((200, "x".repeat(MAX_RESPONSE + 1)), "exceeds"),
        ] {
            let (result, _) = waited(&[answer], Duration::from_millis(300)).await;
            let error = result.unwrap_err();
            assert!(error.contains("shop/observer-detach is not ready after") && error.contains(reason), "{error}");
        }
    }
}
