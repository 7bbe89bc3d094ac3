//! A model's parameters as a blob.
#![no_main]

use medinet_model::{decode_parameters, encode_parameters};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    for expected in [0, 1, 100] {
        if let Ok(parameters) = decode_parameters(bytes, expected) {
            assert!(parameters.len() == expected && parameters.iter().all(|p| p.is_finite()));
            assert_eq!(decode_parameters(&encode_parameters(&parameters), expected), Ok(parameters));
        }
    }
});
