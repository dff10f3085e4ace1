//! The cluster's domain, from the resolver's configuration.

use std::fs;

/// Domain of a cluster that sets none.
const DEFAULT: &str = "cluster.local";

/// Returns the domain: the kubelet makes `svc.DOMAIN` one of a pod's search domains.
#[must_use]
pub fn cluster_domain() -> String {
    let found = fs::read_to_string("/etc/resolv.conf").ok().and_then(|text| search_domain(&text).map(str::to_owned));
    found.unwrap_or_else(|| DEFAULT.to_owned())
}

fn search_domain(text: &str) -> Option<&str> {
    let mut lists = text.lines().filter_map(|line| line.trim().strip_prefix("search"));
    // The last list is in force [resolv.conf(5)].
    let domains = lists.next_back()?.split_whitespace();
    domains.filter_map(|domain| domain.strip_prefix("svc.")).find(|domain| !domain.is_empty() && domain.len() <= 253)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_domain_is_what_follows_svc() {
        let kubelets =
            "nameserver 10.96.0.10\nsearch shop.svc.corp.example svc.corp.example corp.example\noptions ndots:5";
        assert_eq!(search_domain(kubelets), Some("corp.example"));
        assert_eq!(search_domain("search lan\n"), None);
        assert_eq!(search_domain("search svc.old\nsearch svc. svc.new"), Some("new"));
        assert_eq!(search_domain(""), None);
    }
}
