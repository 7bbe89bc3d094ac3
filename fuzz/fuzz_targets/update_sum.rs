//! The opened sum of the sites' masked updates.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| medinet_fuzz_targets::update_sum(bytes));
