//! The files of a log, as an auditor gets them.
#![no_main]

#[path = "../../crates/ledger/tests/decoders/mod.rs"]
mod decoders;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| decoders::logs(bytes));
