//! Faults of the network and unusual peers, case by case: the observer against Envoy's access log.

mod ends;
mod forged;
mod handshakes;
mod packet_faults;
mod segments;
mod sockmaps;

use std::{fs, process::ExitCode};

use anyhow::{Context, Result, ensure};
use harness::{
    apps::raw::Connection,
    cases,
    mesh::{Family, Workload},
    net::run,
    pair::{Pair, SETTLE_TIMEOUT},
    sidecar::Options,
    wait::wait_until,
};

const BOTH: [Family; 2] = [Family::V4, Family::V6];

fn main() -> ExitCode {
    use self::{ends::*, forged::*, handshakes::*, packet_faults::*, segments::*, sockmaps::*};
    cases::run(
        fixture,
        cases![
            http1_with_lost_packets,
            http1_with_reordered_packets,
            http1_with_duplicated_packets,
            http1_with_delayed_packets,
            http2_with_lost_packets,
            http2_with_reordered_packets,
            http2_with_duplicated_packets,
            http2_with_delayed_packets,
            tcp_with_lost_packets,
            tcp_with_reordered_packets,
            tcp_with_duplicated_packets,
            tcp_with_delayed_packets,
            http1_data_with_the_handshake,
            http2_data_with_the_handshake,
            tcp_data_with_the_handshake,
            handshake_with_a_lost_last_ack,
            fast_open,
            tiny_segments,
            large_segments,
            without_copies,
            sent_from_a_file,
            spliced,
            urgent_data,
            window_of_zero,
            both_end_at_once,
            client_vanishes,
            port_used_again,
            client_resets_inside_the_body,
            application_resets_inside_the_body,
            answer_to_a_closed_socket,
            forged_into_http1,
            forged_into_http2,
            forged_into_tcp,
            forged_at_a_listener,
            redirected_by_a_sockmap,
            requests_redirected_by_a_sockmap,
        ],
    )
}

/// TCP Fast Open at every listener without a cookie; the setting is read when a listener is created.
const FAST_OPEN_EVERYWHERE: &str = "1543";

fn fixture() -> Result<Pair> {
    let mut pair = Pair::unobserved(Options::default(), Options::default())?;
    for sidecar in &mut pair.sidecars {
        let net = &sidecar.workload().net;
        net.enter(|| fs::write("/proc/sys/net/ipv4/tcp_fastopen", FAST_OPEN_EVERYWHERE))?.context("tcp_fastopen")?;
        sidecar.stop()?;
        sidecar.start_again()?;
    }
    pair.observe(2)?;
    Ok(pair)
}

/// Returns one of the kernel's own TCP counters, summed over both pods.
fn counted(pair: &Pair, counter: &str) -> Result<u64> {
    Ok(counted_in(&pair.client, counter)? + counted_in(&pair.server, counter)?)
}

fn counted_in(workload: &Workload, counter: &str) -> Result<u64> {
    let files = ["/proc/net/snmp", "/proc/net/netstat"];
    let text = run("ip", &["netns", "exec", workload.net.name(), "cat", files[0], files[1]])?;
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(' ').collect()).collect();
    let values = lines.chunks_exact(2).flat_map(|pair| pair[0].iter().zip(&pair[1]));
    let value = values.into_iter().find(|(name, _)| **name == counter).map(|(_, value)| *value);
    value.with_context(|| format!("no TCP counter {counter}"))?.parse().context("a number")
}

/// Ends the sending direction and waits for the peer's end, so that both have seen every byte.
fn finish_cleanly(connection: &mut Connection) -> Result<()> {
    connection.finish_sending()?;
    connection.drain()?;
    Ok(())
}

fn wait_for(what: &str, done: impl Fn() -> Result<bool>) -> Result<()> {
    wait_until(what, SETTLE_TIMEOUT, || {
        ensure!(done()?, "it is not so");
        Ok(())
    })
}
