//! How batches are sent, and why a send fails.

use std::{future::Future, io::Write, pin::Pin, time::Duration};

use bytes::Bytes;
use flate2::write::GzEncoder;
use observer_model::encode::Batch;

use super::options::Compression;

/// A send in progress.
pub type Sending<'a> = Pin<Box<dyn Future<Output = Result<Accepted, Failure>> + Send + 'a>>;

/// A batch that the receiver has dealt with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    /// Points of it that it refused for good.
    pub refused: u64,
    /// Its reason, bounded in length and free of control characters.
    pub reason: String,
}

/// Sends batches.
pub trait Transport: Send + 'static {
    /// Sends a batch; the receiver has it, or has refused points of it for good, when this returns `Ok`.
    fn send<'a>(&'a mut self, batch: &'a Batch) -> Sending<'a>;
}

/// Why a batch was not accepted, which decides what is done with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Too large: it is split in halves.
    TooLarge,
    /// Rejected for good: it is dropped.
    Refused {
        /// Label value it is counted under.
        kind: &'static str,
        /// The message to be logged.
        message: String,
    },
    /// The receiver demands a pause.
    PushBack {
        /// How long, if specified.
        after: Option<Duration>,
    },
    /// May succeed later.
    Transient {
        /// Label value it is counted under.
        kind: &'static str,
        /// The message to be logged.
        message: String,
    },
}

impl Failure {
    /// Returns the label value and the message to be logged.
    pub(super) fn describe(&self) -> (&'static str, String) {
        match self {
            Self::TooLarge => ("too_large", "the batch is too large for the receiver; sending halves".to_owned()),
            Self::PushBack { .. } => ("push_back", "the receiver demands a pause".to_owned()),
            Self::Refused { kind, message } => (kind, format!("{message}; these points are dropped")),
            Self::Transient { kind, message } => (kind, format!("{message}; retrying")),
        }
    }
}

/// Compresses a body.
pub(super) fn gzip(body: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 16), flate2::Compression::fast());
    // Writing to memory does not fail.
    let _ = encoder.write_all(body);
    encoder.finish().unwrap_or_default().into()
}

/// Returns the body of a request.
pub(super) fn packed(body: &Bytes, compression: Compression) -> Bytes {
    match compression {
        Compression::Gzip => gzip(body),
        Compression::None => body.clone(),
    }
}
