//! A site's stored error feedback.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| medinet_fuzz_targets::update_feedback(bytes));
