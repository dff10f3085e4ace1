//! Protocols of the testbed: application, client and request of each.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result};
use harness::{
    apps::{grpc::Implementation, program::Program},
    mesh::{self, Workload},
    tools,
};

use crate::app::{self, App};

/// Body of an ordinary answer.
pub(crate) const BODY: u64 = 1024;

/// File with the body of a call's request.
const MESSAGE: &str = "message";

/// A protocol, on both legs of both sidecars.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Protocol {
    Http1,
    Http2,
    /// Unary calls, whose message is echoed.
    Grpc,
}

/// The running application; ended when dropped.
pub(crate) enum Application {
    Own(App),
    /// nghttpd or grpc-go.
    External {
        _program: Program,
    },
}

impl Protocol {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Http1 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
            Self::Grpc => "gRPC",
        }
    }

    /// Returns the declared protocol of the service.
    pub(crate) fn service(self) -> mesh::Protocol {
        match self {
            Self::Http1 => mesh::Protocol::Http,
            Self::Http2 | Self::Grpc => mesh::Protocol::Http2,
        }
    }

    /// Returns the worker threads of each sidecar. With two, the speed of HTTP/2 would depend on chance: the few
    /// connections that carry everything share a worker or do not.
    pub(crate) fn workers(self) -> u32 {
        match self {
            Self::Http1 => 2,
            Self::Http2 | Self::Grpc => 1,
        }
    }

    /// Returns the label of an answered request.
    pub(crate) fn answered(self) -> [(&'static str, &'static str); 1] {
        match self {
            Self::Http1 | Self::Http2 => [("response_code", "200")],
            Self::Grpc => [("grpc_response_status", "0")],
        }
    }

    /// Starts an application, and writes the files of it and its clients to `directory`.
    pub(crate) fn serve(self, on: &Workload, port: u16, directory: &Path) -> Result<Application> {
        let write = |name: &str, bytes: &[u8]| {
            let path = directory.join(name);
            fs::write(&path, bytes).with_context(|| format!("{} cannot be written", path.display()))
        };
        let body = vec![0; usize::try_from(BODY)?];
        let program = match self {
            Self::Http1 => return Ok(Application::Own(App::start(on, port)?)),
            Self::Http2 => {
                write(&BODY.to_string(), &body)?;
                let mut nghttpd = on.command(&tools::require("nghttpd")?.to_string_lossy())?;
                // Envoy sends more streams at once than nghttpd accepts by default, before it has received the limit.
                nghttpd
                    .args(["--no-tls", "--max-concurrent-streams", "1024", "-d"])
                    .arg(directory)
                    .arg(port.to_string());
                Program::serve(on, port, &mut nghttpd)?
            }
            Self::Grpc => {
                // The compression flag, then the length.
                let prefix = [&[0], u32::try_from(BODY)?.to_be_bytes().as_slice()].concat();
                write(MESSAGE, &[prefix, body].concat())?;
                Implementation::Go.serve(on, port, None)?
            }
        };
        Ok(Application::External { _program: program })
    }

    /// Describes client and server.
    pub(crate) fn ends(self) -> &'static str {
        match self {
            Self::Http1 => "wrk, 16 kept connections",
            Self::Http2 => "h2load to nghttpd, 4 connections with 32 streams at a time",
            Self::Grpc => "h2load to grpc-go, unary, messages of 1 KiB, 4 connections with 32 streams at a time",
        }
    }

    /// Returns the URL or path of an ordinary answer.
    pub(crate) fn path(self) -> String {
        match self {
            Self::Http1 | Self::Http2 => app::path(BODY),
            Self::Grpc => "/mesh.Peer/Unary".to_owned(),
        }
    }

    /// Adds the options of an ordinary request to h2load.
    pub(crate) fn ask(self, h2load: &mut Command, directory: &Path) {
        if self == Self::Grpc {
            h2load
                .args(["-H", "content-type: application/grpc", "-H", "te: trailers", "-d"])
                .arg(directory.join(MESSAGE));
        }
    }
}
