//! A real Kubernetes API: etcd and kube-apiserver on loopback, without nodes.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rcgen::KeyPair;
use serde_json::{Value, json};

use crate::{net::finish, pki::Authority, tools, wait::wait_until};

const START_TIMEOUT: Duration = Duration::from_secs(120);
/// Token of an administrator.
const ADMIN: &str = "admin-token";
/// Token of a user that may do what a ClusterRole of the test grants.
const OBSERVER: &str = "observer-token";
/// Name of that user.
pub const OBSERVER_USER: &str = "observer";

/// A running API; its processes are killed when it is dropped.
pub struct ApiServer {
    server: Option<Child>,
    etcd: Child,
    port: u16,
    etcd_port: u16,
    directory: PathBuf,
}

impl ApiServer {
    /// Starts it, with all that it keeps in `directory`, and waits until it is ready.
    pub fn start(directory: &Path) -> Result<Self> {
        let directory = directory.join("api");
        fs::create_dir_all(&directory)?;
        let authority = Authority::new()?;
        let identity = authority.server("kubernetes")?;
        // The key that signs the tokens of service accounts, which nobody uses here.
        let signing = KeyPair::generate().context("key")?;
        let tokens = format!("{ADMIN},admin,1,system:masters\n{OBSERVER},{OBSERVER_USER},2\n");
        for (name, text) in [
            ("ca.crt", authority.certificate()),
            ("tls.crt", &identity.certificate),
            ("tls.key", &identity.key),
            ("sa.key", &signing.serialize_pem()),
            ("sa.pub", &signing.public_key_pem()),
            ("tokens.csv", &tokens),
        ] {
            fs::write(directory.join(name), text)?;
        }
        let (etcd_port, peers, port) = (free_port()?, free_port()?, free_port()?);
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let etcd = spawn(
            Command::new(tools::server("etcd")?)
                .arg("--data-dir")
                .arg(directory.join("etcd"))
                .args(["--listen-client-urls", &url(etcd_port), "--advertise-client-urls", &url(etcd_port)])
                .args(["--listen-peer-urls", &url(peers), "--initial-advertise-peer-urls", &url(peers)])
                .args(["--initial-cluster", &format!("default={}", url(peers)), "--unsafe-no-fsync"]),
            &directory.join("etcd.log"),
        )?;
        let mut api = Self { server: None, etcd, port, etcd_port, directory };
        api.resume()?;
        Ok(api)
    }

    /// Starts the API server, which keeps what it knew.
    pub fn resume(&mut self) -> Result<()> {
        let file = |name: &str| self.directory.join(name).display().to_string();
        let server = spawn(
            Command::new(tools::cluster("kube-apiserver")?).args([
                format!("--etcd-servers=http://127.0.0.1:{}", self.etcd_port),
                format!("--secure-port={}", self.port),
                "--bind-address=127.0.0.1".to_owned(),
                "--advertise-address=192.0.2.1".to_owned(),
                "--endpoint-reconciler-type=none".to_owned(),
                // The virtual addresses of the mesh's services.
                "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
                format!("--tls-cert-file={}", file("tls.crt")),
                format!("--tls-private-key-file={}", file("tls.key")),
                format!("--token-auth-file={}", file("tokens.csv")),
                "--service-account-issuer=https://kubernetes".to_owned(),
                format!("--service-account-key-file={}", file("sa.pub")),
                format!("--service-account-signing-key-file={}", file("sa.key")),
                "--authorization-mode=RBAC".to_owned(),
                "--disable-admission-plugins=ServiceAccount".to_owned(),
                "--profiling=false".to_owned(),
            ]),
            &self.directory.join("kube-apiserver.log"),
        )?;
        self.server = Some(server);
        let log = self.directory.join("kube-apiserver.log");
        wait_until("the API server is ready", START_TIMEOUT, || {
            let answer = self.get("/readyz").with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
            ensure!(answer == "ok", "{answer}");
            Ok(())
        })
    }

    /// Kills the API server; etcd keeps what it knew.
    pub fn kill(&mut self) -> Result<()> {
        let mut server = self.server.take().context("it runs")?;
        server.kill()?;
        server.wait()?;
        Ok(())
    }

    /// Writes a kubeconfig of the user that the test's ClusterRole is for, and returns its path.
    pub fn kubeconfig(&self) -> Result<PathBuf> {
        let path = self.directory.join("kubeconfig");
        let token = self.directory.join("token");
        fs::write(&token, OBSERVER)?;
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {
                "server": format!("https://127.0.0.1:{}", self.port), "tls-server-name": "kubernetes",
                "certificate-authority": self.directory.join("ca.crt"),
            }}],
            "users": [{"name": "test", "user": {"tokenFile": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        fs::write(&path, config.to_string())?;
        Ok(path)
    }

    /// Returns the answer to a GET.
    pub fn get(&self, path: &str) -> Result<String> {
        self.curl("GET", path, None)
    }

    /// Creates an object in a collection.
    pub fn create(&self, collection: &str, object: &Value) -> Result<()> {
        self.curl("POST", collection, Some(&object.to_string())).map(drop)
    }

    /// Creates many objects of a collection.
    pub fn create_all(&self, collection: &str, objects: &[Value]) -> Result<()> {
        // One curl, so that connection and process are paid for once.
        let mut input = String::new();
        for (number, object) in objects.iter().enumerate() {
            let file = self.directory.join(format!("object-{number}.json"));
            fs::write(&file, object.to_string())?;
            let next = if number == 0 { "" } else { "next\n" };
            input.push_str(&format!(
                "{next}url = \"{}\"\ndata = \"@{}\"\n{}",
                self.url(collection),
                file.display(),
                self.options()
            ));
        }
        let output = finish(Command::new(tools::require("curl")?).args(["-K", "-"]), &input);
        for number in 0..objects.len() {
            fs::remove_file(self.directory.join(format!("object-{number}.json")))?;
        }
        output.map(drop)
    }

    /// Replaces an object or its subresource.
    pub fn replace(&self, path: &str, object: &Value) -> Result<()> {
        self.curl("PUT", path, Some(&object.to_string())).map(drop)
    }

    /// Deletes an object.
    pub fn delete(&self, path: &str) -> Result<()> {
        self.curl("DELETE", path, None).map(drop)
    }

    /// Creates a running pod of a Deployment, in namespace `default`.
    pub fn pod(&self, workload: &str, pod: &str, address: &str, labels: &Value) -> Result<()> {
        let set = pod.rsplit_once('-').map_or(pod, |(set, _)| set);
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": pod, "generateName": format!("{set}-"), "labels": labels,
                "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": set, "controller": true,
                    "uid": "00000000-0000-0000-0000-000000000001",
                }],
            },
            "spec": {
                "serviceAccountName": workload, "nodeName": "test-node",
                "containers": [{"name": "app", "image": "none"}],
            },
        });
        self.create("/api/v1/namespaces/default/pods", &object)?;
        let mut made: Value = serde_json::from_str(&self.get(&format!("/api/v1/namespaces/default/pods/{pod}"))?)?;
        made["status"] = json!({
            "phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
            "hostIP": "192.0.2.10", "hostIPs": [{"ip": "192.0.2.10"}],
        });
        self.replace(&format!("/api/v1/namespaces/default/pods/{pod}/status"), &made)
    }

    fn curl(&self, method: &str, path: &str, body: Option<&str>) -> Result<String> {
        let mut command = Command::new(tools::require("curl")?);
        command.args(["--max-time", "20", "-K", "-", "-X", method, &self.url(path)]);
        let file = self.directory.join("body.json");
        if let Some(body) = body {
            fs::write(&file, body)?;
            command.args(["--data-binary", &format!("@{}", file.display())]);
        }
        finish(&mut command, &self.options())
    }

    fn url(&self, path: &str) -> String {
        format!("https://kubernetes:{}{path}", self.port)
    }

    /// Returns curl's options for one URL.
    fn options(&self) -> String {
        format!(
            "silent\nshow-error\nfail-with-body\ncacert = \"{}\"\nresolve = \"kubernetes:{}:127.0.0.1\"\nheader = \"authorization: Bearer {ADMIN}\"\n\
             header = \"content-type: application/json\"\n",
            self.directory.join("ca.crt").display(),
            self.port
        )
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        for child in self.server.iter_mut().chain([&mut self.etcd]) {
            // It may have ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn spawn(command: &mut Command, log: &Path) -> Result<Child> {
    let log = File::create(log)?;
    let program = command.get_program().to_owned();
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.spawn().with_context(|| format!("{} cannot be started", program.display()))
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
