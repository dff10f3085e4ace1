//! Remote write to real receivers: what they store is what was exposed, sample by sample, also if they are killed and
//! started again.

use std::{collections::BTreeMap, env, fs, process, thread::sleep, time::Duration};

use anyhow::{Context, Result, ensure};
use harness::{
    mesh::Family,
    observer::{Observer, free_port},
    pair::Pair,
    prometheus::{Prometheus, Receiver, Series, stored},
    replay::{Capture, Replay},
    sidecar::Options,
    wait::wait_until,
};
use observer_model::histogram::LE;

const TIMEOUT: Duration = Duration::from_secs(90);
const PAGE: &str = "1.25.3/16-one-left";
/// Time without a receiver.
const OUTAGE: Duration = Duration::from_secs(9);
const DROPPED: &str = "mesh_observer_emitter_points_dropped_total";

#[test]
fn prometheus_2_stores_what_is_exposed_across_an_outage_and_until_the_observer_ends() -> Result<()> {
    everything_exposed_is_stored(Receiver::Debian)
}

#[test]
fn prometheus_3_stores_what_is_exposed_across_an_outage_and_until_the_observer_ends() -> Result<()> {
    everything_exposed_is_stored(Receiver::Recent)
}

#[test]
fn victoria_metrics_stores_what_is_exposed_across_an_outage_and_until_the_observer_ends() -> Result<()> {
    everything_exposed_is_stored(Receiver::VictoriaMetrics)
}

fn everything_exposed_is_stored(receiver: Receiver) -> Result<()> {
    let directory = env::temp_dir().join(format!("mesh-remote-write-{}-{receiver:?}", process::id()));
    fs::create_dir_all(&directory)?;
    let address = free_port()?;
    let prometheus = Prometheus::receiver(receiver, &directory, address)?;
    let plane = Replay::start(&Capture::named(PAGE)?)?;
    let (instance, url) = (plane.instance(), format!("remote-write+http://{address}"));
    let queue = directory.join("queue").display().to_string();
    let arguments = ["--interval", "2s", "--emit", &url, "--queue-dir", &queue];
    let observer = Observer::start_scraping(&directory, &[plane.url()], &arguments)?;
    let everything = format!("{{instance=\"{instance}\",__name__!~\"mesh_observer_.*\"}}");
    let exposed = || -> Result<Series> {
        let page = observer.scrape()?;
        let is_scraped = |name: &str, own: &str| own == instance && !name.starts_with("mesh_observer_");
        let own = page.all().iter().filter(|sample| is_scraped(&sample.name, sample.label("instance")));
        stored(&own.cloned().collect::<Vec<_>>(), "mesh-observer", &instance)
    };
    // VictoriaMetrics stores decimal numbers of at least 15 digits.
    let precision = if receiver == Receiver::VictoriaMetrics { 1e-14 } else { 0.0 };
    let is_stored = |own: f64, value: f64| same(own, value) || (own - value).abs() <= precision * value.abs();
    let check = |prometheus: &Prometheus| {
        wait_until("what is exposed is stored", TIMEOUT, || {
            let (found, expected) = (prometheus.query(&everything)?, exposed()?);
            ensure!(expected.len() > 100, "only {} samples are exposed", expected.len());
            let wrong =
                expected.iter().find(|(labels, value)| !found.get(*labels).is_some_and(|own| is_stored(*own, **value)));
            ensure!(
                wrong.is_none() && found.len() == expected.len(),
                "{} of {}: {wrong:?}",
                found.len(),
                expected.len()
            );
            Ok(())
        })
    };
    check(&prometheus)?;
    drop(prometheus);
    sleep(OUTAGE);
    ensure!(observer.scrape()?.sum("mesh_observer_emitter_disk_points", &[]) > Some(0.0), "nothing waits on disk");
    let prometheus = Prometheus::receiver(receiver, &directory, address)?;
    observer.wait(TIMEOUT, |page| page.sum("mesh_observer_emitter_disk_points", &[]) == Some(0.0))?;
    check(&prometheus)?;
    let page = observer.scrape()?;
    ensure!(page.sum(DROPPED, &[]) == Some(0.0), "points are dropped: {:?}", page.sum(DROPPED, &[]));
    // A push that is missing leaves twice the interval.
    let times = prometheus.times(&format!("pilot_services{{instance=\"{instance}\"}}[10m]"))?;
    let gap = times.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
    let length = times.last().zip(times.first()).map_or(0.0, |(last, first)| last - first);
    ensure!(length > OUTAGE.as_secs_f64() && gap < 3.5, "{} samples in {length} s, {gap} s without one", times.len());
    println!(
        "{receiver:?}: {} pushes in {length:.1} s, at most {gap:.3} s apart, none lost in {OUTAGE:?} without a receiver",
        times.len()
    );
    ensure!(!prometheus.query("mesh_observer_build_info")?.is_empty(), "the observer's own series");
    observer.stop()?;
    wait_until("every series ends with the observer", TIMEOUT, || {
        let left = prometheus.query("{job=\"mesh-observer\"}")?;
        ensure!(left.is_empty(), "{} series are left, as {:?}", left.len(), left.keys().next());
        Ok(())
    })?;
    Ok(fs::remove_dir_all(directory)?)
}

#[test]
fn native_histograms_are_stored_beside_classic_ones_and_end_with_them() -> Result<()> {
    const REQUESTS: f64 = 137.0;
    const NAME: &str = "istio_request_duration_milliseconds";
    /// Farthest that a value is from the bucket that it is counted in.
    const ERROR: f64 = 0.0184;
    let mut pair = Pair::unobserved(Options::default(), Options::default())?;
    let address = free_port()?;
    let directory = pair.mesh.directory().to_owned();
    let prometheus = Prometheus::receiver(Receiver::Recent, &directory, address)?;
    let emit = format!("remote-write+http://{address}#histograms=native");
    let queue = directory.join("queue").display().to_string();
    let arguments = ["--interval", "2s", "--emit", &emit, "--queue-dir", &queue];
    pair.observer = Some(Observer::start(&pair.mesh, 2, &arguments)?);
    pair.curl(&[&pair.url(Family::V4, "/bytes/1")])?;
    sleep(Duration::from_secs(3));
    pair.curl(&[&pair.url(Family::V4, "/delay/{5,20,60,1}?round=[1-34]")])?;
    wait_until("every request is stored", TIMEOUT, || {
        for reporter in ["source", "destination"] {
            let count = prometheus.query(&format!("histogram_count(sum({NAME}{{reporter=\"{reporter}\"}}))"))?;
            ensure!(count.values().eq([&REQUESTS]), "{count:?} of {reporter}: {}", prometheus.log()?);
        }
        Ok(())
    })?;
    let dropped = pair.observer()?.scrape()?.sum(DROPPED, &[]);
    ensure!(dropped == Some(0.0), "points are dropped: {dropped:?}");
    pair.observer.take().context("the observer")?.stop()?;
    wait_until("every series ends with the observer", TIMEOUT, || {
        let left = prometheus.query("{__name__=~\"istio_.*\"}")?;
        ensure!(left.is_empty(), "{} series are left, as {:?}", left.len(), left.keys().next());
        Ok(())
    })?;
    let histograms = prometheus.histograms("{__name__=~\"istio_.*\"}[10m]")?;
    let classic: BTreeMap<(BTreeMap<String, String>, u64), f64> = prometheus
        .samples("{__name__=~\"istio_.*_(bucket|sum|count)\"}[10m]")?
        .into_iter()
        .map(|(labels, time, value)| ((labels, milliseconds(time)), value))
        .collect();
    let mut compared = 0;
    for (labels, time, histogram) in &histograms {
        let at = |suffix: &str, bound: Option<&str>| {
            let mut labels = labels.clone();
            labels.entry("__name__".to_owned()).and_modify(|name| name.push_str(suffix));
            labels.extend(bound.map(|bound| ("le".to_owned(), bound.to_owned())));
            classic.get(&(labels, milliseconds(*time))).copied()
        };
        let number = |value: &serde_json::Value| -> Result<f64> {
            Ok(value.as_str().with_context(|| value.to_string())?.parse()?)
        };
        let (count, sum) = (number(&histogram["count"])?, number(&histogram["sum"])?);
        ensure!(at("_count", None) == Some(count) && at("_sum", None) == Some(sum), "{labels:?}: {histogram}");
        // Bounds and count of each bucket.
        let buckets = histogram["buckets"].as_array().into_iter().flatten();
        let buckets = buckets.map(|own| Ok([number(&own[1])?, number(&own[2])?, number(&own[3])?]));
        let buckets = buckets.collect::<Result<Vec<_>>>()?;
        ensure!(same(buckets.iter().map(|[.., own]| own).sum(), count), "{labels:?}: {histogram}");
        for bound in LE.into_iter().filter(|bound| *bound != "+Inf") {
            let Some(upto) = at("_bucket", Some(bound)) else { continue };
            let bound: f64 = bound.parse()?;
            // The classic buckets of durations are those of whole milliseconds.
            let end = if labels["__name__"] == NAME { bound.floor() + 1.0 } else { bound };
            let within = |limit: f64, side: usize| -> f64 {
                buckets.iter().filter(|own| own[side] <= limit).map(|own| own[2]).sum()
            };
            let (least, most) = (within(end * (1.0 - ERROR), 1), within(end * (1.0 + ERROR), 0));
            ensure!((least..=most).contains(&upto), "up to {bound}: {upto} of {labels:?}, not {least} to {most}");
            compared += 1;
        }
    }
    let largest = histograms.iter().filter_map(|(.., own)| own["buckets"].as_array().map(Vec::len)).max();
    ensure!(histograms.len() > 6 && compared > 50 && largest > Some(10), "{} with {compared} bounds", histograms.len());
    println!(
        "{} native histograms of up to {} buckets agree with {compared} classic buckets of the same time",
        histograms.len(),
        largest.unwrap_or_default()
    );
    Ok(())
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time")]
fn milliseconds(seconds: f64) -> u64 {
    (seconds * 1_000.0).round() as u64
}

fn same(own: f64, other: f64) -> bool {
    own == other || own.is_nan() && other.is_nan()
}
