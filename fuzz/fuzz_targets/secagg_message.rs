//! Every message of secure aggregation, and packed vectors.
#![no_main]

#[path = "../../crates/secagg/tests/decoders/mod.rs"]
mod decoders;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| decoders::all(bytes));
