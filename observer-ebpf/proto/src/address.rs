//! IP addresses as 16 bytes in network order, IPv4 mapped.

/// Maps an IPv4 address, a word in network order, into IPv6.
#[inline(always)]
pub fn mapped(ip4: u32) -> [u8; 16] {
    from_words([0, 0, 0xffff_0000_u32.to_le(), ip4])
}

/// Builds an IPv6 address from four words in network order.
#[inline(always)]
pub fn from_words(words: [u32; 4]) -> [u8; 16] {
    // SAFETY: both are 16 bytes without padding.
    unsafe { core::mem::transmute(words) }
}

/// Returns whether both are the same address, without the call of `memcmp` that `==` is.
#[inline(always)]
pub fn is_same(a: &[u8; 16], b: &[u8; 16]) -> bool {
    u128::from_ne_bytes(*a) == u128::from_ne_bytes(*b)
}

/// Returns whether this is 127.0.0.6 or ::6, the source address of an inbound sidecar's connections to its application.
/// Source: istio `pilot/pkg/networking/core/cluster.go`.
#[inline(always)]
pub fn is_inbound_passthrough_source(a: &[u8; 16]) -> bool {
    is_same(a, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 6])
        || is_same(a, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6])
}

/// Returns whether this is 127.0.0.1 or ::1.
#[inline(always)]
pub fn is_localhost(a: &[u8; 16]) -> bool {
    is_same(a, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1])
        || is_same(a, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
}

/// Returns whether this is a loopback address: 127.0.0.0/8 or ::1.
#[inline(always)]
pub fn is_loopback(a: &[u8; 16]) -> bool {
    let mut first = *a;
    (first[13], first[14], first[15]) = (0, 0, 1);
    is_localhost(&first) && a[10] == 0xff || is_localhost(a)
}
