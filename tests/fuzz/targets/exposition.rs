//! The tests' own parser of Prometheus text: it may refuse any input, but it terminates and does not panic.
#![no_main]

use harness::exposition::Exposition;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if let Ok(text) = std::str::from_utf8(input) {
        let _ = Exposition::parse(text);
    }
});
