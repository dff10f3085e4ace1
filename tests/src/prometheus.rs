//! The real Prometheus, which scrapes by its configuration, receives remote write and answers queries; VictoriaMetrics
//! answers them, too.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    exposition::{Exposition, Sample},
    observer::{free_port, get},
    tools,
};

/// Labels, including the name, and the value. A label without a value equals an absent one.
pub type Series = BTreeMap<BTreeMap<String, String>, f64>;

/// A program that receives remote write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receiver {
    /// Debian's Prometheus, of version 1.0.
    Debian,
    /// A recent Prometheus, of version 2.0, with native histograms.
    Recent,
    /// VictoriaMetrics.
    VictoriaMetrics,
}

/// A running server; killed when dropped.
#[derive(Debug)]
pub struct Prometheus {
    process: Child,
    address: SocketAddr,
    log: PathBuf,
}

impl Prometheus {
    /// Starts with this configuration and an empty store in `directory`.
    pub fn start(directory: &Path, configuration: &str) -> Result<Self> {
        Self::start_with(directory, configuration, &[])
    }

    /// Starts with further command-line `arguments`.
    pub fn start_with(directory: &Path, configuration: &str, arguments: &[&str]) -> Result<Self> {
        Self::launch(directory, configuration, free_port()?, arguments)
    }

    /// Starts as a receiver of remote write at `address`, with the store that is in `directory`, if there is one.
    pub fn receiver(receiver: Receiver, directory: &Path, address: SocketAddr) -> Result<Self> {
        let remote_write = "--web.enable-remote-write-receiver";
        match receiver {
            Receiver::Debian => Self::launch(directory, "", address, &[remote_write]),
            Receiver::Recent => {
                Self::launch_program(&tools::built("prometheus")?, directory, "", address, &[remote_write])
            }
            Receiver::VictoriaMetrics => {
                let log = directory.join("victoria-metrics.log");
                let mut command = Command::new(tools::built("victoria-metrics")?);
                command
                    .arg(format!("-storageDataPath={}", directory.join("victoria-metrics").display()))
                    .arg(format!("-httpListenAddr={address}"))
                    // Answers with what is stored now, and not as of half a minute ago.
                    .args(["-search.latencyOffset=0s", "-search.disableCache", "-search.maxStalenessInterval=1m"]);
                Self::spawn(command, address, log)
            }
        }
    }

    fn launch(directory: &Path, configuration: &str, address: SocketAddr, arguments: &[&str]) -> Result<Self> {
        Self::launch_program(&tools::server("prometheus")?, directory, configuration, address, arguments)
    }

    fn launch_program(
        program: &Path,
        directory: &Path,
        configuration: &str,
        address: SocketAddr,
        arguments: &[&str],
    ) -> Result<Self> {
        let file = directory.join("prometheus.yml");
        fs::write(&file, configuration).with_context(|| file.display().to_string())?;
        let mut command = Command::new(program);
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", directory.join("store").display()))
            .arg(format!("--web.listen-address={address}"))
            .args(arguments);
        Self::spawn(command, address, directory.join("prometheus.log"))
    }

    fn spawn(mut command: Command, address: SocketAddr, log: PathBuf) -> Result<Self> {
        let process = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .with_context(|| format!("{command:?}"))?;
        Ok(Self { process, address, log })
    }

    /// Evaluates an expression now; an error while the server is not ready yet.
    pub fn query(&self, expression: &str) -> Result<Series> {
        vector(expression, &self.ask(expression)?)
    }

    /// Returns the times, in seconds, of all samples that the only series of a range has.
    pub fn times(&self, range: &str) -> Result<Vec<f64>> {
        let results = self.results(range)?;
        ensure!(results.len() == 1, "{range}: {} series", results.len());
        let values = results[0]["values"].as_array().with_context(|| results[0].to_string())?;
        values.iter().map(|value| value[0].as_f64().with_context(|| value.to_string())).collect()
    }

    /// Returns every sample of a range of native histograms, each as the API has it.
    pub fn histograms(&self, range: &str) -> Result<Vec<Stored<Value>>> {
        let mut all = Vec::new();
        for result in self.results(range)? {
            let labels = labels(&result).with_context(|| result.to_string())?;
            for sample in result["histograms"].as_array().into_iter().flatten() {
                let time = sample[0].as_f64().with_context(|| sample.to_string())?;
                all.push((labels.clone(), time, sample[1].clone()));
            }
        }
        Ok(all)
    }

    /// Returns every sample of a range.
    pub fn samples(&self, range: &str) -> Result<Vec<Stored<f64>>> {
        let mut all = Vec::new();
        for result in self.results(range)? {
            let labels = labels(&result).with_context(|| result.to_string())?;
            for sample in result["values"].as_array().into_iter().flatten() {
                let number = || Some((sample[0].as_f64()?, sample[1].as_str()?.parse().ok()?));
                let (time, value) = number().with_context(|| sample.to_string())?;
                all.push((labels.clone(), time, value));
            }
        }
        Ok(all)
    }

    fn results(&self, expression: &str) -> Result<Vec<Value>> {
        results(expression, &self.ask(expression)?)
    }

    fn ask(&self, expression: &str) -> Result<String> {
        let (status, body) = get(self.address, &query_path(expression))?;
        ensure!(status == 200, "{expression}: {status}: {body}");
        Ok(body)
    }

    /// Scrapes its own metrics.
    pub fn own(&self) -> Result<Exposition> {
        let (status, body) = get(self.address, "/metrics")?;
        ensure!(status == 200, "Prometheus' own page: {status}");
        Exposition::parse(&body)
    }

    /// Returns its log so far.
    pub fn log(&self) -> Result<String> {
        fs::read_to_string(&self.log).with_context(|| self.log.display().to_string())
    }
}

/// Labels of a sample, its time in seconds, and its value.
pub type Stored<T> = (BTreeMap<String, String>, f64, T);

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns what Prometheus must store of samples scraped from `instance` in `job` with `honor_labels`.
pub fn stored(samples: &[Sample], job: &str, instance: &str) -> Result<Series> {
    let mut all = Series::new();
    for sample in samples {
        let own = sample.labels.iter().cloned().chain([("__name__".to_owned(), sample.name.clone())]);
        let mut labels: BTreeMap<_, _> = own.filter(|(_, value)| !value.is_empty()).collect();
        for (label, value) in [("job", job), ("instance", instance)] {
            labels.entry(label.to_owned()).or_insert_with(|| value.to_owned());
        }
        ensure!(all.insert(labels, sample.value).is_none(), "a series comes twice: {sample:?}");
    }
    Ok(all)
}

/// Runs `promtool check metrics` on an exposition in text 0.0.4; returns metrics with remarks, or an error if it is
/// invalid.
pub fn lint(page: &str) -> Result<Vec<String>> {
    let mut promtool = Command::new(tools::server("promtool")?)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("promtool")?;
    promtool.stdin.take().context("its standard input")?.write_all(page.as_bytes())?;
    let output = promtool.wait_with_output()?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // 3: valid, with remarks.
    ensure!(matches!(output.status.code(), Some(0 | 3)), "promtool: {}: {said}", output.status);
    ensure!(output.status.success() == said.is_empty(), "promtool: {}: {said}", output.status);
    Ok(said.lines().map(str::to_owned).collect())
}

/// Returns the path at which an expression is evaluated now.
#[must_use]
pub fn query_path(expression: &str) -> String {
    format!("/api/v1/query?query={}", percent_encoded(expression))
}

/// Returns the series of an answer.
pub fn vector(expression: &str, body: &str) -> Result<Series> {
    let results = results(expression, body)?;
    results.iter().map(|result| series(result).with_context(|| result.to_string())).collect()
}

fn results(expression: &str, body: &str) -> Result<Vec<Value>> {
    let answer: Value = serde_json::from_str(body).with_context(|| body.to_owned())?;
    ensure!(answer["warnings"].is_null(), "{expression}: {}", answer["warnings"]);
    Ok(answer["data"]["result"].as_array().with_context(|| body.to_owned())?.clone())
}

fn series(result: &Value) -> Option<(BTreeMap<String, String>, f64)> {
    Some((labels(result)?, result["value"][1].as_str()?.parse().ok()?))
}

fn labels(result: &Value) -> Option<BTreeMap<String, String>> {
    result["metric"].as_object()?.iter().map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
}

/// Returns text as it may stand in a URL's query.
fn percent_encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}
