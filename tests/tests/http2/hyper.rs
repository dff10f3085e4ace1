//! hyper with h2 at both ends: another encoder and decoder of headers, on long connections.

mod ends;
mod exchange;

use anyhow::Result;
use harness::{
    counts::Messages,
    pair::{Correction, Expected, Pair, with_late_window_updates},
};
use tokio::runtime::Runtime;

use self::exchange::Exchange;
use super::BOTH;

/// The preface of HTTP/2.
const TABLE: u32 = 4096;
/// More than fit the table, where each takes its size, its name and 32 bytes. All cases share them, which keeps the
/// exposition short.
const STATUSES: std::ops::Range<u16> = 400..497;

/// Each new entry evicts the oldest from the table, up and down again.
pub(super) fn hyper_statuses(pair: &mut Pair) -> Result<String> {
    let _application = application(pair, TABLE)?;
    let others = [200, 201, 204, 206, 301, 304, 500, 503];
    let all = STATUSES.chain(others).chain(STATUSES.rev()).chain(others).chain(STATUSES);
    exchange(pair, TABLE, 30, all.map(Exchange::of).collect())
}

pub(super) fn hyper_trailers(pair: &mut Pair) -> Result<String> {
    let _application = application(pair, TABLE)?;
    let with = |length| Exchange { upload: length, download: length, trailers: true, ..Exchange::of(200) };
    exchange(pair, TABLE, 5, [0, 1, 5000, 20_000].repeat(5).into_iter().map(with).collect())
}

pub(super) fn hyper_many_streams_at_once(pair: &mut Pair) -> Result<String> {
    let _application = application(pair, TABLE)?;
    let with = |number: u16| Exchange {
        download: usize::from(number) * 10,
        ..Exchange::of([200, 404, 500, 418][usize::from(number) % 4])
    };
    exchange(pair, TABLE, 400, (0..2000).map(with).collect())
}

pub(super) fn hyper_bodies_of_5_mib(pair: &mut Pair) -> Result<String> {
    let _application = application(pair, TABLE)?;
    let with = |(upload, download)| Exchange { upload, download, ..Exchange::of(200) };
    let all = [(5 << 20, 0), (0, 5 << 20), (5 << 20, 5 << 20)].map(with).into();
    exchange_with(pair, TABLE, 1, all, &with_late_window_updates)
}

/// New values keep evicting statuses and content types from the tables of both directions.
pub(super) fn hyper_churning_headers(pair: &mut Pair) -> Result<String> {
    let _application = application(pair, TABLE)?;
    exchange(pair, TABLE, 10, (0..3000).map(churning).collect())
}

pub(super) fn hyper_header_tables(pair: &mut Pair) -> Result<String> {
    let mut summary = Vec::new();
    for table in [0, 200, 65_536] {
        let _application = application(pair, table)?;
        summary.push(format!("{table} bytes: {}", exchange(pair, table, 10, (0..300).map(churning).collect())?));
    }
    Ok(summary.join("; "))
}

/// In trailers, or in headers without a body, between other content types.
pub(super) fn hyper_grpc_statuses(pair: &mut Pair) -> Result<String> {
    let _application = application(pair, TABLE)?;
    let call = |number: u16| Exchange {
        content_type: ["application/grpc", "application/grpc+proto"][usize::from(number) % 2],
        upload: 5,
        download: usize::from(number % 3) * 5,
        grpc_status: Some(number % 17),
        churn: Some(format!("{number} is a value of this call alone")),
        ..Exchange::of(200)
    };
    let web = |number| Exchange { content_type: "application/grpc-web", grpc_status: None, ..call(number) };
    let all: Vec<Exchange> = (0..1020).flat_map(|number| [call(number), web(number)]).collect();
    exchange(pair, TABLE, 10, all)
}

fn application(pair: &Pair, table: u32) -> Result<Runtime> {
    ends::application(&pair.server, pair.http2.target_port, table)
}

fn churning(number: u16) -> Exchange {
    const TYPES: [&str; 3] = ["text/plain", "application/json", "application/grpc-web+proto"];
    Exchange {
        content_type: TYPES[usize::from(number) % TYPES.len()],
        churn: Some(format!("{number:08x}-never-seen-before")),
        ..Exchange::of(STATUSES.start + number % (STATUSES.end - STATUSES.start))
    }
}

/// Makes these exchanges over either family, `at_once` at a time, and compares.
fn exchange(pair: &mut Pair, table: u32, at_once: usize, all: Vec<Exchange>) -> Result<String> {
    exchange_with(pair, table, at_once, all, &|_| {})
}

/// Makes exchanges like [`exchange`], with a correction of the expected counts.
fn exchange_with(
    pair: &mut Pair,
    table: u32,
    at_once: usize,
    all: Vec<Exchange>,
    correct: Correction<'_>,
) -> Result<String> {
    let calls = all.iter().filter(|exchange| exchange.grpc_status.is_some());
    let count = |bytes: fn(&Exchange) -> usize| calls.clone().map(|call| 2 * bytes(call) as u64 / 5).sum();
    let messages = Messages { requests: count(|call| call.upload), responses: count(|call| call.download) };
    let legs = [pair.source(), pair.destination()];
    let summary = format!("{} exchanges over either family", all.len());
    let check = pair.check_with(
        Expected::both(2 * all.len()),
        |pair| {
            BOTH.iter().try_for_each(|family| {
                ends::exchange(&pair.client, pair.http2.address(*family), table, at_once, all.clone())
            })
        },
        &|truth| {
            correct(truth);
            truth.messages = legs.clone().map(|leg| (leg, messages.clone())).into();
        },
    );
    check.map(|_| summary)
}
