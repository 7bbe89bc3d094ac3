//! A round's plan, as far as a site looks into it before it answers.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| medinet_fuzz_targets::wire_announcement(bytes));
