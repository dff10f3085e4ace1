//! Headers with credentials, from files that are read again for every push, so that a new token takes effect at once.

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};

/// Maximum size of a file.
const MAX_FILE_BYTES: u64 = 64 << 10;
/// Headers that the transport sets itself, and those of the connection.
const RESERVED: [&str; 10] = [
    "content-type",
    "content-encoding",
    "content-length",
    "transfer-encoding",
    "connection",
    "host",
    "te",
    "trailer",
    "upgrade",
    "x-prometheus-remote-write-version",
];

/// The files with a receiver's credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Headers, one `Name: value` per line.
    pub headers: Option<PathBuf>,
    /// A bearer token.
    pub token: Option<PathBuf>,
    /// `user:password`.
    pub basic: Option<PathBuf>,
}

/// Why there are no credentials. Names the file, never its content.
#[derive(Debug, thiserror::Error)]
#[error("file {path} {problem}; {remedy}")]
pub struct CredentialError {
    path: PathBuf,
    problem: String,
    remedy: &'static str,
}

/// How a file is read.
#[derive(Clone, Copy)]
struct Kind {
    remedy: &'static str,
    headers: fn(&str) -> Result<HeaderMap, String>,
}

const HEADERS: Kind =
    Kind { remedy: "it must have a header per line, as in \"Authorization: Bearer TOKEN\"", headers: header_lines };
const TOKEN: Kind = Kind { remedy: "it must hold the token alone", headers: bearer };
const BASIC: Kind = Kind { remedy: "it must hold one line, USER:PASSWORD", headers: basic };

impl Credentials {
    /// Reads the headers.
    ///
    /// # Errors
    /// A file cannot be read, or has other content.
    pub fn read(&self) -> Result<HeaderMap, CredentialError> {
        let mut all = HeaderMap::new();
        for (kind, path) in [(HEADERS, &self.headers), (TOKEN, &self.token), (BASIC, &self.basic)] {
            if let Some(path) = path {
                let error = |problem| CredentialError { path: path.clone(), problem, remedy: kind.remedy };
                let text = text(path).map_err(|reason| error(format!("cannot be read: {reason}")))?;
                let headers = (kind.headers)(&text).map_err(error)?;
                if let Some(name) = headers.keys().find(|name| all.contains_key(*name)) {
                    return Err(error(format!("gives {name} a second time")));
                }
                all.extend(headers);
            }
        }
        all.values_mut().for_each(|value| value.set_sensitive(true));
        Ok(all)
    }

    /// Reads the headers without blocking the runtime.
    ///
    /// # Errors
    /// As [`Credentials::read`].
    pub(super) async fn read_now(&self) -> Result<HeaderMap, CredentialError> {
        if *self == Self::default() {
            return Ok(HeaderMap::new());
        }
        let own = self.clone();
        let read = tokio::task::spawn_blocking(move || own.read()).await;
        read.unwrap_or_else(|error| {
            Err(CredentialError { path: PathBuf::new(), problem: error.to_string(), remedy: "it is read again" })
        })
    }
}

fn text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other("it is larger than 64 KiB"));
    }
    Ok(text)
}

fn header_lines(text: &str) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
    for (number, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
        let error = |problem: &str| format!("has a line {number} {problem}");
        let (name, value) = line.split_once(':').ok_or_else(|| error("without a colon"))?;
        let name: HeaderName = name.trim().parse().map_err(|_| error("whose name no header can have"))?;
        if RESERVED.contains(&name.as_str()) {
            return Err(error("that sets a header of the transport"));
        }
        let value = HeaderValue::from_str(value.trim()).map_err(|_| error("whose value no header can have"))?;
        if headers.insert(name, value).is_some() {
            return Err(error("that repeats a header"));
        }
    }
    if headers.is_empty() { Err("has no header".to_owned()) } else { Ok(headers) }
}

fn bearer(text: &str) -> Result<HeaderMap, String> {
    let token = text.trim();
    match token {
        "" => Err("is empty".to_owned()),
        _ if token.bytes().all(|byte| byte.is_ascii_graphic()) => authorization(&format!("Bearer {token}")),
        _ => Err("holds more than one word, or characters that no token has".to_owned()),
    }
}

fn basic(text: &str) -> Result<HeaderMap, String> {
    let line = text.trim_end_matches(['\r', '\n']);
    if line.contains(['\r', '\n']) || !line.contains(':') {
        return Err("has no colon, or more than one line".to_owned());
    }
    authorization(&format!("Basic {}", BASE64_STANDARD.encode(line)))
}

fn authorization(value: &str) -> Result<HeaderMap, String> {
    let value = HeaderValue::from_str(value).map_err(|_| "holds characters that no header has".to_owned())?;
    Ok([(AUTHORIZATION, value)].into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_becomes_headers() {
        let headers = header_lines("# comment\n\nAuthorization: Bearer x y\r\nX-Scope-OrgID:  team:1 \n").unwrap();
        assert!(headers["authorization"] == "Bearer x y" && headers["x-scope-orgid"] == "team:1");
        assert_eq!(bearer(" secret\n").unwrap()["authorization"], "Bearer secret");
        assert_eq!(basic("Aladdin:open sesame\n").unwrap()["authorization"], "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
    }

    #[test]
    fn wrong_files_are_named_and_never_quoted() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = || Some(file.path().to_owned());
        let headers = Credentials { headers: path(), ..Credentials::default() };
        let token = Credentials { token: path(), ..Credentials::default() };
        let basic = Credentials { basic: path(), ..Credentials::default() };
        let twice = Credentials { headers: path(), token: path(), ..Credentials::default() };
        for (credentials, text, problem) in [
            (&headers, "", "has no header"),
            (&headers, "a: 1\nsecret", "line 2 without a colon"),
            (&headers, "se cret: 1", "whose name"),
            (&headers, "a: se\u{1}cret", "whose value"),
            (&headers, "Content-Type: secret", "header of the transport"),
            (&headers, "a: 1\nA: secret", "repeats"),
            (&token, "", "is empty"),
            (&token, "se cret", "more than one word"),
            (&basic, "secret", "no colon"),
            (&basic, "a:secret\nb", "more than one line"),
            (&twice, "Authorization:secret", "a second time"),
        ] {
            fs::write(file.path(), text).unwrap();
            let error = credentials.read().unwrap_err().to_string();
            assert!(error.contains(problem) && error.contains(file.path().to_str().unwrap()), "{error}");
            assert!(!error.contains("cret"), "{error}");
        }
        fs::write(file.path(), "x".repeat(70_000)).unwrap();
        assert!(token.read().unwrap_err().to_string().contains("larger than"));
        fs::write(file.path(), "secret").unwrap();
        assert!(!format!("{:?}", token.read().unwrap()).contains("secret"));
        let missing = Credentials { token: Some("/nonexistent/token".into()), ..Credentials::default() };
        assert!(missing.read().unwrap_err().to_string().contains("/nonexistent/token"));
    }
}
