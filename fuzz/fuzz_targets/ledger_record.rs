//! A record of the ledger.
#![no_main]

#[path = "../../crates/ledger/tests/decoders/mod.rs"]
mod decoders;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| decoders::records(bytes));
