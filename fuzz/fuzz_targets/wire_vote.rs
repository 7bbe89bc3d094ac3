//! Sites' signed votes, their signatures believed.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| medinet_fuzz_targets::wire_vote(bytes));
