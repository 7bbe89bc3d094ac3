//! A DIMSE command set.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| medinet_fuzz_targets::pacs_command(bytes));
