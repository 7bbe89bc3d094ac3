//! A DICOM object as a peer could send it.
#![no_main]

#[path = "../../appliance/crates/objects/tests/decoders/mod.rs"]
mod decoders;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| decoders::all(bytes));
