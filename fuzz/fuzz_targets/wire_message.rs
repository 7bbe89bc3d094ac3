//! Every message of the protocol.
#![no_main]

#[path = "../../crates/wire/tests/decoders/mod.rs"]
mod decoders;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| decoders::messages(bytes));
