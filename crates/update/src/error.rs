//! Why an update is refused.

use medinet_types::{ModelDigest, RoundNumber};

/// An update, or what it is made from, breaks the rules.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum UpdateError {
    /// The bytes do not parse; peer misbehaved, or they were damaged.
    #[error("expected {what}, got bytes that do not decode")]
    Malformed {
        /// The part that was expected.
        what: &'static str,
    },
    /// The peer speaks another version; peer incompatible.
    #[error("expected update format {expected}, got {got}: update the older of the two programs")]
    Version {
        /// The version of this build.
        expected: u8,
        /// The version received.
        got: u8,
    },
    /// It was encoded by another plan than the round's; peer misbehaved.
    #[error("encoded by another codec plan than the round's ({field} differs)")]
    OtherPlan {
        /// The field that differs.
        field: &'static str,
    },
    /// It starts from another model; peer misbehaved.
    #[error("starts from model {got}, the round's base is {expected}")]
    OtherBase {
        /// The round's base.
        expected: ModelDigest,
        /// The update's base.
        got: ModelDigest,
    },
    /// It belongs to another round; peer misbehaved.
    #[error("belongs to round {got}, expected round {expected}")]
    OtherRound {
        /// The open round.
        expected: RoundNumber,
        /// The update's round.
        got: RoundNumber,
    },
    /// A vector does not have the network's length.
    #[error("expected {expected} parameters, got {got}")]
    Length {
        /// Parameters of the network.
        expected: usize,
        /// Parameters that came.
        got: usize,
    },
    /// The claimed number of examples cannot be; peer misbehaved.
    #[error("expected 1 to {max} examples, got {got}")]
    Examples {
        /// The largest number that is accepted.
        max: u64,
        /// The number claimed.
        got: u64,
    },
    /// A number is infinite or not a number: the sender's training diverged, or it misbehaved.
    #[error("parameter {index} is not a finite number: the training diverged; lower the learning rate")]
    NotFinite {
        /// Its position.
        index: usize,
    },
    /// The update is longer than the plan allows; peer misbehaved.
    #[error("expected an L2 norm of at most {limit}, got {got}")]
    Norm {
        /// The plan's clip norm with the quantizer's tolerance.
        limit: f32,
        /// The norm of what was decoded.
        got: f32,
    },
    /// A sum under masks that honest sites cannot have made; a site misbehaved, and masks do not tell which.
    #[error("the sum holds what no honest sites add up to: expected {what}")]
    Sum {
        /// What was expected.
        what: &'static str,
    },
    /// A model delta starts from other parameters than the ones given; fetch the full model.
    #[error("the model delta starts from other parameters than the ones here: fetch the full model")]
    OtherParameters,
    /// The plan itself breaks the rules.
    #[error(transparent)]
    Plan(#[from] crate::PlanError),
}
