//! What peers say of themselves; tests and the targets in `fuzz/` both call these. Each panics only when a parser breaks its
//! contract.
#![allow(dead_code, reason = "each fuzz target calls one")]

use medinet_identity::{CertificateSummary, fuzzing, principal_of};

pub(crate) fn certificates(bytes: &[u8]) {
    match CertificateSummary::of(bytes) {
        Ok(summary) => {
            assert_eq!(principal_of(bytes).as_ref(), Ok(&summary.principal));
            assert_eq!(summary.public_key[0], 4, "an uncompressed point");
        }
        Err(error) => assert_eq!(principal_of(bytes), Err(error)),
    }
}

pub(crate) fn requests(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = fuzzing::request(text);
    }
}
