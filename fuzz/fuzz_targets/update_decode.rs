//! A site's sealed update, at every kind of plan.
#![no_main]

#[path = "../../crates/update/tests/decoders/mod.rs"]
mod decoders;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| decoders::updates(bytes));
