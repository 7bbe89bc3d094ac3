//! A signed checkpoint and a ledger's public key.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| medinet_fuzz_targets::ledger_checkpoint(bytes));
