//! Every message of secure aggregation, and packed vectors.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| medinet_fuzz_targets::secagg_message(bytes));
