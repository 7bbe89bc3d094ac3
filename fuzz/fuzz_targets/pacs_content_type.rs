//! The content type of a server's answer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| medinet_fuzz_targets::pacs_content_type(bytes));
