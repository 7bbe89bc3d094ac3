//! Robust rules over the means of groups: what a server can still do against poisoned updates when it may see sums only.
//!
//! A cohort is dealt out at random into groups ([`partition()`]), each group is securely aggregated on its own, and a rule
//! that withstands some bad groups makes one mean delta of the groups' means ([`Rule`], over [`Means`]):
//!
//! ```text
//! sites --partition--> groups --secure aggregation--> a mean each --NormLimit--> --Rule--> the round's mean delta
//! ```
//!
//! A group is bad when one of its sites is; with n sites of which a are bad, at most a of the n / k groups of k sites are.
//!
//! | rule | withstands f of n groups when | source |
//! |---|---|---|
//! | [`Means::mean`] | f = 0 | McMahan et al. 2017; with a norm limit Sun et al. 2019 |
//! | [`Means::median`] | 2 f < n | Yin, Chen, Ramchandran, Bartlett 2018, definition 1 |
//! | [`Means::trimmed_mean`] | 2 f < n | Yin et al. 2018, definition 2 |
//! | [`Means::geometric_median`] | 2 f < n | Pillutla, Kakade, Harchaoui 2022, algorithm 2 |
//! | [`Means::krum`], [`Means::multi_krum`] | 2 f + 2 < n | Blanchard, El Mhamdi, Guerraoui, Stainer 2017 |
//!
//! To withstand is to stay near what good groups say, not to be rid of the bad ones: how near depends on how much good ones
//! differ, and attacks that hide within that spread (Baruch et al. 2019) remain. `docs/measurements.md` says what that costs.
//!
//! Everything is a function of its arguments, bit by bit, and of no order in which groups are given. There is no I/O here,
//! no clock and no randomness but what follows from a seed. Vectors are `[parameters]` in the model's canonical order; sums
//! are in double precision.
//!
//! ```
//! use medinet_robust::{Means, NormLimit, Rule};
//!
//! let groups = vec![vec![1.0, 0.9], vec![1.1, 1.0], vec![-50.0, 70.0]];
//! let delta = Rule::Median.combine(Means::equal(groups)?, NormLimit::Unlimited)?;
//! assert_eq!(delta, [1.0, 1.0]);
//! # Ok::<(), medinet_robust::RobustError>(())
//! ```

mod coordinate;
mod error;
mod geometric;
mod krum;
mod means;
mod partition;
mod rule;

pub use error::RobustError;
pub use geometric::Weiszfeld;
pub use krum::Selection;
pub use means::Means;
pub use partition::partition;
pub use rule::{NormLimit, Rule};
