//! The beginning of a file, which says what object it holds.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| medinet_fuzz_targets::pacs_name(bytes));
