//! The /metrics endpoints to be scraped. Pure.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

use observer_model::identity::{Component, InsideOnly, Instance, PROXY, ProcessId, Sidecar, Workload};
use reqwest::Url;

/// Envoy's endpoint, without the application's metrics [istio `pkg/bootstrap`].
const ENVOY_PORT: u16 = 15090;

/// An endpoint, and its labels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ScrapeTarget {
    /// Its URL.
    pub url: EndpointUrl,
    /// Labels of its samples.
    pub instance: Instance,
    /// The route through its network namespace, if there is one.
    pub inside: Option<NetnsRoute>,
}

impl ScrapeTarget {
    /// Creates a target from the configuration, which probably every node has. Its host and port are the instance;
    /// `node` is this node's name.
    #[must_use]
    pub fn named(url: EndpointUrl, node: &str) -> Self {
        let (instance, app, node) = (url.instance(), "istiod".to_owned(), Some(node.to_owned()));
        Self { url, instance: Instance { instance, app, pod: None, namespace: None, node }, inside: None }
    }

    /// Whether a target that was found is this one. An address that is reachable only from inside another network
    /// namespace proves nothing.
    #[must_use]
    pub fn is_same_page(&self, found: &Self) -> bool {
        let is_reached_here = found.inside.is_none_or(|inside| inside.only.is_none());
        self.instance.instance == found.instance.instance || self.url == found.url && is_reached_here
    }
}

/// A route through a network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NetnsRoute {
    /// Process in the namespace.
    pub process: ProcessId,
    /// Address there.
    pub address: SocketAddr,
    /// Why no other route works; `None` if its own address may work.
    pub only: Option<InsideOnly>,
}

/// URL of an endpoint. It may contain credentials, which are never shown.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndpointUrl(pub(super) Url);

impl EndpointUrl {
    /// Returns host and port.
    #[must_use]
    pub fn instance(&self) -> String {
        let host = self.0.host_str().unwrap_or_default();
        format!("{host}:{}", self.0.port_or_known_default().unwrap_or_default())
    }
}

impl FromStr for EndpointUrl {
    type Err = String;

    /// The error does not repeat the text, which may contain a password.
    fn from_str(text: &str) -> Result<Self, String> {
        let example = "expected e.g. http://istiod.istio-system:15014/metrics";
        let mut url =
            Url::parse(text).map_err(|error| format!("not the URL of a /metrics endpoint: {error}; {example}"))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
            return Err(format!("not the URL of a /metrics endpoint: it is neither http nor https; {example}"));
        }
        if url.path() == "/" {
            url.set_path("/metrics");
        }
        Ok(Self(url))
    }
}

impl fmt::Display for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = &self.0;
        write!(f, "{}://{}", url.scheme(), url.host_str().unwrap_or_default())?;
        if let Some(port) = url.port() {
            write!(f, ":{port}")?;
        }
        f.write_str(url.path())
    }
}

impl fmt::Debug for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Returns the endpoints of the components, and those of the sidecars if `proxies` is set. Of several targets with one
/// instance the youngest process wins, as while one replaces another.
#[must_use]
pub fn targets(components: &[Arc<Component>], sidecars: &[Arc<Sidecar>], proxies: bool) -> Vec<ScrapeTarget> {
    let of_components = components.iter().filter_map(|component| Some((component.process, of_component(component)?)));
    let of_sidecars = sidecars.iter().filter(|_| proxies);
    let of_sidecars = of_sidecars.filter_map(|sidecar| Some((sidecar.process, of_sidecar(sidecar)?)));
    let mut targets: Vec<(ProcessId, ScrapeTarget)> = of_components.chain(of_sidecars).collect();
    targets.sort_by(|(process, one), (other_process, other)| {
        let by_name = one.instance.instance.cmp(&other.instance.instance);
        by_name.then_with(|| other_process.start_time.cmp(&process.start_time))
    });
    targets.dedup_by(|(_, one), (_, other)| one.instance.instance == other.instance.instance);
    targets.into_iter().map(|(_, target)| target).collect()
}

fn of_component(component: &Component) -> Option<ScrapeTarget> {
    let endpoint = component.endpoint.as_ref().ok()?;
    let (process, only) = (component.process, endpoint.inside_only);
    Some(ScrapeTarget {
        url: format!("http://{}/metrics", endpoint.address).parse().ok()?,
        instance: instance(component.app.clone(), endpoint.instance, &component.workload),
        inside: endpoint.inside.map(|address| NetnsRoute { process, address, only }),
    })
}

fn of_sidecar(sidecar: &Sidecar) -> Option<ScrapeTarget> {
    let address = SocketAddr::new(*sidecar.addresses.first()?, ENVOY_PORT);
    // Envoy listens in the pod's address family.
    let loopback: IpAddr = if address.is_ipv6() { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
    let process = Some(sidecar.process).filter(|process| process.is_process());
    Some(ScrapeTarget {
        url: format!("http://{address}/stats/prometheus").parse().ok()?,
        instance: instance(PROXY.to_owned(), address, &sidecar.workload),
        inside: process.map(|process| NetnsRoute {
            process,
            address: SocketAddr::new(loopback, ENVOY_PORT),
            only: None,
        }),
    })
}

fn instance(app: String, address: SocketAddr, workload: &Workload) -> Instance {
    let (pod, namespace) = (workload.pod.clone(), workload.namespace.clone());
    Instance { instance: address.to_string(), app, pod, namespace, node: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use observer_model::{
        fixture::{istiod, sidecar, workload},
        identity::Role,
    };

    #[test]
    fn every_known_page_is_a_target() {
        let sidecars = [sidecar(1, Role::Sidecar, "fd00::1", workload("reviews", &[]))];
        let mut unknown = istiod(8);
        Arc::get_mut(&mut unknown).unwrap().endpoint = Err("it listens on no port".to_owned());
        let components = [istiod(9), unknown];
        let [target] = &targets(&components, &sidecars, false)[..] else { panic!("one target expected") };
        assert_eq!(target.url.to_string(), "http://10.0.0.9:15014/metrics");
        let Instance { instance, app, pod, namespace, node } = &target.instance;
        assert_eq!((instance.as_str(), app.as_str(), node), ("10.0.0.9:15014", "istiod", &None));
        assert_eq!((pod.as_deref(), namespace.as_deref()), (Some("istiod-0"), Some("istio-system")));
        let both = targets(&components, &sidecars, true);
        let urls: Vec<String> = both.iter().map(|target| target.url.to_string()).collect();
        assert_eq!(urls, ["http://10.0.0.9:15014/metrics", "http://[fd00::1]:15090/stats/prometheus"]);
        assert_eq!(both[1].inside.map(|inside| inside.address), Some("[::1]:15090".parse().unwrap()));
    }

    #[test]
    fn one_instance_is_one_target_the_youngest() {
        let at = |pid: u32, instance: &str| {
            let mut component = istiod(pid);
            let known = Arc::get_mut(&mut component).unwrap();
            known.process.start_time = u64::from(pid);
            let endpoint = known.endpoint.as_mut().unwrap();
            endpoint.instance = instance.parse().unwrap();
            (endpoint.address, endpoint.inside_only) = ("127.0.0.1:15014".parse().unwrap(), Some(InsideOnly::Loopback));
            endpoint.inside = Some(endpoint.address);
            component
        };
        let found = targets(&[at(1, "10.0.0.9:15014"), at(2, "10.0.0.9:15014"), at(3, "10.0.0.8:15014")], &[], false);
        let pids: Vec<u32> = found.iter().map(|target| target.inside.unwrap().process.pid).collect();
        assert_eq!(pids, [3, 2], "two namespaces are two");
        let inside = found[1].inside.unwrap();
        assert_eq!((inside.process.pid, inside.only), (2, Some(InsideOnly::Loopback)));
    }
}
