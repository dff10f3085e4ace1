//! Zipkin's JSON, version 2: an array of spans per batch.
//!
//! Source of the fields: openzipkin/zipkin-api `zipkin2-api.yaml`.

use std::sync::Arc;

use serde_json::{Map, Value, json, value::RawValue};

use super::microseconds;
use crate::{
    Snapshot,
    encode::{Batch, Encoder, Form},
    labels::Peer,
    span::{Attribute, Span, SpanKind, is_known},
};

/// Size at which a batch is complete, without compression.
const MAX_BATCH_BYTES: usize = 1 << 20;

/// Renders spans as arrays of JSON.
#[derive(Debug)]
pub struct ZipkinEncoder {
    node: String,
}

impl ZipkinEncoder {
    /// Returns an encoder for one node; `node` is its name.
    #[must_use]
    pub fn new(node: &str) -> Self {
        Self { node: node.to_owned() }
    }
}

impl Encoder for ZipkinEncoder {
    fn encode(&mut self, snapshot: Arc<Snapshot>) -> Box<dyn Iterator<Item = Batch> + Send + '_> {
        let mut next = 0;
        Box::new(std::iter::from_fn(move || {
            let mut array = Array::default();
            while array.text.len() < MAX_BATCH_BYTES
                && let Some(span) = snapshot.spans.get(next)
            {
                array.add(&document(span, &self.node).to_string());
                next += 1;
            }
            array.end()
        }))
    }

    fn takes_spans(&self) -> bool {
        true
    }

    fn rejected(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    fn filtered(&self) -> u64 {
        0
    }
}

/// Returns a span's object.
fn document(span: &Span, node: &str) -> Value {
    let mut tags = Map::new();
    span.attributes(|name, value| {
        let text = match value {
            Attribute::Text(text) => text.to_owned(),
            Attribute::Integer(number) => number.to_string(),
        };
        tags.insert(name.to_owned(), text.into());
    });
    if is_known(node) {
        tags.insert("k8s.node.name".to_owned(), node.into());
    }
    // Whatever its value, this tag alone marks a failure.
    if let Some(error) = span.error() {
        tags.insert("error".to_owned(), error.into());
    }
    let request = &span.request;
    let mut document = json!({
        "traceId": format!("{:032x}", request.trace_id),
        "id": format!("{:016x}", span.id),
        "kind": if span.kind == SpanKind::Client { "CLIENT" } else { "SERVER" },
        // Zipkin's names are in lower case.
        "name": span.name().to_ascii_lowercase(),
        "timestamp": microseconds(request.start),
        // Zipkin takes 0 for a duration that is not known.
        "duration": u64::try_from(request.duration.as_micros()).unwrap_or(u64::MAX).max(1),
        "tags": tags,
    });
    let mut put =
        |name: &str, value: Value| drop(document.as_object_mut().map(|own| own.insert(name.to_owned(), value)));
    if request.parent_id != 0 {
        put("parentId", format!("{:016x}", request.parent_id).into());
    }
    for (name, peer) in [("localEndpoint", &**span.own()), ("remoteEndpoint", span.peer())] {
        if let Some(service) = service_name(peer) {
            put(name, json!({ "serviceName": service }));
        }
    }
    document
}

/// Returns the service of a workload as Istio's own tracer names it, since Zipkin has no namespaces; `None` if it is not
/// known.
fn service_name(peer: &Peer) -> Option<String> {
    let service = Some(&*peer.canonical_service).filter(|service| is_known(service))?;
    let namespace = Some(&*peer.namespace).filter(|namespace| is_known(namespace));
    Some(namespace.map_or_else(|| service.to_owned(), |namespace| format!("{service}.{namespace}")))
}

/// An array that is put together.
#[derive(Default)]
struct Array {
    text: String,
    count: u64,
}

impl Array {
    /// Adds an object.
    fn add(&mut self, object: &str) {
        self.text.push(if self.count == 0 { '[' } else { ',' });
        self.text.push_str(object);
        self.count += 1;
    }

    /// Returns the batch; `None` without spans.
    fn end(mut self) -> Option<Batch> {
        self.text.push(']');
        (self.count > 0).then(|| Batch { body: self.text.into(), points: self.count, form: Form::Zipkin })
    }
}

/// Splits an array in half between spans; `None` if it has only one, or is not one of this encoder.
pub fn split(batch: &Batch) -> Option<(Batch, Batch)> {
    let spans: Vec<&RawValue> = serde_json::from_slice(&batch.body).ok()?;
    if spans.len() as u64 != batch.points {
        return None;
    }
    let half = |spans: &[&RawValue]| {
        let mut array = Array::default();
        spans.iter().for_each(|span| array.add(span.get()));
        array.end()
    };
    let (first, second) = spans.split_at_checked(spans.len() / 2)?;
    Some((half(first)?, half(second)?))
}

#[cfg(test)]
mod tests;
