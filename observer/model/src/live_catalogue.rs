//! Compares the catalogue with a running observer's `/metrics`: which families have data, and why the others do not.

use std::collections::HashSet;

use crate::{
    catalogue::{self, Descriptor, Origin, Release, Stability},
    exposition::{Event, Sample},
    labels,
};

/// What an exposition shows about families with data, and about the reasons of those without.
#[derive(Debug, Default)]
pub struct LiveCatalogue {
    /// Families with at least one sample.
    families: HashSet<&'static str>,
    /// Sidecars and gateways observed.
    sidecars: f64,
    /// Scraped control-plane instances, and those whose last scrape succeeded.
    instances: u64,
    instances_up: u64,
    /// Releases of the scraped pilots; `None` for a build without a release number.
    releases: Vec<Option<Release>>,
}

impl LiveCatalogue {
    /// Records one event of the exposition.
    pub fn record(&mut self, event: &Event<'_>) {
        let Event::Sample(sample) = event else { return };
        let Some(family) = catalogue::by_prometheus_name(sample.family) else { return };
        self.families.insert(family.prometheus_name);
        if *family == catalogue::SIDECARS {
            self.sidecars += sample.value;
        } else if *family == catalogue::CONTROL_PLANE_UP {
            self.instances += 1;
            self.instances_up += u64::from(sample.value > 0.0);
        } else if *family == catalogue::ISTIO_BUILD && label(sample, "component").as_deref() == Some("pilot") {
            self.releases.push(label(sample, "tag").as_deref().and_then(Release::parse));
        }
    }

    /// Returns `data`, or `no data: ` and the reason.
    #[must_use]
    pub fn status(&self, family: &Descriptor) -> String {
        if self.families.contains(family.prometheus_name) {
            return "data".to_owned();
        }
        format!("no data: {}", self.reason(family))
    }

    fn reason(&self, family: &Descriptor) -> String {
        match family.origin {
            Origin::Kernel if self.sidecars == 0.0 => "no sidecar or gateway is observed on this node".to_owned(),
            Origin::Kernel if family.labels == labels::TCP_NAMES => "no TCP connection has been seen yet".to_owned(),
            Origin::Kernel => "no HTTP request has ended yet".to_owned(),
            Origin::Procfs => {
                "no process of the control plane or of a sidecar is observed on this node, and no scraped \
                               instance has it"
                    .to_owned()
            }
            Origin::Observer => "it has not happened yet".to_owned(),
            Origin::Istiod => self.reason_of_istiod(family),
        }
    }

    fn reason_of_istiod(&self, family: &Descriptor) -> String {
        if family.stability == Stability::Never {
            return "no supported release of Istio reports it".to_owned();
        }
        if self.instances == 0 {
            return "no control plane is scraped (see --control-plane)".to_owned();
        }
        if self.instances_up == 0 {
            let up = catalogue::CONTROL_PLANE_UP.prometheus_name;
            return format!("no control-plane instance can be read now ({up} is 0; see the observer's log)");
        }
        let here: Vec<Release> = self.releases.iter().flatten().copied().collect();
        let until = family.releases().and_then(|releases| releases.until);
        if let (Some(until), Some(oldest)) = (until, here.iter().min())
            && *oldest > until
        {
            return format!("Istio reports it up to {until}, and here is {oldest}");
        }
        if family.labels.is_empty() {
            return "no scraped instance has it".to_owned();
        }
        "nothing of the kind has happened yet; istiod shows it from the first event on".to_owned()
    }
}

fn label(sample: &Sample<'_>, wanted: &str) -> Option<String> {
    let mut labels = sample.labels.iter();
    labels.find(|(name, _)| name.plain() == wanted).map(|(_, value)| value.plain().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exposition::{Format, Parser};

    fn live(page: &str) -> LiveCatalogue {
        let mut live = LiveCatalogue::default();
        Parser::new(Format::Text).feed(page.as_bytes(), &mut |event| live.record(&event));
        live
    }

    fn page(lines: &[(&Descriptor, &str)]) -> LiveCatalogue {
        let text = lines.iter().map(|(family, rest)| {
            format!("# TYPE {0} {1}\n{0}{rest}\n", family.prometheus_name, family.metric_type.name())
        });
        live(&text.collect::<String>())
    }

    #[test]
    fn what_is_there_has_data_buckets_included() {
        let live = live("# TYPE istio_request_bytes histogram\nistio_request_bytes_bucket{le=\"+Inf\"} 1\n");
        assert_eq!(live.status(&catalogue::REQUEST_BYTES), "data");
        assert_eq!(live.status(&catalogue::REQUESTS), "no data: no sidecar or gateway is observed on this node");
    }

    #[test]
    fn what_is_not_there_has_its_true_reason() {
        let up = &catalogue::CONTROL_PLANE_UP;
        let (none, down) = (page(&[]), page(&[(up, "{instance=\"a\"} 0")]));
        let build = "{component=\"pilot\",tag=\"1.32-dev\"} 1";
        let scraped = page(&[
            (up, "{instance=\"a\"} 1"),
            (&catalogue::ISTIO_BUILD, build),
            (&catalogue::SIDECARS, "{role=\"sidecar\"} 2"),
        ]);
        for (live, family, reason) in [
            (&none, &catalogue::PILOT_SERVICES, "no control plane is scraped"),
            (&none, &catalogue::GALLEY_VALIDATION_CONFIG_LOAD, "no supported release"),
            (&down, &catalogue::PILOT_SERVICES, "can be read now"),
            (&scraped, &catalogue::PILOT_XDS_PUSH_CONTEXT_ERRORS, "up to 1.25, and here is 1.32"),
            (&scraped, &catalogue::PILOT_XDS_PUSHES, "nothing of the kind"),
            (&scraped, &catalogue::GO_GOROUTINES, "no scraped instance"),
            (&scraped, &catalogue::REQUESTS, "no HTTP request"),
            (&scraped, &catalogue::TCP_OPENED, "no TCP connection"),
            (&scraped, &catalogue::PROCESS_CPU_SECONDS_TOTAL, "no process"),
        ] {
            let says = live.status(family);
            assert!(says.starts_with("no data: ") && says.contains(reason), "{}: {says}", family.prometheus_name);
        }
    }
}
