//! A server's answer to a search, in DICOM JSON.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| medinet_fuzz_targets::pacs_json(bytes));
