//! A server's answer in several parts.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| medinet_fuzz_targets::pacs_multipart(bytes));
