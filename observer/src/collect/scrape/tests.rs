//! Scrapes of a server that does whatever a metrics port might do.

use super::*;
use crate::discovery::{InsideOnly, ProcessId};
use flate2::{Compression, write::GzEncoder};
use std::{
    io::{Read as _, Write as _},
    net::TcpListener as StdListener,
    path::Path,
    thread,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

/// Long enough for tens of megabytes on a busy machine.
const LIMIT: Duration = Duration::from_mins(2);

/// What the server sends for any request.
#[derive(Clone)]
enum Act {
    /// These bytes, then the end.
    Send(Vec<u8>),
    /// These bytes, then the second ones for ever.
    Repeat(Vec<u8>, Vec<u8>),
    /// Nothing.
    Hang,
}

async fn server(act: Act) -> EndpointUrl {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let act = act.clone();
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") && stream.read_buf(&mut request).await.unwrap_or(0) > 0 {}
                match act {
                    Act::Send(answer) => drop(stream.write_all(&answer).await),
                    Act::Repeat(head, body) => {
                        let _ = stream.write_all(&head).await;
                        while stream.write_all(&body).await.is_ok() {}
                    }
                    Act::Hang => std::future::pending().await,
                }
            });
        }
    });
    format!("http://{address}").parse().unwrap()
}

fn answer(headers: &str, body: &[u8]) -> Vec<u8> {
    [format!("HTTP/1.1 200 OK\r\nconnection: close\r\n{headers}\r\n").as_bytes(), body].concat()
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

fn chunk(body: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", body.len()).as_bytes(), body, b"\r\n"].concat()
}

async fn scraped(act: Act) -> Result<Arc<ScrapedExposition>, ScrapeError> {
    scraped_from(&server(act).await, None).await
}

async fn scraped_from(url: &EndpointUrl, ca_file: Option<&Path>) -> Result<Arc<ScrapedExposition>, ScrapeError> {
    scraped_within(url, ca_file, LIMIT).await
}

async fn scraped_within(
    url: &EndpointUrl,
    ca_file: Option<&Path>,
    limit: Duration,
) -> Result<Arc<ScrapedExposition>, ScrapeError> {
    let target = ScrapeTarget::named(url.clone(), "node-1");
    Scraper::new(&target, &options(limit, ca_file), limit).unwrap().scrape(&target).await
}

fn options(interval: Duration, ca_file: Option<&Path>) -> ScrapeOptions {
    ScrapeOptions { interval, ca_file: ca_file.map(Path::to_owned), proc_root: "/proc".into() }
}

async fn error(act: Act) -> &'static str {
    scraped(act).await.unwrap_err().kind()
}

fn names(exposition: &ScrapedExposition) -> Vec<&str> {
    exposition.families().iter().map(|family| &*family.name).collect()
}

#[tokio::test]
async fn pages_of_both_formats_plain_and_compressed() {
    let text = "# TYPE a counter\na{x=\"1\"} 1\nb 2\n";
    let exposition = scraped(Act::Send(answer(
        "content-type: text/plain; version=0.0.4; escaping=underscores\r\n",
        text.as_bytes(),
    )));
    assert_eq!(names(&exposition.await.unwrap()), ["a", "b"]);
    let exposition = scraped(Act::Send(answer("content-encoding: gzip\r\n", &gzip(text.as_bytes())))).await;
    assert_eq!(names(&exposition.unwrap()), ["a", "b"]);
    // Both halves compressed by themselves, as RFC 1952 allows it and Prometheus reads it.
    let (first, second) = text.split_at(text.find("b 2").unwrap());
    let members = [gzip(first.as_bytes()), gzip(second.as_bytes())].concat();
    let exposition = scraped(Act::Send(answer("content-encoding: gzip\r\n", &members))).await;
    assert_eq!(names(&exposition.unwrap()), ["a", "b"]);
    for (headers, body) in [("", text.as_bytes().to_vec()), ("content-encoding: gzip\r\n", gzip(text.as_bytes()))] {
        let headers = format!("{headers}transfer-encoding: chunked\r\n");
        let chunks: Vec<Vec<u8>> = body.chunks(7).map(chunk).chain([chunk(b"")]).collect();
        assert_eq!(names(&scraped(Act::Send(answer(&headers, &chunks.concat()))).await.unwrap()), ["a", "b"]);
        // Without the last chunk the answer is not whole, whatever it says so far.
        let cut = chunks[..chunks.len() - 1].concat();
        assert_eq!(error(Act::Send(answer(&headers, &cut))).await, "broken");
    }
    let open = "# TYPE a counter\na_total 1\n# EOF\n";
    let kind = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n";
    assert_eq!(names(&scraped(Act::Send(answer(kind, open.as_bytes()))).await.unwrap()), ["a_total"]);
    assert_eq!(error(Act::Send(answer(kind, text.as_bytes()))).await, "cut");
}

#[tokio::test]
async fn answers_that_are_no_pages() {
    let status = |status: &str| Act::Send(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").into_bytes());
    assert_eq!(error(status("403 Forbidden")).await, "forbidden");
    let said = scraped(status("403 Forbidden")).await.unwrap_err().to_string();
    assert!(said.contains("METRICS_LOCALHOST_ACCESS_ONLY"), "{said}");
    assert_eq!(error(status("302 Found\r\nlocation: http://127.0.0.1:1/")).await, "redirect");
    assert_eq!(error(status("500 Oops")).await, "status");
    assert_eq!(error(Act::Send(answer("content-type: text/html\r\n", b"<html>"))).await, "content_type");
    assert_eq!(error(Act::Send(answer("content-encoding: zstd\r\n", b"x"))).await, "encoding");
    assert_eq!(error(Act::Send(answer("", b"<html>\nno metrics\n\0\xff\n"))).await, "no_metrics");
    assert_eq!(error(Act::Send(answer("", b""))).await, "no_metrics");
    assert_eq!(error(Act::Send(b"nonsense\r\n\r\n".to_vec())).await, "broken");
    assert_eq!(error(Act::Send(Vec::new())).await, "broken");
}

#[tokio::test]
async fn answers_that_break_off_or_never_come() {
    let silent = server(Act::Hang).await;
    assert_eq!(scraped_within(&silent, None, Duration::from_millis(100)).await.unwrap_err().kind(), "timeout");
    assert_eq!(error(Act::Send(answer("content-length: 100\r\n", b"a 1\n"))).await, "broken");
    assert_eq!(error(Act::Send(answer("", b"a 1\nb 2"))).await, "cut");
    let whole = gzip("a 1\nb 2\n".repeat(1000).as_bytes());
    assert_eq!(error(Act::Send(answer("content-encoding: gzip\r\n", &whole[..whole.len() - 9]))).await, "gzip");
    assert_eq!(error(Act::Send(answer("content-encoding: gzip\r\n", b"a 1\n"))).await, "gzip");
    let nobody: EndpointUrl = "http://127.0.0.1:1".parse().unwrap();
    assert_eq!(scraped_from(&nobody, None).await.unwrap_err().kind(), "connect");
}

#[tokio::test]
async fn another_way_is_tried_where_the_door_is_shut_and_only_there() {
    // This process did not start with the machine, so the number is another process's.
    let process = ProcessId { pid: std::process::id(), start_time: 0 };
    let by = async |act: Act, only| {
        let target = ScrapeTarget::named(server(act).await, "node-1");
        let inside = Some(NetnsRoute { process, address: target.instance.instance.parse().unwrap(), only });
        let target = ScrapeTarget { inside, ..target };
        let scraper = Scraper::new(&target, &options(LIMIT, None), LIMIT).unwrap();
        scraper
            .scrape(&target)
            .await
            .map(|exposition| exposition.samples)
            .map_err(|error| (error.kind(), error.to_string()))
    };
    let good = || Act::Send(answer("", b"a 1\n"));
    let status = |status: &str| Act::Send(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").into_bytes());
    assert_eq!(by(good(), None).await, Ok(1));
    assert_eq!(by(status("500 Oops"), None).await.unwrap_err().0, "status");
    let (kind, said) = by(status("403 Forbidden"), None).await.unwrap_err();
    assert!(kind == "gone" && said.contains("403 Forbidden") && said.contains("has ended"), "{kind}: {said}");
    let (kind, said) = by(good(), Some(InsideOnly::Loopback)).await.unwrap_err();
    assert!(kind == "gone" && said.contains("listens on loopback only"), "{kind}: {said}");
}

#[tokio::test]
async fn answers_without_end_are_left() {
    let line = Act::Repeat(answer("", b"a 1\nb{x=\""), vec![b'x'; 1 << 16]);
    assert_eq!(error(line).await, "too_large");
    let lines = Act::Repeat(answer("", b"a 1\n"), b"# a comment\n".repeat(5000));
    assert_eq!(error(lines).await, "too_large");
    let samples: String =
        (0..=observer_model::scraped::MAX_SAMPLES).map(|number| format!("family_{number} 1\n")).collect();
    assert_eq!(error(Act::Send(answer("", samples.as_bytes()))).await, "too_many_samples");
    // Twice as much as is read of any exposition, in 64 KiB: what comes behind, 10 GB or more, is never asked for.
    let bomb = gzip(&vec![b'\n'; 64 << 20]);
    assert_eq!(error(Act::Send(answer("content-encoding: gzip\r\n", &bomb))).await, "too_large");
}

#[tokio::test]
async fn a_label_of_a_megabyte_costs_its_line() {
    let text = format!("a 1\nb{{x=\"{}\"}} 1\nc 1\nc 2\n", "x".repeat(1 << 20));
    let exposition = scraped(Act::Send(answer("", text.as_bytes()))).await.unwrap();
    assert_eq!(names(&exposition), ["a", "c"]);
    assert_eq!(exposition.skipped, BTreeMap::from([("line_too_long", 1), ("duplicate", 1)]));
}

#[tokio::test]
async fn certificates_are_checked() {
    let authority = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), authority.cert.pem()).unwrap();
    let other = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let other_file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(other_file.path(), other.cert.pem()).unwrap();

    let _ = rustls::crypto::ring::default_provider().install_default();
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(authority.signing_key.serialize_der().into());
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![authority.cert.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let url: EndpointUrl = format!("https://{}", listener.local_addr().unwrap()).parse().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let connection = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut stream = rustls::StreamOwned::new(connection, stream.unwrap());
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(&answer("content-length: 4\r\n", b"a 1\n"));
            stream.conn.send_close_notify();
            let _ = stream.flush();
        }
    });
    assert_eq!(names(&scraped_from(&url, Some(file.path())).await.unwrap()), ["a"]);
    let error = scraped_from(&url, Some(other_file.path())).await.unwrap_err();
    assert_eq!(error.kind(), "tls", "{error}");
    assert!(error.to_string().contains("control_plane_ca"), "{error}");
}

#[tokio::test]
async fn a_dead_target_delays_nothing_and_targets_may_change_at_any_time() {
    let good = ScrapeTarget::named(server(Act::Send(answer("", b"a 1\nb x\n"))).await, "node-1");
    let hanging = ScrapeTarget::named(server(Act::Hang).await, "node-1");
    let mut targets = ScrapePool::new(options(Duration::from_millis(50), None));
    targets.set([good.clone(), hanging.clone()]).unwrap();
    let of = |targets: &ScrapePool, target: &ScrapeTarget| {
        let began = Instant::now();
        let mut readings = targets.read();
        assert!(began.elapsed() < Duration::from_millis(20));
        readings.retain(|reading| reading.instance == target.instance);
        readings.pop()
    };
    while of(&targets, &good).unwrap().exposition.is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!of(&targets, &hanging).unwrap().tried);
    tokio::time::sleep(Duration::from_millis(120)).await;
    targets.set([good.clone()]).unwrap();
    assert!(of(&targets, &hanging).is_none());
    let reading = of(&targets, &good).unwrap();
    assert!(reading.scrapes["ok"] >= 2 && reading.skipped["value"] == reading.scrapes["ok"], "what was known is kept");
    // Its process is another now, as after a restart.
    let process = ProcessId { pid: std::process::id(), start_time: 0 };
    let inside = Some(NetnsRoute { process, address: good.instance.instance.parse().unwrap(), only: None });
    let before = of(&targets, &good).unwrap().scrapes["ok"];
    let again = ScrapeTarget { inside, ..good.clone() };
    targets.set([again.clone()]).unwrap();
    assert!(of(&targets, &again).unwrap().scrapes["ok"] >= before, "it is the same instance");
    let missing = ScrapePool::new(options(LIMIT, Some(Path::new("/nonexistent"))))
        .set([ScrapeTarget::named("https://127.0.0.1:1".parse().unwrap(), "node-1")]);
    assert!(missing.unwrap_err().to_string().contains("/nonexistent"));
}

#[test]
fn addresses_show_no_credentials() {
    let url: EndpointUrl = "http://user:secret@[::1]:15014?token=secret".parse().unwrap();
    assert_eq!((format!("{url}"), format!("{url:?}")), ("http://[::1]:15014/metrics".to_owned(), url.to_string()));
    let target = ScrapeTarget::named(url, "node-1");
    assert_eq!((target.instance.instance.as_str(), target.instance.app.as_str()), ("[::1]:15014", "istiod"));
    assert!(!format!("{target:?}").contains("secret"));
    for wrong in ["ftp://secret@a/", "secret", "http://secret:secret:secret@", "http://"] {
        let error = wrong.parse::<EndpointUrl>().unwrap_err();
        assert!(!error.contains("secret") && error.contains("http://istiod.istio-system:15014/metrics"), "{error}");
    }
    assert_eq!("https://a/b".parse::<EndpointUrl>().unwrap().to_string(), "https://a/b");
}
