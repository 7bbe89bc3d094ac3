//! A site's stored error feedback.
#![no_main]

#[path = "../../crates/update/tests/decoders/mod.rs"]
mod decoders;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| decoders::feedback(bytes));
