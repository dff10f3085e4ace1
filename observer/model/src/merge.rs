//! Merges the scraped expositions of many instances into families, and adds zeroes where istiod omits them.
//!
//! Since istiod counts through OpenTelemetry, a metric appears with its first event: *absent means 0* for a family
//! without labels that its release has. Families of other releases stay absent, and so do series with labels, whose
//! values are not known before they appear. Counters are passed through: they restart from 0 with their instance, which
//! readers of counters handle as a reset.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use crate::{
    catalogue::{self, Descriptor, Origin, Release, Releases, Stability},
    exposition::MetricType,
    identity::Instance,
    label_text::{self, push_label},
    point::{Labels, Point, Value},
    reading::ScrapeReading,
    scraped::{ScrapedExposition, ScrapedFamily, Suffix},
};

/// Upper bounds of istiod's push time histograms, seconds [istio `pilot/pkg/xds/monitoring.go`].
const PUSH_SECONDS: [&str; 9] = ["0.1", "0.5", "1", "3", "5", "10", "20", "30", "+Inf"];

/// All families of the last scrapes.
#[derive(Debug, Default)]
pub(crate) struct ScrapedFamilies {
    sources: Vec<Source>,
    families: Vec<Merged>,
    /// Families of instances that are not exposed: another instance gives the name another type, or the observer counts
    /// it itself.
    pub(crate) conflicting: u64,
}

/// One instance's exposition.
#[derive(Debug)]
struct Source {
    instance: String,
    /// Labels of every sample, escaped.
    labels: String,
    exposition: Arc<ScrapedExposition>,
}

#[derive(Debug)]
struct Merged {
    metric_type: MetricType,
    parts: Vec<Part>,
}

/// What one instance contributes to a family.
#[derive(Clone, Copy, Debug)]
struct Part {
    source: usize,
    samples: Samples,
}

#[derive(Clone, Copy, Debug)]
enum Samples {
    /// The exposition's family of this index.
    Scraped(usize),
    /// 0.
    Zero(&'static Descriptor),
}

/// A merged family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MergedFamily<'a> {
    all: &'a ScrapedFamilies,
    merged: &'a Merged,
}

impl ScrapedFamilies {
    /// Merges the expositions of all instances.
    pub(crate) fn new(readings: &[ScrapeReading]) -> Self {
        let mut merged = Self::default();
        let mut by_name: HashMap<&str, usize> = HashMap::new();
        let scraped: Vec<_> =
            readings.iter().filter_map(|reading| Some((&reading.instance, reading.exposition.as_ref()?))).collect();
        // A process that was discovered and that is configured by name as well, e.g. of a Service, is exposed once.
        let is_discovered = |instance: &Instance| instance.node.is_none();
        let discovered = scraped.iter().filter(|(instance, _)| is_discovered(instance));
        let discovered: Vec<u64> = discovered.filter_map(|(_, exposition)| start_time(exposition)).collect();
        let is_duplicate = |exposition| start_time(exposition).is_some_and(|start| discovered.contains(&start));
        let unique =
            scraped.into_iter().filter(|(instance, exposition)| is_discovered(instance) || !is_duplicate(exposition));
        for (source, (instance, exposition)) in unique.enumerate() {
            let (labels, exposition_of) = (instance_labels(instance), exposition.clone());
            merged.sources.push(Source { instance: instance.instance.clone(), labels, exposition: exposition_of });
            for (index, family) in exposition.families().iter().enumerate() {
                let known = catalogue::by_prometheus_name(&family.name);
                if known.is_some_and(|known| matches!(known.origin, Origin::Kernel | Origin::Observer)) {
                    merged.conflicting += 1;
                } else {
                    let part = Part { source, samples: Samples::Scraped(index) };
                    merged.add(&mut by_name, &family.name, family.metric_type, part);
                }
            }
            for family in zeroes(exposition) {
                let part = Part { source, samples: Samples::Zero(family) };
                merged.add(&mut by_name, family.prometheus_name, family.metric_type, part);
            }
        }
        merged.remove_clashing(&by_name);
        merged
    }

    /// Removes families named like a sample of another one: a strict parser refuses an exposition with both.
    fn remove_clashing(&mut self, by_name: &HashMap<&str, usize>) {
        let type_of = |name: &str| {
            let is_counted = |known: &&Descriptor| known.stability == Stability::Own || known.origin == Origin::Kernel;
            let counted = catalogue::by_prometheus_name(name).filter(is_counted);
            let scraped = || self.families.get(*by_name.get(name)?).map(|merged| merged.metric_type);
            counted.map(|known| known.metric_type).or_else(scraped)
        };
        let clashes = |name: &str| {
            let stem_of = |suffix| name.strip_suffix(suffix).and_then(type_of);
            let is_total = |stem: &str| type_of(&format!("{stem}_total")) == Some(MetricType::Counter);
            stem_of("_bucket") == Some(MetricType::Histogram)
                || ["_sum", "_count", "_created"].into_iter().filter_map(stem_of).any(has_sum_and_count)
                || name.strip_suffix("_created").is_some_and(is_total)
        };
        let names =
            by_name.iter().filter(|(name, _)| clashes(name) || name.strip_suffix("_total").is_some_and(clashes));
        let mut clashing: Vec<usize> = names.map(|(_, index)| *index).collect();
        clashing.sort_unstable();
        for index in clashing.into_iter().rev() {
            self.conflicting += self.families.remove(index).parts.len() as u64;
        }
    }

    fn add<'a>(&mut self, by_name: &mut HashMap<&'a str, usize>, name: &'a str, metric_type: MetricType, part: Part) {
        let index = *by_name.entry(name).or_insert_with(|| {
            self.families.push(Merged { metric_type, parts: Vec::new() });
            self.families.len() - 1
        });
        let merged = &mut self.families[index];
        if merged.metric_type == metric_type {
            merged.parts.push(part);
        } else {
            self.conflicting += 1;
        }
    }

    /// Returns the family at `index`; `None` behind the last one.
    pub(crate) fn family(&self, index: usize) -> Option<MergedFamily<'_>> {
        self.families.get(index).map(|merged| MergedFamily { all: self, merged })
    }

    /// Returns all families in the order of their first appearance.
    pub(crate) fn families(&self) -> impl Iterator<Item = MergedFamily<'_>> {
        self.families.iter().map(|merged| MergedFamily { all: self, merged })
    }

    /// Removes the samples of a family of those instances that `is_known` selects, and returns each instance with the
    /// value that was removed.
    pub(crate) fn take_overridden(
        &mut self,
        family: &Descriptor,
        is_known: impl Fn(&str) -> bool,
    ) -> Vec<(String, f64)> {
        let mut taken = Vec::new();
        let Self { sources, families, .. } = self;
        for merged in families {
            merged.parts.retain(|part| {
                let Source { instance, exposition, .. } = &sources[part.source];
                let Samples::Scraped(index) = part.samples else { return true };
                let own = &exposition.families()[index];
                let is_overridden = *own.name == *family.prometheus_name && is_known(instance);
                if is_overridden {
                    taken.extend(exposition.samples(own).map(|sample| (instance.clone(), sample.value)));
                }
                !is_overridden
            });
        }
        self.families.retain(|merged| !merged.parts.is_empty());
        taken
    }
}

impl<'a> MergedFamily<'a> {
    /// Returns the name in text 0.0.4.
    pub(crate) fn name(&self) -> &'a str {
        self.first().map_or_else(|family| family.prometheus_name, |family| &family.name)
    }

    /// Returns the name without `_total`, unless another scraped family has it or the name does not end so.
    pub(crate) fn counter_name(&self) -> Option<&'a str> {
        let is_free = |name: &&str| self.all.families().all(|other| other.name() != *name);
        self.name().strip_suffix("_total").filter(is_free)
    }

    /// Returns the type.
    pub(crate) const fn metric_type(&self) -> MetricType {
        self.merged.metric_type
    }

    /// Returns the exporter's help, or else the catalogue's.
    pub(crate) fn help(&self) -> &'a str {
        self.first().map_or_else(|family| family.help, |family| &family.help)
    }

    /// Returns the unit, empty if none is known.
    pub(crate) fn unit(&self) -> &'a str {
        self.first().map_or_else(|family| family.unit, |family| &family.unit)
    }

    fn first(&self) -> Result<&'a ScrapedFamily, &'static Descriptor> {
        let part = self.merged.parts[0];
        match part.samples {
            Samples::Scraped(index) => Ok(&self.all.sources[part.source].exposition.families()[index]),
            Samples::Zero(family) => Err(family),
        }
    }

    /// Returns sample `index` of instance number `part`; `None` behind its last one.
    ///
    /// # Panics
    /// If `part` is not below [`Self::parts`].
    pub(crate) fn get(&self, part: usize, index: usize) -> Option<Point<'a>> {
        let part = self.merged.parts[part];
        let Source { labels: instance, exposition, .. } = &self.all.sources[part.source];
        let (labels, suffix, bound, value) = match part.samples {
            Samples::Scraped(family) => {
                let sample = exposition.get(&exposition.families()[family], index)?;
                (sample.labels, sample.suffix, sample.bound, sample.value)
            }
            Samples::Zero(family) => {
                let (suffix, bound) = zero_sample(family.metric_type, index)?;
                ("", suffix, bound, 0.0)
            }
        };
        let value = match suffix {
            Suffix::None => Value::Real(value),
            _ => Value::Sample { suffix, bound, value },
        };
        Some(Point { labels: Labels::scraped(instance, labels), value, created: None })
    }

    /// Returns the number of instances that have it.
    pub(crate) const fn parts(&self) -> usize {
        self.merged.parts.len()
    }
}

const fn has_sum_and_count(metric_type: MetricType) -> bool {
    matches!(metric_type, MetricType::Histogram | MetricType::Summary)
}

/// Returns the labels of an instance in the order of [`Instance::LABELS`], without those that are not known.
fn instance_labels(instance: &Instance) -> String {
    let Instance { instance, app, pod, namespace, node } = instance;
    let values = [Some(instance), Some(app), pod.as_ref(), namespace.as_ref(), node.as_ref()];
    let mut text = String::new();
    for (name, value) in Instance::LABELS.iter().zip(values) {
        if let Some(value) = value {
            push_label(&mut text, 0, name, value);
        }
    }
    text
}

/// Returns the bits of the process's start time, to the hundredth of a second, which distinguish processes.
fn start_time(exposition: &ScrapedExposition) -> Option<u64> {
    let started = exposition.family(catalogue::PROCESS_START_TIME_SECONDS.prometheus_name)?;
    exposition.samples(started).next().map(|sample| sample.value.to_bits())
}

/// Returns families that are 0 for this instance although its exposition does not have them.
fn zeroes(exposition: &ScrapedExposition) -> impl Iterator<Item = &'static Descriptor> {
    let release = pilot_release(exposition);
    catalogue::FAMILIES.iter().copied().filter(move |family| {
        let Some(release) = release else { return false };
        // A build without a release number gets only what every release has.
        let in_release = |own: Releases| release.map_or(own.until.is_none(), |release| own.include(release));
        starts_at_zero(family)
            && family.releases().is_some_and(in_release)
            && exposition.family(family.prometheus_name).is_none()
    })
}

/// Returns whether istiod counts it; the Go runtime always exposes what it has.
fn starts_at_zero(family: &Descriptor) -> bool {
    family.labels.is_empty() && family.stability != Stability::Never && !family.prometheus_name.starts_with("go_")
}

/// Returns the release of a pilot's exposition: `Some(None)` if its build has no release number.
fn pilot_release(exposition: &ScrapedExposition) -> Option<Option<Release>> {
    let build = exposition.family(catalogue::ISTIO_BUILD.prometheus_name)?;
    exposition.samples(build).find_map(|sample| {
        let labels: BTreeMap<_, _> = label_text::labels(sample.labels).collect();
        (labels.get("component").is_some_and(|component| component == "pilot"))
            .then(|| labels.get("tag").and_then(|tag| Release::parse(tag)))
    })
}

fn zero_sample(metric_type: MetricType, index: usize) -> Option<(Suffix, Option<&'static str>)> {
    match (metric_type, index) {
        (MetricType::Counter | MetricType::Gauge, 0) => Some((Suffix::None, None)),
        (MetricType::Histogram, 0..9) => Some((Suffix::Bucket, Some(PUSH_SECONDS[index]))),
        (MetricType::Histogram, 9) => Some((Suffix::Sum, None)),
        (MetricType::Histogram, 10) => Some((Suffix::Count, None)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Family, Snapshot,
        encode::prometheus::{Exposition, Format},
        fixture::{self, snapshot_of},
        label_text::push_escaped,
    };

    fn merge(expositions: &[(&str, &str)]) -> ScrapedFamilies {
        let readings: Vec<_> = expositions.iter().map(|(instance, text)| fixture::scraped(instance, text)).collect();
        ScrapedFamilies::new(&readings)
    }

    fn view(family: MergedFamily<'_>) -> Family<'_> {
        Family { recorded: None, scraped: Some(family) }
    }

    fn samples(merged: &ScrapedFamilies, name: &str) -> Vec<String> {
        let family = merged.families().find(|family| family.name() == name);
        let samples = family.into_iter().flat_map(|family| view(family).points()).map(|point| {
            let mut labels = String::new();
            point.labels.each(|name, value| labels.push_str(&format!("{name}={value} ")));
            match point.value {
                Value::Sample { suffix, bound, value } => format!("{labels}{} {value}", bound.unwrap_or(suffix.text())),
                Value::Real(value) => format!("{labels} {value}"),
                other => panic!("{other:?}"),
            }
        });
        samples.collect()
    }

    fn written(snapshot: &Arc<Snapshot>, format: Format) -> String {
        let pieces: Vec<_> = Exposition::new(snapshot.clone(), format).collect();
        String::from_utf8(pieces.concat()).unwrap()
    }

    const OLD: &str = "istio_build{component=\"pilot\",tag=\"1.18.7\"} 1\n";
    const NEW: &str = "istio_build{component=\"pilot\",tag=\"1.32-dev\"} 1\n";

    #[test]
    fn a_page_that_a_name_leads_to_says_which_node_asked_and_is_exposed_once() {
        let exposition = |started: f64| format!("{NEW}process_start_time_seconds {started}\npilot_xds 3\n");
        let found = fixture::scraped("10.0.0.9:15014", &exposition(17.25));
        let named = |started| fixture::scraped_by(Some("node-1"), "istiod:15014", &exposition(started));
        let xds = |readings: &[ScrapeReading]| samples(&ScrapedFamilies::new(readings), "pilot_xds");
        assert_eq!(xds(&[named(17.25)]), ["instance=istiod:15014 app=istiod scraper_node=node-1  3"]);
        assert_eq!(xds(&[named(17.25), found.clone()]), ["instance=10.0.0.9:15014 app=istiod  3"]);
        assert_eq!(xds(&[named(17.26), found.clone()]).len(), 2, "another process");
        assert_eq!(xds(&[named(17.25), named(17.25)]).len(), 2, "neither was found");
        let snapshot = snapshot_of(vec![named(17.25), found]);
        let written = written(&snapshot, Format::Text);
        for (node, instance) in [("node-1", "istiod:15014"), ("", "10.0.0.9:15014")] {
            let line = format!(
                "mesh_observer_control_plane_up{{instance=\"{instance}\",app=\"istiod\",scraper_node=\"{node}\"}} 1"
            );
            assert!(written.contains(&line), "{written}");
        }
    }

    #[test]
    fn a_family_that_is_called_as_another_ones_line_is_left_out() {
        let exposition = concat!(
            "# TYPE h histogram\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 1\n# TYPE c_total counter\nc_total 1\n",
            "# TYPE a_count counter\na_count 1\n# TYPE a_bucket gauge\na_bucket 1\n",
        );
        assert_eq!(merge(&[("a:1", exposition)]).conflicting, 0);
        for other in ["h_count", "h_bucket", "h_created", "c_created", "h_sum_total"] {
            let other = format!("# TYPE {other} gauge\n{other} 1\n");
            // Of another instance: of the same one it would be a duplicate.
            let merged = merge(&[("a:1", exposition), ("b:1", &other)]);
            assert_eq!((merged.conflicting, merged.families().count()), (1, 4), "{other}");
        }
        let mesh = "# TYPE istio_request_bytes_count gauge\nistio_request_bytes_count 1\n";
        assert_eq!(merge(&[("a:1", mesh)]).conflicting, 1);
    }

    #[test]
    fn absent_means_zero_for_what_the_release_has() {
        let writes = catalogue::PILOT_XDS_WRITE_TIMEOUT.prometheus_name;
        let push_errors = catalogue::PILOT_XDS_PUSH_CONTEXT_ERRORS.prometheus_name;
        let conflict = catalogue::PILOT_CONFLICT_OUTBOUND_LISTENER_HTTP_OVER_CURRENT_TCP.prometheus_name;
        let at = |expositions: &[(&str, &str)], name| samples(&merge(expositions), name);
        assert_eq!(at(&[("a:1", OLD)], writes), ["instance=a:1 app=istiod  0"]);
        assert_eq!(at(&[("a:1", OLD), ("b:1", NEW)], conflict), ["instance=a:1 app=istiod  0"]);
        assert!(at(&[("a:1", NEW)], push_errors).is_empty(), "removed before this release");
        let untagged = "istio_build{component=\"pilot\",tag=\"latest\"} 1\n";
        assert!(at(&[("a:1", untagged)], push_errors).is_empty() && at(&[("a:1", untagged)], writes).len() == 1);
        let said = format!("{OLD}{writes} 7\n");
        assert_eq!(at(&[("a:1", &said), ("b:1", OLD)], writes).len(), 1, "said without a type, so another family");
        let said = format!("{OLD}# TYPE {writes} counter\n{writes} 7\n");
        assert_eq!(
            at(&[("a:1", &said), ("b:1", OLD)], writes),
            ["instance=a:1 app=istiod  7", "instance=b:1 app=istiod  0"]
        );
    }

    #[test]
    fn what_cannot_be_known_is_not_zero() {
        let nobody = merge(&[("a:1", "up 1\n")]);
        assert_eq!(nobody.families().count(), 1, "no pilot");
        let idle = merge(&[("a:1", NEW)]);
        for family in [
            &catalogue::PILOT_XDS_PUSHES,
            &catalogue::GALLEY_VALIDATION_CONFIG_LOAD,
            &catalogue::GO_GOROUTINES,
            &catalogue::PROCESS_RESIDENT_MEMORY_BYTES,
        ] {
            assert!(samples(&idle, family.prometheus_name).is_empty(), "{}", family.prometheus_name);
        }
        let queue = samples(&idle, catalogue::PILOT_PROXY_QUEUE_TIME.prometheus_name);
        assert_eq!(queue.len(), PUSH_SECONDS.len() + 2);
        assert_eq!(
            (queue[0].as_str(), queue[9].as_str()),
            ("instance=a:1 app=istiod 0.1 0", "instance=a:1 app=istiod _sum 0")
        );
    }

    #[test]
    fn a_name_has_one_type_and_what_the_observer_counts_is_its_own() {
        let requests = catalogue::REQUESTS.prometheus_name;
        let one = format!("# TYPE x counter\nx 1\n{requests} 5\n");
        let merged = merge(&[("a:1", &one), ("b:1", "# TYPE x gauge\nx 2\n"), ("c:1", "# TYPE x counter\nx 3\n")]);
        assert_eq!(samples(&merged, "x"), ["instance=a:1 app=istiod  1", "instance=c:1 app=istiod  3"]);
        assert_eq!(merged.conflicting, 2);
    }

    #[test]
    fn names_in_wavefront_are_the_documented_ones() {
        let merged = merge(&[("a:1", NEW), ("b:1", "citadel_server_csr_sign_err_count{error=\"x\"} 1\nmy_own 1\n")]);
        let name = |family: &str, suffix| {
            merged.families().find(|own| own.name() == family).map(|own| view(own).statistic_name(suffix)).unwrap()
        };
        let convergence = catalogue::PILOT_PROXY_CONVERGENCE_TIME.prometheus_name;
        assert_eq!(name(convergence, Suffix::Bucket), catalogue::PILOT_PROXY_CONVERGENCE_TIME.documented_name);
        assert_eq!(name(convergence, Suffix::Count), "pilot.proxy.convergence.time.count.value");
        let sign_errors = &catalogue::CITADEL_SERVER_CSR_SIGN_ERR_COUNT;
        assert_eq!(name(sign_errors.prometheus_name, Suffix::None), sign_errors.documented_name);
        assert_eq!(name("my_own", Suffix::None), "my.own.value");
    }

    #[test]
    fn labels_come_back_whatever_they_hold() {
        for value in ["", "a\"b\\c\nd", "\\", "\\n", "\",x=\"", "é"] {
            let mut text = "a=\"1\",x=\"".to_owned();
            push_escaped(&mut text, value);
            text.push_str("\",b=\"2\"");
            let found: Vec<_> = label_text::labels(&text).collect();
            assert_eq!(found, [("a", "1".into()), ("x", value.into()), ("b", "2".into())], "{text}");
        }
    }

    #[test]
    fn the_kernels_figure_of_a_process_counts_more_and_the_difference_is_told() {
        let resident = &catalogue::PROCESS_RESIDENT_MEMORY_BYTES;
        let exposition = format!("# TYPE {0} gauge\n{0} 5000\n", resident.prometheus_name);
        // The first of the fixture's sidecars, by its address.
        let known = fixture::scraped("10.0.0.1", &exposition);
        let other = fixture::scraped("elsewhere:1", &exposition);
        let text = written(&snapshot_of(vec![known, other]), Format::Text);
        let head = format!("# TYPE {} gauge\n", resident.prometheus_name);
        assert_eq!(text.matches(&head).count(), 1);
        let line = format!("{}{{instance=\"elsewhere:1\",app=\"istiod\"}} 5000\n", resident.prometheus_name);
        assert!(text.contains(&line), "{text}");
        let own: Vec<_> = text.lines().filter(|line| line.contains("10.0.0.1")).collect();
        assert!(own.iter().all(|line| !line.ends_with(" 5000")), "{own:?}");
        let difference = format!("{}{{instance=\"10.0.0.1\"", catalogue::PROCESS_DRIFT.prometheus_name);
        assert!(own.iter().any(|line| line.starts_with(&difference)), "{own:?}");
    }

    #[test]
    fn pages_are_written_as_each_format_demands() {
        let exposition = concat!(
            "# HELP c what \\\\ it is\n# TYPE c counter\nc{x=\"1\\\"\"} 1\n# TYPE d_total counter\nd_total +Inf\n",
            "# TYPE h histogram\nh_bucket{le=\"0.5\"} 1\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 1\n",
            "# TYPE s summary\ns{quantile=\"0.5\"} NaN\ns_sum 1\ns_count 1\nu 1\n# TYPE u_total counter\nu_total 1\n",
        );
        let mut one = fixture::scraped("a:1", exposition);
        (one.instance.pod, one.instance.namespace) = (Some("p".to_owned()), Some("n".to_owned()));
        let snapshot = snapshot_of(vec![one]);
        let of = |format| {
            let text = written(&snapshot, format);
            let at = text.find("# HELP c ").unwrap();
            text[at..].replace("{instance=\"a:1\",app=\"istiod\",pod=\"p\",namespace=\"n\"", "{…")
        };
        let text = concat!(
            "# HELP c what \\\\ it is\n# TYPE c counter\nc{…,x=\"1\\\"\"} 1\n",
            "# HELP d_total \n# TYPE d_total counter\nd_total{…} +Inf\n# HELP h \n# TYPE h histogram\n",
            "h_bucket{…,le=\"0.5\"} 1\nh_bucket{…,le=\"1\"} 1\nh_bucket{…,le=\"+Inf\"} 1\nh_sum{…} 1\nh_count{…} 1\n",
            "# HELP s \n# TYPE s summary\ns{…,quantile=\"0.5\"} NaN\ns_sum{…} 1\ns_count{…} 1\n",
            "# HELP u \n# TYPE u untyped\nu{…} 1\n# HELP u_total \n# TYPE u_total counter\nu_total{…} 1\n",
        );
        assert_eq!(of(Format::Text), text);
        let open_metrics = text
            .replace("# TYPE c counter", "# TYPE c unknown")
            .replace("# TYPE u_total counter", "# TYPE u_total unknown")
            .replace("# HELP d_total \n# TYPE d_total ", "# HELP d \n# TYPE d ")
            .replace("le=\"1\"", "le=\"1.0\"")
            .replace("untyped", "unknown");
        assert_eq!(of(Format::OpenMetrics), open_metrics + "# EOF\n");
    }
}
