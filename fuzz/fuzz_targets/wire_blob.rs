//! A blob's manifest and a chunk of it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| medinet_fuzz_targets::wire_blob(bytes));
