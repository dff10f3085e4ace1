//! A token: read from its file for every push, so that a new one takes effect at once; never stored or shown.

use std::{fs, io, path::PathBuf};

/// The file with the token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenFile {
    path: PathBuf,
    /// The option that names it.
    option: &'static str,
}

/// Why there is no token. Names the file, never its content.
#[derive(Debug, thiserror::Error)]
#[error(
    "token file {path} {problem}; it must hold the token alone, readable by the observer's user; --{option} names it"
)]
pub struct TokenError {
    path: PathBuf,
    option: &'static str,
    problem: String,
}

impl TokenFile {
    /// Creates a reader of the token in `path`, which `option` names.
    #[must_use]
    pub fn new(path: PathBuf, option: &'static str) -> Self {
        Self { path, option }
    }

    /// Reads the token.
    ///
    /// # Errors
    /// The file cannot be read, or has other content.
    pub fn read(&self) -> Result<String, TokenError> {
        self.check(fs::read_to_string(&self.path))
    }

    /// Reads the token without blocking the runtime.
    ///
    /// # Errors
    /// As [`TokenFile::read`].
    pub async fn read_now(&self) -> Result<String, TokenError> {
        self.check(tokio::fs::read_to_string(&self.path).await)
    }

    fn check(&self, text: io::Result<String>) -> Result<String, TokenError> {
        let Self { path, option } = self;
        let error = |problem: String| TokenError { path: path.clone(), option, problem };
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_read_anew_each_time_and_never_said() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let token = TokenFile::new(file.path().to_owned(), "wavefront-token-file");
        fs::write(file.path(), "one\n").unwrap();
        assert_eq!(token.read().unwrap(), "one");
        fs::write(file.path(), " two ").unwrap();
        assert_eq!(token.read().unwrap(), "two");
        for (text, problem) in [("", "is empty"), ("se cret", "more than one word"), ("secr\u{e9}t", "no token has")] {
            fs::write(file.path(), text).unwrap();
            let error = token.read().unwrap_err().to_string();
            assert!(error.contains(problem) && !error.contains("cr"), "{error}");
        }
        let error = TokenFile::new("/nonexistent/token".into(), "wavefront-token-file").read().unwrap_err().to_string();
        assert!(error.contains("/nonexistent/token") && error.contains("--wavefront-token-file"), "{error}");
    }
}
