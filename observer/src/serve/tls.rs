//! TLS of the server, from a web configuration.

use std::{net::IpAddr, path::PathBuf, sync::Arc};

use rustls::{
    CipherSuite, NamedGroup, RootCertStore, ServerConfig, ServerConnection, SupportedProtocolVersion,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    server::WebPkiClientVerifier,
    version::{TLS12, TLS13},
};
use serde::Deserialize;
use tokio_rustls::TlsAcceptor;
use webpki::EndEntityCert;

use super::web_config::Files;

/// `tls_server_config` of a web configuration.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TlsTable {
    cert: String,
    key: String,
    client_ca: String,
    cert_file: PathBuf,
    key_file: PathBuf,
    client_ca_file: PathBuf,
    client_auth_type: ClientAuthentication,
    client_allowed_sans: Vec<String>,
    min_version: Option<Version>,
    max_version: Option<Version>,
    cipher_suites: Vec<String>,
    prefer_server_cipher_suites: Option<bool>,
    curve_preferences: Vec<String>,
}

/// Go's `ClientAuthType`. The two that verify nothing can be parsed, for a better error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
enum ClientAuthentication {
    #[default]
    NoClientCert,
    RequestClientCert,
    #[serde(alias = "RequireClientCert")]
    RequireAnyClientCert,
    VerifyClientCertIfGiven,
    RequireAndVerifyClientCert,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
enum Version {
    #[serde(alias = "TLS10", alias = "TLS11")]
    Insecure,
    #[serde(rename = "TLS12")]
    Tls12,
    #[serde(rename = "TLS13")]
    Tls13,
}

/// TLS for new connections.
pub(super) struct Tls {
    /// Accepts handshakes.
    pub(super) acceptor: TlsAcceptor,
    /// One of these must be in a client's certificate; any if empty.
    allowed_sans: Vec<String>,
}

impl Tls {
    /// Creates it from the table, and from the files that the table names.
    pub(super) fn new(table: TlsTable, files: &mut Files<'_>) -> Result<Self, String> {
        let TlsTable { min_version, max_version, ref client_allowed_sans, client_auth_type, .. } = table;
        let versions = versions(min_version, max_version)?;
        let provider = Arc::new(provider(&table.cipher_suites, &table.curve_preferences)?);
        check_sans(client_allowed_sans, client_auth_type)?;
        let authorities = either("client_ca", table.client_ca, "client_ca_file", table.client_ca_file, files)?;
        let authorities = client_authorities(client_auth_type, authorities.as_deref())?;
        let chain = chain(table.cert, table.cert_file, files)?;
        let key = either("key", table.key, "key_file", table.key_file, files)?;
        let key = PrivateKeyDer::from_pem_slice(key.ok_or_else(|| missing("key_file"))?.as_bytes());
        // The reason may not repeat the key.
        let key = key.map_err(|_| "tls_server_config: the key holds no private key in PEM form".to_owned())?;
        let unusable = |error: &dyn std::fmt::Display| format!("tls_server_config: {error}");
        let builder = ServerConfig::builder_with_provider(provider.clone());
        let builder = builder.with_protocol_versions(&versions).map_err(|error| unusable(&error))?;
        let builder = match authorities {
            None => builder.with_no_client_auth(),
            Some(authorities) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), provider);
                let verifier = match client_auth_type {
                    ClientAuthentication::VerifyClientCertIfGiven => verifier.allow_unauthenticated(),
                    _ => verifier,
                };
                builder.with_client_cert_verifier(verifier.build().map_err(|error| unusable(&error))?)
            }
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|error| {
            unusable(&format_args!("certificate and key cannot be used: {error}; they must belong together"))
        })?;
        config.ignore_client_order = table.prefer_server_cipher_suites.unwrap_or(true);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), allowed_sans: table.client_allowed_sans })
    }

    /// Returns the server's certificate, of which a client needs no more.
    pub(super) fn certificate(table: TlsTable, files: &mut Files<'_>) -> Result<CertificateDer<'static>, String> {
        chain(table.cert, table.cert_file, files)?.into_iter().next().ok_or_else(|| missing("cert_file"))
    }

    /// Returns whether the client's certificate, which was verified, has an allowed name.
    pub(super) fn is_allowed(&self, connection: &ServerConnection) -> bool {
        let is_named = || {
            let certificate = connection.peer_certificates()?.first()?;
            let certificate = EndEntityCert::try_from(certificate).ok()?;
            Some(self.allowed_sans.iter().any(|name| has_name(&certificate, name)))
        };
        self.allowed_sans.is_empty() || is_named() == Some(true)
    }
}

fn has_name(certificate: &EndEntityCert<'_>, name: &str) -> bool {
    match name.parse::<IpAddr>() {
        Ok(address) => certificate.verify_is_valid_for_subject_name(&ServerName::from(address)).is_ok(),
        Err(_) => certificate.valid_dns_names().chain(certificate.valid_uri_names()).any(|own| own == name),
    }
}

fn check_sans(names: &[String], authentication: ClientAuthentication) -> Result<(), String> {
    if !names.is_empty() && authentication != ClientAuthentication::RequireAndVerifyClientCert {
        return Err(
            "tls_server_config: client_allowed_sans needs client_auth_type: RequireAndVerifyClientCert".to_owned()
        );
    }
    let is_email = |name: &&String| name.contains('@') && !name.contains("://");
    names.iter().find(is_email).map_or(Ok(()), |name| {
        Err(format!("tls_server_config: client_allowed_sans: {name}: e-mail addresses are not supported; use a DNS name, an IP address or a URI"))
    })
}

/// Returns the server's certificate, with those between it and the authority.
fn chain(inline: String, file: PathBuf, files: &mut Files<'_>) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = either("cert", inline, "cert_file", file, files)?;
    certificates("certificate", &pem.ok_or_else(|| missing("cert_file"))?)
}

fn missing(key: &str) -> String {
    format!("tls_server_config: {key} is missing")
}

/// Returns the value that is given inline or in a file, if any.
fn either(
    key: &str,
    inline: String,
    file_key: &str,
    file: PathBuf,
    files: &mut Files<'_>,
) -> Result<Option<String>, String> {
    match (inline.is_empty(), file.as_os_str().is_empty()) {
        (true, true) => Ok(None),
        (false, true) => Ok(Some(inline)),
        (true, false) => files.read(&file).map(Some),
        (false, false) => Err(format!("tls_server_config: {key} and {file_key} exclude each other; remove one")),
    }
}

fn certificates(what: &str, pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let found = found.map_err(|error| format!("tls_server_config: the {what} is not valid PEM: {error}"))?;
    if found.is_empty() {
        return Err(format!(
            "tls_server_config: no certificate in the {what}; it needs PEM, between BEGIN and END CERTIFICATE"
        ));
    }
    Ok(found)
}

fn client_authorities(
    authentication: ClientAuthentication,
    pem: Option<&str>,
) -> Result<Option<RootCertStore>, String> {
    use ClientAuthentication::{NoClientCert, RequestClientCert, RequireAnyClientCert};
    let problem = |problem: &str| Err(format!("tls_server_config: {problem}"));
    match (authentication, pem) {
        (NoClientCert, None) => Ok(None),
        (NoClientCert, Some(_)) => problem(
            "client_ca_file has no effect with NoClientCert; write client_auth_type: RequireAndVerifyClientCert",
        ),
        (RequestClientCert | RequireAnyClientCert, _) => problem(
            "client_auth_type: RequestClientCert and RequireAnyClientCert verify nothing and are not supported; use \
             RequireAndVerifyClientCert or VerifyClientCertIfGiven",
        ),
        (_, None) => {
            problem("client_auth_type needs client_ca_file, the authorities that clients' certificates come from")
        }
        (_, Some(pem)) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates("client_ca", pem)? {
                roots.add(certificate).map_err(|error| format!("tls_server_config: client_ca: {error}"))?;
            }
            Ok(Some(roots))
        }
    }
}

fn versions(min: Option<Version>, max: Option<Version>) -> Result<Vec<&'static SupportedProtocolVersion>, String> {
    let (min, max) = (min.unwrap_or(Version::Tls12), max.unwrap_or(Version::Tls13));
    if min == Version::Insecure || max == Version::Insecure {
        let key = if min == Version::Insecure { "min_version" } else { "max_version" };
        return Err(format!("tls_server_config: {key}: TLS 1.0 and 1.1 are not supported; write TLS12 or TLS13"));
    }
    let within = [(Version::Tls12, &TLS12), (Version::Tls13, &TLS13)].into_iter();
    let within: Vec<_> = within.filter(|(version, _)| (min..=max).contains(version)).map(|(_, own)| own).collect();
    if within.is_empty() {
        return Err("tls_server_config: min_version is above max_version".to_owned());
    }
    Ok(within)
}

/// Returns the cryptography with these cipher suites (of TLS 1.2; 1.3 has no choice) and curves; all of them if empty.
fn provider(cipher_suites: &[String], curves: &[String]) -> Result<CryptoProvider, String> {
    let mut provider = ring::default_provider();
    if !cipher_suites.is_empty() {
        let all = provider.cipher_suites;
        let chosen = named("cipher_suites", cipher_suites, &all, |suite| suite_name(suite.suite()))?;
        let is_13 = |suite: &rustls::SupportedCipherSuite| suite.tls13().is_some();
        provider.cipher_suites = all
            .iter()
            .filter(|suite| is_13(suite))
            .chain(chosen.iter().filter(|suite| !is_13(suite)))
            .copied()
            .collect();
    }
    if !curves.is_empty() {
        provider.kx_groups = named("curve_preferences", curves, &provider.kx_groups, |group| curve_name(group.name()))?;
    }
    Ok(provider)
}

fn named<T: Copy>(key: &str, names: &[String], all: &[T], name_of: impl Fn(&T) -> String) -> Result<Vec<T>, String> {
    let find = |name: &String| {
        all.iter().find(|one| name_of(one) == *name).copied().ok_or_else(|| {
            let known: Vec<_> = all.iter().map(&name_of).collect();
            format!("tls_server_config: {key}: {name} is not supported; supported are {}", known.join(", "))
        })
    };
    names.iter().map(find).collect()
}

/// Returns the name that Go has for a suite.
fn suite_name(suite: CipherSuite) -> String {
    suite.as_str().unwrap_or_default().replace("TLS13_", "TLS_")
}

/// Returns the name that Go has for a curve.
fn curve_name(group: NamedGroup) -> String {
    match group {
        NamedGroup::secp256r1 => "CurveP256",
        NamedGroup::secp384r1 => "CurveP384",
        other => other.as_str().unwrap_or_default(),
    }
    .to_owned()
}
