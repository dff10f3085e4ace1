//! Protocol of a Service's port, by its name and `appProtocol`.
//!
//! Source: istio `pkg/config/kube/conversion.go`, `pkg/config/protocol/instance.go`.

/// Ports that Istio takes for TCP if nothing declares their protocol, as their servers speak first.
const SERVER_FIRST: [u16; 4] = [25, 53, 3306, 27017];

/// How a sidecar treats connections to a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PortProtocol {
    /// By the first bytes.
    #[default]
    Sniffed,
    /// HTTP, whatever the first bytes are.
    Http,
    /// TCP, whatever the first bytes are.
    Tcp,
}

impl PortProtocol {
    /// Returns the protocol of a port: `appProtocol` decides if it is there, else the name up to its first dash.
    #[must_use]
    pub fn declared(port: u16, name: &str, app_protocol: Option<&str>) -> Self {
        let word = match app_protocol {
            // Kubernetes' own names [KEP-3726].
            Some("kubernetes.io/h2c") => "http2",
            Some("kubernetes.io/ws") => "http",
            Some("kubernetes.io/wss") => "https",
            Some(word) => word,
            None => name,
        };
        match Self::parse(prefix(word)) {
            Self::Sniffed if SERVER_FIRST.contains(&port) => Self::Tcp,
            protocol => protocol,
        }
    }

    fn parse(word: &str) -> Self {
        let is = |known: &[&str]| known.iter().any(|other| word.eq_ignore_ascii_case(other));
        if is(&["http", "http2", "http_proxy", "grpc", "grpc-web"]) {
            Self::Http
        } else if is(&["tcp", "tls", "https", "mongo", "redis", "mysql", "udp"]) {
            // No listener is made for a TCP port called UDP, so that it is passed through.
            Self::Tcp
        } else {
            Self::Sniffed
        }
    }
}

/// Returns the part of a port's name that declares its protocol; whatever begins with `grpc-web` declares that.
fn prefix(name: &str) -> &str {
    match name.get(.."grpc-web".len()) {
        Some(start) if start.eq_ignore_ascii_case("grpc-web") => start,
        _ => name.split('-').next().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        PortProtocol,
        PortProtocol::{Http, Sniffed, Tcp},
    };

    #[test]
    fn names_and_app_protocols_decide_as_istio_decides() {
        for (port, name, app_protocol, expected) in [
            (80, "http", None, Http),
            (80, "http-web", None, Http),
            (80, "HTTP2-x", None, Http),
            (80, "grpc", None, Http),
            (80, "grpc-web", None, Http),
            (80, "GRPC-Web-x", None, Http),
            (80, "grpcweb", None, Sniffed),
            (80, "tcp-web", None, Tcp),
            (80, "tcp", None, Tcp),
            (80, "tls-x", None, Tcp),
            (443, "https", None, Tcp),
            (6379, "redis", None, Tcp),
            (1, "mongo-1", None, Tcp),
            (1, "mysql", None, Tcp),
            (1, "udp-1", None, Tcp),
            (80, "", None, Sniffed),
            (80, "web", None, Sniffed),
            (80, "httpx", None, Sniffed),
            (80, "ünïcode-", None, Sniffed),
            (3306, "", None, Tcp),
            (53, "dns", None, Tcp),
            (3306, "http", None, Http),
            (80, "http", Some("tcp"), Tcp),
            (80, "tcp", Some("kubernetes.io/h2c"), Http),
            (80, "tcp", Some("kubernetes.io/ws"), Http),
            (80, "http", Some("kubernetes.io/wss"), Tcp),
            (80, "tcp", Some("example.com/own"), Sniffed),
            (80, "tcp", Some("http_proxy"), Http),
            (80, "tcp", Some("grpc-x"), Http),
        ] {
            assert_eq!(PortProtocol::declared(port, name, app_protocol), expected, "{port} {name} {app_protocol:?}");
        }
    }
}
