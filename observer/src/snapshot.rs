//! `observer snapshot`: one look, printed once.

use std::{
    io::{self, Write},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};

use observer_model::{
    Snapshot,
    encode::{
        Encoder, json,
        prometheus::{Exposition, Format},
        wavefront::{Options, WavefrontEncoder},
    },
};

use crate::{app, cli::SnapshotFormat, config::Config};

/// Writes a snapshot in the format that was asked for.
pub enum Writer {
    /// Prometheus text 0.0.4.
    Prometheus,
    /// Wavefront lines.
    Wavefront(Box<WavefrontEncoder>),
    /// One JSON document.
    Json,
}

impl Writer {
    /// The writer for a format; `options` are those of Wavefront.
    ///
    /// # Errors
    /// Wavefront would not take what these options say.
    pub fn new(format: SnapshotFormat, options: &Options) -> Result<Self> {
        Ok(match format {
            SnapshotFormat::Prometheus => Self::Prometheus,
            SnapshotFormat::Wavefront => {
                Self::Wavefront(Box::new(WavefrontEncoder::new(options.clone(), &app::node_name())?))
            }
            SnapshotFormat::Json => Self::Json,
        })
    }

    fn write(self, output: &mut impl Write, snapshot: Arc<Snapshot>) -> Result<()> {
        match self {
            Self::Prometheus => {
                for piece in Exposition::new(snapshot, Format::Text) {
                    output.write_all(&piece)?;
                }
            }
            Self::Wavefront(mut lines) => {
                for batch in lines.encode(snapshot) {
                    output.write_all(&batch.text)?;
                }
            }
            Self::Json => {
                serde_json::to_writer_pretty(&mut *output, &json::document(&snapshot))?;
                output.write_all(b"\n")?;
            }
        }
        Ok(output.flush()?)
    }
}

/// Observes for a while and prints what was counted on standard output.
///
/// # Errors
/// What keeps the observer from beginning, or standard output that cannot be written.
pub async fn print(config: &Config, length: Duration, writer: Writer) -> Result<()> {
    let snapshot = app::snapshot(config, length).await?;
    writer.write(&mut io::stdout().lock(), snapshot).context("standard output cannot be written")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{catalogue::REQUESTS, fixture};

    fn printed(format: SnapshotFormat) -> String {
        let snapshot = fixture::snapshots()[1].clone();
        let mut output = Vec::new();
        Writer::new(format, &Options::default()).unwrap().write(&mut output, snapshot).unwrap();
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn prints_every_format() {
        let head = format!("# TYPE {} counter\n", REQUESTS.prometheus_name);
        assert!(printed(SnapshotFormat::Prometheus).contains(&head));
        assert!(printed(SnapshotFormat::Wavefront).contains(REQUESTS.documented_name));
    }
}
