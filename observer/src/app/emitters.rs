//! The emitters that the configuration names: their errors are found before anything is loaded.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::system::host::node_name;
use crate::{
    config::Config,
    emit::{
        Emitter, Limits, Target, Transport,
        disk_queue::{self, DiskQueue, directory_name},
        wavefront::{WavefrontEncoder, file::FileSink, http::HttpSink, token::TokenFile},
    },
};

/// Timeout of one request.
const PUSH_TIMEOUT: Duration = Duration::from_secs(10);

/// Emitters that are ready to start.
pub struct Emitters(Vec<Prepared>);

struct Prepared {
    name: String,
    encoder: WavefrontEncoder,
    transport: Box<dyn Transport>,
    disk_queue: Option<DiskQueue>,
}

impl Emitters {
    /// Prepares every emitter.
    ///
    /// # Errors
    /// An emitter cannot work: no token, no CA certificates, or a node name or tags that Wavefront rejects. The message names it.
    pub fn prepare(config: &Config) -> Result<Self> {
        let prepared = |target| prepare(config, target).with_context(|| format!("emitter {target}"));
        let prepared: Vec<_> = config.emit.iter().map(prepared).collect::<Result<_>>()?;
        if let Some(directory) = &config.queue_dir {
            let used: Vec<String> = prepared.iter().map(|emitter| directory_name(&emitter.name)).collect();
            for orphan in disk_queue::orphans(directory, &used) {
                let path = directory.join(orphan);
                tracing::warn!("{}: points wait here for a receiver that --emit no longer names", path.display());
            }
        }
        Ok(Self(prepared))
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the emitters' names, without secrets.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|emitter| emitter.name.as_str())
    }

    /// Starts the emitters, each in a task of its own.
    pub(super) fn start(self) -> Vec<Emitter> {
        let start = |Prepared { name, encoder, transport, disk_queue }: Prepared| {
            Emitter::start(name, Box::new(encoder), transport, disk_queue, Limits::default())
        };
        self.0.into_iter().map(start).collect()
    }
}

fn prepare(config: &Config, target: &Target) -> Result<Prepared> {
    let encoder = WavefrontEncoder::new(config.wavefront(), &node_name())?;
    let (name, transport) = (target.to_string(), transport(config, target)?);
    // A file accepts everything at once, or never.
    let directory = config.queue_dir.as_ref().filter(|_| !matches!(target, Target::WavefrontFile(_)));
    let disk_queue =
        directory.map(|directory| DiskQueue::new(directory.join(directory_name(&name)), config.queue_bytes));
    Ok(Prepared { name, encoder, transport, disk_queue })
}

fn transport(config: &Config, target: &Target) -> Result<Box<dyn Transport>> {
    Ok(match target {
        Target::WavefrontFile(path) => Box::new(FileSink::new(path)),
        Target::WavefrontHttp(url) => Box::new(HttpSink::proxy(url.clone(), PUSH_TIMEOUT)?),
        Target::WavefrontHttps(url) => {
            let token = config.wavefront_token_file.clone();
            let token =
                token.context("it needs an API token: put one in a file and name it with --wavefront-token-file")?;
            let ca_file = config.wavefront_ca_file.as_deref();
            Box::new(HttpSink::service(url.clone(), TokenFile::new(token), ca_file, PUSH_TIMEOUT)?)
        }
    })
}
