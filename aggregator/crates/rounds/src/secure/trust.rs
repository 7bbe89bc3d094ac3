//! Whose signatures hold inside sessions.

use medinet_types::{Principal, UnixMillis};
use medinet_wire::envelope::{Verifier, VerifyError};
use medinet_wire::secure::EnrolledSites;
use std::sync::Arc;

/// The authority of the federation; nobody's signature holds without one.
#[derive(Clone)]
pub(crate) struct Trust(Arc<dyn Verifier>);

struct Nobody;

impl Verifier for Nobody {
    fn verify(&self, _: &[u8], _: &[u8], _: &[u8], _: UnixMillis) -> Result<Principal, VerifyError> {
        Err(VerifyError("no authority is known".to_owned()))
    }
}

impl Trust {
    pub(crate) fn in_sites_of(verifier: Arc<dyn Verifier>) -> Self {
        Self(verifier)
    }

    pub(crate) fn at(&self, now: UnixMillis) -> EnrolledSites<'_> {
        EnrolledSites { trust: self.0.as_ref(), now }
    }
}

impl Default for Trust {
    fn default() -> Self {
        Self(Arc::new(Nobody))
    }
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Trust(..)")
    }
}
