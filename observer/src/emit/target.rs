//! Push targets, as written on the command line.

use std::{fmt, str::FromStr};

use reqwest::Url;

/// Path of the service's endpoint for points.
const REPORT: &str = "/report";

/// A push target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EmitTarget {
    /// `wavefront+file:PATH`: lines appended to a file, or to standard output for `-`.
    WavefrontFile(String),
    /// `wavefront+http://HOST:PORT[/PATH]`: lines posted to a Wavefront proxy.
    WavefrontHttp(Url),
    /// `wavefront+https://INSTANCE[/PATH]`: lines posted to the service, with an API token. Without a path it is
    /// `/report`.
    WavefrontHttps(Url),
}

/// A target that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot emit to {target:?}: {problem}; use wavefront+file:PATH (- for standard output), wavefront+http://HOST:PORT or wavefront+https://INSTANCE"
)]
pub struct TargetError {
    target: String,
    problem: String,
}

impl FromStr for EmitTarget {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let error = |problem: String| TargetError { target: without_credentials(text), problem };
        if let Some(path) = text.strip_prefix("wavefront+file:") {
            return match path {
                "" => Err(error("the path is missing".to_owned())),
                _ => Ok(Self::WavefrontFile(path.to_owned())),
            };
        }
        let url = |url: &str| {
            let url = Url::parse(url).map_err(|cause| error(cause.to_string()))?;
            if !url.username().is_empty() || url.password().is_some() {
                return Err(error("credentials do not belong on a command line".to_owned()));
            }
            Ok(url)
        };
        if let Some(rest) = text.strip_prefix("wavefront+http://") {
            return Ok(Self::WavefrontHttp(url(&format!("http://{rest}"))?));
        }
        if let Some(rest) = text.strip_prefix("wavefront+https://") {
            let mut url = url(&format!("https://{rest}"))?;
            if url.path() == "/" {
                url.set_path(REPORT);
            }
            return Ok(Self::WavefrontHttps(url));
        }
        let scheme = text.split_once(':').map_or(text, |(scheme, _)| scheme);
        Err(error(format!("this version has no emitter {scheme:?}")))
    }
}

/// Formats the emitter's name in metrics and log lines, without the query, which may contain a token.
impl fmt::Display for EmitTarget {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WavefrontFile(path) => write!(formatter, "wavefront+file:{path}"),
            Self::WavefrontHttp(url) | Self::WavefrontHttps(url) => write!(formatter, "wavefront+{}", shown(url)),
        }
    }
}

/// Returns a URL without query and fragment.
#[must_use]
pub fn shown(url: &Url) -> Url {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    url
}

fn without_credentials(text: &str) -> String {
    let parts = text.split_once("://").and_then(|(scheme, rest)| Some((scheme, rest.rsplit_once('@')?.1)));
    parts.map_or_else(|| text.to_owned(), |(scheme, host)| format!("{scheme}://…@{host}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_and_wrong_ones_explained() {
        let read = |text: &str| text.parse::<EmitTarget>();
        assert_eq!(read("wavefront+file:-"), Ok(EmitTarget::WavefrontFile("-".to_owned())));
        assert_eq!(read("wavefront+file:/tmp/x y"), Ok(EmitTarget::WavefrontFile("/tmp/x y".to_owned())));
        let url = "http://proxy:2878/report".parse().unwrap();
        assert_eq!(read("wavefront+http://proxy:2878/report"), Ok(EmitTarget::WavefrontHttp(url)));
        for (text, url) in [
            ("wavefront+https://x.example", "https://x.example/report"),
            ("wavefront+https://x.example:8443/", "https://x.example:8443/report"),
            ("wavefront+https://x.example/other", "https://x.example/other"),
        ] {
            assert_eq!(read(text), Ok(EmitTarget::WavefrontHttps(url.parse().unwrap())));
        }
        for (wrong, problem) in [
            ("", "no emitter"),
            ("wavefront+file:", "path is missing"),
            ("wavefront+http://", "empty host"),
            ("wavefront+http://user:secret@proxy", "credentials"),
            ("wavefront+https://secret@proxy", "credentials"),
            ("statsd://x", "no emitter \"statsd\""),
        ] {
            let error = read(wrong).unwrap_err().to_string();
            assert!(error.contains(problem) && error.contains("use wavefront+file:"), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_name_has_no_query() {
        let target: EmitTarget = "wavefront+http://proxy:2878/?token=secret#x".parse().unwrap();
        assert_eq!(target.to_string(), "wavefront+http://proxy:2878/");
    }
}
