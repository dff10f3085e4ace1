//! The metrics pages to read: pure.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

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
    /// Whose it is.
    pub process: ProcessId,
    /// The other way to it, where there is one.
    pub inside: Option<Inside>,
}

/// A connection from inside the network namespace that a page is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Inside {
    /// Whose namespace.
    pub process: ProcessId,
    /// Where the page is there.
    pub address: SocketAddr,
    /// Why no other way leads to it. `None`: its own address may do.
    pub only: Option<InsideOnly>,
}

/// The pages of the components whose place is known, and of the sidecars if `proxies` is set. Of several instances of one
/// name the youngest process's counts, as while one takes over from another.
#[must_use]
pub fn targets(components: &[Arc<Component>], sidecars: &[Arc<Sidecar>], proxies: bool) -> Vec<Target> {
    let of_components = components.iter().filter_map(|component| of_component(component));
    let of_sidecars = sidecars.iter().filter(|_| proxies).filter_map(|sidecar| of_sidecar(sidecar));
    let mut targets: Vec<Target> = of_components.chain(of_sidecars).collect();
    targets.sort_by(|one, other| {
        one.instance.cmp(&other.instance).then_with(|| other.process.start_time.cmp(&one.process.start_time))
    });
    targets.dedup_by(|one, other| one.instance == other.instance);
    targets
}

fn of_component(component: &Component) -> Option<Target> {
    let page = component.page.as_ref().ok()?;
    let (process, only) = (component.process, page.inside_only);
    Some(Target {
        url: format!("http://{}/metrics", page.address),
        inside: page.inside.map(|address| Inside { process, address, only }),
        ..target(component.app.clone(), page.instance, component.process, &component.workload)
    })
}

fn of_sidecar(sidecar: &Sidecar) -> Option<Target> {
    let address = SocketAddr::new(*sidecar.addresses.first()?, ENVOY_PORT);
    // Envoy listens in the pod's own family of addresses.
    let loopback: IpAddr = if address.is_ipv6() { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
    let process = Some(sidecar.process).filter(|process| process.is_process());
    Some(Target {
        url: format!("http://{address}/stats/prometheus"),
        inside: process.map(|process| Inside { process, address: SocketAddr::new(loopback, ENVOY_PORT), only: None }),
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
        inside: None,
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
        assert_eq!(both[1].inside.map(|inside| inside.address), Some("[::1]:15090".parse().unwrap()));
    }

    #[test]
    fn one_instance_is_one_target_the_youngest() {
        let at = |pid: u32, instance: &str| {
            let mut component = istiod(pid);
            let known = Arc::get_mut(&mut component).unwrap();
            known.process.start_time = u64::from(pid);
            let page = known.page.as_mut().unwrap();
            page.instance = instance.parse().unwrap();
            (page.address, page.inside_only) = ("127.0.0.1:15014".parse().unwrap(), Some(InsideOnly::Loopback));
            page.inside = Some(page.address);
            component
        };
        let found = targets(&[at(1, "10.0.0.9:15014"), at(2, "10.0.0.9:15014"), at(3, "10.0.0.8:15014")], &[], false);
        let pids: Vec<u32> = found.iter().map(|target| target.process.pid).collect();
        assert_eq!(pids, [3, 2], "two namespaces are two");
        let inside = found[1].inside.unwrap();
        assert_eq!((inside.process.pid, inside.only), (2, Some(InsideOnly::Loopback)));
    }
}
