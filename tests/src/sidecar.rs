//! A sidecar or gateway: Istio's redirection, real Envoy as user 1337 in a cgroup of its own, the injector's
//! environment.

use std::{
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use crate::{
    apps::raw::Connection,
    cgroup,
    envoy::{Files, bootstrap},
    mesh::{Mesh, Service, Workload},
    net::User,
    pki::{Authority, Identity, TRUST_DOMAIN},
    redirect::{Interception, PROXY_USER, install},
};

pub mod options;

pub use crate::redirect::Ports;
pub use options::{Inbound, Kind, NodeId, Options};

use options::node_id;

/// Limits how long Envoy takes to be ready, in an emulated machine too.
const READY_TIMEOUT: Duration = Duration::from_secs(120);

/// A running proxy; killed when dropped.
#[derive(Debug)]
pub struct Sidecar {
    workload: Arc<Workload>,
    options: Options,
    directory: PathBuf,
    program: PathBuf,
    cgroup: PathBuf,
    containers: u32,
    process: Child,
    agent: Option<Child>,
}

impl Sidecar {
    /// Installs the redirection, writes the configuration for the services declared so far, starts Envoy and waits
    /// until it is ready.
    pub fn start(mesh: &Mesh, workload: &Arc<Workload>, options: Options) -> Result<Self> {
        let directory = mesh.directory().join(&workload.name);
        fs::create_dir_all(&directory).with_context(|| format!("{}", directory.display()))?;
        install(&workload.net, options.interception, options.ports, &options.exclusions)?;
        let own_name = mesh.directory().join(mesh.executable());
        let program = match &options.executable {
            Some(name) => {
                let program = directory.join(name);
                if !program.exists() {
                    fs::hard_link(&own_name, &program)?;
                }
                program
            }
            None => own_name,
        };
        Self::start_alone(workload, options, directory, program, mesh.authority(), mesh.services())
    }

    /// Starts a sidecar without a mesh, in an existing directory and with an existing redirection.
    pub fn start_alone(
        workload: &Arc<Workload>,
        options: Options,
        directory: PathBuf,
        program: PathBuf,
        authority: &Authority,
        services: &[Service],
    ) -> Result<Self> {
        let [certificate, key, door_certificate, door_key] =
            ["certificate.pem", "key.pem", "listener-certificate.pem", "listener-key.pem"]
                .map(|name| directory.join(name));
        write_identity(&authority.workload(&workload.spiffe())?, &certificate, &key)?;
        write_identity(&authority.server(&format!("{}.example", workload.name))?, &door_certificate, &door_key)?;
        let root = directory.join("root.pem");
        fs::write(&root, authority.certificate())?;
        let log = directory.join("access.log");
        File::create(&log)?;
        let files = Files {
            root: &root,
            certificate: &certificate,
            key: &key,
            door_certificate: &door_certificate,
            door_key: &door_key,
            log: &log,
        };
        let configuration = bootstrap(workload, services, &options, &files);
        fs::write(directory.join("envoy.json"), serde_json::to_vec_pretty(&configuration)?)?;
        for entry in fs::read_dir(&directory)? {
            std::os::unix::fs::chown(entry?.path(), Some(PROXY_USER), Some(PROXY_USER))?;
        }
        let cgroup = options.cgroup.clone().unwrap_or_else(|| workload.container("istio-proxy"));
        let agent = options.agent.map(|role| start_agent(workload, &options, role, &directory, &cgroup)).transpose()?;
        let process = spawn(workload, &options, &directory, &program, &cgroup)?;
        let workload = Arc::clone(workload);
        let mut sidecar = Self { workload, options, directory, program, cgroup, containers: 1, process, agent };
        sidecar.wait_ready()?;
        Ok(sidecar)
    }

    /// Returns the pod it belongs to.
    pub fn workload(&self) -> &Arc<Workload> {
        &self.workload
    }

    /// Returns its access log.
    pub fn log(&self) -> PathBuf {
        self.directory.join("access.log")
    }

    /// Returns its cgroup v2 directory.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Returns Envoy's process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Moves Envoy to another cgroup v2 directory, which is made; sockets that are open stay where they were made.
    pub fn move_to(&mut self, name: &str) -> Result<()> {
        self.cgroup = self.workload.container(name);
        fs::create_dir_all(&self.cgroup)?;
        fs::write(self.cgroup.join("cgroup.procs"), self.pid().to_string()).context("Envoy cannot be moved")
    }

    /// Sends SIGTERM to Envoy and waits for its end.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        // SAFETY: no pointers; the child is not yet reaped, so the id is its own.
        unsafe { libc::kill(self.process.id().cast_signed(), libc::SIGTERM) };
        self.process.wait().context("Envoy cannot be awaited")
    }

    /// Kills Envoy.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill().context("Envoy cannot be killed")?;
        self.process.wait().context("Envoy cannot be awaited").map(|_| ())
    }

    /// Starts Envoy again after [`Sidecar::stop`] or [`Sidecar::kill`], in the same cgroup.
    pub fn start_again(&mut self) -> Result<()> {
        self.process = spawn(&self.workload, &self.options, &self.directory, &self.program, &self.cgroup)?;
        self.wait_ready()
    }

    /// Restarts the container: removes the cgroup with all its processes and starts Envoy in a new one.
    pub fn replace_container(&mut self) -> Result<()> {
        self.remove_container()?;
        self.cgroup = self.workload.container(&format!("istio-proxy-{}", self.containers));
        self.containers += 1;
        fs::create_dir_all(&self.cgroup)?;
        self.start_again()
    }

    /// Removes its cgroup with every process in it.
    pub fn remove_container(&mut self) -> Result<()> {
        cgroup::remove(&self.cgroup)?;
        self.process.wait().context("Envoy cannot be awaited").map(|_| ())
    }

    /// Returns a command that runs as pilot-agent does: in the sidecar's namespace and cgroup, as its user.
    pub fn agent_command(&self, program: &str) -> Result<Command> {
        let mut command = Command::new(program);
        self.workload.net.place(&mut command, &self.cgroup, Some(proxy_user(&self.options)))?;
        Ok(command)
    }

    /// Returns the response body of a path of Envoy's admin interface, e.g. `/stats?format=json`.
    pub fn admin(&self, path: &str) -> Result<String> {
        let (status, body) = self.request(path)?;
        ensure!(status == 200, "Envoy's admin interface answered {status} to {path}: {body}");
        Ok(body)
    }

    /// Returns the value of one of Envoy's counters or gauges, 0 if it does not exist.
    pub fn stat(&self, name: &str) -> Result<u64> {
        let text = self.admin("/stats")?;
        Ok(text
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find(|(found, _)| *found == name)
            .and_then(|(_, value)| value.parse().ok())
            .unwrap_or(0))
    }

    fn request(&self, path: &str) -> Result<(u16, String)> {
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, 15000));
        let mut connection = Connection::open(&self.workload, admin)?;
        connection.send(format!("GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n"))?;
        let response = connection.receive_response().context("Envoy's admin interface")?;
        Ok((response.status, String::from_utf8_lossy(&response.body).into_owned()))
    }

    fn wait_ready(&mut self) -> Result<()> {
        let end = Instant::now() + READY_TIMEOUT;
        loop {
            if let Some(status) = self.process.try_wait()? {
                let log = fs::read_to_string(self.directory.join("envoy.log")).unwrap_or_default();
                bail!("Envoy of {} ended at its start with {status}: {}", self.workload.name, log.trim());
            }
            if self.request("/ready").is_ok_and(|(status, _)| status == 200) {
                return Ok(());
            }
            ensure!(Instant::now() < end, "Envoy of {} is not ready after {READY_TIMEOUT:?}", self.workload.name);
            sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        // It may have ended already.
        for process in [Some(&mut self.process), self.agent.as_mut()].into_iter().flatten() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Starts a process with pilot-agent's command line: a shell whose script waits until it is killed.
fn start_agent(workload: &Workload, options: &Options, role: &str, directory: &Path, cgroup: &Path) -> Result<Child> {
    fs::write(directory.join("proxy"), "read never\n")?;
    let mut command = Command::new("/bin/sh");
    command
        .arg0("/usr/local/bin/pilot-agent")
        .args(["proxy", role])
        .env_clear()
        .envs(environment(workload, options))
        .current_dir(directory)
        .stdin(Stdio::piped());
    workload.net.place(&mut command, cgroup, None)?;
    command.spawn().context("a pilot-agent cannot be started")
}

fn spawn(workload: &Workload, options: &Options, directory: &Path, program: &Path, cgroup: &Path) -> Result<Child> {
    let Workload { name, namespace, .. } = workload;
    let log = File::options().create(true).append(true).open(directory.join("envoy.log"))?;
    let mut command = Command::new(options.loader.as_deref().unwrap_or(program));
    command
        .args(options.loader.as_ref().map(|_| program))
        .arg("-c")
        .arg(directory.join("envoy.json"))
        .args(["--drain-time-s", "45", "--drain-strategy", "immediate", "--parent-shutdown-time-s", "60"])
        .args(["--local-address-ip-version", "v4", "--file-flush-interval-msec", "20", "--log-level", "warning"])
        .args(["--disable-hot-restart", "--allow-unknown-static-fields"])
        .args(["--concurrency", &options.concurrency.to_string()])
        .env_clear()
        .envs(environment(workload, options))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    if options.node_id == NodeId::CommandLine {
        let cluster = format!("{name}.{namespace}");
        command.args(["--service-cluster", &cluster, "--service-node", &node_id(workload, options)]);
    }
    workload.net.place(&mut command, cgroup, Some(proxy_user(options)))?;
    command.spawn().with_context(|| format!("Envoy of {name} cannot be started"))
}

fn proxy_user(options: &Options) -> User {
    User { id: PROXY_USER, network_administrator: options.interception == Interception::Tproxy }
}

/// Returns the environment that the injector (or a gateway's chart) sets and pilot-agent passes on to Envoy.
fn environment(workload: &Workload, options: &Options) -> Vec<(&'static str, String)> {
    let workload = options.claimed.as_deref().unwrap_or(workload);
    let Workload { name, namespace, pod, ipv4, ipv6, .. } = workload;
    let addresses: [IpAddr; 2] = [(*ipv4).into(), (*ipv6).into()];
    let labels = json!({
        "app": name,
        "version": "v1",
        "pod-template-hash": "7c9f8",
        "security.istio.io/tlsMode": "istio",
        "service.istio.io/canonical-name": name,
        "service.istio.io/canonical-revision": "v1",
    });
    vec![
        ("PATH", "/usr/local/bin:/usr/bin:/bin".to_owned()),
        ("JWT_POLICY", "third-party-jwt".to_owned()),
        ("PILOT_CERT_PROVIDER", "istiod".to_owned()),
        ("CA_ADDR", "istiod.istio-system.svc:15012".to_owned()),
        ("POD_NAME", pod.clone()),
        ("POD_NAMESPACE", namespace.clone()),
        ("INSTANCE_IP", ipv4.to_string()),
        ("INSTANCE_IPS", addresses.map(|ip| ip.to_string()).join(",")),
        ("SERVICE_ACCOUNT", workload.account().to_owned()),
        ("HOST_IP", "10.77.0.1".to_owned()),
        ("ISTIO_META_CLUSTER_ID", "Kubernetes".to_owned()),
        ("ISTIO_META_NODE_NAME", "test-node".to_owned()),
        ("NODE_NAME", "test-node".to_owned()),
        (
            "ISTIO_META_INTERCEPTION_MODE",
            if options.interception == Interception::Tproxy { "TPROXY" } else { "REDIRECT" }.to_owned(),
        ),
        ("ISTIO_META_WORKLOAD_NAME", name.clone()),
        ("ISTIO_META_OWNER", format!("kubernetes://apis/apps/v1/namespaces/{namespace}/deployments/{name}")),
        ("ISTIO_META_MESH_ID", TRUST_DOMAIN.to_owned()),
        ("TRUST_DOMAIN", TRUST_DOMAIN.to_owned()),
        ("ISTIO_METAJSON_LABELS", labels.to_string()),
        ("ISTIO_CPU_LIMIT", options.concurrency.to_string()),
    ]
}

fn write_identity(identity: &Identity, certificate: &Path, key: &Path) -> Result<()> {
    fs::write(certificate, &identity.certificate)?;
    fs::write(key, &identity.key).context("key")
}
