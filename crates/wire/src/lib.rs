//! Every message and every MQTT topic of MediNet, versioned.
//!
//! * [`topic`] builds and parses topics; no other code formats one.
//! * [`message`] holds what the parties say to each other.
//! * [`secure`] holds what is said in rounds with secure aggregation.
//! * [`privacy`] says what rounds cost patients by their announcements.
//! * [`envelope`] signs a message end to end, so that the broker need not be trusted.
//! * [`blob`] cuts payloads of any size into chunks that resume by content hash.
//!
//! Encoding is postcard (little-endian varints) behind a version byte. Decoders take untrusted bytes: they
//! return errors, never panic, and allocate no more than a small multiple of the message's length.

pub mod blob;
mod codec;
pub mod envelope;
pub mod message;
pub mod privacy;
pub mod secure;
pub mod topic;
/// Sites' signed votes on a candidate, which stand in messages, on the ledger and in bundles alike.
pub use medinet_ledger::vote;

pub use codec::{DecodeError, MAX_MESSAGE_BYTES, decode, encode};

/// The protocol version that this build speaks; the first byte of every message. Version 6 stands for version 2 of
/// [`medinet_secagg::message`] too, whose messages travel inside these: a change of that one is a change of this one.
pub const PROTOCOL_VERSION: u8 = 6;
