//! Secure aggregation: the server learns the sum of the sites' vectors over Z/2^w, and nothing else.
//!
//! The protocol of Bonawitz et al. 2017 ("Practical Secure Aggregation for Privacy-Preserving Machine Learning", ACM CCS, figure 4:
//! double masking, five rounds, with signed keys and the consistency check against a malicious server), on the
//! k-regular graph of Bell et al. 2020 ("Secure Single-Server Aggregation with (Poly)Logarithmic Overhead", ACM CCS,
//! ePrint 2020/704, algorithms 1 and 2). What is promised, against whom and why is in `docs/threat-model.md`.
//!
//! A library without I/O: no sockets, no clock, no randomness of the system. [`site`] and [`server`] hold the states of either
//! side, [`message`] what they say to each other:
//!
//! | Round | Site | Message | Server |
//! |---|---|---|---|
//! | 0 | [`site::Advertised::start`] | [`Advertisement`] → | [`server::Advertising`] |
//! | | | ← [`KeyList`] | |
//! | 1 | [`site::Advertised::share_keys`] | [`KeyShares`] → | [`server::Sharing`] |
//! | | | ← [`ShareDelivery`] | |
//! | 2 | [`site::KeysShared::mask`] | [`MaskedInput`] → | [`server::Collecting`] |
//! | | | ← [`Survivors`] | |
//! | 3 | [`site::Masked::agree`] | [`Agreement`] → | [`server::Agreeing`] |
//! | | | ← [`AgreementList`] | |
//! | 4 | [`site::Agreed::unmask`] | [`Unmasking`] → | [`server::Opening`] |
//! | | | | [`Aggregate`] |
//!
//! At most one sum holds any one honest site's input in a session. Sites that were shown different key lists under the same session can
//! each end in a sum of their own list; no honest site is in two.
//!
//! The feature `rayon` spreads the server's unmasking over threads; it changes no result.

// Lets the helpers of the integration tests serve unit tests too.
#[cfg(test)]
extern crate self as medinet_secagg;

mod error;
mod graph;
mod mask;
pub mod message;
mod ring;
mod roster;
mod secret;
pub mod server;
mod session;
mod shamir;
pub mod site;
mod topology;

pub use error::{DecodeError, Error, Fault, Problem};
#[doc(hidden)]
pub use mask::key_stream_alone;
pub use message::{
    Advertisement, Agreement, AgreementList, KeyList, KeyShares, MaskedInput, MemberSet, Message,
    ShareDelivery, Survivors, Unmasking,
};
pub use ring::{RingVector, Width};
pub use server::Aggregate;
pub use session::{MAX_COORDINATES, SessionId, SessionParameters, SignFailure, Signer, SitePolicy, Verifier};
pub use topology::{Adversary, Assumptions, MAX_COHORT, Topology};
