//! The sidecars' access logs, as the kubelets keep them.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{facts::Facts, facts::Pod, node::directory, workloads::SIDECAR};

/// Lines read so far, by file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Position(BTreeMap<PathBuf, usize>);

/// A line: what a sidecar says of one request or connection.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// UID of the pod.
    pub(crate) pod: String,
    fields: Value,
}

impl Position {
    /// Returns the lines since the last call, of all sidecars.
    pub(crate) fn advance(&mut self, facts: &Facts) -> Result<Vec<Line>> {
        let mut lines = Vec::new();
        for pod in facts.pods.iter().filter(|pod| pod.containers.iter().any(|name| name == SIDECAR)) {
            for file in files(pod) {
                let text = fs::read_to_string(&file).with_context(|| format!("{}", file.display()))?;
                let seen = self.0.entry(file.clone()).or_default();
                // The last line may still be written.
                let complete = text.rfind('\n').map_or("", |end| &text[..=end]);
                for line in complete.lines().skip(*seen) {
                    lines.extend(Line::parse(pod, line).with_context(|| format!("{}: {line}", file.display()))?);
                }
                *seen = complete.lines().count();
            }
        }
        Ok(lines)
    }
}

impl Line {
    /// Reads a line as containerd writes it: time, stream, whether it is whole, text. Other lines are the agent's.
    fn parse(pod: &Pod, line: &str) -> Result<Option<Self>> {
        let mut parts = line.splitn(4, ' ');
        let (Some(_), Some(stream), Some(is_whole), Some(text)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Ok(None);
        };
        if stream != "stdout" || !text.starts_with("{\"") {
            return Ok(None);
        }
        ensure!(is_whole == "F", "a line in parts");
        let fields = serde_json::from_str(text)?;
        Ok(Some(Self { pod: pod.uid.clone(), fields }))
    }

    /// Returns a field as text; empty if Envoy has no value.
    pub(crate) fn text(&self, field: &str) -> String {
        match &self.fields[field] {
            Value::String(text) if text != "-" => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => String::new(),
        }
    }

    /// Returns a field that is a number.
    pub(crate) fn number(&self, field: &str) -> f64 {
        self.fields[field].as_f64().unwrap_or_default()
    }

    /// Returns whether this sidecar was the client's.
    pub(crate) fn is_outbound(&self) -> bool {
        !self.text("cluster").starts_with("inbound|")
    }

    /// Returns whether it is a request and not a connection.
    pub(crate) fn is_http(&self) -> bool {
        self.text("protocol").starts_with("HTTP")
    }

    /// Returns the host of `HOST:PORT` in a field.
    pub(crate) fn host(&self, field: &str) -> String {
        let text = self.text(field);
        text.rsplit_once(':').map_or("", |(host, _)| host).to_owned()
    }
}

fn files(pod: &Pod) -> Vec<PathBuf> {
    let name = format!("{}_{}_{}", pod.namespace, pod.name, pod.uid);
    let folder = directory().join(&pod.node).join("log/pods").join(name).join(SIDECAR);
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|file| file.path()).collect();
    files.sort();
    files
}
