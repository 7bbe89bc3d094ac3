//! The aggregator's stored sum.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| medinet_fuzz_targets::update_accumulator(bytes));
