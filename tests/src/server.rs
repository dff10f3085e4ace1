//! Real servers written in Go that expose their own resource usage, in place of a control plane.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    mesh::{Mesh, Workload, link_or_copy},
    observer::get,
    tools,
};

/// Limits the time until a server answers.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(20);
/// Port of etcd's clients and `/metrics`.
const ETCD_PORT: u16 = 2379;

/// A running server; killed when dropped.
#[derive(Debug)]
pub struct Server {
    process: Child,
    executable: String,
    page: SocketAddr,
    inside: Option<Arc<Workload>>,
}

impl Server {
    /// Prometheus on this machine's loopback, which scrapes itself every second.
    pub fn prometheus(mesh: &Mesh, page: SocketAddr) -> Result<Self> {
        let directory = mesh.directory();
        let configuration = directory.join("prometheus.yaml");
        let job = format!("scrape_configs: [{{job_name: own, static_configs: [{{targets: [\"{page}\"]}}]}}]\n");
        fs::write(&configuration, format!("global: {{scrape_interval: 1s}}\n{job}"))?;
        let (program, executable) = program(mesh, "prometheus")?;
        let mut command = Command::new(program);
        command.arg(format!("--config.file={}", configuration.display()));
        command.arg(format!("--storage.tsdb.path={}", directory.join("prometheus-data").display()));
        command.arg(format!("--web.listen-address={page}"));
        Self::start(mesh, command, executable, page, None)
    }

    /// Starts etcd as a pod's application, on the pod's loopback.
    pub fn etcd(mesh: &Mesh, workload: &Arc<Workload>) -> Result<Self> {
        let data = mesh.directory().join("etcd-data");
        if data.exists() {
            fs::remove_dir_all(&data)?;
        }
        let (program, executable) = program(mesh, "etcd")?;
        let mut command = workload.command(&program.display().to_string())?;
        command.env_clear().env("POD_NAME", &workload.pod).env("POD_NAMESPACE", &workload.namespace);
        command.arg("--data-dir").arg(data);
        command.args(["--listen-client-urls", &format!("http://127.0.0.1:{ETCD_PORT}")]);
        command.args(["--advertise-client-urls", &format!("http://127.0.0.1:{ETCD_PORT}")]);
        command.args(["--listen-peer-urls", "http://127.0.0.1:2380"]);
        let page = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), ETCD_PORT);
        Self::start(mesh, command, executable, page, Some(workload.clone()))
    }

    fn start(
        mesh: &Mesh,
        mut command: Command,
        executable: String,
        page: SocketAddr,
        inside: Option<Arc<Workload>>,
    ) -> Result<Self> {
        let log = mesh.directory().join(format!("{executable}.log"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?);
        let process = command.spawn().with_context(|| executable.clone())?;
        let mut server = Self { process, executable, page, inside };
        let end = Instant::now() + RESPONSE_TIMEOUT;
        loop {
            if let Some(status) = server.process.try_wait()? {
                bail!("{} ended with {status}:\n{}", server.executable, fs::read_to_string(&log)?);
            }
            match server.own_figures() {
                Ok(_) => return Ok(server),
                Err(error) if Instant::now() > end => return Err(error.context(fs::read_to_string(&log)?)),
                Err(_) => sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Returns the name of its executable, which no other process has.
    pub fn executable(&self) -> &str {
        &self.executable
    }

    /// Returns the address of its `/metrics`, in its own network namespace.
    pub fn metrics_address(&self) -> SocketAddr {
        self.page
    }

    /// Reads its `/metrics` now.
    pub fn own_figures(&self) -> Result<Page> {
        self.own_page().map(Page)
    }

    /// Reads its exposition as text.
    pub fn own_page(&self) -> Result<String> {
        let fetch = || get(self.page, "/metrics");
        let (status, text) = match &self.inside {
            Some(workload) => workload.net.enter(fetch)??,
            None => fetch()?,
        };
        ensure!(status == 200, "{} answered {status}", self.page);
        Ok(text)
    }

    /// Ends it without warning.
    pub fn kill(mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An exposition, read for single values.
pub struct Page(String);

impl Page {
    /// Returns the value of a series without labels.
    pub fn value(&self, name: &str) -> Result<f64> {
        let value = self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.and_then(|value| value.trim().parse().ok()).with_context(|| format!("the page has no {name}"))
    }
}

/// Returns a program under a name that no other process has.
fn program(mesh: &Mesh, name: &str) -> Result<(PathBuf, String)> {
    let executable = format!("{name}-{}", mesh.name());
    let path = mesh.directory().join(&executable);
    if !path.exists() {
        link_or_copy(&tools::server(name)?, &path)?;
    }
    Ok((path, executable))
}
