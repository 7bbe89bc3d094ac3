//! The parsers of a stranger's bytes that are private otherwise, for `tests/decoders` and so for the targets in `fuzz/`. Nothing
//! else may use it.

use medinet_types::Principal;

/// Who asks by a certificate signing request (PEM); none where it is refused.
#[must_use]
pub fn request(csr_pem: &str) -> Option<Principal> {
    crate::csr::read_request(csr_pem).ok().map(|(principal, _)| principal)
}
