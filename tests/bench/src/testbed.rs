//! The testbed: a client's pod, its sidecar, the server's sidecar, an application; observed or not.

use std::{
    cell::Cell,
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use harness::{
    mesh::{Family, Mesh, Service},
    observer::Observer,
    sidecar::{Options, Sidecar},
    tools,
};

use crate::{
    app,
    load::{self, Answers},
    protocol::{Application, Protocol},
};

/// Duration of the load between a change and a measurement.
const WARM_UP: Duration = Duration::from_secs(1);

/// The observed sidecars.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Observed {
    Both,
    Client,
    Server,
}

/// One of the two sidecars.
#[derive(Clone, Copy)]
pub(crate) struct Side {
    pub(crate) name: &'static str,
    pub(crate) reporter: &'static str,
    pub(crate) observed: Observed,
    /// Envoy's name for the direction of its traffic with its application.
    pub(crate) direction: &'static str,
}

pub(crate) const SIDES: [Side; 2] = [
    Side { name: "client", reporter: "source", observed: Observed::Client, direction: "outbound" },
    Side { name: "server", reporter: "destination", observed: Observed::Server, direction: "inbound" },
];

/// Requests that the observer counted during measurements, and those among them with their status.
#[derive(Clone, Copy, Default)]
struct Recognised {
    counted: f64,
    answered: f64,
}

/// A running testbed; dropped in this order, the mesh last.
pub(crate) struct Testbed {
    protocol: Protocol,
    observer: Option<Observer>,
    /// Number of observed sidecars.
    observed: u32,
    recognised: Cell<Recognised>,
    pub(crate) app: Application,
    client: Sidecar,
    server: Sidecar,
    service: Service,
    mesh: Mesh,
}

impl Testbed {
    /// Starts it, unobserved.
    pub(crate) fn new(protocol: Protocol) -> Result<Self> {
        let mut mesh = Mesh::new()?;
        let (client, server) = (mesh.workload("client")?, mesh.workload("server")?);
        let service = mesh.service("web", 80, &server, 8080, protocol.service())?;
        let app = protocol.serve(&server, 8080, mesh.directory())?;
        // Different executable names, so that an observer can select one of the two.
        let options = |role: &str| Options {
            executable: Some(name(&mesh, role)),
            concurrency: protocol.workers(),
            // No timeout, as in Istio: a busy sidecar would stop waiting for a ClientHello and treat TLS as plaintext.
            sniffing_timeout: Duration::ZERO,
            ..Options::default()
        };
        let server = Sidecar::start(&mesh, &server, options("server"))?;
        let client = Sidecar::start(&mesh, &client, options("client"))?;
        Ok(Self {
            protocol,
            observer: None,
            observed: 0,
            recognised: Cell::default(),
            app,
            client,
            server,
            service,
            mesh,
        })
    }

    /// Starts the observer, unless it runs, and new connections with it.
    pub(crate) fn observe(&mut self, whom: Observed) -> Result<()> {
        self.observe_by(whom, None, &[])
    }

    /// Starts an observer like [`Testbed::observe`]: of another `executable`, with further `arguments`.
    pub(crate) fn observe_by(&mut self, whom: Observed, executable: Option<&Path>, arguments: &[String]) -> Result<()> {
        if self.observer.is_some() {
            return Ok(());
        }
        self.renew()?;
        let names: Vec<String> = whom.roles().iter().map(|role| name(&self.mesh, role)).collect();
        let only = names.iter().flat_map(|name| ["--sidecar-exe", name]);
        let arguments: Vec<&str> = only.chain(arguments.iter().map(String::as_str)).collect();
        let tables = self.mesh.observer_tables();
        self.observed = u32::try_from(names.len())?;
        let executable = executable.map_or_else(tools::observer, |path| Ok(path.to_owned()))?;
        self.observer = Some(start(&executable, &self.mesh, &tables, names.len(), &arguments)?);
        self.press(WARM_UP)
    }

    /// Stops it, if it runs.
    pub(crate) fn unobserve(&mut self) -> Result<()> {
        let Some(observer) = self.observer.take() else { return Ok(()) };
        observer.stop()?;
        self.renew()?;
        self.press(WARM_UP)
    }

    /// Returns the observer, which must run.
    pub(crate) fn observer(&self) -> Result<&Observer> {
        self.observer.as_ref().context("nothing is observed now")
    }

    /// Returns the sidecar of one side.
    pub(crate) fn sidecar(&self, side: Side) -> &Sidecar {
        match side.observed {
            Observed::Server => &self.server,
            Observed::Client | Observed::Both => &self.client,
        }
    }

    /// Sends as many requests as possible for `time`, each `padded` bytes longer. If it is observed, the
    /// observer must have counted them.
    pub(crate) fn saturate(&self, padded: usize, time: Duration) -> Result<Answers> {
        let before = self.recognised_so_far()?;
        let answers = self.load(padded, time)?;
        self.check_counted(before, answers.requests)?;
        Ok(answers)
    }

    /// Describes the share of requests so far whose status the observer recognised.
    pub(crate) fn recognised(&self) -> String {
        let Recognised { counted, answered } = self.recognised.get();
        format!(
            "{:.2} % of the counted requests have their status; the others were cut off at the load's end, or are on \
             connections whose position was lost",
            100.0 * answered / counted
        )
    }

    /// Sends load like [`Testbed::saturate`], without scraping the observer.
    pub(crate) fn press(&self, time: Duration) -> Result<()> {
        self.load(0, time).map(drop)
    }

    /// Sends `a_second` requests per second; returns the 99th percentile in milliseconds.
    pub(crate) fn pace(&self, a_second: f64, time: Duration) -> Result<f64> {
        let log = self.mesh.directory().join("h2load.log");
        load::pace(&mut self.command("h2load")?, &self.url(), a_second, time, &log)
    }

    /// Returns a download; bytes a second.
    pub(crate) fn download(&self, length: u64) -> Result<f64> {
        load::download(&mut self.command("curl")?, &self.service.url(Family::V4, &app::path(length)), length)
    }

    /// Restarts both sidecars, which ends every connection.
    fn renew(&mut self) -> Result<()> {
        let sidecars = [&mut self.client, &mut self.server];
        thread::scope(|scope| {
            let starts = sidecars.map(|sidecar| {
                scope.spawn(|| {
                    sidecar.stop()?;
                    sidecar.start_again()
                })
            });
            starts.into_iter().try_for_each(|start| start.join().expect("it does not panic"))
        })
    }

    fn load(&self, padded: usize, time: Duration) -> Result<Answers> {
        let url = self.url();
        match self.protocol {
            Protocol::Http1 => load::saturate(&mut self.command("wrk")?, &url, padded, time),
            Protocol::Http2 | Protocol::Grpc => load::saturate_streams(&mut self.asking()?, &url, time),
        }
    }

    /// Returns the h2load command with its requests.
    pub(crate) fn asking(&self) -> Result<Command> {
        let mut h2load = self.command("h2load")?;
        self.protocol.ask(&mut h2load, self.mesh.directory());
        Ok(h2load)
    }

    fn command(&self, program: &str) -> Result<Command> {
        self.client.workload().command(program)
    }

    /// Returns the URL or path of an ordinary answer.
    pub(crate) fn url(&self) -> String {
        self.service.url(Family::V4, &self.protocol.path())
    }

    /// Returns the number of answered requests that the observer has counted.
    pub(crate) fn counted(&self) -> Result<f64> {
        self.recognised_so_far().map(|recognised| recognised.answered)
    }

    fn recognised_so_far(&self) -> Result<Recognised> {
        let Some(observer) = &self.observer else { return Ok(Recognised::default()) };
        let scrape = observer.scrape()?;
        let requests = |labels| scrape.sum("istio_requests_total", labels).unwrap_or(0.0);
        let lost = scrape.sum("mesh_observer_requests_total", &[("outcome", "desync")]).unwrap_or(0.0);
        Ok(Recognised { counted: requests(&[]) + lost, answered: requests(&self.protocol.answered()) })
    }

    fn check_counted(&self, before: Recognised, requests: f64) -> Result<()> {
        let Some(observer) = &self.observer else { return Ok(()) };
        let now = self.recognised_so_far()?;
        let counted = now.counted - before.counted;
        ensure!(
            counted >= requests * f64::from(self.observed) * 0.99,
            "the observer counted {counted} of {requests} requests on {} sidecars, so what it costs would be too little; its \
             says of itself: {}",
            self.observed,
            observer.health()?
        );
        let all = self.recognised.get();
        self.recognised.set(Recognised {
            counted: all.counted + counted,
            answered: all.answered + now.answered - before.answered,
        });
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

/// Starts an observer in a cgroup of the mesh, which ends it with the mesh if this run crashes.
pub(crate) fn start_observer(mesh: &Mesh, tables: &str, sidecars: usize, arguments: &[&str]) -> Result<Observer> {
    start(&tools::observer()?, mesh, tables, sidecars, arguments)
}

fn start(executable: &Path, mesh: &Mesh, tables: &str, sidecars: usize, arguments: &[&str]) -> Result<Observer> {
    let observer = Observer::launch(&mut Command::new(executable), mesh.directory(), tables, sidecars, arguments)?;
    let cgroup: PathBuf = mesh.cgroup().join("observer");
    fs::create_dir_all(&cgroup)
        .and_then(|()| fs::write(cgroup.join("cgroup.procs"), observer.pid().to_string()))
        .with_context(|| format!("{}: cannot take the observer", cgroup.display()))?;
    Ok(observer)
}

fn name(mesh: &Mesh, role: &str) -> String {
    format!("{}-{role}", mesh.executable())
}
