//! A model delta on its way to a site.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| medinet_fuzz_targets::update_model_delta(bytes));
