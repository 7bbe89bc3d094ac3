//! Certificate signing requests (RFC 2986): made at the party, checked at the authority.

use crate::principal::{PrincipalError, principal_from, urn};
use medinet_types::Principal;
use rcgen::string::Ia5String;
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, DnValue, KeyPair,
    PKCS_ECDSA_P256_SHA256, PublicKey, PublicKeyData as _, SanType,
};
use zeroize::Zeroizing;

/// The longest request that is looked at, in bytes of PEM text.
const MAX_REQUEST_BYTES: usize = 16 * 1024;

/// A request that is not signed as it stands.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Not a request, or its own signature does not hold.
    #[error(
        "expected a certificate signing request in PEM, signed by its own key, got one that is refused ({0})"
    )]
    Unreadable(String),
    /// Another kind of key.
    #[error(
        "expected a request with an ECDSA P-256 key, got another kind: make it with `medinet identity new`"
    )]
    Key,
    /// Does not say who asks.
    #[error("the request does not name a party")]
    Principal(#[source] PrincipalError),
}

/// The subject and the URI that name `principal`, in a request or a certificate.
pub(crate) fn naming(principal: &Principal) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, principal.name.as_str());
    params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(urn(principal))?)];
    Ok(params)
}

/// Makes a new P-256 key and a request for a certificate of `principal`: the key (PKCS #8 PEM) stays where it is
/// made, in a file for its owner alone; the request (PEM) goes to the authority.
///
/// # Errors
/// When the system's random source fails.
pub fn new_key_and_csr(principal: &Principal) -> Result<(Zeroizing<String>, String), rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let request = naming(principal)?.serialize_request(&key)?;
    Ok((Zeroizing::new(key.serialize_pem()), request.pem()?))
}

/// Checks a request's own signature and reads who asks, and for which key. Everything else that it asks for is
/// ignored: what a certificate says is the operator's decision.
pub(crate) fn read_request(csr_pem: &str) -> Result<(Principal, PublicKey), RequestError> {
    if csr_pem.len() > MAX_REQUEST_BYTES {
        return Err(RequestError::Unreadable("more than 16 KiB".into()));
    }
    let request = CertificateSigningRequestParams::from_pem(csr_pem)
        .map_err(|error| RequestError::Unreadable(error.to_string()))?;
    // The signature algorithm alone does not tell the curve; the point's length does.
    let point = request.public_key.der_bytes();
    if request.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 || point.len() != 65 || point[0] != 0x04 {
        return Err(RequestError::Key);
    }
    let params = &request.params;
    let common_names: Vec<&str> = params
        .distinguished_name
        .iter()
        .filter(|(kind, _)| **kind == DnType::CommonName)
        .filter_map(|(_, value)| match value {
            DnValue::Utf8String(text) => Some(text.as_str()),
            DnValue::PrintableString(text) => Some(text.as_str()),
            _ => None,
        })
        .collect();
    let uris: Vec<&str> = params
        .subject_alt_names
        .iter()
        .filter_map(|name| match name {
            SanType::URI(uri) => Some(uri.as_str()),
            _ => None,
        })
        .collect();
    let principal = principal_from(&common_names, &uris).map_err(RequestError::Principal)?;
    Ok((principal, request.public_key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use medinet_types::{Role, SiteId};
    use rcgen::PKCS_ECDSA_P384_SHA384;

    fn north() -> Principal {
        Principal::new(Role::Site, SiteId::new("north").unwrap())
    }

    #[test]
    fn a_request_says_who_asks_and_holds_no_key() {
        let (key, request) = new_key_and_csr(&north()).unwrap();
        assert!(key.contains("BEGIN PRIVATE KEY"));
        assert!(!request.contains("PRIVATE"));
        assert_eq!(read_request(&request).unwrap().0, north());
    }

    #[test]
    fn a_request_that_was_changed_is_refused() {
        let (_, request) = new_key_and_csr(&north()).unwrap();
        let der = pem_body(&request);
        let read = |der: Vec<u8>| CertificateSigningRequestParams::from_der(&der.into());
        let asked = read(der.clone()).unwrap();
        for at in 0..der.len() {
            let mut changed = der.clone();
            changed[at] ^= 1;
            // Only what the signature does not cover may be read differently: the name of its own algorithm.
            if let Ok(got) = read(changed) {
                assert_eq!(got, asked, "byte {at} of {} was changed and nobody noticed", der.len());
            }
        }
        assert!(read_request(&request[..request.len() / 2]).is_err());
        assert!(read_request("").is_err());
        assert!(read_request(&"A".repeat(20_000)).is_err());
    }

    fn pem_body(pem: &str) -> Vec<u8> {
        use rustls_pki_types::{CertificateSigningRequestDer, pem::PemObject as _};
        CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap().as_ref().to_vec()
    }

    #[test]
    fn a_request_with_another_kind_of_key_is_refused() {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
        let request = naming(&north()).unwrap().serialize_request(&key).unwrap().pem().unwrap();
        assert!(matches!(read_request(&request), Err(RequestError::Key)));
    }
}
