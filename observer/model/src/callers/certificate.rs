//! One element of `x-forwarded-client-cert`, as a sidecar wrote it: `By=…;Hash=…;Subject="…";URI=…;DNS=…`.
//! Source: Envoy documentation, HTTP connection manager headers; `ConnectionManagerUtility::mutateXfccRequestHeader`.

use observer_common::MAX_CALLER_TEXT;

/// What an element says of the client's certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Certificate {
    /// Identities of the sidecar that wrote the element; one per URI in its own certificate.
    pub by: Vec<Box<str>>,
    /// SHA-256 of the client's certificate, in hexadecimal digits of lower case; empty if absent.
    pub hash: Box<str>,
    /// The client's identity: the first SPIFFE URI, else the first URI; empty if there is none.
    pub uri: Box<str>,
}

impl Certificate {
    /// Parses an element; `None` if it is longer than the kernel keeps, or breaks the format: more than one element, a
    /// pair without `=`, a quote that does not end, text that is not UTF-8 or has control characters.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        if text.len() > MAX_CALLER_TEXT || text.chars().any(char::is_control) {
            return None;
        }
        let mut certificate = Self::default();
        let mut rest = text;
        while !rest.trim_start_matches([' ', ';']).is_empty() {
            rest = rest.trim_start_matches([' ', ';']);
            let (key, value);
            (key, rest) = rest.split_once('=')?;
            (value, rest) = split_value(rest)?;
            certificate.add(key.trim_end(), value);
        }
        Some(certificate)
    }

    fn add(&mut self, key: &str, value: String) {
        if key.eq_ignore_ascii_case("By") {
            self.by.push(value.into());
        } else if key.eq_ignore_ascii_case("Hash") {
            self.hash = value.to_ascii_lowercase().into();
        } else if key.eq_ignore_ascii_case("URI")
            && (self.uri.is_empty() || (value.starts_with(SPIFFE) && !self.uri.starts_with(SPIFFE)))
        {
            self.uri = value.into();
        }
    }
}

/// Splits a value, with quotes and escapes removed, from the pairs after it.
fn split_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, rest) = text.split_once(';').unwrap_or((text, ""));
        return (!value.contains(',')).then(|| (value.trim_end().to_owned(), rest));
    };
    let (mut value, mut is_escaped) = (String::new(), false);
    for (at, character) in quoted.char_indices() {
        match character {
            '\\' if !is_escaped => is_escaped = true,
            '"' if !is_escaped => {
                let rest = quoted[at + 1..].trim_start_matches(' ');
                return (rest.is_empty() || rest.starts_with(';')).then_some((value, rest));
            }
            _ => {
                // Only quotes and backslashes are escaped; before anything else a backslash is one.
                if is_escaped && !matches!(character, '"' | '\\') {
                    value.push('\\');
                }
                value.push(character);
                is_escaped = false;
            }
        }
    }
    None
}

const SPIFFE: &str = "spiffe://";

/// An Istio identity, `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpiffeId<'a> {
    /// Trust domain.
    pub trust_domain: &'a str,
    /// Namespace.
    pub namespace: &'a str,
    /// Service account.
    pub account: &'a str,
}

impl<'a> SpiffeId<'a> {
    /// Parses an identity; `None` for any other form.
    #[must_use]
    pub fn parse(uri: &'a str) -> Option<Self> {
        let mut parts = uri.strip_prefix(SPIFFE)?.split('/');
        let parts: [&str; 5] = std::array::from_fn(|_| parts.next().unwrap_or_default());
        let [trust_domain, "ns", namespace, "sa", account] = parts else { return None };
        let id = Self { trust_domain, namespace, account };
        let is_whole = parts.iter().all(|part| !part.is_empty())
            && SPIFFE.len() + parts.iter().map(|part| part.len() + 1).sum::<usize>() == uri.len() + 1;
        is_whole.then_some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BY: &str = "spiffe://cluster.local/ns/shop/sa/catalog";
    const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

    fn parse(text: &str) -> Option<Certificate> {
        Certificate::parse(text.as_bytes())
    }

    fn certificate(by: &[&str], hash: &str, uri: &str) -> Certificate {
        Certificate { by: by.iter().map(|&it| it.into()).collect(), hash: hash.into(), uri: uri.into() }
    }

    #[test]
    fn reads_what_envoy_writes() {
        for text in [
            format!("By={BY};Hash=02ab;Subject=\"\";URI={WEB}"),
            format!("by={BY};HASH=02AB;subject=\"CN=a;b,\\\"c\\\"\";uri={WEB};DNS=a.example;DNS=b.example"),
            format!("By={BY};Hash=02ab;Cert=\"%0A;URI=spiffe://x\";URI=;URI=https://x;URI={WEB};URI=spiffe://second"),
            format!(" By = {BY};Hash=\"02ab\" ; URI=\"{WEB}\";").replace(" = ", " ="),
        ] {
            assert_eq!(parse(&text), Some(certificate(&[BY], "02ab", WEB)), "{text}");
        }
        let two = format!("By={BY};By=spiffe://second;URI=");
        assert_eq!(parse(&two), Some(certificate(&[BY, "spiffe://second"], "", "")));
        assert_eq!(parse("URI=https://x"), Some(certificate(&[], "", "https://x")));
        assert_eq!(parse(""), Some(Certificate::default()));
        assert_eq!(parse(r#"URI="a\b\\c\"""#).unwrap().uri, r#"a\b\c""#.into());
    }

    #[test]
    fn refuses_what_envoy_does_not_write() {
        for text in [
            "By",
            "By=a;Hash",
            "URI=\"a",
            "URI=\"a\\\"",
            "URI=\"a\"b",
            "By=a,URI=b",
            "URI=a\nb",
            "URI=a\u{7f}",
            &format!("URI={}", "a".repeat(MAX_CALLER_TEXT)),
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(Certificate::parse(b"URI=\xff"), None);
    }

    #[test]
    fn an_identity_has_exactly_its_parts() {
        let id = SpiffeId { trust_domain: "cluster.local", namespace: "shop", account: "web" };
        assert_eq!(SpiffeId::parse(WEB), Some(id));
        for other in [
            "",
            "spiffe://",
            "https://cluster.local/ns/shop/sa/web",
            "spiffe://cluster.local/ns/shop/sa/",
            "spiffe://cluster.local/ns//sa/web",
            "spiffe:///ns/shop/sa/web",
            "spiffe://cluster.local/ns/shop/sa/web/",
            "spiffe://cluster.local/ns/shop/sa/web/x",
            "spiffe://cluster.local/ns/shop/as/web",
            "spiffe://cluster.local/workload/web",
        ] {
            assert_eq!(SpiffeId::parse(other), None, "{other}");
        }
    }

    /// Writes a value as Envoy quotes one.
    fn quoted(value: &str) -> String {
        format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
    }

    proptest! {
        #[test]
        fn what_was_quoted_comes_back(subject in "[ -~]{0,40}", uri in "[ -~]{0,40}", hash in "[0-9a-f]{0,8}") {
            let text = format!("Hash={hash};Subject={};URI={};DNS=x", quoted(&subject), quoted(&uri));
            prop_assert_eq!(parse(&text), Some(certificate(&[], &hash, &uri)));
        }

        #[test]
        fn no_input_breaks_it(bytes in proptest::collection::vec(any::<u8>(), 0..600), text in "[ByHashURI=;,\"\\\\ a]{0,60}") {
            let _ = Certificate::parse(&bytes);
            if let Some(certificate) = parse(&text) {
                prop_assert!(certificate.uri.len() <= text.len());
            }
            let _ = SpiffeId::parse(&text);
        }
    }
}
