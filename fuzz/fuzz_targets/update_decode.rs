//! A site's sealed update, at every kind of plan.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| medinet_fuzz_targets::update_decode(bytes));
