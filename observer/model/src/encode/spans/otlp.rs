//! OTLP traces: `ExportTraceServiceRequest` messages, with a resource per workload.
//!
//! Source of the messages: opentelemetry-proto `trace/v1/trace.proto`.

use std::sync::Arc;

use super::by_workload;
use crate::{
    Snapshot,
    encode::{
        Batch, Encoder, Form,
        otlp::{nanoseconds, put_integer_attribute, put_text_attribute},
        wire::{Field, Fields, put_bytes, put_fixed32, put_fixed64, put_message, put_uint},
    },
    span::{Attribute, Span, SpanKind, is_known},
};

/// Size at which a batch is complete, without compression.
const MAX_BATCH_BYTES: usize = 1 << 20;

/// Field of a request, and of each message below it, in which the next one is.
const RESOURCE_SPANS: u32 = 1;
const SCOPE_SPANS: u32 = 2;
const SPANS: u32 = 2;
/// Field of the resource and of the scope beside them.
const OWN: u32 = 1;
/// `Status.STATUS_CODE_ERROR`.
const ERROR: u64 = 2;
/// `SpanFlags`: sampled, and the parent is that of another process.
const FLAGS: u32 = 1 | 0x100 | 0x200;

/// Renders spans as OTLP requests.
#[derive(Debug)]
pub struct OtlpSpanEncoder {
    node: String,
    /// Further attributes of each resource.
    resource: Vec<(String, String)>,
}

impl OtlpSpanEncoder {
    /// Returns an encoder for one node; `node` is its name.
    #[must_use]
    pub fn new(resource: Vec<(String, String)>, node: &str) -> Self {
        Self { node: node.to_owned(), resource }
    }

    /// Returns the encoded resource of a span.
    fn resource(&self, span: &Span) -> Vec<u8> {
        let own = span.own();
        let attributes = [
            ("service.name", &*own.canonical_service),
            ("service.namespace", &*own.namespace),
            ("service.version", &*own.version),
            ("k8s.namespace.name", &*own.namespace),
            ("k8s.cluster.name", &*own.cluster),
            ("k8s.node.name", &*self.node),
            ("host.name", &*self.node),
        ];
        let further = self.resource.iter().map(|(name, value)| (&**name, &**value));
        let is_replaced = |name: &str| self.resource.iter().any(|(other, _)| other == name);
        let mut resource = Vec::new();
        for (name, value) in attributes.into_iter().filter(|(name, _)| !is_replaced(name)).chain(further) {
            if is_known(value) {
                put_text_attribute(&mut resource, 1, name, value);
            }
        }
        resource
    }
}

impl Encoder for OtlpSpanEncoder {
    fn encode(&mut self, snapshot: Arc<Snapshot>) -> Box<dyn Iterator<Item = Batch> + Send + '_> {
        let mut batches = Vec::new();
        let mut request = RequestBuilder::default();
        let mut last: Option<(&Span, Vec<u8>)> = None;
        for span in by_workload(&snapshot) {
            let (_, resource) = match &mut last {
                Some(last) if Arc::ptr_eq(last.0.own(), span.own()) => last,
                _ => last.insert((span, self.resource(span))),
            };
            request.add(resource, &encoded(span));
            if request.size() >= MAX_BATCH_BYTES {
                batches.extend(request.take());
            }
        }
        batches.extend(request.take());
        Box::new(batches.into_iter())
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

/// Returns a `Span`.
fn encoded(span: &Span) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    put_bytes(&mut out, 1, &span.request.trace_id.to_be_bytes());
    put_bytes(&mut out, 2, &span.id.to_be_bytes());
    put_bytes(&mut out, 4, &span.request.parent_id.to_be_bytes());
    put_bytes(&mut out, 5, span.name().as_bytes());
    put_uint(&mut out, 6, if span.kind == SpanKind::Client { 3 } else { 2 });
    put_fixed64(&mut out, 7, nanoseconds(span.request.start));
    put_fixed64(&mut out, 8, nanoseconds(span.end()));
    span.attributes(|name, value| match value {
        Attribute::Text(text) => put_text_attribute(&mut out, 9, name, text),
        Attribute::Integer(number) => put_integer_attribute(&mut out, 9, name, number),
    });
    if span.error().is_some() {
        put_message(&mut out, 15, |status| put_uint(status, 3, ERROR));
    }
    put_fixed32(&mut out, 16, FLAGS);
    out
}

/// A request that is put together.
#[derive(Debug, Default)]
struct RequestBuilder {
    /// Encoded resources with their spans, which are complete.
    body: Vec<u8>,
    /// The resource to which spans are added, encoded.
    resource: Option<Vec<u8>>,
    /// Its spans, encoded with their keys.
    spans: Vec<u8>,
    count: u64,
}

impl RequestBuilder {
    /// Adds a span to a resource, both encoded.
    fn add(&mut self, resource: &[u8], span: &[u8]) {
        if self.resource.as_deref() != Some(resource) {
            self.close();
            self.resource = Some(resource.to_vec());
        }
        put_bytes(&mut self.spans, SPANS, span);
        self.count += 1;
    }

    /// Completes the current resource.
    fn close(&mut self) {
        let Some(resource) = self.resource.take() else { return };
        put_message(&mut self.body, RESOURCE_SPANS, |out| {
            put_bytes(out, OWN, &resource);
            put_message(out, SCOPE_SPANS, |out| {
                put_message(out, OWN, |scope| {
                    put_bytes(scope, 1, b"mesh-observer");
                    put_bytes(scope, 2, env!("CARGO_PKG_VERSION").as_bytes());
                });
                out.append(&mut self.spans);
            });
        });
    }

    fn size(&self) -> usize {
        self.body.len() + self.spans.len()
    }

    /// Returns the request, and begins another one; `None` without spans.
    fn take(&mut self) -> Option<Batch> {
        self.close();
        let points = std::mem::take(&mut self.count);
        let body = std::mem::take(&mut self.body).into();
        (points > 0).then_some(Batch { body, points, form: Form::OtlpSpans })
    }
}

/// Splits a request in half between spans; `None` if it has only one, or is not one of this encoder.
pub fn split(batch: &Batch) -> Option<(Batch, Batch)> {
    let half = batch.points / 2;
    let mut builders = [RequestBuilder::default(), RequestBuilder::default()];
    let mut seen = 0;
    for resource_spans in messages(&batch.body, RESOURCE_SPANS) {
        let resource = messages(resource_spans, OWN).next()?;
        for span in messages(resource_spans, SCOPE_SPANS).flat_map(|scope_spans| messages(scope_spans, SPANS)) {
            builders.get_mut(usize::from(seen >= half))?.add(resource, span);
            seen += 1;
        }
    }
    let [mut first, mut second] = builders;
    (seen == batch.points).then_some(())?;
    Some((first.take()?, second.take()?))
}

/// Returns the messages in a field.
fn messages(message: &[u8], field: u32) -> impl Iterator<Item = &[u8]> {
    Fields::new(message).filter_map(move |(own, value, _)| match value {
        Field::Bytes(bytes) if own == field => Some(bytes),
        _ => None,
    })
}

#[cfg(test)]
mod tests;
