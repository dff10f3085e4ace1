//! One sampled request through three workloads, and what the observer has sent of it.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher as _, Hasher as _},
    io,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use bookstore::Bookstore;
use harness::{
    apps::raw::{Connection, Server, header},
    mesh::{Family, Service, Workload},
    spans::{Receiver as _, Span, otlp::Collector},
    wait::wait_until,
};

/// Limits the time until the spans have come.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Spans of the request: two at shop and catalog, two at catalog and stock.
const SPANS: usize = 4;
/// Columns of the time line.
const COLUMNS: usize = 40;

/// Where orders are taken, and a receiver of spans.
pub(crate) struct Trace {
    collector: Collector,
    shop: Arc<Workload>,
    orders: Service,
    _server: Server,
}

impl Trace {
    /// Starts both: shop orders from catalog, which asks stock with the context that it was asked with.
    pub(crate) fn open(bookstore: &Bookstore) -> Result<Self> {
        let Bookstore { orders, shop, catalog, services, .. } = bookstore;
        let (from, stock) = (Arc::clone(catalog), services.stock.address(Family::V4));
        let server = Server::start(catalog, orders.target_port, move |slot| {
            let connection = slot.as_mut().expect("given by the server");
            while let Some(head) = connection.receive_head()? {
                let head = String::from_utf8_lossy(&head).into_owned();
                let context = header(&head, "traceparent").unwrap_or_default();
                let mut asked = Connection::open(&from, stock).map_err(io::Error::other)?;
                asked.send(request("/delay/15", "stock", context))?;
                let status = asked.receive_response()?.status;
                connection.send(format!("HTTP/1.1 {status} Status\r\ncontent-length: 0\r\n\r\n"))?;
            }
            Ok(())
        })?;
        let (shop, orders) = (Arc::clone(shop), orders.clone());
        Ok(Self { collector: Collector::start()?, shop, orders, _server: server })
    }

    /// Returns the receiver's URL for `--emit`.
    pub(crate) fn url(&self) -> String {
        self.collector.url()
    }

    /// Sends the request, and returns its trace as text.
    pub(crate) fn show(&self) -> Result<String> {
        let number = || RandomState::new().build_hasher().finish().max(1);
        let (trace_id, parent_id) = (u128::from(number()) << 64 | u128::from(number()), number());
        let mut connection = Connection::open(&self.shop, self.orders.address(Family::V4))?;
        connection.send(request("/order", "orders", &format!("00-{trace_id:032x}-{parent_id:016x}-01")))?;
        let status = connection.receive_response()?.status;
        ensure!(status == 200, "the order is answered {status}");
        let mut spans = wait_until("the request's spans have come", TIMEOUT, || {
            let mut spans = self.collector.spans()?;
            spans.retain(|span| span.trace_id == trace_id);
            ensure!(spans.len() >= SPANS, "{} spans of {SPANS}", spans.len());
            Ok(spans)
        })?;
        spans.sort_by_key(|span| (span.start_ns, !span.is_client));
        tree(&spans).context("no spans")
    }
}

fn request(path: &str, host: &str, context: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: {host}\r\ntraceparent: {context}\r\n\r\n")
}

/// Returns the spans of one trace as a tree, the children of each by their start; `None` without any.
fn tree(spans: &[Span]) -> Option<String> {
    let first = spans.first()?;
    let end = spans.iter().map(|span| span.end_ns).max()?;
    let scale = Scale { start: first.start_ns, length: end.saturating_sub(first.start_ns).max(1) };
    let mut text = format!("trace {:032x}\n", first.trace_id);
    let is_sent = |id: u64| spans.iter().any(|span| span.id == id);
    let mut roots: Vec<u64> = spans.iter().map(|span| span.parent_id).filter(|parent| !is_sent(*parent)).collect();
    roots.dedup();
    for parent in roots {
        text += &format!("span {parent:016x}, named by the header and sent by nobody\n");
        branches(&mut text, spans, parent, "", &scale);
    }
    Some(text)
}

/// The time line.
struct Scale {
    start: u64,
    length: u64,
}

impl Scale {
    /// Returns a span as a bar.
    fn bar(&self, span: &Span) -> String {
        let column = |ns: u64| {
            let part = u128::from(ns.saturating_sub(self.start)) * COLUMNS as u128 / u128::from(self.length);
            usize::try_from(part).map_or(COLUMNS, |column| column.min(COLUMNS))
        };
        let (from, to) = (column(span.start_ns).min(COLUMNS - 1), column(span.end_ns));
        format!("{}{}", " ".repeat(from), "━".repeat((to.saturating_sub(from)).max(1)))
    }
}

fn branches(text: &mut String, spans: &[Span], parent: u64, indent: &str, scale: &Scale) {
    let own: Vec<&Span> = spans.iter().filter(|span| span.parent_id == parent && span.id != parent).collect();
    for (number, span) in own.iter().enumerate() {
        let is_last = number + 1 == own.len();
        let (branch, further) = if is_last { ("└─", "   ") } else { ("├─", "│  ") };
        let kind = if span.is_client { "CLIENT" } else { "SERVER" };
        let asked = format!("{} {}", span.attribute("http.request.method"), span.attribute("url.path"));
        let code = span.attribute("http.response.status_code");
        let (service, milliseconds) = (&span.service, span.milliseconds());
        *text += &format!(
            "{indent}{branch} {kind} {service:<8} {asked:<14} {code} {milliseconds:>6.2} ms  {}\n",
            scale.bar(span)
        );
        branches(text, spans, span.id, &format!("{indent}{further}"), scale);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(id: u64, parent_id: u64, times: [u64; 2]) -> Span {
        Span {
            trace_id: 5,
            id,
            parent_id,
            is_client: id.is_multiple_of(2),
            service: format!("s{id}"),
            start_ns: times[0],
            end_ns: times[1],
            is_error: false,
            attributes: [("http.response.status_code".to_owned(), "200".to_owned())].into(),
        }
    }

    #[test]
    fn siblings_and_children_hang_where_they_belong() {
        let spans =
            [span(2, 9, [0, 40_000_000]), span(3, 9, [10_000_000, 30_000_000]), span(4, 3, [20_000_000, 21_000_000])];
        let text = tree(&spans).expect("a tree");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 5, "{text}");
        assert!(lines[1].starts_with("span 0000000000000009"), "{text}");
        assert!(lines[2].starts_with("├─ CLIENT s2 ") && lines[2].ends_with(&"━".repeat(40)), "{text}");
        assert!(lines[3].starts_with("└─ SERVER s3 ") && lines[3].contains("  20.00 ms"), "{text}");
        assert!(lines[4].starts_with("   └─ CLIENT s4 ") && lines[4].ends_with(" ━"), "{text}");
        assert_eq!(tree(&[]), None);
    }
}
