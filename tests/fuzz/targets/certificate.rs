//! One element of `x-forwarded-client-cert`.
//!
//! Input: the element. Whatever comes, it ends, what is read is from the input, and it is the same after it was written
//! again with every value in quotes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use observer::model::callers::{Certificate, SpiffeId};

fuzz_target!(|input: &[u8]| {
    let Some(certificate) = Certificate::parse(input) else { return };
    let Certificate { by, hash, uri } = &certificate;
    assert!(by.iter().map(|by| by.len()).sum::<usize>() + hash.len() + uri.len() <= input.len());
    assert!(by.iter().chain([hash, uri]).all(|value| !value.chars().any(char::is_control)));
    if let Some(SpiffeId { trust_domain, namespace, account }) = SpiffeId::parse(uri) {
        assert_eq!(format!("spiffe://{trust_domain}/ns/{namespace}/sa/{account}"), **uri);
    }
    let quoted = |value: &str| format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""));
    let mut text: String = by.iter().map(|by| format!("BY={};", quoted(by))).collect();
    text.push_str(&format!("hash={};uri={}", quoted(hash), quoted(uri)));
    // Escapes may make it too long.
    if let Some(again) = Certificate::parse(text.as_bytes()) {
        assert_eq!(again, certificate);
    }
});
