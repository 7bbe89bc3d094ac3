//! The ledger: an append-only Merkle log (RFC 9162 hashing) with signed checkpoints, and the rules for what may stand on it.
//!
//! * [`record`]: what goes on it; nothing that identifies a patient.
//! * [`rules`]: which record may follow which; [`LedgerState::state_hash`] is the same wherever the same records were applied.
//! * [`merkle`]: tree, inclusion and consistency proofs.
//! * [`checkpoint`]: signed notes (C2SP signed-note and tlog-checkpoint), and how a site follows a log it does not trust.
//! * [`writer`] and [`verify`]: the log as files, written so that a kill at any point loses nothing that was signed, and
//!   verified from the files and a public key alone.
//! * [`vote`]: sites' signed votes on a candidate, which a model's user can check.
//! * [`bundle`]: a released model with its proof; the only way to get the model out of it is to verify it.
//!
//! Records, rules and Merkle hashing build without `std` (feature `std` off), so that a contract runs the same ones.
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

#[cfg(feature = "std")]
pub mod bundle;
#[cfg(feature = "std")]
pub mod checkpoint;
#[cfg(feature = "std")]
pub mod directory;
pub mod merkle;
pub mod record;
pub mod rules;
#[cfg(feature = "std")]
pub mod verify;
pub mod vote;
#[cfg(feature = "std")]
pub mod writer;

pub use merkle::{MerkleTree, ProofError, leaf_hash, verify_consistency, verify_inclusion};
pub use record::{
    MAX_RECORD_BYTES, Participant, Record, RecordBody, RecordError, ReportedMetrics, RoundKind, SiteReport,
    SiteVote,
};
pub use rules::{LedgerState, RuleViolation};

#[cfg(feature = "std")]
pub use bundle::{BundleError, ModelBundle, TrustedKeys, VerifiedModel, VoteDemand};
#[cfg(feature = "std")]
pub use checkpoint::{
    Checkpoint, CheckpointError, CheckpointSigner, Ed25519Signer, LedgerPublicKey, SignedCheckpoint,
    origin_of,
};
#[cfg(feature = "std")]
pub use verify::{Finding, LogFiles, Report, verify_log};
#[cfg(feature = "std")]
pub use writer::{LogStorage, LogWriter, WriteError};
