//! An observer whose pages need TLS, client certificates or passwords.

use std::{
    env, fs,
    net::SocketAddr,
    path::PathBuf,
    process::{self, Child, Command, Stdio},
};

use anyhow::{Context, Result};

use crate::{observer::free_port, pki::Authority, tools};

/// Configuration of TLS, with the certificate that [`Web::start`] makes.
pub const TLS: &str = "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n";

/// A running observer of nobody, with a web configuration; killed when dropped.
pub struct Web {
    directory: PathBuf,
    authority: Authority,
    address: SocketAddr,
    process: Child,
}

impl Web {
    /// Starts it with this configuration, and with further command-line `arguments`. Beside the configuration are
    /// `server.crt` and `server.key`, for another name than it is read under, `client.crt` and `client.key`, and
    /// `clients.crt`, the authority of both. Without a configuration, everybody may read.
    pub fn start(name: &str, configuration: &str, arguments: &[&str]) -> Result<Self> {
        let directory = env::temp_dir().join(format!("mesh-web-{}-{name}", process::id()));
        fs::create_dir_all(&directory)?;
        let authority = Authority::new()?;
        let (server, client) = (authority.server("observer.example.com")?, authority.workload("spiffe://a/b")?);
        for (file, content) in [
            ("server.crt", server.certificate.as_str()),
            ("server.key", &server.key),
            ("client.crt", &client.certificate),
            ("client.key", &client.key),
            ("clients.crt", authority.certificate()),
            ("web.yml", configuration),
        ] {
            fs::write(directory.join(file), content)?;
        }
        let (address, file) = (free_port()?, directory.join("web.yml").display().to_string());
        let own = if configuration.is_empty() { vec![] } else { vec!["--web-config-file", &file] };
        let process = Command::new(tools::observer()?)
            .args(["run", "--listen", &address.to_string(), "--sidecar-exe", &format!("nobody-{}", process::id())])
            .args(own)
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(fs::File::create(directory.join("observer.log"))?)
            .spawn()
            .context("observer run")?;
        Ok(Self { directory, authority, address, process })
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Returns the address on which it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the authority of its certificates.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Returns the path of a file beside its configuration.
    pub fn path(&self, file: &str) -> String {
        self.directory.join(file).display().to_string()
    }

    /// Returns its standard error so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("observer.log")).unwrap_or_default()
    }

    /// Removes its files.
    pub fn end(self) -> Result<()> {
        Ok(fs::remove_dir_all(&self.directory)?)
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
