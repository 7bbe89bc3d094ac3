//! A signed envelope, its signature believed, so that what it holds is parsed too.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| medinet_fuzz_targets::wire_envelope(bytes));
