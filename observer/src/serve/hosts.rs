//! Names under which the pages may be read. A web page elsewhere can make a browser ask this server under the page's own
//! name (DNS rebinding), and would then read the answer.

use std::{fmt, net::IpAddr, str::FromStr};

use hyper::{Request, header::HOST};

/// `--web-host`: a DNS name without a port, or `*` for every name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebHost(String);

impl FromStr for WebHost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_name = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
        if text == "*" || !text.is_empty() && is_name(text) {
            return Ok(Self(normal(text)));
        }
        Err(format!(
            "invalid host {text:?}: expected a name without scheme and port, e.g. node-1.example.com, or * for every name"
        ))
    }
}

impl fmt::Display for WebHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The names that are allowed besides IP addresses and `localhost`.
#[derive(Clone, Debug, Default)]
pub struct Hosts(Vec<String>);

impl Hosts {
    /// Allows the names of the configuration, and the node's.
    #[must_use]
    pub fn new(configured: &[WebHost], node: impl IntoIterator<Item = String>) -> Self {
        let node = node.into_iter().map(|name| normal(&name));
        Self(configured.iter().map(|WebHost(name)| name.clone()).chain(node).collect())
    }

    /// Returns whether the request names an allowed host, or none, as only HTTP/1.0 may.
    pub(super) fn allow<B>(&self, request: &Request<B>) -> bool {
        let mut headers = request.headers().get_all(HOST).iter();
        let (first, second) = (headers.next(), headers.next());
        let named = match (request.uri().authority(), first, second) {
            (_, _, Some(_)) => return false,
            // [RFC 9112, section 3.2.2]: it replaces the header.
            (Some(authority), ..) => authority.clone(),
            (None, None, None) => return true,
            (None, Some(header), None) => match header.as_bytes().try_into() {
                Ok(authority) => authority,
                Err(_) => return false,
            },
        };
        let name = normal(named.host());
        let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        address.is_ok() || name == "localhost" || self.0.iter().any(|own| *own == name || own == "*")
    }
}

fn normal(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_are_listed_or_prove_nothing_are_allowed() {
        let hosts = Hosts::new(&["Metrics.Example.com".parse().unwrap()], ["node-1".to_owned()]);
        let allows = |hosts: &Hosts, uri: &str, names: &[&str]| {
            let request = names.iter().fold(Request::builder().uri(uri), |request, name| request.header(HOST, *name));
            hosts.allow(&request.body(()).unwrap())
        };
        for (names, expected) in [
            (&[][..], true),
            (&["10.0.0.1:9469"], true),
            (&["[fd00::1]:9469"], true),
            (&["LOCALHOST:9469"], true),
            (&["node-1"], true),
            (&["metrics.example.com.:9469"], true),
            (&["evil.example.com"], false),
            (&["node-1.evil.example.com"], false),
            (&["10.0.0.1.evil.example.com"], false),
            (&["10.0.0.1@evil.example.com"], false),
            (&["a b"], false),
            (&[""], false),
            (&["node-1", "evil.example.com"], false),
        ] {
            assert_eq!(allows(&hosts, "/", names), expected, "{names:?}");
        }
        assert!(!allows(&hosts, "http://evil.example.com/metrics", &["node-1"]));
        assert!(allows(&hosts, "http://node-1/metrics", &["evil.example.com"]));
        assert!(allows(&Hosts::new(&["*".parse().unwrap()], []), "/", &["evil.example.com"]));
    }

    #[test]
    fn what_is_not_a_name_is_refused() {
        for text in ["", "a:80", "http://a", "a/b", "user@a", "a b", "**"] {
            let parsed = text.parse::<WebHost>();
            assert!(parsed.as_ref().is_err_and(|error| error.contains("e.g.")), "{text}: {parsed:?}");
        }
    }
}
