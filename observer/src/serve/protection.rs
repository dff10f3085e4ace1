//! The web configuration in use. Its files are read again and again, so that certificates and users change without a restart.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyper::{
    Request,
    header::{HeaderName, HeaderValue},
};
use tokio::{
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};

use super::{
    hosts::Hosts,
    passwords::Passwords,
    tls::Tls,
    web_config::{WebConfig, WebConfigError},
};

/// Interval of reading the files.
const RELOAD_INTERVAL: Duration = Duration::from_secs(5);

/// What protects the pages, if anything.
pub struct Protection {
    /// The web configuration file.
    path: Option<PathBuf>,
    hosts: Hosts,
    current: Mutex<Protected>,
    interval: Duration,
}

/// What holds for a connection or a request that begins now.
#[derive(Clone)]
pub(super) struct Protected {
    pub(super) tls: Option<Arc<Tls>>,
    pub(super) passwords: Arc<Passwords>,
    pub(super) headers: Arc<[(HeaderName, HeaderValue)]>,
    digest: Vec<u8>,
}

impl Protection {
    /// Loads a web configuration file; without one, everybody may read over plain HTTP, under the names of `hosts`.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn load(path: Option<&Path>, hosts: Hosts) -> Result<Self, WebConfigError> {
        let current = path.map_or_else(|| Ok(Protected::none()), Protected::load)?;
        Ok(Self { path: path.map(Path::to_owned), hosts, current: Mutex::new(current), interval: RELOAD_INTERVAL })
    }

    pub(super) fn current(&self) -> Protected {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns whether a request may be answered under the name that it has for this server. With TLS or users the name does
    /// not matter: another site's name has neither a certificate nor a password here.
    pub(super) fn allows_host<B>(&self, request: &Request<B>) -> bool {
        let Protected { tls, passwords, .. } = self.current();
        tls.is_some() || passwords.are_needed() || self.hosts.allow(request)
    }

    /// Loads the files when they have changed. While they cannot be used, what was loaded before holds.
    pub(super) async fn keep_current(&self) {
        let Some(path) = &self.path else { return };
        let mut tick = interval(self.interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut problem = String::new();
        loop {
            tick.tick().await;
            let path = path.clone();
            match spawn_blocking(move || Protected::load(&path)).await {
                Ok(Ok(loaded)) if loaded.digest != self.current().digest || !problem.is_empty() => {
                    tracing::info!("the web configuration or a file that it names has changed, and holds from now on");
                    *self.current.lock().unwrap_or_else(PoisonError::into_inner) = loaded;
                    problem.clear();
                }
                Ok(Err(error)) if error.to_string() != problem => {
                    problem = error.to_string();
                    tracing::error!("what was loaded before goes on to hold: {problem}");
                }
                _ => {}
            }
        }
    }
}

impl Protected {
    fn none() -> Self {
        let passwords = Arc::new(Passwords::new(BTreeMap::new()));
        Self { tls: None, passwords, headers: Arc::default(), digest: Vec::new() }
    }

    fn load(path: &Path) -> Result<Self, WebConfigError> {
        let WebConfig { tls, headers, users, digest } = WebConfig::load(path)?;
        Ok(Self { tls: tls.map(Arc::new), passwords: Arc::new(Passwords::new(users)), headers: headers.into(), digest })
    }
}

impl std::fmt::Debug for Protection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Protection").field("path", &self.path).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, net::SocketAddr, time::Instant};

    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
    };
    use reqwest::{Certificate, Client, Identity, StatusCode};
    use tempfile::TempDir;
    use tokio::sync::watch;

    use super::*;
    use crate::{
        model::{Snapshot, fixture, view::Finding},
        serve::{ServeLimits, Server, bind, snapshot_cache::Source, start_within},
    };

    const INTERVAL: Duration = Duration::from_millis(50);

    struct Fixed;

    impl Source for Fixed {
        async fn snapshot(&self, _with_cells: bool) -> Arc<Snapshot> {
            fixture::snapshots()[0].clone()
        }

        async fn watch(&self) -> (Arc<Snapshot>, Vec<Finding>) {
            (self.snapshot(true).await, Vec::new())
        }

        async fn stop_watching(&self) {}
    }

    type Authority = CertifiedIssuer<'static, KeyPair>;

    fn authority() -> Authority {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap()
    }

    /// Certificate and key, PEM.
    fn issue(authority: &Authority, name: SanType) -> (String, String) {
        let mut parameters = CertificateParams::default();
        parameters.subject_alt_names = vec![name];
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        (parameters.signed_by(&key, authority).unwrap().pem(), key.serialize_pem())
    }

    fn loopback() -> SanType {
        SanType::IpAddress("127.0.0.1".parse().unwrap())
    }

    fn uri(name: &str) -> SanType {
        SanType::URI(name.try_into().unwrap())
    }

    /// A directory with certificate, key, clients' authority and a web configuration.
    struct Files(TempDir);

    impl Files {
        fn new(server: &(String, String), clients: &Authority, configuration: &str) -> Self {
            let files = Self(tempfile::tempdir().unwrap());
            files.put("server.crt", &server.0);
            files.put("server.key", &server.1);
            files.put("clients.crt", &clients.pem());
            files.put("web.yml", configuration);
            files
        }

        fn put(&self, name: &str, content: &str) {
            fs::write(self.0.path().join(name), content).unwrap();
        }

        async fn serve(&self) -> Server {
            let protection = Protection::load(Some(&self.0.path().join("web.yml")), Hosts::default()).unwrap();
            let protection = Protection { interval: INTERVAL, ..protection };
            let listening = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
            start_within(listening, Fixed, watch::channel(Vec::new()).1, protection, ServeLimits::default())
        }
    }

    fn client(authority: &Authority, identity: Option<&(String, String)>) -> Client {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let trusted = Certificate::from_pem(authority.pem().as_bytes()).unwrap();
        let builder = Client::builder().no_proxy().pool_max_idle_per_host(0).tls_certs_only([trusted]);
        let identity =
            identity.map(|(certificate, key)| Identity::from_pem(format!("{key}{certificate}").as_bytes()).unwrap());
        match identity {
            Some(identity) => builder.identity(identity),
            None => builder,
        }
        .build()
        .unwrap()
    }

    async fn get(client: &Client, scheme: &str, server: &Server, path: &str) -> Option<StatusCode> {
        let url = format!("{scheme}://{}{path}", server.address);
        Some(client.get(url).send().await.ok()?.status())
    }

    fn count(server: &Server, outcome: &str) -> u64 {
        server.stats().scrapes.iter().find(|(name, _)| *name == outcome).unwrap().1
    }

    const TLS: &str = "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n";

    #[tokio::test]
    async fn a_renewed_certificate_is_used_without_a_restart_and_a_broken_one_is_not() {
        let (old, new) = (authority(), authority());
        let files = Files::new(&issue(&old, loopback()), &old, TLS);
        let server = files.serve().await;
        assert_eq!(get(&client(&old, None), "https", &server, "/metrics").await, Some(StatusCode::OK));
        assert_eq!(get(&client(&new, None), "https", &server, "/metrics").await, None);
        assert_eq!(get(&client(&old, None), "http", &server, "/metrics").await, None);
        assert!(count(&server, "handshake_failed") >= 2);
        let (certificate, key) = issue(&new, loopback());
        // Half of the pair: what was loaded before holds.
        files.put("server.crt", &certificate);
        tokio::time::sleep(5 * INTERVAL).await;
        assert_eq!(get(&client(&old, None), "https", &server, "/metrics").await, Some(StatusCode::OK));
        files.put("server.key", &key);
        let began = Instant::now();
        while get(&client(&new, None), "https", &server, "/metrics").await.is_none() {
            assert!(began.elapsed() < Duration::from_secs(10), "not used");
            tokio::time::sleep(INTERVAL).await;
        }
        assert_eq!(get(&client(&old, None), "https", &server, "/metrics").await, None);
    }

    #[tokio::test]
    async fn clients_need_a_certificate_of_the_authority_with_an_allowed_name() {
        let (servers, clients) = (authority(), authority());
        let required = format!(
            "{TLS}  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: clients.crt\n  \
             client_allowed_sans: ['spiffe://cluster.local/ns/monitoring/sa/prometheus', '192.0.2.7']\n"
        );
        let server = Files::new(&issue(&servers, loopback()), &clients, &required).serve().await;
        let right = uri("spiffe://cluster.local/ns/monitoring/sa/prometheus");
        let address = SanType::IpAddress("192.0.2.7".parse().unwrap());
        for (identity, expected) in [
            (Some(issue(&clients, right.clone())), Some(StatusCode::OK)),
            (Some(issue(&clients, address)), Some(StatusCode::OK)),
            (Some(issue(&clients, uri("spiffe://cluster.local/ns/default/sa/other"))), None),
            (Some(issue(&servers, right)), None),
            (None, None),
        ] {
            assert_eq!(get(&client(&servers, identity.as_ref()), "https", &server, "/metrics").await, expected);
        }
        let optional = required.split("  client_allowed_sans").next().unwrap();
        let optional = optional.replace("RequireAndVerifyClientCert", "VerifyClientCertIfGiven");
        let server = Files::new(&issue(&servers, loopback()), &clients, &optional).serve().await;
        assert_eq!(get(&client(&servers, None), "https", &server, "/metrics").await, Some(StatusCode::OK));
        let foreign = issue(&servers, loopback());
        assert_eq!(get(&client(&servers, Some(&foreign)), "https", &server, "/metrics").await, None);
    }

    #[tokio::test]
    async fn the_lowest_version_and_the_suites_are_those_of_the_file() {
        let servers = authority();
        for (lines, tls12, tls13) in [
            ("", true, true),
            ("  min_version: TLS13\n", false, true),
            ("  max_version: TLS12\n  cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256]\n", true, false),
            ("  max_version: TLS12\n  cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256]\n", false, false),
            ("  curve_preferences: [CurveP384, X25519]\n", true, true),
        ] {
            let server = Files::new(&issue(&servers, loopback()), &servers, &format!("{TLS}{lines}")).serve().await;
            for (version, expected) in
                [(reqwest::tls::Version::TLS_1_2, tls12), (reqwest::tls::Version::TLS_1_3, tls13)]
            {
                let trusted = Certificate::from_pem(servers.pem().as_bytes()).unwrap();
                let builder = Client::builder().no_proxy().tls_certs_only([trusted]);
                let client = builder.tls_version_min(version).tls_version_max(version).build().unwrap();
                let found = get(&client, "https", &server, "/healthz").await;
                assert_eq!(found.is_some(), expected, "{lines} {version:?}");
            }
        }
    }

    #[tokio::test]
    async fn users_change_without_a_restart_and_headers_are_sent() {
        let users = |password: &str| {
            let hash = bcrypt::hash(password, 4).unwrap();
            format!(
                "basic_auth_users: {{alice: '{hash}'}}\nhttp_server_config: {{headers: {{X-Frame-Options: deny}}}}\n"
            )
        };
        let nobody = authority();
        let files = Files::new(&issue(&nobody, loopback()), &nobody, &users("old"));
        let server = files.serve().await;
        let client = Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
        let ask = async |path: &str, password: &str| {
            let url = format!("http://{}{path}", server.address);
            client.get(url).basic_auth("alice", Some(password)).send().await.unwrap()
        };
        let answer = client.get(format!("http://{}/metrics", server.address)).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
        assert!(answer.headers()["www-authenticate"].to_str().unwrap().starts_with("Basic realm="));
        assert_eq!(get(&client, "http", &server, "/readyz").await, Some(StatusCode::OK));
        assert_eq!(get(&client, "http", &server, "/").await, Some(StatusCode::UNAUTHORIZED));
        let answer = ask("/metrics", "old").await;
        assert_eq!((answer.status(), answer.headers()["x-frame-options"].as_bytes()), (StatusCode::OK, &b"deny"[..]));
        assert_eq!(ask("/metrics", "new").await.status(), StatusCode::UNAUTHORIZED);
        files.put("web.yml", &users("new"));
        let began = Instant::now();
        while ask("/metrics", "new").await.status() != StatusCode::OK {
            assert!(began.elapsed() < Duration::from_secs(10), "not used");
            tokio::time::sleep(INTERVAL).await;
        }
        assert_eq!(ask("/metrics", "old").await.status(), StatusCode::UNAUTHORIZED);
        assert!(count(&server, "unauthorized") >= 4 && count(&server, "ok") >= 2);
    }
}
