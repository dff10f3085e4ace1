//! The metrics pages to read: pure.

use std::{net::SocketAddr, sync::Arc};

use super::{
    ProcessId, Sidecar, Workload,
    component::{Component, InsideOnly},
};

/// Envoy's own page, which has what Envoy says and not what the application behind it says [istio `pkg/bootstrap`].
const ENVOY_PORT: u16 = 15090;
/// Name of the container that Istio's injector and its gateways run Envoy in.
pub const PROXY: &str = "istio-proxy";

/// One page and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Where it is.
    pub url: String,
    /// `ADDRESS:PORT`, the label that tells instances apart.
    pub instance: String,
    /// `istiod`, `istio-proxy`, …
    pub app: String,
    /// Pod, if known.
    pub pod: Option<String>,
    /// Namespace, if known.
    pub namespace: Option<String>,
    /// Whose network namespace to connect from where that is needed.
    pub process: ProcessId,
    /// Set if it is needed in any case. Otherwise it may help where the address cannot be reached from here.
    pub inside_only: Option<InsideOnly>,
}

/// The pages of the components whose place is known, and of the sidecars if `proxies` is set. Of several at one address
/// the youngest process's counts, as while one takes over from another.
#[must_use]
pub fn targets(components: &[Arc<Component>], sidecars: &[Arc<Sidecar>], proxies: bool) -> Vec<Target> {
    let of_components = components.iter().filter_map(|component| of_component(component));
    let of_sidecars = sidecars.iter().filter(|_| proxies).filter_map(|sidecar| of_sidecar(sidecar));
    let mut targets: Vec<Target> = of_components.chain(of_sidecars).collect();
    targets.sort_by(|one, other| {
        let place = one.instance.cmp(&other.instance).then_with(|| one.url.cmp(&other.url));
        place.then_with(|| other.process.start_time.cmp(&one.process.start_time))
    });
    targets.dedup_by(|one, other| one.inside_only.is_none() && one.url == other.url && one.instance == other.instance);
    targets
}

fn of_component(component: &Component) -> Option<Target> {
    let page = component.page.as_ref().ok()?;
    Some(Target {
        url: format!("http://{}/metrics", page.address),
        inside_only: page.inside_only,
        ..target(component.app.clone(), page.instance, component.process, &component.workload)
    })
}

fn of_sidecar(sidecar: &Sidecar) -> Option<Target> {
    let address = SocketAddr::new(*sidecar.addresses.first()?, ENVOY_PORT);
    Some(Target {
        url: format!("http://{address}/stats/prometheus"),
        ..target(PROXY.to_owned(), address, sidecar.process, &sidecar.workload)
    })
}

fn target(app: String, instance: SocketAddr, process: ProcessId, workload: &Workload) -> Target {
    Target {
        url: String::new(),
        instance: instance.to_string(),
        app,
        pod: workload.pod.clone(),
        namespace: workload.namespace.clone(),
        process,
        inside_only: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        discovery::Role,
        model::fixture::{istiod, sidecar, workload},
    };

    #[test]
    fn every_known_page_is_a_target() {
        let sidecars = [sidecar(1, Role::Sidecar, "fd00::1", workload("reviews", &[]))];
        let mut unknown = istiod(8);
        Arc::get_mut(&mut unknown).unwrap().page = Err("it listens on no port".to_owned());
        let components = [istiod(9), unknown];
        let [target] = &targets(&components, &sidecars, false)[..] else { panic!("one target expected") };
        assert_eq!(target.url, "http://10.0.0.9:15014/metrics");
        assert_eq!((target.instance.as_str(), target.app.as_str()), ("10.0.0.9:15014", "istiod"));
        assert_eq!((target.pod.as_deref(), target.namespace.as_deref()), (Some("istiod-0"), Some("istio-system")));
        let both = targets(&components, &sidecars, true);
        let urls: Vec<&str> = both.iter().map(|target| target.url.as_str()).collect();
        assert_eq!(urls, ["http://10.0.0.9:15014/metrics", "http://[fd00::1]:15090/stats/prometheus"]);
    }

    #[test]
    fn one_page_is_one_target_and_two_namespaces_are_two() {
        let at = |pid: u32, inside_only: Option<InsideOnly>| {
            let mut component = istiod(pid);
            let known = Arc::get_mut(&mut component).unwrap();
            known.process.start_time = u64::from(pid);
            known.page.as_mut().unwrap().inside_only = inside_only;
            component
        };
        let pids = |components: &[Arc<Component>]| -> Vec<u32> {
            targets(components, &[], false).iter().map(|target| target.process.pid).collect()
        };
        assert_eq!(pids(&[at(1, None), at(2, None)]), [2], "the younger");
        let inside = Some(InsideOnly::Loopback);
        assert_eq!(pids(&[at(1, inside), at(2, inside)]), [2, 1]);
    }
}
