//! The real Prometheus, which scrapes by its configuration and answers queries.

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
        let address = free_port()?;
        let (file, log) = (directory.join("prometheus.yml"), directory.join("prometheus.log"));
        fs::write(&file, configuration).with_context(|| file.display().to_string())?;
        let program = tools::server("prometheus")?;
        let process = Command::new(&program)
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", directory.join("store").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .with_context(|| program.display().to_string())?;
        Ok(Self { process, address, log })
    }

    /// Evaluates an expression now; an error while the server is not ready yet.
    pub fn query(&self, expression: &str) -> Result<Series> {
        let (status, body) = get(self.address, &format!("/api/v1/query?query={}", percent_encoded(expression)))?;
        ensure!(status == 200, "{expression}: {status}: {body}");
        let answer: Value = serde_json::from_str(&body).with_context(|| body.clone())?;
        ensure!(answer["warnings"].is_null(), "{expression}: {}", answer["warnings"]);
        let results = answer["data"]["result"].as_array().with_context(|| body.clone())?;
        results.iter().map(|result| series(result).with_context(|| result.to_string())).collect()
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

fn series(result: &Value) -> Option<(BTreeMap<String, String>, f64)> {
    let labels = result["metric"].as_object()?.iter();
    let labels = labels.map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect::<Option<_>>()?;
    Some((labels, result["value"][1].as_str()?.parse().ok()?))
}

fn percent_encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}
