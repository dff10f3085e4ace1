//! Options of the receivers of OTLP, of remote write and of Zipkin's spans: for all of a kind, or behind the `#` of one
//! receiver's URL, which no server sees.

use std::{path::PathBuf, str::FromStr};

use clap::Args;
use observer_model::encode::{otlp, remote_write};
use serde::{Deserialize, Deserializer, de};

use super::{credentials::Credentials, http::Access};
use crate::system::http_client::Identity;

const OTLP: &str = "OTLP";
const REMOTE_WRITE: &str = "Prometheus remote write";
const ZIPKIN: &str = "Zipkin";

/// Options of one kind of receivers.
pub trait ReceiverOptions: Sized {
    /// Names of the options, as after `#`.
    const KEYS: &str;

    /// Sets one option.
    ///
    /// # Errors
    /// There is none of this name, or the value is invalid.
    fn set(&mut self, key: &str, value: &str) -> Result<(), String>;

    /// Parses what is after the `#` of a URL: `KEY=VALUE`, separated by `&`.
    ///
    /// # Errors
    /// There is no such option, or its value is invalid.
    fn set_all(&mut self, fragment: &str) -> Result<(), String> {
        fragment.split('&').filter(|pair| !pair.is_empty()).try_for_each(|pair| {
            let (key, value) = pair
                .split_once('=')
                .filter(|(_, value)| !value.is_empty())
                .ok_or_else(|| format!("option {pair:?} behind # has no value: write KEY=VALUE with {}", Self::KEYS))?;
            self.set(key, value)
        })
    }
}

/// Options of OTLP receivers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OtlpOptions {
    /// Names of OTLP metrics: Istio's, or for requests those of OpenTelemetry's semantic conventions [default: istio]
    #[arg(id = "otlp_names", long = "otlp-names", value_name = "istio|semconv", env = "OBSERVER_OTLP_NAMES",
        help_heading = OTLP)]
    #[serde(deserialize_with = "word")]
    pub names: Option<otlp::Names>,
    /// Whether counters and histograms are totals, or increases since the last push [default: cumulative]
    #[arg(id = "otlp_temporality", long = "otlp-temporality", value_name = "cumulative|delta",
        env = "OBSERVER_OTLP_TEMPORALITY", help_heading = OTLP)]
    #[serde(deserialize_with = "word")]
    pub temporality: Option<otlp::Temporality>,
    /// Buckets of requests' histograms: Istio's, or exponential ones, within 4 % [default: explicit]
    #[arg(id = "otlp_histograms", long = "otlp-histograms", value_name = "explicit|exponential",
        env = "OBSERVER_OTLP_HISTOGRAMS", help_heading = OTLP)]
    #[serde(deserialize_with = "word")]
    pub histograms: Option<otlp::Histograms>,
    /// Compression of requests [default: gzip]
    #[arg(id = "otlp_compression", long = "otlp-compression", value_name = "gzip|none",
        env = "OBSERVER_OTLP_COMPRESSION", help_heading = OTLP)]
    #[serde(deserialize_with = "word")]
    pub compression: Option<Compression>,
    /// Further attribute of the resource, e.g. k8s.cluster.name=prod; may be repeated
    #[arg(id = "otlp_resource", long = "otlp-resource", value_name = "KEY=VALUE", env = "OBSERVER_OTLP_RESOURCE",
        value_delimiter = ',', help_heading = OTLP)]
    #[serde(deserialize_with = "words")]
    pub resource: Vec<ResourceAttribute>,
    /// File with headers of OTLP requests, such as tokens, one "Name: value" per line; read again for every push
    #[arg(id = "otlp_headers_file", long = "otlp-headers-file", value_name = "FILE", env = "OBSERVER_OTLP_HEADERS_FILE",
        help_heading = OTLP)]
    pub headers_file: Option<PathBuf>,
    /// File with the CA certificates (PEM) that otlp+https:// and otlp+grpcs:// trust [default: the system's]
    #[arg(id = "otlp_ca_file", long = "otlp-ca-file", value_name = "FILE", env = "OBSERVER_OTLP_CA_FILE",
        help_heading = OTLP)]
    pub ca_file: Option<PathBuf>,
    /// File with the client certificate (PEM) for those
    #[arg(id = "otlp_cert_file", long = "otlp-cert-file", value_name = "FILE", env = "OBSERVER_OTLP_CERT_FILE",
        help_heading = OTLP)]
    pub cert_file: Option<PathBuf>,
    /// File with the key of the client certificate (PEM)
    #[arg(id = "otlp_key_file", long = "otlp-key-file", value_name = "FILE", env = "OBSERVER_OTLP_KEY_FILE",
        help_heading = OTLP)]
    pub key_file: Option<PathBuf>,
}

/// Options of receivers of remote write.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RemoteWriteOptions {
    /// Buckets of requests' histograms: Istio's alone, or native ones beside them, within 2 %, which receivers of version
    /// 2.0 take [default: classic]
    #[arg(id = "remote_write_histograms", long = "remote-write-histograms", value_name = "classic|native",
        env = "OBSERVER_REMOTE_WRITE_HISTOGRAMS", help_heading = REMOTE_WRITE)]
    #[serde(deserialize_with = "word")]
    pub histograms: Option<remote_write::Histograms>,
    /// File with headers of remote-write requests, one "Name: value" per line; read again for every push
    #[arg(id = "remote_write_headers_file", long = "remote-write-headers-file", value_name = "FILE",
        env = "OBSERVER_REMOTE_WRITE_HEADERS_FILE", help_heading = REMOTE_WRITE)]
    pub headers_file: Option<PathBuf>,
    /// File with a bearer token; read again for every push
    #[arg(id = "remote_write_token_file", long = "remote-write-token-file", value_name = "FILE",
        env = "OBSERVER_REMOTE_WRITE_TOKEN_FILE", help_heading = REMOTE_WRITE)]
    pub token_file: Option<PathBuf>,
    /// File with USER:PASSWORD of basic authentication; read again for every push
    #[arg(id = "remote_write_basic_auth_file", long = "remote-write-basic-auth-file", value_name = "FILE",
        env = "OBSERVER_REMOTE_WRITE_BASIC_AUTH_FILE", help_heading = REMOTE_WRITE)]
    pub basic_auth_file: Option<PathBuf>,
    /// File with the CA certificates (PEM) that remote-write+https:// trusts [default: the system's]
    #[arg(id = "remote_write_ca_file", long = "remote-write-ca-file", value_name = "FILE",
        env = "OBSERVER_REMOTE_WRITE_CA_FILE", help_heading = REMOTE_WRITE)]
    pub ca_file: Option<PathBuf>,
    /// File with the client certificate (PEM) for it
    #[arg(id = "remote_write_cert_file", long = "remote-write-cert-file", value_name = "FILE",
        env = "OBSERVER_REMOTE_WRITE_CERT_FILE", help_heading = REMOTE_WRITE)]
    pub cert_file: Option<PathBuf>,
    /// File with the key of the client certificate (PEM)
    #[arg(id = "remote_write_key_file", long = "remote-write-key-file", value_name = "FILE",
        env = "OBSERVER_REMOTE_WRITE_KEY_FILE", help_heading = REMOTE_WRITE)]
    pub key_file: Option<PathBuf>,
}

/// Options of receivers of Zipkin's spans.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ZipkinOptions {
    /// Compression of requests to Zipkin [default: gzip]
    #[arg(id = "zipkin_compression", long = "zipkin-compression", value_name = "gzip|none",
        env = "OBSERVER_ZIPKIN_COMPRESSION", help_heading = ZIPKIN)]
    #[serde(deserialize_with = "word")]
    pub compression: Option<Compression>,
    /// File with headers of requests to Zipkin, one "Name: value" per line; read again for every push
    #[arg(id = "zipkin_headers_file", long = "zipkin-headers-file", value_name = "FILE",
        env = "OBSERVER_ZIPKIN_HEADERS_FILE", help_heading = ZIPKIN)]
    pub headers_file: Option<PathBuf>,
    /// File with the CA certificates (PEM) that zipkin+https:// trusts [default: the system's]
    #[arg(id = "zipkin_ca_file", long = "zipkin-ca-file", value_name = "FILE", env = "OBSERVER_ZIPKIN_CA_FILE",
        help_heading = ZIPKIN)]
    pub ca_file: Option<PathBuf>,
    /// File with the client certificate (PEM) for it
    #[arg(id = "zipkin_cert_file", long = "zipkin-cert-file", value_name = "FILE", env = "OBSERVER_ZIPKIN_CERT_FILE",
        help_heading = ZIPKIN)]
    pub cert_file: Option<PathBuf>,
    /// File with the key of the client certificate (PEM)
    #[arg(id = "zipkin_key_file", long = "zipkin-key-file", value_name = "FILE", env = "OBSERVER_ZIPKIN_KEY_FILE",
        help_heading = ZIPKIN)]
    pub key_file: Option<PathBuf>,
}

/// Compression of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// A tenth of the size for a few times the CPU time of encoding.
    #[default]
    Gzip,
    /// For a receiver on this node.
    None,
}

impl FromStr for Compression {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "gzip" => Ok(Self::Gzip),
            "none" => Ok(Self::None),
            _ => Err(format!("invalid value {text:?}: expected gzip or none")),
        }
    }
}

/// An attribute of the resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceAttribute(String, String);

impl FromStr for ResourceAttribute {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let pair = text.split_once('=').filter(|(key, value)| !key.is_empty() && !value.is_empty());
        let (key, value) = pair.ok_or_else(|| format!("invalid attribute {text:?}: expected KEY=VALUE"))?;
        Ok(Self(key.to_owned(), value.to_owned()))
    }
}

impl ReceiverOptions for OtlpOptions {
    const KEYS: &str =
        "names, temporality, histograms, compression, resource, headers-file, ca-file, cert-file, key-file";

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "names" => self.names = Some(parse(value)?),
            "temporality" => self.temporality = Some(parse(value)?),
            "histograms" => self.histograms = Some(parse(value)?),
            "compression" => self.compression = Some(parse(value)?),
            "resource" => self.resource.push(parse(value)?),
            "headers-file" => self.headers_file = Some(value.into()),
            "ca-file" => self.ca_file = Some(value.into()),
            "cert-file" => self.cert_file = Some(value.into()),
            "key-file" => self.key_file = Some(value.into()),
            _ => return Err(unknown::<Self>(key)),
        }
        Ok(())
    }
}

impl OtlpOptions {
    /// Returns these options, and others where these are not given.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        Self {
            names: self.names.or(other.names),
            temporality: self.temporality.or(other.temporality),
            histograms: self.histograms.or(other.histograms),
            compression: self.compression.or(other.compression),
            resource: if self.resource.is_empty() { other.resource.clone() } else { self.resource.clone() },
            headers_file: given(&self.headers_file, &other.headers_file),
            ca_file: given(&self.ca_file, &other.ca_file),
            cert_file: given(&self.cert_file, &other.cert_file),
            key_file: given(&self.key_file, &other.key_file),
        }
    }

    /// Returns the options of the encoder.
    #[must_use]
    pub fn encoder(&self) -> otlp::Options {
        otlp::Options {
            names: self.names.unwrap_or_default(),
            temporality: self.temporality.unwrap_or_default(),
            histograms: self.histograms.unwrap_or_default(),
            resource: self.resource.iter().map(|ResourceAttribute(key, value)| (key.clone(), value.clone())).collect(),
        }
    }

    /// Returns TLS and credentials.
    ///
    /// # Errors
    /// Only one of certificate and key is given.
    pub fn access(&self) -> Result<Access, String> {
        let credentials = Credentials { headers: self.headers_file.clone(), ..Credentials::default() };
        access("otlp", credentials, &self.ca_file, [&self.cert_file, &self.key_file])
    }
}

impl ReceiverOptions for RemoteWriteOptions {
    const KEYS: &str = "histograms, headers-file, token-file, basic-auth-file, ca-file, cert-file, key-file";

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let place = match key {
            "histograms" => {
                self.histograms = Some(parse(value)?);
                return Ok(());
            }
            "headers-file" => &mut self.headers_file,
            "token-file" => &mut self.token_file,
            "basic-auth-file" => &mut self.basic_auth_file,
            "ca-file" => &mut self.ca_file,
            "cert-file" => &mut self.cert_file,
            "key-file" => &mut self.key_file,
            _ => return Err(unknown::<Self>(key)),
        };
        *place = Some(value.into());
        Ok(())
    }
}

impl RemoteWriteOptions {
    /// Returns these options, and others where these are not given.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        Self {
            histograms: self.histograms.or(other.histograms),
            headers_file: given(&self.headers_file, &other.headers_file),
            token_file: given(&self.token_file, &other.token_file),
            basic_auth_file: given(&self.basic_auth_file, &other.basic_auth_file),
            ca_file: given(&self.ca_file, &other.ca_file),
            cert_file: given(&self.cert_file, &other.cert_file),
            key_file: given(&self.key_file, &other.key_file),
        }
    }

    /// Returns TLS and credentials.
    ///
    /// # Errors
    /// Only one of certificate and key is given.
    pub fn access(&self) -> Result<Access, String> {
        let credentials = Credentials {
            headers: self.headers_file.clone(),
            token: self.token_file.clone(),
            basic: self.basic_auth_file.clone(),
        };
        access("remote-write", credentials, &self.ca_file, [&self.cert_file, &self.key_file])
    }
}

impl ReceiverOptions for ZipkinOptions {
    const KEYS: &str = "compression, headers-file, ca-file, cert-file, key-file";

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "compression" => self.compression = Some(parse(value)?),
            "headers-file" => self.headers_file = Some(value.into()),
            "ca-file" => self.ca_file = Some(value.into()),
            "cert-file" => self.cert_file = Some(value.into()),
            "key-file" => self.key_file = Some(value.into()),
            _ => return Err(unknown::<Self>(key)),
        }
        Ok(())
    }
}

impl ZipkinOptions {
    /// Returns these options, and others where these are not given.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        Self {
            compression: self.compression.or(other.compression),
            headers_file: given(&self.headers_file, &other.headers_file),
            ca_file: given(&self.ca_file, &other.ca_file),
            cert_file: given(&self.cert_file, &other.cert_file),
            key_file: given(&self.key_file, &other.key_file),
        }
    }

    /// Returns TLS and credentials.
    ///
    /// # Errors
    /// Only one of certificate and key is given.
    pub fn access(&self) -> Result<Access, String> {
        let credentials = Credentials { headers: self.headers_file.clone(), ..Credentials::default() };
        access("zipkin", credentials, &self.ca_file, [&self.cert_file, &self.key_file])
    }
}

/// Returns a file, or the other one if it is not given.
fn given(own: &Option<PathBuf>, other: &Option<PathBuf>) -> Option<PathBuf> {
    own.clone().or_else(|| other.clone())
}

/// Returns TLS and credentials; `identity` is the client certificate and its key.
fn access(
    kind: &str,
    credentials: Credentials,
    ca_file: &Option<PathBuf>,
    identity: [&Option<PathBuf>; 2],
) -> Result<Access, String> {
    let identity = match identity.map(Clone::clone) {
        [Some(certificate_file), Some(key_file)] => Some(Identity { certificate_file, key_file }),
        [None, None] => None,
        _ => {
            return Err(format!(
                "a client certificate needs its key: give both --{kind}-cert-file and --{kind}-key-file"
            ));
        }
    };
    Ok(Access { credentials, ca_file: ca_file.clone(), identity })
}

fn parse<T: FromStr<Err: ToString>>(value: &str) -> Result<T, String> {
    value.parse().map_err(|error: T::Err| error.to_string())
}

fn unknown<T: ReceiverOptions>(key: &str) -> String {
    format!("there is no option {key:?} to set behind #: there are {}", T::KEYS)
}

fn word<'de, D: Deserializer<'de>, T: FromStr<Err: ToString>>(deserializer: D) -> Result<Option<T>, D::Error> {
    parse(&String::deserialize(deserializer)?).map(Some).map_err(de::Error::custom)
}

fn words<'de, D: Deserializer<'de>, T: FromStr<Err: ToString>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    let words = Vec::<String>::deserialize(deserializer)?;
    words.iter().map(|word| parse(word)).collect::<Result<_, _>>().map_err(de::Error::custom)
}
