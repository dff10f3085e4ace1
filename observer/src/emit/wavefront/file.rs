//! A file or standard output.

use std::{
    io::{self, Write as _},
    path::PathBuf,
};

use crate::emit::{Accepted, Batch, Failure, Sending, Transport};

/// A file or standard output.
#[derive(Debug)]
pub struct FileSink {
    /// `None` is standard output.
    path: Option<PathBuf>,
}

impl FileSink {
    /// Creates a sink; `-` is standard output. The file is opened for every batch, so it may be rotated.
    #[must_use]
    pub fn new(path: &str) -> Self {
        Self { path: (path != "-").then(|| path.into()) }
    }
}

impl Transport for FileSink {
    fn send<'a>(&'a mut self, batch: &'a Batch) -> Sending<'a> {
        let (path, text) = (self.path.clone(), batch.body.clone());
        Box::pin(async move {
            let name = path.as_ref().map_or_else(|| "standard output".to_owned(), |path| path.display().to_string());
            let written = tokio::task::spawn_blocking(move || append(path, &text)).await;
            let error = match written {
                Ok(Ok(())) => return Ok(Accepted::default()),
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            Err(Failure::Refused {
                kind: "write",
                message: format!("cannot write to {name}: {error}; what it does not take is dropped, until it does"),
            })
        })
    }
}

fn append(path: Option<PathBuf>, text: &[u8]) -> io::Result<()> {
    let Some(path) = path else {
        let mut output = io::stdout().lock();
        output.write_all(text)?;
        return output.flush();
    };
    let mut file = std::fs::File::options().append(true).create(true).open(path)?;
    let metadata = file.metadata()?;
    file.write_all(text).inspect_err(|_| {
        // A partial line would corrupt the next one. A pipe cannot be truncated.
        if metadata.is_file() {
            let _ = file.set_len(metadata.len());
        }
    })
}
