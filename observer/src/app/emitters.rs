//! The emitters that the configuration names: their errors are found before anything is loaded.

use std::time::Duration;

use anyhow::{Context, Error, Result};

use crate::system::host::node_name;
use crate::{
    config::Config,
    emit::{
        DeliveryLimits, EmitTarget, Emitter, Encoder, Transport,
        disk_queue::{self, DiskQueue, directory_name},
        otlp::{
            grpc::{EXPORT_METRICS, EXPORT_SPANS, OtlpGrpc},
            http::OtlpHttp,
        },
        remote_write::RemoteWrite,
        token::TokenFile,
        wavefront::{WavefrontEncoder, file::FileSink, http::HttpSink},
        zipkin::Zipkin,
    },
    model::encode::{
        otlp::{self, OtlpEncoder},
        remote_write::{self, RemoteWriteEncoder},
        spans::{otlp::OtlpSpanEncoder, wavefront::WavefrontSpanEncoder, zipkin::ZipkinEncoder},
    },
};

/// Timeout of one request.
const PUSH_TIMEOUT: Duration = Duration::from_secs(10);

/// Emitters that are ready to start.
pub struct Emitters(Vec<Prepared>);

struct Prepared {
    name: String,
    encoder: Box<dyn Encoder>,
    transport: Box<dyn Transport>,
    disk_queue: Option<DiskQueue>,
    cells: Cells,
}

/// What of the kernel's log-linear cells an emitter sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cells {
    /// Nothing.
    None,
    /// The values of the last interval.
    OfInterval,
    /// The totals as well, which cost memory.
    Totals,
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

    /// Returns the most that one of them sends of the kernel's cells.
    #[must_use]
    pub fn cells(&self) -> Cells {
        self.0.iter().map(|emitter| emitter.cells).max().unwrap_or(Cells::None)
    }

    /// Returns the emitters' names, without secrets.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|emitter| emitter.name.as_str())
    }

    /// Starts the emitters, each in a task of its own.
    #[must_use]
    pub fn start(self) -> Vec<Emitter> {
        let start = |Prepared { name, encoder, transport, disk_queue, .. }: Prepared| {
            Emitter::start(name, encoder, transport, disk_queue, DeliveryLimits::default())
        };
        self.0.into_iter().map(start).collect()
    }
}

fn prepare(config: &Config, target: &EmitTarget) -> Result<Prepared> {
    let name = target.to_string();
    let (encoder, transport) = ends(config, target)?;
    // A file accepts everything at once, or never.
    let directory = config.queue_dir.as_ref().filter(|_| !matches!(target, EmitTarget::WavefrontFile(_)));
    let disk_queue =
        directory.map(|directory| DiskQueue::new(directory.join(directory_name(&name)), config.queue_bytes));
    Ok(Prepared { name, encoder, transport, disk_queue, cells: cells(config, target) })
}

/// Returns what renders and what sends for this target.
fn ends(config: &Config, target: &EmitTarget) -> Result<(Box<dyn Encoder>, Box<dyn Transport>)> {
    let lines = || -> Result<Box<dyn Encoder>> {
        Ok(if target.is_of_spans() {
            Box::new(WavefrontSpanEncoder::new(config.wavefront().tags, &node_name())?)
        } else {
            Box::new(WavefrontEncoder::new(config.wavefront(), &node_name())?)
        })
    };
    Ok(match target {
        EmitTarget::WavefrontFile(path) => (lines()?, Box::new(FileSink::new(path))),
        EmitTarget::WavefrontHttp(url) | EmitTarget::WavefrontSpansHttp(url) => {
            (lines()?, Box::new(HttpSink::proxy(url.clone(), PUSH_TIMEOUT)?))
        }
        EmitTarget::WavefrontHttps(url) | EmitTarget::WavefrontSpansHttps(url) => {
            let token = config.wavefront_token_file.clone();
            let token =
                token.context("it needs an API token: put one in a file and name it with --wavefront-token-file")?;
            let token = TokenFile::new(token, "wavefront-token-file");
            let ca_file = config.wavefront_ca_file.as_deref();
            (lines()?, Box::new(HttpSink::service(url.clone(), token, ca_file, PUSH_TIMEOUT)?))
        }
        EmitTarget::OtlpHttp(url, options)
        | EmitTarget::OtlpGrpc(url, options)
        | EmitTarget::OtlpSpansHttp(url, options)
        | EmitTarget::OtlpSpansGrpc(url, options) => {
            let options = options.or(&config.otlp);
            let access = options.access().map_err(Error::msg)?;
            let compression = options.compression.unwrap_or_default();
            let method = if target.is_of_spans() { EXPORT_SPANS } else { EXPORT_METRICS };
            let transport: Box<dyn Transport> = match target {
                EmitTarget::OtlpGrpc(..) | EmitTarget::OtlpSpansGrpc(..) => {
                    Box::new(OtlpGrpc::new(url.clone(), method, access, compression, PUSH_TIMEOUT)?)
                }
                _ => Box::new(OtlpHttp::new(url.clone(), access, compression, PUSH_TIMEOUT)?),
            };
            let encoder: Box<dyn Encoder> = if target.is_of_spans() {
                Box::new(OtlpSpanEncoder::new(options.encoder().resource, &node_name()))
            } else {
                Box::new(OtlpEncoder::new(options.encoder(), &node_name()))
            };
            (encoder, transport)
        }
        EmitTarget::Zipkin(url, options) => {
            let options = options.or(&config.zipkin);
            let (access, compression) =
                (options.access().map_err(Error::msg)?, options.compression.unwrap_or_default());
            let transport = Zipkin::new(url.clone(), access, compression, PUSH_TIMEOUT)?;
            (Box::new(ZipkinEncoder::new(&node_name())), Box::new(transport))
        }
        EmitTarget::RemoteWrite(url, options) => {
            let options = options.or(&config.remote_write);
            let transport = RemoteWrite::new(url.clone(), options.access().map_err(Error::msg)?, PUSH_TIMEOUT)?;
            let encoder = RemoteWriteEncoder::new(&node_name(), options.histograms.unwrap_or_default());
            (Box::new(encoder), Box::new(transport))
        }
    })
}

fn cells(config: &Config, target: &EmitTarget) -> Cells {
    match target {
        EmitTarget::WavefrontFile(_) | EmitTarget::WavefrontHttp(_) | EmitTarget::WavefrontHttps(_) => {
            Cells::OfInterval
        }
        EmitTarget::OtlpHttp(_, options) | EmitTarget::OtlpGrpc(_, options) => {
            match options.or(&config.otlp).encoder().histograms {
                otlp::Histograms::Explicit => Cells::None,
                otlp::Histograms::Exponential => Cells::OfInterval,
            }
        }
        EmitTarget::OtlpSpansHttp(..)
        | EmitTarget::OtlpSpansGrpc(..)
        | EmitTarget::Zipkin(..)
        | EmitTarget::WavefrontSpansHttp(_)
        | EmitTarget::WavefrontSpansHttps(_) => Cells::None,
        EmitTarget::RemoteWrite(_, options) => match options.or(&config.remote_write).histograms.unwrap_or_default() {
            remote_write::Histograms::Classic => Cells::None,
            remote_write::Histograms::Native => Cells::Totals,
        },
    }
}
