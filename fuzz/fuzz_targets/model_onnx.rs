//! What an ONNX file says of itself.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| medinet_fuzz_targets::model_onnx(bytes));
