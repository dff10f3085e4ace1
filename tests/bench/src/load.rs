//! Third-party clients in the client's pod, and their reports.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use harness::net::finish;

use crate::spread::quantile;

/// Connections of the client of HTTP/1.1.
const CONNECTIONS: u32 = 16;
/// Connections of the client of HTTP/2, and how many requests are open at a time on each.
const MULTIPLEXED: [u32; 2] = [4, 32];
/// Fewest bytes that a header can add.
pub(crate) const SHORTEST_PADDING: usize = "x-pad: \r\n".len() + 1;

/// Returns a header that makes a message longer by so many bytes, without its line's end; none for 0.
pub(crate) fn padding(bytes: usize) -> String {
    if bytes == 0 {
        String::new()
    } else {
        format!("x-pad: {:a<1$}", "", bytes.max(SHORTEST_PADDING) - (SHORTEST_PADDING - 1))
    }
}

/// Report of a client.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Answers {
    pub(crate) requests: f64,
    pub(crate) a_second: f64,
}

/// Sends as many requests as possible on persistent connections, for a whole number of seconds.
pub(crate) fn saturate(wrk: &mut Command, url: &str, padded: usize, time: Duration) -> Result<Answers> {
    let seconds = time.as_secs().max(1);
    wrk.args(["-t", "1", "-c", &CONNECTIONS.to_string(), "-d", &format!("{seconds}s")]);
    if padded > 0 {
        wrk.args(["-H", &padding(padded)]);
    }
    answers(&finish(wrk.arg(url), "")?)
}

/// Returns the same over HTTP/2, many at a time on each connection.
pub(crate) fn saturate_streams(h2load: &mut Command, url: &str, time: Duration) -> Result<Answers> {
    let seconds = time.as_secs().max(1);
    let [connections, streams] = MULTIPLEXED.map(|number| number.to_string());
    h2load.args(["-t", "1", "-c", &connections, "-m", &streams, "-D", &seconds.to_string()]);
    multiplexed_answers(&finish(h2load.arg(url), "")?)
}

/// Sends `a_second` requests per second; returns their 99th percentile in milliseconds.
pub(crate) fn pace(h2load: &mut Command, url: &str, a_second: f64, time: Duration, log: &Path) -> Result<f64> {
    // h2load appends to an existing file.
    let _ = fs::remove_file(log);
    let each = format!("{:.2}", a_second / f64::from(CONNECTIONS));
    let seconds = time.as_secs().max(1);
    h2load.args(["--h1", "-t", "1", "-c", &CONNECTIONS.to_string(), "--rps", &each, "-D", &seconds.to_string()]);
    finish(h2load.arg("--log-file").arg(log).arg(url), "")?;
    let text = fs::read_to_string(log).with_context(|| format!("{}", log.display()))?;
    #[expect(clippy::cast_precision_loss, reason = "thousands")]
    let (durations, wanted) = (successes(&text), a_second * seconds as f64);
    #[expect(clippy::cast_precision_loss, reason = "thousands")]
    let share = durations.len() as f64 / wanted;
    ensure!((0.8..1.2).contains(&share), "h2load made {} requests instead of {wanted:.0}", durations.len());
    Ok(quantile(&durations, 0.99) / 1000.0)
}

/// Downloads a body; returns the bytes per second.
pub(crate) fn download(curl: &mut Command, url: &str, length: u64) -> Result<f64> {
    let report =
        finish(curl.args(["-sS", "-m", "120", "-o", "/dev/null", "-w", "%{size_download} %{time_total}", url]), "")?;
    let (size, time) = report.split_once(' ').with_context(|| format!("curl said {report:?}"))?;
    ensure!(size == length.to_string(), "curl received {size} bytes instead of {length}");
    let seconds: f64 = time.trim().parse().with_context(|| format!("curl took {time:?}"))?;
    #[expect(clippy::cast_precision_loss, reason = "below 2^53")]
    Ok(length as f64 / seconds)
}

fn answers(text: &str) -> Result<Answers> {
    let unclear = || format!("wrk said:\n{text}");
    ensure!(!text.contains("Non-2xx") && !text.contains("Socket errors"), "the path fails under load; {}", unclear());
    let number = |before: &str, after: &str| -> Option<f64> {
        let line = text.lines().find(|line| line.contains(before) && line.contains(after))?;
        line.split_whitespace().find_map(|word| word.parse().ok())
    };
    Ok(Answers {
        requests: number(" requests in ", "").with_context(unclear)?,
        a_second: number("Requests/sec:", "").with_context(unclear)?,
    })
}

/// Parses the report of h2load.
pub(crate) fn multiplexed_answers(text: &str) -> Result<Answers> {
    let unclear = || format!("h2load said:\n{text}");
    let number = |line: &str, after: &str| -> Option<f64> {
        let line = text.lines().find(|found| found.starts_with(line))?;
        line.split(", ").find_map(|part| part.strip_suffix(after))?.rsplit(' ').next()?.parse().ok()
    };
    let of_requests = |what: &str| number("requests: ", what).with_context(unclear);
    let failed = of_requests(" failed")? + of_requests(" errored")? + of_requests(" timeout")?;
    ensure!(failed == 0.0, "the path fails under load; {}", unclear());
    Ok(Answers {
        requests: of_requests(" succeeded")?,
        a_second: number("finished in ", " req/s").with_context(unclear)?,
    })
}

/// Returns the sorted microseconds of requests answered with 200; the columns are start, status and duration.
fn successes(log: &str) -> Vec<f64> {
    let mut durations: Vec<f64> = log
        .lines()
        .filter_map(|line| {
            let mut columns = line.split('\t').skip(1);
            (columns.next() == Some("200")).then(|| columns.next()?.parse().ok())?
        })
        .collect();
    durations.sort_by(f64::total_cmp);
    durations
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_as_long_as_wanted() {
        assert_eq!(padding(0), "");
        assert_eq!(padding(SHORTEST_PADDING), "x-pad: a");
        assert_eq!(padding(300).len() + "\r\n".len(), 300);
    }

    #[test]
    fn reads_what_wrk_says() {
        let text = "Running 2s test @ http://10.96.0.1/1024\n  1 threads and 16 connections\n  10245 requests in 2.00s, 13.20MB read\n\
                    Requests/sec:   5120.50\nTransfer/sec:      6.60MB\n";
        assert_eq!(answers(text).unwrap(), Answers { requests: 10245.0, a_second: 5120.5 });
        assert!(answers(&format!("{text}  Non-2xx or 3xx responses: 3\n")).is_err());
    }

    #[test]
    fn reads_what_h2load_says() {
        let text = "finished in 2.01s, 334544.00 req/s, 335.96MB/s\n\
                    requests: 669088 total, 669600 started, 669088 done, 669088 succeeded, 0 failed, 0 errored, 0 timeout\n\
                    status codes: 669088 2xx, 0 3xx, 0 4xx, 0 5xx\n";
        assert_eq!(multiplexed_answers(text).unwrap(), Answers { requests: 669_088.0, a_second: 334_544.0 });
        assert!(multiplexed_answers(&text.replace("0 failed", "1 failed")).is_err());
    }

    #[test]
    fn reads_the_log_of_h2load() {
        assert_eq!(successes("1\t200\t900\n2\t503\t5\n3\t200\t400\nodd\n"), [400.0, 900.0]);
    }
}
