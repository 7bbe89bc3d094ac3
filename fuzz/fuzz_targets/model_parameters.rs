//! A model's parameters as a blob.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| medinet_fuzz_targets::model_parameters(bytes));
