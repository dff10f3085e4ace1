//! The fixture of cases about who called: two clients and a server with a sidecar each, and a client without one.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Result, ensure};

use crate::{
    apps::{
        http,
        program::Program,
        raw::{Connection, Server},
        tcp,
    },
    envoy_access_log::EnvoyAccessLog,
    mesh::{Family, Mesh, Protocol, Service, Workload},
    net::finish,
    sidecar::{Options, Sidecar},
    tools,
};

/// Both families of addresses.
pub const BOTH: [Family; 2] = [Family::V4, Family::V6];
/// Number of sidecars.
pub const SIDECARS: usize = 3;
/// Requests that [`TwoClients::request_over_http1`] makes.
pub const HTTP1_REQUESTS: usize = 80;
/// Requests that [`TwoClients::forge`] makes.
pub const FORGED_REQUESTS: usize = 4;
/// Requests that [`TwoClients::request_in_plaintext`] makes.
pub const PLAINTEXT_REQUESTS: usize = 2;
/// A header that a client made up.
const LIAR: &str = "By=spiffe://cluster.local/ns/x/sa/y;Hash=00;Subject=\"\";URI=spiffe://liar";

/// The mesh, its services, and the access log of the server's sidecar.
pub struct TwoClients {
    /// Access log of the server's sidecar.
    pub log: EnvoyAccessLog,
    _sidecars: Vec<Sidecar>,
    /// Clients with a sidecar.
    pub clients: [Arc<Workload>; 2],
    /// Workload of the servers.
    pub server: Arc<Workload>,
    /// A client without a sidecar.
    pub outside: Arc<Workload>,
    /// HTTP/1.1.
    pub web: Service,
    /// HTTP/2, for the server of [`TwoClients::serve_http2`].
    pub http2: Service,
    /// TCP echo.
    pub tcp: Service,
    _servers: Vec<Server>,
    /// Dropped last.
    pub mesh: Mesh,
}

impl TwoClients {
    /// Builds the mesh and starts servers and sidecars.
    pub fn new() -> Result<Self> {
        let mut mesh = Mesh::new()?;
        let clients = [mesh.workload("web")?, mesh.workload("mobile")?];
        let (server, outside) = (mesh.workload("server")?, mesh.workload("outside")?);
        let web = mesh.service("shop", 80, &server, 8080, Protocol::Http)?;
        let http2 = mesh.service("grpc", 83, &server, 8083, Protocol::Http2)?;
        let tcp = mesh.service("tcp", 9000, &server, 9000, Protocol::Tcp)?;
        let servers = vec![http::serve(&server, 8080)?, tcp::echo(&server, 9000)?];
        let mut sidecars = Vec::new();
        for workload in [&clients[0], &clients[1], &server] {
            sidecars.push(Sidecar::start(&mesh, workload, Options::default())?);
        }
        let log = EnvoyAccessLog::new(&sidecars[2])?;
        Ok(Self { log, _sidecars: sidecars, clients, server, outside, web, http2, tcp, _servers: servers, mesh })
    }

    /// Makes [`HTTP1_REQUESTS`]: the sidecar's upstream connections are pooled, so that both clients' requests share them.
    pub fn request_over_http1(&self) -> Result<()> {
        for _ in 0..5 {
            for client in &self.clients {
                for family in BOTH {
                    let url = self.web.url(family, "/{bytes/1,bytes/2000,status/404,bytes/7}");
                    ensure!(curl(client, &[&url])? == "200\n200\n404\n200\n");
                }
            }
        }
        Ok(())
    }

    /// Starts a server to which the sidecar speaks HTTP/2.
    pub fn serve_http2(&self) -> Result<Program> {
        let mut command = self.server.command(&tools::require("nghttpd")?.to_string_lossy())?;
        Program::serve(&self.server, 8083, command.args(["--no-tls", "8083"]))
    }

    /// Has each client make `rounds` times `number` requests over HTTP/2.
    pub fn request_over_http2(&self, rounds: usize, number: usize) -> Result<()> {
        for client in (0..rounds).flat_map(|_| &self.clients) {
            let mut command = client.command(&tools::require("h2load")?.to_string_lossy())?;
            let number = number.to_string();
            command.args(["-n", &number, "-c", "2", "-m", "5", &self.http2.url(Family::V4, "/")]);
            finish(&mut command, "")?;
        }
        Ok(())
    }

    /// Makes [`FORGED_REQUESTS`]: the applications send the header to their own sidecars, and a client without one sends it
    /// with the certificate of an account that no pod has.
    pub fn forge(&self) -> Result<()> {
        let header = format!("x-forwarded-client-cert: {LIAR}");
        for client in &self.clients {
            ensure!(curl(client, &["-H", &header, &self.web.url(Family::V4, "/bytes/1")])? == "200\n");
        }
        for value in [LIAR.to_owned(), format!("{LIAR},{LIAR}")] {
            self.request_with_certificate("forger", &value)?;
        }
        Ok(())
    }

    /// Makes a request from the client without a sidecar with the certificate of an account and this header.
    pub fn request_with_certificate(&self, account: &str, header: &str) -> Result<()> {
        let identity = self.mesh.authority().workload(&format!("spiffe://cluster.local/ns/default/sa/{account}"))?;
        let [certificate, key] = ["", "-key"].map(|end| self.mesh.directory().join(format!("{account}{end}.pem")));
        std::fs::write(&certificate, identity.certificate)?;
        std::fs::write(&key, identity.key)?;
        let mut command = self.outside.command("openssl")?;
        command.args(["s_client", "-quiet", "-alpn", "istio", "-connect", &format!("{}:8080", self.server.ipv4)]);
        command.arg("-cert").arg(&certificate).arg("-key").arg(&key);
        let request = format!(
            "GET /bytes/1 HTTP/1.1\r\nhost: shop\r\nconnection: close\r\nx-forwarded-client-cert: {header}\r\n\r\n"
        );
        let response = finish(&mut command, &request)?;
        ensure!(response.starts_with("HTTP/1.1 200"), "{response}");
        Ok(())
    }

    /// Makes [`PLAINTEXT_REQUESTS`] from the client without a sidecar, with a header of its own.
    pub fn request_in_plaintext(&self) -> Result<()> {
        for family in BOTH {
            let url = format!("http://{}/bytes/1", SocketAddr::new(self.server.ip(family), 8080));
            let header = "x-forwarded-client-cert: By=a;URI=spiffe://liar";
            ensure!(curl(&self.outside, &["-H", header, &url])? == "200\n");
        }
        Ok(())
    }

    /// Opens a TCP connection of a client, sends a hundred bytes there and back, and waits for its end.
    pub fn echo(&self, client: &Workload, family: Family) -> Result<()> {
        let mut connection = Connection::open(client, self.tcp.address(family))?;
        connection.send([7; 100])?;
        connection.receive(100)?;
        connection.finish_sending()?;
        connection.drain()?;
        Ok(())
    }
}

/// Runs curl in a workload; returns the status of each response, a line each.
pub fn curl(from: &Workload, arguments: &[&str]) -> Result<String> {
    let mut command = from.command("curl")?;
    command.args(["-s", "-o", "/dev/null", "-w", "%{http_code}\\n", "--max-time", "10"]).args(arguments);
    finish(&mut command, "")
}
