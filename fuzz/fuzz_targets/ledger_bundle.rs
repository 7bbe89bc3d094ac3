//! A released model with its proof.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| medinet_fuzz_targets::ledger_bundle(bytes));
