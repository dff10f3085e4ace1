//! The path that is measured: a client's pod, its sidecar, the server's sidecar, an application; observed or not.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use harness::{
    mesh::{Family, Mesh, Protocol, Service},
    observer::Observer,
    sidecar::{Options, Sidecar},
};

use super::{
    app::{self, App},
    load::{self, Answers},
};

/// Load after every change, before anything is measured.
const WARM_UP: Duration = Duration::from_secs(1);
/// Body of an ordinary answer.
pub(super) const BODY: u64 = 1024;

/// Which sidecars are observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Observed {
    Both,
    Client,
    Server,
}

/// A running path; dropped in this order, the mesh last.
pub(super) struct Stage {
    observer: Option<Observer>,
    pub(super) app: App,
    pub(super) client: Sidecar,
    pub(super) server: Sidecar,
    web: Service,
    mesh: Mesh,
}

impl Stage {
    /// Starts it, unobserved.
    pub(super) fn new() -> Result<Self> {
        let mut mesh = Mesh::new()?;
        let (client, server) = (mesh.workload("client")?, mesh.workload("server")?);
        let web = mesh.service("web", 80, &server, 8080, Protocol::Http)?;
        let app = App::start(&server, 8080)?;
        // Names of their own, so that an observer can be told to see one of the two.
        let options = |role: &str| Options { executable: Some(name(&mesh, role)), ..Options::default() };
        let server = Sidecar::start(&mesh, &server, options("server"))?;
        let client = Sidecar::start(&mesh, &client, options("client"))?;
        Ok(Self { observer: None, app, client, server, web, mesh })
    }

    /// Starts the observer, unless it runs; connections from before are gone when this returns.
    pub(super) fn observe(&mut self, whom: Observed) -> Result<()> {
        if self.observer.is_none() {
            let names: Vec<String> = whom.roles().iter().map(|role| name(&self.mesh, role)).collect();
            let arguments: Vec<&str> = names.iter().flat_map(|name| ["--sidecar-exe", name]).collect();
            let tables = self.mesh.observer_tables();
            self.observer = Some(start_observer(&self.mesh, &tables, names.len(), &arguments)?);
        }
        self.warm_up()
    }

    /// Stops it, if it runs.
    pub(super) fn unobserve(&mut self) -> Result<()> {
        self.observer.take().map_or(Ok(()), Observer::stop)?;
        self.warm_up()
    }

    /// The observer, which must run.
    pub(super) fn observer(&self) -> Result<&Observer> {
        self.observer.as_ref().context("nothing is observed now")
    }

    /// As many requests as go through, for a while; `padded` makes each longer by so many bytes. If it is observed, the
    /// observer must have counted them.
    pub(super) fn saturate(&self, padded: usize, time: Duration) -> Result<Answers> {
        let before = self.counted()?;
        let answers = load::saturate(&mut self.command("wrk")?, &self.url(BODY), padded, time)?;
        self.check_counted(before, answers.requests)?;
        Ok(answers)
    }

    /// As [`Stage::saturate`], while the observer is left alone.
    pub(super) fn press(&self, time: Duration) -> Result<()> {
        load::saturate(&mut self.command("wrk")?, &self.url(BODY), 0, time).map(drop)
    }

    /// So many requests a second; the 99th percentile in milliseconds.
    pub(super) fn pace(&self, a_second: f64, time: Duration) -> Result<f64> {
        let log = self.mesh.directory().join("h2load.log");
        load::pace(&mut self.command("h2load")?, &self.url(BODY), a_second, time, &log)
    }

    /// A download; bytes a second.
    pub(super) fn download(&self, length: u64) -> Result<f64> {
        load::download(&mut self.command("curl")?, &self.url(length), length)
    }

    fn warm_up(&self) -> Result<()> {
        self.app.renew_connections();
        load::saturate(&mut self.command("wrk")?, &self.url(BODY), 0, WARM_UP).map(drop)
    }

    fn command(&self, program: &str) -> Result<Command> {
        self.client.workload().command(program)
    }

    fn url(&self, length: u64) -> String {
        self.web.url(Family::V4, &app::path(length))
    }

    fn counted(&self) -> Result<f64> {
        self.observer.as_ref().map_or(Ok(0.0), |observer| observer.own("istio_requests_total", &[]))
    }

    fn check_counted(&self, before: f64, requests: f64) -> Result<()> {
        let counted = self.counted()? - before;
        ensure!(
            self.observer.is_none() || counted >= requests * 0.99,
            "the observer counted {counted} of {requests} requests: what it costs would be too little"
        );
        Ok(())
    }
}

impl Observed {
    fn roles(self) -> &'static [&'static str] {
        match self {
            Self::Both => &["client", "server"],
            Self::Client => &["client"],
            Self::Server => &["server"],
        }
    }
}

/// Starts an observer in a cgroup of the mesh's, which ends it with the mesh if this run crashes.
pub(super) fn start_observer(mesh: &Mesh, tables: &str, sidecars: usize, arguments: &[&str]) -> Result<Observer> {
    let observer = Observer::start_with(mesh.directory(), tables, sidecars, arguments)?;
    let cgroup: PathBuf = mesh.cgroup().join("observer");
    fs::create_dir_all(&cgroup)
        .and_then(|()| fs::write(cgroup.join("cgroup.procs"), observer.pid().to_string()))
        .with_context(|| format!("{}: cannot take the observer", cgroup.display()))?;
    Ok(observer)
}

fn name(mesh: &Mesh, role: &str) -> String {
    format!("{}-{role}", mesh.executable())
}
