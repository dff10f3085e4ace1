//! Addresses of a network namespace, from files below `/proc/PID/net`. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Returns all addresses but loopback and link-local ones: first those of the default route's interface, then the other
/// IPv4 ones, then IPv6. The arguments are the contents of `fib_trie`, `route` and `if_inet6` [proc_pid_net(5)].
pub fn of_namespace(fib_trie: &[u8], route: &[u8], if_inet6: &[u8]) -> Vec<IpAddr> {
    let mut ipv4 = local_ipv4(&String::from_utf8_lossy(fib_trie));
    let near_default = near_default_route(&String::from_utf8_lossy(route));
    ipv4.sort_by_key(|address| !near_default.iter().any(|(network, mask)| address.to_bits() & mask == *network));
    let ipv6 = global_ipv6(&String::from_utf8_lossy(if_inet6));
    ipv4.into_iter().map(IpAddr::from).chain(ipv6.into_iter().map(IpAddr::from)).collect()
}

/// Parses addresses, `|-- 10.0.0.9`, each followed by lines with its types.
fn local_ipv4(trie: &str) -> Vec<Ipv4Addr> {
    let mut found: Vec<Ipv4Addr> = Vec::new();
    let mut last = None;
    for line in trie.lines().map(str::trim_start) {
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.trim_end().parse().ok();
        } else if line.trim_end() == "/32 host LOCAL"
            && let Some(address) = last.filter(|address: &Ipv4Addr| !address.is_loopback() && !address.is_link_local())
            && !found.contains(&address)
        {
            found.push(address);
        }
    }
    found
}

/// Returns the networks and masks of the default route's interface.
fn near_default_route(routes: &str) -> Vec<(u32, u32)> {
    let routes: Vec<(&str, u32, u32)> = routes.lines().skip(1).filter_map(route).collect();
    let is_default = |interface| routes.iter().any(|(of, network, mask)| *of == interface && network | mask == 0);
    let near = routes.iter().filter(|(interface, _, mask)| *mask != 0 && is_default(*interface));
    near.map(|(_, network, mask)| (*network, *mask)).collect()
}

fn route(line: &str) -> Option<(&str, u32, u32)> {
    let mut fields = line.split_ascii_whitespace();
    // The kernel prints the bytes of the address as one native-endian number.
    let mut number =
        |place| u32::from_str_radix(fields.nth(place)?, 16).ok().map(|bytes| u32::from_be_bytes(bytes.to_ne_bytes()));
    let (network, mask) = (number(1)?, number(5)?);
    Some((line.split_ascii_whitespace().next()?, network, mask))
}

/// Parses lines such as `fd00…0009 02 40 00 80 eth0`; the fourth field is the scope, 0 for global.
fn global_ipv6(lines: &str) -> Vec<Ipv6Addr> {
    let address = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let address = u128::from_str_radix(fields.next()?, 16).ok()?;
        (fields.nth(2)? == "00").then_some(Ipv6Addr::from_bits(address))
    };
    lines.lines().filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TRIE: &str = "Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 127.0.0.0/8 2 0 2
        |-- 127.0.0.1
           /32 host LOCAL
     |-- 172.17.0.1
        /32 host LOCAL
     +-- 192.0.2.0/24 2 0 2
        |-- 192.0.2.0
           /24 link UNICAST
        |-- 192.0.2.2
           /32 host LOCAL
     |-- 192.0.2.255
        /32 link BROADCAST
Local:
     |-- 192.0.2.2
        /32 host LOCAL
";
    const ROUTES: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
";
    const IF_INET6: &str = "00000000000000000000000000000001 01 80 10 80       lo
fe80000000000000004200fffe000001 02 40 20 80     eth0
fd000000000000000000000000000009 02 40 00 80     eth0
";

    #[test]
    #[cfg(target_endian = "little")]
    fn the_default_routes_address_comes_first() {
        let found = of_namespace(TRIE.as_bytes(), ROUTES.as_bytes(), IF_INET6.as_bytes());
        let expected = ["192.0.2.2", "172.17.0.1", "fd00::9"].map(|address| address.parse::<IpAddr>().unwrap());
        assert_eq!(found, expected);
        let without_routes = of_namespace(TRIE.as_bytes(), b"", b"");
        assert_eq!(without_routes, [expected[1], expected[0]]);
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "(\\|-- |/32 host LOCAL|[0-9A-F]{1,9}|\\.|\t| |\n){0,40}") {
            for input in [bytes.as_slice(), text.as_bytes()] {
                let _ = of_namespace(input, input, input);
            }
        }
    }
}
