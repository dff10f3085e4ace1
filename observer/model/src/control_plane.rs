//! What scraped pages mean: families of many instances brought together, each line labelled with whose it is, and zeroes
//! where istiod shows nothing and means 0.
//!
//! Since istiod counts through OpenTelemetry, a figure appears on its page with its first event: *absent means 0* for
//! a family without labels that its release has. Families of other releases stay absent, and so do series with labels,
//! which nobody can name before they are there. Counters are handed on as they stand: when an instance starts anew they
//! fall, which every reader of counters knows as a reset.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{
    Families,
    catalogue::{self, Family, Kind, Origin, Release, Releases, Stability},
};
use crate::{
    exposition,
    page::{Page, PageFamily, Suffix, escape},
    reading::{Instance, ScrapeReading},
};

/// Upper bounds of istiod's push time histograms, seconds [istio `pilot/pkg/xds/monitoring.go`].
const PUSH_SECONDS: [&str; 9] = ["0.1", "0.5", "1", "3", "5", "10", "20", "30", "+Inf"];

/// Everything that the last scrapes said, by family.
#[derive(Debug, Default)]
pub struct ControlPlane {
    sources: Vec<Source>,
    families: Vec<Merged>,
    /// Families of targets that are not exposed: another target gives the name another type, or the observer counts it
    /// itself.
    pub left_out: u64,
}

/// One target's page.
#[derive(Debug)]
struct Source {
    instance: Instance,
    /// Labels of every line, ready to be written.
    labels: String,
    page: Arc<Page>,
}

#[derive(Debug)]
struct Merged {
    kind: exposition::Kind,
    parts: Vec<Part>,
}

/// What one target contributes to a family.
#[derive(Clone, Copy, Debug)]
struct Part {
    source: usize,
    figures: Figures,
}

#[derive(Clone, Copy, Debug)]
enum Figures {
    /// The page's family of this index.
    Page(usize),
    /// 0.
    Zero(&'static Family),
}

/// A family of the control plane.
#[derive(Clone, Copy, Debug)]
pub struct ScrapedFamily<'a> {
    plane: &'a ControlPlane,
    merged: &'a Merged,
}

/// One line of it.
#[derive(Clone, Copy, Debug)]
pub struct ScrapedLine<'a> {
    /// What is appended to the family's name.
    pub suffix: Suffix,
    /// Whose it is, escaped: never empty.
    pub target_labels: &'a str,
    /// Its other labels but `le`, escaped; may be empty.
    pub labels: &'a str,
    /// Upper bound of a bucket.
    pub bound: Option<&'a str>,
    /// The value.
    pub value: f64,
}

impl ControlPlane {
    /// Brings the pages of all targets together.
    #[must_use]
    pub fn new(readings: &[ScrapeReading]) -> Self {
        let mut plane = Self::default();
        let mut by_name: HashMap<&str, usize> = HashMap::new();
        let pages: Vec<_> =
            readings.iter().filter_map(|reading| Some((&reading.instance, reading.page.as_ref()?))).collect();
        // A process that was found and that a name leads to as well, as that of a Service does, is exposed as it was found.
        let found: Vec<u64> =
            pages.iter().filter(|(target, _)| target.node.is_none()).filter_map(|(_, page)| process(page)).collect();
        let is_told = |page| process(page).is_some_and(|process| found.contains(&process));
        let told = pages.into_iter().filter(|(target, page)| target.node.is_none() || !is_told(page));
        for (source, (target, page)) in told.enumerate() {
            let labels = target_labels(target);
            plane.sources.push(Source { instance: target.clone(), labels, page: page.clone() });
            for (index, family) in page.families().iter().enumerate() {
                let known = catalogue::by_prometheus_name(&family.name);
                if known.is_some_and(|known| matches!(known.origin, Origin::Kernel | Origin::Observer)) {
                    plane.left_out += 1;
                } else {
                    plane.add(&mut by_name, &family.name, family.kind, Part { source, figures: Figures::Page(index) });
                }
            }
            for family in zeroes(page) {
                let kind = kind(family.kind);
                plane.add(&mut by_name, family.prometheus_name, kind, Part { source, figures: Figures::Zero(family) });
            }
        }
        plane.leave_out_clashes(&by_name);
        plane
    }

    /// Leaves out families that are called as a line of another one is: a strict reader refuses a page that has both.
    fn leave_out_clashes(&mut self, by_name: &HashMap<&str, usize>) {
        let kind_of = |name: &str| {
            let own = catalogue::by_prometheus_name(name).filter(|known| known.stability == Stability::Own);
            let mesh = catalogue::by_prometheus_name(name).filter(|known| known.origin == Origin::Kernel);
            let scraped = || self.families.get(*by_name.get(name)?).map(|merged| merged.kind);
            own.or(mesh).map(|known| kind(known.kind)).or_else(scraped)
        };
        let clashes = |name: &str| {
            let stem_of = |suffix| name.strip_suffix(suffix).and_then(kind_of);
            let is_total = |stem: &str| kind_of(&format!("{stem}_total")) == Some(exposition::Kind::Counter);
            stem_of("_bucket") == Some(exposition::Kind::Histogram)
                || ["_sum", "_count", "_created"].into_iter().filter_map(stem_of).any(has_sum_and_count)
                || name.strip_suffix("_created").is_some_and(is_total)
        };
        let names =
            by_name.iter().filter(|(name, _)| clashes(name) || name.strip_suffix("_total").is_some_and(clashes));
        let mut clashing: Vec<usize> = names.map(|(_, index)| *index).collect();
        clashing.sort_unstable();
        for index in clashing.into_iter().rev() {
            self.left_out += self.families.remove(index).parts.len() as u64;
        }
    }

    fn add<'a>(&mut self, by_name: &mut HashMap<&'a str, usize>, name: &'a str, kind: exposition::Kind, part: Part) {
        let index = *by_name.entry(name).or_insert_with(|| {
            self.families.push(Merged { kind, parts: Vec::new() });
            self.families.len() - 1
        });
        let merged = &mut self.families[index];
        if merged.kind == kind {
            merged.parts.push(part);
        } else {
            self.left_out += 1;
        }
    }

    /// The family at `index`, in the order they are written; `None` behind the last one.
    #[must_use]
    pub fn family(&self, index: usize) -> Option<ScrapedFamily<'_>> {
        self.families.get(index).map(|merged| ScrapedFamily { plane: self, merged })
    }

    /// All families.
    pub fn families(&self) -> impl Iterator<Item = ScrapedFamily<'_>> {
        (0..).map_while(|index| self.family(index))
    }

    /// Takes out what is known better: figures of this family of those instances that `known` names.
    /// Yields each instance with the figure that was taken out.
    pub(super) fn yield_to(&mut self, family: &Family, known: impl Fn(&str) -> bool) -> Vec<(String, f64)> {
        let mut taken = Vec::new();
        let Self { sources, families, .. } = self;
        for merged in families {
            merged.parts.retain(|part| {
                let Source { instance: Instance { instance, .. }, page, .. } = &sources[part.source];
                let Figures::Page(index) = part.figures else { return true };
                let own = &page.families()[index];
                let better = *own.name == *family.prometheus_name && known(instance);
                if better {
                    taken.extend(page.lines(own).map(|line| (instance.clone(), line.value)));
                }
                !better
            });
        }
        self.families.retain(|merged| !merged.parts.is_empty());
        taken
    }
}

impl<'a> ScrapedFamily<'a> {
    /// Name as in text 0.0.4.
    #[must_use]
    pub fn name(&self) -> &'a str {
        self.first().map_or_else(|family| family.prometheus_name, |family| &family.name)
    }

    /// Counter, gauge, histogram, summary or unknown.
    #[must_use]
    pub const fn kind(&self) -> exposition::Kind {
        self.merged.kind
    }

    /// For people: what the target says, or else the catalogue.
    #[must_use]
    pub fn help(&self) -> &'a str {
        self.first().map_or_else(|family| family.help, |family| &family.help)
    }

    /// Unit, empty if none is known.
    #[must_use]
    pub fn unit(&self) -> &'a str {
        self.first().map_or_else(|family| family.unit, |family| &family.unit)
    }

    fn first(&self) -> Result<&'a PageFamily, &'static Family> {
        let part = self.merged.parts[0];
        match part.figures {
            Figures::Page(index) => Ok(&self.plane.sources[part.source].page.families()[index]),
            Figures::Zero(family) => Err(family),
        }
    }

    /// Line `line` of target number `part`. `None` behind the target's last line.
    ///
    /// # Panics
    /// If `part` is not below [`Self::parts`].
    #[must_use]
    pub fn line(&self, part: usize, line: usize) -> Option<ScrapedLine<'a>> {
        let part = self.merged.parts[part];
        let source = &self.plane.sources[part.source];
        let target_labels = source.labels.as_str();
        match part.figures {
            Figures::Page(index) => {
                let line = source.page.get(&source.page.families()[index], line)?;
                let (suffix, labels, bound, value) = (line.suffix, line.labels, line.bound, line.value);
                Some(ScrapedLine { suffix, target_labels, labels, bound, value })
            }
            Figures::Zero(family) => {
                let (suffix, bound) = zero_line(family.kind, line)?;
                Some(ScrapedLine { suffix, target_labels, labels: "", bound, value: 0.0 })
            }
        }
    }

    /// Targets that have it.
    #[must_use]
    pub const fn parts(&self) -> usize {
        self.merged.parts.len()
    }

    /// All lines.
    pub fn lines(self) -> impl Iterator<Item = ScrapedLine<'a>> {
        (0..self.parts()).flat_map(move |part| (0..).map_while(move |line| self.line(part, line)))
    }

    /// Its name in Wavefront: as documented, or made of its own in the same way.
    #[must_use]
    pub fn documented_name(&self, suffix: Suffix) -> String {
        let name = self.name();
        let documented = catalogue::by_prometheus_name(name).map(|known| known.documented_name);
        let stem = documented.and_then(|name| name.strip_suffix(".value"));
        let stem = stem.map_or_else(|| Cow::Owned(name.replace('_', ".")), Cow::Borrowed);
        let stem = stem.strip_suffix(".bucket").unwrap_or(&stem);
        format!("{stem}{}.value", suffix.text().replace('_', "."))
    }
}

impl<'a> ScrapedLine<'a> {
    /// Whether both have the same labels, `le` aside. Of equal labels this sees only those that are kept once.
    #[must_use]
    pub fn has_labels_of(&self, other: &Self) -> bool {
        std::ptr::eq(self.target_labels, other.target_labels) && std::ptr::eq(self.labels, other.labels)
    }

    /// Calls `each` with every label but `le`, those of the target first.
    pub fn each(&self, mut each: impl FnMut(&'a str, &str)) {
        for text in [self.target_labels, self.labels] {
            pairs(text).for_each(|(name, value)| each(name, &value));
        }
    }
}

const fn has_sum_and_count(kind: exposition::Kind) -> bool {
    matches!(kind, exposition::Kind::Histogram | exposition::Kind::Summary)
}

/// Labels of the target, in the order of [`LABELS`]; what is not known is left out.
fn target_labels(instance: &Instance) -> String {
    let Instance { instance, app, pod, namespace, node } = instance;
    let values = [Some(instance), Some(app), pod.as_ref(), namespace.as_ref(), node.as_ref()];
    let mut text = String::new();
    for (name, value) in Instance::LABELS.iter().zip(values) {
        let Some(value) = value else { continue };
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(name);
        text.push_str("=\"");
        escape(value, &mut text);
        text.push('"');
    }
    text
}

/// Names and values of labels that were written by [`escape`].
fn pairs(mut text: &str) -> impl Iterator<Item = (&str, Cow<'_, str>)> {
    std::iter::from_fn(move || {
        let (name, rest) = text.split_once("=\"")?;
        let mut end = 0;
        while let Some(at) = rest[end..].find(['"', '\\']) {
            end += at;
            if rest.as_bytes()[end] == b'"' {
                break;
            }
            end += 2;
        }
        let value = &rest[..end];
        text = rest[end + 1..].trim_start_matches(',');
        Some((name, exposition::plain(value)))
    })
}

/// Tells one process from others: the bits of its start time, to the hundredth of a second.
fn process(page: &Page) -> Option<u64> {
    let started =
        page.families().iter().find(|family| *family.name == *catalogue::PROCESS_START_TIME_SECONDS.prometheus_name)?;
    page.lines(started).next().map(|line| line.value.to_bits())
}

/// Families that are 0 on this page though it does not show them.
fn zeroes(page: &Page) -> impl Iterator<Item = &'static Family> {
    let release = pilot(page);
    let has = |family: &Family| page.families().iter().any(|own| *own.name == *family.prometheus_name);
    catalogue::FAMILIES.iter().copied().filter(move |family| {
        let Some(release) = release else { return false };
        // Of a build without a release number only that is said which every release has.
        let in_release = |own: Releases| release.map_or(own.until.is_none(), |release| own.include(release));
        starts_at_zero(family) && family.releases().is_some_and(in_release) && !has(family)
    })
}

/// What istiod counts; the Go runtime always shows what it has.
fn starts_at_zero(family: &Family) -> bool {
    family.labels.is_empty() && family.stability != Stability::Never && !family.prometheus_name.starts_with("go_")
}

/// The release of a page that is a pilot's: `Some(None)` if its build has no release number.
fn pilot(page: &Page) -> Option<Option<Release>> {
    let build = page.families().iter().find(|family| *family.name == *catalogue::ISTIO_BUILD.prometheus_name)?;
    page.lines(build).find_map(|line| {
        let labels: BTreeMap<_, _> = pairs(line.labels).collect();
        (labels.get("component").is_some_and(|component| component == "pilot"))
            .then(|| labels.get("tag").and_then(|tag| Release::parse(tag)))
    })
}

fn zero_line(kind: Kind, line: usize) -> Option<(Suffix, Option<&'static str>)> {
    match (kind, line) {
        (Kind::Counter | Kind::Gauge, 0) => Some((Suffix::None, None)),
        (Kind::Histogram, 0..9) => Some((Suffix::Bucket, Some(PUSH_SECONDS[line]))),
        (Kind::Histogram, 9) => Some((Suffix::Sum, None)),
        (Kind::Histogram, 10) => Some((Suffix::Count, None)),
        _ => None,
    }
}

const fn kind(kind: Kind) -> exposition::Kind {
    match kind {
        Kind::Counter => exposition::Kind::Counter,
        Kind::Gauge => exposition::Kind::Gauge,
        Kind::Histogram => exposition::Kind::Histogram,
    }
}

/// How the scrapes fare.
pub(super) fn own(readings: &[ScrapeReading], plane: &ControlPlane, families: &mut Families) {
    let up = families.add(&catalogue::CONTROL_PLANE_UP);
    for reading in readings.iter().filter(|reading| reading.tried) {
        up.point(&labels(reading), u64::from(reading.page.is_some()));
    }
    let scrapes = families.add(&catalogue::CONTROL_PLANE_SCRAPES);
    for reading in readings {
        for (outcome, count) in &reading.scrapes {
            let [instance, app, node] = labels(reading);
            scrapes.point(&[instance, app, outcome, node], *count);
        }
    }
    let seconds = families.add(&catalogue::CONTROL_PLANE_SCRAPE_SECONDS);
    for reading in readings.iter().filter(|reading| reading.tried) {
        seconds.point(&labels(reading), reading.took);
    }
    let samples = families.add(&catalogue::CONTROL_PLANE_SAMPLES);
    for (reading, page) in readings.iter().filter_map(|reading| Some((reading, reading.page.as_ref()?))) {
        samples.point(&labels(reading), page.samples);
    }
    let skipped = families.add(&catalogue::CONTROL_PLANE_SKIPPED);
    for reading in readings {
        for (reason, lines) in &reading.skipped {
            let [instance, app, node] = labels(reading);
            skipped.point(&[instance, app, reason, node], *lines);
        }
    }
    if !readings.is_empty() {
        families.add(&catalogue::CONTROL_PLANE_LEFT_OUT).point(&[], plane.left_out);
    }
}

/// An empty label is none.
fn labels(reading: &ScrapeReading) -> [&str; 3] {
    let Instance { instance, app, node, .. } = &reading.instance;
    [instance, app, node.as_deref().unwrap_or_default()]
}

#[cfg(test)]
mod tests {
    use super::{
        super::fixture::{self, snapshot_of},
        *,
    };
    use crate::{
        Snapshot,
        encode::prometheus::{Format, Page as Output},
    };

    fn plane(pages: &[(&str, &str)]) -> ControlPlane {
        ControlPlane::new(&pages.iter().map(|(instance, page)| fixture::scraped(instance, page)).collect::<Vec<_>>())
    }

    fn lines(plane: &ControlPlane, name: &str) -> Vec<String> {
        let family = plane.families().find(|family| family.name() == name);
        let lines = family.into_iter().flat_map(ScrapedFamily::lines).map(|line| {
            let mut labels = String::new();
            line.each(|name, value| labels.push_str(&format!("{name}={value} ")));
            format!("{}{} {}", labels, line.bound.unwrap_or(line.suffix.text()), line.value)
        });
        lines.collect()
    }

    fn written(snapshot: &Arc<Snapshot>, format: Format) -> String {
        let pieces: Vec<_> = Output::new(snapshot.clone(), format).collect();
        String::from_utf8(pieces.concat()).unwrap()
    }

    const OLD: &str = "istio_build{component=\"pilot\",tag=\"1.18.7\"} 1\n";
    const NEW: &str = "istio_build{component=\"pilot\",tag=\"1.32-dev\"} 1\n";

    #[test]
    fn a_page_that_a_name_leads_to_says_which_node_asked_and_is_exposed_once() {
        let page = |started: f64| format!("{NEW}process_start_time_seconds {started}\npilot_xds 3\n");
        let found = fixture::scraped("10.0.0.9:15014", &page(17.25));
        let named = |started| fixture::scraped_by(Some("node-1"), "istiod:15014", &page(started));
        let xds = |readings: &[ScrapeReading]| lines(&ControlPlane::new(readings), "pilot_xds");
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
        let page = concat!(
            "# TYPE h histogram\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 1\n# TYPE c_total counter\nc_total 1\n",
            "# TYPE a_count counter\na_count 1\n# TYPE a_bucket gauge\na_bucket 1\n",
        );
        assert_eq!(plane(&[("a:1", page)]).left_out, 0);
        for other in ["h_count", "h_bucket", "h_created", "c_created", "h_sum_total"] {
            let other = format!("# TYPE {other} gauge\n{other} 1\n");
            // On another page: on the same one it would be the same line twice.
            let plane = plane(&[("a:1", page), ("b:1", &other)]);
            assert_eq!((plane.left_out, plane.families().count()), (1, 4), "{other}");
        }
        let mesh = "# TYPE istio_request_bytes_count gauge\nistio_request_bytes_count 1\n";
        assert_eq!(plane(&[("a:1", mesh)]).left_out, 1);
    }

    #[test]
    fn absent_means_zero_for_what_the_release_has() {
        let writes = catalogue::PILOT_XDS_WRITE_TIMEOUT.prometheus_name;
        let push_errors = catalogue::PILOT_XDS_PUSH_CONTEXT_ERRORS.prometheus_name;
        let conflict = catalogue::PILOT_CONFLICT_OUTBOUND_LISTENER_HTTP_OVER_CURRENT_TCP.prometheus_name;
        let at = |pages: &[(&str, &str)], name| lines(&plane(pages), name);
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
        let nobody = plane(&[("a:1", "up 1\n")]);
        assert_eq!(nobody.families().count(), 1, "no pilot");
        let idle = plane(&[("a:1", NEW)]);
        for family in [
            &catalogue::PILOT_XDS_PUSHES,
            &catalogue::GALLEY_VALIDATION_CONFIG_LOAD,
            &catalogue::GO_GOROUTINES,
            &catalogue::PROCESS_RESIDENT_MEMORY_BYTES,
        ] {
            assert!(lines(&idle, family.prometheus_name).is_empty(), "{}", family.prometheus_name);
        }
        let queue = lines(&idle, catalogue::PILOT_PROXY_QUEUE_TIME.prometheus_name);
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
        let merged = plane(&[("a:1", &one), ("b:1", "# TYPE x gauge\nx 2\n"), ("c:1", "# TYPE x counter\nx 3\n")]);
        assert_eq!(lines(&merged, "x"), ["instance=a:1 app=istiod  1", "instance=c:1 app=istiod  3"]);
        assert_eq!(merged.left_out, 2);
    }

    #[test]
    fn names_in_wavefront_are_the_documented_ones() {
        let plane = plane(&[("a:1", NEW), ("b:1", "citadel_server_csr_sign_err_count{error=\"x\"} 1\nmy_own 1\n")]);
        let name = |family: &str, suffix| {
            plane.families().find(|own| own.name() == family).map(|own| own.documented_name(suffix)).unwrap()
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
            escape(value, &mut text);
            text.push_str("\",b=\"2\"");
            let found: Vec<_> = pairs(&text).collect();
            assert_eq!(found, [("a", "1".into()), ("x", value.into()), ("b", "2".into())], "{text}");
        }
    }

    #[test]
    fn the_kernels_figure_of_a_process_counts_more_and_the_difference_is_told() {
        let resident = &catalogue::PROCESS_RESIDENT_MEMORY_BYTES;
        let page = format!("# TYPE {0} gauge\n{0} 5000\n", resident.prometheus_name);
        // The first of the fixture's sidecars, by its address.
        let known = fixture::scraped("10.0.0.1", &page);
        let other = fixture::scraped("elsewhere:1", &page);
        let text = written(&snapshot_of(vec![known, other]), Format::Text);
        let head = format!("# TYPE {} gauge\n", resident.prometheus_name);
        assert_eq!(text.matches(&head).count(), 1);
        let line = format!("{}{{instance=\"elsewhere:1\",app=\"istiod\"}} 5000\n", resident.prometheus_name);
        assert!(text.contains(&line), "{text}");
        let own: Vec<_> = text.lines().filter(|line| line.contains("10.0.0.1")).collect();
        assert!(own.iter().all(|line| !line.ends_with(" 5000")), "{own:?}");
        let difference = format!("{}{{instance=\"10.0.0.1\"", catalogue::PROCESS_DIFFERENCE.prometheus_name);
        assert!(own.iter().any(|line| line.starts_with(&difference)), "{own:?}");
    }

    #[test]
    fn pages_are_written_as_each_format_demands() {
        let page = concat!(
            "# HELP c what \\\\ it is\n# TYPE c counter\nc{x=\"1\\\"\"} 1\n# TYPE d_total counter\nd_total +Inf\n",
            "# TYPE h histogram\nh_bucket{le=\"0.5\"} 1\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 1\n",
            "# TYPE s summary\ns{quantile=\"0.5\"} NaN\ns_sum 1\ns_count 1\nu 1\n# TYPE u_total counter\nu_total 1\n",
        );
        let mut one = fixture::scraped("a:1", page);
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
