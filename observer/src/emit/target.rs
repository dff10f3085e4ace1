//! Push targets, as written on the command line.

use std::{fmt, str::FromStr};

use reqwest::Url;

use super::options::{OtlpOptions, ReceiverOptions, RemoteWriteOptions, ZipkinOptions};

/// Path of the Wavefront service's endpoint for points.
const REPORT: &str = "/report";
/// Path of OTLP metrics over HTTP.
const METRICS: &str = "/v1/metrics";
/// Path of OTLP traces over HTTP.
const TRACES: &str = "/v1/traces";
/// Path of spans in Zipkin.
const ZIPKIN_SPANS: &str = "/api/v2/spans";
/// Path of remote write in Prometheus.
const WRITE: &str = "/api/v1/write";

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
    /// `wavefront-traces+http://HOST:PORT[/PATH]`: lines of spans posted to a Wavefront proxy.
    WavefrontSpansHttp(Url),
    /// `wavefront-traces+https://INSTANCE[/PATH]`: lines of spans posted to the service. Without a path it is `/report`.
    WavefrontSpansHttps(Url),
    /// `zipkin+http://HOST:9411[/PATH][#OPTIONS]` or `zipkin+https://…`: spans. Without a path it is `/api/v2/spans`.
    Zipkin(Url, ZipkinOptions),
    /// `otlp+http://HOST:4318[/PATH][#OPTIONS]` or `otlp+https://…`: OTLP over HTTP. Without a path it is `/v1/metrics`.
    OtlpHttp(Url, OtlpOptions),
    /// `otlp+grpc://HOST:4317[#OPTIONS]` or `otlp+grpcs://…`: OTLP to a gRPC server, in plain text or over TLS.
    OtlpGrpc(Url, OtlpOptions),
    /// `otlp-traces+http://HOST:4318[/PATH][#OPTIONS]` or `otlp-traces+https://…`: spans. Without a path it is `/v1/traces`.
    OtlpSpansHttp(Url, OtlpOptions),
    /// `otlp-traces+grpc://HOST:4317[#OPTIONS]` or `otlp-traces+grpcs://…`: spans.
    OtlpSpansGrpc(Url, OtlpOptions),
    /// `remote-write+http://HOST:PORT[/PATH][#OPTIONS]` or `remote-write+https://…`. Without a path it is
    /// `/api/v1/write`.
    RemoteWrite(Url, RemoteWriteOptions),
}

/// A target that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot emit to {target:?}: {problem}; use otlp+http://HOST:4318, otlp+https://HOST, otlp+grpc://HOST:4317, otlp+grpcs://HOST, the same with otlp-traces for spans, zipkin+http://HOST:9411, zipkin+https://HOST, remote-write+http://HOST:9090, remote-write+https://HOST, wavefront+file:PATH (- for standard output), wavefront+http://HOST:PORT, wavefront+https://INSTANCE, or those two with wavefront-traces for spans"
)]
pub struct TargetError {
    target: String,
    problem: String,
}

impl EmitTarget {
    /// Returns whether it takes spans, and no metrics.
    #[must_use]
    pub const fn is_of_spans(&self) -> bool {
        match self {
            Self::OtlpSpansHttp(..)
            | Self::OtlpSpansGrpc(..)
            | Self::Zipkin(..)
            | Self::WavefrontSpansHttp(_)
            | Self::WavefrontSpansHttps(_) => true,
            Self::OtlpHttp(..)
            | Self::OtlpGrpc(..)
            | Self::RemoteWrite(..)
            | Self::WavefrontFile(_)
            | Self::WavefrontHttp(_)
            | Self::WavefrontHttps(_) => false,
        }
    }
}

impl FromStr for EmitTarget {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        parse(text).map_err(|problem| TargetError { target: without_credentials(text), problem })
    }
}

fn parse(text: &str) -> Result<EmitTarget, String> {
    let Some((scheme, rest)) = text.split_once(':') else {
        return Err(format!("this version has no emitter {text:?}"));
    };
    Ok(match scheme {
        "wavefront+file" if rest.is_empty() => return Err("the path is missing".to_owned()),
        "wavefront+file" => EmitTarget::WavefrontFile(rest.to_owned()),
        "wavefront+http" => EmitTarget::WavefrontHttp(url("http", rest, "/")?),
        "wavefront+https" => EmitTarget::WavefrontHttps(url("https", rest, REPORT)?),
        "wavefront-traces+http" => EmitTarget::WavefrontSpansHttp(url("http", rest, "/")?),
        "wavefront-traces+https" => EmitTarget::WavefrontSpansHttps(url("https", rest, REPORT)?),
        "zipkin+http" => with_options(url("http", rest, ZIPKIN_SPANS)?, EmitTarget::Zipkin)?,
        "zipkin+https" => with_options(url("https", rest, ZIPKIN_SPANS)?, EmitTarget::Zipkin)?,
        "otlp+http" => with_options(url("http", rest, METRICS)?, EmitTarget::OtlpHttp)?,
        "otlp+https" => with_options(url("https", rest, METRICS)?, EmitTarget::OtlpHttp)?,
        "otlp+grpc" => with_options(without_path(url("http", rest, "/")?)?, EmitTarget::OtlpGrpc)?,
        "otlp+grpcs" => with_options(without_path(url("https", rest, "/")?)?, EmitTarget::OtlpGrpc)?,
        "otlp-traces+http" => with_options(url("http", rest, TRACES)?, EmitTarget::OtlpSpansHttp)?,
        "otlp-traces+https" => with_options(url("https", rest, TRACES)?, EmitTarget::OtlpSpansHttp)?,
        "otlp-traces+grpc" => with_options(without_path(url("http", rest, "/")?)?, EmitTarget::OtlpSpansGrpc)?,
        "otlp-traces+grpcs" => with_options(without_path(url("https", rest, "/")?)?, EmitTarget::OtlpSpansGrpc)?,
        "remote-write+http" => with_options(url("http", rest, WRITE)?, EmitTarget::RemoteWrite)?,
        "remote-write+https" => with_options(url("https", rest, WRITE)?, EmitTarget::RemoteWrite)?,
        _ => return Err(format!("this version has no emitter {scheme:?}")),
    })
}

/// Parses a URL, to which `path` is added if it has none.
fn url(scheme: &str, rest: &str, path: &str) -> Result<Url, String> {
    if !rest.starts_with("//") {
        return Err("its host is missing: write // before it".to_owned());
    }
    let mut url = Url::parse(&format!("{scheme}:{rest}")).map_err(|cause| cause.to_string())?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("credentials do not belong on a command line".to_owned());
    }
    if url.path() == "/" {
        url.set_path(path);
    }
    Ok(url)
}

fn without_path(url: Url) -> Result<Url, String> {
    if url.path() == "/" && url.query().is_none() { Ok(url) } else { Err("gRPC has no path: leave it out".to_owned()) }
}

/// Takes the options off a URL.
fn with_options<T: ReceiverOptions + Default>(
    mut url: Url,
    target: fn(Url, T) -> EmitTarget,
) -> Result<EmitTarget, String> {
    let mut options = T::default();
    options.set_all(url.fragment().unwrap_or_default())?;
    url.set_fragment(None);
    Ok(target(url, options))
}

/// Formats the emitter's name in metrics and log lines, without the query, which may contain a token.
impl fmt::Display for EmitTarget {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WavefrontFile(path) => write!(formatter, "wavefront+file:{path}"),
            Self::WavefrontHttp(url) | Self::WavefrontHttps(url) => write!(formatter, "wavefront+{}", shown(url)),
            Self::WavefrontSpansHttp(url) | Self::WavefrontSpansHttps(url) => {
                write!(formatter, "wavefront-traces+{}", shown(url))
            }
            Self::Zipkin(url, _) => write!(formatter, "zipkin+{}", shown(url)),
            Self::OtlpHttp(url, _) => write!(formatter, "otlp+{}", shown(url)),
            Self::OtlpGrpc(url, _) => write!(formatter, "otlp+{}", grpc(url)),
            Self::OtlpSpansHttp(url, _) => write!(formatter, "otlp-traces+{}", shown(url)),
            Self::OtlpSpansGrpc(url, _) => write!(formatter, "otlp-traces+{}", grpc(url)),
            Self::RemoteWrite(url, _) => write!(formatter, "remote-write+{}", shown(url)),
        }
    }
}

/// Returns a URL of gRPC without query and fragment.
fn grpc(url: &Url) -> String {
    shown(url).as_str().replacen("http", "grpc", 1)
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

    fn read(text: &str) -> Result<EmitTarget, TargetError> {
        text.parse()
    }

    #[test]
    fn targets_are_read_and_wrong_ones_explained() {
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
            ("otlp+http:collector:4318", "write // before it"),
            ("wavefront+http://user:secret@proxy", "credentials"),
            ("wavefront+https://secret@proxy", "credentials"),
            ("remote-write+https://secret:x@proxy", "credentials"),
            ("otlp+grpc://collector:4317/path", "gRPC has no path"),
            ("otlp+http://collector#names=old", "expected istio or semconv"),
            ("otlp+http://collector#names", "has no value"),
            ("otlp+http://collector#token-file=x", "there are names, temporality"),
            ("remote-write+http://p#names=istio", "there are histograms, headers-file"),
            ("zipkin+http://z#names=istio", "there are compression, headers-file"),
            ("zipkin://z", "no emitter \"zipkin\""),
            ("wavefront-traces+http://user:secret@proxy", "credentials"),
            ("statsd://x", "no emitter \"statsd\""),
        ] {
            let error = read(wrong).unwrap_err().to_string();
            assert!(error.contains(problem) && error.contains("wavefront+file:"), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_name_has_neither_query_nor_options() {
        for (text, name) in [
            ("wavefront+http://proxy:2878/?token=secret#x", "wavefront+http://proxy:2878/"),
            ("otlp+http://collector:4318?a=b#names=semconv", "otlp+http://collector:4318/v1/metrics"),
            ("otlp+https://collector/x", "otlp+https://collector/x"),
            ("otlp+grpc://collector:4317#temporality=delta", "otlp+grpc://collector:4317/"),
            ("otlp+grpcs://collector", "otlp+grpcs://collector/"),
            ("otlp-traces+http://collector:4318", "otlp-traces+http://collector:4318/v1/traces"),
            ("otlp-traces+grpc://collector:4317", "otlp-traces+grpc://collector:4317/"),
            ("zipkin+http://zipkin:9411#compression=none", "zipkin+http://zipkin:9411/api/v2/spans"),
            ("zipkin+https://jaeger/other", "zipkin+https://jaeger/other"),
            ("wavefront-traces+http://proxy:30000?token=secret", "wavefront-traces+http://proxy:30000/"),
            ("wavefront-traces+https://x.example", "wavefront-traces+https://x.example/report"),
            ("remote-write+http://p:9090", "remote-write+http://p:9090/api/v1/write"),
        ] {
            assert_eq!(read(text).unwrap().to_string(), name);
        }
    }

    #[test]
    fn options_behind_the_hash_are_this_receivers() {
        let text = "otlp+http://c?x=y#names=semconv&temporality=delta&histograms=exponential&compression=none&\
                    resource=k8s.cluster.name=c1&headers-file=/h&ca-file=/ca&cert-file=/c&key-file=/k";
        let Ok(EmitTarget::OtlpHttp(url, options)) = read(text) else { panic!("{text}") };
        assert_eq!(url.as_str(), "http://c/v1/metrics?x=y");
        let general = OtlpOptions { headers_file: Some("/other".into()), ..OtlpOptions::default() };
        assert_eq!(options.or(&general), options);
        assert_eq!(OtlpOptions::default().or(&options), options);
        assert_eq!(options.encoder().resource, [("k8s.cluster.name".to_owned(), "c1".to_owned())]);
        assert!(options.access().unwrap().identity.is_some());
        let half = OtlpOptions { key_file: None, ..options };
        assert!(half.access().unwrap_err().contains("--otlp-key-file"));
    }
}
