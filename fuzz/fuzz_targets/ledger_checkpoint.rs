//! A signed checkpoint and a ledger's public key.
#![no_main]

#[path = "../../crates/ledger/tests/decoders/mod.rs"]
mod decoders;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| decoders::checkpoints(bytes));
