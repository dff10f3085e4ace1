//! Third-party clients, with nghttp2's server.

use std::fs;

use anyhow::{Result, ensure};
use harness::{
    mesh::Family,
    net::finish,
    pair::{Expected, Pair, however_late, with_late_window_updates},
};

use super::{BOTH, nghttpd, nghttpd_on};

const PRIOR_KNOWLEDGE: &str = "--http2-prior-knowledge";

pub(super) fn curl(pair: &mut Pair) -> Result<String> {
    let _server = nghttpd(pair, &[])?;
    pair.check(Expected::both(8), |pair| {
        for family in BOTH {
            for (path, code) in [("/small", "200"), ("/page", "200"), ("/absent", "404")] {
                ensure!(pair.curl(&[PRIOR_KNOWLEDGE, &pair.http2.url(family, path)])? == code);
            }
            ensure!(pair.curl(&[PRIOR_KNOWLEDGE, "--head", &pair.http2.url(family, "/page")])? == "200");
        }
        Ok(())
    })
}

pub(super) fn curl_uploads(pair: &mut Pair) -> Result<String> {
    let _server = nghttpd(pair, &["--echo-upload"])?;
    let file = format!("@{}", upload(pair, 200_000)?);
    pair.check(Expected::both(6), |pair| {
        for family in BOTH {
            let url = pair.http2.url(family, "/");
            for arguments in [
                ["--data-binary", &file, "-H", "expect:", &url],
                ["--data-binary", &file, "-H", "expect: 100-continue", &url],
                ["--data-binary", "short", "-H", "content-type: text/plain", &url],
            ] {
                let codes = pair.curl(&[[PRIOR_KNOWLEDGE].as_slice(), &arguments].concat())?;
                ensure!(codes == "200", "{codes}");
            }
        }
        Ok(())
    })
}

/// Requests `Upgrade: h2c`, which Envoy ignores: HTTP/1 at the client, HTTP/2 at the application.
pub(super) fn curl_without_the_upgrade_it_wants(pair: &mut Pair) -> Result<String> {
    let _server = nghttpd(pair, &[])?;
    pair.check(Expected::both(4), |pair| {
        for family in BOTH {
            ensure!(pair.curl(&["--http2", &pair.http2.url(family, "/{small,page}")])? == "200\n200");
        }
        Ok(())
    })
}

pub(super) fn nghttp_many_at_once(pair: &mut Pair) -> Result<String> {
    let _server = nghttpd(pair, &[])?;
    nghttp(pair, 60, &["-m", "20"], &["/small", "/page", "/absent"])
}

pub(super) fn nghttp_uploads_and_trailers(pair: &mut Pair) -> Result<String> {
    let _server = nghttpd(pair, &["--echo-upload", "--trailer", "x-end: yes"])?;
    let file = upload(pair, 100_000)?;
    nghttp(pair, 1, &["-d", &file, "--trailer", "x-sum: 0", "--no-content-length"], &["/"])
}

pub(super) fn nghttp_padding(pair: &mut Pair) -> Result<String> {
    let _server = nghttpd(pair, &["-b", "100", "--echo-upload"])?;
    let file = upload(pair, 50_000)?;
    nghttp(pair, 5, &["-b", "200", "-m", "5", "-d", &file], &["/"])
}

pub(super) fn nghttp_continuation(pair: &mut Pair) -> Result<String> {
    let _server = nghttpd(pair, &[])?;
    nghttp(pair, 4, &["--continuation", "-m", "4"], &["/small"])
}

/// Sizes of the tables that each end encodes and decodes with.
pub(super) fn nghttp_header_tables(pair: &mut Pair) -> Result<String> {
    let mut summary = Vec::new();
    for (server, client) in [
        (["-c", "0"], ["-c", "0"]),
        (["-c", "8192"], ["-c", "8192"]),
        (["--encoder-header-table-size", "0"], ["--encoder-header-table-size", "0"]),
        (["--encoder-header-table-size", "8192"], ["--encoder-header-table-size", "128"]),
    ] {
        let _server = nghttpd(pair, &server)?;
        let arguments = [client.as_slice(), &["-m", "5", "-H", "x-remembered: by both ends of the leg"]].concat();
        summary.push(nghttp(pair, 10, &arguments, &["/small", "/absent"])?);
    }
    Ok(summary.join("; "))
}

pub(super) fn h2load(pair: &mut Pair) -> Result<String> {
    // More at once than it accepts.
    let _server = nghttpd(pair, &["-m", "1000"])?;
    let to = pair.http2.clone();
    load(pair, &["-n2000", "-c5", "-m32"], |family| to.url(family, "/small"))
}

pub(super) fn h2load_a_hundred_streams(pair: &mut Pair) -> Result<String> {
    let _server = nghttpd(pair, &[])?;
    let to = pair.http2.clone();
    load(pair, &["-n2000", "-c1", "-m100"], |family| to.url(family, "/page"))
}

pub(super) fn http1_to_an_http2_application(pair: &mut Pair) -> Result<String> {
    let _server = nghttpd(pair, &[])?;
    let to = pair.http2.clone();
    load(pair, &["--h1", "-n2000", "-c5", "-m1"], |family| to.url(family, "/page"))
}

pub(super) fn http2_to_an_http1_application(pair: &mut Pair) -> Result<String> {
    let to = pair.web.clone();
    load(pair, &["-n2000", "-c5", "-m10"], |family| to.url(family, "/bytes/100"))
}

/// HTTP/2 on both legs of an undeclared port.
pub(super) fn sniffed_port(pair: &mut Pair) -> Result<String> {
    let _server = nghttpd_on(pair, pair.raw.target_port, &[])?;
    pair.check(Expected::both(6), |pair| {
        for family in BOTH {
            for (path, code) in [("/small", "200"), ("/page", "200"), ("/absent", "404")] {
                ensure!(pair.curl(&[PRIOR_KNOWLEDGE, &pair.raw.url(family, path)])? == code);
            }
        }
        Ok(())
    })
}

/// On an undeclared port HTTP/2 is forwarded as it is; the application's answer is invalid.
pub(super) fn application_that_speaks_http1_only(pair: &mut Pair) -> Result<String> {
    pair.check(Expected::both(2), |pair| {
        for family in BOTH {
            ensure!(pair.curl(&[PRIOR_KNOWLEDGE, &pair.sniffed.url(family, "/")])? == "502");
        }
        Ok(())
    })
}

pub(super) fn bodies_of_64_mib(pair: &mut Pair) -> Result<String> {
    let server = nghttpd(pair, &[])?;
    let file = upload(pair, 64 << 20)?;
    pair.check_with(
        Expected::both(4),
        |pair| {
            for family in BOTH {
                ensure!(pair.curl(&[PRIOR_KNOWLEDGE, &pair.http2.url(family, "/large")])? == "200");
                ensure!(pair.curl(&[PRIOR_KNOWLEDGE, "-T", &file, &pair.http2.url(family, "/small")])? == "200");
            }
            drop(server);
            Ok(())
        },
        &with_late_window_updates,
    )
}

/// A retransmitted byte is sent at one end, and not yet at the other.
pub(super) fn retransmissions(pair: &mut Pair) -> Result<String> {
    let _server = nghttpd(pair, &[])?;
    let file = upload(pair, 1 << 20)?;
    pair.check_with(
        Expected::both(404),
        |pair| {
            pair.losing_packets(|| {
                BOTH.iter().try_for_each(|family| {
                    let url = pair.http2.url(*family, "/page");
                    run_h2load(pair, &["-n", "200", "-c", "2", "-m", "10"], &url, "200 succeeded")?;
                    for _ in 0..2 {
                        let url = pair.http2.url(*family, "/small");
                        ensure!(pair.curl(&["-m", "60", PRIOR_KNOWLEDGE, "-T", &file, &url])? == "200");
                    }
                    Ok(())
                })
            })
        },
        &however_late,
    )
}

/// The application allows one stream. Streams that its sidecar opens before it receives the limit are refused.
pub(super) fn one_stream_at_a_time(pair: &mut Pair) -> Result<String> {
    let _server = nghttpd(pair, &["-m", "1"])?;
    nghttp(pair, 40, &["-m", "20"], &["/small", "/page"])
}

/// Runs nghttp over either family, `requests` each.
fn nghttp(pair: &mut Pair, requests: usize, arguments: &[&str], paths: &[&str]) -> Result<String> {
    pair.check(Expected::both(requests * 2), |pair| {
        for family in BOTH {
            let mut command = pair.client.command("nghttp")?;
            command.arg("-n").args(arguments).args(paths.iter().map(|path| pair.http2.url(family, path)));
            finish(&mut command, "")?;
        }
        Ok(())
    })
}

/// Runs h2load with 2,000 requests over either family.
fn load(pair: &mut Pair, arguments: &[&str], url: impl Fn(Family) -> String) -> Result<String> {
    pair.check(Expected::both(4000), |pair| {
        for family in BOTH {
            run_h2load(pair, arguments, &url(family), "2000 succeeded")?;
        }
        Ok(())
    })
}

fn run_h2load(pair: &Pair, arguments: &[&str], url: &str, success: &str) -> Result<()> {
    let said = finish(pair.client.command("h2load")?.args(arguments).arg(url), "")?;
    ensure!(said.contains(success), "{said}");
    Ok(())
}

/// A file of that length to send.
fn upload(pair: &Pair, length: u64) -> Result<String> {
    let file = pair.mesh.directory().join("upload");
    fs::File::create(&file)?.set_len(length)?;
    Ok(file.to_string_lossy().into_owned())
}
