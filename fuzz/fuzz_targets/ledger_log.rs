//! The files of a log, as an auditor gets them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| medinet_fuzz_targets::ledger_log(bytes));
