//! The real Zipkin server, which is asked for what it has stored.

use std::{
    fs::File,
    net::SocketAddr,
    path::Path,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Receiver, Span};
use crate::{
    observer::{free_port, get},
    tools,
    wait::wait_until,
};

/// Limits the time until it serves.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// A server that keeps one trace; killed when dropped.
#[derive(Debug)]
pub struct Zipkin {
    process: Child,
    address: SocketAddr,
    trace_id: u128,
}

impl Zipkin {
    /// Starts one that is asked for this trace; its log is in `directory`.
    pub fn start(directory: &Path, trace_id: u128) -> Result<Self> {
        let address = free_port()?;
        let log = File::create(directory.join("zipkin.log"))?;
        let process = tools::zipkin()?
            .env("QUERY_PORT", address.port().to_string())
            .env("SELF_TRACING_ENABLED", "false")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let zipkin = Self { process, address, trace_id };
        wait_until("Zipkin serves", START_TIMEOUT, || {
            let (status, answer) = get(address, "/health")?;
            ensure!(status == 200, "{status}: {answer}");
            Ok(())
        })?;
        Ok(zipkin)
    }
}

impl Receiver for Zipkin {
    fn url(&self) -> String {
        format!("zipkin+http://{}", self.address)
    }

    fn spans(&self) -> Result<Vec<Span>> {
        let (status, answer) = get(self.address, &format!("/api/v2/trace/{:032x}", self.trace_id))?;
        if status == 404 {
            return Ok(Vec::new());
        }
        ensure!(status == 200, "{status}: {answer}");
        serde_json::from_str::<Vec<Value>>(&answer)?.iter().map(read).collect()
    }
}

impl Drop for Zipkin {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn read(span: &Value) -> Result<Span> {
    let text = |name: &str| span[name].as_str().with_context(|| format!("no {name}: {span}"));
    let number = |name: &str| span[name].as_u64().with_context(|| format!("no {name}: {span}"));
    let kind = text("kind")?;
    ensure!(matches!(kind, "CLIENT" | "SERVER"), "{span}");
    let start_ns = number("timestamp")? * 1_000;
    let tags = span["tags"].as_object().with_context(|| format!("no tags: {span}"))?;
    let tag = |(name, value): (&String, &Value)| {
        Ok((name.clone(), value.as_str().with_context(|| format!("{name} is no text: {span}"))?.to_owned()))
    };
    Ok(Span {
        trace_id: u128::from_str_radix(text("traceId")?, 16)?,
        id: u64::from_str_radix(text("id")?, 16)?,
        parent_id: span["parentId"].as_str().map_or(Ok(0), |parent| u64::from_str_radix(parent, 16))?,
        is_client: kind == "CLIENT",
        service: span["localEndpoint"]["serviceName"].as_str().unwrap_or_default().to_owned(),
        start_ns,
        end_ns: start_ns + number("duration")? * 1_000,
        is_error: tags.contains_key("error"),
        attributes: tags.iter().map(tag).collect::<Result<_>>()?,
    })
}
