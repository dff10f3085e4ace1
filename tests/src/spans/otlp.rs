//! A collector of OTLP traces over HTTP, which keeps the spans that it gets.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;
use prost::Message;

use super::{Receiver, Span};

/// A collector on a port of its own.
#[derive(Debug)]
pub struct Collector {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<Span>>>,
}

impl Collector {
    /// Starts one.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let collector = Self { address: listener.local_addr()?, spans: Arc::default() };
        let spans = collector.spans.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let spans = spans.clone();
                // The observer sends again what a broken connection has lost, and the test fails if it does not come.
                thread::spawn(move || serve(&stream, &spans).unwrap_or_else(|error| eprintln!("{error:#}")));
            }
        });
        Ok(collector)
    }
}

impl Receiver for Collector {
    fn url(&self) -> String {
        format!("otlp-traces+http://{}", self.address)
    }

    fn spans(&self) -> Result<Vec<Span>> {
        Ok(self.spans.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

fn serve(stream: &TcpStream, spans: &Mutex<Vec<Span>>) -> Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut length, mut line) = (0, String::new());
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        ensure!(line.starts_with("POST /v1/traces "), "{line}");
        loop {
            line.clear();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim().split_once(": ") else { break };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.parse()?,
                "content-encoding" => ensure!(value == "gzip", "{value}"),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let mut message = Vec::new();
        GzDecoder::new(&*body).read_to_end(&mut message)?;
        let received = read(&Request::decode(&*message)?)?;
        spans.lock().unwrap_or_else(PoisonError::into_inner).extend(received);
        (&mut &*stream).write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")?;
    }
}

fn read(request: &Request) -> Result<Vec<Span>> {
    let mut spans = Vec::new();
    for own in &request.resource_spans {
        let resource = &own.resource.as_ref().context("no resource")?.attributes;
        for span in own.scope_spans.iter().flat_map(|scope| &scope.spans) {
            let attributes: BTreeMap<_, _> =
                resource.iter().chain(&span.attributes).map(text).collect::<Result<_>>()?;
            spans.push(Span {
                service: attributes.get("service.name").cloned().unwrap_or_default(),
                trace_id: u128::from_be_bytes(span.trace_id[..].try_into()?),
                id: u64::from_be_bytes(span.span_id[..].try_into()?),
                parent_id: u64::from_be_bytes(span.parent_span_id[..].try_into()?),
                is_client: span.kind == 3,
                start_ns: span.start,
                end_ns: span.end,
                is_error: span.status.as_ref().is_some_and(|status| status.code == 2),
                attributes,
            });
        }
    }
    Ok(spans)
}

fn text(pair: &KeyValue) -> Result<(String, String)> {
    let value = pair.value.as_ref().context("no value")?;
    let text = value.text.clone().or_else(|| value.integer.map(|number| number.to_string()));
    Ok((pair.key.clone(), text.context("no text and no number")?))
}

/// The messages of `trace/v1/trace.proto`, as far as they are used.
#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, repeated, tag = "2")]
    spans: Vec<ProtoSpan>,
}

#[derive(Clone, PartialEq, Message)]
struct ProtoSpan {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start: u64,
    #[prost(fixed64, tag = "8")]
    end: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(string, optional, tag = "1")]
    text: Option<String>,
    #[prost(int64, optional, tag = "3")]
    integer: Option<i64>,
}
