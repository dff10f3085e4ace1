//! Data that a sockmap redirects from socket to socket: the observer cannot see them, and reports so.

use anyhow::{Context, Result, ensure};
use harness::{
    apps::{raw::Connection, tcp},
    pair::{Expected, Pair, SETTLE_TIMEOUT},
    sockmap::{Redirected, ShortCut},
};

use crate::{BOTH, finish_cleanly};

const REQUESTS: usize = 3;

/// Only opening and end are seen; the connections count as empty.
pub(super) fn redirected_by_a_sockmap(pair: &mut Pair) -> Result<String> {
    const EMPTY: (&str, &[(&str, &str)]) = ("mesh_observer_audit_empty_connections_total", &[]);
    let server = tcp::echo(&pair.server, pair.tcp.target_port)?;
    let before = said(pair, EMPTY)?;
    let source = pair.source();
    let traffic = |pair: &Pair| {
        for family in BOTH {
            requests(pair, Redirected::Both, pair.web.address(family))?;
            let short_cut = ShortCut::new(pair.sidecars[0].cgroup(), Redirected::Both)?;
            let mut connection = Connection::open(&pair.client, pair.tcp.address(family))?;
            short_cut.take(&connection)?;
            connection.send([7; 20_000])?;
            connection.receive(20_000)?;
            finish_cleanly(&mut connection)?;
        }
        Ok(())
    };
    let expected = Expected::both(2 * REQUESTS + 2);
    let summary = pair.check_with(expected, traffic, &|truth| {
        truth.requests.retain(|(leg, _), _| *leg != source);
        let connections = truth.connections.entry(source.clone()).or_default();
        (connections.received, connections.sent) = (0, 0);
    })?;
    drop(server);
    wait_until_said(pair, EMPTY, before + 4.0)?;
    Ok(format!("4 connections without a byte, {summary}"))
}

/// Responses without a request.
pub(super) fn requests_redirected_by_a_sockmap(pair: &mut Pair) -> Result<String> {
    const UNASKED: (&str, &[(&str, &str)]) =
        ("mesh_observer_parser_desyncs_total", &[("reason", "unexpected_response")]);
    let before = said(pair, UNASKED)?;
    let source = pair.source();
    let traffic = |pair: &Pair| {
        BOTH.into_iter().try_for_each(|family| requests(pair, Redirected::Requests, pair.web.address(family)))
    };
    let summary = pair.check_with(Expected::both(2 * REQUESTS), traffic, &|truth| {
        truth.requests.retain(|(leg, _), _| *leg != source);
    })?;
    wait_until_said(pair, UNASKED, before + 2.0)?;
    Ok(format!("2 connections with answers that were not asked for, {summary}"))
}

/// Sends requests one after the other on a redirected connection.
fn requests(pair: &Pair, redirected: Redirected, to: std::net::SocketAddr) -> Result<()> {
    let short_cut = ShortCut::new(pair.sidecars[0].cgroup(), redirected)?;
    let mut connection = Connection::open(&pair.client, to)?;
    short_cut.take(&connection)?;
    for _ in 0..REQUESTS {
        connection.send("POST /echo HTTP/1.1\r\nhost: web\r\ncontent-length: 9\r\n\r\nredirect!")?;
        ensure!(connection.receive_response()?.body == b"redirect!");
    }
    finish_cleanly(&mut connection)
}

/// Waits for a value of one of the observer's own families.
fn said(pair: &Pair, (family, labels): (&str, &[(&str, &str)])) -> Result<f64> {
    pair.observer()?.own(family, labels)
}

fn wait_until_said(pair: &Pair, (family, labels): (&str, &[(&str, &str)]), value: f64) -> Result<()> {
    let observer = pair.observer()?;
    let said = observer.wait_own(SETTLE_TIMEOUT, |metrics| metrics.sum(family, labels) == Some(value));
    said.map(drop).with_context(|| format!("{family}{labels:?} is not {value}"))
}
