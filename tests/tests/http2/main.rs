//! HTTP/2 on sidecars, case by case: the observer against Envoy's access log.

mod answers;
mod clients;
mod ends;
mod hyper;
mod refused;
mod requests;

use std::{fs, io, process::ExitCode, thread::sleep, time::Duration};

use anyhow::Result;
use harness::{
    apps::{
        frames::{Block, Peer, flag, headers},
        program::Program,
        raw::{Connection, Server},
    },
    cases,
    mesh::Family,
    pair::{Correction, Expected, Pair},
    tools,
};

const BOTH: [Family; 2] = [Family::V4, Family::V6];

fn main() -> ExitCode {
    use self::{answers::*, clients::*, ends::*, hyper::*, refused::*, requests::*};
    cases::run(
        Pair::new,
        cases![
            curl,
            curl_uploads,
            curl_without_the_upgrade_it_wants,
            nghttp_many_at_once,
            nghttp_uploads_and_trailers,
            nghttp_padding,
            nghttp_continuation,
            nghttp_header_tables,
            h2load,
            h2load_a_hundred_streams,
            http1_to_an_http2_application,
            http2_to_an_http1_application,
            sniffed_port,
            application_that_speaks_http1_only,
            bodies_of_64_mib,
            retransmissions,
            one_stream_at_a_time,
            padded_requests,
            requests_with_priority,
            headers_in_many_frames,
            headers_larger_than_a_frame,
            requests_split_at_every_byte,
            requests_in_one_segment,
            empty_data_ends_a_request,
            request_trailers,
            never_indexed_fields,
            request_table_sizes,
            response_table_sizes,
            frames_that_are_no_requests,
            content_types,
            connect,
            extended_connect,
            upgrade_to_h2c_is_not_made,
            answers_split_at_every_byte,
            answers_in_one_segment,
            statuses_without_a_body,
            statuses_in_the_dynamic_table,
            statuses_after_a_new_table_size,
            padded_answers,
            answer_headers_in_many_frames,
            empty_data_ends_an_answer,
            answer_trailers,
            early_hints,
            expect_continue,
            answer_before_the_request_has_ended,
            two_hundred_streams_at_once,
            grpc_statuses_in_every_form,
            client_resets_before_the_answer,
            client_resets_inside_the_answer,
            client_resets_inside_its_request,
            client_resets_after_the_answer,
            client_goes_away,
            client_ends_before_the_answer,
            client_resets_the_connection,
            many_open_calls_end_at_once,
            application_answers_and_reads_on,
            application_resets_the_stream_before_its_answer,
            application_resets_the_stream_inside_its_answer,
            application_refuses_the_stream,
            application_goes_away_after_its_answer,
            application_goes_away_before_later_streams,
            application_ends_without_a_word,
            hyper_statuses,
            hyper_trailers,
            hyper_many_streams_at_once,
            hyper_bodies_of_5_mib,
            hyper_churning_headers,
            hyper_header_tables,
            hyper_grpc_statuses,
            header_block_that_cannot_be_decoded,
            answers_that_are_refused,
            requests_that_are_refused,
            preexisting,
        ],
    )
}

/// Starts nghttp2's server behind the port declared HTTP/2, with bodies of 10 bytes, 5,000 bytes and 64 MiB.
fn nghttpd(pair: &Pair, arguments: &[&str]) -> Result<Program> {
    nghttpd_on(pair, pair.http2.target_port, arguments)
}

fn nghttpd_on(pair: &Pair, port: u16, arguments: &[&str]) -> Result<Program> {
    let pages = pair.mesh.directory().join("pages");
    fs::create_dir_all(&pages)?;
    for (name, length) in [("small", 10), ("page", 5000), ("large", 64 << 20)] {
        fs::File::create(pages.join(name))?.set_len(length)?;
    }
    let mut command = pair.server.command(&tools::require("nghttpd")?.to_string_lossy())?;
    command.arg("--no-tls").arg("-d").arg(&pages).args(arguments).arg(port.to_string());
    Program::serve(&pair.server, port, &mut command)
}

/// Starts an application behind the port declared HTTP/2, which announces these settings; it must end before the
/// next case's begins.
fn application(
    pair: &Pair,
    settings: &'static [(u16, u32)],
    handler: impl Fn(&mut Peer<'_>) -> io::Result<()> + Send + Sync + 'static,
) -> Result<Server> {
    Server::start(&pair.server, pair.http2.target_port, move |connection| {
        handler(&mut Peer::server(connection.as_mut().expect("given by the server"), settings)?)
    })
}

/// Makes one request that [`greet`] answers. Until it has connected to the application, Envoy opens a connection for
/// each request of its own, so what is to come on one connection comes after this.
fn introduce(peer: &mut Peer<'_>) -> Result<()> {
    peer.send(headers(1, flag::END_STREAM, &Block::request("GET", "/")))?;
    peer.ended(1)?;
    sleep(Duration::from_millis(50));
    Ok(())
}

/// Answers the first request of a connection.
fn greet(peer: &mut Peer<'_>) -> io::Result<()> {
    let stream = peer.request()?;
    peer.send(headers(stream, flag::END_STREAM, &Block::status(200)))
}

/// Lets `talk` make `requests` requests on a connection of its own, over either family, and compares.
fn talks(pair: &mut Pair, requests: usize, talk: impl Fn(&mut Peer<'_>) -> Result<()>) -> Result<String> {
    talks_with(pair, Expected::both(requests * 2), talk, &|_| {})
}

/// Compares like [`talks`], with the expected lines of both families together, and a correction of the counts.
fn talks_with(
    pair: &mut Pair,
    expected: Expected,
    talk: impl Fn(&mut Peer<'_>) -> Result<()>,
    correct: Correction<'_>,
) -> Result<String> {
    pair.check_with(
        expected,
        |pair| {
            BOTH.iter().try_for_each(|family| {
                let mut connection = Connection::open(&pair.client, pair.http2.address(*family))?;
                talk(&mut Peer::client(&mut connection, &[])?)
            })
        },
        correct,
    )
}
