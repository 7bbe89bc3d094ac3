//! Whole federations in one process, on public images: for studies of methods, never at a hospital.
//!
//! What is studied is the product's own code: local training ([`medinet_training`]), the update codecs ([`medinet_update`]), the server's step
//! ([`medinet_rounds::ServerOptimizer`]) and the figures ([`medinet_metrics`]). Left out is what does not change a model: network, signatures,
//! durability, and the masks of secure aggregation, which cancel exactly; the integers under them are summed modulo 2^w as there.
//!
//! ```text
//! data --split--> Site --LocalTraining--> delta --Behaviour--> Channel --groups--> Aggregation --ServerOptimizer--> Downlink --> figures
//! ```
//!
//! Each arrow with a name is a trait or an enum, so that a study changes one thing and leaves the rest: [`Behaviour`] is what a site does
//! that does not follow the protocol, [`LocalTraining`] how a site trains, [`Aggregation`] how groups of sites are made
//! and how their means become one step, [`Voting`] whether sites take the model. A [`Federation`] is a function of its parts and its seed, bit by bit, however many threads run it.

pub mod audit;
pub mod codec;
pub mod data;
pub mod federation;
pub mod plots;
pub mod poisoning;
pub mod privacy;
pub mod setup;
pub mod split;

pub use data::{Dataset, Images};
pub use federation::{
    Aggregation, Behaviour, Channel, ClipRule, Council, Downlink, Federation, Figures, GroupMean, LocalTask,
    LocalTraining, LocalUpdate, Mean, RoundFigures, Run, Sgd, Site, View, Voting,
};
pub use split::SplitPlan;

use medinet_types::Digest;
use rand_chacha::ChaCha12Rng;
use rand_core::SeedableRng as _;

/// A random source for one purpose: keyed by the seed, what it is for, and where it stands.
#[must_use]
pub fn random(seed: u64, purpose: &str, place: &[u64]) -> ChaCha12Rng {
    ChaCha12Rng::from_seed(key(seed, purpose, place))
}

/// The key of [`random`].
#[must_use]
pub fn key(seed: u64, purpose: &str, place: &[u64]) -> [u8; 32] {
    let place: Vec<u8> = place.iter().flat_map(|number| number.to_le_bytes()).collect();
    Digest::of_parts(&[b"medinet study 1", &seed.to_le_bytes(), purpose.as_bytes(), &place]).0
}
