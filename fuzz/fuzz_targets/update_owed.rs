//! What the aggregator owes the next model.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| medinet_fuzz_targets::update_owed(bytes));
