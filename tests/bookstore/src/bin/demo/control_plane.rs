//! The demo's control plane: a recording of a real istiod.

use std::{
    fs,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use harness::{
    exposition::{Exposition, Sample},
    observer::Observer,
    replay::{Capture, Replay, documented, fixtures},
};

/// A recording with three connected proxies, signed certificates and refused configurations.
const PAGE: &str = "1.25.3/16-one-left";

/// Serves the recording until the demo ends.
pub(crate) struct ControlPlane {
    replay: Replay,
    served: Exposition,
    documented: Vec<String>,
}

impl ControlPlane {
    pub(crate) fn start() -> Result<Self> {
        let page = fs::read_to_string(fixtures().join(format!("{PAGE}.prom"))).context(PAGE)?;
        let served = Exposition::parse(&page).context(PAGE)?;
        Ok(Self { replay: Replay::start(&Capture::named(PAGE)?)?, served, documented: documented()? })
    }

    /// Returns the URL for `--control-plane`.
    pub(crate) fn url(&self) -> String {
        self.replay.url()
    }

    /// Waits until the observer exposes every sample as it was served, or until `end`; returns the differences.
    pub(crate) fn settled(&self, observer: &Observer, end: Instant) -> Result<(Exposition, Vec<String>)> {
        loop {
            let observed = observer.scrape()?;
            let differences = self.differences(&observed);
            if differences.is_empty() || Instant::now() > end {
                return Ok((observed, differences));
            }
            sleep(Duration::from_millis(100));
        }
    }

    fn differences(&self, observed: &Exposition) -> Vec<String> {
        let samples = self.served.all().iter();
        let missing = samples.filter(|sample| self.observed(observed, sample) != Some(sample.value));
        missing.map(|sample| format!("{}{:?} {}", sample.name, sample.labels, sample.value)).collect()
    }

    fn observed(&self, observed: &Exposition, sample: &Sample) -> Option<f64> {
        let instance = self.replay.instance();
        let own = [("instance", instance.as_str()), ("app", "istiod")];
        let is_same = |other: &&Sample| {
            let has = |name: &str, value: &str| other.label(name) == value;
            // A target that is named by its URL has the name of the node besides.
            let labels = other.labels.iter().filter(|(name, _)| name != "scraper_node").count();
            labels == sample.labels.len() + own.len()
                && own.iter().all(|(name, value)| has(name, value))
                && sample.labels.iter().all(|(name, value)| has(name, value))
        };
        observed.samples(&sample.name).find(is_same).map(|found| found.value)
    }

    /// Compares the documented families as served with those that the observer exposes, summed over labels.
    pub(crate) fn summary(&self, observed: &Exposition) -> String {
        let mut text = format!("{:<53} {:>16} {:>16}\n", "CONTROL PLANE", "SERVED", "OBSERVER");
        let instance = self.replay.instance();
        for name in self.documented.iter().flat_map(|family| [family.clone(), format!("{family}_count")]) {
            let Some(served) = self.served.sum(&name, &[]) else { continue };
            let ours = observed.sum(&name, &[("instance", &instance)]);
            let mark = if ours == Some(served) { "" } else { "  differs" };
            let ours = ours.map_or("-".to_owned(), |ours| ours.to_string());
            text += &format!("{name:<53} {served:>16} {ours:>16}{mark}\n");
        }
        text
    }
}
