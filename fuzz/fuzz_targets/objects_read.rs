//! A DICOM object as a peer could send it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| medinet_fuzz_targets::objects_read(bytes));
