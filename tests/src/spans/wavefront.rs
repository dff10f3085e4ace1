//! A Wavefront proxy that keeps lines of spans, and Wavefront's own decoder, which reads them.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

use super::{Receiver, Span};
use crate::wavefront::{Proxy, TAKE, decoded_spans};

/// A proxy on a port of its own.
#[derive(Debug)]
pub struct SpanProxy(Proxy);

impl SpanProxy {
    /// Starts one.
    pub fn start() -> Result<Self> {
        Proxy::start(&[], TAKE).map(Self)
    }
}

impl Receiver for SpanProxy {
    fn url(&self) -> String {
        self.0.url().replace("wavefront+", "wavefront-traces+")
    }

    fn spans(&self) -> Result<Vec<Span>> {
        let lines: String = self.0.requests().into_iter().map(|request| request.lines).collect();
        decoded_spans(&lines)?.iter().map(|decoded| read(decoded)).collect()
    }
}

/// Reads what the decoder writes: times in milliseconds, then keys and values, parted by tabs.
fn read(decoded: &str) -> Result<Span> {
    let mut fields = decoded.split('\t');
    let (Some("ok"), Some(start), Some(duration)) = (fields.next(), fields.next(), fields.next()) else {
        bail!("refused: {decoded}")
    };
    let (start, duration) = (start.parse::<u64>()?, duration.parse::<u64>()?);
    let mut attributes = BTreeMap::new();
    for pair in fields {
        let (key, value) = pair.split_once('=').with_context(|| format!("{pair:?}: {decoded}"))?;
        ensure!(attributes.insert(key.to_owned(), value.to_owned()).is_none(), "{key} twice: {decoded}");
    }
    for required in ["application", "service", "cluster", "shard", "source", "component"] {
        ensure!(attributes.get(required).is_some_and(|value| !value.is_empty()), "no {required}: {decoded}");
    }
    let uuid = |name: &str| {
        let digits = attributes.get(name).map_or_else(String::new, |text| text.replace('-', ""));
        u128::from_str_radix(&digits, 16).with_context(|| format!("no {name}: {decoded}"))
    };
    let kind = attributes.get("span.kind").map(String::as_str);
    ensure!(matches!(kind, Some("client" | "server")), "{decoded}");
    Ok(Span {
        trace_id: uuid("traceId")?,
        id: u64::try_from(uuid("spanId")?)?,
        parent_id: u64::try_from(uuid("parent")?)?,
        is_client: kind == Some("client"),
        service: attributes.get("service").cloned().unwrap_or_default(),
        start_ns: start * 1_000_000,
        end_ns: (start + duration) * 1_000_000,
        is_error: attributes.get("error").is_some_and(|error| error == "true"),
        attributes,
    })
}
