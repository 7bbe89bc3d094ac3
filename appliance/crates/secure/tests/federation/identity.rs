//! Stand-ins for enrolled identities: keyed hashes whose keys only these tests know. The libraries see bytes only.

use medinet_types::{Digest, Principal, Role, SiteId, UnixMillis};
use medinet_wire::envelope::{SignError, Signer, Verifier, VerifyError};

pub(crate) struct Identity {
    certificate: Vec<u8>,
    site: SiteId,
}

fn tag(site: &str, message: &[u8]) -> Vec<u8> {
    Digest::of_parts(&[b"test identity key of", site.as_bytes(), message]).0.to_vec()
}

impl Identity {
    pub(crate) fn of(site: &SiteId) -> Self {
        Self { certificate: format!("certificate of {site}").into_bytes(), site: site.clone() }
    }
}

impl Signer for Identity {
    fn certificate_der(&self) -> &[u8] {
        &self.certificate
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        Ok(tag(self.site.as_str(), message))
    }
}

pub(crate) struct Authority;

impl Verifier for Authority {
    fn verify(
        &self,
        certificate: &[u8],
        message: &[u8],
        signature: &[u8],
        _: UnixMillis,
    ) -> Result<Principal, VerifyError> {
        let refused = || VerifyError("not enrolled".into());
        let name =
            std::str::from_utf8(certificate).ok().and_then(|text| text.strip_prefix("certificate of "));
        let name = name.ok_or_else(refused)?;
        if signature != tag(name, message) {
            return Err(refused());
        }
        Ok(Principal::new(Role::Site, SiteId::new(name).map_err(|_| refused())?))
    }
}
