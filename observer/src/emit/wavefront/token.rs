//! The API token: read from its file for every push, so that a new one takes effect at once; never stored or shown.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The file with the token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenFile(PathBuf);

/// Why there is no token. Names the file, never its content.
#[derive(Debug, thiserror::Error)]
#[error(
    "token file {path} {problem}; it must hold the API token alone, readable by the observer's user; --wavefront-token-file names it"
)]
pub struct TokenError {
    path: PathBuf,
    problem: String,
}

impl TokenFile {
    /// Creates a reader of the token in `path`.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Reads the token.
    ///
    /// # Errors
    /// The file cannot be read, or has other content.
    pub fn read(&self) -> Result<String, TokenError> {
        check(&self.0, fs::read_to_string(&self.0))
    }

    /// Reads the token without blocking the runtime.
    ///
    /// # Errors
    /// As [`TokenFile::read`].
    pub async fn read_now(&self) -> Result<String, TokenError> {
        check(&self.0, tokio::fs::read_to_string(&self.0).await)
    }
}

fn check(path: &Path, text: io::Result<String>) -> Result<String, TokenError> {
    let error = |problem: String| TokenError { path: path.to_owned(), problem };
    let text = text.map_err(|reason| error(format!("cannot be read: {reason}")))?;
    let token = text.trim();
    if token.is_empty() {
        return Err(error("is empty".to_owned()));
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(error("holds more than one word, or characters that no token has".to_owned()));
    }
    Ok(token.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_read_anew_each_time_and_never_said() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let token = TokenFile::new(file.path().to_owned());
        fs::write(file.path(), "one\n").unwrap();
        assert_eq!(token.read().unwrap(), "one");
        fs::write(file.path(), " two ").unwrap();
        assert_eq!(token.read().unwrap(), "two");
        for (text, problem) in [("", "is empty"), ("se cret", "more than one word"), ("secr\u{e9}t", "no token has")] {
            fs::write(file.path(), text).unwrap();
            let error = token.read().unwrap_err().to_string();
            assert!(error.contains(problem) && !error.contains("cr"), "{error}");
        }
        let error = TokenFile::new("/nonexistent/token".into()).read().unwrap_err().to_string();
        assert!(error.contains("/nonexistent/token") && error.contains("--wavefront-token-file"), "{error}");
    }
}
