//! What all parties of a session agree on beforehand, and what a site demands of one.

use crate::error::{Error, Problem};
use crate::ring::Width;
use crate::topology::{Assumptions, MAX_COHORT};
use medinet_types::{Digest, FederationId, RoundNumber, SiteId, TaskId};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The most coordinates of a session's vector.
pub const MAX_COORDINATES: u32 = 1 << 30;

/// Names a session: a digest of everything in [`SessionParameters`]. It goes into every signature, key and message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(Digest);

impl SessionId {
    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.short())
    }
}

/// A session: one attempt to sum one round's updates. Known to every site before it starts, from the signed announcement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionParameters {
    /// The federation.
    pub federation: FederationId,
    /// The task.
    pub task: TaskId,
    /// The round.
    pub round: RoundNumber,
    /// The attempt within the round, from 1. A session that failed is never resumed; the next attempt has new keys.
    pub attempt: u32,
    /// A digest of the rest of what the round is about (base model, plan, codec), so that a site that was announced something
    /// else is in another session.
    pub purpose: Digest,
    /// Coordinates of the vector, 1 to [`MAX_COORDINATES`].
    pub coordinates: u32,
    /// Width of the ring.
    pub width: Width,
    /// The fewest sites with which the session starts, and whose inputs may make up the sum; at least 2.
    pub minimum_sites: u16,
}

impl SessionParameters {
    /// Checks the ranges.
    ///
    /// # Errors
    /// Names the field; the caller is at fault.
    pub fn check(&self) -> Result<(), Error> {
        let bad = |field, expected: String, got: u64| {
            Err(Error::caller(Problem::Parameters { field, expected, got }))
        };
        if !(1..=MAX_COORDINATES).contains(&self.coordinates) {
            return bad("coordinates", format!("1 to {MAX_COORDINATES}"), self.coordinates.into());
        }
        if !(2..=MAX_COHORT).contains(&self.minimum_sites) {
            return bad("minimum_sites", format!("2 to {MAX_COHORT}"), self.minimum_sites.into());
        }
        Ok(())
    }

    /// The session's name.
    #[must_use]
    pub fn id(&self) -> SessionId {
        let numbers = [
            u64::from(self.round.0),
            self.attempt.into(),
            self.coordinates.into(),
            self.width.bits().into(),
            self.minimum_sites.into(),
        ];
        let numbers: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        SessionId(Digest::of_parts(&[
            b"medinet secagg 1 session",
            self.federation.as_str().as_bytes(),
            self.task.as_str().as_bytes(),
            &numbers,
            self.purpose.as_bytes(),
        ]))
    }

    /// Bytes of a masked input's payload.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        self.width.packed_bytes(self.len())
    }

    pub(crate) fn len(&self) -> usize {
        self.coordinates as usize
    }
}

/// What a site insists on, whatever the server proposes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SitePolicy {
    /// The fewest sites, this one included, whose keys must be advertised.
    pub minimum_cohort: u16,
    /// The fewest sites, this one included, whose inputs make up the sum.
    pub minimum_survivors: u16,
    /// Against whom the proposed graph, threshold and quorum must hold.
    pub assumptions: Assumptions,
}

impl Default for SitePolicy {
    /// Three sites at the start and in the sum: of a sum of two each knows the other's input.
    fn default() -> Self {
        Self { minimum_cohort: 3, minimum_survivors: 3, assumptions: Assumptions::default() }
    }
}

/// The identity key could not sign; the environment is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the identity key could not sign: {0}")]
pub struct SignFailure(pub String);

/// Signs with a site's enrolled identity key.
pub trait Signer {
    /// What a verifier needs besides the site's name, such as its certificate; at most 4,096 bytes, may be empty.
    fn credential(&self) -> Vec<u8>;

    /// Signs `message`; at most 512 bytes.
    ///
    /// # Errors
    /// When the key, which may sit in a TPM, refuses.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignFailure>;
}

/// Verifies what a [`Signer`] signed.
pub trait Verifier {
    /// Whether `signature` over `message` was made by the key enrolled for `site`, which `credential` proves (issued by the
    /// federation's authority to this very site, in date, not revoked).
    fn verify(&self, site: &SiteId, credential: &[u8], message: &[u8], signature: &[u8]) -> bool;
}
