//! A model delta on its way to a site.
#![no_main]

#[path = "../../crates/update/tests/decoders/mod.rs"]
mod decoders;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| decoders::model_deltas(bytes));
