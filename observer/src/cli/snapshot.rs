//! `observer snapshot`: observes for a while, and prints what was counted.

use std::{
    io::{self, Write},
    sync::Arc,
};

use anyhow::{Context, Result};
use observer_model::{
    Snapshot,
    encode::{
        Encoder, json,
        prometheus::{Exposition, Format},
        wavefront::WavefrontEncoder,
    },
};

use super::{
    args::{RunArgs, SnapshotArgs, SnapshotFormat},
    outcome::{Failure, block_on, configure, drop_privileges},
};
use crate::{app, system::host::node_name};

/// Observes and prints.
///
/// # Errors
/// The observer cannot start, or standard output cannot be written.
pub fn run(args: SnapshotArgs) -> Result<(), Failure> {
    let SnapshotArgs { length, format, wavefront_names, node } = args;
    let config = configure(&RunArgs { wavefront_names, node, ..RunArgs::default() })?;
    drop_privileges()?;
    // Invalid options of Wavefront are found before observing.
    let lines = WavefrontEncoder::new(config.wavefront(), &node_name());
    let lines = (format == SnapshotFormat::Wavefront).then_some(lines).transpose();
    let lines = lines.map_err(|error| Failure::wrong_usage(error.into()))?;
    block_on(async {
        let snapshot = app::snapshot(&config, length.0).await?;
        print(&mut io::stdout().lock(), snapshot, format, lines).context("standard output cannot be written")
    })
}

fn print(
    output: &mut impl Write,
    snapshot: Arc<Snapshot>,
    format: SnapshotFormat,
    lines: Option<WavefrontEncoder>,
) -> Result<()> {
    match format {
        SnapshotFormat::Prometheus => {
            Exposition::new(snapshot, Format::Text).try_for_each(|piece| output.write_all(&piece))?
        }
        SnapshotFormat::Wavefront => {
            let mut lines = lines;
            for batch in lines.iter_mut().flat_map(|lines| lines.encode(snapshot.clone())) {
                output.write_all(&batch.body)?;
            }
        }
        SnapshotFormat::Json => {
            serde_json::to_writer_pretty(&mut *output, &json::document(&snapshot))?;
            output.write_all(b"\n")?;
        }
    }
    Ok(output.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        emit::wavefront::Options,
        model::{catalogue::REQUESTS, fixture},
    };

    fn printed(format: SnapshotFormat) -> String {
        let snapshot = fixture::snapshots()[1].clone();
        let mut output = Vec::new();
        let lines = WavefrontEncoder::new(Options::default(), "node").unwrap();
        print(&mut output, snapshot, format, Some(lines)).unwrap();
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn prints_every_format() {
        let head = format!("# TYPE {} counter\n", REQUESTS.prometheus_name);
        assert!(printed(SnapshotFormat::Prometheus).contains(&head));
        assert!(printed(SnapshotFormat::Wavefront).contains(REQUESTS.documented_name));
    }
}
