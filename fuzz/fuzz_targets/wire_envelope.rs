//! A signed envelope, its signature believed, so that what it holds is parsed too.
#![no_main]

#[path = "../../crates/wire/tests/decoders/mod.rs"]
mod decoders;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| decoders::envelopes(bytes));
