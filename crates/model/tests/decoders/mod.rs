//! One function per decoder of untrusted bytes; tests and the targets in `fuzz/` both call them. Each panics only when
//! a decoder breaks its contract.
#![allow(dead_code, reason = "each fuzz target calls one")]

use medinet_model::{decode_parameters, encode_parameters, onnx};

pub(crate) fn parameters(bytes: &[u8]) {
    for expected in [0, 1, 100] {
        if let Ok(parameters) = decode_parameters(bytes, expected) {
            assert!(parameters.len() == expected && parameters.iter().all(|p| p.is_finite()));
            assert_eq!(decode_parameters(&encode_parameters(&parameters), expected), Ok(parameters));
        }
    }
}

/// What an ONNX file says of itself.
pub(crate) fn graphs(bytes: &[u8]) {
    if let Ok(spec) = onnx::task_spec(bytes) {
        let _ = spec.network.check();
    }
}

pub(crate) fn all(bytes: &[u8]) {
    parameters(bytes);
    graphs(bytes);
}
