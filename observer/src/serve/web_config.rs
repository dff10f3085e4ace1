//! The web configuration file: TLS, users and headers, in the form of Prometheus' exporter-toolkit.
//!
//! [exporter-toolkit `docs/web-configuration.md`]. What is not supported is refused by name, never ignored: an option of
//! security without effect is worse than none.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
    str::FromStr as _,
};

use bcrypt::HashParts;
use hyper::header::{HeaderName, HeaderValue};
use ring::digest::{self, SHA256};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, de::IgnoredAny};

use super::tls::{Tls, TlsTable};

/// Largest web configuration file, certificate or key.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// A cost of 15 takes some two seconds of CPU per wrong password, and each further one twice as long.
const MAX_BCRYPT_COST: u32 = 15;
/// Most users.
const MAX_USERS: usize = 1_000;

/// Why a web configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("web configuration file {path}: {problem}")]
pub struct WebConfigError {
    path: PathBuf,
    problem: String,
}

/// A loaded web configuration.
pub(super) struct WebConfig {
    /// TLS, unless plain HTTP is served.
    pub(super) tls: Option<Tls>,
    /// Headers of every response.
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    /// bcrypt hashes by user; empty if no authentication is required.
    pub(super) users: BTreeMap<String, String>,
    /// Digest of all files that it was made from.
    pub(super) digest: Vec<u8>,
}

/// Checks a web configuration as [`Config::load`](crate::config::Config::load) does the other one.
///
/// # Errors
/// A file cannot be read, or a value is invalid or not supported.
pub fn check(path: &Path) -> Result<(), WebConfigError> {
    WebConfig::load(path).map(drop)
}

/// Returns the certificate of the server that has this web configuration; `None` if it has no TLS. No key is read.
///
/// # Errors
/// A file cannot be read, or a value is invalid.
pub fn certificate(path: &Path) -> Result<Option<CertificateDer<'static>>, WebConfigError> {
    let (certificate, _) = load(path, |text, files| {
        document(text)?.tls_server_config.map(|table| Tls::certificate(table, files)).transpose()
    })?;
    Ok(certificate)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    tls_server_config: Option<TlsTable>,
    #[serde(default)]
    http_server_config: HttpTable,
    #[serde(default)]
    basic_auth_users: BTreeMap<String, String>,
    rate_limit: Option<IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct HttpTable {
    http2: bool,
    headers: HeaderTable,
}

/// The headers that exporter-toolkit accepts.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct HeaderTable {
    #[serde(rename = "Content-Security-Policy")]
    content_security_policy: String,
    #[serde(rename = "X-Frame-Options")]
    x_frame_options: String,
    #[serde(rename = "X-Content-Type-Options")]
    x_content_type_options: String,
    #[serde(rename = "X-XSS-Protection")]
    x_xss_protection: String,
    #[serde(rename = "Strict-Transport-Security")]
    strict_transport_security: String,
}

impl WebConfig {
    /// Loads the file and those it names. Relative paths begin at its directory.
    pub(super) fn load(path: &Path) -> Result<Self, WebConfigError> {
        let ((tls, headers, users), digest) = load(path, parse)?;
        Ok(Self { tls, headers, users, digest })
    }
}

/// Reads the file and those it names; returns what `parse` makes of them, and their digest.
fn load<T>(
    path: &Path,
    parse: impl FnOnce(&str, &mut Files<'_>) -> Result<T, String>,
) -> Result<(T, Vec<u8>), WebConfigError> {
    let mut files = Files { directory: path.parent().unwrap_or(Path::new("")), digest: digest::Context::new(&SHA256) };
    let text = files.read(Path::new(path.file_name().unwrap_or_default()));
    let loaded = text.and_then(|text| parse(&text, &mut files));
    let loaded = loaded.map_err(|problem| WebConfigError { path: path.to_owned(), problem })?;
    Ok((loaded, files.digest.finish().as_ref().to_vec()))
}

/// Reads the files of a configuration.
pub(super) struct Files<'a> {
    directory: &'a Path,
    digest: digest::Context,
}

impl Files<'_> {
    /// Returns the content of a small regular file.
    pub(super) fn read(&mut self, path: &Path) -> Result<String, String> {
        let path = self.directory.join(path);
        let content = read(&path).map_err(|error| {
            format!(
                "{} cannot be read: {error}; check its path and that the observer's user may read it",
                path.display()
            )
        })?;
        self.digest.update(&(content.len() as u64).to_le_bytes());
        self.digest.update(content.as_bytes());
        Ok(content)
    }
}

fn read(path: &Path) -> io::Result<String> {
    // A pipe would block.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut content = String::new();
    File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_string(&mut content)?;
    if content.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other(format!("it has more than {MAX_FILE_BYTES} bytes")));
    }
    Ok(content)
}

type Parts = (Option<Tls>, Vec<(HeaderName, HeaderValue)>, BTreeMap<String, String>);

fn document(text: &str) -> Result<Document, String> {
    // The text of an error may not repeat a line: it may hold a key or a hash.
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| error.without_snippet().to_string())
}

fn parse(text: &str, files: &mut Files<'_>) -> Result<Parts, String> {
    let Document { tls_server_config, http_server_config: HttpTable { http2, headers }, basic_auth_users, rate_limit } =
        document(text)?;
    if rate_limit.is_some() {
        return Err(
            "rate_limit is not supported: scrapes within 100 ms share one reading, and connections are limited; \
                    remove it"
                .to_owned(),
        );
    }
    if http2 {
        return Err("http_server_config.http2: HTTP/2 is not supported; write false or remove it".to_owned());
    }
    if tls_server_config.is_none() && basic_auth_users.is_empty() {
        return Err(
            "it has neither tls_server_config nor basic_auth_users, and so protects nothing; add one, or remove \
                    --web-config-file"
                .to_owned(),
        );
    }
    check_users(&basic_auth_users)?;
    let tls = tls_server_config.map(|table| Tls::new(table, files)).transpose()?;
    Ok((tls, headers.values()?, basic_auth_users))
}

fn check_users(users: &BTreeMap<String, String>) -> Result<(), String> {
    if users.len() > MAX_USERS {
        return Err(format!("basic_auth_users: more than {MAX_USERS} users; put a proxy in front for as many"));
    }
    for (user, hash) in users {
        let problem = |problem: &str| {
            Err(format!("basic_auth_users: {user:?}: {problem}; make one with `htpasswd -nBC 10 NAME`"))
        };
        if user.contains(':') {
            return problem("a user's name cannot contain a colon");
        }
        let Ok(parts) = HashParts::from_str(hash) else { return problem("the value is not a bcrypt hash") };
        if parts.get_cost() > MAX_BCRYPT_COST {
            return problem(&format!("a cost above {MAX_BCRYPT_COST} takes too long"));
        }
    }
    Ok(())
}

impl HeaderTable {
    fn values(self) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
        let accepted = |value: &str, accepted: &[&str]| value.is_empty() || accepted.contains(&value);
        if !accepted(&self.x_frame_options, &["deny", "sameorigin"]) {
            return Err("http_server_config.headers: X-Frame-Options must be deny or sameorigin".to_owned());
        }
        if !accepted(&self.x_content_type_options, &["nosniff"]) {
            return Err("http_server_config.headers: X-Content-Type-Options must be nosniff".to_owned());
        }
        let headers = [
            ("content-security-policy", self.content_security_policy),
            ("x-frame-options", self.x_frame_options),
            ("x-content-type-options", self.x_content_type_options),
            ("x-xss-protection", self.x_xss_protection),
            ("strict-transport-security", self.strict_transport_security),
        ];
        let value = |(name, value): (&'static str, String)| {
            let value = HeaderValue::try_from(value).map_err(|_| {
                format!("http_server_config.headers: the value of {name} has characters that a header cannot have")
            })?;
            Ok((HeaderName::from_static(name), value))
        };
        headers.into_iter().filter(|(_, value)| !value.is_empty()).map(value).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web.yml");
        fs::write(&path, text).unwrap();
        WebConfig::load(&path).err().map(|error| error.to_string()).unwrap_or_default()
    }

    const HASH: &str = "$2y$04$3S9Fjq7nmIhCQYZZYBDCJ.gU96FpPxPv7hCGxRwZ8YFbZ2A4SJYhm";

    #[test]
    fn what_is_unknown_or_not_supported_is_refused_by_name() {
        for (text, expected) in [
            ("tls_config: {}\n", "tls_config"),
            ("tls_server_config: {cert_files: a}\n", "cert_files"),
            ("basic_auth_users: {a: b}\n", "\"a\": the value is not a bcrypt hash"),
            ("basic_auth_users: [a]\n", "line 1"),
            ("", "protects nothing"),
            ("http_server_config: {http2: false}\n", "protects nothing"),
            ("http_server_config: {http2: true}\n", "http2"),
            ("http_server_config: {headers: {X-Other: a}}\n", "X-Other"),
            ("rate_limit: {interval: 1s}\n", "rate_limit is not supported"),
            ("tls_server_config: {cert_file: nowhere, key_file: k}\n", "nowhere cannot be read"),
            ("tls_server_config: {key: k}\n", "cert_file is missing"),
            ("tls_server_config: {cert: x, key: y, min_version: TLS10}\n", "min_version"),
            (
                "tls_server_config: {cert: x, key: y, client_auth_type: RequireAnyClientCert}\n",
                "RequireAndVerifyClientCert",
            ),
            (
                "tls_server_config: {cert: x, key: y, cipher_suites: [TLS_RSA_WITH_RC4_128_SHA]}\n",
                "TLS_RSA_WITH_RC4_128_SHA",
            ),
            ("tls_server_config: {cert: x, key: y, curve_preferences: [CurveP521]}\n", "CurveP521"),
            ("tls_server_config: {cert: x, key: y}\n", "no certificate"),
        ] {
            let problem = problem(text);
            assert!(problem.contains(expected) && problem.contains("web.yml"), "{text}: {problem}");
        }
        let costly = HASH.replace("$04$", "$16$");
        assert!(problem(&format!("basic_auth_users: {{a: '{costly}'}}")).contains("cost above 15"));
        let users = format!("basic_auth_users: {{a: '{HASH}'}}\n");
        assert_eq!(problem(&users), "");
        for (header, expected) in
            [("X-Frame-Options: allow", "deny or sameorigin"), ("X-XSS-Protection: \"a\\nb\"", "x-xss-protection")]
        {
            let problem = problem(&format!("{users}http_server_config: {{headers: {{{header}}}}}\n"));
            assert!(problem.contains(expected), "{problem}");
        }
    }

    #[test]
    fn an_error_shows_no_line_of_the_file() {
        let problem = problem(&format!("basic_auth_users:\n  a: {HASH}\n  a: {HASH}\n"));
        assert!(!problem.is_empty() && !problem.contains("$2y$"), "{problem}");
    }
}
