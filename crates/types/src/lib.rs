//! Identifiers, digests and units that every MediNet crate shares.
//!
//! Each identifier and each unit is its own type, so that a round number cannot be passed where a
//! model version is meant and a duration always carries its unit. Nothing here does I/O or knows
//! what a patient is.

mod digest;
mod ids;
mod units;

pub use digest::{BlobDigest, DatasetDigest, Digest, ModelDigest, ParseDigestError, RecordDigest};
pub use ids::{FederationId, ModelVersion, ParseNameError, Principal, Role, RoundNumber, SiteId, TaskId};
pub use units::{ByteCount, HumanDuration, ParseUnitError, UnixMillis};
